"""int4 with compensation: each column of a matrix is rounded so that the columns after it make up for the error.

What a matrix is for is seen from its inputs while the network reads what it wrote itself, so no data is needed.
Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpt2chat.checkpoint import Checkpoint
from gpt2chat.model import Block
from gpt2chat.quantize import Panels, int4_compensated, pack_int4, padded, unpack
from gpt2chat.runtime import Runtime
from gpt2chat.sampling import GenerationConfig, Sampler
from gpt2chat.weights import Entry, entries_of, make

ROWS, LENGTH = 24, 128  # texts that the network writes to be calibrated on, and their tokens
TOGETHER = 4  # of them that go through a layer at once


def own_texts(runtime: Runtime, start: int, first_seed: int = 0) -> Tensor:
    """Return texts (ROWS, LENGTH) that a network writes behind the end token `start`, the same each time."""
    length, rows = min(LENGTH, runtime.config.n_ctx), []
    for seed in range(first_seed, first_seed + ROWS):
        sampler, cache = Sampler(GenerationConfig(temperature=1, top_k=0, seed=seed)), runtime.new_cache()
        ids = [start]
        while len(ids) < length:
            ids.append(sampler.sample(runtime.forward(ids[-1:], cache)[0], [], len(ids)))
        rows.append(ids)
    return torch.tensor(rows)


@torch.inference_mode()
def int4_panels(loaded: Checkpoint, ids: Tensor) -> dict[str, Panels]:
    """Round all matrices of the layers to int4, each for the inputs that it gets from the rounded ones before it."""
    entries, panels = entries_of(loaded.weights), {}
    x = _weight(entries, "wte.weight", loaded)[ids] + _weight(entries, "wpe.weight", loaded)[: ids.size(1)]
    for number in range(loaded.config.n_layer):
        block = _block(entries, f"h.{number}.", loaded)
        moments = _moments(block, x)
        for name, linear in _linears(block):
            numbers, scale = int4_compensated(padded(linear.weight), moments[name])
            rounded = pack_int4(numbers, scale)
            panels[f"h.{number}.{name}.weight"] = rounded
            linear.weight = nn.Parameter(unpack(rounded, "int4", *linear.weight.shape), requires_grad=False)
        x = torch.cat([block(part, 0, None, None, True) for part in x.split(TOGETHER)])
    return panels


def _weight(entries: Mapping[str, Entry], name: str, loaded: Checkpoint) -> Tensor:
    return make(entries[name], torch.float32, mapped=loaded.mapped)


def _block(entries: Mapping[str, Entry], prefix: str, loaded: Checkpoint) -> Block:
    with torch.device("meta"):
        block = Block(loaded.config)
    names = [name for name in entries if name.startswith(prefix)]
    block.load_state_dict({n.removeprefix(prefix): _weight(entries, n, loaded) for n in names}, assign=True)
    return block.requires_grad_(False).eval()


def _linears(block: Block) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _moments(block: Block, x: Tensor) -> dict[str, Tensor]:
    """Return the second moments (inputs, inputs) of what each matrix of a layer multiplies."""
    moments: dict[str, Tensor] = {}

    def note(name: str, linear: nn.Linear) -> None:
        size = -(-linear.in_features // 64) * 64
        total = moments[name] = torch.zeros(size, size)

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, 1)
            total[: rows.size(1), : rows.size(1)] += rows.T @ rows

        hooks.append(linear.register_forward_pre_hook(add))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name, linear in _linears(block):
        note(name, linear)
    for part in x.split(TOGETHER):
        block(part, 0, None, None, True)
    for hook in hooks:
        hook.remove()
    return moments

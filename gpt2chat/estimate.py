"""What a training run will need, before it runs: memory by formula, steps and minutes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from gpt2chat.data import Dataset, epoch_rows
from gpt2chat.hardware import pick_dtype
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.training import TrainConfig

TEXT_BLOCK = 256  # ids per row of text when --max_length does not say ...
CONVERSATION_ROW = 512  # ... and of conversations: single pairs are joined up to this length
ENOUGH_STEPS = {"conversations": 90, "texts": 50}  # epochs are chosen to reach this many optimizer steps ...
MOST_EPOCHS = {"conversations": 30, "texts": 10}  # ... but no more passes than this
EFFICIENCY = 0.4  # of training, measured
PROGRAM = 230 << 20  # bytes of the interpreter with torch loaded


@dataclass(frozen=True)
class _Bytes:
    """What training keeps, in bytes: fitted to measured runs of three sizes, to be repeated by benchmarks/memory.py."""

    weight: int  # of a parameter while the loss is computed: itself, two moments, a copy in another type
    logit: int  # of each score of the vocabulary at each target
    activation: int  # of each number of a token's state in each layer, kept for the way back
    returning: int  # ... of which so much is still there when the gradients are
    embedding: int  # of each number of the embedding, whose gradient comes from both ends
    base: int  # of the libraries that compute


KEPT = {
    torch.float32: _Bytes(12, 22, 95, 32, 16, 87 << 20),
    torch.bfloat16: _Bytes(14, 18, 57, 33, 3, 147 << 20),
}
GRADIENT, DROPPED = 4, 45  # bytes of a parameter's gradient; of an activation that dropout keeps besides


def parameter_count(config: GPT2Config) -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in GPT2.empty(config).parameters())


def training_memory(
    config: GPT2Config, tokens: int, targets: int, dtype: torch.dtype, dropout: float = 0.0, parts: int = 1
) -> int:
    """Return the peak memory in bytes of a process that trains on the CPU, within a tenth.

    `tokens` are those of the largest part that is computed at once, padding included, `targets` those to learn in it;
    `parts` are what a step is computed in. The peak is where the loss is computed, or where all gradients are there.
    """
    kept, parameters = KEPT[dtype], parameter_count(config)
    states = tokens * config.n_embd * config.n_layer
    dropped = DROPPED * states if dropout else 0
    loss = (
        (kept.weight + GRADIENT * (parts > 1)) * parameters
        + kept.logit * -(-targets // 64) * 64 * config.vocab_size
        + kept.activation * states
    )
    gradients = (
        (kept.weight + GRADIENT) * parameters
        + kept.returning * states
        + kept.embedding * config.vocab_size * config.n_embd
    )
    return PROGRAM + kept.base + dropped + max(loss, gradients)


def largest_part(dataset: Dataset, config: TrainConfig) -> tuple[int, int]:
    """Return tokens, padding included, and targets of the largest part of the first epoch's steps."""
    examples = dataset.examples
    rows = epoch_rows(dataset, 0, config.row_tokens, config.seed)
    ids = [sum(len(examples[i].ids) for i in row) for row in rows]
    learnt = [sum(sum(examples[i].loss_mask[1:]) for i in row) for row in rows]
    tokens = targets = 0
    for start in range(0, len(rows), config.batch_size):
        stop = min(start + config.batch_size, len(rows))
        width = min(config.row_tokens, -(-max(ids[start:stop]) // 64) * 64)
        size = -(-(stop - start) // config.accumulate)
        tokens = max(tokens, size * width)
        targets = max(targets, *(sum(learnt[at : min(at + size, stop)]) for at in range(start, stop, size)))
    return tokens, targets


def default_epochs(kind: str, steps: int) -> int:
    """Return how many passes of `steps` optimizer steps suit "conversations" or "texts"."""
    return min(MOST_EPOCHS[kind], max(1, -(-ENOUGH_STEPS[kind] // steps)))


def rough_run(config: GPT2Config, kind: str, tokens: int) -> tuple[int, int, float]:
    """Return epochs, steps and about how many seconds a run with the usual options takes on the CPU.

    `kind` is "conversations" or "texts", `tokens` those of one pass.
    """
    row = min(config.n_ctx, CONVERSATION_ROW if kind == "conversations" else TEXT_BLOCK)
    steps = max(1, -(-tokens // (row * TrainConfig.batch_size)))
    epochs = default_epochs(kind, steps)
    dtype = pick_dtype("auto", torch.device("cpu"))
    return epochs, epochs * steps, epochs * tokens / rough_speed(config, dtype)


def rough_speed(config: GPT2Config, dtype: torch.dtype) -> float:
    """Return about how many tokens per second this machine's CPU would train on, from a few matrix products.

    Each token takes six floating-point operations per weight, forward and back (Kaplan et al. 2020), and training
    reaches EFFICIENCY of what products alone do.
    """
    a, b = torch.ones(1024, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    rate = 2 * 1024 * 768 * 3072 / statistics.median(seconds)
    return EFFICIENCY * rate / (6 * parameter_count(config))

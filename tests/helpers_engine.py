"""A small random model, requests to it, and the answers that each of them gets alone."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch

from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.generation import Decoder
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.runtime import NativeRuntime, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig

SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=128, n_ctx=160, vocab_size=500)


def weights(config: GPT2Config = SMALL) -> Checkpoint:
    generator = torch.Generator().manual_seed(3)
    state = GPT2(config).init_weights(1).state_dict()
    noisy = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in state.items()}
    return Checkpoint(config, noisy, TEMPLATES["chat"])


def asked(count: int, seed: int = 0, temperature: float | None = None) -> list[tuple[list[int], GenerationConfig]]:
    """Return prompts of many lengths, of which some begin alike, and how to answer them."""
    rng = random.Random(seed)
    beginning = [rng.randrange(500) for _ in range(60)]
    requests = []
    for number in range(count):
        ids = beginning[: rng.choice((0, 0, 20, 40, 60))] + [rng.randrange(500) for _ in range(rng.randint(1, 50))]
        warmth = number % 2 if temperature is None else temperature
        options = {"temperature": warmth, "top_k": rng.choice((0, 5, 50)), "seed": number}
        penalty = rng.choice((1.0, 1.0, 1.2))
        requests.append(
            (ids, GenerationConfig(**options, max_new_tokens=rng.randint(1, 40), repetition_penalty=penalty))
        )
    return requests


def alone(runtime: Runtime, requests: list[tuple[list[int], GenerationConfig]], stop: tuple[int, ...] = ()) -> Any:
    decoder = Decoder(runtime)
    answers = []
    for ids, config in requests:
        decoder.cache.truncate(0)
        answers.append(list(decoder.generate(ids, config, stop)))
    return answers


def idle(engine: Engine) -> None:
    """Wait until nothing runs."""
    for _ in range(500):
        if not engine.stats().running + engine.stats().waiting:
            return
        time.sleep(0.01)
    raise AssertionError("the engine does not come to rest")


def native_runtime() -> NativeRuntime:
    """The small model in the native decoder; skips where that is missing."""
    runtime = runtime_of(weights(), choose("cpu", "auto", "int8"))
    if not isinstance(runtime, NativeRuntime):
        pytest.skip("no native decoder here")
    return runtime


def torch_runtime() -> TorchRuntime:
    """The small model through torch."""
    return TorchRuntime(weights().build_model().requires_grad_(False))

"""Guesses change the speed of an answer, never the answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat import kernels, packs
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES
from gpt2chat.drafts import MOST, Draft, ModelDraft, Pace, PromptLookup
from gpt2chat.errors import ConfigError
from gpt2chat.generation import Decoder
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.runtime import NativeRuntime, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig, Sampler, probabilities

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_ctx=160, vocab_size=50)
SMALLER = GPT2Config(n_layer=1, n_head=1, n_embd=16, n_ctx=128, vocab_size=50)


def runtime_for(config: GPT2Config, seed: int = 0, spread: float = 0.12) -> Runtime:
    """A random network whose answers repeat themselves now and then."""
    generator = torch.Generator().manual_seed(seed)
    weights = GPT2(config).init_weights(seed).state_dict()
    weights = {n: w + spread * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    loaded = Checkpoint(config, weights, TEMPLATES["chat"])
    try:
        made = packs.build(loaded, "int8")
        return NativeRuntime(kernels.kernel(), config, "int8", made.panels, made.vectors)
    except kernels.KernelUnavailable:
        if shutil.which("c++"):
            raise
        return TorchRuntime(loaded.build_model(torch.float64).requires_grad_(False))


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return runtime_for(CONFIG)


class Anything:
    """A draft that proposes arbitrary ids, right ones now and then."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def propose(self, ids: Sequence[int], most: int, sampler: Sampler, place: int) -> list[int]:
        return [self._random.randrange(3) for _ in range(self._random.randint(0, most))]


def drafts() -> dict[str, Draft]:
    return {
        "lookup": PromptLookup(),
        "itself": ModelDraft(runtime_for(CONFIG), CONFIG.vocab_size),
        "smaller": ModelDraft(runtime_for(SMALLER, 1), CONFIG.vocab_size),
        "anything": Anything(0),
    }


def prompt(rng: random.Random) -> list[int]:
    words = [[rng.randrange(50) for _ in range(rng.randint(1, 4))] for _ in range(3)]
    return [token for _ in range(rng.randint(1, 8)) for token in rng.choice(words)]


def answer(decoder: Decoder, ids: list[int], config: GenerationConfig, stop: set[int]) -> tuple[list[int], str | None]:
    found = list(decoder.generate(ids, config, stop))
    return found, decoder.finish_reason


@pytest.mark.parametrize(("name", "prompts"), [("lookup", 1000), ("itself", 60), ("smaller", 150), ("anything", 300)])
def test_greedy_answers_are_those_without_guesses(runtime: Runtime, name: str, prompts: int) -> None:
    rng, plain, guessing = random.Random(1), Decoder(runtime), Decoder(runtime, drafts()[name])
    taken = 0
    for _ in range(prompts):
        ids, config = prompt(rng), GenerationConfig(temperature=0, max_new_tokens=rng.choice([1, 2, 3, 40, 200]))
        stop = {rng.randrange(50)} if rng.random() < 0.5 else set()
        assert answer(guessing, ids, config, stop) == answer(plain, ids, config, stop)
        taken += guessing.accepted_tokens
    assert taken > prompts / 10  # or nothing was tested


@pytest.mark.parametrize("name", ["lookup", "itself", "anything"])
@pytest.mark.parametrize("temperature", [0, 0.3])
def test_guesses_change_nothing_with_penalties_and_a_bias(runtime: Runtime, name: str, temperature: float) -> None:
    rng, plain, guessing = random.Random(3), Decoder(runtime), Decoder(runtime, drafts()[name])
    taken = changed = 0
    for seed in range(60):
        options = {"temperature": temperature, "seed": seed, "max_new_tokens": 60}
        penalties = {"frequency_penalty": rng.choice([-1, 0.2]), "presence_penalty": rng.choice([0, 0.3])}
        bias = {rng.randrange(50): rng.choice([-100, 3, 100]) for _ in range(rng.choice([0, 2]))}
        config = GenerationConfig(**options, **penalties, logit_bias=bias)  # type: ignore[arg-type]
        ids = prompt(rng)
        found = answer(guessing, ids, config, set())
        assert found == answer(plain, ids, config, set())
        taken += guessing.accepted_tokens
        changed += found != answer(plain, ids, GenerationConfig(**options), set())  # type: ignore[arg-type]
    assert taken > 20
    assert changed > 20


@pytest.mark.parametrize("name", ["lookup", "itself", "smaller", "anything"])
def test_drawn_answers_are_those_without_guesses(runtime: Runtime, name: str) -> None:
    rng, plain, guessing = random.Random(2), Decoder(runtime), Decoder(runtime, drafts()[name])
    taken = 0
    for seed in range(60):
        config = GenerationConfig(
            temperature=rng.choice([0.2, 0.7, 1.0]),
            top_k=rng.choice([0, 3]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            max_new_tokens=50,
            seed=seed,
        )
        ids = prompt(rng)
        assert answer(guessing, ids, config, {49}) == answer(plain, ids, config, {49})
        taken += guessing.accepted_tokens
    assert taken > 10


def test_drawn_tokens_follow_the_models_probabilities(runtime: Runtime) -> None:
    ids, config = [5, 6, 7, 5, 6], GenerationConfig(temperature=1, top_k=0, max_new_tokens=2)
    first = runtime.forward(ids, runtime.new_cache())[0].numpy().copy()
    expected = np.zeros(CONFIG.vocab_size)
    for token, share in enumerate(probabilities(first, config)):
        logits = runtime.forward([*ids, token], runtime.new_cache())[0].numpy()
        expected += share * probabilities(logits, config)  # of the second token, whatever the first
    decoder, counts = Decoder(runtime, PromptLookup()), np.zeros(CONFIG.vocab_size)
    for seed in range(4000):
        drawn = list(decoder.generate(ids, GenerationConfig(temperature=1, top_k=0, max_new_tokens=2, seed=seed), ()))
        counts[drawn[1]] += 1
    likely = expected * 4000 >= 5
    rest = 4000 * (1 - expected[likely].sum())
    chi_square = ((counts[likely] - 4000 * expected[likely]) ** 2 / (4000 * expected[likely])).sum()
    chi_square += (counts[~likely].sum() - rest) ** 2 / max(rest, 1)
    freedom = int(likely.sum())
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_an_answer_that_its_reader_leaves_spoils_nothing(runtime: Runtime) -> None:
    config, rng = GenerationConfig(temperature=0, max_new_tokens=60), random.Random(3)
    decoder, fresh = Decoder(runtime, PromptLookup()), Decoder(runtime)
    ids = [1, 2, 3] * 6
    for taken in range(1, 12):
        stream = decoder.generate(ids, config, ())
        said = [next(stream) for _ in range(taken)]
        stream.close()
        ids = [*ids[:20], *said, rng.randrange(50)]
        assert answer(decoder, ids, config, set()) == answer(fresh, ids, config, set())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, MOST))
def test_looked_up_is_what_followed_the_longest_end_last_time(ids: list[int], most: int) -> None:
    found = PromptLookup().propose(ids, most, Sampler(GenerationConfig()), 0)
    for size in (4, 3, 2):
        places = [end for end in range(size, len(ids)) if ids[end - size : end] == ids[-size:]]
        if places:
            assert found == ids[places[-1] : places[-1] + most]
            return
    assert found == []


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=8))
def test_a_lookup_that_saw_other_texts_finds_the_same(texts: list[list[int]]) -> None:
    kept, sampler = PromptLookup(), Sampler(GenerationConfig())
    grown: list[int] = []
    for text in texts:
        grown = grown + text if len(text) % 2 else text
        assert kept.propose(grown, 5, sampler, 0) == PromptLookup().propose(grown, 5, sampler, 0)


def test_the_pace_follows_hits_and_rests_after_misses() -> None:
    pace = Pace()
    for _ in range(5):
        pace.note(pace.most(), pace.length)
    assert pace.most() == MOST
    for _ in range(Pace.PATIENCE):
        pace.note(pace.most(), 0)
    assert [pace.most() for _ in range(Pace.REST)] == [0] * Pace.REST
    assert 0 < pace.most() < MOST


def test_a_draft_with_another_vocabulary_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="vocabulary of 51, got 50"):
        ModelDraft(runtime, 51)

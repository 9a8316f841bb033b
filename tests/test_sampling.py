"""Tokens are drawn as the reference draws them, reproducibly, from settings that are checked."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2chat.errors import ConfigError, ModelError
from gpt2chat.sampling import GenerationConfig, Sampler, candidates, gumbel, penalise, probabilities

VOCAB = 60
SEEDS = st.integers(0, 2**32 - 1)


def random_scores(seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


@given(
    seed=SEEDS,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.just(1.0) | st.floats(0.01, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 1),
)
def test_probabilities_equal_the_reference(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = random_scores(seed)
    warpers = [TemperatureLogitsWarper(temperature)]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    before = LogitsProcessorList(warpers)(None, scores[None])[0].double().softmax(-1)
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    # at the border itself rounding decides
    assume(((before.sort(descending=True).values.cumsum(-1) - top_p).abs() > 1e-5).all() or top_p == 1)
    assume(((before / before.max() - min_p).abs() > 1e-5).all() or min_p in (0, 1))
    expected = LogitsProcessorList(warpers)(None, scores[None])[0].softmax(-1)
    config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = torch.from_numpy(probabilities(scores.numpy(), config)).float()
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@given(seed=SEEDS, seen=st.lists(st.integers(0, VOCAB - 1), max_size=30), penalty=st.floats(0.01, 100))
def test_the_repetition_penalty_equals_the_reference(seed: int, seen: list[int], penalty: float) -> None:
    scores, ids = random_scores(seed), torch.tensor(seen, dtype=torch.long)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids[None], scores[None].clone())[0]
    given_scores = scores.clone()
    torch.testing.assert_close(torch.from_numpy(penalise(scores.numpy(), seen, penalty)), expected)
    assert torch.equal(scores, given_scores)


@given(
    seed=SEEDS,
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=9),
    answer=st.lists(st.integers(0, 9), max_size=30),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-20, 20), max_size=5),
)
def test_penalties_count_the_answer_alone_and_the_bias_is_added(
    seed: int, prompt: list[int], answer: list[int], frequency: float, presence: float, bias: dict[int, float]
) -> None:
    scores = random_scores(seed).double()
    for id in range(VOCAB):
        scores[id] += bias.get(id, 0) - frequency * answer.count(id) - presence * (id in answer)
    best = scores.topk(2)
    assume(best.values[0] - best.values[1] > 1e-4)
    options = {"frequency_penalty": frequency, "presence_penalty": presence, "logit_bias": bias}
    greedy = Sampler(GenerationConfig(temperature=0, **options))  # type: ignore[arg-type]
    given_scores = random_scores(seed).numpy()
    assert greedy.sample(given_scores, [*prompt, *answer], len(answer)) == best.indices[0]
    assert (given_scores == random_scores(seed).numpy()).all()
    drawing = Sampler(GenerationConfig(temperature=1, top_k=0, seed=3, **options))  # type: ignore[arg-type]
    plain = Sampler(GenerationConfig(temperature=1, top_k=0, seed=3))
    found = drawing.sample(given_scores, [*prompt, *answer], len(answer))
    assert found == plain.sample(scores.float(), [], len(answer))


@given(
    seed=SEEDS,
    temperature=st.just(0.0) | st.floats(0.1, 100),
    top_k=st.integers(0, VOCAB),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    repetition=st.sampled_from([1.0, 100.0]),
    ids=st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=VOCAB - 1),
)
def test_the_strongest_bias_forbids_and_forces_whatever_else_is_set(
    seed: int, temperature: float, top_k: int, top_p: float, repetition: float, ids: set[int]
) -> None:
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition}
    scores, answer = random_scores(seed, 200.0).numpy(), list(range(VOCAB))
    for value in (-100, 100):
        bias = dict.fromkeys(ids, value)
        sampler = Sampler(GenerationConfig(**options, logit_bias=bias, frequency_penalty=2))  # type: ignore[arg-type]
        drawn = {sampler.sample(scores, answer, place) for place in range(5)}
        assert drawn <= ids if value > 0 else not drawn & ids


def test_a_bias_that_leaves_no_id_is_an_error_of_the_user() -> None:
    with pytest.raises(ConfigError, match="logit_bias: expected some of 60 ids to be left"):
        Sampler(GenerationConfig(logit_bias=dict.fromkeys(range(VOCAB), -100))).sample(random_scores(0), [], 0)


def test_a_bias_is_a_value_like_any_other() -> None:
    config = GenerationConfig(logit_bias={7: 1, 3: -2.5})
    assert config.logit_bias == ((3, -2.5), (7, 1.0))
    same = GenerationConfig(logit_bias={"3": -2.5, "7": 1})  # type: ignore[dict-item]
    assert same == config == dataclasses.replace(config) == GenerationConfig(**dataclasses.asdict(config))
    assert len({config, same, GenerationConfig()}) == 2
    config.check_ids(8)
    with pytest.raises(ConfigError, match="logit_bias: expected ids from 0 to 6, got 7"):
        config.check_ids(7)


@pytest.mark.parametrize(
    "bias",
    [{-1: 1}, {2**31 + 1: 1}, {1.5: 1}, {"a": 1}, {"": 1}, {"9" * 5000: 1}, {True: 1}, {1: 101}, {1: "1"}]
    + [{1: math.nan}, {1: None}, 5, "12", [1, 2], None, [(1, 2, 3)]],
)
def test_a_bias_that_is_none_is_refused(bias: object) -> None:
    with pytest.raises(ConfigError, match=r"^logit_bias(\[1\])?: expected .*, got "):
        GenerationConfig(logit_bias=bias)  # type: ignore[arg-type]


VALID = st.builds(
    GenerationConfig,
    temperature=st.floats(0, 100, exclude_min=True),
    top_k=st.integers(0, 2 * VOCAB),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
)


@given(seed=SEEDS, config=VALID, spread=st.floats(0.1, 50))
def test_every_accepted_setting_draws_from_probabilities(seed: int, config: GenerationConfig, spread: float) -> None:
    scores = random_scores(seed, spread)
    shares = probabilities(scores.numpy(), config)
    assert (shares >= 0).all()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-9)
    assert shares[scores.argmax()] == shares.max()
    assert 0 <= Sampler(config).sample(scores, range(5), 0) < VOCAB


@pytest.mark.parametrize("changed", [{"temperature": 1e-40}, {"temperature": 5e-324}, {"top_p": 5e-324}])
def test_the_smallest_settings_draw_the_likeliest_token(changed: dict[str, float]) -> None:
    scores = random_scores(0)
    assert Sampler(GenerationConfig(**changed)).sample(scores, [], 0) == scores.argmax()  # type: ignore[arg-type]


@given(seed=SEEDS, top_k=st.integers(0, VOCAB), penalty=st.floats(0.5, 2))
def test_temperature_zero_takes_the_likeliest(seed: int, top_k: int, penalty: float) -> None:
    scores, seen = random_scores(seed), range(0, VOCAB, 3)
    config = GenerationConfig(temperature=0, top_k=top_k, repetition_penalty=penalty)
    assert Sampler(config).sample(scores, seen, 0) == penalise(scores.numpy(), seen, penalty).argmax()


def draws(config: GenerationConfig, count: int = 50) -> list[int]:
    sampler = Sampler(config)
    return [sampler.sample(random_scores(number), [], number) for number in range(count)]


@given(seed=st.integers(0, 2**63 - 1))
def test_equal_seeds_draw_equal_tokens(seed: int) -> None:
    config = GenerationConfig(seed=seed, temperature=1)
    torch.manual_seed(0)
    first = draws(config, 10)
    torch.manual_seed(1)
    assert draws(config, 10) == first


def test_other_seeds_and_no_seed_draw_other_tokens() -> None:
    assert draws(GenerationConfig(seed=1, temperature=2)) != draws(GenerationConfig(seed=2, temperature=2))
    assert draws(GenerationConfig(temperature=2)) != draws(GenerationConfig(temperature=2))


def test_two_samplers_do_not_meet() -> None:
    config = GenerationConfig(seed=3, temperature=2)
    alone, first, second = draws(config, 20), Sampler(config), Sampler(config)
    together = []
    for number in range(20):
        together.append(first.sample(random_scores(number), [], number))
        second.sample(random_scores(number + 100), [], number)
    assert together == alone


def test_draws_follow_the_probabilities() -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    scores = np.log(shares).astype(np.float32)
    for seed in range(3):
        sampler = Sampler(GenerationConfig(temperature=1, seed=seed))
        counts = np.bincount([sampler.sample(scores, [], place) for place in range(8000)], minlength=4)
        chi_square = ((counts - 8000 * shares) ** 2 / (8000 * shares)).sum()
        assert chi_square < 16.27  # 99.9 % of draws with 3 degrees of freedom


def test_random_numbers_of_neighbouring_seeds_places_and_ids_are_unrelated() -> None:
    ids = np.arange(2000)
    rows = np.stack([gumbel(seed, place, ids) for seed in (0, 1, 2**62) for place in range(3)])
    assert len(np.unique(rows)) == rows.size
    assert rows.mean() == pytest.approx(0.5772, abs=0.03)  # Euler's constant, the mean of Gumbel's distribution
    assert rows.var() == pytest.approx(math.pi**2 / 6, abs=0.08)
    assert np.abs(np.corrcoef(rows) - np.eye(9)).max() < 0.09
    assert abs(np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    scores = random_scores(0)
    scores[7] = bad
    with pytest.raises(ModelError, match="token 7"):
        Sampler(GenerationConfig()).sample(scores, [], 0)


@given(seed=SEEDS, size=st.integers(2, 700), count=st.integers(1, 300), digits=st.sampled_from([0, 1, 6]))
def test_the_largest_scores_are_found_with_all_their_equals(seed: int, size: int, count: int, digits: int) -> None:
    assume(count < size)
    scores = np.random.default_rng(seed).standard_normal(size).round(digits).astype(np.float32)
    ids, _ = candidates(scores, GenerationConfig(temperature=1, top_k=count))
    assert ids.tolist() == np.flatnonzero(scores >= np.sort(scores)[-count]).tolist()


@given(seed=SEEDS, top_p=st.floats(0.5, 1, exclude_max=True), top_k=st.sampled_from([0, 3000]))
def test_top_p_of_a_large_vocabulary_sorts_as_many_as_it_needs(seed: int, top_p: float, top_k: int) -> None:
    scores = torch.randn(4000, generator=torch.Generator().manual_seed(seed)).numpy()
    shares = np.sort(probabilities(scores, GenerationConfig(temperature=1, top_k=top_k, top_p=top_p)))[::-1]
    before = np.sort(probabilities(scores, GenerationConfig(temperature=1, top_k=top_k)))[::-1]
    count = int((shares > 0).sum())
    assert before[:count].sum() >= top_p - 1e-9
    assert before[: count - 1].sum() < top_p + 1e-9


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 101, math.nan, math.inf, True, "0.6", None]),
        ("top_p", [0, -0.1, 1.1, math.nan, True, "1", None]),
        ("min_p", [-0.1, 1.1, math.nan, False, "0", None]),
        ("repetition_penalty", [0, -1, 101, math.nan, True, "1", None]),
        ("frequency_penalty", [-2.1, 2.1, math.nan, True, "1", None]),
        ("presence_penalty", [-2.1, 2.1, math.nan, True, "1", None]),
        ("top_k", [-1, 1.5, 50.0, True, math.nan, "50", None]),
        ("max_new_tokens", [0, -1, 1.5, True, math.nan, "9", None]),
        ("seed", [-1, 1.5, 2**63, True, math.nan, "1"]),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=f"^{name}: expected .*, got "):
            GenerationConfig(**{name: value})  # type: ignore[arg-type]

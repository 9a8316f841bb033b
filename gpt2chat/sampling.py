"""Logits -> next token."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gpt2chat.errors import ConfigError, ModelError

Scores = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bias = tuple[tuple[int, float], ...]
GROUP = 16  # scores of which only the largest is looked at first
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64


def _check(name: str, value: object, low: float, high: float, expected: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def _bias(given: Mapping[int, float] | Bias) -> Bias:
    """Return what is added to which ids, in their order; JSON writes ids as texts."""
    try:
        pairs = given.items() if isinstance(given, Mapping) else [(id, value) for id, value in given]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"logit_bias: expected a number for each id, got {given!r}") from error
    bias = dict[int, float]()
    for id, value in pairs:
        number = int(id) if isinstance(id, str) and id.isascii() and id.isdigit() and len(id) <= 10 else id
        if type(number) is not int or not 0 <= number <= 2**31:
            raise ConfigError(f"logit_bias: expected ids from 0 to 2^31, got {id!r}")
        _check(f"logit_bias[{number}]", value, -100, 100, "a number from -100 to 100")
        bias[number] = float(value)
    return tuple(sorted(bias.items()))


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is drawn. Raises ConfigError for values out of range.

    temperature: 0 takes the likeliest token (greedy); larger values flatten the distribution.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: keep the likeliest tokens whose probabilities reach p (Holtzman et al. 2020); 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
    repetition_penalty: above 1 makes tokens of the prompt and the answer less likely (Keskar et al. 2019).
    frequency_penalty: is taken from the score of a token as often as the answer holds it (OpenAI's formula).
    presence_penalty: is taken once from the score of each token that the answer holds.
    logit_bias: what is added to the scores of ids, a mapping that is kept as pairs; -100 forbids an id, 100 allows no
        other ones.
    max_new_tokens: the longest answer, in tokens.
    seed: equal seeds give equal answers; None draws a new answer each time.
    """

    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Bias = ()
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 100, "a number from 0 to 100")
        _check("top_p", self.top_p, math.ulp(0.0), 1, "a number above 0, at most 1")
        _check("min_p", self.min_p, 0, 1, "a number from 0 to 1")
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100, "a number from 0.01 to 100")
        _check("frequency_penalty", self.frequency_penalty, -2, 2, "a number from -2 to 2")
        _check("presence_penalty", self.presence_penalty, -2, 2, "a number from -2 to 2")
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        for name, low, expected in (("top_k", 0, "0 or more"), ("max_new_tokens", 1, "1 or more")):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}: expected a whole number, {expected}, got {value!r}")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**63):
            raise ConfigError(f"seed: expected a whole number from 0 to 2^63 - 1, got {self.seed!r}")

    def with_room(self, tokens: int) -> GenerationConfig:
        """Return one whose answers may have so many tokens, unless another length than the usual one was asked for."""
        usual = self.max_new_tokens == type(self).max_new_tokens
        return replace(self, max_new_tokens=max(tokens, self.max_new_tokens)) if usual else self

    def check_ids(self, vocab_size: int) -> None:
        """Raise ConfigError when `logit_bias` names an id that a model with so many does not have."""
        for id, _ in _bias(self.logit_bias)[-1:]:
            if id >= vocab_size:
                raise ConfigError(f"logit_bias: expected ids from 0 to {vocab_size - 1}, got {id}")


class Sampler:
    """Draws the tokens of one answer.

    The random number of a token depends on the seed, on its place in the answer and on the token alone, never on what
    was drawn before or elsewhere; so answers do not influence each other, and a token can be drawn ahead of time.
    """

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self._counts = bool(config.frequency_penalty or config.presence_penalty)
        self.looks_back = self._counts or config.repetition_penalty != 1
        bias = _bias(config.logit_bias)
        self._biased = np.array([id for id, _ in bias], np.int64)
        self._added = np.array([-np.inf if value == -100 else value for _, value in bias], np.float32)
        self._forced = self._biased[self._added == 100]
        self._seed = secrets.randbits(63) if config.seed is None else config.seed

    def sample(self, logits: Tensor | Scores, seen: Sequence[int], place: int) -> int:
        """Draw one id from logits (V,), given the ids of prompt and answer so far and its place in the answer.

        `seen` is looked at only if the sampler `looks_back`; its last `place` ids are the answer. Raises ModelError for
        logits that are not numbers.
        """
        config = self.config
        scores = logits.float().cpu().numpy() if isinstance(logits, Tensor) else logits
        if self._counts or len(self._biased):
            scores = self._adjusted(scores, seen[len(seen) - place :])
        if config.repetition_penalty != 1:
            scores = penalise(scores, seen, config.repetition_penalty)
        likeliest = int(scores.argmax())
        if not math.isfinite(scores[likeliest]):
            raise ModelError(f"model: its score of token {likeliest} is {scores[likeliest]}, no number: it is broken")
        if config.temperature == 0 or config.top_k == 1:
            return likeliest
        ids, weights = candidates(scores, config)
        return int(ids[(weights + gumbel(self._seed, place, ids)).argmax()])

    def _adjusted(self, scores: Scores, answer: Sequence[int]) -> Scores:
        """Return scores (V,) with the bias of ids, less the penalties of those that the answer holds."""
        scores = scores.copy()
        scores[self._biased] += self._added
        if self._counts and answer:
            ids, counts = np.unique(np.array(answer, np.int64), return_counts=True)
            scores[ids] -= self.config.frequency_penalty * counts + self.config.presence_penalty
        if len(self._forced):
            kept = scores[self._forced]
            scores.fill(-np.inf)
            scores[self._forced] = kept
        if scores.max() == -np.inf:
            raise ConfigError(f"logit_bias: expected some of {len(scores)} ids to be left, got -100 for all")
        return scores


def gumbel(seed: int, place: int, ids: Ids) -> Weights:
    """Return a number for each id: the largest sum with its log-probability falls on each id as often as that says.

    This is the Gumbel-max way to draw (Maddison et al. 2014) over uniform numbers by SplitMix64 (Steele et al. 2014).
    """
    key = _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(place))
    bits = _mixed(ids.astype(np.uint64) * GOLDEN + key)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return numbers whose bits depend on all bits of the given ones: the end of SplitMix64."""
    numbers = numbers + GOLDEN
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def penalise(scores: Scores, seen: Sequence[int], penalty: float) -> Scores:
    """Divide positive and multiply negative scores (V,) of the ids in `seen` by `penalty`."""
    ids = np.array(seen, np.int64)
    found = scores[ids]
    scores = scores.copy()
    scores[ids] = np.where(found > 0, found / penalty, found * penalty)
    return scores


def candidates(scores: Scores, config: GenerationConfig) -> tuple[Ids, Weights]:
    """Apply temperature, then top_k, top_p and min_p to scores (V,); return the ids that are left and their weights.

    Weights are log-probabilities up to a constant; that of the likeliest id is 0. Ties at the border of top_k are kept,
    as the order among equals has no meaning.
    """
    ids = largest(scores, config.top_k) if 0 < config.top_k < len(scores) else np.arange(len(scores))
    chosen = scores[ids].astype(np.float64)
    weights = (chosen - chosen.max()) / max(config.temperature, 1e-30)  # the likeliest is 0: nothing overflows
    if config.top_p < 1:
        kept = _nucleus(weights, config.top_p)
        ids, weights = ids[kept], weights[kept]
    if config.min_p > 0:
        kept = np.flatnonzero(weights >= math.log(config.min_p))
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def largest(scores: Scores, count: int) -> Ids:
    """Return where the `count` largest scores are, in order of place; ties at the border are all kept."""
    groups = len(scores) // GROUP
    if count >= groups:
        return np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    maxima = scores[: groups * GROUP].reshape(GROUP, groups).max(axis=0)
    ids = np.flatnonzero(scores >= np.partition(maxima, -count)[-count])  # `count` groups reach that: the others do not
    chosen = scores[ids]
    return ids[chosen >= np.partition(chosen, -count)[-count]]


def _nucleus(weights: Weights, top_p: float) -> Ids:
    """Return where the likeliest are whose probabilities reach top_p, at least one; no more than needed are sorted."""
    total, most = np.exp(weights).sum(), 256
    while True:
        largest = np.argpartition(weights, -most)[-most:] if most < len(weights) else np.arange(len(weights))
        order = largest[np.argsort(-weights[largest], kind="stable")]
        shares = np.exp(weights[order]) / total
        reached = np.cumsum(shares)
        if reached[-1] >= top_p or most >= len(weights):
            inside = reached - shares < top_p
            inside[0] = True  # the likeliest token always stays
            return order[inside]
        most *= 8


def probabilities(scores: Scores, config: GenerationConfig) -> Weights:
    """Return the probabilities (V,) that tokens are drawn with, given scores (V,)."""
    ids, weights = candidates(scores, config)
    shares = np.zeros(len(scores))
    shares[ids] = np.exp(weights) / np.exp(weights).sum()
    return shares

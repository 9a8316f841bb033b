"""Logits -> next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2chat.errors import ConfigError


def _check(name: str, value: object, low: float, high: float, expected: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is drawn. Raises ConfigError for values out of range.

    temperature: 0 takes the likeliest token (greedy); larger values flatten the distribution.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: keep the likeliest tokens whose probabilities reach p (Holtzman et al. 2020); 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
    repetition_penalty: above 1 makes tokens of the prompt and the answer less likely (Keskar et al. 2019).
    max_new_tokens: the longest answer, in tokens.
    seed: equal seeds give equal answers; None draws a new answer each time.
    """

    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 100, "a number from 0 to 100")
        _check("top_p", self.top_p, math.ulp(0.0), 1, "a number above 0, at most 1")
        _check("min_p", self.min_p, 0, 1, "a number from 0 to 1")
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100, "a number from 0.01 to 100")
        for name, low, expected in (("top_k", 0, "0 or more"), ("max_new_tokens", 1, "1 or more")):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name}: expected a whole number, {expected}, got {value!r}")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**63):
            raise ConfigError(f"seed: expected a whole number from 0 to 2^63 - 1, got {self.seed!r}")


class Sampler:
    """Draws the tokens of one answer; owns its random numbers, so two answers never influence each other."""

    def __init__(self, config: GenerationConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self._generator = torch.Generator(device=device)
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)

    def sample(self, logits: Tensor, seen: Tensor) -> int:
        """Draw one id from logits (V,), given the ids (S,) of prompt and answer so far."""
        config = self.config
        scores = logits.float()
        if config.repetition_penalty != 1:
            scores = penalise(scores, seen, config.repetition_penalty)
        if config.temperature == 0 or config.top_k == 1:
            return int(scores.argmax())
        probabilities = filtered_probabilities(scores, config)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative scores (V,) of the ids in `seen` by `penalty`."""
    found = scores[seen]
    scores = scores.clone()
    scores[seen] = torch.where(found > 0, found / penalty, found * penalty)
    return scores


def filtered_probabilities(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Apply temperature, then top_k, top_p and min_p to scores (V,); return probabilities (V,) that sum to 1.

    Ties at the border of top_k are kept, as the order among equals has no meaning.
    """
    scores = (scores - scores.max()) / max(config.temperature, 1e-30)  # the likeliest is 0: nothing overflows
    if 0 < config.top_k < scores.size(-1):
        kth = scores.topk(config.top_k).values[-1]
        scores = scores.masked_fill(scores < kth, -math.inf)
    if config.top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1)
        before[0] = -1.0  # the likeliest token always stays
        scores = scores.scatter(0, order, ordered.masked_fill(before >= config.top_p, -math.inf))
    if config.min_p > 0:
        scores = scores.masked_fill(scores < scores.max() + math.log(config.min_p), -math.inf)
    return scores.softmax(-1)

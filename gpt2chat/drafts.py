"""Guesses of what comes next, which the model then checks many at a time: speculative decoding.

A guess is kept exactly when the model, with the same random numbers, would have drawn it; so the answer is the same
with and without guesses, at any temperature, and only its speed differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gpt2chat.errors import ConfigError, ModelError
from gpt2chat.runtime import Runtime, rewind
from gpt2chat.sampling import Sampler

MOST = 15  # guesses that are checked in one pass: with the token before them they fill a tile of 16 rows
GRAMS = (4, 3, 2)  # ends of what was said so far that are looked up, longest first


class Draft(Protocol):
    """Something that guesses."""

    def propose(self, ids: Sequence[int], most: int, sampler: Sampler, place: int) -> list[int]:
        """Guess up to `most` ids behind `ids`, the first of which is drawn at `place` of the answer."""


class PromptLookup:
    """Guesses that what followed the last few tokens earlier will follow them again (Saxena 2023).

    It costs nothing where nothing repeats, and an answer that quotes the question or the documents before it comes out
    several tokens at a time.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # what follows a few ids: the place behind their last occurrence

    def propose(self, ids: Sequence[int], most: int, sampler: Sampler, place: int) -> list[int]:
        """Return what followed the longest end of `ids` that occurred before."""
        self._learn(ids)
        for size in GRAMS:
            found = self._places.get(tuple(ids[-size:])) if len(ids) > size else None
            if found is not None:
                return list(ids[found : found + most])
        return []

    def _learn(self, ids: Sequence[int]) -> None:
        """Note the places of all but the last few ids, which would only find themselves."""
        known = len(self._ids)
        if known > len(ids) or list(ids[:known]) != self._ids:
            self._ids, self._places, known = [], {}, 0
        for end in range(max(known, 1), len(ids)):
            for size in GRAMS:
                if end >= size:
                    self._places[tuple(ids[end - size : end])] = end
        self._ids = list(ids)


class ModelDraft:
    """Guesses what a smaller model with the same vocabulary would say."""

    def __init__(self, runtime: Runtime, vocab_size: int) -> None:
        if runtime.config.vocab_size != vocab_size:
            raise ConfigError(f"draft: expected a vocabulary of {vocab_size}, got {runtime.config.vocab_size}")
        self._runtime, self._cache = runtime, runtime.new_cache()
        self._ids: list[int] = []

    def propose(self, ids: Sequence[int], most: int, sampler: Sampler, place: int) -> list[int]:
        """Draw from the smaller model with the random numbers that the larger one will use."""
        most = min(most, self._runtime.config.n_ctx - len(ids))
        if most < 1:
            return []
        said = list(ids)
        fresh = said[rewind(self._cache, self._ids, ids) :]
        for number in range(most):
            logits = self._runtime.forward(fresh, self._cache)[0]
            try:
                fresh = [sampler.sample(logits, said, place + number)]
            except ModelError:  # of the smaller model: it has no guess
                break
            said += fresh
        self._ids = said
        return said[len(ids) :]


class Pace:
    """How many guesses are worth checking: more after hits, fewer after misses, none for a while after many misses."""

    PATIENCE, REST = 4, 24  # proposals without a hit before a rest, tokens without a proposal

    def __init__(self) -> None:
        self.length, self._misses, self._rest = 4, 0, 0

    def most(self) -> int:
        """Return how many guesses to ask for now."""
        if self._rest:
            self._rest -= 1
            return 0
        return self.length

    def note(self, proposed: int, accepted: int) -> None:
        """Learn from one check."""
        if accepted == proposed:
            self.length = min(MOST, max(self.length, 2 * proposed + 1))
        elif accepted < proposed // 2:
            self.length = max(2, self.length // 2)
        self._misses = 0 if accepted else self._misses + 1
        if self._misses >= self.PATIENCE:
            self._misses, self._rest = 0, self.REST

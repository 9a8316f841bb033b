"""Logits -> how likely the model found given tokens, and which ones it found likeliest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt2chat.errors import ModelError
from gpt2chat.sampling import Scores, largest


class Likelihood(NamedTuple):
    """A token's natural logarithm of the model's own probability, its rank (1 is likeliest), and the likeliest ones.

    `top` holds (id, logprob), best first; equals in the order of their ids.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def likelihoods(rows: Iterable[Scores], ids: Sequence[int], top: int) -> Iterator[Likelihood]:
    """Yield the likelihood of each of `ids` in its row of logits (V,), before any filter.

    What is found in a row does not depend on the others. Raises ModelError for logits that are not numbers.
    """
    for row, id in zip(rows, ids, strict=True):
        most = row.max()
        if not math.isfinite(most):
            raise ModelError(f"model: its highest score is {most}, no number: it is broken")
        level = float(most) + math.log(np.exp(row - most).sum())
        best = largest(row, top) if 0 < top < len(row) else np.arange(min(top, len(row)))
        best = best[np.argsort(-row[best], kind="stable")][:top]
        yield Likelihood(
            float(row[id]) - level,
            1 + int(np.count_nonzero(row > row[id])),
            tuple((int(other), float(row[other]) - level) for other in best),
        )

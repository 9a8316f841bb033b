"""Logits -> how likely the model found given tokens, and which ones it found likelier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Likelihood(NamedTuple):
    """A token's natural logarithm of the model's own probability, its rank (1 is likeliest), and the likeliest ones.

    `top` holds (id, logprob), best first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def likelihoods(rows: Tensor, ids: Sequence[int], top: int) -> Iterator[Likelihood]:
    """Yield the likelihood of each of `ids` in its row of logits (rows, V), before any filter.

    What is found for a row does not depend on the others.
    """
    logprobs = torch.log_softmax(rows.float(), dim=-1)
    found = logprobs.gather(1, torch.tensor(ids, device=rows.device).unsqueeze(1))  # (rows, 1)
    ranks = 1 + (logprobs > found).sum(1)
    best = logprobs.topk(min(top, rows.size(1)), dim=1)
    values, others = best.values.tolist(), best.indices.tolist()
    for logprob, rank, row, names in zip(found[:, 0].tolist(), ranks.tolist(), values, others, strict=True):
        yield Likelihood(logprob, rank, tuple(zip(names, row, strict=True)))

"""What a model said before it was taught a few answers, so that it goes on saying it (Li and Hoiem 2016, "Learning
without Forgetting", arXiv:1606.09282).

Before the first step the model reads small talk and text that it draws itself, which is of all that it knows; its
likeliest next tokens are noted at some places. While it is taught, one of these rows is read at each step, and what it
says there is held to what was noted. Nothing but the notes is needed, so a run that is resumed goes on with them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2chat.errors import CheckpointError
from gpt2chat.model import GPT2, GPT2Config

ROWS, LENGTH = 192, 128  # that are read
PLACES = 64  # of a row that are noted
OWN = 128  # rows that the model draws itself
LIKELIEST = 64  # tokens that are noted at a place; all others count as one
SMALLEST = 1e-6  # probability of those


@dataclass(frozen=True)
class Distillation:
    """Rows of ids (N, T), the places in them (N, P), the tokens noted there (N, P, K) and their log-probabilities."""

    ids: Tensor
    places: Tensor
    tokens: Tensor
    logprobs: Tensor
    weight: float

    @classmethod
    @torch.no_grad()
    def taken(
        cls,
        model: GPT2,
        documents: Sequence[Sequence[int]],
        weight: float,
        own: Sequence[Sequence[int]] = (),
        seed: int = 0,
    ) -> Distillation:
        """Note what `model` says now about documents of ids, and about rows of its `own`, each of `row_length` ids.

        Raises ValueError for too few documents.
        """
        model.eval()
        rng, length = random.Random(seed), row_length(model.config)
        ids = [token for document in rng.sample(documents, len(documents)) for token in document]
        if len(ids) < 2 * length:
            raise ValueError(f"documents: expected at least {2 * length} ids, got {len(ids)}")
        whole = range(0, min(len(ids) - length, (ROWS - len(own)) * length), length)
        rows = [*own, *(ids[at : at + length] for at in whole)]
        places = [sorted(rng.sample(range(length), min(PLACES, length))) for _ in rows]
        read, where = torch.tensor(rows, device=model.device), torch.tensor(places, device=model.device)
        noted = [_said(model, row[None], place).topk(LIKELIEST) for row, place in zip(read, where, strict=True)]
        return cls(
            read.cpu(),
            where.cpu(),
            torch.stack([each.indices for each in noted]).cpu(),
            torch.stack([each.values for each in noted]).cpu(),
            weight,
        )

    @classmethod
    def restored(cls, stored: object) -> Distillation | None:
        """Return what `stored` gave, or None for None; raises CheckpointError."""
        if stored is None:
            return None
        names = [field.name for field in fields(cls)]
        if not isinstance(stored, dict) or sorted(stored) != sorted(names):
            raise CheckpointError(f"distillation: expected {', '.join(names)}, got something else; train afresh")
        ids, places, tokens, logprobs = parts = [stored[name] for name in names[:4]]
        weight, whole = stored["weight"], (ids, places, tokens)
        fitting = (
            all(isinstance(part, Tensor) for part in parts)
            and all(part.dtype == torch.int64 for part in whole)
            and type(weight) in (int, float)
            and len(ids) == len(places) > 0
            and tokens.shape == logprobs.shape
            and tokens.shape[:2] == places.shape
            and all(int(part.min()) >= 0 for part in whole)
            and int(places.max()) < ids.size(1)
            and bool(torch.isfinite(logprobs).all())
        )
        if not fitting:
            raise CheckpointError("distillation: its tensors do not fit each other; train afresh")
        return cls(**stored)

    def stored(self) -> dict[str, Tensor | float]:
        """Return it as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def loss(self, model: GPT2, step: int) -> Tensor:
        """Return the weighted divergence in nats per place of what `model` says in one row from what was noted."""
        row, device = step % len(self.ids), model.device
        before = self.logprobs[row].to(device)
        now = _said(model, self.ids[row : row + 1].to(device), self.places[row].to(device))
        now = now.gather(1, self.tokens[row].to(device))
        rest_before, rest_now = (1 - said.exp().sum(1).clamp(max=1 - SMALLEST) for said in (before, now))
        divergence = (before.exp() * (before - now)).sum(1) + rest_before * (rest_before / rest_now).log()
        return self.weight * divergence.mean()


def row_length(config: GPT2Config) -> int:
    """Return how many ids a row has."""
    return min(LENGTH, config.n_ctx)


def _said(model: GPT2, ids: Tensor, places: Tensor) -> Tensor:
    """Return the log-probabilities of all tokens at places of one row, (P, V)."""
    hidden = model.hidden_states(ids)[0, places]
    return F.log_softmax(model.logits(hidden).float(), -1)

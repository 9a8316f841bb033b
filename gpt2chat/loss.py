"""Hidden states -> loss, only where there is something to learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2chat.model import GPT2

IGNORE = -100  # torch's own ignore index: no target here
ROUND = 64  # positions are filled up to a multiple of this: a few sizes of logits, whose memory is reused


@dataclass(frozen=True)
class Batch:
    """Rows of documents: ids, labels, positions (B, T) and, where a row holds several, the mask (B, 1, T, T).

    `labels[b, t]` is the id that should follow `input_ids[b, t]`, or -100. `tokens` counts the ids
    that are not padding.
    """

    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor | None
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        mask = self.mask if self.mask is None else self.mask.to(device)
        return Batch(self.input_ids.to(device), self.labels.to(device), self.positions.to(device), mask, self.tokens)

    @property
    def targets(self) -> int:
        """How many labels are supervised."""
        return int((self.labels != IGNORE).sum())


def summed_loss(model: GPT2, batch: Batch) -> Tensor:
    """Return the cross entropy in nats, summed over the supervised positions; only they are projected to logits."""
    hidden = model.hidden_states(batch.input_ids, positions=batch.positions, mask=batch.mask)  # (B, T, C)
    labels = batch.labels.flatten()
    chosen = (labels != IGNORE).nonzero().squeeze(1)
    spare = -len(chosen) % ROUND
    logits = model.logits(hidden.flatten(0, 1)[F.pad(chosen, (0, spare))])  # (N, V)
    return F.cross_entropy(logits.float(), F.pad(labels[chosen], (0, spare), value=IGNORE), reduction="sum")

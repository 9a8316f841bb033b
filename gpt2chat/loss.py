"""Hidden states -> loss, only where there is something to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2chat.model import GPT2

IGNORE = -100  # torch's own ignore index: no target here
ROWS = 16  # positions whose scores are worked on together on a CPU
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


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy of `hidden @ weight.T` (N, V) at `labels` (N,), summed; computed in `dtype`, summed in float32.

    The gradient by the logits is written over them a few rows at a time, while they are in the processor's cache. So
    there is one (N, V) in memory where separate steps keep five.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the sum; (N, C), (V, C), (N,) -> ()."""
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            logits = h @ w.T
            rows = ROWS if logits.device.type == "cpu" else len(logits)
            total = logits.new_zeros((), dtype=torch.float32)
            for scores, targets in zip(logits.split(rows), labels.split(rows), strict=True):
                learnt, at = (targets != IGNORE)[:, None], targets.clamp(min=0)[:, None]
                likelihood = torch.log_softmax(scores, -1, dtype=torch.float32)
                total -= (likelihood.gather(1, at) * learnt).sum()
                if any(ctx.needs_input_grad):  # softmax minus one at the target
                    gradient = likelihood.exp_()
                    gradient.scatter_add_(1, at, torch.full_like(at, -1, dtype=torch.float32))
                    scores.copy_(gradient.mul_(learnt))
        ctx.save_for_backward(h, w, logits)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by hidden states and weight."""
        h, w, gradient = ctx.saved_tensors
        by_hidden = (gradient @ w).to(ctx.dtypes[0]).mul_(scale) if ctx.needs_input_grad[0] else None
        by_weight = (gradient.T @ h).to(ctx.dtypes[1]).mul_(scale) if ctx.needs_input_grad[1] else None
        return by_hidden, by_weight, None, None


def summed_loss(model: GPT2, batch: Batch) -> Tensor:
    """Return the cross entropy in nats, summed over the supervised positions; only they are projected to logits."""
    hidden = model.hidden_states(batch.input_ids, positions=batch.positions, mask=batch.mask)  # (B, T, C)
    labels = batch.labels.flatten()
    chosen = (labels != IGNORE).nonzero().squeeze(1)
    spare = -len(chosen) % ROUND
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    targets = F.pad(labels[chosen], (0, spare), value=IGNORE)
    states = hidden.flatten(0, 1)[F.pad(chosen, (0, spare))]  # (N, C)
    return _CrossEntropy.apply(states, model.head, targets, dtype)  # type: ignore[no-any-return, no-untyped-call]

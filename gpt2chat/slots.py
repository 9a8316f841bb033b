"""Many streams in steps of fixed shape, for GPUs: one launch gives the next tokens of all of them.

Keys and values of all streams lie in one slab with a slot for each. A step always computes all slots at their own
positions, so it can be recorded once, and a row's sums never depend on who else is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2chat.model import GPT2, GPT2Config, KVCache
from gpt2chat.runtime import Cache, Part, Runtime, TorchRuntime, as_they_were
from gpt2chat.static import StaticRuntime, recorded

TOGETHER = 16  # the number of slots is a multiple, so that up to 16 streams are always computed in the same shape


class Slab(KVCache):
    """Keys and values of all slots, (slots, H, n_ctx + 1, D); the last place takes what nobody reads."""

    def __init__(self, config: GPT2Config, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dataclasses.replace(config, n_ctx=config.n_ctx + 1), slots, dtype, device)
        for tensor in (*self.keys, *self.values):
            tensor.zero_()  # what is masked is still multiplied, by zero
        self.ids = torch.zeros(slots, 1, dtype=torch.long, device=device)
        self.positions = torch.full((slots,), config.n_ctx, dtype=torch.long, device=device)
        self._slots = torch.arange(slots, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (slots, H, 1, D), each at its slot's position; return all places of all slots."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self._slots, :, self.positions] = k[:, :, 0]
        values[self._slots, :, self.positions] = v[:, :, 0]
        return keys, values


class SlotCache(KVCache):
    """One slot of a slab, as the cache of one stream."""

    def __init__(self, slab: Slab, slot: int, n_ctx: int) -> None:
        self.slot, self.length = slot, 0
        self.keys = [tensor[slot : slot + 1, :, :n_ctx] for tensor in slab.keys]
        self.values = [tensor[slot : slot + 1, :, :n_ctx] for tensor in slab.values]


class SlotRuntime(TorchRuntime):
    """Runs the next tokens of all streams in one step of fixed shape, and prompts one stream after the other."""

    def __init__(self, model: GPT2, streams: int, form: str | None = None) -> None:
        """Make room for so many streams, rounded up to a multiple of 16."""
        super().__init__(model, form)
        self.most_caches = self._slots = -(-streams // TOGETHER) * TOGETHER
        self._slab = Slab(self.config, self._slots, model.dtype, model.device)
        self._places = torch.arange(self.config.n_ctx + 1, device=model.device)
        self._given = 0
        self._replay: Callable[[], Tensor] | None = None

    def new_cache(self) -> SlotCache:
        """Return the next slot, empty. Raises RuntimeError when all are given away; they do not come back."""
        if self._given == self._slots:
            raise RuntimeError(f"all {self._slots} slots are in use")
        self._given += 1
        return SlotCache(self._slab, self._given - 1, self.config.n_ctx)

    def forward(self, ids: Sequence[int], cache: Cache, wanted: int = 1) -> Tensor:
        """Run ids behind the cached ones; return the logits (wanted, V) after the last of them."""
        if len(ids) == 1 and cache.length < self.config.n_ctx:
            return self.forward_batch([Part(ids, cache, 1)])[1 - wanted :]
        return super().forward(ids, cache, wanted)

    @torch.inference_mode()
    def forward_batch(self, parts: Sequence[Part]) -> Tensor:
        """Run single tokens together and longer parts one after the other; return all wanted logits."""
        is_step = [len(part.ids) == 1 and part.cache.length < self.config.n_ctx for part in parts]
        prompts = [part for part, step in zip(parts, is_step, strict=True) if not step]
        steps = [part for part, step in zip(parts, is_step, strict=True) if step]
        with as_they_were(parts):
            read = super().forward_batch(prompts) if prompts else torch.empty(0)
            stepped = self._step_of(steps) if steps else torch.empty(0)
        logits, done = [], 0
        for part, step in zip(parts, is_step, strict=True):
            if step:
                logits.append(stepped[part.cache.slot].unsqueeze(0)[1 - part.wanted :])  # type: ignore[attr-defined]
            else:
                logits.append(read[done : done + part.wanted])
                done += part.wanted
        return torch.cat(logits)

    def _step_of(self, parts: Sequence[Part]) -> Tensor:
        """Compute one token of each part; return the logits (slots, V)."""
        slab, n_ctx = self._slab, self.config.n_ctx
        ids, positions = [0] * self._slots, [n_ctx] * self._slots
        for part in parts:
            assert isinstance(part.cache, SlotCache)
            ids[part.cache.slot], positions[part.cache.slot] = part.ids[0], part.cache.length
        slab.ids.copy_(torch.tensor(ids).unsqueeze(1))
        slab.positions.copy_(torch.tensor(positions))
        if self._replay is None:
            self._replay = recorded(self._step) if self.device.type == "cuda" else self._step
        logits = self._replay()
        for part in parts:
            part.cache.length += 1
        return logits

    def _step(self) -> Tensor:
        slab, n_ctx = self._slab, self.config.n_ctx
        mask = (self._places <= slab.positions.unsqueeze(1)).view(-1, 1, 1, n_ctx + 1)
        slab.length = 0
        hidden = self.model.hidden_states(slab.ids, slab, slab.positions.clamp(max=n_ctx - 1).unsqueeze(1), mask)
        return self.model.logits(hidden[:, 0]).float()


def batched(runtime: Runtime, streams: int) -> Runtime:
    """Return what runs many streams: on a GPU with steps of fixed shape, else the runtime as it is."""
    if isinstance(runtime, StaticRuntime) and runtime.device.type == "cuda":
        return SlotRuntime(runtime.model, streams, runtime.form)
    return runtime

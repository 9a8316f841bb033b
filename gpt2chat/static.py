"""Decoding with fixed shapes, so that a whole token is one launch: CUDA graphs on a GPU, torch.compile anywhere.

A GPU runs GPT-2's few hundred small operators faster than Python can ask for them. With the whole cache in every step
and a mask for what is not there yet, all shapes stay the same, and the step is recorded once and replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2chat.model import GPT2, GPT2Config, KVCache
from gpt2chat.runtime import Cache, TorchRuntime


class StaticCache(KVCache):
    """A cache whose next token goes where a tensor says, so that a recorded step finds the place by itself."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(config, 1, dtype, device)
        for tensor in (*self.keys, *self.values):
            tensor.zero_()  # what is masked is still multiplied, by zero
        self.ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.fixed = False  # whether a step of fixed shape is under way
        self.step: Callable[[], Tensor] | None = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (1, H, T, D) behind the cached tokens; return those so far, in a fixed step all n_ctx places."""
        if not self.fixed:
            return super().append(layer, k, v)
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.position, k)
        values.index_copy_(2, self.position, v)
        return keys, values


class StaticRuntime(TorchRuntime):
    """Runs single tokens with fixed shapes, and prompts as `TorchRuntime` does.

    `compiled` sends the step through torch.compile, which takes half a minute once per process; without it the step is
    recorded as a CUDA graph on a GPU, and run operator by operator elsewhere.
    """

    def __init__(
        self,
        model: GPT2,
        form: str | None = None,
        compiled: bool = False,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(model, form)
        self._places = torch.arange(self.config.n_ctx, device=self.device)
        self._notice, self._compiled = notice, compiled
        self.description += ", compiled" if compiled else ", CUDA graph" if self.device.type == "cuda" else ""

    def new_cache(self) -> StaticCache:
        """Return an empty cache for one stream."""
        return StaticCache(self.config, self.model.dtype, self.device)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: Cache, wanted: int = 1) -> Tensor:
        """Run ids behind the cached ones; return the logits (wanted, V) after the last of them."""
        if len(ids) > 1 or not isinstance(cache, StaticCache) or cache.length + 1 > self.config.n_ctx:
            return super().forward(ids, cache, wanted)
        past = cache.length
        cache.ids.fill_(ids[0])
        cache.position.fill_(past)
        cache.step = cache.step or self._prepared(cache)
        logits = cache.step()
        cache.length = past + 1
        return logits

    def _prepared(self, cache: StaticCache) -> Callable[[], Tensor]:
        """Return what computes the logits (1, V) of the token in `cache.ids` at `cache.position`."""
        if self._compiled:
            began, step = time.perf_counter(), torch.compile(self._step, dynamic=False)
            try:
                step(cache)
            except Exception as error:  # whatever torch's compiler raises: without it the step runs all the same
                self._notice(f"torch.compile failed, going on without it: {str(error).splitlines()[0]}")
                return lambda: self._step(cache)
            self._notice(f"compiling a step took {time.perf_counter() - began:.0f} s")
            return lambda: step(cache)
        if self.device.type != "cuda":
            return lambda: self._step(cache)
        return recorded(lambda: self._step(cache))

    def _step(self, cache: StaticCache) -> Tensor:
        mask = (self._places <= cache.position).view(1, 1, 1, -1)
        past, cache.length, cache.fixed = cache.length, 0, True
        try:
            hidden = self.model.hidden_states(cache.ids, cache, cache.position, mask)
        finally:
            cache.length, cache.fixed = past, False
        return self.model.logits(hidden[0]).float()


def recorded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record a step as a CUDA graph; return what replays it and gives its result, which the next replay overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries allocate and choose in their first runs, which cannot be recorded
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay

"""What runs the network while it decodes: torch on any device, or the native decoder on the CPU.

Both turn ids and a cache into logits, so that the rest of the house does not ask which of them it has.
"""

from __future__ import annotations

import math
import mmap
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpt2chat.errors import ContextError
from gpt2chat.kernels.binding import KINDS, Block, Kernel, Linear, Model
from gpt2chat.model import GPT2, GPT2Config, KVCache
from gpt2chat.quantize import LANES, Panels

ROWS = 256  # tokens of a long prompt that go through the network together
HUGE_PAGE = 1 << 21


class Cache(Protocol):
    """Keys and values of the tokens seen so far."""

    length: int

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""


class Runtime(Protocol):
    """A network that decodes. `form` is how its weights are kept, `description` says so in words."""

    config: GPT2Config
    device: torch.device
    form: str
    description: str

    def new_cache(self) -> Cache:
        """Return an empty cache for one stream."""

    def forward(self, ids: Sequence[int], cache: Cache, wanted: int = 1) -> Tensor:
        """Run ids behind the cached ones; return the logits (wanted, V) after the last of them.

        Raises ContextError past `n_ctx`; the cache is then as it was.
        """


class TorchRuntime:
    """The network through torch's operators."""

    def __init__(self, model: GPT2, form: str | None = None) -> None:
        """Take a network; `form` is what its weights were rounded to before, if they were."""
        self.model, self.config, self.device = model, model.config, model.device
        dtype = str(model.dtype).removeprefix("torch.")
        self.form = form or dtype
        kept = "" if self.form == dtype else f" kept in {dtype}"
        self.description = f"{self.form}{kept}, torch on {model.device.type}"

    def new_cache(self) -> KVCache:
        """Return an empty cache for one stream."""
        return KVCache(self.config, dtype=self.model.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: Cache, wanted: int = 1) -> Tensor:
        """Run ids behind the cached ones; return the logits (wanted, V) after the last of them."""
        batch = torch.tensor([list(ids)], device=self.device)  # (1, T)
        hidden = self.model.hidden_states(batch, cache)  # type: ignore[arg-type]
        return self.model.logits(hidden[0, hidden.size(1) - wanted :]).float()


def rewind(cache: Cache, cached: Sequence[int], ids: Sequence[int]) -> int:
    """Let a cache of the ids `cached` forget what does not begin `ids`; return how many are left, not all of them.

    The last id always has to be computed: its logits are what is wanted.
    """
    same = 0
    for old, new in zip(cached[: cache.length], ids[:-1], strict=False):
        if old != new:
            break
        same += 1
    cache.truncate(same)
    return same


def as_runtime(model: GPT2 | Runtime) -> Runtime:
    """Return what runs a network; one that already is a runtime is returned as it is."""
    return TorchRuntime(model) if isinstance(model, GPT2) else model


class Arena:
    """One piece of memory for all weights, in large pages where the system has them.

    Decoding reads all of it for each token: at 124M large pages give 1.3 times the tokens per second.
    """

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._used = -self._bytes.data_ptr() % HUGE_PAGE

    def take(self, shape: torch.Size | Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return room for a tensor."""
        size = torch.Size(shape).numel() * dtype.itemsize
        begin, self._used = self._used, self._used + -(-size // 64) * 64
        return self._bytes[begin : begin + size].view(dtype).view(shape)


class NativeCache:
    """Keys and values as the native decoder keeps them: in blocks of 16 positions."""

    def __init__(self, config: GPT2Config, dtype: torch.dtype) -> None:
        self.room = -(-config.n_ctx // LANES) * LANES
        self.keys = torch.zeros(config.n_layer * self.room * config.n_embd, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)


class Team:
    """How many threads compute: all of them, or fewer for a while when other programs keep the processors busy.

    Threads wait for each other several times per layer, so that one without a processor holds up all: with both
    processors busy, one thread of two is three times as fast. What is computed does not depend on the number.
    """

    SLOW, LIMIT, REST, LONGEST = 3.0, 6, 32, 1024

    def __init__(self, threads: int) -> None:
        self.all = threads
        self._halved, self._left, self._rest = 0, 0, self.REST
        self._fastest, self._slow, self._tokens = math.inf, 0, 0

    @property
    def count(self) -> int:
        """How many threads to use now."""
        return max(1, self.all >> self._halved)

    def note(self, seconds: float) -> None:
        """Learn from the time that one token took."""
        effort = seconds * self.count / self.all  # what all threads would need if none waited
        self._fastest = min(self._fastest, effort)
        if self._left:
            self._left -= 1
            self._halved -= self._left == 0
            return
        self._tokens += 1
        self._slow = max(0, self._slow + (2 if effort > self.SLOW * self._fastest else -1))
        if self.count == 1:
            return
        if self._tokens == 2:  # a look at what half of them can do: all may have been slow from the start
            self._halved, self._left = self._halved + 1, 1
        elif self._slow >= self.LIMIT:
            self._halved, self._left = self._halved + 1, self._rest
            self._rest = min(self.LONGEST, 2 * self._rest)
            self._slow = self.LIMIT - 2  # one more slow token is enough the next time
        elif self._slow == 0:
            self._rest = self.REST


class NativeRuntime:
    """The network through the native decoder.

    An answer does not depend on how ids are cut into calls, on the number of threads, or on what else is computed.
    """

    def __init__(
        self,
        kernel: Kernel,
        config: GPT2Config,
        form: str,
        panels: Mapping[str, Panels],
        vectors: Mapping[str, Tensor],
        cache_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Take matrices and vectors (float32) by their released names; biases are padded to a multiple of 16."""
        self.config, self.form, self.device = config, form, torch.device("cpu")
        self.description = f"{form}, native ({kernel.instructions})"
        self._kernel, self._panels, self._vectors, self._cache_dtype = kernel, panels, vectors, cache_dtype
        self.team = Team(torch.get_num_threads())
        self._model = self._build()
        self._scratch, self._rows = torch.empty(0, dtype=torch.uint8), 0
        self._lock = threading.Lock()

    @staticmethod
    def supports(config: GPT2Config) -> bool:
        """Whether the native decoder can run networks of this shape."""
        return config.n_embd // config.n_head % LANES == 0

    def new_cache(self) -> NativeCache:
        """Return an empty cache for one stream."""
        return NativeCache(self.config, self._cache_dtype)

    def forward(self, ids: Sequence[int], cache: Cache, wanted: int = 1) -> Tensor:
        """Run ids behind the cached ones; return the logits (wanted, V) after the last of them."""
        assert isinstance(cache, NativeCache)
        n_ctx, past = self.config.n_ctx, cache.length
        if past + len(ids) > n_ctx:
            raise ContextError(f"expected at most {n_ctx} tokens, got {past + len(ids)}")
        if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise IndexError(f"ids: expected 0 to {self.config.vocab_size - 1}, got {min(ids)} to {max(ids)}")
        with self._lock:  # one memory to work in: two threads take turns
            logits = self._run(ids, cache, wanted)
        cache.length = past + len(ids)
        return logits[:, : self.config.vocab_size]

    def _run(self, ids: Sequence[int], cache: NativeCache, wanted: int) -> Tensor:
        """Run ids in parts; return the padded logits (wanted, V rounded up)."""
        self._make_room(min(len(ids), ROWS), cache.room)
        logits = torch.empty(wanted, -(-self.config.vocab_size // LANES) * LANES)
        past, done, began = cache.length, 0, time.perf_counter()
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            first = max(0, len(ids) - wanted - start)  # of this part whose logits are wanted
            asked = range(first, len(part))
            self._kernel.forward(
                self._model,
                part,
                range(past + start, past + start + len(part)),
                (cache.keys.data_ptr(),) * len(part),
                (cache.values.data_ptr(),) * len(part),
                cache.room,
                asked,
                logits[done:].data_ptr(),
                self._scratch.data_ptr(),
                self.team.count,
            )
            done += len(asked)
        if len(ids) == 1:
            self.team.note(time.perf_counter() - began)
        return logits

    def weight_bytes(self) -> int:
        """Return the bytes of weights that each token reads."""
        tied = self.config.tie_word_embeddings
        read = [panels for name, panels in self._panels.items() if tied or name != "wte.weight"]
        return sum(tensor.nbytes for panels in read for tensor in panels.tensors().values())

    def _make_room(self, rows: int, context: int) -> None:
        """Make the memory of a pass larger where it has to be."""
        if rows > self._rows:
            size = self._kernel.scratch(self._model, rows, context, self.team.all)
            self._scratch, self._rows = torch.empty(size, dtype=torch.uint8), rows

    def _build(self) -> Model:
        c = self.config
        blocks = (Block * c.n_layer)()
        for i in range(c.n_layer):
            names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
            outputs = (3 * c.n_embd, c.n_embd, 4 * c.n_embd, c.n_embd)
            norms = [self._vector(f"h.{i}.{norm}") for norm in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")]
            linears = [self._linear(f"h.{i}.{name}", n) for name, n in zip(names, outputs, strict=True)]
            blocks[i] = Block(*norms, *linears)
        embedding = self._linear("wte", c.vocab_size)
        head = embedding if c.tie_word_embeddings else self._linear("lm_head", c.vocab_size)
        last = (self._vector("ln_f.weight"), self._vector("ln_f.bias"), self._vector("wpe.weight"))
        wide = int(self._cache_dtype == torch.float32)
        return Model(blocks, *last, embedding, head, c.n_layer, c.n_embd, c.n_head, wide, c.layer_norm_epsilon)

    def _vector(self, name: str) -> int:
        return self._vectors[name].data_ptr()

    def _linear(self, name: str, outputs: int) -> Linear:
        panels, bias = self._panels[f"{name}.weight"], self._vectors.get(f"{name}.bias")
        parts = (panels.weight, panels.scale, panels.sum, bias)
        pointers = [None if part is None else part.data_ptr() for part in parts]
        kind = form_of(panels)
        inputs = panels.weight.size(1) * panels.weight.size(3) * (2 if kind == "int4" else 1)
        return Linear(*pointers, KINDS[kind], outputs, inputs)


def form_of(panels: Panels) -> str:
    """Return the form that panels are in."""
    dtypes = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8", torch.uint8: "int4"}
    return dtypes[panels.weight.dtype]

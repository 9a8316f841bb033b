"""What runs the network while it decodes: torch on any device, or the native decoder on the CPU.

Both turn ids and a cache into logits, so that the rest of the house does not ask which of them it has.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from ctypes import addressof, c_void_p
from typing import NamedTuple, Protocol

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


class Part(NamedTuple):
    """Ids of one stream that follow those in its cache; logits after the last `wanted` of them are asked for."""

    ids: Sequence[int]
    cache: Cache
    wanted: int


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

    def forward_batch(self, parts: Sequence[Part]) -> Tensor:
        """Run parts of several streams together; return the wanted logits of all, one behind the other.

        A fault leaves all caches as they were.
        """


class TorchRuntime:
    """The network through torch's operators. `most_caches` can be in use at a time, if that is bounded."""

    most_caches: int | None = None

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

    def forward_batch(self, parts: Sequence[Part]) -> Tensor:
        """Run parts of several streams in turn, so that no sum depends on another stream; return all wanted logits."""
        with as_they_were(parts):
            return torch.cat([self.forward(ids, cache, wanted)[:wanted] for ids, cache, wanted in parts])


@contextlib.contextmanager
def as_they_were(parts: Sequence[Part]) -> Iterator[None]:
    """Bring the caches of all parts back to their lengths when a fault ends the block."""
    lengths = [part.cache.length for part in parts]
    try:
        yield
    except BaseException:
        for part, length in zip(parts, lengths, strict=True):
            part.cache.truncate(length)
        raise


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
    """Keys and values of one stream as the native decoder keeps them: in pages of `page` positions.

    A page is a tensor of (keys and values, layers, heads, blocks of 16 positions).
    """

    def __init__(self, page: int, pages: Sequence[Tensor] = (), most: int = 1) -> None:
        """Take the first pages of at most `most`."""
        self.page, self.length = page, 0
        self.pages = list[Tensor]()
        self.table = (c_void_p * most)()
        for tensor in pages:
            self.add(tensor)

    @property
    def room(self) -> int:
        """How many positions the pages have."""
        return len(self.pages) * self.page

    def add(self, page: Tensor) -> None:
        """Put a page behind the others."""
        self.table[len(self.pages)] = page.data_ptr()
        self.pages.append(page)

    def replace(self, number: int, page: Tensor) -> None:
        """Put another page with the same content in the place of one."""
        self.table[number], self.pages[number] = page.data_ptr(), page

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
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._lock = threading.Lock()

    @staticmethod
    def supports(config: GPT2Config) -> bool:
        """Whether the native decoder can run networks of this shape."""
        return config.n_embd // config.n_head % LANES == 0

    def page_shape(self, positions: int) -> tuple[torch.Size, torch.dtype]:
        """Return the shape and type of a page for so many positions, a multiple of 16."""
        c = self.config
        return torch.Size((2, c.n_layer, c.n_head, positions * (c.n_embd // c.n_head))), self._cache_dtype

    def new_cache(self) -> NativeCache:
        """Return an empty cache for one stream: a single page for the whole context."""
        room = -(-self.config.n_ctx // LANES) * LANES
        shape, dtype = self.page_shape(room)
        return NativeCache(room, [torch.zeros(shape, dtype=dtype)])

    def forward(self, ids: Sequence[int], cache: Cache, wanted: int = 1) -> Tensor:
        """Run ids behind the cached ones; return the logits (wanted, V) after the last of them."""
        return self.forward_batch((Part(ids, cache, wanted),))

    def forward_batch(self, parts: Sequence[Part]) -> Tensor:
        """Run parts of several streams through the network together; return the wanted logits of all."""
        for ids, cache, _ in parts:
            self._check(ids, cache)
        with self._lock:  # one memory to work in: two threads take turns
            logits = self._run(parts)
        for ids, cache, _ in parts:
            cache.length += len(ids)
        return logits[:, : self.config.vocab_size]

    def _check(self, ids: Sequence[int], cache: Cache) -> None:
        assert isinstance(cache, NativeCache)
        n_ctx, length = self.config.n_ctx, cache.length + len(ids)
        if length > n_ctx:
            raise ContextError(f"expected at most {n_ctx} tokens, got {length}")
        if length > cache.room:
            raise ContextError(f"expected at most {cache.room} tokens, for which there are pages, got {length}")
        if not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise IndexError(f"ids: expected 0 to {self.config.vocab_size - 1}, got {min(ids)} to {max(ids)}")

    def _run(self, parts: Sequence[Part]) -> Tensor:
        """Run parts, some rows at a time; return the padded logits (wanted of all, V rounded up)."""
        ids, positions, tables = list[int](), list[int](), list[int]()
        wanted = list[int]()
        for part in parts:
            assert isinstance(part.cache, NativeCache)
            ids += part.ids
            positions += range(part.cache.length, part.cache.length + len(part.ids))
            tables += [addressof(part.cache.table)] * len(part.ids)
            wanted += range(len(ids) - part.wanted, len(ids))
        page = parts[0].cache.page  # type: ignore[attr-defined]
        longest = max(positions) + 1
        self._make_room(min(len(ids), ROWS), longest)
        logits = torch.empty(len(wanted), -(-self.config.vocab_size // LANES) * LANES)
        done, began = 0, time.perf_counter()
        for start in range(0, len(ids), ROWS):
            rows = slice(start, start + ROWS)
            asked = [row - start for row in wanted if start <= row < start + ROWS]
            where = (positions[rows], tables[rows], page, longest)
            out = (logits[done:].data_ptr(), self._scratch.data_ptr())
            self._kernel.forward(self._model, ids[rows], *where, asked, *out, self.team.count)
            done += len(asked)
        if len(ids) == 1:
            self.team.note(time.perf_counter() - began)
        return logits

    def weight_bytes(self) -> int:
        """Return the bytes of weights that each token reads."""
        tied = self.config.tie_word_embeddings
        read = [panels for name, panels in self._panels.items() if tied or name != "wte.weight"]
        return sum(tensor.nbytes for panels in read for tensor in panels.tensors().values())

    def _make_room(self, rows: int, longest: int) -> None:
        """Make the memory of a pass larger where it has to be."""
        size = self._kernel.scratch(self._model, rows, longest, self.team.all)
        if size > self._scratch.numel():
            longest = -(-longest // ROWS) * ROWS  # the next tokens will need a little more
            self._scratch = torch.empty(
                self._kernel.scratch(self._model, rows, longest, self.team.all), dtype=torch.uint8
            )

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

"""Where the keys and values of many streams lie: pages from one budget, shared by streams that begin alike.

A page holds 16 positions of all layers. What lies in it depends on the tokens up to its end alone, so a stream whose
first tokens are those of an earlier one reads the same pages instead of computing them again. Pages that nobody reads
stay for the next one that begins alike, and go, least recently used first, when room is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from gpt2chat.errors import ConfigError
from gpt2chat.quantize import LANES
from gpt2chat.runtime import Arena, Cache, NativeCache, NativeRuntime, Runtime, TorchRuntime

PAGE = LANES  # positions
CHUNK = 1 << 24  # bytes that are asked of the system at a time


@dataclass
class Held:
    """What one stream holds: its cache, how many tokens it found there, and how many pages it may still take."""

    cache: Cache
    cached: int = 0
    reserved: int = 0
    realm: str = ""
    nodes: list[Node] = field(default_factory=list)  # of the full pages that others may share


class Memory(Protocol):
    """Gives caches to streams as long as there is room. Called by one thread."""

    def fits(self, length: int) -> bool:
        """Whether a stream of `length` tokens fits if it has the memory for itself."""

    def hold(self, ids: Sequence[int], length: int, realm: str = "") -> Held | None:
        """Return a cache with room for `length` tokens that begins like ids, or None while there is no room.

        At least the last of the ids is left to compute. What is found there was written in the same realm.
        """

    def extend(self, held: Held, length: int) -> None:
        """Make room for tokens up to `length`, which was announced."""

    def note(self, held: Held, ids: Sequence[int]) -> None:
        """Learn that the first tokens in a cache are those of ids, so that others can share them."""

    def release(self, held: Held) -> None:
        """Take back what a stream held."""

    def begin_anew(self) -> None:
        """Take everything back; nobody holds anything, and nothing is known."""

    def used_bytes(self) -> int:
        """Return how much streams hold."""

    def kept_bytes(self) -> int:
        """Return how much is kept for streams to come."""

    def budget_bytes(self) -> int:
        """Return how much there may be."""


Key = tuple[int | str, ...]  # the ids of a page; before those of a first page its realm


def _key(ids: Sequence[int], number: int, realm: str) -> Key:
    """Return what page `number` of a text is known by."""
    page = ids[number * PAGE : (number + 1) * PAGE]
    return tuple(page) if number else (realm, *page)


class Node:
    """A full page: what follows its parent's tokens. `users` streams read it."""

    __slots__ = ("children", "key", "page", "parent", "users")

    def __init__(self, parent: Node | None, key: Key, page: Tensor) -> None:
        self.parent, self.key, self.page = parent, key, page
        self.children: dict[Key, Node] = {}
        self.users = 0


class PagedMemory:
    """Pages for the native decoder. A page is cleared before another stream gets it."""

    def __init__(self, runtime: NativeRuntime, budget: int, share: bool = True) -> None:
        """Take a budget in bytes; without `share` no stream reads another's pages."""
        self._shape, self._dtype = runtime.page_shape(PAGE)
        self.page_bytes = self._shape.numel() * self._dtype.itemsize
        self._most_pages = -(-runtime.config.n_ctx // PAGE)
        self.count, self._share = budget // self.page_bytes, share
        if not self.count:
            raise ConfigError(f"memory: expected {self.page_bytes} bytes or more, the size of a page, got {budget}")
        self.begin_anew()

    def begin_anew(self) -> None:
        """Take everything back; nobody holds anything, and nothing is known."""
        self._fresh: list[Tensor] = []  # never written: zeros
        self._free: list[Tensor] = []  # of streams that are gone
        self._made = 0
        self._roots: dict[Key, Node] = {}  # of all realms
        self._idle: OrderedDict[Node, None] = OrderedDict()  # pages of the tree that nobody reads, oldest first
        self._reserved = 0

    def fits(self, length: int) -> bool:
        """Whether a stream of `length` tokens fits if it has the memory for itself."""
        return -(-length // PAGE) <= self.count

    def hold(self, ids: Sequence[int], length: int, realm: str = "") -> Held | None:
        """Return a cache with room for `length` tokens that begins like ids, or None while there is no room."""
        nodes = self._found(ids, realm) if self._share else []
        reserved = -(-length // PAGE) - len(nodes)
        idle = sum(node.users == 0 for node in nodes)
        if reserved > self._available() - idle:
            return None
        for node in nodes:
            self._idle.pop(node, None)
            node.users += 1
        cache = NativeCache(PAGE, [node.page for node in nodes], self._most_pages)
        cache.length = len(nodes) * PAGE
        self._reserved += reserved
        return Held(cache, cache.length, reserved, realm, nodes)

    def _available(self) -> int:
        return self.count - self._made + len(self._fresh) + len(self._free) + len(self._idle) - self._reserved

    def _found(self, ids: Sequence[int], realm: str = "") -> list[Node]:
        """Return the pages of the longest known beginning of ids; at least one id is left to compute."""
        nodes, children = list[Node](), self._roots
        for number in range((len(ids) - 1) // PAGE):
            node = children.get(_key(ids, number, realm))
            if node is None:
                break
            nodes.append(node)
            children = node.children
        return nodes

    def extend(self, held: Held, length: int) -> None:
        """Make room for tokens up to `length`, which was announced."""
        cache = held.cache
        assert isinstance(cache, NativeCache)
        while cache.room < length:
            cache.add(self._take())
            held.reserved -= 1
            self._reserved -= 1

    def _take(self) -> Tensor:
        """Return an empty page."""
        if self._free:
            return self._free.pop().zero_()
        if not self._fresh and self._made < self.count:
            self._fresh = self._make()
        if self._fresh:
            return self._fresh.pop()
        self._forget(next(iter(self._idle)))  # has no children: they are given back before it
        return self._free.pop().zero_()

    def _make(self) -> list[Tensor]:
        count = min(max(1, CHUNK // self.page_bytes), self.count - self._made)
        arena = Arena(count * self.page_bytes)
        pages = [arena.take(self._shape, self._dtype) for _ in range(count)]
        self._made += count
        return pages

    def _forget(self, node: Node) -> None:
        """Take a page that nobody reads out of the tree."""
        siblings = node.parent.children if node.parent else self._roots
        del siblings[node.key]
        del self._idle[node]
        self._free.append(node.page)

    def note(self, held: Held, ids: Sequence[int]) -> None:
        """Learn that the first tokens in a cache are those of ids, so that others can share them."""
        cache, nodes = held.cache, held.nodes
        assert isinstance(cache, NativeCache)
        while self._share and (len(nodes) + 1) * PAGE <= cache.length:
            number = len(nodes)
            parent, key = nodes[-1] if nodes else None, _key(ids, number, held.realm)
            siblings = parent.children if parent else self._roots
            node = siblings.get(key)
            if node is None:
                node = siblings[key] = Node(parent, key, cache.pages[number])
            else:  # another stream computed the same, to the bit
                self._free.append(cache.pages[number])
                cache.replace(number, node.page)
                self._idle.pop(node, None)
            node.users += 1
            nodes.append(node)

    def release(self, held: Held) -> None:
        """Take back what a stream held; full pages stay for others that begin alike."""
        cache = held.cache
        assert isinstance(cache, NativeCache)
        self._free += cache.pages[len(held.nodes) :]
        for node in reversed(held.nodes):  # the end of a text goes before its beginning
            node.users -= 1
            if not node.users:
                self._idle[node] = None
        self._reserved -= held.reserved
        cache.pages, held.nodes, held.reserved = [], [], 0

    def used_bytes(self) -> int:
        """Return how much streams hold."""
        return (self._made - len(self._fresh) - len(self._free) - len(self._idle)) * self.page_bytes

    def kept_bytes(self) -> int:
        """Return how much is kept for streams to come."""
        return len(self._idle) * self.page_bytes

    def budget_bytes(self) -> int:
        """Return how much there may be."""
        return self.count * self.page_bytes


class WholeMemory:
    """A whole cache for each stream, for runtimes through torch. Nothing is shared."""

    def __init__(self, runtime: TorchRuntime, budget: int) -> None:
        """Take a budget in bytes; there is room for one stream at least."""
        self._runtime, config = runtime, runtime.config
        self.cache_bytes = 2 * config.n_layer * config.n_ctx * config.n_embd * runtime.model.dtype.itemsize
        most = runtime.most_caches
        self.count = max(1, min(budget // self.cache_bytes, most or budget))
        self._made: list[Cache] = []
        self.begin_anew()

    def begin_anew(self) -> None:
        """Take everything back."""
        self._used, self._free = 0, list(self._made)

    def fits(self, length: int) -> bool:
        """Whether a stream of `length` tokens fits if it has the memory for itself."""
        return True

    def hold(self, ids: Sequence[int], length: int, realm: str = "") -> Held | None:
        """Return an empty cache, or None while all are in use."""
        if self._used == self.count:
            return None
        if not self._free:
            self._made.append(self._runtime.new_cache())
            self._free.append(self._made[-1])
        cache = self._free.pop()
        cache.truncate(0)
        self._used += 1
        return Held(cache)

    def extend(self, held: Held, length: int) -> None:
        """Do nothing: a cache has room for the whole context."""

    def note(self, held: Held, ids: Sequence[int]) -> None:
        """Do nothing: sums through torch depend on how many rows are computed together, so nothing is shared."""

    def release(self, held: Held) -> None:
        """Take a cache back."""
        self._used -= 1
        self._free.append(held.cache)

    def used_bytes(self) -> int:
        """Return how much streams hold."""
        return self._used * self.cache_bytes

    def kept_bytes(self) -> int:
        """Return how much is kept for streams to come."""
        return len(self._free) * self.cache_bytes

    def budget_bytes(self) -> int:
        """Return how much there may be."""
        return self.count * self.cache_bytes


def memory_for(runtime: Runtime, budget: int, share: bool) -> Memory:
    """Return what gives caches to the streams of a runtime."""
    if isinstance(runtime, NativeRuntime):
        return PagedMemory(runtime, budget, share)
    if not isinstance(runtime, TorchRuntime):
        raise TypeError(f"unknown runtime {type(runtime).__name__}")
    return WholeMemory(runtime, budget)

"""Named weights, read and made a piece at a time, so that two copies of a model never meet in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2chat.hardware import forget_pages

PIECE = 1 << 16  # numbers that are read, converted or checked at a time
MEANT = 4096  # rows that are added up at a time
NOISE = 1e-4  # of rows that are added to a matrix


@dataclass(frozen=True)
class Computed:
    """A matrix that is computed from others when it is needed: `rows(begin, end)` returns some of its rows.

    `sources` are the tensors that it reads, whose pages can be forgotten after it was made.
    """

    shape: torch.Size
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    sources: tuple[Tensor, ...]


Entry = Tensor | Computed


class LazyWeights(Mapping[str, Tensor]):
    """Weights by name, where those that are `Computed` become tensors each time they are asked for."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        return entry if isinstance(entry, Tensor) else make(entry, entry.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def entries_of(weights: Mapping[str, Tensor]) -> Mapping[str, Entry]:
    """Return the weights without computing any."""
    return weights.entries if isinstance(weights, LazyWeights) else weights


def as_weights(entries: Mapping[str, Entry]) -> Mapping[str, Tensor]:
    """Return entries as tensors by name: a plain dict, unless some are computed."""
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, Tensor)}
    return tensors if len(tensors) == len(entries) else LazyWeights(entries)


def make(entry: Entry, dtype: torch.dtype, device: torch.device | str = "cpu", mapped: bool = False) -> Tensor:
    """Return a weight dense and aligned, in `dtype` and on `device`; one that is so already is not copied.

    With `mapped` the pages of the files it is read from are forgotten as it goes.
    """
    device = torch.device(device)
    if isinstance(entry, Tensor) and (entry.dtype, entry.device) == (dtype, device) and _is_dense(entry):
        return entry
    made = torch.empty(entry.shape, dtype=dtype, device=device)
    for target, source in zip(_cut(made, like=entry), pieces(entry, mapped), strict=True):
        target.copy_(source)
    return made


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0


def pieces(entry: Entry, mapped: bool = False) -> Iterator[Tensor]:
    """Yield a weight in pieces; with `mapped` the pages of a piece are forgotten when the next is due."""
    if isinstance(entry, Tensor):
        for piece in _cut(entry):
            yield piece
            if mapped:
                forget_pages(piece)
        return
    step = _rows_at_a_time(entry.shape)
    for begin in range(0, entry.shape[0], step):
        yield entry.rows(begin, min(begin + step, entry.shape[0]))
    if mapped:
        for source in entry.sources:
            forget_pages(source)


def _rows_at_a_time(shape: torch.Size, dim: int = 0) -> int:
    return max(1, PIECE * shape[dim] // max(1, math.prod(shape)))


def _cut(tensor: Tensor, like: Entry | None = None) -> Sequence[Tensor]:
    """Cut a tensor into views of a few rows each, or of columns where those (of `like`) lie together."""
    like = tensor if like is None else like
    dim = int(isinstance(like, Tensor) and like.dim() == 2 and not like.is_contiguous())
    return tensor.split(_rows_at_a_time(tensor.shape, dim), dim)


def equal(a: Tensor, b: Tensor, mapped: bool = False) -> bool:
    """Whether two matrices hold the same numbers in the same type, compared piece by piece."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    for one, other in zip(_cut(a), _cut(b, like=a), strict=True):
        if not torch.equal(one, other):
            return False
        if mapped:
            forget_pages(one)
            forget_pages(other)
    return True


def with_rows(entry: Entry, rows: int) -> Computed:
    """Return a matrix (N, C) with more rows, `rows` in all: the mean of its own, and a little noise that differs."""
    own, columns = entry.shape
    total = torch.zeros(columns, dtype=torch.float64)
    for begin in range(0, own, MEANT):
        total += _rows(entry, begin, min(begin + MEANT, own)).double().sum(0)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((rows - own, columns)))
    fresh = (total / own + NOISE * noise).to(entry.dtype)

    def read(begin: int, end: int) -> Tensor:
        old = _rows(entry, min(begin, own), min(end, own))
        return torch.cat([old, fresh[max(begin - own, 0) : max(end - own, 0)]])

    sources = (entry,) if isinstance(entry, Tensor) else entry.sources
    return Computed(torch.Size((rows, columns)), entry.dtype, read, sources)


def _rows(entry: Entry, begin: int, end: int) -> Tensor:
    return entry[begin:end] if isinstance(entry, Tensor) else entry.rows(begin, end)


def is_finite(entry: Entry, mapped: bool = False) -> bool:
    """Whether a weight holds neither NaN nor infinity."""
    return all(bool(torch.isfinite(piece).all()) for piece in pieces(entry, mapped))

"""TensorFlow's checkpoint files, read without TensorFlow.

`NAME.index` is a table of sorted keys in blocks, each block followed by its type and checksum; the values are protocol
buffer messages that say where in `NAME.data-00000-of-00001` a tensor lies. Layouts: leveldb/doc/table_format.md,
tensorflow/core/protobuf/tensor_bundle.proto and tensor_shape.proto.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2chat.hardware import forget_pages
from gpt2chat.pretrained.crc32c import crc32c, unmask

MAGIC = 0xDB4775248B80FB57
FOOTER, TRAILER = 48, 5  # bytes at the end of the table; bytes behind each block: type, checksum
# types.proto: DT_FLOAT, DT_DOUBLE, DT_BFLOAT16, DT_HALF; and some of the others, by name
DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
OTHER_TYPES = {3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64", 9: "int64", 10: "bool"}
WEIGHTS = "model/"  # what GPT-2's variables are called; a checkpoint also holds counters


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies; `dtype` is the number of TensorFlow's types.proto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class BundleError(ValueError):
    """The files do not follow the format."""


def find_index(folder: Path) -> Path | None:
    """Return the index of the TensorFlow checkpoint in a folder, the newest one where there are several."""
    found = [path for path in folder.glob("*.index") if path.is_file() and is_index(path)]
    return max(found, key=lambda path: (path.stat().st_mtime, path.name), default=None)


def is_index(path: Path) -> bool:
    """Whether a file is the index of a TensorFlow checkpoint: it ends as one, or is named so and has data beside it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8))
        if file.read() == MAGIC.to_bytes(8, "little"):
            return True
    return path.suffix == ".index" and any(path.parent.glob(f"{glob.escape(path.stem)}.data-*"))


def read_index(path: Path) -> tuple[int, dict[str, Entry]]:
    """Return the number of data files, and name -> entry."""
    table = path.read_bytes()
    if len(table) < FOOTER or int.from_bytes(table[-8:], "little") != MAGIC:
        raise BundleError("expected the index of a TensorFlow checkpoint, found another or a cut file")
    footer = _Reader(table[-FOOTER:])
    footer.varint(), footer.varint()  # the meta index, which nothing here needs
    entries: dict[str, Entry] = {}
    shards = 0
    for _, handle in _block(table, footer.varint(), footer.varint()):
        place = _Reader(handle)
        for key, value in _block(table, place.varint(), place.varint()):
            if key == b"":
                shards = _header(value)
            elif (name := key.decode("utf-8", "replace")) in entries:
                raise BundleError(f"its index lists {name} twice")
            else:
                entries[name] = _entry(value)
    if not shards or not entries:
        raise BundleError("its index lists no tensors")
    return shards, entries


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block; keys leave out what they share with the one before."""
    end = offset + size + TRAILER
    if size < 4 or end > len(table) - FOOTER:
        raise BundleError("its index points outside of itself")
    if unmask(int.from_bytes(table[end - 4 : end], "little")) != crc32c(table[offset : end - 4]):
        raise BundleError("its index is damaged: a block does not have the checksum it was written with")
    if table[offset + size] != 0:
        raise BundleError("its index is compressed, which TensorFlow's writer never does")
    restarts = int.from_bytes(table[offset + size - 4 : offset + size], "little")
    if 4 * restarts > size - 4:
        raise BundleError("its index is damaged: a block is shorter than its own list of places")
    reader = _Reader(table[offset : offset + size - 4 - 4 * restarts])
    key = b""
    while reader.left:
        shared, fresh, length = reader.varint(), reader.varint(), reader.varint()
        key = key[:shared] + reader.take(fresh)
        yield key, reader.take(length)


class _Reader:
    """Reads varints, bytes and protocol buffer fields."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise BundleError("its index is damaged: a field is longer than what holds it")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise BundleError("its index is damaged: a number without an end")

    def fields(self) -> Iterator[tuple[int, int | bytes]]:
        """Yield (field number, value): numbers for varint and fixed, bytes for the rest."""
        while self.left:
            tag = self.varint()
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                yield number, self.varint()
            elif kind in (1, 5):
                yield number, int.from_bytes(self.take(8 if kind == 1 else 4), "little")
            elif kind == 2:
                yield number, self.take(self.varint())
            else:
                raise BundleError("its index is damaged: an unknown kind of field")


def _header(message: bytes) -> int:
    """Return the number of data files of a BundleHeaderProto."""
    fields = dict(_Reader(message).fields())
    if fields.get(2, 0) != 0:
        raise BundleError("expected little-endian numbers, found big-endian ones")
    return _number(fields.get(1, 0))


def _entry(message: bytes) -> Entry:
    fields = dict(_Reader(message).fields())
    if 7 in fields:
        raise BundleError("holds a tensor in slices, which GPT-2's checkpoints never do")
    shape = fields.get(2, b"")
    if not isinstance(shape, bytes):
        raise BundleError("its index is damaged: expected a shape")
    sizes = [
        dict(_Reader(dim).fields()).get(1, 0) for n, dim in _Reader(shape).fields() if n == 2 and isinstance(dim, bytes)
    ]
    numbers = [_number(fields.get(n, 0)) for n in (1, 3, 4, 5, 6)]
    return Entry(numbers[0], tuple(map(_number, sizes)), *numbers[1:])


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise BundleError("its index is damaged: expected a number")
    return value


def read_tensors(index: Path) -> dict[str, Tensor]:
    """Map the floating-point tensors of a checkpoint into memory: name -> dense tensor; each checksum is checked.

    Raises BundleError; what is of another type and no weight (step counters) is left out.
    """
    shards, entries = read_index(index)
    for name, entry in entries.items():
        if entry.shard >= shards:
            raise BundleError(f"tensor {name}: expected a data file from 0 to {shards - 1}, found {entry.shard}")
        if name.startswith(WEIGHTS) and entry.dtype not in DTYPES:
            found = OTHER_TYPES.get(entry.dtype, f"type {entry.dtype}")
            raise BundleError(f"tensor {name}: expected floating-point numbers, found {found}")
    prefix = str(index).removesuffix(".index")
    data = {n: _map(Path(f"{prefix}.data-{n:05}-of-{shards:05}")) for n in sorted({e.shard for e in entries.values()})}
    return {name: _tensor(name, entry, data[entry.shard]) for name, entry in entries.items() if entry.dtype in DTYPES}


def _map(path: Path) -> Tensor:
    if not path.is_file() or not path.stat().st_size:
        found = "a folder" if path.is_dir() else "an empty file" if path.exists() else "none"
        raise BundleError(f"expected {path.name} beside the index, found {found}")
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def _tensor(name: str, entry: Entry, data: Tensor) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if 0 in entry.shape or entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise BundleError(f"tensor {name}: {entry.size} bytes do not make the shape {entry.shape}")
    if entry.offset + entry.size > data.numel():
        raise BundleError(
            f"the data file is cut short: {data.numel()} bytes, and {name} ends at {entry.offset + entry.size}"
        )
    part = data[entry.offset : entry.offset + entry.size]
    if crc32c(part.numpy()) != unmask(entry.checksum):
        raise BundleError(f"tensor {name}: damaged, it does not have the checksum it was written with")
    forget_pages(part)
    if entry.offset % dtype.itemsize:
        part = part.clone()
    return part.view(dtype).view(entry.shape)

"""Files that torch wrote before 2020, mapped: a pickle, then the numbers of each tensor, one after the other.

`torch.load` can map only the zips it has written since. Here it reads the pickle, as plain data alone, from a file that
notes where the numbers lie instead of reading them; the tensors are then made as views of the mapped file.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gpt2chat import archive
from gpt2chat.errors import CheckpointError

SMALL = 4096  # bytes that are read rather than mapped


def read(path: Path) -> object:
    """Return the content of such a file, whose larger tensors are mapped; raises CheckpointError without the place."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # which the tensors keep open
        skimmed = _Skimmed(file, len(mapping))
        content = archive.unpickle(skimmed, mapped=False)  # type: ignore[arg-type]
    if isinstance(content, dict):
        return {name: _placed(name, value, mapping, skimmed.places) for name, value in content.items()}
    return content


def _placed(name: object, value: Any, mapping: mmap.mmap, places: dict[int, int]) -> Any:
    """Return a tensor, or a dict of them, as views of the file; what else there is cannot be weights."""
    if isinstance(value, dict):
        return {name: _view(name, tensor, mapping, places) for name, tensor in value.items()}
    return _view(name, value, mapping, places)


def _view(name: object, tensor: Any, mapping: mmap.mmap, places: dict[int, int]) -> Any:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        return tensor
    storage = tensor.untyped_storage()
    place = places.get(storage.data_ptr())
    if place is None and tensor.device.type == "cpu":
        raise CheckpointError(f"lists no place for the numbers of {name}")
    if place is None or storage.nbytes() <= SMALL:
        return tensor
    numbers = torch.frombuffer(
        mapping, dtype=tensor.dtype, count=storage.nbytes() // tensor.element_size(), offset=place
    )
    return numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class _Skimmed:
    """A file for `torch.load` that notes what is read: address -> place. Large reads leave the memory as it is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.places: dict[int, int] = {}
        self.read, self.readline, self.tell, self.seek = file.read, file.readline, file.tell, file.seek

    def readinto(self, memory: memoryview) -> int:
        place = self._file.tell()
        self.places[ctypes.addressof(ctypes.c_char.from_buffer(memory))] = place
        if memory.nbytes <= SMALL:
            return self._file.readinto(memory)  # type: ignore[attr-defined]
        count = min(memory.nbytes, self._size - place)
        self._file.seek(count, 1)
        return count

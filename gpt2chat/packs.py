"""Weights as the native decoder reads them: made from a checkpoint once, kept beside it, read in one go.

A pack is a safetensors file: panels and vectors by name, and in its metadata the checkpoint without its weights, what
it was made from and a checksum of all numbers. It can always be made again: one that does not fit is replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2chat.checkpoint import Checkpoint, taught_pairs
from gpt2chat.conversation import Message
from gpt2chat.errors import GPT2ChatError
from gpt2chat.files import atomic_writer, cache_folder
from gpt2chat.hardware import forget_pages
from gpt2chat.model import GPT2Config, weight_shapes
from gpt2chat.quantize import LANES, Panels, form_for, is_packed, pack, pack_shapes, packed_size
from gpt2chat.runtime import Arena
from gpt2chat.templates import Template
from gpt2chat.weights import Entry, entries_of, make

VERSION = "1"
KEPT = ("int8", "int4")  # forms that are worth a file: the others are as fast to make as to read
# names of number types in the header of a safetensors file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32"}


@dataclass(frozen=True)
class Pack:
    """All weights of a network for the native decoder; `panels` of matrices, `vectors` in float32."""

    form: str
    panels: dict[str, Panels]
    vectors: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; the parts of a matrix are told apart by what follows the colon."""
        parts = {f"{name}:{part}": t for name, panels in self.panels.items() for part, t in panels.tensors().items()}
        return parts | self.vectors


def build(loaded: Checkpoint, form: str, made: Mapping[str, Panels] | None = None) -> Pack:
    """Make a pack of a checkpoint, one matrix at a time; those that were `made` already are taken as they are."""
    entries = entries_of(loaded.weights)
    arena = Arena(sum(_room(name, entry, form) for name, entry in entries.items()))
    panels, vectors = {}, {}
    for name, entry in entries.items():
        done = made.get(name) if made else None
        tensor = torch.empty(0) if done else make(entry, torch.float32, mapped=loaded.mapped)
        if is_packed(name, entry.shape):
            parts = (done or pack(tensor, form_for(name, form))).tensors()
            panels[name] = Panels(**{part: _placed(arena, t) for part, t in parts.items()})
        else:
            vectors[name] = _placed(arena, _padded_vector(tensor))
        if loaded.mapped and isinstance(entry, Tensor):
            forget_pages(entry)
    return Pack(form, panels, vectors)


def _room(name: str, entry: Entry, form: str) -> int:
    if is_packed(name, entry.shape):
        return packed_size(entry.shape, form_for(name, form))
    return 4 * entry.shape.numel() + 4 * LANES + 64


def _padded_vector(tensor: Tensor) -> Tensor:
    """Pad a bias to whole panels."""
    return torch.nn.functional.pad(tensor, (0, -len(tensor) % LANES)) if tensor.dim() == 1 else tensor


def _placed(arena: Arena, tensor: Tensor) -> Tensor:
    return arena.take(tensor.shape, tensor.dtype).copy_(tensor)


# -- files -------------------------------------------------------------------------------------------------------------


def identity(path: Path) -> str | None:
    """Return what tells the content of a `.pt` file apart from any other, read from its directory alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [(record.filename, record.file_size, record.CRC) for record in archive.infolist()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError):
        return None
    return hashlib.sha256(repr(records).encode()).hexdigest()


def places(path: Path, form: str, beside: bool) -> Iterator[Path]:
    """Yield where the pack of a checkpoint may be: beside it (unless it is part of the package), or in the cache."""
    if beside:
        yield path.with_name(f"{path.stem}.{form}.pack")
    if cache := cache_folder():
        yield cache / "packs" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:20]}.{form}.pack"


def save(pack: Pack, loaded: Checkpoint, source: str, path: Path) -> None:
    """Write a pack; raises CheckpointError when it cannot be written."""
    tensors = pack.tensors()
    about = {"version": VERSION, "form": pack.form, "source": source, "checkpoint": json.dumps(_to_plain(loaded))}
    about["checksum"] = str(_checksum(tensors, about["checkpoint"]))
    with atomic_writer(path) as file:
        _write(file, tensors, about)


def _write(file: Any, tensors: Mapping[str, Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file straight from memory; the library's own writer copies all tensors twice."""
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(tensor.flatten().view(torch.uint8).numpy().data)


def load(path: Path, source: str, form: str) -> tuple[Checkpoint, Pack] | None:
    """Read the pack made of `source` in `form`; None if it is not there, is damaged, or was made of something else."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            about = file.metadata() or {}
            if (about.get("version"), about.get("source"), about.get("form")) != (VERSION, source, form):
                return None
            names = list(file.keys())
            arena = Arena(path.stat().st_size + 64 * len(names))
            tensors = {}
            for name in names:
                mapped = file.get_tensor(name)
                tensors[name] = _placed(arena, mapped)
                forget_pages(mapped)
        if str(_checksum(tensors, about["checkpoint"])) != about["checksum"]:
            return None
        loaded = _from_plain(json.loads(about["checkpoint"]))
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return (loaded, _from_tensors(form, tensors)) if found == _expected(loaded.config, form) else None
    except (OSError, SafetensorError, GPT2ChatError, ValueError, KeyError, TypeError):
        return None


def _expected(config: GPT2Config, form: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shapes and types of all tensors of a pack: what the native decoder will read without another look."""
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, shape in weight_shapes(config).items():
        if is_packed(name, shape):
            expected |= {f"{name}:{part}": has for part, has in pack_shapes(shape, form_for(name, form)).items()}
        else:
            expected[name] = ((-(-shape[0] // LANES) * LANES,) if len(shape) == 1 else shape, torch.float32)
    return expected


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    checksum = zlib.crc32(text.encode())
    for name in sorted(tensors):
        numbers = tensors[name].flatten().view(torch.uint8)
        checksum = zlib.crc32(numbers.numpy().data, zlib.crc32(name.encode(), checksum))
    return checksum


def _from_tensors(form: str, tensors: dict[str, Tensor]) -> Pack:
    panels: dict[str, dict[str, Tensor]] = {}
    vectors = {}
    for name, tensor in tensors.items():
        matrix, colon, part = name.partition(":")
        if colon:
            panels.setdefault(matrix, {})[part] = tensor
        else:
            vectors[name] = tensor
    return Pack(form, {name: Panels(**parts) for name, parts in panels.items()}, vectors)


def _to_plain(loaded: Checkpoint) -> dict[str, Any]:
    return {
        "config": loaded.config.to_dict(),
        "template": loaded.template.to_dict(),
        "trained_length": loaded.trained_length,
        "examples": [dataclasses.asdict(message) for message in loaded.examples],
        "taught": [list(pair) for pair in loaded.taught],
        "about": loaded.about,
        "history": loaded.history,
    }


def _from_plain(data: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        config=GPT2Config.from_dict(data["config"]),
        weights={},
        template=Template.from_dict(data["template"]),
        trained_length=data["trained_length"],
        examples=[Message(**message) for message in data["examples"]],
        taught=taught_pairs(data.get("taught", [])),  # younger than the first packs
        about=data["about"],
        history=data["history"],
    )


def keep(pack: Pack, loaded: Checkpoint, source: str, targets: Iterable[Path]) -> bool:
    """Write a pack to the first place that takes it; return whether any did."""
    for target in targets:
        with contextlib.suppress(GPT2ChatError, OSError, TypeError):  # nor is what JSON does not know kept
            save(pack, loaded, source, target)
            return True
    return False

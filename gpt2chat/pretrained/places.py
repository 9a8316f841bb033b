"""A file or folder with weights -> named tensors and what is known of their shape. Forms are seen from the content."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2chat import archive
from gpt2chat.errors import CheckpointError, WeightsError
from gpt2chat.pretrained import legacy
from gpt2chat.pretrained.tensorflow import BundleError, find_index, is_index, read_tensors

CONFIG, INDEX = "config.json", ".index.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SHAPE = ("n_head", "n_layer", "n_embd", "n_ctx")
INSIDE = ("model", "state_dict", "model_state_dict")  # where training programs keep the weights in their files


@dataclass
class Stored:
    """What a place holds: tensors under their stored names, mapped into memory, and facts about their shape.

    `shape` holds n_head, n_ctx and the like, None where the place does not tell; `config` is transformers' config.json.
    """

    path: Path
    tensors: Mapping[str, object]
    shape: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    mapped: bool = True
    left_out: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> Stored:
    """Read the weights of a folder: transformers', TensorFlow's, or one weight file; raises WeightsError."""
    names = sorted(entry.name for entry in folder.iterdir())
    if CONFIG in names:
        config = read_json(folder / CONFIG)
        return _read_transformers(folder, names, config)
    if index := find_index(folder):
        return _read_tensorflow(index)
    files = [folder / name for name in names if name.endswith((".pt", ".pth", ".bin", ".safetensors"))]
    if len(files) == 1:
        return read_file(files[0])
    here = ", ".join(names[:8]) or "nothing"
    raise WeightsError(
        f"{folder}: expected {CONFIG} with {' or '.join(WEIGHT_FILES)}, a TensorFlow checkpoint, or one .pt file; "
        f"found {here}"
    )


def _read_transformers(folder: Path, names: list[str], config: dict[str, Any]) -> Stored:
    known = [name + end for name in WEIGHT_FILES for end in ("", INDEX) if name + end in names]
    if known:
        place = folder / known[0]
        tensors, unlisted = _read_shards(place) if known[0].endswith(INDEX) else (_read_tensors(place), [])
        return Stored(folder, tensors, config=config, left_out=[*unlisted, *known[1:]])
    partial = [name for name in names if name.endswith((".incomplete", ".part", ".tmp", ".crdownload"))]
    hint = f"; {partial[0]} is an unfinished download" if partial else ""
    raise WeightsError(f"{folder}: expected {' or '.join(WEIGHT_FILES)} beside {CONFIG}, found none{hint}")


def _read_shards(index: Path) -> tuple[dict[str, object], list[str]]:
    """Read a model that was split over several files, each tensor from the file that the index names.

    Returns the tensors, and the names of those that the index does not place where they are, and of files beside it.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise WeightsError(f"{index}: expected weight_map, a file for each tensor")
    beside = os.listdir(index.parent)
    tensors, unlisted = dict[str, object](), list[str]()
    for file in sorted(set(listed.values())):
        if Path(file).name != file:
            raise WeightsError(f"{index}: expected files beside it, found {file!r}")
        if file not in beside:
            raise WeightsError(f"{index}: lists {file}, which is not there: download it too")
        shard = _read_tensors(index.parent / file)
        wanted = [name for name, place in listed.items() if place == file]
        if absent := [name for name in wanted if name not in shard]:
            raise WeightsError(f"{index.parent / file}: expected {absent[0]}, which {index.name} places there")
        tensors.update((name, shard[name]) for name in wanted)
        unlisted += [f"{name} in {file}" for name in shard if name not in wanted]
    ending = Path(index.name.removesuffix(INDEX)).suffix
    unlisted += [file for file in sorted(beside) if file.endswith(ending) and file not in listed.values()]
    return tensors, unlisted


def _read_tensorflow(index: Path) -> Stored:
    hparams = index.parent / "hparams.json"
    facts = read_json(hparams) if hparams.exists() else {}
    shape = {name: facts.get(name) for name in SHAPE}
    try:
        return Stored(index, read_tensors(index), shape)
    except (BundleError, OSError) as error:
        raise WeightsError(f"{index}: {error}") from error


def read_file(path: Path) -> Stored:
    """Read the weights of one file: a `.pt` of torch in whatever arrangement, safetensors, a TensorFlow index."""
    if path.is_file() and is_index(path):
        return _read_tensorflow(path)
    content = _read_tensors(path)
    shape = {}
    if isinstance(facts := content.get("model_args"), dict):  # nanoGPT
        shape = {name: facts.get("block_size" if name == "n_ctx" else name) for name in SHAPE}
    for name in INSIDE:
        if isinstance(inner := content.get(name), dict):
            rest = [str(key) for key, value in content.items() if key != name and isinstance(value, (dict, Tensor))]
            return Stored(path, _named(inner, path), shape, left_out=rest)
    beside = path.parent / CONFIG
    return Stored(path, content, shape, read_json(beside) if beside.is_file() else None)


def _read_tensors(path: Path) -> dict[str, object]:
    """Map one file into memory; raises WeightsError with what was found instead."""
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file with weights, found {'a folder' if path.is_dir() else 'none'}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[:2] == b"PK":
            return _named(archive.unpickle(path, archive.MAPPING, archive.check_records(path)), path)
        if head[8:9] == b"{":
            with safe_open(os.fspath(path), framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
        if head[:1] == b"\x80":  # what torch wrote before 2020
            return _named(legacy.read(path), path)
    except CheckpointError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: cannot be read, perhaps cut short: {archive.first_line(error)}") from error
    found = "an empty file" if not head else f"a file that begins with {head[:4]!r}"
    raise WeightsError(f"{path}: expected weights (.pt, .pth, .bin, .safetensors, a TensorFlow index), found {found}")


def _named(content: object, path: Path) -> dict[str, object]:
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected named tensors, found {type(content).__name__}")
    return {str(name): t.detach() if isinstance(t, Tensor) else t for name, t in content.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file with JSON, found {'a folder' if path.is_dir() else 'none'}")
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data

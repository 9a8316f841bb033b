"""`Checkpoint` <-> one self-describing `.pt` file.

The file is the zip that `torch.save` writes, of plain dicts, numbers, strings and dense tensors, so that
`torch.load(weights_only=True)` reads it and nothing in it can run. It is written beside its target, synced and renamed:
at any moment the old or the new file is there, whole. On the way in every record's CRC is checked, then every field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2chat.archive import MAPPING, check_records, first_line, unpickle
from gpt2chat.conversation import Message
from gpt2chat.errors import CheckpointError, ConfigError, DataError
from gpt2chat.files import atomic_writer, near
from gpt2chat.model import GPT2, GPT2Config, parameter_count, weight_shapes
from gpt2chat.quantize import int8_rows
from gpt2chat.templates import Template
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.weights import Computed, Entry, as_weights, entries_of, is_finite, make, with_rows

FORMAT, VERSION = "gpt2chat", 3
# What older versions do not hold: 1 did not say how long its conversations were, 1 and 2 not what was taught.
ADDED: dict[int, dict[str, Any]] = {1: {"trained_length": None, "taught": []}, 2: {"taught": []}}
# What a file must hold, and of which type; `training` is None in a file that is only for use.
FIELDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (int,),
    "config": (dict,),
    "template": (dict,),
    "tokenizer": (str,),
    "weights": (dict,),
    "trained_length": (int, type(None)),
    "examples": (list,),
    "taught": (list,),
    "about": (dict,),
    "history": (list,),
    "training": (dict, type(None)),
}


@dataclass
class Checkpoint:
    """A model with everything needed to talk to it and to go on training it.

    `trained_length` is the longest conversation it was taught, in tokens, which chat keeps to (None: the whole
    context); `about` says where it comes from (base model, arguments, data hashes, versions); `history` holds one
    dict per logged step; `training` holds the optimizer and the position, or None; `taught` are the last questions of
    the conversations it learnt, each with its answer.
    """

    config: GPT2Config
    weights: Mapping[str, Tensor]
    template: Template
    trained_length: int | None = None
    examples: list[Message] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] | None = None
    taught: list[tuple[str, str]] = field(default_factory=list)
    mapped: bool = field(default=False, compare=False)  # whether the weights are views of a file; not stored

    def build_model(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> GPT2:
        """Return a network with these weights, in evaluation mode; weights of that very form are not copied."""
        model = GPT2.empty(self.config)
        made = {name: make(entry, dtype, device, self.mapped) for name, entry in entries_of(self.weights).items()}
        model.load_state_dict(made, assign=True)
        return model.requires_grad_(True).eval()

    def with_ids(self, vocab_size: int) -> Checkpoint:
        """Return it with embeddings for at least `vocab_size` ids; the same object where it has them."""
        if self.config.vocab_size >= vocab_size:
            return self
        entries = dict(entries_of(self.weights))
        entries |= {
            key: with_rows(entries[key], vocab_size) for key in ("wte.weight", "lm_head.weight") if key in entries
        }
        return replace(self, config=replace(self.config, vocab_size=vocab_size), weights=as_weights(entries))

    def count(self) -> int:
        """Return the number of parameters."""
        return parameter_count(self.config)


def pack(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Store each matrix as int8 with one scale per row, a quarter of float32; vectors stay as they are."""
    packed: dict[str, Any] = {}
    for name, tensor in weights.items():
        if tensor.dim() != 2:
            packed[name] = tensor.float().clone()
            continue
        rows, scale = int8_rows(tensor)
        packed[name] = {"int8": rows, "scale": scale}
    return packed


def _unpack(name: str, stored: object) -> Entry:
    if isinstance(stored, dict):
        if set(stored) != {"int8", "scale"} or not all(isinstance(part, Tensor) for part in stored.values()):
            raise CheckpointError(f"weight {name}: expected a tensor or int8 rows with scales")
        rows, scale = stored["int8"], stored["scale"]
        _check_tensor(f"{name} (int8)", rows, (torch.int8,))
        _check_tensor(f"{name} (scale)", scale, (torch.float32,))
        if rows.dim() != 2 or scale.shape != (rows.size(0), 1):
            raise CheckpointError(f"weight {name}: expected one scale per row")
        return Computed(rows.shape, torch.float32, lambda begin, end: rows[begin:end] * scale[begin:end], (rows, scale))
    _check_tensor(name, stored, (torch.float32, torch.bfloat16, torch.float16))
    return stored.detach()  # type: ignore[attr-defined]


def _check_tensor(name: str, tensor: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse everything but a dense tensor that owns just its memory."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"weight {name}: expected a tensor, found {type(tensor).__name__}")
    dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not dense or tensor.dtype not in dtypes or not tensor.is_contiguous():
        raise CheckpointError(f"weight {name}: expected a dense tensor of {dtypes[0]}, found {tensor.dtype}")
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        raise CheckpointError(f"weight {name}: its memory does not match its shape")


def save(checkpoint: Checkpoint, path: str | os.PathLike[str], compact: bool = False) -> None:
    """Write a checkpoint; `compact` stores matrices as int8. The old file stays until the new one is on the disk.

    Raises CheckpointError when the file cannot be written, or would hold what `load` refuses; nothing half-written is
    left behind.
    """
    weights = {name: _own_memory(tensor) for name, tensor in checkpoint.weights.items()}
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.to_dict(),
        "template": checkpoint.template.to_dict(),
        "tokenizer": Tokenizer.gpt2().fingerprint,
        "weights": pack(weights) if compact else weights,
        "trained_length": checkpoint.trained_length,
        "examples": [{"role": message.role, "content": message.content} for message in checkpoint.examples],
        "taught": [list(pair) for pair in checkpoint.taught],
        "about": checkpoint.about,
        "history": checkpoint.history,
        "training": checkpoint.training,
    }
    try:
        _check_ids(checkpoint.template, checkpoint.config)
        check_weights(checkpoint.config, {name: _unpack(name, tensor) for name, tensor in weights.items()})
        taught_pairs(content["taught"])
        for name in ("about", "history", "training"):
            _check_plain(content[name], name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not written: {error}") from error
    with atomic_writer(Path(path)) as file:
        torch.save(content, file)


def _own_memory(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU, dense, and without the rest of a larger memory that it is a view of."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _check_plain(value: object, place: str) -> None:
    """Refuse what `torch.load(weights_only=True)` would refuse."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(key, place)
            _check_plain(entry, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_plain(entry, place)
    elif type(value) not in (str, int, float, bool, type(None), Tensor):
        raise CheckpointError(f"{place}: expected plain data, found {type(value).__name__}")


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, memory-mapped where it can be; raises CheckpointError with the place and the reason."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a .pt file, found a folder")
    try:
        return _from_content(unpickle(path, MAPPING, check_records(path)))
    except FileNotFoundError:
        last = path.with_name(f"{path.stem}.last.pt")
        hint = f"; of a run that has not ended there is {last}" if last.exists() else f" in {Path.cwd()}"
        meant = f": did you mean {found}?" if not last.exists() and (found := near(str(path))) else ""
        raise CheckpointError(f"{path}: no such file{'' if path.is_absolute() else hint}{meant}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {first_line(error)}") from error


def _from_content(content: object) -> Checkpoint:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError("expected a gpt2chat checkpoint, found another program's file")
    version = content.get("version")
    if type(version) is int and version in ADDED:
        content = {**content, "version": VERSION, **ADDED[version]}
    elif version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        advice = "update gpt2chat to read it" if newer else "no version of gpt2chat has written that"
        raise CheckpointError(f"expected format version 1 to {VERSION}, found {version!r}: {advice}")
    if set(content) != set(FIELDS):
        raise CheckpointError(f"expected the fields {sorted(FIELDS)}, found {sorted(map(str, content))}")
    for name, types in FIELDS.items():
        if not isinstance(content[name], types):
            raise CheckpointError(f"field {name}: expected {types[0].__name__}, found {type(content[name]).__name__}")
    if content["tokenizer"] != Tokenizer.gpt2().fingerprint:
        raise CheckpointError("was made with another vocabulary than GPT-2's")
    if not all(isinstance(row, dict) and _is_history(row) for row in content["history"]):
        raise CheckpointError("field history: expected rows with a step and losses")
    config = GPT2Config.from_dict(content["config"])
    template = _template(content["template"], config)
    weights = {name: _unpack(name, stored) for name, stored in content["weights"].items()}
    length = content["trained_length"]
    if length is not None and not 0 < length <= config.n_ctx:
        raise CheckpointError(f"field trained_length: expected 1 to {config.n_ctx}, found {length}")
    return Checkpoint(
        config=config,
        weights=as_weights(check_weights(config, weights, MAPPING)),
        template=template,
        trained_length=length,
        examples=[_message(entry) for entry in content["examples"]],
        taught=taught_pairs(content["taught"]),
        about=content["about"],
        history=content["history"],
        training=content["training"],
        mapped=MAPPING,
    )


def _template(data: dict[str, Any], config: GPT2Config) -> Template:
    template = Template.from_dict(data)
    _check_ids(template, config)
    return template


def _check_ids(template: Template, config: GPT2Config) -> None:
    """Refuse a template with tokens of its own that the network has no rows for."""
    needed = template.ids_needed(Tokenizer.gpt2())
    if config.vocab_size < needed:
        raise CheckpointError(
            f"template {template.name}: expected {needed} ids, those of {', '.join(template.added)} among them, "
            f"found {config.vocab_size}"
        )


def _is_history(row: dict[str, Any]) -> bool:
    losses = [row.get(name) for name in ("loss", "validation_loss")]
    return isinstance(row.get("step"), int) and all(isinstance(loss, (float, int, type(None))) for loss in losses)


def _message(entry: object) -> Message:
    if not isinstance(entry, dict) or set(entry) != {"role", "content"} or not isinstance(entry["content"], str):
        raise CheckpointError("field examples: expected entries with role and content")
    return Message(entry["role"], entry["content"])


def taught_pairs(entries: Sequence[object]) -> list[tuple[str, str]]:
    """Return stored questions and answers; raises CheckpointError for anything else."""
    pairs = list[tuple[str, str]]()
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or not all(type(text) is str for text in entry):
            raise CheckpointError("field taught: expected entries of a question and an answer")
        pairs.append((entry[0], entry[1]))
    return pairs


def check_weights(config: GPT2Config, weights: Mapping[str, Entry], mapped: bool = False) -> dict[str, Entry]:
    """Compare names and shapes with the network of `config`, and look for NaN and infinity."""
    layers = len({name.split(".")[1] for name in weights if name.startswith("h.")})
    if layers != config.n_layer:  # before the names of a claimed size are made
        raise CheckpointError(f"weights: expected {config.n_layer} layers, found {layers}")
    expected = weight_shapes(config)
    missing, foreign = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or foreign:
        raise CheckpointError(f"weights: missing {missing[:3] or 'none'}, unexpected {foreign[:3] or 'none'}")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"weight {name}: expected shape {shape}, found {tuple(weights[name].shape)}")
        if not is_finite(weights[name], mapped):
            raise CheckpointError(f"weight {name}: holds NaN or infinity")
    return {name: weights[name] for name in expected}

"""Every damaged, foreign or hostile place with weights is refused in one line that names it; nothing in it runs."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pickle
import pickletools
import re
import resource
import shutil
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import contents
from helpers_weights import (
    block,
    crc32c,
    masked,
    nanogpt,
    plain,
    rasbt,
    reference,
    table,
    tag,
    varint,
    write_tensorflow,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gpt2chat import pretrained
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.errors import CheckpointError, ConfigError, WeightsError
from gpt2chat.pretrained.tensorflow import Entry, read_index

REFUSALS = (WeightsError, CheckpointError, ConfigError)
TOKENS, WIDTH = 50257, 16
DEEP = 50_000
MEMORY = 256 << 10  # KiB by which a refusal may make the process grow: far below any claimed size
Damage = Callable[[Path], object]
Tensors = dict[str, Any]


class Payload:
    """Unpickling this creates a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran.txt",)


class Bytes:
    """Unpickling this asks for so many bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (self.count,)


@dataclass
class Bad:
    """A good place, what is done to a copy of it, and what the error must say."""

    good: str
    damage: Damage
    says: str


# -- good places, written once ---------------------------------------------------------------------------------------

FILES = {
    "safetensors": "model.safetensors",
    "shards": "model-00002-of-00002.safetensors",
    "bin": "pytorch_model.bin",
    "old": "pytorch_model.bin",
    "nanoGPT": "ckpt.pt",
    "rasbt": "gpt2.pth",
    "bare": "weights.pt",
    "TensorFlow": "model.ckpt.index",
    "adapter": "adapter_model.safetensors",
}
PICKLES = [name for name, file in FILES.items() if file.endswith((".bin", ".pt", ".pth"))]
NAMED = ["safetensors", *PICKLES]  # those whose tensors `change` can edit
CONFIGURED = ["safetensors", "shards", "bin", "old", "bare"]


def write(family: str, place: Path, content: object) -> None:
    torch.save(content, place / FILES[family], _use_new_zipfile_serialization=family != "old")


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each family."""
    root = tmp_path_factory.mktemp("goods")
    model = reference(n_embd=WIDTH, n_head=2, n_positions=8)
    model.save_pretrained(root / "safetensors")
    for family in ("shards", "bin", "old", "bare"):
        (root / family).mkdir()
        model.config.save_pretrained(root / family)
    tensors = {f"transformer.{name}": tensor.contiguous() for name, tensor in plain(model).items()}
    for family in ("bin", "old", "bare"):
        write(family, root / family, tensors)
    later = {name for name in tensors if ".h.1." in name}
    parts = [{n: t for n, t in tensors.items() if (n in later) == second} for second in (False, True)]
    places = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save_file(part, root / "shards" / file)
        places |= dict.fromkeys(part, file)
    write_json(root / "shards" / "model.safetensors.index.json", {"weight_map": places})
    (root / "nanoGPT").mkdir()
    write("nanoGPT", root / "nanoGPT", nanogpt(model))
    write_tensorflow(root / "TensorFlow", model)
    (root / "rasbt").mkdir()
    wide = rasbt(reference(n_embd=64, n_head=1, n_positions=8).bfloat16())
    del wide["out_head.weight"]
    write("rasbt", root / "rasbt", wide)
    write_adapter(root / "adapter", root / "safetensors")
    return root


def write_adapter(folder: Path, base: Path) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4}
    write_json(folder / "adapter_config.json", config)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    save_file({name.format("A"): torch.ones(2, 16), name.format("B"): torch.ones(48, 2)}, folder / FILES["adapter"])


# -- damages ---------------------------------------------------------------------------------------------------------


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(place: Path) -> None:
        (place / file).write_bytes(change((place / file).read_bytes()))

    return damage


def flipped(at: float) -> Callable[[bytes], bytes]:
    """Flip a bit at a part of the length."""

    def flip(data: bytes) -> bytes:
        where = int(at * (len(data) - 1))
        return data[:where] + bytes([data[where] ^ 4]) + data[where + 1 :]

    return flip


def without(file: str) -> Damage:
    return lambda place: (place / file).unlink()


def folder_for(file: str) -> Damage:
    def damage(place: Path) -> None:
        (place / file).unlink()
        (place / file).mkdir()

    return damage


def change(family: str, edit: Callable[[Tensors], object]) -> Damage:
    """Edit the named tensors of a file and write it again in its own form."""

    def damage(place: Path) -> None:
        path = place / FILES[family]
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            edit(tensors)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        else:
            content = torch.load(path, weights_only=True)
            edit(content["model"] if family == "nanoGPT" else content)
            write(family, place, content)

    return damage


def whole(family: str, edit: Callable[[Any], object]) -> Damage:
    """Write what `edit` returns for the whole content of a pickle."""
    return lambda place: write(family, place, edit(torch.load(place / FILES[family], weights_only=True)))


def with_json(file: str, **changed: object) -> Damage:
    def damage(place: Path) -> None:
        write_json(place / file, json.loads((place / file).read_text()) | changed)

    return damage


def loop(file: str) -> Damage:
    """Put a link to itself in the place of a file."""

    def damage(place: Path) -> None:
        (place / file).unlink()
        (place / file).symlink_to(file)

    return damage


def text(file: str, content: str) -> Damage:
    return lambda place: (place / file).write_text(content)


EMBEDDING = r"(wte|tok_emb)\.weight$"
NORM = r"(ln_f\.weight|final_norm\.scale)$"
FIRST = r"h\.0\.mlp\.c_fc\.weight$|trf_blocks\.0\.ff\.layers\.0\.weight$"  # the first linear weight of the first MLP
LAST_LAYER = r"\b(h|trf_blocks)\.1\."


def each(pattern: str, new: Callable[[torch.Tensor], object]) -> Callable[[Tensors], None]:
    """Replace the tensors whose name matches; None takes them out."""

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if re.search(pattern, name)]:
            if (value := new(tensors.pop(name))) is not None:
                tensors[name] = value

    return edit


def spoiled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([3]), value)


def twice(tensors: Tensors) -> None:
    """Store the last norm under another of its names too, with other numbers."""
    name = next(name for name in tensors if re.search(NORM, name))
    tensors[f"module.{name}"] = tensors[name] + 1


TENSORS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a weight is missing": (each(NORM, lambda t: None), "missing .*ln_f.weight"),
    "a weight too many": (lambda tensors: tensors.update({"h.0.attn.c_extra.weight": torch.ones(3)}), "unexpected"),
    "a layer is missing": (each(LAST_LAYER, lambda t: None), "expected .*n_layer|expected 2 layers|n_layer 2"),
    "one row short": (each(FIRST, lambda t: t[:-1].contiguous()), "expected shape .* found"),
    "a dimension more": (each(FIRST, lambda t: t[None]), "expected shape .* found"),
    "transposed": (each(FIRST, lambda t: t.t().contiguous()), "expected shape .* found"),
    "a norm that is one number": (each(NORM, lambda t: t[0].clone()), "expected shape .* found"),
    "int64": (each(FIRST, lambda t: t.long()), "floating-point numbers .* found torch.int64"),
    "complex": (each(FIRST, lambda t: t.to(torch.complex64)), "floating-point numbers .* found torch.complex64"),
    "bool": (each(EMBEDDING, lambda t: t > 0), "floating-point numbers .* found torch.bool"),
    "NaN": (each(FIRST, spoiled(float("nan"))), "holds NaN or infinity"),
    "infinity": (each(EMBEDDING, spoiled(float("-inf"))), "holds NaN or infinity"),
    "65 tokens": (each(r"(wte|tok_emb|lm_head)\.weight$", lambda t: t[:65].clone()), "expected .*50257|tokens"),
    "without embeddings": (each(r"(wte|tok_emb|lm_head)\.weight$", lambda t: None), "wte.weight"),
    "stored twice": (twice, "stored twice"),
    "no names of a GPT-2": (
        lambda tensors: [tensors.pop(n) for n in list(tensors)] and tensors.update(x=torch.ones(1)),
        "expected the tensors of a GPT-2",
    ),
}
OBJECTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "sparse": (each(EMBEDDING, lambda t: t.to_sparse()), "dense .* found .*sparse"),
    "without memory": (each(EMBEDDING, lambda t: t.to("meta")), "dense .* found .*meta"),
    "huge without memory": (
        each(EMBEDDING, lambda t: torch.empty(1 << 40, 16, device="meta")),
        "dense .* found .*meta",
    ),
    "a huge view of one number": (
        each(EMBEDDING, lambda t: torch.zeros(1, 1, dtype=t.dtype).expand(1 << 19, 1 << 19)),
        "memory is smaller than its shape",
    ),
    "lists": (each(".", lambda t: [1.0, 2.0]), "expected the tensors of a GPT-2"),
    "named by numbers": (
        lambda tensors: [tensors.update({n: tensors.pop(k)}) for n, k in enumerate(list(tensors))],
        "expected the tensors of a GPT-2",
    ),
    "code for a weight": (each(NORM, lambda t: Payload()), "objects other than plain data"),
    "code as an entry": (lambda tensors: tensors.update(config=Payload()), "objects other than plain data"),
    "more bytes than there are": (lambda tensors: tensors.update(x=Bytes(1 << 62)), "cannot be read"),
}
CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "another architecture": ({"model_type": "llama"}, "expected model_type gpt2, found 'llama'"),
    "heads that do not divide": ({"n_head": 3}, "expected a multiple of n_head"),
    "no heads": ({"n_head": 0}, "n_head: expected"),
    "more layers": ({"n_layer": 3}, "expected 3 layers, found 2"),
    "fewer layers": ({"n_layer": 1}, "expected 1 layers, found 2"),
    "negative layers": ({"n_layer": -2}, "n_layer: expected .*-2"),
    "negative width": ({"n_embd": -16}, "n_embd: expected .*-16"),
    "another width": ({"n_embd": 32}, "expected shape"),
    "another context": ({"n_positions": 1024}, "expected shape"),
    "negative context": ({"n_positions": -8}, "n_ctx: expected .*-8"),
    "a thousand million layers": ({"n_layer": 10**9}, "n_layer: expected .* to 1048576, got 1000000000"),
    "a million layers": ({"n_layer": 10**6}, "expected 1000000 layers, found 2"),
    "a thousand million wide": ({"n_embd": 10**9}, "n_embd: expected .* to 1048576"),
    "a million wide": ({"n_embd": 1 << 20}, "expected shape"),
    "a thousand million tokens": ({"vocab_size": 10**9}, "vocab_size: expected"),
    "65 tokens": ({"vocab_size": 65}, "expected GPT-2's 50257 tokens, found 65"),
    "text for a number": ({"n_layer": "2"}, "n_layer: expected .*'2'"),
    "a list for a number": ({"n_embd": [16]}, "n_embd: expected"),
    "nothing for a number": ({"n_head": None}, "n_head: expected .*None"),
    "half a layer": ({"n_layer": 2.5}, "n_layer: expected"),
    "text for epsilon": ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon"),
    "NaN for epsilon": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
    "another activation": ({"activation_function": "relu"}, "activation_function: expected 'gelu_new'"),
    "another MLP": ({"n_inner": 17}, "n_inner: expected 64"),
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention"),
    "a head of its own that is not there": ({"tie_word_embeddings": False}, "expected lm_head.weight"),
}
JSONS = {
    "empty": "",
    "cut short": '{"model_type": "gpt2", "n_la',
    "a list": "[1, 2]",
    "a number": "7",
    "deep": "[" * 100_000,
    "a number too long": '{"n_layer": ' + "9" * 5000 + "}",
}


def of_every_family() -> dict[str, Bad]:
    """What can happen to any file, and to the tensors in it."""
    cases = {}
    for family, file in FILES.items():
        named = re.escape(file)
        cases[f"{family}: empty file"] = Bad(family, bytes_of(file, lambda data: b""), f"{named}.*(empty|cut)")
        cases[f"{family}: a folder for a file"] = Bad(family, folder_for(file), f"{named}")
        cases[f"{family}: text"] = Bad(family, text(file, "hello " * 20), f"{named}.*(expected|cannot be read)")
        for at in (0.0003, 0.3, 0.6, 0.999):
            cut = bytes_of(file, lambda data, at=at: data[: max(3, int(at * len(data)))])
            cases[f"{family}: cut at {at:.2%}"] = Bad(family, cut, f"{named}.*(cut|cannot be read|expected)")
        cases[f"{family}: cut by a byte"] = Bad(family, bytes_of(file, lambda d: d[:-1]), f"{named}.*(cut|cannot)")
    for family in [name for name in PICKLES if name != "old"]:
        for at in (0.1, 0.5, 0.9):
            cases[f"{family}: flipped at {at:.0%}"] = Bad(family, bytes_of(FILES[family], flipped(at)), "damaged")
    for at in (0.01, 0.2, 0.5):
        cases[f"TensorFlow: index flipped at {at:.0%}"] = Bad(
            "TensorFlow", bytes_of(FILES["TensorFlow"], flipped(at)), "its index is damaged"
        )
    for family in NAMED:
        for what, (edit, says) in (TENSORS if family == "safetensors" else TENSORS | OBJECTS).items():
            if (family, what) == ("rasbt", "a layer is missing"):  # nothing in that file tells how many there were
                continue
            cases[f"{family}: {what}"] = Bad(family, change(family, edit), says)
    return cases


def of_configs() -> dict[str, Bad]:
    """config.json beside the weights, in each way to store them."""
    cases = {}
    for number, (what, (changed, says)) in enumerate(CONFIGS.items()):
        family = CONFIGURED[number % len(CONFIGURED)]
        cases[f"config of {family}: {what}"] = Bad(family, with_json("config.json", **changed), says)
    for file, family in {
        "config.json": "safetensors",
        "hparams.json": "TensorFlow",
        "model.safetensors.index.json": "shards",
        "adapter_config.json": "adapter",
    }.items():
        for what, content in JSONS.items():
            cases[f"{file}: {what}"] = Bad(family, text(file, content), f"{re.escape(file)}.*JSON")
        if file != "adapter_config.json":
            cases[f"{file}: a folder"] = Bad(family, folder_for(file), f"{re.escape(file)}.*found a folder")
        cases[f"{file}: not UTF-8"] = Bad(
            family, bytes_of(file, lambda data: b'{"a": "\xff"}'), "cannot be read as JSON"
        )
    for family in ("safetensors", "bin", "bare"):
        cases[f"{family}: no config.json"] = Bad(family, without("config.json"), "heads is unknown")
    return cases


def weight_map(edit: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(place: Path) -> None:
        path = place / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        edit(content["weight_map"])
        write_json(path, content)

    return damage


def first_file(name: object) -> Damage:
    return weight_map(lambda places: places.update({"transformer.ln_f.weight": name}))


SHARDS = {
    "a shard is missing": (without(FILES["shards"]), f"lists {FILES['shards']}, which is not there"),
    "all weights are missing": (
        lambda place: [path.unlink() for path in place.glob("model*")],
        "expected model.safetensors or pytorch_model.bin beside config.json, found none",
    ),
    "no weight_map": (text("model.safetensors.index.json", "{}"), "index.json: expected weight_map"),
    "weight_map is a list": (text("model.safetensors.index.json", '{"weight_map": []}'), "expected weight_map"),
    "weight_map is empty": (text("model.safetensors.index.json", '{"weight_map": {}}'), "found nothing"),
    "a file that is a number": (first_file(7), "expected weight_map"),
    "a file of the system": (first_file("../../etc/passwd"), r"expected files beside it, found '\.\./\.\./etc/passwd'"),
    "a shard that is a link to itself": (loop(FILES["shards"]), f"{FILES['shards']}: expected a file .* found none"),
    "an index that is a link to itself": (
        loop("model.safetensors.index.json"),
        "index.json: expected a file with JSON",
    ),
    "a file outside": (first_file("../x"), r"expected files beside it, found '\.\./x'"),
    "an absolute file": (first_file("/etc/passwd"), "expected files beside it, found '/etc/passwd'"),
    "the folder above": (first_file(".."), r"index.json: .*\.\."),
    "a name too long": (first_file("x" * 5000), "index.json: .*not there"),
    "a name with a NUL": (first_file("x\0y"), "index.json: .*not there"),
    "a file without a name": (first_file(""), "index.json: .*not there"),
    "itself": (first_file("model.safetensors.index.json"), "index.json: (cannot be read|expected)"),
    "a tensor that is not there": (
        weight_map(lambda places: places.update({"transformer.more": FILES["shards"]})),
        f"{FILES['shards']}: expected transformer.more, which model.safetensors.index.json places there",
    ),
    "a tensor in another shard": (
        first_file(FILES["shards"]),
        f"{FILES['shards']}: expected transformer.ln_f.weight",
    ),
    "a tensor not listed": (weight_map(lambda places: places.pop("transformer.ln_f.weight")), "missing .*ln_f.weight"),
}


# -- safetensors ---------------------------------------------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Edit the header of a safetensors file."""

    def edit(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        content = json.loads(data[8 : 8 + size])
        change(content)
        head = json.dumps(content).encode()
        return struct.pack("<Q", len(head)) + head + data[8 + size :]

    return bytes_of(FILES["safetensors"], edit)


def described(**changed: object) -> Damage:
    return header(lambda content: content["transformer.wte.weight"].update(changed))


SAFETENSORS = {
    "a header longer than the file": bytes_of(FILES["safetensors"], lambda d: struct.pack("<Q", 1 << 62) + d[8:]),
    "a header that is not JSON": bytes_of(FILES["safetensors"], lambda d: d[:9] + b"\xff" * 9 + d[18:]),
    "a huge shape": described(shape=[1 << 40, 1 << 40]),
    "a negative shape": described(shape=[-50257, -16]),
    "text for a shape": described(shape="all"),
    "an unknown type": described(dtype="F17"),
    "a type of half the size": described(dtype="F16"),
    "places outside": described(data_offsets=[0, 1 << 50]),
    "places backwards": described(data_offsets=[100, 4]),
    "places before the file": described(data_offsets=[-3216448, 0]),
    "places of another tensor": header(
        lambda content: content["transformer.ln_f.weight"].update(
            data_offsets=content["transformer.ln_f.bias"]["data_offsets"]
        )
    ),
    "places that overlap by a number": header(
        lambda content: content["transformer.ln_f.weight"].update(
            data_offsets=[at - 4 for at in content["transformer.ln_f.weight"]["data_offsets"]]
        )
    ),
    "a tensor that nothing describes": header(lambda content: content.pop("transformer.ln_f.weight")),
    "more bytes than are described": bytes_of(FILES["safetensors"], lambda data: data + bytes(4)),
}


# -- TensorFlow ----------------------------------------------------------------------------------------------------


def encoded(entry: Entry) -> bytes:
    shape = b"".join(tag(2, tag(1, size)) for size in entry.shape)
    numbers = tag(1, entry.dtype) + tag(2, shape) + tag(3, entry.shard) + tag(4, entry.offset) + tag(5, entry.size)
    return numbers + varint(6 << 3 | 5) + struct.pack("<I", entry.checksum)


def entries_of(place: Path) -> list[tuple[bytes, bytes]]:
    shards, entries = read_index(place / FILES["TensorFlow"])
    return [(b"", tag(1, shards)), *((name.encode(), encoded(entry)) for name, entry in entries.items())]


def index_with(edit: Callable[[list[tuple[bytes, bytes]]], object]) -> Damage:
    """Edit the entries of an index, whose checksums are then right again."""

    def damage(place: Path) -> None:
        entries = entries_of(place)
        edit(entries)
        (place / FILES["TensorFlow"]).write_bytes(table([entries]))

    return damage


def entry(name: str = "model/wte", **changed: Any) -> Damage:
    def damage(place: Path) -> None:
        _, entries = read_index(place / FILES["TensorFlow"])
        new = encoded(dataclasses.replace(entries[name], **changed))
        index_with(
            lambda listed: listed.__setitem__([k for k, _ in listed].index(name.encode()), (name.encode(), new))
        )(place)

    return damage


def raw_block(change: Callable[[bytes], bytes], kind: bytes = b"\0", kind_of_list: bytes = b"\0") -> Damage:
    """Edit the bytes of an index that is one block, and the kinds of both; their checksums are then right again."""

    def checked(body: bytes) -> bytes:
        return body + struct.pack("<I", masked(crc32c(body)))

    def damage(place: Path) -> None:
        body = change(block(entries_of(place))[:-5]) + kind
        data = checked(body)
        handle = checked(block([(b"model/zzz", varint(0) + varint(len(body) - 1))])[:-5] + kind_of_list)
        places = varint(0) + varint(0) + varint(len(data)) + varint(len(handle) - 5)
        magic = struct.pack("<Q", 0xDB4775248B80FB57)
        (place / FILES["TensorFlow"]).write_bytes(data + handle + places.ljust(40, b"\0") + magic)

    return damage


DATA = "model.ckpt.data-00000-of-00001"
INDEX = FILES["TensorFlow"]
TENSORFLOW: dict[str, tuple[Damage, str]] = {
    "bad magic": (bytes_of(INDEX, lambda d: d[:-1] + b"x"), "expected the index of a TensorFlow checkpoint"),
    "a footer of zeros": (bytes_of(INDEX, lambda d: d[:-48] + bytes(40) + d[-8:]), "points outside|damaged"),
    "a footer without an end": (bytes_of(INDEX, lambda d: d[:-48] + b"\xff" * 40 + d[-8:]), "number without an end"),
    "a footer that points outside": (
        bytes_of(INDEX, lambda d: d[:-48] + (b"\0\0" + varint(1 << 60) * 2).ljust(40, b"\0") + d[-8:]),
        "points outside of itself",
    ),
    "a footer alone": (bytes_of(INDEX, lambda d: d[-48:]), "points outside of itself"),
    "no data file": (without(DATA), f"expected {DATA} beside the index, found none"),
    "a folder for the data file": (folder_for(DATA), f"expected {DATA} beside the index, found a folder"),
    "an empty data file": (bytes_of(DATA, lambda d: b""), f"expected {DATA} beside the index, found an empty file"),
    "half a data file": (bytes_of(DATA, lambda d: d[: len(d) // 2]), "the data file is cut short"),
    "a data file short of a byte": (bytes_of(DATA, lambda d: d[:-1]), "the data file is cut short"),
    "a flip in the first tensor": (bytes_of(DATA, flipped(0)), "damaged, it does not have the checksum"),
    "a flip in the middle": (bytes_of(DATA, flipped(0.5)), "model/wte: damaged, it does not have the checksum"),
    "a flip at the end": (bytes_of(DATA, flipped(1)), "damaged, it does not have the checksum"),
    "another checksum": (entry(checksum=7), "model/wte: damaged, it does not have the checksum"),
    "an offset outside": (entry(offset=1 << 40), "the data file is cut short"),
    "a huge offset": (entry(offset=(1 << 64) - 8), "the data file is cut short"),
    "a shard that is not there": (entry(shard=5), "model/wte: expected a data file from 0 to 0, found 5"),
    "a huge shard": (entry(shard=1 << 63), "model/wte: expected a data file from 0 to 0, found 9223372036854775808"),
    "more shards than files": (
        index_with(lambda entries: entries.__setitem__(0, (b"", tag(1, 2)))),
        "expected model.ckpt.data-00000-of-00002 beside the index",
    ),
    "another size": (entry(size=8), "8 bytes do not make the shape"),
    "a negative shape": (entry(shape=((1 << 64) - 1, 16)), "do not make the shape"),
    "a huge shape": (entry(shape=(1 << 40, 1 << 40)), "do not make the shape"),
    "a shape of nothing": (entry(shape=(0, (1 << 64) - 1), size=0), "0 bytes do not make the shape"),
    "a transposed shape": (entry(shape=(16, 50257)), "expected n_embd 16, .* found 50257"),
    "a flat shape": (entry(shape=(50257 * 16,)), "expected the embeddings"),
    "a linear weight of no form": (entry("model/h0/mlp/c_fc/w", shape=(1, 1, 16, 64)), "expected shape"),
    "twice the numbers": (entry(dtype=2), "do not make the shape"),
    "numbers of int32": (entry("model/h1/ln_1/g", dtype=3), "h1/ln_1/g: expected floating-point .* found int32"),
    "numbers of no type": (entry("model/h1/ln_1/g", dtype=77), "h1/ln_1/g: expected floating-point .* found type 77"),
    "half the numbers": (entry(dtype=19), "do not make the shape"),
    "big-endian numbers": (
        index_with(lambda entries: entries.__setitem__(0, (b"", tag(1, 1) + tag(2, 1)))),
        "expected little-endian numbers",
    ),
    "no header": (index_with(lambda entries: entries.pop(0)), "lists no tensors"),
    "a header of bytes": (index_with(lambda entries: entries.__setitem__(0, (b"", tag(1, b"1")))), "expected a number"),
    "no tensors": (index_with(lambda entries: entries.__delitem__(slice(1, None))), "lists no tensors"),
    "a tensor is missing": (index_with(lambda entries: entries.pop()), "expected the embeddings"),
    "a tensor too many": (
        index_with(lambda entries: entries.append((b"model/x", entries[-1][1]))),
        "unexpected .*x.weight",
    ),
    "a name twice": (index_with(lambda entries: entries.append(entries[-1])), "lists model/wte twice"),
    "a name that is not UTF-8": (
        index_with(lambda entries: entries.append((b"model/\xff", entries[-1][1]))),
        "unexpected",
    ),
    "one tensor under two names": (
        index_with(lambda entries: entries.append((b"model/wte/b", entries[5][1]))),
        "unexpected|stored twice",
    ),
    "two names for one weight": (
        index_with(lambda entries: entries.append((b"model/wte/g", entries[-2][1]))),
        "wte.weight: stored twice",
    ),
    "a shape that is a number": (
        index_with(lambda entries: entries.append((b"model/x", tag(1, 1) + tag(2, 5)))),
        "expected a shape",
    ),
    "a size that is bytes": (
        index_with(lambda entries: entries.append((b"model/x", tag(1, 1) + tag(2, tag(2, tag(1, b"x")))))),
        "expected a number",
    ),
    "a tensor in slices": (
        index_with(lambda entries: entries.append((b"model/x", entries[-1][1] + tag(7, b"")))),
        "in slices",
    ),
    "a field of no kind": (
        index_with(lambda entries: entries.append((b"model/x", varint(1 << 3 | 3)))),
        "unknown kind of field",
    ),
    "a field longer than its entry": (
        index_with(lambda entries: entries.append((b"model/x", varint(2 << 3 | 2) + varint(1 << 40)))),
        "longer than what holds it",
    ),
    "a number without an end": (
        index_with(lambda entries: entries.append((b"model/x", b"\x08" + b"\xff" * 11))),
        "a number without an end",
    ),
    "a compressed block": (raw_block(lambda body: body, kind=b"\1"), "its index is compressed"),
    "a compressed list of blocks": (raw_block(lambda body: body, kind_of_list=b"\1"), "its index is compressed"),
    "a data file that is a link to itself": (loop(DATA), f"expected {DATA} beside the index, found none"),
    "an empty block": (raw_block(lambda body: b""), "points outside of itself|damaged"),
    "a block of one kind of byte": (raw_block(lambda body: b"\xff" * 40), "its index is damaged"),
    "more places than the block holds": (
        raw_block(lambda body: body[:-4] + struct.pack("<I", 1 << 31)),
        "shorter than its own list of places",
    ),
    "a key longer than the block": (raw_block(lambda body: b"\0\x7f\0" + body[-8:]), "longer than what holds it"),
    "no hparams.json": (without("hparams.json"), "the number of heads is unknown"),
    "hparams: heads that do not divide": (with_json("hparams.json", n_head=3), "a multiple of n_head"),
    "hparams: no heads": (with_json("hparams.json", n_head=0), "n_head: expected"),
    "hparams: text for heads": (with_json("hparams.json", n_head="2"), "n_head: expected .*'2'"),
    "hparams: huge": (with_json("hparams.json", n_head=10**9), "n_head: expected"),
    "hparams: more layers": (with_json("hparams.json", n_layer=12), "expected n_layer 12, .* found 2"),
    "hparams: another context": (with_json("hparams.json", n_ctx=1024), "expected n_ctx 1024, .* found 8"),
    "hparams: another width": (with_json("hparams.json", n_embd=768), "expected n_embd 768, .* found 16"),
}


# -- adapters ------------------------------------------------------------------------------------------------------


def adapter_config(**changed: object) -> Damage:
    return with_json("adapter_config.json", **changed)


def lora(edit: Callable[[Tensors], object]) -> Damage:
    return change("adapter", edit)


PLACE = "base_model.model.transformer.h.0.attn.c_attn"
ADAPTERS: dict[str, tuple[Damage, str]] = {
    "no base": (adapter_config(base_model_name_or_path=None), "adapter_config.json: expected base_model_name_or_path"),
    "an empty base": (adapter_config(base_model_name_or_path=""), "expected base_model_name_or_path"),
    "a base that is a number": (adapter_config(base_model_name_or_path=7), "expected base_model_name_or_path, found 7"),
    "a base that is missing": (adapter_config(base_model_name_or_path="../no"), "bad: expected its base model '../no'"),
    "a base file that is missing": (adapter_config(base_model_name_or_path="no.pt"), "bad: .*no.pt: no such file"),
    "a base with a NUL": (adapter_config(base_model_name_or_path="a\0b"), "bad: expected its base model"),
    "a base with a long name": (adapter_config(base_model_name_or_path="a" * 5000), "bad: expected its base model"),
    "itself for a base": (
        adapter_config(base_model_name_or_path="../bad"),
        "expected a whole model, found another adapter",
    ),
    "its own weights for a base": (
        adapter_config(base_model_name_or_path="../bad/adapter_model.safetensors"),
        "expected its base model .*: expected the tensors of a GPT-2",
    ),
    "its own config for a base": (adapter_config(base_model_name_or_path="adapter_config.json"), "expected weights"),
    "another kind": (adapter_config(peft_type="IA3"), "expected peft_type LORA, found 'IA3'"),
    "no kind": (adapter_config(peft_type=None), "expected peft_type LORA, found None"),
    "DoRA": (adapter_config(use_dora=True), "use_dora is not supported"),
    "a rank of a pattern": (adapter_config(rank_pattern={"c_attn": 3}), "do not fit .* with the rank 3"),
    "no rank in a pattern": (adapter_config(rank_pattern={"c_attn": "2"}), "r: expected a whole number above 0"),
    "no alpha in a pattern": (adapter_config(alpha_pattern={"c_attn": None}), "lora_alpha: expected a number"),
    "patterns in a list": (adapter_config(alpha_pattern=["c_attn"]), "alpha_pattern: expected names with numbers"),
    "a pattern that is none": (adapter_config(rank_pattern={"c_attn(": 2}), "'c_attn.' is no regular expression"),
    "a start that changed the base": (adapter_config(init_lora_weights="pissa"), "init_lora_weights 'pissa' is not"),
    "a start by a number": (adapter_config(init_lora_weights=[7]), "init_lora_weights .7. is not supported"),
    "an adapter for some tokens": (adapter_config(alora_invocation_tokens=[995]), "alora_invocation_tokens is not"),
    "what no peft of today knows": (adapter_config(use_magic=True), "use_magic is not supported"),
    "a revision that is a number": (adapter_config(revision=7), "revision: expected the name of a version, found 7"),
    "rank 0": (adapter_config(r=0), "r: expected a whole number above 0, the rank, found 0"),
    "a negative rank": (adapter_config(r=-2), "r: expected .*-2"),
    "a huge rank": (adapter_config(r=10**9), "r: expected .*1000000000"),
    "text for the rank": (adapter_config(r="2"), "r: expected .*'2'"),
    "true for the rank": (adapter_config(r=True), "r: expected .*True"),
    "another rank": (adapter_config(r=4), r"do not fit .* with the rank 4"),
    "no alpha": (adapter_config(lora_alpha=None), "lora_alpha: expected a number, found None"),
    "NaN for alpha": (adapter_config(lora_alpha=float("nan")), "lora_alpha: expected a number, found nan"),
    "a huge alpha": (adapter_config(lora_alpha=10**400), "lora_alpha: expected a number"),
    "no weights": (without(FILES["adapter"]), "expected adapter_model.safetensors or adapter_model.bin"),
    "no tensors": (lora(lambda tensors: tensors.clear()), "holds no tensors"),
    "A without B": (lora(lambda tensors: tensors.pop(f"{PLACE}.lora_B.weight")), "c_attn.weight: expected .*lora_B"),
    "B without A": (lora(lambda tensors: tensors.pop(f"{PLACE}.lora_A.weight")), "c_attn.weight: expected lora_A"),
    "ranks that differ": (lora(each("lora_A", lambda t: t[:1])), r"A \(1, 16\) and B \(48, 2\) do not fit"),
    "a narrow A": (lora(each("lora_A", lambda t: t[:, :3])), r"A \(2, 3\) .* do not fit \(48, 16\)"),
    "a flat A": (lora(each("lora_A", lambda t: t[0])), r"A \(16,\) .* do not fit"),
    "NaN": (lora(each("lora_A", lambda t: t * float("nan"))), "holds NaN or infinity"),
    "infinity": (lora(each("lora_B", lambda t: t * float("inf"))), "holds NaN or infinity"),
    "int64": (lora(each("lora_B", lambda t: t.long())), "floating-point numbers .* found torch.int64"),
    "complex": (lora(each("lora_B", lambda t: t.to(torch.complex64))), "found torch.complex64"),
    "an unknown layer": (
        lora(lambda t: t.update({n.replace("c_attn", "q_proj"): t.pop(n) for n in list(t)})),
        "q_proj.weight: expected .* such a weight in the base model",
    ),
    "a norm": (
        lora(lambda t: t.update({n.replace("attn.c_attn", "ln_1"): t.pop(n) for n in list(t)})),
        r"do not fit \(16,\)",
    ),
    "half an embedding": (
        lora(lambda t: t.update({"base_model.model.transformer.wte.lora_embedding_A": torch.ones(2, TOKENS)})),
        "wte.weight: expected lora_A, lora_B",
    ),
    "an embedding with a dimension more": (
        lora(lambda t: t.update({f"{PLACE}.lora_embedding_{part}": torch.ones(2, 2, 2) for part in "AB"})),
        "stored twice|do not fit",
    ),
    "a vector of magnitudes": (
        lora(lambda t: t.update({f"{PLACE}.lora_magnitude_vector": torch.ones(48)})),
        "expected lora_A and lora_B of linear layers and embeddings, found .*magnitude",
    ),
    "a short bias": (
        lora(lambda t: t.update({f"{PLACE}.base_layer.bias": torch.ones(47)})),
        r"c_attn.bias: expected the shape \(48,\), found \(47,\)",
    ),
    "an unknown bias": (
        lora(lambda t: t.update({"score.weight": torch.ones(2)})),
        "score.weight: expected a weight",
    ),
    "a bias of NaN": (
        lora(lambda t: t.update({f"{PLACE}.bias": torch.full((48,), float("nan"))})),
        "c_attn.bias: holds NaN",
    ),
    "two biases": (
        lora(lambda t: t.update({f"{PLACE}.bias": torch.ones(48), f"{PLACE}.base_layer.bias": torch.ones(48)})),
        "bias: stored twice",
    ),
    "stored twice": (
        lora(lambda t: t.update({f"{PLACE}.lora_A.default.weight": torch.zeros(2, 16)})),
        "lora_A.*: stored twice",
    ),
    "code in the weights": (
        lambda place: (without(FILES["adapter"])(place), torch.save({"x": Payload()}, place / "adapter_model.bin")),
        "adapter_model.bin: holds objects other than plain data",
    ),
}


# -- pickles and what else a place can be ----------------------------------------------------------------------------


def rezipped(data: bytes, compression: int, record: str = "", content: bytes = b"") -> bytes:
    """Write a zip again, one record replaced, each with the checksum that it then has."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w", compression) as after:
        for name in before.namelist():
            after.writestr(name, content if record and name.endswith(record) else before.read(name))
    return out.getvalue()


def zeros_without_end(data: bytes) -> bytes:
    """A zip of 2 MB whose pickle unpacks to half a GB."""
    out = io.BytesIO()
    archive = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("archive/data.pkl", "w") as record:
        for _ in range(1 << 4):
            record.write(bytes(1 << 25))
    return out.getvalue()


def other_query(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Damage:
    name = "trf_blocks.0.att.W_query.weight"
    return change("rasbt", lambda tensors: tensors.update({name: torch.ones(shape, dtype=dtype)}))


def one_pickle(content: object, protocol: int = 2) -> Damage:
    return bytes_of(FILES["bare"], lambda _: pickle.dumps(content, protocol))


@dataclass
class Claim:
    """Pickled as a tensor of any offset, shape and strides over some numbers."""

    numbers: torch.Tensor
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        storage = torch.storage.TypedStorage(
            wrap_storage=self.numbers.untyped_storage(), dtype=torch.float32, _internal=True
        )
        facts = (storage, self.offset, self.shape, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, facts


def claimed(
    numbers: int = TOKENS * WIDTH,
    offset: int = 0,
    shape: tuple[int, ...] = (TOKENS, WIDTH),
    stride: tuple[int, ...] = (WIDTH, 1),
) -> Callable[[Tensors], None]:
    """Let the embedding claim what its numbers do not hold."""
    return each(EMBEDDING, lambda _: Claim(torch.ones(numbers), offset, shape, stride))


CLAIMS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "a number short": (claimed(numbers=TOKENS * WIDTH - 1), "cannot be read"),
    "an offset beyond the end": (claimed(offset=1), "cannot be read"),
    "a huge offset": (claimed(offset=1 << 62), "cannot be read"),
    "a negative offset": (claimed(offset=-WIDTH), "cannot be read"),
    "wide strides": (claimed(stride=(WIDTH + 1, 1)), "cannot be read"),
    "negative strides": (claimed(stride=(-WIDTH, 1)), "cannot be read"),
    "rows that overlap": (claimed(stride=(1, 1)), "memory is smaller than its shape"),
    "rows that are one row": (claimed(stride=(0, 1)), "memory is smaller than its shape"),
    "a shape beyond all numbers": (claimed(shape=(1 << 32, 1 << 32)), "cannot be read"),
    "a negative shape": (claimed(shape=(-5, WIDTH)), "cannot be read"),
}


def records(edit: Callable[[str, bytes], list[bytes]]) -> Damage:
    """Write the zip's records again, each as often as `edit` returns it; all checksums are right."""

    def change(data: bytes) -> bytes:
        out = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
            warnings.simplefilter("ignore")  # about a name that is there twice
            for name in before.namelist():
                for content in edit(name, before.read(name)):
                    after.writestr(name, content)
        return out.getvalue()

    return bytes_of(FILES["bare"], change)


def numbers(edit: Callable[[bytes], list[bytes]]) -> Damage:
    """Edit the record of the embedding."""
    return records(lambda _, data: edit(data) if len(data) == 4 * TOKENS * WIDTH else [data])


def directory(place: str, value: int) -> Damage:
    """Set a field of the zip's directory in the entry of the embedding."""
    fields = {"method": (10, "<H"), "packed": (20, "<I"), "size": (24, "<I"), "offset": (42, "<I")}

    def change(data: bytes) -> bytes:
        changed, (at, form) = bytearray(rezipped(data, zipfile.ZIP_STORED)), fields[place]
        size = struct.pack("<I", 4 * TOKENS * WIDTH)
        entry = changed.index(size, changed.index(b"PK\x01\x02")) - 20
        struct.pack_into(form, changed, entry + at, value)
        return bytes(changed)

    return bytes_of(FILES["bare"], change)


def nested(nest: bytes) -> Damage:
    """Put a deep nest under the name x into the zip's pickle, alone."""
    content = b"\x80\x02}X\x01\x00\x00\x00x" + nest + b"s."
    return records(lambda name, data: [content if name.endswith("data.pkl") else data])


def old_keys(edit: Callable[[list[str]], list[str]]) -> Damage:
    """Edit the list of numbers that follows the pickle of torch before 2020."""

    def change(data: bytes) -> bytes:
        file, ends = io.BytesIO(data), [0]
        for _ in range(5):
            list(pickletools.genops(file))
            ends.append(file.tell())
        keys = pickle.loads(data[ends[4] : ends[5]])
        return data[: ends[4]] + pickle.dumps(edit(keys), 2) + data[ends[5] :]

    return bytes_of(FILES["old"], change)


ZIPS: dict[str, tuple[Damage, str]] = {
    "a record short of a number": (numbers(lambda data: [data[:-4]]), "damaged: 3216448 bytes of a tensor are not a"),
    "a record longer by a number": (numbers(lambda data: [data + bytes(4)]), "damaged: .* are not a whole record"),
    "an empty record": (numbers(lambda data: [b""]), "damaged: .* are not a whole record|cannot be read"),
    "no record": (numbers(lambda data: []), "cannot be read"),
    "a record twice": (numbers(lambda data: [data, bytes(len(data))]), "several records of one name"),
    "a pickle twice": (
        records(lambda name, data: [data, b"\x80\x02}."] if name.endswith("data.pkl") else [data]),
        "several records of one name",
    ),
    "numbers of another machine": (
        records(lambda name, data: [b"big" if name.endswith("byteorder") else data]),
        "expected little-endian numbers, found b'big'",
    ),
    "a huge packed size": (directory("packed", 0x7FFFFFF0), "cannot be read|damaged"),
    "a huge size": (directory("size", 0x7FFFFFF0), "claim to be larger than the file"),
    "a small size": (directory("size", 64), "damaged|cannot be read"),
    "another record's place": (directory("offset", 0), "damaged|cannot be read"),
    "a place outside": (directory("offset", 0x7FFFFFF0), "damaged|cannot be read"),
    "an unknown packing": (directory("method", 99), "compressed ones; refused"),
    "deep tuples": (nested(b")" + b"\x85" * DEEP), "found x"),
    "deep lists": (nested(b"]" * DEEP + b"a" * (DEEP - 1)), "found x"),
    "deep tuples without an end": (nested(b"(" * DEEP), "cannot be read|found x|objects other"),
}
OLD: dict[str, tuple[Damage, str]] = {
    "a tensor without numbers": (old_keys(lambda keys: keys[:-1]), "lists no place for the numbers of transformer"),
    "no numbers": (old_keys(lambda keys: []), "lists no place for the numbers of transformer"),
    "numbers twice": (old_keys(lambda keys: keys + keys[:1]), "cannot be read"),
    "numbers in another order": (old_keys(lambda keys: keys[::-1]), "cannot be read"),
    "numbers of nothing": (old_keys(lambda keys: ["x"]), "cannot be read"),
}


def of_claims() -> dict[str, Bad]:
    return {
        f"{family}: the embedding claims {what}": Bad(family, change(family, edit), says)
        for family in ("bare", "old")
        for what, (edit, says) in CLAIMS.items()
    }


OTHERS: dict[str, Bad] = {
    "nanoGPT: more layers told": Bad(
        "nanoGPT",
        whole("nanoGPT", lambda c: c | {"model_args": c["model_args"] | {"n_layer": 3}}),
        "expected n_layer 3",
    ),
    "nanoGPT: another context told": Bad(
        "nanoGPT", whole("nanoGPT", lambda c: c | {"model_args": c["model_args"] | {"block_size": 64}}), "n_ctx 64"
    ),
    "nanoGPT: heads that do not divide": Bad(
        "nanoGPT", whole("nanoGPT", lambda c: c | {"model_args": c["model_args"] | {"n_head": 5}}), "multiple of n_head"
    ),
    "nanoGPT: text for heads": Bad(
        "nanoGPT", whole("nanoGPT", lambda c: c | {"model_args": c["model_args"] | {"n_head": "2"}}), "n_head: expected"
    ),
    "nanoGPT: no arguments": Bad("nanoGPT", whole("nanoGPT", lambda c: c | {"model_args": None}), "heads is unknown"),
    "nanoGPT: no weights": Bad("nanoGPT", whole("nanoGPT", lambda c: c | {"model": {}}), "found nothing"),
    "nanoGPT: code in the optimizer": Bad(
        "nanoGPT", whole("nanoGPT", lambda c: c | {"optimizer": Payload()}), "objects other than plain data"
    ),
    "rasbt: query without key": Bad(
        "rasbt",
        change("rasbt", each(r"0\.att\.W_key\.weight", lambda t: None)),
        "h.0.attn.c_attn.weight: expected query, key and value, found query, value",
    ),
    "rasbt: a query of another shape": Bad("rasbt", other_query((64, 3)), "query, key and value of one shape"),
    "rasbt: a query that is one number": Bad("rasbt", other_query(()), "query, key and value of one shape"),
    "rasbt: a query of another type": Bad("rasbt", other_query((64, 64), torch.float32), "one shape and type"),
    "rasbt: query, key and value that are numbers": Bad(
        "rasbt", change("rasbt", each(r"W_\w+\.weight", lambda t: t[0, 0].clone())), "one shape and type"
    ),
    "rasbt: a wide query, key and value": Bad(
        "rasbt", change("rasbt", each(r"W_\w+\.weight", lambda t: t.repeat(2, 1))), "expected shape"
    ),
    "rasbt: 63 wide": Bad(
        "rasbt", change("rasbt", each(EMBEDDING, lambda t: t[:, :63].clone())), "63 is not a multiple of 64"
    ),
    "safetensors: a head without embeddings": Bad(
        "bin",
        change("bin", lambda t: t.update({"lm_head.weight": t.pop("transformer.wte.weight")})),
        "missing .*wte.weight",
    ),
    "bare: a list": Bad("bare", whole("bare", list), "weights.pt: expected named tensors, found list"),
    "bare: a tensor": Bad("bare", lambda p: write("bare", p, torch.ones(3)), "weights.pt: expected named tensors"),
    "old: a list": Bad("old", whole("old", list), "pytorch_model.bin: expected named tensors, found list"),
    "bare: nothing": Bad("bare", lambda p: write("bare", p, {}), "weights.pt: .* found nothing"),
    "bare: code alone": Bad("bare", lambda p: write("bare", p, Payload()), "objects other than plain data"),
    "old: code alone": Bad("old", lambda p: write("old", p, Payload()), "objects other than plain data"),
    "bare: code in a plain pickle": Bad("bare", one_pickle({"wte.weight": Payload()}), "weights.pt: "),
    "bare: code in a pickle of text": Bad("bare", one_pickle(Payload(), 0), "weights.pt: expected weights"),
    "bare: code in a pickle of today": Bad("bare", one_pickle(Payload(), 5), "weights.pt: "),
    "bare: a plain pickle": Bad("bare", one_pickle({"wte.weight": [1.0]}), "weights.pt: "),
    "bare: other numbers in the zip's pickle": Bad(
        "bare",
        bytes_of(FILES["bare"], lambda d: rezipped(d, zipfile.ZIP_STORED, "data.pkl", b"\x80\x02}q\0.garbage")),
        "weights.pt: .*found nothing",
    ),
    "bare: an empty pickle in the zip": Bad(
        "bare", bytes_of(FILES["bare"], lambda d: rezipped(d, zipfile.ZIP_STORED, "data.pkl")), "cannot be read"
    ),
    "bare: compressed": Bad(
        "bare", bytes_of(FILES["bare"], lambda d: rezipped(d, zipfile.ZIP_DEFLATED)), "compressed ones; refused"
    ),
    "bare: a pickle of half a GB in a small zip": Bad(
        "bare", bytes_of(FILES["bare"], zeros_without_end), "compressed ones"
    ),
    "bare: a zip of something else": Bad(
        "bare", lambda p: zipfile.ZipFile(p / FILES["bare"], "w").close(), "weights.pt: "
    ),
    "nanoGPT: a link to itself": Bad("nanoGPT", loop("ckpt.pt"), "ckpt.pt: expected a file .* found none"),
    "safetensors: a link to itself": Bad(
        "safetensors", loop(FILES["safetensors"]), "model.safetensors: expected a file .* found none"
    ),
    "rasbt: query, key and value in one too": Bad(
        "rasbt",
        change("rasbt", lambda t: t.update({"trf_blocks.0.attn.c_attn.weight": torch.ones(192, 64)})),
        "stored twice, in one and as query",
    ),
    "nanoGPT: a link to nothing": Bad(
        "nanoGPT", lambda p: (without("ckpt.pt")(p), (p / "ckpt.pt").symlink_to("no")), "ckpt.pt: .*found none"
    ),
    "safetensors: a pipe": Bad(
        "safetensors",
        lambda p: (without(FILES["safetensors"])(p), os.mkfifo(p / FILES["safetensors"])),
        "model.safetensors: expected a file",
    ),
    "a folder of nothing": Bad("bare", lambda p: [path.unlink() for path in p.iterdir()], "bad: .*found nothing"),
    "a folder of two models": Bad(
        "nanoGPT",
        lambda p: (shutil.copy(p / "ckpt.pt", p / "a.pt"), (p / "ckpt.pt").rename(p / "b.pt")),
        "bad: expected .*found a.pt, b.pt",
    ),
}


def prefixed(family: str, cases: dict[str, tuple[Damage, str]]) -> dict[str, Bad]:
    return {f"{family}: {what}": Bad(family, damage, says) for what, (damage, says) in cases.items()}


CASES = (
    of_every_family()
    | of_configs()
    | prefixed("shards", SHARDS)
    | prefixed("safetensors", {what: (damage, "cannot be read") for what, damage in SAFETENSORS.items()})
    | prefixed("TensorFlow", TENSORFLOW)
    | prefixed("adapter", ADAPTERS)
    | prefixed("bare", ZIPS)
    | prefixed("old", OLD)
    | of_claims()
    | OTHERS
)


def peak() -> int:
    """The most memory that this process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def place_of(family: str, folder: Path) -> Path:
    """What a user would name: the folder, or the one file of those that come as a file."""
    file = folder / FILES[family]
    return file if family in ("nanoGPT", "rasbt", "bare") and file.exists() else folder


def refusal(place: Path) -> str:
    with pytest.raises(REFUSALS) as caught:
        pretrained.load(str(place))
    return str(caught.value)


@pytest.mark.parametrize("family", FILES)
def test_the_good_places_load(family: str, goods: Path) -> None:
    assert pretrained.load(str(place_of(family, goods / family))).config.n_layer == 2


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
def test_a_bad_place_is_named_and_changes_nothing(
    bad: Bad, goods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, good = tmp_path / "bad", goods / bad.good
    shutil.copytree(good, folder)
    bad.damage(folder)
    before, untouched, memory = sorted(tmp_path.rglob("*")), contents(good), peak()
    message = refusal(place_of(bad.good, folder))
    assert "bad" in message
    assert re.search(bad.says, message), message
    assert len(message.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert contents(good) == untouched
    assert peak() - memory < MEMORY


def test_there_are_at_least_sixty_cases() -> None:
    assert len(CASES) >= 60


def test_a_payload_would_run_if_it_were_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "ran.txt").exists()


# -- chance ----------------------------------------------------------------------------------------------------------


@functools.cache
def loaded_once(place: str) -> Checkpoint:
    return pretrained.load(place)


def same_or_refused(place: Path, good: Path) -> None:
    """What a damage without a checksum may do: be refused, or change nothing that is used."""
    try:
        loaded = pretrained.load(str(place))
    except REFUSALS as error:
        assert place.name in str(error)
        return
    expected = loaded_once(str(good))
    assert loaded.config == expected.config
    assert all(torch.equal(tensor, expected.weights[name]) for name, tensor in loaded.weights.items())


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few flipped bits, or a cut, at parts of the length."""
    at = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3))
    cut = draw(st.none() | st.floats(0, 1))

    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        for where, mask in at:
            changed[int(where * (len(data) - 1))] ^= mask
        return bytes(changed if cut is None else data[: int(cut * len(data))])

    return damage


@pytest.fixture(scope="module")
def spoilt(goods: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the good places that may be spoilt again and again."""
    root = tmp_path_factory.mktemp("spoilt")
    for family in ("TensorFlow", "safetensors", "bare", "old"):
        shutil.copytree(goods / family, root / family)
    return root


@settings(max_examples=40)
@given(damage=damages())
def test_a_tensorflow_index_damaged_by_chance(damage: Callable[[bytes], bytes], goods: Path, spoilt: Path) -> None:
    good = goods / "TensorFlow" / INDEX
    (spoilt / "TensorFlow" / INDEX).write_bytes(damage(good.read_bytes()))
    same_or_refused(spoilt / "TensorFlow" / INDEX, good)


@settings(max_examples=40)
@given(damage=damages())
def test_a_safetensors_header_damaged_by_chance(damage: Callable[[bytes], bytes], goods: Path, spoilt: Path) -> None:
    data = (goods / "safetensors" / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    (spoilt / "safetensors" / "model.safetensors").write_bytes(damage(data[:end]) + data[end:])
    same_or_refused(spoilt / "safetensors", goods / "safetensors")


@settings(max_examples=40)
@given(damage=damages(), part=st.sampled_from(["all", "begin", "end"]))
def test_a_zip_damaged_by_chance(damage: Callable[[bytes], bytes], part: str, goods: Path, spoilt: Path) -> None:
    data = (goods / "bare" / "weights.pt").read_bytes()
    begin, end = {"all": (0, len(data)), "begin": (0, 6000), "end": (len(data) - 6000, len(data))}[part]
    (spoilt / "bare" / "weights.pt").write_bytes(data[:begin] + damage(data[begin:end]) + data[end:])
    same_or_refused(spoilt / "bare" / "weights.pt", goods / "bare" / "weights.pt")


@settings(max_examples=60)
@given(damage=damages())
@pytest.mark.parametrize("family", ["bare", "old"])
def test_a_pickle_forged_by_chance(family: str, damage: Callable[[bytes], bytes], goods: Path, spoilt: Path) -> None:
    """Here every checksum is right, so a load is allowed; what it raises is not free."""
    data = (goods / family / FILES[family]).read_bytes()
    if family == "bare":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            record = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            forged = rezipped(data, zipfile.ZIP_STORED, record, damage(archive.read(record)))
    else:
        forged = damage(data[:6000]) + data[6000:]
    (spoilt / family / FILES[family]).write_bytes(forged)
    try:
        pretrained.load(str(spoilt / family))
    except REFUSALS as error:
        assert family in str(error)


@settings(max_examples=60)
@given(
    begin=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x40" + bytes(7) + b"{", b"\x80\x02\x8a\nl\xfc"]),
    rest=st.binary(max_size=200),
    end=st.sampled_from([b"", b"PK\x05\x06" + bytes(18), struct.pack("<Q", 0xDB4775248B80FB57)]),
    name=st.sampled_from(["x.pt", "x.bin", "x.safetensors", "x.index"]),
)
def test_bytes_of_chance(begin: bytes, rest: bytes, end: bytes, name: str, spoilt: Path) -> None:
    (spoilt / name).write_bytes(begin + rest + end)
    assert name in refusal(spoilt / name)

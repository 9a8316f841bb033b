"""Random GPT-2 weights written in the layouts of other programs, without using any of the code under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config as ReferenceConfig
from transformers import GPT2LMHeadModel

LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def reference(seed: int = 0, **changed: Any) -> GPT2LMHeadModel:
    """A small transformers model, every weight of it random."""
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 32, "vocab_size": 50257}
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(ReferenceConfig(**{**shape, **changed})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def plain(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The weights without `transformer.` and without the tied head; linear ones are (in, out)."""
    state = model.state_dict()
    return {name.removeprefix("transformer."): tensor for name, tensor in state.items() if name != "lm_head.weight"}


def nanogpt(model: GPT2LMHeadModel, prefix: str = "_orig_mod.transformer.", padded: int = 47) -> dict[str, Any]:
    """The content of nanoGPT's ckpt.pt: linear weights (out, in), a padded vocabulary, a compiled model's prefix."""
    weights = {name: t.t().contiguous() if name.endswith(LINEAR) else t for name, t in plain(model).items()}
    weights["wte.weight"] = torch.cat([weights["wte.weight"], torch.zeros(padded, weights["wte.weight"].size(1))])
    stored = {prefix + name: tensor for name, tensor in weights.items()}
    stored[prefix.replace("transformer.", "") + "lm_head.weight"] = weights["wte.weight"]
    c = model.config
    arguments = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "block_size": c.n_positions}
    arguments |= {"bias": True, "vocab_size": c.vocab_size + padded, "dropout": 0.0}
    rest = {"optimizer": {"state": {}}, "iter_num": 7, "best_val_loss": torch.tensor(1.5), "config": {"seed": 1}}
    return {"model": stored, "model_args": arguments, **rest}


def rasbt(model: GPT2LMHeadModel, head: float = 1.0) -> dict[str, Tensor]:
    """The state dict of LLMs-from-scratch's GPTModel; its output head is a matrix of its own."""
    names = {"attn.c_proj": "att.out_proj", "mlp.c_fc": "ff.layers.0", "mlp.c_proj": "ff.layers.2"}
    stored = {}
    for name, tensor in plain(model).items():
        place, leaf = name.rsplit(".", 1)
        tensor = tensor.t() if name.endswith(LINEAR) else tensor
        if place in ("wte", "wpe"):
            stored[{"wte": "tok_emb.weight", "wpe": "pos_emb.weight"}[place]] = tensor.clone()
        elif place == "ln_f":
            stored[f"final_norm.{'scale' if leaf == 'weight' else 'shift'}"] = tensor.clone()
        else:
            _, layer, part = place.split(".", 2)
            block = f"trf_blocks.{layer}"
            if part in ("ln_1", "ln_2"):
                stored[f"{block}.norm{part[-1]}.{'scale' if leaf == 'weight' else 'shift'}"] = tensor.clone()
            elif part == "attn.c_attn":
                for kind, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    stored[f"{block}.att.W_{kind}.{leaf}"] = third.clone()
            else:
                stored[f"{block}.{names[part]}.{leaf}"] = tensor.clone()
    size = model.config.n_positions
    for layer in range(model.config.n_layer):
        stored[f"trf_blocks.{layer}.att.mask"] = torch.ones(size, size).triu(1)
    stored["out_head.weight"] = stored["tok_emb.weight"] * head
    return stored


def tensorflow_names(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The variables of OpenAI's checkpoint."""
    stored = {}
    for name, tensor in plain(model).items():
        place, leaf = name.rsplit(".", 1)
        parts = place.split(".")
        parts = [f"h{parts[1]}", *parts[2:]] if parts[0] == "h" else parts
        if name.endswith(LINEAR):
            stored["/".join(["model", *parts, "w"])] = tensor[None].contiguous()
        elif parts in (["wte"], ["wpe"]):
            stored[f"model/{parts[0]}"] = tensor
        else:
            end = "b" if leaf == "bias" else "g"
            stored["/".join(["model", *parts, end])] = tensor
    return stored


# -- TensorFlow's files --------------------------------------------------------------------------------------------


def _row(register: int) -> int:
    for _ in range(8):
        register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register


TABLE = [_row(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """The checksum, a byte at a time (RFC 3720)."""
    register = 0xFFFFFFFF
    for byte in data:
        register = TABLE[(register ^ byte) & 255] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as LevelDB stores it."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def tag(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]], share: bool = True) -> bytes:
    """A block of a table, with its trailer; keys leave out what they share with the one before."""
    out, before = bytearray(), b""
    for key, value in entries:
        shared = 0
        while share and shared < min(len(before), len(key)) and before[shared] == key[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    out += struct.pack("<II", 0, 1) + b"\0"
    return bytes(out) + struct.pack("<I", masked(crc32c(bytes(out))))


def table(blocks: list[list[tuple[bytes, bytes]]]) -> bytes:
    """A whole table: data blocks, an empty meta index, the index, the footer."""
    out, index = bytearray(), []
    for entries in blocks:
        data = block(entries)
        index.append((entries[-1][0], varint(len(out)) + varint(len(data) - 5)))
        out += data
    places = b""
    for data in (block([]), block(index)):
        places += varint(len(out)) + varint(len(data) - 5)
        out += data
    return bytes(out) + places.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_tensorflow(folder: Path, model: GPT2LMHeadModel, shards: int = 1) -> Path:
    """Write model.ckpt.index, its data files and hparams.json."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [bytearray() for _ in range(shards)]
    entries = [(b"", tag(1, shards) + tag(3, tag(1, 1)))]
    for number, (name, tensor) in enumerate(sorted(tensorflow_names(model).items())):
        content, shard = tensor.detach().contiguous().numpy().tobytes(), number % shards
        shape = b"".join(tag(2, tag(1, size)) for size in tensor.shape)
        entry = tag(1, 1) + tag(2, shape) + tag(3, shard) + tag(4, len(data[shard])) + tag(5, len(content))
        entries.append((name.encode(), entry + varint(6 << 3 | 5) + struct.pack("<I", masked(crc32c(content)))))
        data[shard] += content
    (folder / "model.ckpt.index").write_bytes(table([entries[:9], entries[9:]]))
    for number, content in enumerate(data):
        (folder / f"model.ckpt.data-{number:05}-of-{shards:05}").write_bytes(content)
    c = model.config
    hparams = {"n_vocab": c.vocab_size, "n_ctx": c.n_positions, "n_embd": c.n_embd, "n_head": c.n_head}
    (folder / "hparams.json").write_text(json.dumps({**hparams, "n_layer": c.n_layer}))
    return folder

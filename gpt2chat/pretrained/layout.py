"""Weights as four families of programs name and lay them out -> our names and layouts.

Ours are the released names with linear weights stored (out, in). Nothing is copied: a transposed or cropped tensor
stays a view of the file it was mapped from, and what is stored in parts is joined when it is needed. The family of a
file is seen from its tensors, never from its name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2chat.errors import WeightsError
from gpt2chat.model import GPT2
from gpt2chat.weights import Computed, Entry

LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module|model|base_model|transformer)\.)+")
MASKS = (".attn.bias", ".attn.masked_bias", ".att.mask")  # buffers that older programs stored with the weights
HEAD_SIZE = 64  # of every released GPT-2
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Weights:
    """Tensors in our names and layouts; `form` says whose file it was, `left_out` what in it is no weight."""

    form: str
    tensors: dict[str, Tensor]
    computed: dict[str, Computed] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    zero_biases: int = 0

    def describe(self) -> str:
        """Return what was read, in one line."""
        parts = [f"{len(self.tensors) + len(self.computed)} tensors in the layout of {self.form}"]
        if self.zero_biases:
            parts.append(f"{self.zero_biases} biases that it does not have taken as zero")
        if self.left_out:
            shown = ", ".join(self.left_out[:6]) + (", …" if len(self.left_out) > 6 else "")
            parts.append(f"{len(self.left_out)} entries left out: {shown}")
        return "; ".join(parts)


def translate(stored: Mapping[str, object]) -> Weights:
    """Find out the family and translate; raises WeightsError when the names are of no GPT-2."""
    tensors = {name: t for name, t in stored.items() if isinstance(t, Tensor) and not name.endswith(MASKS)}
    other = [str(name) for name in stored if name not in tensors]
    for is_family, read in FAMILIES:
        if any(is_family(name) for name in tensors):
            for name, tensor in tensors.items():
                check_dense(f"weight {name}", tensor)
            weights = read({name: tensors[name] for name in sorted(tensors)})
            weights.left_out += other
            return weights
    if any(re.match(r"(?:wte|wpe|ln_f|h\.\d+)\.", WRAPPERS.sub("", name)) and ".lora_" not in name for name in tensors):
        raise WeightsError("expected a whole GPT-2, found a part of one: pass the folder that holds all of its files")
    shown = ", ".join(list(map(str, stored))[:4]) or "nothing"
    raise WeightsError(f"expected the tensors of a GPT-2 (such as wte.weight or h.0.attn.c_attn.weight), found {shown}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse everything but dense numbers of floating point that have as much memory as their shape claims."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in FLOATS:
        found = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        raise WeightsError(f"{name}: expected dense floating-point numbers in memory, found {found}")
    apart = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    overlap = any(wide < stride * size for (stride, size), (wide, _) in itertools.pairwise([(1, 1), *apart]))
    if tensor.untyped_storage().nbytes() < tensor.nbytes or overlap:
        raise WeightsError(f"{name}: its memory is smaller than its shape, {tuple(tensor.shape)}")


def _put(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Add a tensor; two stored names may only stand for one of ours when both hold the same."""
    before = tensors.get(name)
    if before is not None and (before.dtype != tensor.dtype or not before.equal(tensor)):
        raise WeightsError(f"{name}: stored twice under different names, with different numbers")
    tensors[name] = tensor


def _from_tensorflow(tensors: dict[str, Tensor]) -> Weights:
    """OpenAI's release: `model/h0/attn/c_attn/w` (1, in, out), `model/h0/ln_1/g`, `model/wte`."""
    weights = Weights("OpenAI's TensorFlow code", {})
    leaves = {"w": "weight", "g": "weight", "b": "bias"}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"model/(?:h(\d+)/)?(.+?)(?:/([wgb]))?", name)
        if found is None or "/Adam" in name or found[2].startswith("beta"):
            weights.left_out.append(name)
            continue
        layer, place, leaf = found.groups()
        ours = f"{f'h.{layer}.' if layer else ''}{place.replace('/', '.')}.{leaves.get(leaf, 'weight')}"
        linear = leaf == "w" and tensor.dim() == 3 and tensor.size(0) == 1
        _put(weights.tensors, ours, tensor[0].t() if linear else tensor)
    return weights


def _from_released_names(tensors: dict[str, Tensor]) -> Weights:
    """transformers (linear weights (in, out)) and nanoGPT ((out, in)), told apart by the shape of the first of them."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _put(named, WRAPPERS.sub("", name), tensor)
    first = named.get("h.0.attn.c_attn.weight")
    if first is None or first.dim() != 2:
        raise WeightsError("expected h.0.attn.c_attn.weight with two dimensions")
    conv = first.size(1) == 3 * first.size(0)
    weights = Weights("transformers" if conv else "nanoGPT", {})
    for name, tensor in named.items():
        weights.tensors[name] = tensor.t() if conv and name.endswith(LINEAR) and tensor.dim() == 2 else tensor
    if not conv:
        weights.zero_biases = _fill_biases(weights)
    return weights


PARTS_OF_RASBT = {
    "att.out_proj": "attn.c_proj",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
}
LEAVES_OF_RASBT = {"scale": "weight", "shift": "bias", "weight": "weight", "bias": "bias"}


def _from_rasbt(tensors: dict[str, Tensor]) -> Weights:
    """LLMs-from-scratch: `trf_blocks.0.att.W_query.weight` and its kind, with query, key and value apart."""
    whole = {"tok_emb": "wte", "pos_emb": "wpe", "final_norm": "ln_f", "out_head": "lm_head"}
    weights = Weights("LLMs-from-scratch", {})
    apart: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, leaf = WRAPPERS.sub("", name).rpartition(".")
        found = re.fullmatch(r"trf_blocks\.(\d+)\.(.+)", place)
        if found and (part := re.fullmatch(r"att\.W_(query|key|value)", found[2])):
            _put(apart.setdefault(f"h.{found[1]}.attn.c_attn.{leaf}", {}), part[1], tensor)
        else:
            ours = f"h.{found[1]}.{PARTS_OF_RASBT.get(found[2], found[2])}" if found else whole.get(place, place)
            _put(weights.tensors, f"{ours}.{LEAVES_OF_RASBT.get(leaf, leaf)}", tensor)
    for ours, parts in apart.items():
        if set(parts) != {"query", "key", "value"}:
            raise WeightsError(f"{ours}: expected query, key and value, found {', '.join(parts)}")
        if len({(part.shape, part.dtype) for part in parts.values()}) > 1 or not parts["query"].dim():
            shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in parts.values())
            raise WeightsError(f"{ours}: expected query, key and value of one shape and type, found {shapes}")
        if ours in weights.tensors:
            raise WeightsError(f"{ours}: stored twice, in one and as query, key and value")
        weights.computed[ours] = _joined(parts["query"], parts["key"], parts["value"])
    weights.zero_biases = _fill_biases(weights)
    return weights


def _joined(*parts: Tensor) -> Computed:
    """Put tensors of one shape and type under each other."""
    height, rest = parts[0].shape[0], parts[0].shape[1:]

    def rows(begin: int, end: int) -> Tensor:
        places = [n * height for n in range(len(parts))]
        return torch.cat([p[max(0, begin - at) : max(0, end - at)] for p, at in zip(parts, places, strict=True)])

    return Computed(torch.Size([height * len(parts), *rest]), parts[0].dtype, rows, parts)


def _fill_biases(weights: Weights) -> int:
    """Add zeros for a kind of bias that no layer has, as models trained without biases; return how many."""
    entries: dict[str, Entry] = {**weights.tensors, **weights.computed}
    kinds = {re.sub(r"^h\.\d+\.", "", name) for name in entries}
    added = 0
    for name in [name for name in entries if name.endswith(".weight") and name.split(".")[0] in ("h", "ln_f")]:
        bias = name.removesuffix("weight") + "bias"
        if re.sub(r"^h\.\d+\.", "", bias) not in kinds:
            weights.tensors[bias] = torch.zeros(entries[name].shape[:1], dtype=entries[name].dtype)
            added += 1
    return added


FAMILIES: tuple[tuple[Callable[[str], bool], Callable[[dict[str, Tensor]], Weights]], ...] = (
    (lambda name: name.startswith("model/"), _from_tensorflow),
    (lambda name: "trf_blocks." in name, _from_rasbt),
    (lambda name: WRAPPERS.sub("", name) == "h.0.attn.c_attn.weight", _from_released_names),
)


def to_released_names(model: GPT2) -> dict[str, Tensor]:
    """Translate our layout to the released one, linear weights (in, out)."""
    return {
        name: tensor.t().contiguous() if name.endswith(LINEAR) else tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }

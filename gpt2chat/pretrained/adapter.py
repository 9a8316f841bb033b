"""PEFT's LoRA adapters: a folder with adapter_config.json, merged into the weights of its base model.

Beside the pairs A, B an adapter may hold weights whole, which replace those of the base model: biases, and those of
`modules_to_save`.

A merged weight is W + scale * B A (Hu et al. 2021, arXiv:2106.09685), scale = alpha / r, or alpha / sqrt(r) with
rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2chat.errors import WeightsError
from gpt2chat.pretrained.layout import LINEAR, WRAPPERS, check_dense
from gpt2chat.pretrained.places import read_file, read_json
from gpt2chat.weights import Computed, Entry, is_finite

CONFIG = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# What may be set without changing W + scale * B A. All else that is set is refused, as what later versions of peft add.
KNOWN = """
    alpha_pattern auto_mapping base_model_name_or_path bias ensure_weight_tying eva_config exclude_modules
    fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout
    megatron_core merge_weights modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision
    target_modules task_type use_rslora
"""
STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # those that leave the base model as it is
PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the name or place of the model that an adapter belongs to."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise WeightsError(f"{folder / CONFIG}: expected base_model_name_or_path, found {base!r}")
    return base


def revision_of(folder: Path) -> str | None:
    """Return which version of its model, on the hub, an adapter belongs to; None for the newest."""
    revision = read_json(folder / CONFIG).get("revision")
    if revision is not None and not isinstance(revision, str):
        raise WeightsError(f"{folder / CONFIG}: revision: expected the name of a version, found {revision!r}")
    return revision or None


def merge(folder: Path, weights: Mapping[str, Entry], mapped: bool) -> dict[str, Entry]:
    """Return the weights that an adapter changes, in our names; raises WeightsError."""
    config = _checked(read_json(folder / CONFIG), folder / CONFIG)
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise WeightsError(f"{folder}: expected {' or '.join(WEIGHT_FILES)} beside {CONFIG}, found neither")
    pairs, whole, modules = _pairs(read_file(files[0]).tensors, files[0])
    merged = _replaced(whole, weights, mapped, files[0])
    for name, parts in pairs.items():
        a, b, weight = parts.get("A"), parts.get("B"), _base(weights, name)
        if a is None or b is None or weight is None:
            raise WeightsError(f"{files[0]}: {name}: expected lora_A, lora_B and such a weight in the base model")
        shape = tuple(weight.shape)
        rank, scale = _rank_and_scale(config, modules[name], folder / CONFIG)
        if len(shape) != 2 or [tuple(a.shape), tuple(b.shape)] != [(rank, shape[1]), (shape[0], rank)]:
            raise WeightsError(
                f"{files[0]}: {name}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit {shape} "
                f"with the rank {rank} of {CONFIG}"
            )
        merged[name] = total = _sum(weight, a, b, scale)
        if not is_finite(total, mapped):
            raise WeightsError(f"{files[0]}: {name}: holds NaN or infinity when it is added to the base model")
    embedding, head = "wte.weight", "lm_head.weight"
    if embedding in merged and not {head} & {*merged, *weights}:
        merged[head] = weights[embedding]  # as in peft, which changes the embedding alone
    return merged


def _base(weights: Mapping[str, Entry], name: str) -> Entry | None:
    """Return the weight of the base model that an adapter changes; a head that is not there is the embedding."""
    return weights.get(name, weights["wte.weight"] if name == "lm_head.weight" else None)


def _replaced(whole: Mapping[str, Tensor], weights: Mapping[str, Entry], mapped: bool, path: Path) -> dict[str, Entry]:
    """Return the weights that an adapter holds whole, in our layout and in the types of those they replace."""
    replaced: dict[str, Entry] = {}
    for name, stored in whole.items():
        before = _base(weights, name)
        tensor = stored.t() if name.endswith(LINEAR) and stored.dim() == 2 else stored
        if before is None or tensor.shape != before.shape:
            expected = "a weight of the base model" if before is None else f"the shape {tuple(before.shape)}"
            raise WeightsError(f"{path}: {name}: expected {expected}, found {tuple(tensor.shape)}")
        replaced[name] = tensor.to(before.dtype)
        if not is_finite(tensor, mapped):
            raise WeightsError(f"{path}: {name}: holds NaN or infinity")
    return replaced


def _sum(weight: Entry, a: Tensor, b: Tensor, scale: float) -> Computed:
    """Return weight + scale * b a, rounded to the weight's type."""

    def rows(begin: int, end: int) -> Tensor:
        base = weight[begin:end] if isinstance(weight, Tensor) else weight.rows(begin, end)
        return (base.float() + scale * (b[begin:end].float() @ a.float())).to(weight.dtype)

    return Computed(weight.shape, weight.dtype, rows, (weight,) if isinstance(weight, Tensor) else weight.sources)


def _checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return an adapter's config; raises WeightsError for what is not supported."""
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: expected peft_type LORA, found {config.get('peft_type')!r}")
    found = [name for name, value in config.items() if value and name not in KNOWN.split()]
    found += [f"init_lora_weights {start!r}" for start in [config.get("init_lora_weights")] if start not in STARTS]
    if found:
        raise WeightsError(f"{path}: {found[0]} is not supported: merge the adapter with peft's merge_and_unload first")
    for pattern in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(pattern) or {}, dict):
            raise WeightsError(f"{path}: {pattern}: expected names with numbers, found {config[pattern]!r}")
        for name in config.get(pattern) or {}:
            try:
                re.compile(name)
            except re.error as error:
                raise WeightsError(f"{path}: {pattern}: {name!r} is no regular expression: {error}") from error
    return config


def _rank_and_scale(config: dict[str, Any], module: str, path: Path) -> tuple[int, float]:
    """Return those of one module, which a pattern may set apart: its name, or the end of it behind a dot."""
    rank, alpha = (
        next((value for key, value in (config.get(pattern) or {}).items() if _names(key, module)), config.get(default))
        for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if type(rank) is not int or not 0 < rank <= 1 << 20:
        raise WeightsError(f"{path}: r: expected a whole number above 0, the rank, found {rank!r}")
    if not isinstance(alpha, (int, float)) or not abs(alpha) <= 1 << 20:
        raise WeightsError(f"{path}: lora_alpha: expected a number, found {alpha!r}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _names(pattern: str, module: str) -> bool:
    """Whether a pattern of peft, a regular expression for the end of a name, is that of a module."""
    return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None


def _pairs(stored: Any, path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, str]]:
    """Return our name of each touched weight -> its A (rank, in) and B (out, rank); what is stored whole; and our name
    -> that of the module in peft."""
    pairs, whole, modules = dict[str, dict[str, Tensor]](), dict[str, Tensor](), dict[str, str]()
    for name, tensor in stored.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: expected tensors, found {name}")
        check_dense(f"{path}: {name}", tensor)
        found = PART.fullmatch(name)
        if found is None and ".lora_" in name:
            raise WeightsError(f"{path}: expected lora_A and lora_B of linear layers and embeddings, found {name}")
        place, part = (found[1] + ".weight", found[3]) if found else (name.replace(".base_layer.", "."), "")
        if found and found[2]:  # an embedding is laid out the other way round
            tensor, part = tensor.t() if tensor.dim() == 2 else tensor, {"A": "B", "B": "A"}[part]
        ours = WRAPPERS.sub("", place)
        modules[ours] = place.removesuffix(".weight").removeprefix("base_model.model.")
        kept = pairs.setdefault(ours, {}) if found else whole
        if (part or ours) in kept:
            raise WeightsError(f"{path}: {name}: stored twice under different names")
        kept[part or ours] = tensor
    if not pairs and not whole:
        raise WeightsError(f"{path}: holds no tensors")
    return pairs, whole, modules

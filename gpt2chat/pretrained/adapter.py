"""PEFT's LoRA adapters: a folder with adapter_config.json, merged into the weights of its base model.

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
from gpt2chat.pretrained.layout import WRAPPERS, check_dense
from gpt2chat.pretrained.places import read_file, read_json
from gpt2chat.weights import Computed, Entry, is_finite

CONFIG = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# What may be set without changing W + scale * B A. All else that is set is refused, as what later versions of peft add.
KNOWN = """
    auto_mapping base_model_name_or_path bias ensure_weight_tying eva_config exclude_modules
    fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout
    megatron_core merge_weights peft_type peft_version qalora_group_size r revision target_modules task_type use_rslora
"""
STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")  # those that leave the base model as it is


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


def merge(folder: Path, weights: Mapping[str, Entry], mapped: bool) -> dict[str, Computed]:
    """Return the weights that an adapter changes, in our names; raises WeightsError."""
    config = read_json(folder / CONFIG)
    rank, scale = _rank_and_scale(config, folder / CONFIG)
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise WeightsError(f"{folder}: expected {' or '.join(WEIGHT_FILES)} beside {CONFIG}, found neither")
    merged: dict[str, Computed] = {}
    for name, parts in _pairs(read_file(files[0]).tensors, files[0]).items():
        a, b, weight = parts.get("A"), parts.get("B"), weights.get(name)
        if a is None or b is None or weight is None:
            raise WeightsError(f"{files[0]}: {name}: expected lora_A, lora_B and such a weight in the base model")
        shape = tuple(weight.shape)
        if len(shape) != 2 or [tuple(a.shape), tuple(b.shape)] != [(rank, shape[1]), (shape[0], rank)]:
            raise WeightsError(
                f"{files[0]}: {name}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit {shape} "
                f"with the rank {rank} of {CONFIG}"
            )
        merged[name] = _sum(weight, a, b, scale)
        if not is_finite(merged[name], mapped):
            raise WeightsError(f"{files[0]}: {name}: holds NaN or infinity when it is added to the base model")
    return merged


def _sum(weight: Entry, a: Tensor, b: Tensor, scale: float) -> Computed:
    """Return weight + scale * b a, rounded to the weight's type."""

    def rows(begin: int, end: int) -> Tensor:
        base = weight[begin:end] if isinstance(weight, Tensor) else weight.rows(begin, end)
        return (base.float() + scale * (b[begin:end].float() @ a.float())).to(weight.dtype)

    return Computed(weight.shape, weight.dtype, rows, (weight,) if isinstance(weight, Tensor) else weight.sources)


def _rank_and_scale(config: dict[str, Any], path: Path) -> tuple[int, float]:
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: expected peft_type LORA, found {config.get('peft_type')!r}")
    found = [name for name, value in config.items() if value and name not in KNOWN.split()]
    found += [f"init_lora_weights {start!r}" for start in [config.get("init_lora_weights")] if start not in STARTS]
    found += [f"bias {bias!r}" for bias in [config.get("bias")] if bias not in (None, "none")]
    if found:
        raise WeightsError(f"{path}: {found[0]} is not supported: merge the adapter with peft's merge_and_unload first")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= 1 << 20:
        raise WeightsError(f"{path}: r: expected a whole number above 0, the rank, found {rank!r}")
    if not isinstance(alpha, (int, float)) or not abs(alpha) <= 1 << 20:
        raise WeightsError(f"{path}: lora_alpha: expected a number, found {alpha!r}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(stored: Any, path: Path) -> dict[str, dict[str, Tensor]]:
    """Return our name of each touched weight -> its A (rank, in) and B (out, rank)."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        found = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if found is None or not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: expected lora_A and lora_B of linear layers alone, found {name}")
        check_dense(f"{path}: {name}", tensor)
        pair = pairs.setdefault(f"{WRAPPERS.sub('', found[1])}.weight", {})
        if found[2] in pair:
            raise WeightsError(f"{path}: {name}: stored twice under different names")
        pair[found[2]] = tensor
    if not pairs:
        raise WeightsError(f"{path}: holds no tensors")
    return pairs

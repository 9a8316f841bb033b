"""Matrices in fewer bits, and in the panels that the native decoder reads.

int8: one scale per row. int4: whole numbers from -8 to 7 with one scale for each GROUP inputs of a row. A matrix is
(outputs, inputs), as in torch.nn.Linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

FORMS = ("float32", "bfloat16", "int8", "int4")
GROUP = 32  # inputs that share a scale in int4
LANES, ALIGN = 16, 64  # outputs of a panel; inputs are padded to a multiple of ALIGN
TOGETHER = 4096  # rows that are rounded at once, so that a large matrix is not copied several times


@dataclass(frozen=True)
class Panels:
    """A matrix cut into panels of 16 outputs, as kernels/decode.cpp describes them.

    `weight` is (panels, inputs / g, 16, g), both padded with zeros, where g is 1 for float32, 2 for bfloat16 and 4 for
    int8; for int4 it is (panels, inputs / 8, 16, 4), bytes whose low half belongs to the first four of eight inputs.
    `scale` is (panels * 16) float32 for int8 and (panels, inputs / 32, 16) bfloat16 for int4; `sum` is 128 times the
    sum of each row of int8.
    """

    weight: Tensor
    scale: Tensor | None = None
    sum: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts that are there, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Round to int8 (rows, columns) with one scale per row (rows, 1), a few rows at a time."""
    rounded = torch.empty(matrix.shape, dtype=torch.int8)
    scales = torch.empty(matrix.size(0), 1)
    for rows, scale, part in zip(rounded.split(TOGETHER), scales.split(TOGETHER), matrix.split(TOGETHER), strict=True):
        part = part.float()
        scale.copy_((part.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-12))
        rows.copy_((part / scale).round())
    return rounded, scales


def int4_scales(groups: Tensor) -> Tensor:
    """Return the scale of each group (..., GROUP) -> (..., 1): the number of the largest magnitude becomes -8."""
    furthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (furthest / -8).bfloat16().float()
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def int4_groups(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Round to whole numbers from -8 to 7 (rows, columns) with a scale per GROUP columns (rows, columns / GROUP)."""
    groups = matrix.float().unflatten(1, (-1, GROUP))
    scale = int4_scales(groups)
    return (groups / scale).round().clamp(-8, 7).flatten(1).to(torch.int8), scale.squeeze(-1)


def int4_compensated(matrix: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Round as `int4_groups` does, but let the columns to the right make up for the error of each (GPTQ).

    `matrix` is padded; `moments` (columns, columns) are the summed products of its inputs.
    """
    matrix, columns = matrix.float().clone(), matrix.size(1)
    moments = moments.clone()
    diagonal = moments.diagonal()
    # Ten times the damping of the paper: with few texts to see the inputs on, errors in other texts are half as large.
    diagonal += 0.1 * diagonal.mean() + 1e-8
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    numbers, scales = torch.empty_like(matrix, dtype=torch.int8), []
    for begin in range(0, columns, GROUP):
        group = matrix[:, begin : begin + GROUP]
        scale, errors = int4_scales(group)[:, 0], torch.empty_like(group)
        for column in range(GROUP):
            at = begin + column
            rounded = (group[:, column] / scale).round().clamp(-8, 7)
            errors[:, column] = (group[:, column] - rounded * scale) / factor[at, at]
            group[:, column:] -= errors[:, column, None] * factor[at, at : begin + GROUP]
            numbers[:, at] = rounded.to(torch.int8)
        matrix[:, begin + GROUP :] -= errors @ factor[begin : begin + GROUP, begin + GROUP :]
        scales.append(scale)
    return numbers, torch.stack(scales, dim=1)


def padded(matrix: Tensor) -> Tensor:
    """Add rows of zeros up to a multiple of LANES and columns up to a multiple of ALIGN."""
    return F.pad(matrix, (0, -matrix.size(1) % ALIGN, 0, -matrix.size(0) % LANES))


def _in_panels(matrix: Tensor, group: int) -> Tensor:
    """Reorder (outputs, inputs) as (panels, inputs / group, 16, group)."""
    return matrix.unflatten(0, (-1, LANES)).unflatten(2, (-1, group)).transpose(1, 2).contiguous()


def pack(matrix: Tensor, form: str) -> Panels:
    """Round a matrix to `form`, one of FORMS, and cut it into panels."""
    if form == "int8":
        return pack_int8(*int8_rows(matrix))
    if form == "int4":
        return pack_int4(*int4_groups(padded(matrix)))
    dtype, group = (torch.float32, 1) if form == "float32" else (torch.bfloat16, 2)
    return Panels(_in_panels(padded(matrix.to(dtype)), group))


def pack_int8(rows: Tensor, scale: Tensor) -> Panels:
    """Cut int8 rows and their scales (rows, 1) into panels."""
    rows = padded(rows)
    total = rows.sum(1, dtype=torch.int32) * 128
    return Panels(_in_panels(rows, 4), F.pad(scale.flatten().float(), (0, -scale.numel() % LANES)), total)


def pack_int4(numbers: Tensor, scale: Tensor) -> Panels:
    """Cut numbers from -8 to 7, padded, and their scales (rows, columns / GROUP) into panels."""
    eights = _in_panels((numbers + 8).to(torch.uint8), 4)
    both = eights[:, 0::2] | eights[:, 1::2] << 4
    return Panels(both, scale.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous().bfloat16())


def unpack(panels: Panels, form: str, outputs: int, inputs: int) -> Tensor:
    """Return the float32 matrix that panels stand for."""
    weight = panels.weight
    if form == "int4":
        halves = torch.stack([weight & 15, weight >> 4], dim=2).flatten(1, 2)
        rows = _rows(halves.to(torch.int8) - 8).float()
        scale = panels.scale.float().transpose(1, 2).flatten(0, 1)  # type: ignore[union-attr]
        rows = (rows.unflatten(1, (-1, GROUP)) * scale.unsqueeze(-1)).flatten(1)
    else:
        rows = _rows(weight).float()
        if panels.scale is not None:
            rows = rows * panels.scale.unsqueeze(1)
    return rows[:outputs, :inputs].contiguous()


def rounded(matrix: Tensor, form: str) -> Tensor:
    """Return the float32 matrix that is left of one that is rounded to `form`."""
    return unpack(pack(matrix, form), form, *matrix.shape)


def is_packed(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight is kept in panels: every matrix but the embedding of positions, of which one row is read."""
    return len(shape) == 2 and name != "wpe.weight"


def form_for(name: str, form: str) -> str:
    """Return the form of one matrix: the embedding and the head keep 8 bits where the others have 4."""
    return "int8" if form == "int4" and name in ("wte.weight", "lm_head.weight") else form


def pack_shapes(shape: Sequence[int], form: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shapes and types of the panels of a matrix in int8 or int4."""
    panels, inputs = -(-shape[0] // LANES), -(-shape[1] // ALIGN) * ALIGN
    if form == "int4":
        scale = ((panels, inputs // GROUP, LANES), torch.bfloat16)
        return {"weight": ((panels, inputs // 8, LANES, 4), torch.uint8), "scale": scale}
    weight = ((panels, inputs // 4, LANES, 4), torch.int8)
    return {"weight": weight, "scale": ((panels * LANES,), torch.float32), "sum": ((panels * LANES,), torch.int32)}


def packed_size(shape: Sequence[int], form: str) -> int:
    """Return the bytes that the panels of a matrix take, with room for alignment."""
    outputs, inputs = -(-shape[0] // LANES) * LANES, -(-shape[1] // ALIGN) * ALIGN
    bits = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4 + 16 / GROUP}[form]
    return int(outputs * inputs * bits / 8) + 8 * outputs + 3 * 64


def _rows(weight: Tensor) -> Tensor:
    """Undo `_in_panels`."""
    return weight.transpose(1, 2).flatten(2).flatten(0, 1)

r"""How control points are kept on disk: ``float32``, ``bfloat16``, or ``uint8`` with a scale for
every point of every row.

A byte q stands for :math:`l + s\,q` with l the least number of that point and s a 255th of its
range, so a number is off by at most :math:`s / 2`, a 510th of the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.records import CurveRecipe
from bezierdistill.settings import Points

LEVELS = 255
CACHE = 2**17  # numbers at once


def encode(points: Tensor, kept: Points) -> dict[str, Tensor]:
    """The tensors of points ``(rows, n, *shape)``; ``low`` and ``step`` of bytes are (rows, n)."""
    if kept != "uint8":
        return {"points": points.to(getattr(torch, kept))}
    flat = points.float().flatten(2)
    low, high = flat.amin(2), flat.amax(2)
    step = high / LEVELS - low / LEVELS  # the range itself may be too large a number
    levels = (flat - low[..., None]).div_(torch.where(step > 0, step, 1.0)[..., None])
    kept_levels = levels.round_().clamp_(0, LEVELS).to(torch.uint8).reshape(points.shape)
    return {"points": kept_levels, "low": low, "step": step}


def decode(tensors: Mapping[str, Tensor], rows: Tensor | None) -> Tensor:
    """Some rows of what :func:`encode` gave, or all, in single precision."""
    if rows is not None:
        tensors = {k: x.index_select(0, rows) for k, x in tensors.items() if k != "cond"}
    points = tensors["points"]
    if points.dtype != torch.uint8:
        return points.float()
    size = (*points.shape[:2], *[1] * (points.ndim - 2))
    low, step = tensors["low"].reshape(size), tensors["step"].reshape(size)
    return points.float().mul_(step).add_(low)


@dataclass(frozen=True)
class Packed:
    """Rows as they are kept: the tensors to write, and the greatest error of a number."""

    tensors: Mapping[str, Tensor]
    error: float

    def __len__(self) -> int:
        return len(self.tensors["points"])


def pack(points: Tensor, kept: Points, cond: Tensor | None = None) -> Packed:
    """Rows ``(rows, n, *shape)`` and conditions ``(rows, C)`` as kept, a few at a time."""
    parts, error = [], 0.0
    for part in points.float().split(max(1, CACHE // max(1, prod(points.shape[1:])))):
        tensors = encode(part, kept)
        if kept != "float32":
            off = float((decode(tensors, None) - part).abs().amax()) if len(part) else 0.0
            if not math.isfinite(off):
                told = f"points reach {float(part.abs().amax()):.3g}, too far to be kept as {kept}"
                raise UserError(f"{told}: expected --points float32")
            error = max(error, off)
        parts.append(tensors)
    # Numbers of rows of a table come in double precision, which holds all of them exactly.
    kind = torch.float64 if cond is not None and cond.dtype == torch.float64 else torch.float32
    given = {} if cond is None else {"cond": cond.to(kind)}
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Packed(tensors | given, error)


def joined(parts: list[Packed]) -> Packed:
    """Packed rows one after the other."""
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    return Packed(tensors, max(part.error for part in parts))


def layout(recipe: CurveRecipe) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Data type and shape of one row of every tensor of a shard."""
    points = recipe.stored_points
    found = {"points": (getattr(torch, recipe.points), (points, *recipe.shape))}
    if recipe.points == "uint8":
        found |= {"low": (torch.float32, (points,)), "step": (torch.float32, (points,))}
    size, kind = recipe.conditions.size, cond_dtype(recipe)
    return found | ({"cond": (kind, (size,))} if size else {})


def cond_dtype(recipe: CurveRecipe) -> torch.dtype:
    """Number type of conditions: double precision for rows of a table, which it holds exactly."""
    return torch.float32 if recipe.conditions.rows is None else torch.float64


def row_bytes(recipe: CurveRecipe) -> int:
    """Bytes of a row on disk."""
    return sum(dtype.itemsize * prod(size) for dtype, size in layout(recipe).values())

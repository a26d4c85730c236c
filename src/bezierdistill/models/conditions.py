"""The conditions of rows: class labels as one-hot vectors, vectors, or rows of a table, drawn or
given, and a guidance scale beside them where it is an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bezierdistill.data import one_hot, parse_labels
from bezierdistill.errors import UserError
from bezierdistill.networks.given import as_tensors, leaves, map_tensors
from bezierdistill.noise import Stream, indices
from bezierdistill.noise import labels as noise_labels
from bezierdistill.records import Conditions

Label = int | str


def draw_condition(
    given: Conditions,
    rows: range,
    seed: int,
    stream: Stream,
    labels: Sequence[Label] | None,
    vectors: Any,
    guidance_scale: float | None,
) -> Any:
    """The conditions of rows; see :meth:`~bezierdistill.Model.condition`."""
    if labels is not None and vectors is not None:
        raise UserError("labels and conditions are both given, expected one of them")
    if not given.size:
        if labels is not None or vectors is not None or guidance_scale is not None:
            raise UserError(
                "labels, conditions or a guidance scale are given, the model was trained"
                " without conditions: expected none"
            )
        return None
    size = given.size - (given.guidance_range is not None)
    if given.rows is not None:
        _with_scale(given, torch.empty(0), guidance_scale)
        return _table_rows(given.rows, rows, seed, stream, labels, vectors)
    if vectors is not None:
        if vectors.ndim != 2 or vectors.shape[1] != size or len(vectors) < rows.stop:
            raise UserError(
                f"conditions have shape {vectors.shape}, expected ({rows.stop}, {size})"
            )
        cond = torch.as_tensor(vectors[rows.start : rows.stop], dtype=torch.float32)
    else:
        cond = one_hot(draw_labels(given, rows, seed, stream, labels), size)
    return _with_scale(given, cond, guidance_scale)


def draw_labels(
    given: Conditions,
    rows: range,
    seed: int,
    stream: Stream,
    labels: Sequence[Label] | None,
) -> Tensor:
    """The class labels of rows; see :meth:`~bezierdistill.Model.labels`."""
    frequencies = given.frequencies
    if frequencies is None:
        raise UserError(
            "this model needs condition vectors and has no class labels: pass --conditions"
        )
    if labels is None:
        return noise_labels(seed, stream, rows, frequencies)
    if not len(labels):
        raise UserError("labels are empty, expected one or more, or none given at all")
    known = given.names or tuple(map(str, range(len(frequencies))))
    numbers = torch.tensor(parse_labels(labels, known))
    return numbers[torch.arange(rows.start, rows.stop) % len(numbers)]


def _table_rows(
    count: int,
    rows: range,
    seed: int,
    stream: Stream,
    labels: Sequence[Label] | None,
    values: Any,
) -> Any:
    """Numbers of rows of the table ``(len(rows), 1)``, float64, or the values given instead.

    A single number per row has the form of a row number, so that it cannot be given instead.
    """
    if labels is not None:
        raise UserError("labels are given, the conditions are rows of a table: expected rows")
    if values is None:
        drawn = torch.from_numpy(indices(seed, stream, rows, count))
        return drawn.double()[:, None]
    values = as_tensors(values)
    one = isinstance(values, Tensor)
    if not one or values.ndim != 1 or values.is_floating_point() or values.dtype == torch.bool:
        sizes = [len(part) if part.ndim else 0 for part in leaves(values).values()]
        if min(sizes) < rows.stop or (one and values.shape[1:] == (1,)):
            told = f"shape {tuple(values.shape)}" if one else f"{min(sizes)} rows"
            raise UserError(
                f"conditions have {told}, expected row numbers ({rows.stop},), whole, or"
                f" {rows.stop} rows of values of more than one number each"
            )
        return map_tensors(values, lambda part: part[rows.start : rows.stop])
    if len(values) < rows.stop or values.min() < 0 or values.max() >= count:
        raise UserError(
            f"conditions are {len(values)} rows from {values.min()} to {values.max()}, expected"
            f" {rows.stop} from 0 to {count - 1}"
        )
    return values[rows.start : rows.stop].double()[:, None]


def _with_scale(given: Conditions, cond: Tensor, guidance_scale: float | None) -> Tensor:
    if given.guidance_range is None:
        if guidance_scale is not None:
            raise UserError(
                f"guidance scale is {guidance_scale:g}, the model takes none as an input:"
                " expected none"
            )
        return cond
    low, high = given.guidance_range
    scale = (low + high) / 2 if guidance_scale is None else guidance_scale
    if not low <= scale <= high:
        raise UserError(
            f"guidance scale is {scale:g}, the student was distilled for {low:g} to {high:g}"
        )
    return torch.cat([cond, torch.full((len(cond), 1), scale)], 1)

"""Conditions of any form: what a user's module is given in the place of our numbers.

Everywhere else a condition is a tensor ``(B, C)`` of numbers per row. A user's module may want an
index, a vector, a sequence of embeddings, a dictionary of tensors. :class:`Classes` turns our
one-hot vectors into indices; :class:`Table` looks conditions up by the number of their row, so that
stores and batches hold a number and not the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from bezierdistill.errors import UserError


class Given(Protocol):
    """What a module is given for ``cond``; ``cond`` None is no condition, of ``rows`` rows."""

    def __call__(self, cond: Any, rows: int) -> Any:
        """The condition of every row, in the module's own form."""
        ...


@dataclass(frozen=True)
class AsIs:
    """Conditions as they are: vectors ``(B, C)``, or none."""

    def __call__(self, cond: Any, rows: int) -> Any:
        """See :class:`Given`."""
        return cond


@dataclass(frozen=True)
class Classes:
    """Class labels as indices ``(B,)``, int64.

    Args:
        count: number of classes.
        none: what stands for no class: the index of a class of its own, or None.
    """

    count: int
    none: int | None = None

    def __call__(self, cond: Any, rows: int) -> Any:
        """See :class:`Given`."""
        if cond is None:
            return None if self.none is None else torch.full((rows,), self.none)
        if not isinstance(cond, Tensor) or cond.ndim != 2:
            return cond
        dropped, labels = (cond == 0).all(1), cond.argmax(1)
        if self.none is not None:
            return labels.masked_fill(dropped, self.none)
        if bool(dropped.any()):
            raise UserError(
                "some rows have no class and others have one: give Teacher(..., none=), the index"
                " of a class of its own"
            )
        return labels


class Table:
    """Conditions by the number of their row.

    Args:
        values: an array or tensor ``(N, ...)``, a dictionary of these, or a function
            ``values(rows)`` of row numbers ``(B,)``, int64, on the CPU, that returns what the
            module is given.
        count: number of rows N; needed for a function.
        none: what stands for no condition, for guidance: one row of such values, a function of the
            number of rows, or None.

    Raises:
        UserError: if the parts of a dictionary have different numbers of rows, there are none or
            fewer than the count, they are no numbers, ``none`` is no row of them, or a function
            comes without a count.

    Example:
        >>> table = Table({"text": torch.arange(6.0).reshape(3, 2)}, none={"text": torch.zeros(2)})
        >>> table(torch.tensor([[2.0], [0.0]]), 2)
        {'text': tensor([[4., 5.],
                [0., 1.]])}
    """

    def __init__(
        self,
        values: Any,
        count: int | None = None,
        none: Any = None,
    ) -> None:
        self.values, self.none = as_tensors(values), as_tensors(none)
        if not callable(self.values):
            parts = leaves(self.values)
            sizes = {len(part) if part.ndim else 0 for part in parts.values()}
            if len(sizes) != 1:
                raise UserError(
                    f"conditions have {sorted(sizes)} rows, expected one number for all parts"
                )
            if count is not None and count > max(sizes):
                raise UserError(f"count is {count}, the table has {max(sizes)} rows: leave it out")
            count = sizes.pop() if count is None else count
            wanted = {name: tuple(part.shape[1:]) for name, part in parts.items()}
            if not (none is None or callable(none)) and _shapes(self.none) != wanted:
                raise UserError(
                    f"none has shape {_told(_shapes(self.none))}, expected one row of the table,"
                    f" {_told(wanted)}"
                )
        if count is None or count < 1:
            given = "a function" if callable(self.values) else "a table"
            raise UserError(
                f"conditions are {given} of {count} rows: expected Table(values, count=...) of 1"
                " or more"
            )
        self.count = count

    @property
    def fingerprint(self) -> str:
        """What it holds, for names and digests."""
        from bezierdistill.objects import fingerprint

        return fingerprint([self.count, self.values, self.none])

    def __call__(self, cond: Any, rows: int) -> Any:
        """See :class:`Given`; ``cond`` are row numbers ``(B, 1)``, or values, which stay.

        Raises:
            UserError: if a number is none of a row, where that can be told without waiting for the
                device.
        """
        if cond is None:
            if callable(self.none):
                return self.none(rows)
            return map_tensors(self.none, lambda part: part.expand(rows, *part.shape))
        if not isinstance(cond, Tensor) or cond.ndim != 2 or cond.shape[1] != 1:
            return cond
        index = cond[:, 0].long()
        if index.device.type == "cpu" and bool(((index < 0) | (index >= self.count)).any()):
            raise UserError(
                f"conditions are rows {float(cond.min()):g} to {float(cond.max()):g} of a table,"
                f" expected 0 to {self.count - 1}"
            )
        if callable(self.values):
            return self.values(index.cpu())  # which may be of numpy, or of a file
        return map_tensors(self.values, lambda part: part[index.to(part.device)])


def as_given(conditions: Any, none: Any) -> Given:
    """What a user says of conditions, as :class:`Given`.

    Args:
        conditions: None; a number of classes; names of classes; a table (array, tensor, dictionary
            of these, :class:`Table`).
        none: what stands for no condition.

    Raises:
        UserError: on fewer than one class, names that are no text or not different, a ``none`` that
            would have no effect, or what :class:`Table` rejects.
    """
    if conditions is None or isinstance(conditions, Table):
        if none is not None:
            where = "without conditions" if conditions is None else "beside a Table"
            raise UserError(f"none is given {where}, expected Table(values, none=...)")
        return AsIs() if conditions is None else conditions
    if not isinstance(conditions, Integral | list | tuple):
        return Table(conditions, none=none)
    names = [] if isinstance(conditions, Integral) else list(conditions)
    count = int(conditions) if isinstance(conditions, Integral) else len(names)
    if count < 1 or isinstance(conditions, bool):
        raise UserError(f"conditions are {conditions!r}, expected one class or more")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(
            f"conditions are {str(conditions)[:80]}, expected different names of classes, or a"
            " table as an array or tensor"
        )
    if not isinstance(none, Integral | None) or isinstance(none, bool):
        raise UserError(f"none is {str(none)[:80]}, expected the index of a class, or None")
    return Classes(count, none if none is None else int(none))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with every tensor in it changed; dictionaries, lists and tuples are gone through."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part, change) for part in value)
    return value


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """What dictionaries hold, by the path of their keys."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        path: leaf
        for key, part in value.items()
        for path, leaf in leaves(part, f"{name}.{key}").items()
    }


def as_tensors(value: Any) -> Any:
    """Arrays and numbers as tensors.

    Raises:
        UserError: if they are none, such as text.
    """
    if value is None or callable(value):
        return value
    if isinstance(value, Mapping):
        return {key: as_tensors(part) for key, part in value.items()}
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"conditions are no numbers ({' '.join(str(error).split())[:100]}): expected arrays,"
            " or Table(function, count), where the function makes them of the numbers of rows"
        ) from None


def _shapes(value: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(part.shape) for name, part in leaves(value).items()}


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name[1:]} {shape}".strip() for name, shape in shapes.items())

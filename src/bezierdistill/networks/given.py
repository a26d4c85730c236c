"""Conditions of any form: what a user's module is given in the place of our numbers.

Everywhere else a condition is a tensor ``(B, C)`` of numbers per row. A user's module may want an
index, a vector, a sequence of embeddings, a dictionary of tensors. :class:`Classes` turns our
one-hot vectors into indices; :class:`Table` looks conditions up by the number of their row, so that
stores and batches hold a number and not the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        return cond.argmax(1) if isinstance(cond, Tensor) and cond.ndim == 2 else cond


class Table:
    """Conditions by the number of their row.

    Args:
        values: an array or tensor ``(N, ...)``, a dictionary of these, or a function
            ``values(rows)`` of row numbers ``(B,)``, int64, that returns what the module is given.
        count: number of rows N; needed for a function.
        none: what stands for no condition, for guidance: one row of such values, a function of the
            number of rows, or None.

    Raises:
        UserError: if the parts of a dictionary have different numbers of rows, there are none, or
            a function comes without a count.

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
        self.values, self.none = _tensors(values), _tensors(none)
        if not callable(self.values):
            sizes = {len(part) for part in _leaves(self.values)}
            if len(sizes) != 1:
                raise UserError(
                    f"conditions have {sorted(sizes)} rows, expected one number for all parts"
                )
            count = sizes.pop() if count is None else count
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

        values = [str(self.count)] if callable(self.values) else self.values
        return fingerprint([values, None if callable(self.none) else self.none])

    def __call__(self, cond: Any, rows: int) -> Any:
        """See :class:`Given`; ``cond`` are row numbers ``(B, 1)``, or values, which stay."""
        if cond is None:
            if callable(self.none):
                return self.none(rows)
            return map_tensors(self.none, lambda part: part.expand(rows, *part.shape))
        if not isinstance(cond, Tensor) or cond.ndim != 2 or cond.shape[1] != 1:
            return cond
        index = cond[:, 0].long()
        if callable(self.values):
            return self.values(index)
        return map_tensors(self.values, lambda part: part[index.to(part.device)])


def as_given(conditions: Any, none: Any) -> Given:
    """What a user says of conditions, as :class:`Given`.

    Args:
        conditions: None; a number of classes; names of classes; a table (array, tensor, dictionary
            of these, :class:`Table`).
        none: what stands for no condition.

    Raises:
        UserError: on fewer than one class, or what :class:`Table` rejects.
    """
    if conditions is None:
        return AsIs()
    if isinstance(conditions, Table):
        return conditions
    if isinstance(conditions, int | list | tuple):
        count = conditions if isinstance(conditions, int) else len(conditions)
        if count < 1:
            raise UserError(f"conditions are {conditions!r}, expected one class or more")
        return Classes(count, none)
    return Table(conditions, none=none)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with every tensor in it changed; dictionaries, lists and tuples are gone through."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part, change) for part in value)
    return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [value]


def _tensors(value: Any) -> Any:
    """Arrays and numbers as tensors."""
    if value is None or callable(value):
        return value
    if isinstance(value, Mapping):
        return {key: _tensors(part) for key, part in value.items()}
    return torch.as_tensor(value)

"""What a data set is here: training batches, and distinct real samples of three disjoint sides,
with their conditions if there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data.scaling import Scaling
from bezierdistill.errors import UserError

Split = Literal["train", "valid", "test"]


class Data(Protocol):
    """A data set; all states are in model units (see :class:`~bezierdistill.data.scaling.Scaling`).

    A condition is a vector of ``condition_size`` numbers a state; class labels are one-hot vectors.
    """

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state: ``(D,)`` or ``(C, H, W)``."""
        ...

    @property
    def scaling(self) -> Scaling:
        """The way to own units."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; 0 if states have no class labels."""
        ...

    @property
    def condition_size(self) -> int:
        """Numbers of a condition; 0 if states have none."""
        ...

    def count(self, split: Split) -> int | None:
        """Number of distinct states of a side; None if endless."""
        ...

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Training states ``(count, *shape)``, drawn independently, and their conditions ``(count,
        condition_size)`` or None.
        """
        ...

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """Distinct states ``(count, *shape)`` of a side, a function of the seed alone.

        Raises:
            UserError: if the side has fewer.
        """
        ...

    def conditions(self, count: int, seed: int, split: Split) -> Tensor | None:
        """The conditions ``(count, condition_size)`` of the states that :meth:`real` gives."""
        ...


@dataclass(frozen=True)
class ArrayData:
    """Finite real samples in own units, ``(N, ...)``: to train on, to choose settings by, and to
    judge by.

    Args:
        name: what the user called it.
        train: the training side.
        valid: the side to choose settings by.
        test: the side to judge by.
        scaling: the way to model units.
        given: the conditions of each side: labels ``(N,)`` of integers, or vectors ``(N, C)`` of
            floats; empty if there are none.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    scaling: Scaling
    given: Mapping[Split, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state in model units."""
        return tuple(self.scaling.encode(self.train[:1]).shape[1:])

    @property
    def classes(self) -> int:
        """See :class:`Data`."""
        return (
            1 + max(int(labels.max()) for labels in self.given.values())
            if self.given and self.given["train"].ndim == 1
            else 0
        )

    @property
    def condition_size(self) -> int:
        """See :class:`Data`."""
        return self.classes or (self.given["train"].shape[1] if self.given else 0)

    def count(self, split: Split) -> int | None:
        """See :class:`Data`."""
        return len(self.side(split))

    def side(self, split: Split) -> np.ndarray:
        """All states of a side in own units."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        rows = torch.randint(len(self.train), (count,), generator=generator).numpy()
        return self.scaling.encode(self.train[rows]), self._conditions("train", rows)

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        return self.scaling.encode(self.side(split)[self._rows(count, seed, split)])

    def conditions(self, count: int, seed: int, split: Split) -> Tensor | None:
        """See :class:`Data`."""
        return self._conditions(split, self._rows(count, seed, split))

    def _rows(self, count: int, seed: int, split: Split) -> np.ndarray:
        size = len(self.side(split))
        if count > size:
            raise UserError(f"{count} {split} samples of {self.name} asked for, it has {size}")
        return np.random.default_rng(seed).permutation(size)[:count]

    def _conditions(self, split: Split, rows: np.ndarray) -> Tensor | None:
        if not self.given:
            return None
        own = torch.from_numpy(self.given[split][rows])
        return one_hot(own, self.classes) if own.ndim == 1 else own.float()


@dataclass(frozen=True)
class EndlessData:
    """A law with endless fresh samples and no conditions; all sides are fresh draws.

    Args:
        name: what the user called it.
        shape: shape of one state.
        scaling: the way to own units.
        draw: ``draw(count, generator)`` gives states in own units.
    """

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    draw: Callable[[int, torch.Generator], Tensor]
    classes: int = 0
    condition_size: int = 0

    def count(self, split: Split) -> int | None:
        """See :class:`Data`."""
        return None

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        return self.scaling.encode(self.draw(count, generator)), None

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        return self.batch(
            count, torch.Generator().manual_seed(3 * seed + ("train", "valid", "test").index(split))
        )[0]

    def conditions(self, count: int, seed: int, split: Split) -> Tensor | None:
        """See :class:`Data`."""
        return None


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels ``(N,)`` as float32 vectors ``(N, classes)``.

    Raises:
        UserError: if a label is not in ``0 .. classes - 1``.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, expected 0 to"
            f" {classes - 1}"
        )
    return torch.nn.functional.one_hot(labels.long(), classes).float()

"""What a data set is here: training batches, and distinct real samples of three disjoint sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data.scaling import Scaling

Split = Literal["train", "valid", "test"]


class Data(Protocol):
    """A data set; all states are in model units (see :class:`~bezierdistill.data.scaling.Scaling`)."""

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

    def count(self, split: Split) -> int | None:
        """Number of distinct states of a side; None if endless."""
        ...

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """Training states ``(count, *shape)``, drawn independently."""
        ...

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """Distinct states ``(count, *shape)`` of a side, a function of the seed alone.

        Raises:
            ValueError: if the side has fewer.
        """
        ...


@dataclass(frozen=True)
class ArrayData:
    """Finite real samples in own units, ``(N, ...)``: to train on, to choose settings by, and to judge by."""

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    scaling: Scaling

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state in model units."""
        return tuple(self.scaling.encode(self.train[:1]).shape[1:])

    def count(self, split: Split) -> int | None:
        """See :class:`Data`."""
        return len(self._side(split))

    def _side(self, split: Split) -> np.ndarray:
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """See :class:`Data`."""
        return self.scaling.encode(self.train[torch.randint(len(self.train), (count,), generator=generator).numpy()])

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        side = self._side(split)
        if count > len(side):
            raise ValueError(f"{count} {split} samples of {self.name} asked for, it has {len(side)}")
        order = np.random.default_rng(seed).permutation(len(side))[:count]
        return self.scaling.encode(side[order])


@dataclass(frozen=True)
class EndlessData:
    """A law with endless fresh samples; both sides are fresh draws.

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

    def count(self, split: Split) -> int | None:
        """See :class:`Data`."""
        return None

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """See :class:`Data`."""
        return self.scaling.encode(self.draw(count, generator))

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        return self.batch(count, torch.Generator().manual_seed(3 * seed + ("train", "valid", "test").index(split)))

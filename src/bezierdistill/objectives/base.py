"""What an objective is: losses of named networks on a batch, and the network passes that they cost.

:class:`~bezierdistill.training.loop.Trainer` updates a network by its loss before it asks for the
next one. Most objectives train one network, by their ``loss`` (:class:`SingleObjective`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve, expand_time
from bezierdistill.errors import UserError

Nets = Mapping[str, nn.Module]
Losses = Iterator[tuple[str, Tensor]]


class Pairs(NamedTuple):
    """Independent draws of sources and data ``(B, ...)``, and conditions ``(B, C)`` of the data;
    with ``labels`` ``(B,)`` both have that label.
    """

    x0: Tensor
    x1: Tensor
    cond: Tensor | None = None
    labels: Tensor | None = None

    def point(self, t: Tensor) -> Tensor:
        """The states ``(1 - t) x0 + t x1`` at one time per row ``(B,)``."""
        return torch.lerp(self.x0, self.x1, expand_time(t, self.x1))

    def split(self, count: int) -> tuple[Pairs, Pairs]:
        """The first ``count`` rows, and the others."""
        first = (None if part is None else part[:count] for part in self)
        others = (None if part is None else part[count:] for part in self)
        return Pairs(*first), Pairs(*others)  # pyright: ignore[reportArgumentType]


class Curves(NamedTuple):
    """B curves and their conditions ``(B, C)``."""

    curve: BezierCurve
    cond: Tensor | None = None


class Aligned(NamedTuple):
    """B sources ``(B, ...)`` of samples beside N real states, as groups of features ``(N, D)``.

    Args:
        x0: the sources.
        real: the groups of the real states: ``(states,)`` where these are compared themselves.
        cond: conditions ``(B, C)`` of the samples.
        real_cond: conditions ``(N, C)`` of the real states.
        end: where the samples are held ``(B, ...)``, such as the ends of curves.
        turn: number of the batch: which of several samplers is trained.
    """

    x0: Tensor
    real: tuple[Tensor, ...]
    cond: Tensor | None = None
    real_cond: Tensor | None = None
    end: Tensor | None = None
    turn: int = 0


class Balanced(NamedTuple):
    """Lines from noise to generated data beside as many from inverted noise to real data."""

    generated: Curves
    real: Curves


class Objective(Protocol):
    """What networks are trained by."""

    @property
    def cost(self) -> float:
        """Network passes per row of a step: 1 forward, 3 forward and backward."""
        ...

    def losses(self, nets: Nets, batch: Any, generator: torch.Generator, progress: float) -> Losses:
        """The losses of a step, each with the name of the network that is updated by it.

        Args:
            nets: the networks; the first is the one that is wanted.
            batch: what the objective is trained on, such as :class:`Pairs` or :class:`Curves`.
            generator: of every draw.
            progress: share of the training that is done, from 0 up to 1.
        """
        ...


class SingleObjective(ABC):
    """An objective of a single network: the first one."""

    @abstractmethod
    def loss(self, net: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        """The scalar loss of a step; see :meth:`Objective.losses`."""

    def losses(self, nets: Nets, batch: Any, generator: torch.Generator, progress: float) -> Losses:
        """See :class:`Objective`."""
        name, net = next(iter(nets.items()))
        yield name, self.loss(net, batch, generator)


class ScheduledObjective(SingleObjective):
    """An objective of a single network that changes while training goes on."""

    @abstractmethod
    def loss(
        self, net: nn.Module, batch: Any, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        """The scalar loss of a step at a ``progress`` of training in [0, 1]."""

    def losses(self, nets: Nets, batch: Any, generator: torch.Generator, progress: float) -> Losses:
        """See :class:`Objective`."""
        name, net = next(iter(nets.items()))
        yield name, self.loss(net, batch, generator, progress)


def uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    """A number in [0, 1) per row of ``x``, ``(B,)``, in its dtype and on its device."""
    return torch.rand(len(x), generator=generator, device=generator.device).to(x)


def velocity_error(net: nn.Module, batch: Pairs, t: Tensor) -> Tensor:
    """Error ``(B, ...)`` of the velocity at times ``(B,)`` on the lines, against ``x1 - x0``."""
    return net(batch.point(t), t, t, batch.cond) - (batch.x1 - batch.x0)


def count_rows(total: int, share: float, generator: torch.Generator) -> int:
    """Rows of a ``share`` of ``total``, rounded up or down at random: right on average."""
    coin = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return int(share * total + coin.item())


def check_positive(**numbers: float) -> None:
    """Raise ``UserError`` unless every number is positive."""
    for name, value in numbers.items():
        if not value > 0:
            raise UserError(f"{name} is {value}, expected a positive number")

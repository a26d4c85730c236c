r"""Regression along stored Bezier curves: no teacher pass and no simulation, because every target
is closed form.

A flow map is trained on :math:`F(B(s), s, t) \to B(t)`, a velocity on :math:`v(B(t), t) \to B'(t)`.
Which intervals are drawn is the objective: ``end`` (any s, t=1), ``map`` (any s < t), ``knots``
(only the intervals that the sampler will use), ``velocity`` (s = t). On degree-1 curves
``velocity`` is reflow, and ``knots`` 0, 1 is rectified-flow distillation (Liu et al. 2022, arXiv
2209.03003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives.losses import Loss

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
CurveBatch = tuple[BezierCurve, Tensor | None]


@dataclass(frozen=True)
class VelocityDraw:
    """``s = t``, uniform."""

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s`` and ``t``, each ``(count,)``."""
        t = torch.rand(count, generator=generator, device=generator.device)
        return t, t


@dataclass(frozen=True)
class EndDraw:
    """``t = 1`` from ``s = 0`` with probability ``whole``, otherwise from a uniform ``s``."""

    whole: float = 0.75

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s`` and ``t``, each ``(count,)``."""
        s, coin = torch.rand(2, count, generator=generator, device=generator.device)
        return torch.where(coin < self.whole, 0.0, s), torch.ones_like(s)


@dataclass(frozen=True)
class MapDraw:
    """The whole interval with probability ``whole``, otherwise two uniform times in order."""

    whole: float = 0.5

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s`` and ``t``, each ``(count,)``."""
        low, high = torch.rand(2, count, generator=generator, device=generator.device).aminmax(
            dim=0
        )
        whole = torch.rand(count, generator=generator, device=generator.device) < self.whole
        return low.masked_fill_(whole, 0.0), high.masked_fill_(whole, 1.0)


@dataclass(frozen=True)
class KnotsDraw:
    """The intervals between neighbouring knots of one or more samplers, equally often.

    Args:
        schedules: knots of each sampler, from 0 to 1.
    """

    schedules: Sequence[Sequence[float]]

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s`` and ``t``, each ``(count,)``."""
        intervals = torch.tensor(
            [pair for knots in self.schedules for pair in pairwise(knots)], device=generator.device
        )
        pick = torch.randint(len(intervals), (count,), generator=generator, device=generator.device)
        s, t = intervals[pick].unbind(1)
        return s, t


@dataclass(frozen=True)
class EitherDraw:
    """Each row from one of two draws, equally often."""

    first: Draw
    second: Draw

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s`` and ``t``, each ``(count,)``."""
        (s, t), (other_s, other_t) = self.first(count, generator), self.second(count, generator)
        pick = torch.rand(count, generator=generator, device=generator.device) < 0.5
        return torch.where(pick, s, other_s), torch.where(pick, t, other_t)


@dataclass(frozen=True)
class CurveRegression:
    """Train a flow map (or, where ``s = t``, a velocity) on curves.

    Args:
        draw: which intervals.
        metric: distance between prediction and target.
        power: ``p`` of the weight ``(t - s)^-p`` a row; 0 weighs all intervals alike. Not used
            where ``s = t``.
    """

    draw: Draw
    metric: Loss = field(default_factory=Loss)
    power: float = 0.5
    passes = 3

    def loss(self, net: nn.Module, batch: CurveBatch, generator: torch.Generator) -> Tensor:
        """Loss of a batch of curves and their conditions."""
        curve, cond = batch
        s, t = self.draw(curve.points.shape[1], generator)
        s, t = s.to(curve.points), t.to(curve.points)
        if isinstance(self.draw, VelocityDraw):
            return self.metric(net(curve.point(t), t, t, cond), curve.velocity(t))
        weight = (t - s).clamp_min(1e-3) ** -self.power if self.power else None
        start, end = curve.ends(s, t)
        return self.metric(flow_map(net, start, s, t, cond), end, weight)

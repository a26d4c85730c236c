r"""Eulerian map distillation: where the map ends must not change while its start moves along the
teacher's path.

With :math:`F = x + (t - s)\, u(x, s, t)` and the teacher's velocity v at :math:`x_s`,

.. math:: \frac{d}{ds} F(x_s, s, t) = v - u + (t - s) \frac{d}{ds} u, \qquad
          \frac{d}{ds} = v \cdot \nabla_x + \partial_s,

must vanish; at s = t it is flow matching of the teacher, at t = 1 consistency in continuous time.
The loss moves u by that *tangent* g without gradient, :math:`|u - \mathrm{sg}(u + \hat g)|^2`. As
the authors do, the last term of g is warmed up, and :math:`\hat g = g / (|g| + c)`, with the norm
per root component so that c means the same in every dimension.

Their teacher is *autoguided*: a blend of weights :math:`(\lambda, 1 - \lambda)` of a strong and a
weak model (Karras et al. 2024, arXiv 2406.02507), the kind of blend that this library's recipe
simulates. They tell the student a random :math:`\lambda`, here it is fixed; their adversarial end
is left out. For their Lagrangian form see :class:`~bezierdistill.objectives.LagrangianMap`.

Source: Sabour, Fidler & Kreis 2025, *Align your flow: scaling continuous-time flow map
distillation* (arXiv 2506.14603), sections 3.2 to 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import Field, passes_of
from bezierdistill.objectives.base import (
    Pairs,
    ScheduledObjective,
)
from bezierdistill.objectives.intervals import Intervals, MapIntervals
from bezierdistill.objectives.jvp import forward_derivative
from bezierdistill.settings import check_not_negative, check_shares

TWO_TIMES = MapIntervals(0.0)


@dataclass(frozen=True)
class EulerianMap(ScheduledObjective):
    """Distil a teacher's field into its flow map, by the start of the interval.

    Args:
        teacher: the field: a teacher or a blend.
        intervals: where it is trained; by default two uniform times in order.
        warmup: first share of the training, in [0, 1], over which the last term of the tangent
            rises.
        offset: ``c``, >= 0; None leaves tangents as they are.

    Raises:
        UserError: on a setting outside its range.
    """

    teacher: Field
    intervals: Intervals = TWO_TIMES
    warmup: float = 0.1
    offset: float | None = 0.1

    def __post_init__(self) -> None:
        check_shares(warmup=self.warmup)
        check_not_negative(offset=self.offset or 0.0)

    @property
    def cost(self) -> int:
        """Passes per row of a step: the teacher, a value trained through and its derivative."""
        return 4 + passes_of(self.teacher)

    def loss(
        self, net: nn.Module, batch: Pairs, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        """Loss of independent draws at a ``progress`` of training in [0, 1]."""
        s, t = self.intervals.rows(batch.x1, generator)
        x, cond = batch.point(s), batch.cond
        with torch.no_grad():
            v = self.teacher(x, s, cond)
        u, slope = forward_derivative(
            lambda state, time: net(state, time, t, cond), (x, s), (v, torch.ones_like(s))
        )
        warm = min(1.0, progress / self.warmup) if self.warmup else 1.0
        tangent = (v - u + warm * expand_time(t - s, x) * slope).detach()
        if self.offset is not None:
            size = tangent.flatten(1).square().mean(1).sqrt()
            tangent = tangent / expand_time(size + self.offset, x).clamp_min(1e-12)
        return (u - (u + tangent).detach()).square().mean()

r"""Regression along stored Bezier curves: no teacher pass and no simulation, because every target
is closed form.

A flow map is trained on :math:`F(B(s), s, t) \to B(t)`, a velocity (where :math:`s = t`) on
:math:`v(B(t), t) \to B'(t)`. What is learned depends on the intervals: those that end at t=1, any,
those that the sampler will use, or instants. On degree-1 curves instants are reflow, and the knots
0, 1 rectified-flow distillation (Liu et al. 2022, arXiv 2209.03003).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives.base import Curves, SingleObjective
from bezierdistill.objectives.intervals import Intervals
from bezierdistill.objectives.losses import Loss


@dataclass(frozen=True)
class CurveRegression(SingleObjective):
    """Train a flow map (or, at instants, a velocity) on curves.

    Args:
        intervals: which intervals.
        metric: distance between prediction and target.
        power: ``p`` of the weight ``(t - s)^-p`` per row; 0 weighs all intervals alike.

    Raises:
        UserError: on a power where intervals have no length.
    """

    intervals: Intervals
    metric: Loss = field(default_factory=Loss)
    power: float = 0.0
    cost = 3

    def __post_init__(self) -> None:
        if self.power and self.intervals.instants:
            raise UserError(f"power is {self.power} where s = t, expected 0: no length weighs them")

    def loss(self, net: nn.Module, batch: Curves, generator: torch.Generator) -> Tensor:
        """Loss of a batch of curves."""
        curve, cond = batch
        s, t = self.intervals.rows(curve.source, generator)
        if self.intervals.instants:
            return self.metric(net(curve.point(t), t, t, cond), curve.velocity(t))
        weight = (t - s).clamp_min(1e-3) ** -self.power if self.power else None
        start, end = curve.ends(s, t)
        return self.metric(flow_map(net, start, s, t, cond), end, weight)

r"""On-policy curves: the student emits a whole curve, and the teacher is asked along it.

From a state x at s a network emits the control points of the velocity of a curve B over [s, 1]
(:mod:`bezierdistill.networks.curve`). At times :math:`\tau` the teacher tells its velocity at the
student's own point, and the loss is

.. math:: \| B'(\tau) - v(B(\tau),\, s + \tau (1 - s)) \|,

with no gradient through v or :math:`B(\tau)`. Its fixed point is the collocation of the teacher's
ODE within the degree. No path is simulated, nothing is stored, and no error accumulates: one pass of
the student and M of the teacher make a row of training.

The states at s > 0 are points of the student's own curve from the source, as its sampler will meet
them, or of the line to a real state.

Source: the policies of pi-Flow (Chen et al. 2025, arXiv 2510.14974), asked on their own path as in
DAgger (Ross et al. 2011, arXiv 1011.0686); Bezier collocation is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import Field, passes_of
from bezierdistill.objectives.base import Pairs, SingleObjective, check_shares, count_rows
from bezierdistill.objectives.losses import Loss
from bezierdistill.networks.curve import combine, mean_weights, velocity_weights
from bezierdistill.settings import check_counts


@dataclass(frozen=True)
class OnPolicy(SingleObjective):
    """Match the velocity of emitted curves to a teacher's along them.

    Args:
        teacher: the field, such as a blend of several teachers.
        points: control points that the network emits.
        asked: times M at which the teacher is asked for a row, 1 or more, one in each of as many
            even parts of the curve.
        whole: share of rows whose curve starts at the source; the others start at a uniform s.
        metric: distance between velocities.
    """

    teacher: Field
    points: int
    asked: int = 1
    whole: float = 0.75
    metric: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        check_counts(asked=self.asked, points=self.points)
        check_shares(whole=self.whole)

    @property
    def cost(self) -> float:
        """Mean passes per row of a step: later starts need a pass to get there."""
        return 3 + self.asked * passes_of(self.teacher) + (1 - self.whole)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of sources ``(B, ...)``; their data are not used."""
        x, s = self.starts(net, batch, generator)
        emitted = net(x, s, s, batch.cond, whole=True)
        total = torch.zeros((), device=x.device)
        for k in range(self.asked):
            u = torch.rand(len(x), generator=generator, device=generator.device).to(x)
            tau = (k + u) / self.asked
            with torch.no_grad():
                moved = combine(mean_weights(self.points, tau), emitted)
                at = torch.addcmul(x, expand_time(tau * (1 - s), x), moved)
                target = self.teacher(at, s + tau * (1 - s), batch.cond)
            speed = combine(velocity_weights(self.points, tau), emitted)
            total = total + self.metric(speed, target)
        return total / self.asked

    @torch.no_grad()
    def starts(
        self, net: nn.Module, batch: Pairs, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """States ``(B, ...)`` and the times ``(B,)`` at which they are."""
        x, cond = batch.x0, batch.cond
        later = len(x) - count_rows(len(x), self.whole, generator)
        s = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if later:
            s[:later] = torch.rand(later, generator=generator, device=generator.device).to(x)
            zero = torch.zeros_like(s[:later])
            some = None if cond is None else cond[:later]
            mean = net(x[:later], zero, s[:later], some)
            moved = torch.addcmul(x[:later], expand_time(s[:later], x[:later]), mean)
            x = torch.cat([moved, x[later:]])
        return x, s

r"""Flow matching: regress the velocity :math:`x_1 - x_0` at :math:`x_t = (1-t) x_0 + t x_1`.

Source: Lipman et al. 2022 (arXiv 2210.02747); Liu et al. 2022 (arXiv 2209.03003), eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.couplings import Coupling, Independent
from bezierdistill.curves import BezierCurve
from bezierdistill.objectives.base import Pairs, SingleObjective, uniform
from bezierdistill.objectives.losses import Loss


@dataclass(frozen=True)
class FlowMatching(SingleObjective):
    """Train a velocity field on coupled pairs.

    Args:
        coupling: how sources and data are joined.
        metric: distance of the regression; the squared error makes the minimiser the conditional
            mean.
    """

    coupling: Coupling = field(default_factory=Independent)
    metric: Loss = field(default_factory=Loss)
    cost = 3

    def loss(
        self, net: nn.Module, batch: Pairs, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        """Loss of independent draws at uniform times."""
        x0, x1, cond = batch
        pair = self.coupling(x0, x1, cond)
        line = BezierCurve.line(pair.x0, pair.x1)
        t = uniform(x1, generator)
        return self.metric(net(line.point(t), t, t, cond), line.velocity(t))

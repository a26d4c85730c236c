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
        metric: distance; the squared error makes the minimiser the conditional mean.
    """

    coupling: Coupling = field(default_factory=Independent)
    metric: Loss = field(default_factory=Loss)
    cost = 3

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws at uniform times."""
        line = BezierCurve.line(*self.coupling(batch.x0, batch.x1, batch.labels))
        t = uniform(batch.x1, generator)
        return self.metric(net(line.point(t), t, t, batch.cond), line.velocity(t))

r"""Solution flows: mean flows without a derivative of the network.

Between the start s and the end t of an interval lies :math:`l = s + \alpha (t - s)` on the same
line, and

.. math:: u(x_s, s, t) \to \alpha\, (x_1 - x_0) + (1 - \alpha)\, u(x_l, l, t)

without gradient on the right: the first step of the path by the line's velocity, the rest by the
network. :math:`\alpha = 1` is flow matching of the whole interval, :math:`\alpha \to 0` the
mean-flow identity (:mod:`~bezierdistill.objectives.mean_flow`): with the error e over
:math:`\alpha` the loss :math:`\alpha^{-1} |e|^2` has its gradient. :math:`\alpha` falls
exponentially while training goes on. The other rows learn the velocity, on the diagonal.

Both sources have this loss: SoFlow as a consistency of the solution :math:`F(x_s, s, t)`,
alpha-Flow as a family with the shortcut model in it. Shares, the fall from 0.1 to 0.002 and the
adaptive weight are SoFlow's; guidance is left out.

Source: Luo et al. 2025, *SoFlow: solution flow models for one-step generative modeling* (arXiv
2512.15657); Zhang et al. 2025, *AlphaFlow: understanding and improving MeanFlow models* (arXiv
2510.20771).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.objectives.base import (
    Pairs,
    ScheduledObjective,
    check_positive,
    count_rows,
    velocity_error,
)
from bezierdistill.objectives.intervals import LogitNormalIntervals
from bezierdistill.objectives.losses import adaptive
from bezierdistill.settings import check_not_negative, check_shares


@dataclass(frozen=True)
class SolutionFlow(ScheduledObjective):
    """Regress a jump on its own first part and the rest of it.

    Args:
        share: share of the rows that learn jumps, in [0, 1]; the others learn the velocity.
        first, last: share of the interval that is the line's, at the start and at the end of
            training, in (0, 1].
        power: ``p`` of the adaptive weight ``(|e|^2 + c)^-p``, >= 0; zero is the squared error.
        logit_mean, logit_std: of the noise's share at the times, as in
            :class:`~bezierdistill.objectives.MeanFlow`.
        offset: ``c``, positive.

    Raises:
        UserError: on a setting outside its range.
    """

    share: float = 0.25
    first: float = 0.1
    last: float = 0.002
    power: float = 1.0
    logit_mean: float = -0.4
    logit_std: float = 1.0
    offset: float = 1e-3

    def __post_init__(self) -> None:
        check_shares(share=self.share)
        check_not_negative(power=self.power)
        check_positive(logit_std=self.logit_std, offset=self.offset)
        if not (0 < self.first <= 1 and 0 < self.last <= 1):
            given = f"first and last are {self.first} and {self.last}"
            raise UserError(f"{given}, expected shares in (0, 1]")

    @property
    def cost(self) -> float:
        """Network passes per row of a step: 3, and 1 more for the target of a jump."""
        return 3 + self.share

    @property
    def intervals(self) -> LogitNormalIntervals:
        """Where jumps are learnt; velocities are at their starts."""
        return LogitNormalIntervals(self.logit_mean, self.logit_std)

    def part(self, progress: float) -> float:
        """``alpha`` at a ``progress`` in [0, 1]."""
        return self.first * (self.last / self.first) ** progress

    def loss(
        self, net: nn.Module, batch: Pairs, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        """Loss of independent draws at a ``progress`` of training in [0, 1]."""
        jumped, others = batch.split(count_rows(len(batch.x1), self.share, generator))
        part, losses = self.part(progress), list[Tensor]()
        if len(jumped.x1):
            error = self._jump_error(net, jumped, generator, part)
            losses.append(part * self._weighted(error / part))
        if len(others.x1):
            s, _ = self.intervals.rows(others.x1, generator)
            losses.append(self._weighted(velocity_error(net, others, s)))
        return torch.cat(losses).mean()

    def _weighted(self, error: Tensor) -> Tensor:
        return adaptive(error, self.power, self.offset)

    def _jump_error(
        self, net: nn.Module, batch: Pairs, generator: torch.Generator, part: float
    ) -> Tensor:
        s, t = self.intervals.rows(batch.x1, generator)
        between = torch.lerp(s, t, part)
        with torch.no_grad():
            rest = net(batch.point(between), between, t, batch.cond)
            target = torch.lerp(rest, batch.x1 - batch.x0, part)
        return net(batch.point(s), s, t, batch.cond) - target

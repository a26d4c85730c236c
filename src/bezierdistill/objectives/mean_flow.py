r"""Mean flows: learn the average velocity from its derivative along the path, without a teacher or
a simulation.

Differentiating :math:`(t - s)\, u(x_s, s, t) = \int_s^t v(x_r, r)\, dr` by the time s of the state,
along the path, gives the identity

.. math:: u(x_s, s, t) = v + (t - s) \frac{d}{ds} u(x_s, s, t), \qquad
          \frac{d}{ds} = v \cdot \nabla_x + \partial_s.

Its right side, with the line's velocity :math:`v = x_1 - x_0` and without gradient, is the target
of u; at s = t this is flow matching. With the squared error :math:`|e|^2` of a row, the loss is
:math:`|e|^2 / \mathrm{sg}(|e|^2 + c)^p`.

Source: Geng et al. 2025, *Mean flows for one-step generative modeling* (arXiv 2505.13447), eq.
6-11, algorithm 1. The authors' time t' runs from data to noise: their state's time is :math:`1 -
s`, their r is :math:`1 - t`, their v is the negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.objectives.base import (
    Pairs,
    SingleObjective,
    check_positive,
    count_rows,
    velocity_error,
)
from bezierdistill.objectives.intervals import Intervals, LogitNormalIntervals
from bezierdistill.objectives.jvp import forward_derivative
from bezierdistill.objectives.losses import adaptive
from bezierdistill.settings import check_not_negative, check_shares


@dataclass(frozen=True)
class MeanFlow(SingleObjective):
    """Regress the average velocity on the mean-flow identity.

    The defaults are the authors' for ImageNet. For CIFAR-10 they use share 0.75, power 0.75, logit
    mean -2 and deviation 2. A power above 0 draws u from the mean of its noisy target towards the
    target's mode: little in many dimensions, much in few.

    Args:
        share: share of the rows with s < t, in [0, 1]; the others have s = t.
        power: ``p`` of the adaptive weight, >= 0; zero is the squared error.
        logit_mean: mean of the logit of the noise's share ``1 - s``.
        logit_std: its deviation, positive.
        offset: ``c`` of the adaptive weight, positive.

    Raises:
        UserError: on a setting outside its range.
    """

    share: float = 0.25
    power: float = 1.0
    logit_mean: float = -0.4
    logit_std: float = 1.0
    offset: float = 1e-3

    def __post_init__(self) -> None:
        check_shares(share=self.share)
        check_not_negative(power=self.power)
        check_positive(logit_std=self.logit_std, offset=self.offset)

    @property
    def cost(self) -> float:
        """Network passes per row of a step: 3, and 1 more for the derivative where s < t."""
        return 3 + self.share

    @property
    def intervals(self) -> Intervals:
        """Where s < t; the others are at their s, as in the authors' code."""
        return LogitNormalIntervals(self.logit_mean, self.logit_std)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws."""
        count = count_rows(len(batch.x1), self.share, generator)
        averaged, others = batch.split(count)
        errors = [self._average_error(net, averaged, generator)] if count else []
        if len(others.x1):
            s, _ = self.intervals.rows(others.x1, generator)
            errors.append(velocity_error(net, others, s))
        return adaptive(torch.cat(errors), self.power, self.offset).mean()

    def _average_error(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        s, t = self.intervals.rows(batch.x1, generator)
        x, v = batch.point(s), batch.x1 - batch.x0
        u, slope = forward_derivative(
            lambda state, time: net(state, time, t, batch.cond), (x, s), (v, torch.ones_like(s))
        )
        return u - (v + expand_time(t - s, x) * slope).detach()

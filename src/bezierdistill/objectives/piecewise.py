r"""Piecewise rectified flow: straighten a teacher's paths window by window, from noised real data
instead of whole simulations.

[0, 1] is cut into K equal windows. For a uniform time t in the window :math:`[a, b]`, with
:math:`x_a = (1-a) x_0 + a x_1` real data noised to the window's start and :math:`x_b` the teacher's
solution from there,

.. math:: x_t = x_a + \tfrac{t - a}{b - a}(x_b - x_a), \qquad
          \text{loss } \Big|u(x_t, t, b) - \frac{x_b - x_a}{b - a}\Big|^2.

The sampler is one Euler step per window, :func:`~bezierdistill.flow_map.sample` over the windows'
boundaries. The authors solve by DDIM, which on a straight path is Euler's step. Their velocity
reads t alone, but it jumps from window to window, just where the sampler reads it. Networks here
are smooth in time and would give the mean of both windows; they are therefore told the window's end
b. On a straight path the average velocity from t to b is the velocity.

Source: Yan et al. 2024, *PeRFlow: piecewise rectified flow as universal plug-and-play accelerator*
(arXiv 2405.07510), algorithm 1, with the velocity target; the defaults (4 windows, 8 solver steps
in each) are those of the authors' ``scripts/train.sh``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import Field, Stretched, passes_of
from bezierdistill.objectives.base import Pairs, SingleObjective, uniform
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_counts
from bezierdistill.solvers import evaluations, solve, time_grid


@dataclass(frozen=True)
class Piecewise(SingleObjective):
    """Regress the straight velocity of the teacher's path in each window.

    Args:
        teacher: the field to straighten: a teacher or a blend.
        windows: number of equal windows, 1 or more; also the number of sampler steps it trains for.
        steps: solver steps in a window, 1 or more.
        method: fixed-step solver (:data:`bezierdistill.solvers.TABLEAUX`).

    Raises:
        UserError: on fewer than one window or step, or an unknown method.
    """

    teacher: Field
    windows: int = 4
    steps: int = 8
    method: str = "euler"

    def __post_init__(self) -> None:
        check_counts(windows=self.windows, steps=self.steps)
        evaluations(self.method)  # checks it

    @property
    def cost(self) -> int:
        """Passes per row of a step: the teacher's solution of a window, and the student's step."""
        return self.steps * evaluations(self.method) * passes_of(self.teacher) + 3

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws at uniform times."""
        u = uniform(batch.x1, generator) * self.windows
        window = u.floor().clamp_max(self.windows - 1)  # low precision may round u up to the last
        a, b = window / self.windows, (window + 1) / self.windows
        start, grid = batch.point(a), time_grid(self.steps)
        with torch.no_grad():
            field = Stretched(self.teacher, a, b)
            end = solve(field, start, grid, self.method, batch.cond).state
        x, t = torch.lerp(start, end, expand_time(u - window, start)), u / self.windows
        return Loss()(net(x, t, b, batch.cond), (end - start) * self.windows)

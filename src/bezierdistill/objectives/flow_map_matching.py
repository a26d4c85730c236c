r"""Flow map matching: the student's path :math:`t \mapsto X_{s,t}(x) = x + (t - s)\, u(x, s, t)`
must move with the velocity it meets.

.. math:: \big|\partial_t X_{s,t}(x_s) - v(X_{s,t}(x_s), t)\big|^2, \qquad
          \partial_t X_{s,t} = u + (t - s)\, \partial_t u

for :math:`s < t` uniform and :math:`x_s = (1-s) x_0 + s x_1`; the derivative is taken in forward
mode and trained through.

* :class:`LagrangianMap`: v is a teacher's. Boffi et al. 2024, *Flow map matching* (arXiv
  2406.07507), Lagrangian map distillation.
* :class:`LagrangianSelfDistillation`: v is the student's own diagonal, learned by flow matching on
  three quarters of the rows. Boffi et al. 2025, *How to build a consistency model* (arXiv
  2505.18825), LSD, the best of the authors' forms.

In both, v is a target: no gradient enters it, nor X through it, as in the paper of 2025. The
authors' learned weight of a pair (s, t) is left out, as in their own two-dimensional runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import Field, NetworkField, passes_of
from bezierdistill.objectives.base import (
    Pairs,
    SingleObjective,
    count_rows,
    uniform,
    velocity_error,
)
from bezierdistill.objectives.intervals import MapIntervals
from bezierdistill.objectives.jvp import forward_derivative
from bezierdistill.settings import check_shares


@dataclass(frozen=True)
class LagrangianMap(SingleObjective):
    """Distil a teacher's field into its flow map.

    Args:
        teacher: the field: a teacher or a blend.
    """

    teacher: Field

    @property
    def cost(self) -> int:
        """Passes per row of a step: value and derivative, trained through, and the teacher."""
        return 6 + passes_of(self.teacher)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws at uniform pairs of times."""
        s, t = MapIntervals(0.0).rows(batch.x1, generator)
        return lagrangian_error(net, self.teacher, batch, s, t).square().mean()


@dataclass(frozen=True)
class LagrangianSelfDistillation(SingleObjective):
    """Learn the field and its flow map together, without a teacher.

    Args:
        share: share of the rows that learn the map, in [0, 1]; the others learn the field.

    Raises:
        UserError: on a share outside its range.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        check_shares(share=self.share)

    @property
    def cost(self) -> float:
        """Network passes per row of a step: 7 where the map is learned, 3 elsewhere."""
        return 3 + 4 * self.share

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws at uniform times."""
        count = count_rows(len(batch.x1), self.share, generator)
        mapped, others = batch.split(count)
        errors = []
        if count:
            s, t = MapIntervals(0.0).rows(mapped.x1, generator)
            errors.append(lagrangian_error(net, NetworkField(net), mapped, s, t))
        if len(others.x1):
            errors.append(velocity_error(net, others, uniform(others.x1, generator)))
        return torch.cat(errors).square().mean()


def lagrangian_error(net: nn.Module, field: Field, batch: Pairs, s: Tensor, t: Tensor) -> Tensor:
    """Error ``(B, ...)`` of the velocity of the paths from the times s ``(B,)`` on the lines, at
    the times t.
    """
    x, gap, cond = batch.point(s), expand_time(t - s, batch.x1), batch.cond
    u, slope = forward_derivative(lambda time: net(x, s, time, cond), (t,), (torch.ones_like(t),))
    with torch.no_grad():
        velocity = field(x + gap * u, t, cond)
    return u + gap * slope - velocity

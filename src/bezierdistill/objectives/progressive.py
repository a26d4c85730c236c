r"""Progressive distillation: one step of the student learns two steps of the teacher, and the
number of steps halves from round to round.

From real data noised to a time :math:`s = i/N` of the student's grid, with :math:`m = s +
\tfrac{1}{2N}` and :math:`t = s + \tfrac1N`,

.. math:: u^* = \tfrac12\big(u_T(x_s, s, m) + u_T(x_m, m, t)\big), \quad
          x_m = x_s + (m - s)\, u_T(x_s, s, m), \qquad
          \text{loss } \max(s^2, (1-s)^2)\, |u(x_s, s, t) - u^*|^2.

In the authors' terms, with signal :math:`\alpha_s = s` and noise :math:`\sigma_s = 1 - s` (their
time runs from data to noise), the target is a datum :math:`\tilde x = (x_t -
\frac{\sigma_t}{\sigma_s} x_s) / (\alpha_t - \frac{\sigma_t}{\sigma_s} \alpha_s)` and its weight
:math:`\max(\alpha_s^2/\sigma_s^2, 1)`, "truncated SNR". Here :math:`\tilde x = x_s + (1-s) u^*`,
the student predicts :math:`x_s + (1-s) u`, and the loss is :math:`\max(s^2/(1-s)^2, 1)\,(1-s)^2 |u
- u^*|^2`: the one above. Their DDIM is then Euler's step.

Source: Salimans & Ho 2022, *Progressive distillation for fast sampling of diffusion models* (arXiv
2202.00512), algorithm 2, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.errors import UserError
from bezierdistill.objectives.base import Pairs, SingleObjective
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_counts


def halvings(steps: int) -> tuple[int, ...]:
    """Step numbers of the students after a teacher of ``steps`` steps: halved down to one.

    Raises:
        UserError: unless ``steps`` is a power of two, 2 or more.

    Example:
        >>> halvings(16)
        (8, 4, 2, 1)
    """
    if steps < 2 or steps & (steps - 1):
        raise UserError(f"steps is {steps}, expected a power of two, 2 or more")
    return tuple(steps >> k for k in range(1, steps.bit_length()))


@dataclass(frozen=True)
class Progressive(SingleObjective):
    """One round: a student of ``steps`` equal steps from a teacher of twice as many.

    Args:
        teacher: the frozen network of the round before; in the first round a velocity network,
            whose ``flow_map`` is its Euler step because its interval is not trained. The student
            starts from its weights.
        steps: the student's number of steps, 1 or more.

    Raises:
        UserError: if ``steps < 1``.
    """

    teacher: nn.Module
    steps: int
    cost = 2 + 3

    def __post_init__(self) -> None:
        check_counts(steps=self.steps)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws at uniform steps of the grid."""
        rows, cond = (len(batch.x1),), batch.cond
        i = torch.randint(self.steps, rows, generator=generator, device=generator.device).to(
            batch.x1
        )
        s, middle, t = i / self.steps, (i + 0.5) / self.steps, (i + 1) / self.steps
        x = batch.point(s)
        with torch.no_grad():
            first = self.teacher(x, s, middle, cond)
            second = self.teacher(x + expand_time(middle - s, x) * first, middle, t, cond)
        weight = torch.maximum(s, 1 - s).square()
        return Loss()(net(x, s, t, cond), (first + second) / 2, weight)

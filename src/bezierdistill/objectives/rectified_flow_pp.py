r"""2-rectified flow++: one round of reflow, trained where reflow is hard and with a distance that
forgives outliers.

On pairs :math:`(x_0, x_1)` of a source and the teacher's end point the velocity :math:`x_1 - x_0`
is regressed as in reflow, with times and distance

.. math:: p(t) \propto e^{a t} + e^{a (1 - t)} \propto \cosh a(t - \tfrac12), \qquad
          m(e) = \sqrt{|e|^2 + c^2} - c, \quad c = 0.00054\, D, \qquad a = 4.

The pairs hardly cross, so the velocity is easy inside and hard at both ends, where it must tell
whole pairs apart. Draws of p are exact: :math:`t = \tfrac12 + \operatorname{asinh}((2u - 1) \sinh
\tfrac a2) / a` for a uniform u.

In the terms of :class:`Loss`, whose scale is per component, :math:`\sqrt{|e|^2/D + c'^2} - c'` is
:math:`m(e)/\sqrt D` for :math:`c' = c/\sqrt D = 0.00054 \sqrt D` (0.030 for CIFAR-10's D = 3072).

Conventions and limits: the authors' t runs from the data to the noise; p is symmetric (their
printed :math:`e^{au} + e^{-au}` is p with u measured from the middle). They add LPIPS of the
predicted end point, which only images have; without it they do not weigh the pseudo-Huber distance,
and neither does this. Their sampler :math:`x_{t'} = (1 - t')\, x_0 + t' (x_t + (1 - t) v)` is
Euler's for one and for two passes and differs from three on.

Source: Lee, Lin & Fanti 2024, *Improving the training of rectified flows* (arXiv 2405.20320),
section 4; their code, ``t_dist.py`` and ``train.py``, for the normalisation of p and c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.objectives.curve_regression import CurveBatch, CurveRegression, VelocityDraw
from bezierdistill.objectives.losses import Loss


@dataclass(frozen=True)
class UShapedDraw(VelocityDraw):
    """``s = t`` with density proportional to ``cosh(a (t - 1/2))``: most often near 0 and near 1.

    Args:
        steepness: ``a``, positive; the uniform law is the limit 0.

    Raises:
        UserError: if the steepness is not positive.
    """

    steepness: float = 4.0

    def __post_init__(self) -> None:
        if not self.steepness > 0:
            raise UserError(
                f"steepness is {self.steepness}, expected a positive number (VelocityDraw is the"
                " uniform law)"
            )

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s`` and ``t``, each ``(count,)``."""
        u = torch.rand(count, generator=generator, device=generator.device)
        t = 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.steepness / 2)) / self.steepness
        t = t.clamp(0.0, 1.0)  # rounding can leave the interval by one unit in the last place
        return t, t


def pseudo_huber(x: Tensor, scale: float) -> Loss:
    """The distance with ``c = scale * D`` for states like ``x`` ``(B, ...)`` of D components; 0
    means squared error.
    """
    return Loss(scale * math.sqrt(x[0].numel()))


@dataclass(frozen=True)
class RectifiedFlowPP:
    """Reflow with U-shaped times and the pseudo-Huber distance.

    Args:
        steepness: of the times' law, positive.
        huber: scale of the distance over D, >= 0; zero means squared error.
    """

    steepness: float = 4.0
    huber: float = 0.00054
    passes = CurveRegression.passes

    def __post_init__(self) -> None:
        UShapedDraw(self.steepness)  # this and the next line check the settings
        Loss(self.huber)

    def loss(self, net: nn.Module, batch: CurveBatch, generator: torch.Generator) -> Tensor:
        """Loss of a batch of lines from sources to the teacher's end points, and their
        conditions.
        """
        regression = CurveRegression(
            UShapedDraw(self.steepness), pseudo_huber(batch[0].source, self.huber)
        )
        return regression.loss(net, batch, generator)

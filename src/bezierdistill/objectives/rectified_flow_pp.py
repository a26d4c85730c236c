r"""2-rectified flow++: one round of reflow, trained where reflow is hard and with a distance that
forgives outliers.

On pairs :math:`(x_0, x_1)` of a source and the teacher's end point the velocity :math:`x_1 - x_0`
is regressed as in reflow, with times and distance

.. math:: p(t) \propto e^{a t} + e^{a (1 - t)} \propto \cosh a(t - \tfrac12), \qquad
          m(e) = \sqrt{|e|^2 + c^2} - c, \quad c = 0.00054\, D, \qquad a = 4.

The pairs hardly cross, so the velocity is easy inside and hard at both ends, where it must tell
whole pairs apart. In the terms of :class:`Loss`, whose scale is per component,
:math:`\sqrt{|e|^2/D + c'^2} - c'` is :math:`m(e)/\sqrt D` for :math:`c' = c/\sqrt D = 0.00054 \sqrt
D` (0.030 for CIFAR-10's D = 3072).

Conventions and limits: the authors' t runs from the data to the noise; p is symmetric (their
printed :math:`e^{au} + e^{-au}` is p with u measured from the middle). They add LPIPS of the
predicted end point, which only images have; without it they do not weigh the pseudo-Huber distance,
and neither does this. Their sampler :math:`x_{t'} = (1 - t')\, x_0 + t' (x_t + (1 - t) v)` is
Euler's for one and for two passes and differs from three on.

Source: Lee, Lin & Fanti 2024, *Improving the training of rectified flows* (arXiv 2405.20320),
section 4; their code, ``t_dist.py`` and ``train.py``, for the normalisation of p and c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.objectives.base import Curves, SingleObjective, check_positive
from bezierdistill.objectives.curve_regression import CurveRegression
from bezierdistill.objectives.intervals import UShapedInstants
from bezierdistill.objectives.losses import pseudo_huber
from bezierdistill.settings import check_not_negative


@dataclass(frozen=True)
class RectifiedFlowPP(SingleObjective):
    """Reflow with U-shaped times and the pseudo-Huber distance.

    Args:
        steepness: of the distribution of times, positive.
        huber: scale of the distance over D, >= 0; zero means squared error.

    Raises:
        UserError: on a setting outside its range.
    """

    steepness: float = 4.0
    huber: float = 0.00054
    cost = CurveRegression.cost

    def __post_init__(self) -> None:
        check_positive(steepness=self.steepness)
        check_not_negative(huber=self.huber)

    def loss(self, net: nn.Module, batch: Curves, generator: torch.Generator) -> Tensor:
        """Loss of lines from sources to the teacher's end points."""
        times, metric = (
            UShapedInstants(self.steepness),
            pseudo_huber(batch.curve.source, self.huber),
        )
        return CurveRegression(times, metric).loss(net, batch, generator)

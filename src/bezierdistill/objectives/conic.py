r"""Balanced conic reflow: generated pairs balanced with pairs that end in real data and start on a
cone about their inversion.

Reflow on generated pairs alone drifts from the data, for its targets are the teacher's. A real pair
ends in a real :math:`x_1` and starts in its inversion z, the teacher's path backwards; one path
says little about its surroundings, so the start is turned towards fresh noise :math:`\epsilon` by a
share of the angle between them,

.. math:: z_\zeta = |z| \left(\cos(\zeta\varphi)\, \hat z + \sin(\zeta\varphi)\, \hat w\right),
          \qquad x_t = t\, x_1 + (1 - t)\, z_\zeta, \qquad \text{target } x_1 - z_\zeta,

with :math:`\varphi` the angle from z to :math:`\epsilon` and :math:`\hat w` the unit vector of the
part of :math:`\epsilon` orthogonal to z. This is slerp; only the direction of the noise enters, so
a normal z gives an exactly normal :math:`z_\zeta` in any dimension (the authors' formula, which
keeps both lengths, differs by :math:`O(D^{-1/2})`).

The share follows :math:`\zeta = \zeta_{max}\, 2 u^2 / (1 + u^2)`. The authors let u move over the
training; here it is uniform over the rows (their ablation: FID 6.63 by the schedule, 6.64 and 6.70
by a rising and a falling one). They alternate real and generated steps, a batch here holds both.

Source: Kim, Kwon, Jeong & Uh 2025, *Balanced conic rectified flow* (arXiv 2510.25229), section on
conic reflow; read through a summary of the paper, so without equation numbers. Times: U-shaped, as
theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.flow_map import fresh_noise
from bezierdistill.objectives.base import Balanced, SingleObjective, uniform
from bezierdistill.objectives.curve_regression import CurveRegression
from bezierdistill.objectives.intervals import Intervals, UShapedInstants
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_shares


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Turn states ``a`` towards ``b`` by a share of the angle between them, keeping the length of
    ``a`` (from two components on: one component has no plane to turn in).

    Args:
        a: where to start, ``(B, ...)``; share 0.
        b: share 1, rescaled to the length of ``a``.
        share: ``(B,)``, between 0 and 1.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> slerp(a, b, torch.ones(1)).round().abs().tolist()
        [[0.0, 2.0]]
    """
    flat, other = a.flatten(1), b.flatten(1)
    tiny = torch.finfo(a.dtype).tiny
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit = flat / length.clamp_min(tiny)
    along = (other * unit).sum(1, keepdim=True)
    across = other - along * unit
    width = torch.linalg.vector_norm(across, dim=1, keepdim=True)
    angle = share[:, None] * torch.atan2(width, along)
    turned = angle.cos() * unit + angle.sin() * across / width.clamp_min(tiny)
    return (length * turned).reshape(a.shape)


@dataclass(frozen=True)
class Conic(SingleObjective):
    """Velocity regression on generated pairs and on cones about inverted real pairs.

    Args:
        share: probability that a row is a real pair, 0 to 1; the authors' is 1/2 in the first half
            of training, 0 in the second.
        zeta: largest share of the angle, 0 to 1; the authors' is 0.13 for CIFAR-10, 0.23 for
            ImageNet.
        times: the instants of the regression.
        metric: distance of the regression.

    Raises:
        UserError: if a share is not between 0 and 1, or the times are no instants.
    """

    share: float = 0.5
    zeta: float = 0.13
    times: Intervals = field(default_factory=UShapedInstants)
    metric: Loss = field(default_factory=Loss)
    cost = CurveRegression.cost

    def __post_init__(self) -> None:
        check_shares(share=self.share, zeta=self.zeta)
        if not self.times.instants:
            raise UserError("times are intervals, expected instants: a velocity is learned")

    def loss(self, net: nn.Module, batch: Balanced, generator: torch.Generator) -> Tensor:
        """Loss of two equally large batches of lines.

        Raises:
            UserError: if the batches differ in shape, are no lines, or only one has conditions.
        """
        (generated, cond), (real, real_cond) = batch
        if generated.points.shape != real.points.shape or generated.degree != 1:
            shapes = " and ".join(str(tuple(curve.points.shape)) for curve in (generated, real))
            raise UserError(
                f"curves have shapes {shapes}, expected equal ones (2, B, ...) of lines"
            )
        if (cond is None) != (real_cond is None):
            raise UserError("one of two batches has conditions, expected both or neither")
        is_real = uniform(real.source, generator) < self.share
        x0 = _pick(is_real, self._cone(real.source, generator), generated.source)
        line = BezierCurve.line(x0, _pick(is_real, real.data, generated.data))
        if cond is not None and real_cond is not None:
            cond = _pick(is_real, real_cond, cond)
        t, _ = self.times.rows(x0, generator)
        return self.metric(net(line.point(t), t, t, cond), line.velocity(t))

    def _cone(self, inverted: Tensor, generator: torch.Generator) -> Tensor:
        squared = uniform(inverted, generator).square()
        noise = fresh_noise(inverted, generator)
        return slerp(inverted, noise, self.zeta * 2 * squared / (1 + squared))


def _pick(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

r"""Constant acceleration flow: a first network gives the speed at the start, a second one the
acceleration, and the path is a parabola.

For a pair :math:`(x_0, x_1)` of a source and the teacher's end point, :math:`d = x_1 - x_0` and an
initial velocity :math:`v_0`,

.. math:: x_t = x_0 + v_0 t + \tfrac12 a t^2, \qquad a = 2 d - 2 v_0, \qquad \text{so } x_1 = x_0 + v_0 + \tfrac12 a.

1. The velocity network learns :math:`v_0 = h\, d` at :math:`x_t`, uniform t. With h = 1 the flow is
   rectified flow; with h < 1 paths speed up on their way, with h > 1 they slow down.
2. The acceleration network then learns a of the *predicted* :math:`v_0 = v(x_0, 0)`, at :math:`x_t`
   and given :math:`v_0`: two paths that cross in :math:`x_t` differ in it (initial velocity
   conditioning). The second network so also repairs the first one's error.

Sampling is exact for an exact acceleration: with step :math:`\delta` from t, :math:`x \mathrel{+}=
v_0 \delta + a (t + \delta/2) \delta`. One step costs two passes, n steps n + 1. After stage 1 alone
:math:`x_0 + v_0/h` is a one-pass sampler.

The authors' distance is pseudo-Huber with :math:`c = 0.00054\, D` plus LPIPS, which only images
have; their acceleration times are U-shaped as in 2-rectified flow++. A third, adversarial stage is
left out: it is no part of the flow.

Source: Park et al. 2024, *Constant acceleration flow* (arXiv 2411.00322), section 4; their code,
``flow/pipeline_caf.py``, for the distance, the laws of the times and the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.fields import NetworkField
from bezierdistill.objectives.curve_regression import CurveBatch, VelocityDraw
from bezierdistill.objectives.losses import Loss
from bezierdistill.objectives.rectified_flow_pp import UShapedDraw, pseudo_huber


@dataclass(frozen=True)
class ConstantAcceleration:
    """Two stages on pairs: :meth:`velocity_loss` until it has converged, then
    :meth:`acceleration_loss` with that network fixed.

    Args:
        h: initial speed over mean speed, positive; 1.5 is the authors'.
        steepness: of the U-shaped law of the acceleration's times, positive.
        huber: scale of the distance over D, >= 0; zero means squared error.

    Raises:
        UserError: if ``h`` is not positive.
    """

    h: float = 1.5
    steepness: float = 4.0
    huber: float = 0.00054
    velocity_passes = 3
    acceleration_passes = 1 + 3

    def __post_init__(self) -> None:
        if not self.h > 0:
            raise UserError(f"h is {self.h}, expected a positive number (1 is constant velocity)")
        UShapedDraw(self.steepness)  # this and the next line check the settings
        Loss(self.huber)

    def velocity_loss(
        self, net_v: nn.Module, batch: CurveBatch, generator: torch.Generator
    ) -> Tensor:
        """Stage 1 on a batch of lines and conditions; ``net_v`` has the states' shape and is read
        on its diagonal.
        """
        line, cond = batch
        v0 = self.h * (line.data - line.source)
        t, _ = VelocityDraw()(len(v0), generator)
        state = parabola(line, v0).point(t.to(v0))
        return pseudo_huber(v0, self.huber)(NetworkField(net_v)(state, t, cond), v0)

    def acceleration_loss(
        self, net_a: nn.Module, net_v: nn.Module, batch: CurveBatch, generator: torch.Generator
    ) -> Tensor:
        """Stage 2; ``net_a`` is a network for states of twice the first dimension (see
        :func:`acceleration`).
        """
        line, cond = batch
        with torch.no_grad():
            v0 = NetworkField(net_v)(line.source, 0.0, cond)
        path = parabola(line, v0)
        t, _ = UShapedDraw(self.steepness)(len(v0), generator)
        t = t.to(v0)
        return pseudo_huber(v0, self.huber)(
            acceleration(net_a, path.point(t), v0, t, cond), path.acceleration(t)
        )


def parabola(line: BezierCurve, v0: Tensor) -> BezierCurve:
    """The path of constant acceleration between the ends of a line with initial velocity ``v0``
    ``(B, ...)``: a curve of degree 2.
    """
    return BezierCurve.from_guides(line.source, [line.source + v0 / 2], line.data)


def acceleration(
    net_a: nn.Module, x: Tensor, v0: Tensor, t: Tensor | float, cond: Tensor | None = None
) -> Tensor:
    """Acceleration ``(B, C, ...)`` at states ``x`` of paths with initial velocities ``v0``, both
    ``(B, C, ...)``.

    The network takes and gives states ``(B, 2 C, ...)``: x and v0 side by side go in, the first
    half of what comes out is read.
    """
    return NetworkField(net_a)(torch.cat([x, v0], 1), t, cond)[:, : x.shape[1]]


@torch.no_grad()
def sample(
    net_v: nn.Module, net_a: nn.Module, x0: Tensor, steps: int = 1, cond: Tensor | None = None
) -> Tensor:
    """End points of the sources ``x0`` ``(B, ...)`` by equal steps: ``steps + 1`` passes.

    Raises:
        UserError: if there is not at least one step.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}, expected 1 or more")
    x, v0 = x0, NetworkField(net_v)(x0, 0.0, cond)
    for k in range(steps):
        x = x + (v0 + (k + 0.5) / steps * acceleration(net_a, x, v0, k / steps, cond)) / steps
    return x

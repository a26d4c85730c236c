r"""Constant acceleration flow: a first network gives the speed at the start, a second one the
acceleration, and the path is a parabola.

For a pair :math:`(x_0, x_1)` of a source and the teacher's end point, :math:`d = x_1 - x_0` and an
initial velocity :math:`v_0`,

.. math:: x_t = x_0 + v_0 t + \tfrac12 a t^2, \qquad a = 2 d - 2 v_0, \qquad
          \text{so } x_1 = x_0 + v_0 + \tfrac12 a.

1. The velocity network learns :math:`v_0 = h\, d` at :math:`x_t`, uniform t. With h = 1 the flow is
   rectified flow; with h < 1 paths speed up on their way, with h > 1 they slow down.
2. The acceleration network then learns a of the *predicted* :math:`v_0 = v(x_0, 0)`, at :math:`x_t`
   and given :math:`v_0`: two paths that cross in :math:`x_t` differ in it (initial velocity
   conditioning). The second network so also repairs the first one's error.

Sampling is exact for an exact acceleration: with step :math:`\delta` from t, :math:`x \mathrel{+}=
v_0 \delta + a (t + \delta/2) \delta`. One step costs two passes, n steps n + 1. After stage 1 alone
:math:`x_0 + v_0/h` is a one-pass sampler.

The authors' distance is pseudo-Huber with :math:`c = 0.00054\, D` plus LPIPS, which only images
have; their acceleration times are U-shaped as in 2-rectified flow++. Their third stage, an
adversarial one, is left out.

Source: Park et al. 2024, *Constant acceleration flow* (arXiv 2411.00322), section 4; their code,
``flow/pipeline_caf.py``, for the distance, the distributions of the times and the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve, match_time
from bezierdistill.fields import NetworkField
from bezierdistill.objectives.base import Curves, SingleObjective, check_positive, uniform
from bezierdistill.objectives.intervals import UShapedInstants
from bezierdistill.objectives.losses import pseudo_huber
from bezierdistill.settings import check_counts, check_not_negative


@dataclass(frozen=True)
class InitialVelocity(SingleObjective):
    """Stage 1 on pairs: a network of the states' shape, read on its diagonal.

    Args:
        h: initial speed over mean speed, positive; 1.5 is the authors', 1 is constant velocity.
        huber: scale of the distance over D, >= 0; zero means squared error.

    Raises:
        UserError: on a setting outside its range.
    """

    h: float = 1.5
    huber: float = 0.00054
    cost = 3

    def __post_init__(self) -> None:
        check_positive(h=self.h)
        check_not_negative(huber=self.huber)

    def loss(self, net: nn.Module, batch: Curves, generator: torch.Generator) -> Tensor:
        """Loss of a batch of lines at uniform times."""
        line, cond = batch
        v0 = self.h * (line.data - line.source)
        t = uniform(v0, generator)
        state = parabola(line, v0).point(t)
        return pseudo_huber(v0, self.huber)(net(state, t, t, cond), v0)


@dataclass(frozen=True)
class ConstantAcceleration(SingleObjective):
    """Stage 2 on pairs: a network for states twice as long (see :func:`acceleration`).

    Args:
        velocity: the network of stage 1, which stays as it is.
        steepness: of the U-shaped distribution of times, positive.
        huber: scale of the distance over D, >= 0; zero means squared error.

    Raises:
        UserError: on a setting outside its range.
    """

    velocity: nn.Module
    steepness: float = 4.0
    huber: float = 0.00054
    cost = 1 + 3

    def __post_init__(self) -> None:
        check_positive(steepness=self.steepness)
        check_not_negative(huber=self.huber)

    def loss(self, net: nn.Module, batch: Curves, generator: torch.Generator) -> Tensor:
        """Loss of a batch of lines at U-shaped times."""
        line, cond = batch
        with torch.no_grad():
            v0 = NetworkField(self.velocity)(line.source, 0.0, cond)
        path = parabola(line, v0)
        t, _ = UShapedInstants(self.steepness).rows(v0, generator)
        predicted = acceleration(net, path.point(t), v0, t, cond)
        return pseudo_huber(v0, self.huber)(predicted, path.acceleration(t))


def parabola(line: BezierCurve, v0: Tensor) -> BezierCurve:
    """The path between the ends of a line with initial velocity ``v0`` ``(B, ...)``: degree 2."""
    return BezierCurve.from_guides(line.source, [line.source + v0 / 2], line.data)


def acceleration(
    net_a: nn.Module, x: Tensor, v0: Tensor, t: Tensor | float, cond: Tensor | None = None
) -> Tensor:
    """Acceleration at states ``x`` of paths with initial velocities ``v0``, all ``(B, C, ...)``.

    The network takes x and v0 side by side, ``(B, 2 C, ...)``; the first half of its output counts.
    """
    time = match_time(t, x)
    return net_a(torch.cat([x, v0], 1), time, time, cond)[:, : x.shape[1]]


@torch.no_grad()
def sample(
    net_v: nn.Module, net_a: nn.Module, x0: Tensor, steps: int = 1, cond: Tensor | None = None
) -> Tensor:
    """End points of the sources ``x0`` ``(B, ...)`` by equal steps: ``steps + 1`` passes.

    Raises:
        UserError: if there is not at least one step.
    """
    check_counts(steps=steps)
    x, v0 = x0, NetworkField(net_v)(x0, 0.0, cond)
    for k in range(steps):
        x = x + (v0 + (k + 0.5) / steps * acceleration(net_a, x, v0, k / steps, cond)) / steps
    return x

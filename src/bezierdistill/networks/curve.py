r"""A student that emits a whole curve in a pass: the control points of its velocity.

From the state x at s a network of K outputs gives :math:`V_0, \dots, V_{K-1}`, and with
:math:`\tau = (t - s) / (1 - s)` and the Bernstein basis b the curve over [s, 1] is

.. math:: B'(\tau) = \sum_j b_{j,K-1}(\tau)\, V_j, \qquad
          B(\tau) = x + (1 - s) \sum_j V_j \int_0^\tau b_{j,K-1}, \qquad
          \int_0^\tau b_{j,K-1} = \frac{1}{K} \sum_{i > j} b_{i,K}(\tau).

Seen from outside it is a flow map like any other (:mod:`bezierdistill.flow_map`): its average
velocity from s to t is :math:`(B(\tau) - x) / (t - s)`, of which one pass gives every t.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor, nn

from bezierdistill.curves import bernstein, expand_time


def mean_weights(points: int, tau: Tensor) -> Tensor:
    r"""Weights ``(K, B)`` of the control points in the mean of :math:`B'` over :math:`[0, \tau]`.

    They sum to one; at 0 they are those of the first point alone.
    """
    t = tau[None]
    terms = [comb(points, i) * t ** (i - 1) * (1 - t) ** (points - i) for i in range(1, points + 1)]
    sums = torch.cat(terms).flip(0).cumsum(0).flip(0)
    return sums / points


class CurveNetwork(nn.Module):
    """``net(x, s, t, cond)``: the average velocity of the emitted curve between s and t.

    Args:
        inner: a network whose output is ``(B, K, ...)``; it is asked on its diagonal.
        points: number K of control points, 2 or more.
    """

    def __init__(self, inner: nn.Module, points: int) -> None:
        super().__init__()
        self.inner, self.points = inner, points

    def forward(
        self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None, whole: bool = False
    ) -> Tensor:
        """Average velocity ``(B, ...)`` of states between times ``s`` and ``t``, each ``(B,)``; or
        the control points ``(B, K, ...)`` of the whole curve over [s, 1].
        """
        emitted = self.inner(x, s, s, cond)
        if whole:
            return emitted
        tau = ((t - s) / (1 - s).clamp_min(torch.finfo(s.dtype).eps)).clamp(0, 1)
        return combine(mean_weights(self.points, tau), emitted)


def emits(net: nn.Module) -> bool:
    """Whether a network, or what wraps it, emits curves."""
    return getattr(net, "points", 1) > 1


class Emitted:
    """The curve that a network emits from states at time 0, in one pass.

    Args:
        net: the network.
        x: states ``(B, ...)``.
        cond: conditions ``(B, C)``.
    """

    def __init__(self, net: nn.Module, x: Tensor, cond: Tensor | None = None) -> None:
        zero = x.new_zeros(len(x))
        self.x, self.velocity = x, net(x, zero, zero, cond, whole=True)

    def point(self, t: float) -> Tensor:
        """The state ``(B, ...)`` at ``t``."""
        times = self.x.new_full((len(self.x),), t)
        return emitted_point(self.x, torch.zeros_like(times), self.velocity, times)


def combine(weights: Tensor, emitted: Tensor) -> Tensor:
    """Sum of control points ``(B, K, ...)`` with weights ``(K, B)``: ``(B, ...)``."""
    return torch.einsum("kb,bk...->b...", weights.to(emitted), emitted)


def emitted_point(x: Tensor, s: Tensor, emitted: Tensor, tau: Tensor) -> Tensor:
    """The state ``(B, ...)`` at the part ``tau`` of [s, 1], both ``(B,)``, of the curve that starts
    at ``x`` and has the control points ``emitted`` ``(B, K, ...)`` of its velocity.
    """
    mean = combine(mean_weights(emitted.shape[1], tau), emitted)
    return torch.addcmul(x, expand_time(tau * (1 - s), x), mean.to(x))


def velocity_weights(points: int, tau: Tensor) -> Tensor:
    """Weights ``(K, B)`` of the control points in the velocity of the curve at ``tau``."""
    return bernstein(points - 1, tau)

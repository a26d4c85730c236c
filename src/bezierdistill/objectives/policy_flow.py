r"""Policy flows: one pass emits a policy, a velocity for every state and time of a whole segment,
that is then followed without the network; the teacher corrects it on its own path.

From :math:`x_s` the network gives K velocities :math:`u_k`, which stand for data :math:`d_k = x_s +
(1 - s)\, u_k` at K even times from s to t. With d between them linear, the policy and its path are

.. math:: \pi(x, r) = \frac{d(r) - x}{1 - r}, \qquad
          x_r = \frac{1-r}{1-s}\, x_s + (1 - r) \int_s^r \frac{d(q)}{(1-q)^2}\, dq,

a weighted mean of :math:`x_s` and the :math:`d_k`, known in closed form: what the authors approach
by 128 substeps. At M times, one in each of as many even parts of a segment, the loss is
:math:`|\pi(x_r, r) - v(x_r, r)|^2` with the teacher's v at the policy's own :math:`x_r`; no
gradient enters either, only d.

This is the authors' DX policy (a grid of denoised states); their mixture policy, their dropout of
policies and their mean velocities of short segments are left out, and every state that a segment
starts from is noised data, as in their training of several passes. Times end where the velocity's
denominator :math:`1 - r` would vanish.

Source: Chen et al. 2025, *pi-Flow: policy-based few-step generation via imitation distillation*
(arXiv 2510.14974), sections 3 and 4, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from bezierdistill.curves import Time, expand_time, match_time
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, passes_of
from bezierdistill.objectives.base import Pairs, SingleObjective, uniform
from bezierdistill.objectives.intervals import Intervals, KnotIntervals
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_counts

WHOLE = KnotIntervals(((0.0, 1.0),))


@dataclass(frozen=True)
class PolicyFlow(SingleObjective):
    """Match a policy's velocity to a teacher's along the policy's own path.

    The network has K outputs, ``(B, K, ...)``.

    Args:
        teacher: the field to distil: a teacher or a blend.
        intervals: the segments; by default the whole one.
        points: times M of a segment at which the teacher is asked, 1 or more.
        last: no time is later, in (0, 1).
        metric: distance; the authors' squared error.

    Raises:
        UserError: on a setting outside its range.
    """

    teacher: Field
    intervals: Intervals = WHOLE
    points: int = 2
    last: float = 0.98
    metric: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        check_counts(points=self.points)
        if not 0 < self.last < 1:
            raise UserError(f"last is {self.last}, expected a time in (0, 1)")

    @property
    def cost(self) -> int:
        """Network passes per row of a step: the policy's, and the teacher's at its points."""
        return 3 + self.points * passes_of(self.teacher)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws."""
        s, t = self.intervals.rows(batch.x1, generator)
        x = batch.point(s)
        data = policy_data(net, x, s, t, batch.cond)
        total = torch.zeros((), device=x.device)
        for k in range(self.points):
            part = (k + uniform(x, generator)) / self.points
            r = torch.lerp(s, torch.minimum(t, s.clamp_min(self.last)), part)
            with torch.no_grad():
                here = policy_state(x, data, s, t, r)
                velocity = self.teacher(here, r, batch.cond)
            there = _mixed(data, _hats(s, t, r, data.shape[1]))
            total = total + self.metric((there - here) / expand_time(1 - r, x), velocity)
        return total / self.points


def policy_data(net: nn.Module, x: Tensor, s: Time, t: Time, cond: Tensor | None = None) -> Tensor:
    """The data ``(B, K, ...)`` that a policy of the segment from ``s`` to ``t`` heads for."""
    start, end = match_time(s, x), match_time(t, x)
    u = net(x, start, end, cond)
    return x[:, None] + expand_time(1 - start, u) * u


def policy_state(x: Tensor, data: Tensor, s: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Where a policy is at the times ``r`` ``(B,)`` of its segment, from ``x`` ``(B, ...)``."""
    keep = expand_time((1 - r) / (1 - s), x)
    return keep * x + _mixed(data, _path_weights(s, t, r, data.shape[1]))


def policy_sample(
    net: nn.Module, x0: Tensor, knots: Sequence[float], cond: Tensor | None = None
) -> Tensor:
    """Follow a policy from knot to knot, one network pass each, from sources ``(B, ...)``."""
    x = x0
    for s, t in pairwise(knots):
        start, end = match_time(s, x), match_time(t, x)
        x = policy_state(x, policy_data(net, x, start, end, cond), start, end, end)
    return x


def _mixed(data: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("bk,bk...->b...", weights.to(data), data)


def _place(s: Tensor, t: Tensor, count: int) -> Tensor:
    """The times ``(B, K)`` of a policy's data; a single one holds for all of its segment."""
    steps = torch.arange(count).to(s) / max(count - 1, 1)
    return s[:, None] + (t - s)[:, None] * steps


def _hats(s: Tensor, t: Tensor, r: Tensor, count: int) -> Tensor:
    """Weights ``(B, K)`` of linear interpolation at ``r``."""
    if count == 1:
        return torch.ones_like(r)[:, None]
    place = (r - s) / (t - s) * (count - 1)
    return (1 - (place[:, None] - torch.arange(count).to(s)).abs()).clamp_min(0)


def _path_weights(s: Tensor, t: Tensor, r: Tensor, count: int) -> Tensor:
    r"""Weights ``(B, K)`` of the data in the state at ``r``: of each piece :math:`[a, b]` below r
    the integrals of :math:`(1-r) / (1-q)^2` and of that times :math:`q - a`.
    """
    if count == 1:
        return ((r - s) / (1 - s))[:, None]
    places, r = _place(s, t, count), r[:, None]
    width = ((t - s) / (count - 1))[:, None]
    a, b = (torch.minimum(part, r) for part in (places[:, :-1], places[:, 1:]))
    at_a, at_b = (torch.where(q < r, (1 - r) / (1 - q), 1.0) for q in (a, b))
    whole = at_b - at_a
    log = torch.special.xlogy(1 - r, torch.where(r < 1, (1 - a) / (1 - b), 1.0))
    rising = ((1 - a) * whole - log) / width
    pad = torch.nn.functional.pad
    return pad(whole - rising, (0, 1)) + pad(rising, (1, 0))

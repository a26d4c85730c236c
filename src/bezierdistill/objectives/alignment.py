r"""Alignment: keep the distribution of the student's samples on that of the data, without a critic,
a discriminator or a teacher's pass.

A batch of the student's samples X and a batch of real data Y give an unbiased estimate of their
energy distance, up to a constant,

.. math:: 2\, E|X - Y| - E|X - X'| \; [- E|Y - Y'|],

which is least if and only if the two distributions are equal. Its gradient pulls every sample
towards the data and pushes it away from the other samples. Real data cost no network pass, so Y may
be many times X. What is compared is what will be saved: samples are clamped (not rounded) to the
range of the data first.

With conditions the joint distribution of a sample and its condition c is aligned: states are
lengthened by :math:`w c`, where w makes two classes as far apart as two real states are.

Every sampler of the student (one pass, two passes) has a term of its own. The gradient goes through
its last jump, the jumps before it cost one pass each. The samples start at the sources of stored
curves, whose ends can anchor them at no further pass.

Source: Szekely & Rizzo 2013, *Energy statistics*; Li et al. 2015, *Generative moment matching
networks* (arXiv 1502.02761) and Bellemare et al. 2017, *The Cramer distance* (arXiv 1705.10743),
for generators trained by such a distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.flow_map import sample
from bezierdistill.knots import check_knots
from bezierdistill.objectives.base import Aligned, SingleObjective
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_not_negative

REAL_ROWS = 4  # real rows for every sample: they cost no pass
SCALE_ROWS = 128  # in each of the two sets of real states whose distance scales the conditions
LEAST = 1e-6  # of a squared distance: keeps the gradient of the root finite between equal states


@dataclass(frozen=True)
class Alignment(SingleObjective):
    """Energy distance of samplers' states to real data, anchored at the ends of the curves.

    Args:
        knots: the knots of each sampler, from 0 to 1.
        metric: distance of the anchor.
        anchor: weight of the anchor, >= 0. Only the anchor reaches a component that lies beyond the
            range of the data on the wrong side.
        clamp: maps states to the range in which they are saved; the identity where there is none.
        joint: whether states are compared with their conditions; without it the distribution over
            all conditions is aligned (conditions that are rows of a table are no vectors).
        features: what is compared of states ``(B, ...)``: ``(B, D)``, such as
            :meth:`~bezierdistill.Teacher.features`; without it the states themselves.

    Raises:
        UserError: on knots that do not rise from 0 to 1, or a negative anchor.
    """

    knots: Sequence[Sequence[float]]
    metric: Loss = field(default_factory=Loss)
    anchor: float = 0.03
    clamp: Callable[[Tensor], Tensor] = lambda x: x
    joint: bool = True
    features: Callable[[Tensor], Tensor] = lambda x: x

    def __post_init__(self) -> None:
        for times in self.knots:
            check_knots(times)
        check_not_negative(anchor=self.anchor)

    @property
    def cost(self) -> int:
        """Network passes per row of a step: every sampler with the gradient of its last jump, and
        features of its states and of the real ones.
        """
        calls = getattr(self.features, "calls", 0)
        return REAL_ROWS * calls + sum(len(times) - 1 + 2 + 3 * calls for times in self.knots)

    def loss(self, net: nn.Module, batch: Aligned, generator: torch.Generator) -> Tensor:
        """Loss of two curves or more against real states; nothing is drawn.

        Raises:
            UserError: if only one of the curves and the real states have conditions.
        """
        curve, cond, real, real_cond = batch
        beside = (cond, real_cond) if self.joint else (None, None)
        with torch.no_grad():
            seen = self.features(real)
        if (beside[0] is None) != (beside[1] is None):
            raise UserError("one of curves and real data has conditions, expected both or neither")
        total = torch.zeros((), device=curve.points.device)
        for times in self.knots:
            with torch.no_grad():
                before = sample(net, curve.source, times[:-1], cond)
            x = sample(net, before, times[-2:], cond)
            made = self.features(self.clamp(x))
            total = total + _joint_energy(made, beside[0], seen, beside[1])
            if self.anchor:
                total = total + self.anchor * self.metric(x, curve.data)
        return total


def _joint_energy(x: Tensor, cond: Tensor | None, real: Tensor, real_cond: Tensor | None) -> Tensor:
    if cond is None or real_cond is None:
        return energy(x, real)
    x, real = x.flatten(1), real.flatten(1)
    half = min(SCALE_ROWS, len(real) // 2)
    apart = _distances(real[:half], real[half : 2 * half]).mean() / math.sqrt(2)
    x = torch.cat([x, apart * cond.to(x)], 1)
    return energy(x, torch.cat([real, apart * real_cond.to(real)], 1))


def energy(x: Tensor, real: Tensor) -> Tensor:
    """The energy distance of two or more samples ``(B, ...)`` to real states ``(N, ...)``, without
    the term of the real states alone.
    """
    if len(x) < 2:
        raise UserError(f"alignment got {len(x)} sample, expected 2 or more: raise the batch")
    if x.shape[1:] != real.shape[1:] or not len(real):
        got, expected = tuple(real.shape), tuple(x.shape[1:])
        raise UserError(f"real data have shape {got}, expected one or more of shape {expected}")
    x, real = x.flatten(1), real.flatten(1)
    within = _distances(x, x)
    among = (within.sum() - within.diagonal().sum()) / (len(x) * (len(x) - 1))
    return 2 * _distances(x, real).mean() - among


def _distances(a: Tensor, b: Tensor) -> Tensor:
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return squared.clamp_min(LEAST).sqrt()

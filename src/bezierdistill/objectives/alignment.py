r"""Alignment: keep the distribution of the student's samples on that of the data, without a critic
or a discriminator.

A batch of the student's samples X and a batch of real data Y estimate a distance of their
distributions (:mod:`bezierdistill.objectives.distances`), such as the energy distance,

.. math:: 2\, E|X - Y| - E|X - X'| - E|Y - Y'|,

which is least if and only if the two distributions are equal. Its gradient pulls every sample
towards the data and pushes it away from the other samples. What is compared is what will be saved:
samples are clamped (not rounded) to the range of the data first. Compared are the states or their
features (:mod:`bezierdistill.models.features`), such as a teacher's hidden states: the mean over
groups, each divided by the mean distance of two real states in it. Those of real data are computed
once, so Y may be many times X.

With conditions the joint distribution of a sample and its condition c is aligned: groups are
lengthened by :math:`c / \sqrt 2`, which makes two classes as far apart as two real states are.

The samplers of the student (one pass, two passes, four) take turns, a step each. The gradient goes
through the last jump, the jumps before it cost one pass each. Where the samples start at the
sources of stored curves, their ends can anchor them at no further pass.

Source: Szekely & Rizzo 2013, *Energy statistics*; Li et al. 2015, *Generative moment matching
networks* (arXiv 1502.02761) and Bellemare et al. 2017, *The Cramer distance* (arXiv 1705.10743),
for generators trained by such a distance; arXiv 2602.04770 and 2605.07327 for features.
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
from bezierdistill.models.features import Features, Groups, States
from bezierdistill.objectives.base import Aligned, SingleObjective
from bezierdistill.objectives.distances import Distance, energy, mean_distance
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_not_negative

REAL_ROWS = 4  # real rows for every sample: they cost no pass of a step


@dataclass(frozen=True)
class Alignment(SingleObjective):
    """Distance of a sampler's states to real data, anchored at the ends of the curves.

    Args:
        knots: the knots of each sampler, from 0 to 1.
        metric: distance of the anchor.
        anchor: weight of the anchor, >= 0, where a batch has ends; they are measured in mean
            distances of two, as groups are. Only the anchor reaches a component that lies beyond
            the range of the data on the wrong side.
        clamp: maps states to the range in which they are saved; the identity where there is none.
        joint: whether states are compared with their conditions; without it the distribution over
            all conditions is aligned (conditions that are rows of a table are no vectors).
        features: what is compared of states; batches hold it of the real ones.
        distance: of samples and real states in a group; see
            :func:`~bezierdistill.objectives.distances.find_distance`.
        describe: gives the conditions of samples as vectors ``(B, C)``, as those of real states.

    Raises:
        UserError: on knots that do not rise from 0 to 1, or a negative anchor.
    """

    knots: Sequence[Sequence[float]]
    metric: Loss = field(default_factory=Loss)
    anchor: float = 0.03
    clamp: Callable[[Tensor], Tensor] = lambda x: x
    joint: bool = True
    features: Features = field(default_factory=States)
    distance: Distance = energy
    describe: Callable[[Tensor], Tensor] = lambda cond: cond

    def __post_init__(self) -> None:
        for times in self.knots:
            check_knots(times)
        check_not_negative(anchor=self.anchor)

    @property
    def cost(self) -> float:
        """Network passes per row of a step, in the mean over samplers: one with the gradient of its
        last jump, and features of its states. Those of real states are made once and are not among
        them.
        """
        return turns_cost(self.knots, self.features.calls, len(self.knots)) / len(self.knots)

    def loss(self, net: nn.Module, batch: Aligned, generator: torch.Generator) -> Tensor:
        """Loss of the sampler whose turn it is: two samples or more against real states; nothing is
        drawn.

        Raises:
            UserError: if only one of the samples and the real states have conditions.
        """
        x0, real, cond, real_cond, end, turn = batch
        beside = (cond, real_cond) if self.joint else (None, None)
        if (beside[0] is None) != (beside[1] is None):
            raise UserError("one of samples and real data has conditions, expected both or neither")
        units = [mean_distance(group) for group in real]
        times = self.knots[turn % len(self.knots)]
        with torch.no_grad():
            before = sample(net, x0, times[:-1], cond)
        x = sample(net, before, times[-2:], cond)
        told = None if beside[0] is None else self.describe(beside[0])
        made = _joined(self.features(self.clamp(x), cond), units, told)
        seen = _joined(real, units, beside[1])
        apart = [self.distance(a, b) for a, b in zip(made, seen, strict=True)]
        total = torch.stack(apart).mean()
        if self.anchor and end is not None:
            total = total + self.anchor * self.metric(x, end) / mean_distance(end)
        return total


def turns_cost(knots: Sequence[Sequence[float]], calls: int, batches: int) -> int:
    """Network passes of a row in each of so many batches, of samplers in turns from the first, with
    features of so many passes.
    """
    each = [len(times) + 1 + 3 * calls for times in knots]
    whole, rest = divmod(batches, len(each))
    return whole * sum(each) + sum(each[:rest])


def _joined(groups: Groups, units: Sequence[Tensor], cond: Tensor | None) -> Groups:
    """Groups in their units, with conditions beside them."""
    scaled = [group.flatten(1) / unit for group, unit in zip(groups, units, strict=True)]
    if cond is None:
        return tuple(scaled)
    return tuple(torch.cat([group, cond.to(group) / math.sqrt(2)], 1) for group in scaled)

r"""Distil curves into a student that emits them: :mod:`bezierdistill.networks.curve`.

Rows of two kinds are learned together.

* *Stored curves*: from a point B(s) of a stored curve the emitted one is to pass through a later
  point, at a time drawn from [s, 1], and through its end, which weighs :data:`END` times as much.
  One pass of the network answers for both. Few rows start at s = 0, more just after it: regression
  from the source alone ends on the mean of all that a network cannot tell apart there, and the
  samples of one pass shrink together; from a little later the curve's own state tells where it
  goes, and what is learned there holds at the source as well.
* *On-policy*: from B(s) at a uniform s the teacher is asked at the student's own point, and the
  velocity of the emitted curve is to be the teacher's there,

  .. math:: \| B'(\tau) - v(B(\tau),\, s + \tau (1 - s)) \|^2,

  with no gradient through v or the point where it is asked. Its fixed point is the collocation of
  the teacher's ODE within the degree, whatever the solver that made the stored curves; it is what
  later jumps of several passes need.

Source: Bezier distillation (Feng & Yang 2025, arXiv 2503.16562); the policies of pi-Flow (Chen et
al. 2025, arXiv 2510.14974), asked on their own path as in DAgger (Ross et al. 2011, arXiv
1011.0686). That both are one curve is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.fields import Field, passes_of
from bezierdistill.networks.curve import combine, emitted_point, velocity_weights
from bezierdistill.objectives.base import (
    Curves,
    Pairs,
    SingleObjective,
    check_positive,
    count_rows,
    uniform,
)
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_counts, check_shares

END = 4.0  # weight of a curve's end beside a drawn time
LEAST = 1e-3  # length of an interval, of those that are weighted by it


@dataclass(frozen=True)
class EmittedCurves(SingleObjective):
    """Train a network that emits curves on stored ones, and on a teacher along its own.

    Args:
        metric: distance between states.
        whole: share of the rows of stored curves that start at the source.
        early: exponent of the other starts, u^early of a uniform u.
        power: ``p`` of the weight ``(t - s)^-p`` of a state at t.
        teacher: the field that is asked, such as a blend of several teachers.
        on_policy: share of rows that learn from it.

    Raises:
        UserError: on shares outside [0, 1], an exponent that is not positive, or on-policy rows
            without a teacher.
    """

    metric: Loss = field(default_factory=Loss)
    whole: float = 0.15
    early: float = 2.0
    power: float = 1.0
    teacher: Field | None = None
    on_policy: float = 0.0

    def __post_init__(self) -> None:
        check_shares(whole=self.whole, on_policy=self.on_policy)
        check_positive(early=self.early)
        if self.on_policy and self.teacher is None:
            raise UserError(f"on-policy is {self.on_policy} and there is no teacher: expected 0")

    @property
    def cost(self) -> float:
        """Network passes per row of a step."""
        return emitted_cost(0 if self.teacher is None else passes_of(self.teacher), self.on_policy)

    def loss(self, net: nn.Module, batch: Curves, generator: torch.Generator) -> Tensor:
        """Loss of a batch of curves."""
        curve, cond = batch
        count = len(curve.source)
        asked = count_rows(count, self.on_policy, generator) if self.on_policy else 0
        later = torch.rand(count, generator=generator, device=generator.device)
        coin = torch.rand(count, generator=generator, device=generator.device)
        starts = torch.where(coin < self.whole, 0.0, later**self.early)
        stored = torch.arange(count, device=later.device) >= asked
        s = torch.where(stored, starts, later).to(curve.points)
        u = uniform(curve.source, generator)
        x, between = curve.ends(s, s + u * (1 - s))
        emitted = net(x, s, s, cond, whole=True)
        total = torch.zeros((), device=x.device)
        if asked < count:
            kept = slice(asked, None)
            for tau, target, weight in ((u, between, 1.0), (torch.ones_like(u), curve.data, END)):
                length = (tau[kept] * (1 - s[kept])).clamp_min(LEAST)
                state = emitted_point(x[kept], s[kept], emitted[kept], tau[kept])
                scale = length**-self.power if self.power else None
                total = total + weight / 2 * self.metric(state, target[kept], scale)
        if asked and self.teacher is not None:
            rows = slice(asked)
            own = None if cond is None else cond[rows]
            total = total + policy_loss(self.teacher, x[rows], s[rows], emitted[rows], u[rows], own)
        return total


def emitted_cost(teacher: int, on_policy: float) -> float:
    """Network passes per row of :class:`EmittedCurves` with a teacher of so many."""
    return 3 + on_policy * teacher


def whole_share(share: float, rows: int) -> float:
    """The largest share of a batch up to ``share`` that is whole rows: then every step costs the
    same, and what a training costs is known to the row.
    """
    return int(share * rows + 1e-9) / rows


def policy_loss(
    teacher: Field, x: Tensor, s: Tensor, emitted: Tensor, tau: Tensor, cond: Tensor | None
) -> Tensor:
    """Mean squared difference of velocities of emitted curves and of the teacher on them.

    Args:
        teacher: the field.
        x: states ``(B, ...)``.
        s: their times ``(B,)``.
        emitted: control points ``(B, K, ...)`` of the velocity over [s, 1].
        tau: where the teacher is asked, as a part of [s, 1], ``(B,)``.
        cond: conditions ``(B, C)``.
    """
    with torch.no_grad():
        at = emitted_point(x, s, emitted, tau)
        target = teacher(at, s + tau * (1 - s), cond)
    velocity = combine(velocity_weights(emitted.shape[1], tau), emitted)
    return (velocity - target).square().mean()


@dataclass(frozen=True)
class OnPolicy(SingleObjective):
    """Emitted curves by the teacher alone: no path is simulated, nothing is stored.

    Args:
        teacher: the field.
        asked: times M at which it is asked for a row, one in each of as many parts of the curve.
        whole: share of rows whose curve starts at the source; the others start at a uniform time,
            between their source and independent data.
    """

    teacher: Field
    asked: int = 1
    whole: float = 0.5

    def __post_init__(self) -> None:
        check_counts(asked=self.asked)
        check_shares(whole=self.whole)

    @property
    def cost(self) -> int:
        """Network passes per row of a step: a student's pass and M of the teacher."""
        return 3 + self.asked * passes_of(self.teacher)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of sources and independent data."""
        coin = torch.rand(len(batch.x0), generator=generator, device=generator.device)
        s = torch.where(coin.to(batch.x0) < self.whole, 0.0, uniform(batch.x0, generator))
        x = batch.point(s)
        emitted = net(x, s, s, batch.cond, whole=True)
        total = torch.zeros((), device=x.device)
        for k in range(self.asked):
            tau = (k + uniform(x, generator)) / self.asked
            total = total + policy_loss(self.teacher, x, s, emitted, tau, batch.cond)
        return total / self.asked

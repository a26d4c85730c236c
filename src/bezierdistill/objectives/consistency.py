r"""Consistency models: the end point :math:`f(x, s) = F(x, s, 1)` must agree at neighbouring times
of one path.

* :class:`ConsistencyDistillation`: the neighbour by a teacher's solver step (Song et al. 2023,
  arXiv 2303.01469, algorithm 2).
* :class:`ConsistencyTraining`: the same noise and datum at a time that draws near while training
  goes on. From a teacher's weights it is easy consistency tuning (ECT, Geng et al. 2024, arXiv
  2406.14548, as in the authors' code, locuslab/ect, ``training/loss.py``); from scratch it stands
  for iCT (Song & Dhariwal 2023, arXiv 2310.14189, table 1: eight stages of doubling too).

Samples are drawn by :func:`~bezierdistill.flow_map.renoised_sample`. The target is the network
itself without gradient, not its moving average (iCT, section 3.2). The boundary :math:`f(x, 1) = x`
holds by construction. The authors add noise of level :math:`\sigma` to data of deviation 0.5; with
data of deviation d the same signal-to-noise ratio is at :math:`t = 1 / (1 + \sigma d / 0.5)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.fields import Field, Stretched, passes_of
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives.base import (
    Pairs,
    ScheduledObjective,
    SingleObjective,
    check_positive,
)
from bezierdistill.objectives.intervals import KnotIntervals
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_counts
from bezierdistill.solvers import evaluations, solve

Level = TypeVar("Level", float, Tensor)
# iCT's scale, 0.00054 per component of data of deviation 0.5, for data of deviation 1.
PSEUDO_HUBER = Loss(0.001)


def noise_time(sigma: Level, data_std: float = 1.0) -> Level:
    """Flow time in (0, 1] of a noise level ``sigma`` >= 0, for data of deviation ``data_std``."""
    return 1 / (1 + sigma * (data_std / 0.5))


def karras_times(count: int = 18, data_std: float = 1.0) -> tuple[float, ...]:
    """The authors' ``count`` >= 2 noise levels (Karras et al. 2022, arXiv 2206.00364, eq. 5) as
    flow times, the ends moved to 0 and 1.
    """
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    levels = [(high + i / (count - 1) * (low - high)) ** 7 for i in range(1, count - 1)]
    return (0.0, *(noise_time(level, data_std) for level in levels), 1.0)


@dataclass(frozen=True)
class ConsistencyDistillation(SingleObjective):
    """Agree with a teacher's solver step between neighbouring times of a grid.

    Args:
        teacher: the field to distil: a teacher or a blend.
        times: the grid, from 0 to 1; every interval is drawn equally often.
        method: fixed-step solver (:data:`bezierdistill.solvers.TABLEAUX`).
        metric: distance; the authors' squared error.

    Raises:
        UserError: if the times do not rise from 0 to 1, or on an unknown method.
    """

    teacher: Field
    times: Sequence[float] = karras_times()
    method: str = "heun"
    metric: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        KnotIntervals((self.times,))  # this and the next line check the settings
        evaluations(self.method)

    @property
    def cost(self) -> int:
        """Network passes per row of a step: the teacher's step, the target, the student's step."""
        return evaluations(self.method) * passes_of(self.teacher) + 1 + 3

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws."""
        cond = batch.cond
        s, t = KnotIntervals((self.times,)).rows(batch.x1, generator)
        x = batch.point(s)
        with torch.no_grad():
            step = Stretched(self.teacher, s, t)
            neighbour = solve(step, x, (0.0, 1.0), self.method, cond).state
            target = flow_map(net, neighbour, t, 1.0, cond)
        return self.metric(flow_map(net, x, s, 1.0, cond), target)


@dataclass(frozen=True)
class ConsistencyTraining(ScheduledObjective):
    r"""Agree with the same noise and datum at a lower noise level, without a teacher's passes.

    Levels are log-normal, weights :math:`1 / (\sigma - \sigma_r)`, and in stage k = 0, 1, ... the
    lower level is :math:`\sigma_r = \sigma [1 - q^{-k-1} (1 + 8\,\mathrm{sigmoid}(-\sigma))]_+`.
    Zero is the datum itself: most of the first stage is denoising.

    Args:
        stages: number of equally long stages of training, 1 or more.
        decay: ``q > 1``, the factor by which a stage narrows the gap.
        log_mean, log_std: mean and (positive) deviation of ``log sigma``.
        data_std: deviation of a component of the data, positive.
        metric: distance; iCT's pseudo-Huber, which ECT uses at the limit of scale zero.

    Raises:
        UserError: on a setting outside its range.
    """

    stages: int = 8
    decay: float = 2.0
    log_mean: float = -1.1
    log_std: float = 2.0
    data_std: float = 1.0
    metric: Loss = PSEUDO_HUBER
    cost = 4

    def __post_init__(self) -> None:
        check_counts(stages=self.stages)
        check_positive(log_std=self.log_std, data_std=self.data_std)
        if not self.decay > 1:
            raise UserError(f"decay is {self.decay}, expected more than 1")

    def lower_level(self, sigma: Tensor, progress: float) -> Tensor:
        """The noise level that ``sigma`` is compared with at a ``progress`` in [0, 1]."""
        if not 0 <= progress <= 1:
            raise UserError(f"progress is {progress}, expected 0 (start of training) to 1 (end)")
        stage = min(int(progress * self.stages), self.stages - 1)
        gap = self.decay ** -(stage + 1) * (1 + 8 * torch.sigmoid(-sigma))
        return sigma * (1 - gap).clamp_min(0)

    def loss(
        self, net: nn.Module, batch: Pairs, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        """Loss of independent draws at a ``progress`` of training in [0, 1]."""
        rows = len(batch.x1)
        normal = torch.randn(rows, generator=generator, device=generator.device).to(batch.x1)
        sigma = (self.log_mean + self.log_std * normal).exp()
        lower = self.lower_level(sigma, progress)
        s, r = noise_time(sigma, self.data_std), noise_time(lower, self.data_std)
        with torch.no_grad():
            target = flow_map(net, batch.point(r), r, 1.0, batch.cond)
        prediction = flow_map(net, batch.point(s), s, 1.0, batch.cond)
        return self.metric(prediction, target, 1 / (sigma - lower))

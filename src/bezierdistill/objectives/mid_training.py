r"""Consistency mid-training: every state of a teacher's solver path, from noise, is mapped to where
the path ends.

.. math:: \big|F(\hat x_{t_i}, t_i, 1) - \hat x_1\big|, \qquad \hat x_{t_0} = x_0 \text{ noise},

over all solver states of a path. The targets are fixed: it is a regression, after which consistency
training (:class:`~bezierdistill.objectives.ConsistencyTraining`) starts from a map instead of a
velocity. Paths are simulated anew in every step, one for as many rows as it has states, so that a
step trains as many rows as its batch has. Our curves with ``objective="end"`` are the same on
stored paths.

Source: Hu et al. 2025, *CMT: mid-training for efficient learning of consistency, mean flow and flow
map models* (arXiv 2509.24526), section 3; their distance, LPIPS, is replaced by ``metric``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.fields import Field, passes_of
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives.base import Pairs, SingleObjective
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_counts
from bezierdistill.solvers import evaluations, solve, time_grid


@dataclass(frozen=True)
class MidTraining(SingleObjective):
    """Map the states of solver paths to their ends.

    Args:
        teacher: the field that is solved: a teacher or a blend.
        steps: solver steps of a path, 1 or more.
        method: fixed-step solver.
        metric: distance.

    Raises:
        UserError: on no step, or an unknown method.
    """

    teacher: Field
    steps: int = 8
    method: str = "heun"
    metric: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        check_counts(steps=self.steps)
        evaluations(self.method)

    @property
    def cost(self) -> int:
        """Network passes per row of a step: a path costs ``steps`` solver steps and trains as many
        rows. Exact if the rows of a batch are a multiple of the steps.
        """
        return 3 + evaluations(self.method) * passes_of(self.teacher)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of the paths from the first of a batch's sources; its data are not used."""
        rows = len(batch.x0)
        first, _ = batch.split(-(-rows // self.steps))
        x0, cond = first.x0, first.cond
        grid, states = time_grid(self.steps), list[Tensor]()
        with torch.no_grad():
            end = solve(
                self.teacher, x0, grid, self.method, cond, lambda k, x: states.append(x)
            ).state
        own = torch.arange(rows, device=end.device) % len(x0)
        x = torch.cat(states[:-1])[:rows]
        s = torch.tensor(grid[:-1], dtype=torch.float64).to(x).repeat_interleave(len(x0))[:rows]
        conds = None if cond is None else cond[own]
        return self.metric(flow_map(net, x, s, 1.0, conds), end[own])

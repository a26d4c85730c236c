r"""Distribution matching without a fake-score network: the critic is the generator's own diagonal.

The generator is a flow map, so that it holds a velocity itself, :math:`u(x_t, t, t)`. At noised
samples :math:`x_t` that velocity stands for the one of the generator's distribution in the gradient
of distribution matching (:mod:`~bezierdistill.objectives.distribution_matching`), where otherwise a
second network would be trained: no critic, no real data.

Later jumps start where the generator's own first one leads, :math:`F(x_0, 0, s)`, not from noised
samples (*flow-map-consistent backward simulation*). With a weight ``track`` the diagonal also
learns its samples' velocity by flow matching, in the same step and on the same samples: a distilled
map's diagonal is the teacher's at first, and would stay so. The student must start as a map: the
Euler step of a velocity, whose samples are their mean, is at rest. The authors rely on the loss of
the flow map in the place of ``track``, beside which theirs stands (from a teacher or from data);
that and their training from scratch are left out.

Source: Kim, Lee & Park 2026, *Distribution matching distillation without fake score network*
(FSF-DMD, arXiv 2605.19256); the details beyond its abstract are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.fields import Field, passes_of
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives.base import Pairs, SingleObjective
from bezierdistill.objectives.distribution_matching import DistributionMatching
from bezierdistill.settings import check_not_negative


@dataclass(frozen=True)
class FakeScoreFree(SingleObjective):
    """Match the distribution of one teacher field, by a student alone.

    Args:
        teacher: the field whose distribution is matched.
        knots: of the sampler, from 0 to 1; equally many rows of a batch start at each but the last.
        times: range of the re-noising time, within 0 and 1.
        track: weight of the flow matching of the diagonal on the student's samples, >= 0.

    Raises:
        UserError: on knots that do not rise from 0 to 1, an empty range of times or a negative
            weight.
    """

    teacher: Field
    knots: Sequence[float] = (0.0, 1.0)
    times: tuple[float, float] = (0.02, 0.98)
    track: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(track=self.track)
        self._matching  # noqa: B018  checks the other settings

    @property
    def cost(self) -> float:
        """Network passes per row of a step; exact if rows divide by the number of jumps."""
        jumps = len(self.knots) - 1
        return (jumps - 1) / jumps + 3 + passes_of(self.teacher) + 1 + (3 if self.track else 0)

    @property
    def _matching(self) -> DistributionMatching:
        return DistributionMatching(self.teacher, self.knots, self.times, 1)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of a batch's sources; its data are not used."""
        x = self.generate(net, batch.x0, batch.cond)
        total = self._matching.student_loss(x, net, batch.cond, generator)
        if self.track:
            total = total + self.track * self._matching.critic_loss(net, x, batch.cond, generator)
        return total

    def generate(self, net: nn.Module, x0: Tensor, cond: Tensor | None) -> Tensor:
        """End points of the last jump from every knot; the jump before it carries no gradient."""
        jumps = len(self.knots) - 1
        rows = len(x0) // jumps
        place = torch.arange(len(x0), device=x0.device) // max(rows, 1)
        s = torch.tensor(self.knots[:-1], dtype=torch.float64).to(x0)[place.clamp_max(jumps - 1)]
        later = s > 0
        x = x0
        if bool(later.any()):
            with torch.no_grad():
                moved = flow_map(
                    net, x0[later], 0.0, s[later], None if cond is None else cond[later]
                )
            x = x0.index_copy(0, later.nonzero()[:, 0], moved)
        return flow_map(net, x, s, 1.0, cond)

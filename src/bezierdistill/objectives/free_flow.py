r"""Flow maps distilled from noise alone: a predictor that follows the teacher on the student's own
states, and a corrector of the distribution that comes out.

Every state is :math:`F(z, t) = z + t\, u(z, 0, t)` of pure noise z, so that no data set can
disagree with what the teacher generates.

* Predictor: the generating velocity :math:`\partial_t F = u + t\, \partial_t u` must be the
  teacher's, :math:`\big|u - \mathrm{sg}\big(v(F, t) - t\, \partial_t u\big)\big|^2`, t uniform.
* Corrector: a sample :math:`x = F(z, 1)`, noised again to :math:`x_r`, must move as the teacher
  says: the gradient of u(z, 0, 1) is the difference :math:`g(x_r, r) - v(x_r, r)` to an auxiliary
  network g, which learns the velocity of the student's noised samples by flow matching.

The authors balance the two by the norms of their gradients and guide the teacher; here one number
weighs them. The last part is distribution matching (arXiv 2405.14867), one update of g each step.

Source: Tong et al. 2025, *Flow map distillation without data* (FreeFlow, arXiv 2511.19428),
sections 4.1 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import Field, NetworkField, passes_of
from bezierdistill.flow_map import flow_map, fresh_noise
from bezierdistill.objectives.base import (
    Losses,
    Nets,
    Pairs,
    count_rows,
    uniform,
)
from bezierdistill.objectives.flow_matching import FlowMatching
from bezierdistill.objectives.jvp import forward_derivative
from bezierdistill.objectives.losses import Loss
from bezierdistill.settings import check_not_negative, check_shares


@dataclass(frozen=True)
class FreeFlow:
    """Predict and correct; the first network is the student, the second the auxiliary one.

    Args:
        teacher: the field to distil: a teacher or a blend.
        share: share of the rows that correct, in [0, 1]; the others predict.
        weight: weight of the corrector, >= 0.
        metric: distance of the predictor.

    Raises:
        UserError: on a setting outside its range.
    """

    teacher: Field
    share: float = 0.5
    weight: float = 1.0
    metric: Loss = field(default_factory=Loss)

    def __post_init__(self) -> None:
        check_shares(share=self.share)
        check_not_negative(weight=self.weight)

    @property
    def cost(self) -> float:
        """Network passes per row of a step: value, derivative and teacher where it predicts; a
        sample, both velocities and the auxiliary network's update where it corrects.
        """
        asked = passes_of(self.teacher)
        return (1 - self.share) * (4 + asked) + self.share * (3 + asked + 1 + 3)

    def losses(
        self, nets: Nets, batch: Pairs, generator: torch.Generator, progress: float = 0.0
    ) -> Losses:
        """One round: the student's loss, then the auxiliary network's. The data are not used."""
        (student, net), *others = nets.items()
        count = count_rows(len(batch.x0), self.share, generator)
        corrected, predicted = batch.split(count)
        rows, total, x = len(batch.x0), torch.zeros((), device=batch.x0.device), None
        if rows > count:
            share = (rows - count) / rows
            total = total + share * self.predictor(net, predicted, generator)
        if count:
            x = flow_map(net, corrected.x0, 0.0, 1.0, corrected.cond)
            for _, critic in others:
                loss = self.corrector(x, critic, corrected.cond, generator)
                total = total + self.weight * count / rows * loss
        yield student, total
        if x is not None:
            for name, critic in others:
                own = Pairs(fresh_noise(x, generator), x.detach(), corrected.cond)
                yield name, FlowMatching().loss(critic, own, generator)

    def predictor(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of the generating velocity from the sources of a batch."""
        z, cond = batch.x0, batch.cond
        t = uniform(z, generator)
        start, gap = torch.zeros_like(t), expand_time(t, z)
        u, slope = forward_derivative(
            lambda time: net(z, start, time, cond), (t,), (torch.ones_like(t),)
        )
        with torch.no_grad():
            target = self.teacher(z + gap * u, t, cond) - gap * slope
        return self.metric(u, target)

    def corrector(
        self, x: Tensor, critic: nn.Module, cond: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Loss whose gradient at samples ``x`` ``(B, ...)`` is twice the difference of velocities,
        per component.
        """
        with torch.no_grad():
            r = uniform(x, generator)
            noisy = torch.lerp(fresh_noise(x, generator), x, expand_time(r, x))
            wrong = NetworkField(critic)(noisy, r, cond) - self.teacher(noisy, r, cond)
        return (x - (x - wrong).detach()).square().mean()

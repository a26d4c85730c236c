r"""Mean flows: learn the average velocity from its derivative along the path, without a teacher or
a simulation.

Differentiating :math:`(t - s)\, u(x_s, s, t) = \int_s^t v(x_r, r)\, dr` by the time s of the state,
along the path, gives the identity

.. math:: u(x_s, s, t) = v + (t - s) \frac{d}{ds} u(x_s, s, t), \qquad \frac{d}{ds} = v \cdot \nabla_x + \partial_s.

Its right side, with the line's velocity :math:`v = x_1 - x_0` and without gradient, is the target
of u; at s = t this is flow matching. With the squared error :math:`|e|^2` of a row, the loss is
:math:`|e|^2 / \mathrm{sg}(|e|^2 + c)^p`.

Source: Geng et al. 2025, *Mean flows for one-step generative modeling* (arXiv 2505.13447), eq.
6-11, algorithm 1. The authors' time
t' runs from data to noise: their state's time is :math:`1 - s`, their r is :math:`1 - t`, their v
is the negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.errors import UserError
from bezierdistill.objectives.flow_map_matching import (
    Batch,
    check_share,
    count_rows,
    forward_derivative,
    split_batch,
)


@dataclass(frozen=True)
class MeanFlow:
    """Regress the average velocity on the mean-flow identity.

    The defaults are the authors' for ImageNet. For CIFAR-10 they use share 0.75, power 0.75, logit
    mean -2 and deviation 2. A power above 0 draws u from the mean of its noisy target towards the
    target's mode: little in many dimensions, much in few.

    Args:
        share: share of the rows with s < t, in [0, 1]; the others have s = t.
        power: ``p`` of the adaptive weight, >= 0; zero is the squared error.
        logit_mean: mean of the logit of the noise's share ``1 - s``.
        logit_std: its deviation, positive.
        offset: ``c`` of the adaptive weight, positive.

    Raises:
        UserError: on a setting outside its range.
    """

    share: float = 0.25
    power: float = 1.0
    logit_mean: float = -0.4
    logit_std: float = 1.0
    offset: float = 1e-3

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.power < 0:
            raise UserError(f"power is {self.power}, expected 0 (squared error) or more")
        for name in ("logit_std", "offset"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected more than 0")

    @property
    def passes(self) -> float:
        """Network passes a row and step: 3, and 1 more for the derivative where s < t."""
        return 3 + self.share

    def times(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times ``s <= t``, each ``(count,)``: two logit-normal draws in order."""
        normal = torch.randn(2, count, generator=generator, device=generator.device)
        return torch.sigmoid(-self.logit_mean - self.logit_std * normal).aminmax(dim=0)

    def loss(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of a batch ``(x0, x1, cond)`` of independent draws ``(B, ...)``."""
        count = count_rows(len(batch[1]), self.share, generator)
        averaged, (x0, x1, cond) = split_batch(batch, count)
        errors = [self._average_error(net, averaged, generator)] if count else []
        if len(x1):
            s, _ = (
                time.to(x1) for time in self.times(len(x1), generator)
            )  # the earlier of two here too, as in the authors' code
            errors.append(net(torch.lerp(x0, x1, expand_time(s, x1)), s, s, cond) - (x1 - x0))
        square = torch.cat(errors).flatten(1).square().sum(1)
        return (square * (square.detach() + self.offset) ** -self.power).mean()

    def _average_error(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        x0, x1, cond = batch
        s, t = (time.to(x1) for time in self.times(len(x1), generator))
        x, v = torch.lerp(x0, x1, expand_time(s, x1)), x1 - x0
        u, slope = forward_derivative(
            lambda state, time: net(state, time, t, cond), (x, s), (v, torch.ones_like(s))
        )
        return u - (v + expand_time(t - s, x) * slope).detach()

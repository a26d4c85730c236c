r"""Terminal velocity matching: where a jump ends it must move as the flow does there, and the flow
is learned beside it, from scratch.

.. math:: \big|\partial_t X_{s,t}(x_s) - \mathrm{sg}\, u(X_{s,t}(x_s), t, t)\big|^2
          + \big|u(x_r, r, r) - (x_1 - x_0)\big|^2, \qquad X_{s,t}(x) = x + (t-s)\, u(x, s, t),

both terms on every row, r independent of s and t. The sum bounds the Wasserstein distance of the
jump's distribution to the data's. It differs from Lagrangian self-distillation
(:mod:`~bezierdistill.objectives.flow_map_matching`) in that no row is without either term, and in
its times: lengths :math:`t - s` and the noise's share where a jump ends are logit-normal, the
latter cut off so that the jump starts at 0 or later.

The authors take the target from averaged weights, here they are the trained ones; their guidance
and their changes to the transformer (which make it Lipschitz) are left out.

Source: Zhou et al. 2025, *Terminal velocity matching* (arXiv 2511.19797), and the authors' code
(lumalabs/tvm) for the times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.fields import NetworkField
from bezierdistill.objectives.base import (
    Pairs,
    SingleObjective,
    check_positive,
    velocity_error,
)
from bezierdistill.objectives.flow_map_matching import lagrangian_error
from bezierdistill.objectives.intervals import Intervals


@dataclass(frozen=True)
class GapIntervals(Intervals):
    """Lengths ``t - s`` with normal logits; given one, the noise's share ``1 - t`` has a normal
    logit, cut off so that ``s >= 0``.

    Args:
        gap_mean, gap_std: of the logit of the length.
        mean, std: of the logit of the noise's share at the end.

    Raises:
        UserError: if a deviation is not positive.
    """

    gap_mean: float = -0.8
    gap_std: float = 1.0
    mean: float = -0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        check_positive(gap_std=self.gap_std, std=self.std)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~bezierdistill.objectives.Intervals`."""
        device = generator.device
        normal = torch.randn(count, generator=generator, device=device, dtype=torch.float64)
        u = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        gap = torch.sigmoid(self.gap_mean + self.gap_std * normal)
        most = torch.special.ndtr((torch.logit(1 - gap) - self.mean) / self.std)
        cut = torch.special.ndtri((u * most).clamp(1e-12, 1 - 1e-12))
        noise = torch.minimum(torch.sigmoid(self.mean + self.std * cut), 1 - gap)
        t = 1 - noise
        return (t - gap).clamp_min(0.0), t


@dataclass(frozen=True)
class TerminalVelocity(SingleObjective):
    """Learn jumps by the velocity at their ends, and that velocity.

    Args:
        gap_mean, gap_std, logit_mean, logit_std: of :class:`GapIntervals`; the velocity is learnt
            where the noise's share has a logit of the last two.

    Raises:
        UserError: if a deviation is not positive.
    """

    gap_mean: float = -0.8
    gap_std: float = 1.0
    logit_mean: float = -0.4
    logit_std: float = 1.0
    cost = 10  # 6 for value and derivative, trained through, 1 for the target, 3 for the velocity

    def __post_init__(self) -> None:
        check_positive(gap_std=self.gap_std, logit_std=self.logit_std)

    @property
    def intervals(self) -> GapIntervals:
        """Where jumps are learnt."""
        return GapIntervals(self.gap_mean, self.gap_std, self.logit_mean, self.logit_std)

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws."""
        s, t = self.intervals.rows(batch.x1, generator)
        normal = torch.randn(len(batch.x1), generator=generator, device=generator.device)
        r = torch.sigmoid(-self.logit_mean - self.logit_std * normal).to(batch.x1)
        jump = lagrangian_error(net, NetworkField(net), batch, s, t)
        return jump.square().mean() + velocity_error(net, batch, r).square().mean()

r"""Distribution matching distillation: a few-step generator whose distribution is moved onto
the teacher's, without pairs or a discriminator.

A sample x of the generator is re-noised to :math:`x_t = (1-t)\epsilon + t x`; the teacher's and a
critic's end points :math:`x_t + (1-t) v` differ by the gradient of the divergence between the
distributions, normalised as DMD does. Two rules make DMD2 of it:

* two time scales: ``critic_steps`` updates of the critic, by flow matching on fresh samples, for
  one of the generator, and no regression;
* backward simulation: the generator's later jumps are trained from its own earlier ones. For times
  :math:`0 = s_0 < s_1 < \dots` the sampler is :math:`\hat x = F(x, s_j, 1)`, then :math:`x = (1 -
  s_{j+1})\, \epsilon + s_{j+1}\, \hat x` with fresh noise. A step draws one j, simulates up to it
  without a gradient and trains the jump from :math:`s_j`.

The authors' schedule runs from the data to the noise in 1000 steps, of which they re-noise with 20
to 980, uniformly; that range is symmetric in t. Their adversarial loss is left out: it needs the
data, this method only the teacher.

Source: Yin et al. 2024, *Improved distribution matching distillation* (DMD2, arXiv 2405.14867),
sections 4.1, 4.2, 4.4 and 4.5; *One-step diffusion with distribution matching distillation* (arXiv
2311.18828), eq. 7-8; their code for the order of updates in a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, NetworkField, passes_of
from bezierdistill.flow_map import flow_map, fresh_noise
from bezierdistill.knots import check_knots
from bezierdistill.objectives.base import Losses, Nets, Pairs, uniform
from bezierdistill.objectives.flow_matching import FlowMatching
from bezierdistill.settings import check_counts


@dataclass(frozen=True)
class DistributionMatching:
    """Match the distribution of one teacher field, by a student and its critic.

    Args:
        teacher: the field whose distribution is matched.
        knots: of the sampler, from 0 to 1: ``(0, 1)`` one pass, ``(0, s, 1)`` two.
        times: range of the re-noising time, within 0 and 1.
        critic_steps: updates of the critic for one of the generator, 1 or more.

    Raises:
        UserError: on knots that do not rise from 0 to 1, an empty range of times or no critic step.
    """

    teacher: Field
    knots: Sequence[float] = (0.0, 1.0)
    times: tuple[float, float] = (0.02, 0.98)
    critic_steps: int = 5

    def __post_init__(self) -> None:
        check_knots(self.knots)
        if not 0 <= self.times[0] <= self.times[1] < 1:
            raise UserError(f"times are {self.times}, expected low <= high in [0, 1)")
        check_counts(critic_steps=self.critic_steps)

    @property
    def cost(self) -> float:
        """Mean passes per row of a step; with one inner knot, half the steps simulate a jump."""
        simulated = (len(self.knots) - 2) / 2
        student = simulated + 3 + passes_of(self.teacher) + 1
        return student + 3 * self.critic_steps + (self.critic_steps - 1) * (simulated + 1)

    def losses(
        self, nets: Nets, batch: Pairs, generator: torch.Generator, progress: float = 0.0
    ) -> Losses:
        """One round: the loss of the first network, the student, then those of the second, its
        critic, on these samples first and then on fresh ones. The batch's data are not used.
        """
        (student, net), (judge, critic) = nets.items()
        x0, cond = batch.x0, batch.cond
        x = self.generate(net, x0, cond, generator)
        yield student, self.student_loss(x, critic, cond, generator)
        yield judge, self.critic_loss(critic, x, cond, generator)
        for _ in range(self.critic_steps - 1):
            with torch.no_grad():
                x = self.generate(net, fresh_noise(x0, generator), cond, generator)
            yield judge, self.critic_loss(critic, x, cond, generator)

    def student_loss(
        self, x: Tensor, critic: nn.Module, cond: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Loss whose gradient moves the generator's samples ``x`` ``(B, ...)`` from the critic's
        distribution towards the teacher's.

        The gradient of each row is divided by the mean distance of its sample from the teacher's
        end point (arXiv 2311.18828, eq. 8).
        """
        with torch.no_grad():
            low, high = self.times
            t = low + (high - low) * uniform(x, generator)
            noisy = torch.lerp(fresh_noise(x, generator), x, expand_time(t, x))
            to_end = 1 - expand_time(t, x)
            real = self.teacher(noisy, t, cond)
            gradient = to_end * (NetworkField(critic)(noisy, t, cond) - real)
            scale = (x - (noisy + to_end * real)).abs().flatten(1).mean(1).clamp_min(1e-3)
        return 0.5 * ((x - (x - gradient).detach()).square().flatten(1).mean(1) / scale).mean()

    def critic_loss(
        self, critic: nn.Module, x: Tensor, cond: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Flow matching of the critic on the generator's samples ``x`` ``(B, ...)``."""
        batch = Pairs(fresh_noise(x, generator), x.detach(), cond)
        return FlowMatching().loss(critic, batch, generator)

    def generate(
        self, net: nn.Module, x0: Tensor, cond: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """End points of a random jump of the sampler; those before it carry no gradient."""
        jumps, device = len(self.knots) - 1, generator.device
        last = int(torch.randint(jumps, (), generator=generator, device=device))
        x = x0
        with torch.no_grad():
            for s in self.knots[:last]:
                x = _jump(net, x, s, cond, generator)
        return _jump(net, x, self.knots[last], cond, generator)


def _jump(
    net: nn.Module, x: Tensor, s: float, cond: Tensor | None, generator: torch.Generator
) -> Tensor:
    """From an end point back to the time ``s`` by fresh noise, then to the end; at 0 from ``x``."""
    start = torch.lerp(fresh_noise(x, generator), x, s) if s else x
    return flow_map(net, start, s, 1.0, cond)

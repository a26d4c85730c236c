r"""DMD2 with its GAN: distribution matching, and a discriminator that reads the critic's hidden
features.

Samples x and real data are noised to a random time; the head sees what the middle of the critic
makes of them, D a number a row. The generator's loss gains :math:`w\,\mathrm{softplus}(-D(x_t))`,
the critic's :math:`w'\,[\mathrm{softplus}(D(x_t)) + \mathrm{softplus}(-D(y_t))]` for real y, which
trains the critic's features as well as the head: the authors' *non-saturating* loss on *diffused*
states. The real data correct what the teacher does not know.

Features are averaged over places or tokens and the head is one linear layer, where the authors have
convolutions; its work is not counted as passes.

Source: Yin et al. 2024, *Improved distribution matching distillation* (DMD2, arXiv 2405.14867),
section 4.3; weights as in their code for ImageNet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.curves import expand_time
from bezierdistill.errors import UserError
from bezierdistill.flow_map import fresh_noise
from bezierdistill.networks.second import outputs_of
from bezierdistill.objectives.base import Losses, Nets, Pairs, uniform
from bezierdistill.objectives.distribution_matching import DistributionMatching
from bezierdistill.settings import check_not_negative


class Discriminating(nn.Module):
    """A critic ``net(x, s, t, cond)`` with a head on a hidden part.

    Args:
        net: the critic.
        part: path of the submodule whose output the head reads: ``(B, width)``, ``(B, width, H,
            W)`` or ``(B, tokens, width)``.
        width: of that output.
    """

    def __init__(self, net: nn.Module, part: str, width: int) -> None:
        super().__init__()
        self.net, self.part, self.head = net, part, nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(next(net.parameters()))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The critic's velocity ``(B, ...)``."""
        return self.net(x, s, t, cond)

    def logits(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """How real the states ``(B, ...)`` at times ``(B,)`` look, ``(B,)``: one pass."""
        outs = outputs_of(self.net, [self.part], lambda: self.net(x, t, t, cond))
        hidden = outs[self.part][0]
        hidden = hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden
        hidden = hidden.mean(1) if hidden.ndim == 3 else hidden
        return self.head(functional.silu(hidden))[:, 0]


@dataclass(frozen=True)
class AdversarialMatching(DistributionMatching):
    """Distribution matching with a GAN's loss; the critic is a :class:`Discriminating`.

    Args:
        generator_weight: of the generator's part, >= 0.
        critic_weight: of the critic's part, >= 0.

    Raises:
        UserError: on a negative weight, and as :class:`DistributionMatching`.
    """

    generator_weight: float = 3e-3
    critic_weight: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(generator_weight=self.generator_weight, critic_weight=self.critic_weight)

    @property
    def cost(self) -> float:
        """Mean passes per row of a step: the discriminator's, of a sample for the generator, of a
        sample and a real state for every update of the critic, beside those of
        :class:`DistributionMatching`.
        """
        return super().cost + 3 + 6 * self.critic_steps

    def losses(
        self, nets: Nets, batch: Pairs, generator: torch.Generator, progress: float = 0.0
    ) -> Losses:
        """One round; see :class:`DistributionMatching`."""
        (student, net), (judge, critic) = nets.items()
        x0, real, cond = batch.x0, batch.x1, batch.cond
        for k in range(self.critic_steps):
            with torch.set_grad_enabled(k == 0):
                start = x0 if k == 0 else fresh_noise(x0, generator)
                x = self.generate(net, start, cond, generator)
            if k == 0:
                with _frozen(critic):
                    told = functional.softplus(-self._logits(critic, x, cond, generator)).mean()
                loss = self.student_loss(x, critic, cond, generator)
                yield student, loss + self.generator_weight * told
            x = x.detach()
            made = functional.softplus(self._logits(critic, x, cond, generator)).mean()
            given = functional.softplus(-self._logits(critic, real, cond, generator)).mean()
            loss = self.critic_loss(critic, x, cond, generator)
            yield judge, loss + self.critic_weight * (made + given)

    def _logits(
        self, critic: nn.Module, x: Tensor, cond: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        if not hasattr(critic, "logits"):
            raise UserError("the critic has no head, expected a Discriminating")
        low, high = self.times
        t = low + (high - low) * uniform(x, generator)
        noisy = torch.lerp(fresh_noise(x, generator), x, expand_time(t, x))
        return critic.logits(noisy, t, cond)  # pyright: ignore[reportCallIssue]


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """No gradient of a network's parameters from the passes in a block."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

r"""Shortcut models: one network for every step size, where a step learns from two of its own steps
of half the size.

For a step :math:`2d \in \{1, \tfrac12, \dots, \tfrac1{64}\}` from a time s on the grid of its
multiples, with :math:`m = s + d`,

.. math:: u(x_s, s, s + 2d) \to \tfrac12\big(u(x_s, s, m) + u(x_m, m, m + d)\big), \qquad
          x_m = x_s + d\, u(x_s, s, m),

without gradient on the right, where the smallest step 1/128 is read on the diagonal, :math:`u(x, s,
s)`. The diagonal is learned by flow matching on the rest of the rows. The right side uses averaged
weights. The authors' code also clamps targets and states to the range of their latents; their paper
does not, nor does this file.

Source: Frans et al. 2024, *One step diffusion via shortcut models* (arXiv 2410.12557), eq. 4-5,
algorithm 1; start times and the share of rows as in the authors' code (``targets_shortcut.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.objectives.base import (
    Pairs,
    SingleObjective,
    count_rows,
    velocity_error,
)
from bezierdistill.settings import check_counts, check_shares


@dataclass(frozen=True)
class Shortcut(SingleObjective):
    """Self-consistency of steps on a share of the rows, flow matching on the others.

    Args:
        share: share of the rows that learn self-consistency, in [0, 1].
        halvings: number of times a step of 1 is halved down to the smallest, 1 or more.
        target: the network that bootstraps, whose weights the caller keeps at a moving average (the
            authors': decay 0.999) of the trained network's; without one, the trained network
            itself.

    Raises:
        UserError: on a setting outside its range.
    """

    share: float = 0.25
    halvings: int = 7
    target: nn.Module | None = None

    def __post_init__(self) -> None:
        check_shares(share=self.share)
        check_counts(halvings=self.halvings)

    @property
    def cost(self) -> float:
        """Network passes per row of a step: 3, and 2 more for the two steps of the target."""
        return 3 + 2 * self.share

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Loss of independent draws at times of the grids."""
        count = count_rows(len(batch.x1), self.share, generator)
        stepped, others = batch.split(count)
        errors = [self._step_error(net, stepped, generator)] if count else []
        if rows := len(others.x1):
            ends = 2**self.halvings
            i = torch.randint(ends, (rows,), generator=generator, device=generator.device)
            errors.append(velocity_error(net, others, i.to(batch.x1) / ends))
        return torch.cat(errors).square().mean()

    def _step_error(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        x1, cond = batch.x1, batch.cond
        target = net if self.target is None else self.target
        rows, device = (len(x1),), generator.device
        halved = torch.randint(self.halvings, rows, generator=generator, device=device)
        steps = 2.0**halved  # of the size learned, that fit into [0, 1]
        u = torch.rand(rows, generator=generator, device=device)
        s, d = ((u * steps).floor() / steps).to(x1), (0.5 / steps).to(x1)
        read = d * (halved < self.halvings - 1).to(d)  # zero for the smallest step
        x, m = batch.point(s), s + d
        with torch.no_grad():
            first = target(x, s, s + read, cond)
            second = target(x + expand_time(d, x) * first, m, m + read, cond)
        return net(x, s, m + d, cond) - (first + second) / 2

r"""Drifting: the training itself moves the generator's distribution onto that of the data, by a
field that is zero where the two are equal.

For samples x of a one-pass generator, real states y and a width :math:`\tau`, with :math:`k =
e^{-|x - y|/\tau}` over the real states and the *other* samples together, normalised over both axes,

.. math:: A = \sqrt{\mathrm{softmax}_y \cdot \mathrm{softmax}_x}, \qquad
          V_i = \sum_{jk} A_{ij} A_{ik}\, (y_j - x_k), \qquad
          \big|\varphi(x) - \mathrm{sg}(\varphi(x) + V)\big|^2,

j over the real states, k over the other samples: attraction less repulsion, with signs exchanged
where the two sets are. Groups of features :math:`\varphi` are scaled to a mean distance of 1 (a
loss per component of :math:`\sqrt D` times that), and the V of each width to unit root mean square;
both are summed. Without features the states themselves drift; with the hidden states of a teacher
it is teacher-feature drifting.

With conditions the joint distribution drifts, as in :mod:`~bezierdistill.objectives.alignment`: the
authors draw 64 samples of every class instead, which small batches do not hold. Guidance, random
styles, queues and (of the second paper) the loss of mode coverage are left out.

Source: Deng et al. 2026, *Generative modeling via drifting* (arXiv 2602.04770), algorithm 2 and
appendix A.6; Zhang et al. 2026, *Teacher-feature drifting* (arXiv 2605.07327).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives.base import SingleObjective, check_positive
from bezierdistill.settings import check_counts

Features = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
WIDTHS = (0.02, 0.05, 0.2)
LEAST = 1e-12  # of what is divided by


class Drifted(NamedTuple):
    """B sources ``(B, ...)`` beside N real states ``(N, ...)``, and the conditions of both."""

    x0: Tensor
    real: Tensor
    cond: Tensor | None = None
    real_cond: Tensor | None = None


@dataclass(frozen=True)
class Drifting(SingleObjective):
    """Move the samples of one pass along the drift towards real states.

    Args:
        widths: of the kernel, in mean distances of two states; one drift for each, summed.
        features: what drifts of states ``(B, ...)`` and conditions: groups ``(B, D)``. Its
            attribute ``calls`` counts its network passes, without it 1. None: the states.
        normalised: whether every drift is divided by its root mean square, as the authors do.
        clamp: maps states to the range in which they are saved; the identity where there is none.
        real_rows: real rows of a batch for every sample, 1 or more.

    Raises:
        UserError: if a width is not positive, or there is no width or no real row.
    """

    widths: Sequence[float] = WIDTHS
    features: Features | None = None
    normalised: bool = True
    clamp: Callable[[Tensor], Tensor] = lambda x: x
    real_rows: int = 4

    def __post_init__(self) -> None:
        check_counts(widths=len(self.widths), real_rows=self.real_rows)
        for width in self.widths:
            check_positive(width=width)

    @property
    def cost(self) -> int:
        """Network passes per row of a step: a sample with its gradient, features of it and of the
        real states.
        """
        calls = 0 if self.features is None else getattr(self.features, "calls", 1)
        return 3 + calls * (3 + self.real_rows)

    def loss(self, net: nn.Module, batch: Drifted, generator: torch.Generator) -> Tensor:
        """Loss of two samples or more against real states; nothing is drawn."""
        cond, real_cond = batch.cond, batch.real_cond
        if (cond is None) != (real_cond is None):
            raise UserError("one of sources and real data has conditions, expected both or neither")
        x = self.clamp(flow_map(net, batch.x0, 0.0, 1.0, cond))
        with torch.no_grad():
            seen = self._groups(batch.real, real_cond)
        total = torch.zeros((), device=x.device)
        for made, real in zip(self._groups(x, cond), seen, strict=True):
            total = total + self._group_loss(made, real, cond, real_cond)
        return total

    def _groups(self, x: Tensor, cond: Tensor | None) -> tuple[Tensor, ...]:
        return (x.flatten(1),) if self.features is None else self.features(x, cond)

    def _group_loss(
        self, made: Tensor, real: Tensor, cond: Tensor | None, real_cond: Tensor | None
    ) -> Tensor:
        size, root = made.shape[1], math.sqrt(made.shape[1])
        with torch.no_grad():
            scale = torch.cdist(made, torch.cat([made, real])).mean().clamp_min(LEAST)
            x, y = made / scale, real / scale
            if cond is not None and real_cond is not None:
                x, y = (
                    torch.cat([part, beside.to(part) / math.sqrt(2)], 1)
                    for part, beside in ((x, cond), (y, real_cond))
                )
            total = torch.zeros_like(made)
            for width in self.widths:
                v = drift(x, y, x, width, others=True)[:, :size] * root
                total += v / v.square().mean().sqrt().clamp_min(LEAST) if self.normalised else v
        own = made * (root / scale)
        return (own - (own + total).detach()).square().mean()


def drift(x: Tensor, real: Tensor, own: Tensor, width: float, others: bool = False) -> Tensor:
    """The field V ``(B, D)`` at ``x`` ``(B, D)``, from its ``own`` distribution ``(M, D)`` towards
    the ``real`` one ``(N, D)``.

    Args:
        x: where.
        real: what attracts.
        own: what repels.
        width: of the kernel.
        others: whether ``own`` is ``x``, whose rows do not repel themselves.

    Raises:
        UserError: if there is no other sample that repels.
    """
    if others and len(x) < 2:
        raise UserError(f"drifting got {len(x)} sample, expected 2 or more: raise the batch")
    repelled = torch.cdist(x, own)
    if others:
        repelled.fill_diagonal_(math.inf)
    logits = torch.cat([torch.cdist(x, real), repelled], 1) / -width
    weight = ((logits.log_softmax(0) + logits.log_softmax(1)) / 2).exp()
    pull, push = weight.split([len(real), len(own)], 1)
    pull, push = pull * push.sum(1, keepdim=True), push * pull.sum(1, keepdim=True)
    return pull @ real - push @ own

r"""A discrete rival for texts: masked diffusion, whose steps draw every character by itself.

A text is hidden character by character; the network says which character stands behind each mask,

.. math:: \mathcal{L} = \mathbb{E}_t\, \frac{1}{1 - t} \sum_{l\ \mathrm{masked}}
   -\log p(x_l \mid x_{\mathrm{shown}}), \qquad P(\mathrm{masked}) = 1 - t,

and a sampler of k passes shows each character in one of k steps, drawn independently of what is
shown in the same step. Few steps therefore lose what characters have to do with each other; of one
step nothing is left but the marginals, however well the network is trained.

It has the arena's network and budget: a mask is a row of zeros, the mean of all characters, and
what is otherwise a velocity are logits. In the arena by

    --methods bezier,benchmarks/masked_diffusion.py:masked_diffusion

Source: Sahoo et al. 2024, *Simple and effective masked diffusion language models* (arXiv
2406.07524), eq. 8 with alpha_t = t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.arena.bench import Bench, Sampler
from bezierdistill.noise import Stream, generator
from bezierdistill.objectives import Pairs, SingleObjective
from bezierdistill.objectives.base import uniform

LEAST = 1e-3  # probability of a mask, which weighs a character by its inverse
PASSES, ORDER = (1, 2, 4, 20), 1004  # the last one is what a generator is for


@dataclass(frozen=True)
class MaskedDiffusion(SingleObjective):
    """Train a network to name hidden characters of one-hot states ``(B, L, V)``."""

    cost = 3

    def loss(self, net: nn.Module, batch: Pairs, generator: torch.Generator) -> Tensor:
        """Negative log-likelihood bound per character."""
        x, t = batch.x1, uniform(batch.x1, generator)
        draws = torch.rand(x.shape[:2], generator=generator, device=generator.device).to(x)
        shown = draws < t[:, None]
        logits = net(x * shown[..., None], t, t, batch.cond)
        missed = functional.cross_entropy(logits.mT, x.argmax(2), reduction="none")
        return (missed * ~shown / (1 - t[:, None]).clamp_min(LEAST)).mean()


@torch.no_grad()
def sample(
    net: Any, ones: Tensor, seed: int, x0: Tensor, passes: int, cond: Tensor | None = None
) -> Tensor:
    """Texts in ``passes`` steps, as states like those of data.

    Args:
        net: gives logits ``(N, L, V)``.
        ones: the states ``(V, V)`` of each character alone.
        seed: draws the step in which each character is shown.
        x0: normal noise ``(N, L, V)``, which draws the characters, by Gumbel's maximum.
        passes: number of steps.
        cond: conditions ``(N, C)``.
    """
    shares = torch.special.ndtr(x0.double()).clamp(1e-12, 1 - 1e-12)
    gumbel = -(-shares.log()).log()
    draws = generator(seed, Stream.JUDGE, ORDER)
    step = torch.randint(passes, x0.shape[:2], generator=draws).to(x0.device)
    x = torch.zeros_like(x0)
    for k in range(passes):
        t = x0.new_full((len(x0),), k / passes)
        logits = net(x, t, t, cond).double().log_softmax(2)
        drawn = ones[(logits + gumbel).argmax(2)]
        x = torch.where((step == k)[..., None], drawn, x)
    return x


def masked_diffusion(bench: Bench) -> Mapping[int, Sampler]:
    """Masked diffusion, from scratch, as a method of the arena."""
    net = bench.fit(bench.build(), MaskedDiffusion())
    alphabet, scaling = bench.data.scaling.alphabet, bench.data.scaling
    ones = ((torch.eye(len(alphabet)) - scaling.shift[0]) / scaling.scale[0]).to(bench.device)
    return {k: partial(sample, net, ones, bench.seed, passes=k) for k in PASSES}

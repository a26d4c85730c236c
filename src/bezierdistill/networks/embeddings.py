r"""Embedding of the two times of a flow map, ``s`` (where the state is) and ``t`` (where it should go).

.. math:: e(s, t) = \mathrm{MLP}(\cos \omega s, \sin \omega s) + Z\,(t - s,\ \sin \omega (t - s)), \qquad Z = 0 \text{ at the start.}

The interval enters only through functions that vanish at ``t = s``, and its matrix Z starts at zero and has no bias. Two things follow
exactly: training on the diagonal (a teacher) leaves Z at zero, and a student that starts from a teacher's weights starts as
``F(x, s, t) = x + (t - s) v(x, s)``, the teacher's own Euler step. Teachers and students can therefore be one class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Embed ``s`` and ``t``, each ``(B,)``, as ``(B, width)``.

    Args:
        width: size of the embedding.
        frequencies: number of frequencies, log-spaced from pi/4 to 16 pi.
    """

    omega: Tensor

    def __init__(self, width: int, frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer("omega", math.pi / 4 * 64 ** torch.linspace(0, 1, frequencies))
        self.at = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.interval = nn.Linear(1 + frequencies, width, bias=False)
        nn.init.zeros_(self.interval.weight)

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """Embedding ``(B, width)`` of the times ``(B,)``."""
        phase = s[:, None] * self.omega
        gap = (t - s)[:, None]
        return self.at(torch.cat([phase.cos(), phase.sin()], 1)) + self.interval(torch.cat([gap, (gap * self.omega).sin()], 1))

"""Multilayer perceptron for vectors and small images, with the times added at every hidden layer.

A velocity contains the whole noise, ``x1 - x0``, which a narrow hidden layer cannot carry. The
output therefore adds ``a(s, t) x`` with a learned number a, which for standardised data alone gives
the best linear velocity (the skip of Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.networks.embeddings import TimeEmbedding, stacked


class MLP(nn.Module):
    """``net(x, s, t, cond)`` with residual hidden layers; states are flattened inside.

    Args:
        shape: shape of one state, without the batch.
        width: hidden width.
        depth: number of hidden layers, 1 or more.
        condition_size: numbers of a condition; 0 is none.
        outputs: velocities K of a pass, ``(B, K, ...)`` if more than one.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 256,
        depth: int = 3,
        condition_size: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        size, self.outputs = math.prod(shape), outputs
        self.time = TimeEmbedding(width // 2, condition_size)
        self.enter = nn.Linear(size, width)
        self.shifts = nn.Linear(width // 2, width * depth)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.leave = nn.Linear(width, outputs * size)
        self.skip = nn.Linear(width // 2, outputs)
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Average velocity ``(B, ...)``, or K of them ``(B, K, ...)``, of states between the times
        ``s`` and ``t``, each ``(B,)``.
        """
        time, flat = functional.silu(self.time(s, t, cond)), x.flatten(1)
        shifts = self.shifts(time).chunk(len(self.hidden) + 1, 1)
        h = functional.silu(self.enter(flat) + shifts[0])
        for layer, shift in zip(self.hidden, shifts[1:], strict=True):
            h = h + functional.silu(layer(h) + shift)
        skips = self.skip(time)[:, :, None] * flat[:, None]
        return stacked(self.leave(h).reshape(skips.shape) + skips, x)

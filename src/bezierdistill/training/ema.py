"""Exponential moving average of a network's weights, with a horizon that grows with training.

The decay at step k is ``min(decay, (1 + k) / (10 + k))``, so early weights are forgotten quickly.
Weights are taken in at every fourth step with the fourth power of the decay: the same horizon at a
quarter of the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError

EVERY = 4


class EMA:
    """Average of the parameters of ``net``.

    Args:
        net: the network whose parameters are followed; buffers are not averaged.
        decay: limit of the decay a step, in [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"ema decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        self.names = [name for name, _ in net.named_parameters()]
        self._live = [p for _, p in net.named_parameters()]
        self._mean = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after step ``step`` (counted from 0) into the average, if it is the last
        of four.
        """
        if (step + 1) % EVERY:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** EVERY
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._live], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return dict(zip(self.names, self._mean, strict=True))

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        for name, mean in zip(self.names, self._mean, strict=True):
            mean.copy_(state[name])

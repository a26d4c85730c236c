r"""Exponential moving average of a network's weights, with a horizon that grows with training.

The decay of step k is :math:`d_k = \min(d, (1 + k) / (10 + k))`, so early weights are forgotten
quickly. Weights are taken in after every fourth step with :math:`d_k^4`, the same horizon at a
quarter of the cost, and after the last one with :math:`d_k` to the number of steps since.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError

EVERY = 4


class EMA:
    """Average of the parameters of ``net``.

    Args:
        net: the network whose parameters are followed; buffers are not averaged, nor what is
            frozen.
        decay: limit of the decay per step, in [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"ema decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        self._live = {name: p for name, p in net.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int, last: bool) -> None:
        """Take the weights after ``step`` (from 0) in, if it is the last of four, or of all."""
        since = step % EVERY + 1
        if since < EVERY and not last:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** since
        live = [p.detach() for p in self._live.values()]
        torch._foreach_lerp_(list(self._mean.values()), live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name; what is copied into them is restored."""
        return self._mean

"""The exact flow map between a standard normal and a Gaussian, as a network: the closed form that
the objectives are checked against."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time


class GaussianMap(nn.Module):
    r"""Average velocity of :math:`X_{s,t}(x) = t m + \sqrt{q_t/q_s}\,(x - s m)`, :math:`q_t =
    (1-t)^2 + t^2 \sigma^2`; smooth at s = t.

    Plus ``theta * perturb(x, s, t)``, to ask whether a loss is minimal at ``theta = 0``.

    Args:
        mean: mean of every component of the data.
        std: its standard deviation.
        perturb: the direction of the perturbation; ones by default.
    """

    def __init__(
        self,
        mean: float = 0.7,
        std: float = 0.5,
        perturb: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, s, t: torch.ones_like(x),
    ) -> None:
        super().__init__()
        self.mean, self.std, self.perturb = mean, std, perturb
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        s_, t_ = expand_time(s, x), expand_time(t, x)
        q_s, q_t = ((1 - r) ** 2 + r**2 * self.std**2 for r in (s_, t_))
        slope = (s_ + t_ - 2) + (s_ + t_) * self.std**2
        ratio = slope / (q_s * (1 + (q_t / q_s).sqrt()))
        return self.mean + ratio * (x - s_ * self.mean) + self.theta.to(x) * self.perturb(x, s, t)

    def exact(self, x: Tensor, s: float, t: float) -> Tensor:
        """The flow map itself."""
        q_s, q_t = ((1 - r) ** 2 + r**2 * self.std**2 for r in (s, t))
        return t * self.mean + (q_t / q_s) ** 0.5 * (x - s * self.mean)

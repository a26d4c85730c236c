"""Distributions of the intervals [s, t] that a network is trained on, one per class.

Where ``s = t`` always (*instants*) what is learned is a velocity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.knots import check_knots
from bezierdistill.objectives.base import check_positive
from bezierdistill.settings import check_shares


class Intervals(ABC):
    """A distribution of times ``0 <= s <= t <= 1``."""

    instants: ClassVar[bool] = False
    """Whether ``s = t`` always."""

    @abstractmethod
    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of ``s`` and ``t``, each ``(count,)``."""

    def rows(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An interval per row of ``x``, in its dtype and on its device."""
        s, t = self(len(x), generator)
        return s.to(x), t.to(x)


@dataclass(frozen=True)
class Instants(Intervals):
    """``s = t``, uniform."""

    instants = True

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        t = torch.rand(count, generator=generator, device=generator.device)
        return t, t


@dataclass(frozen=True)
class UShapedInstants(Intervals):
    r"""``s = t`` with density proportional to :math:`\cosh a(t - \tfrac12)`: most often near 0 and
    near 1.

    Draws are exact: :math:`t = \tfrac12 + \operatorname{asinh}((2u - 1) \sinh \tfrac a2) / a` for a
    uniform u.

    Args:
        steepness: ``a``, positive; :class:`Instants` are the limit 0.

    Raises:
        UserError: if the steepness is not positive.

    Reference:
        Lee, Lin & Fanti 2024, *Improving the training of rectified flows* (arXiv 2405.20320).
    """

    steepness: float = 4.0
    instants = True

    def __post_init__(self) -> None:
        check_positive(steepness=self.steepness)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        u = torch.rand(count, generator=generator, device=generator.device)
        t = 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.steepness / 2)) / self.steepness
        t = t.clamp(0.0, 1.0)  # rounding can leave the interval by one unit in the last place
        return t, t


@dataclass(frozen=True)
class EndIntervals(Intervals):
    """``t = 1`` from ``s = 0`` with probability ``whole``, otherwise from a uniform ``s``."""

    whole: float = 0.75

    def __post_init__(self) -> None:
        check_shares(whole=self.whole)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        s, coin = torch.rand(2, count, generator=generator, device=generator.device)
        return torch.where(coin < self.whole, 0.0, s), torch.ones_like(s)


@dataclass(frozen=True)
class MapIntervals(Intervals):
    """The whole interval with probability ``whole``, otherwise two uniform times in order."""

    whole: float = 0.5

    def __post_init__(self) -> None:
        check_shares(whole=self.whole)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        times = torch.rand(2, count, generator=generator, device=generator.device)
        low, high = times.aminmax(dim=0)
        whole = torch.rand(count, generator=generator, device=generator.device) < self.whole
        return low.masked_fill_(whole, 0.0), high.masked_fill_(whole, 1.0)


@dataclass(frozen=True)
class EarlyIntervals(Intervals):
    """Starts at 0 with probability ``whole``, otherwise at the power ``early`` of a uniform number;
    ends at 1 with probability ``ends``, otherwise at a uniform later time.

    Few start at 0 itself, for the reason named in :mod:`~bezierdistill.objectives.emitted_curves`.
    """

    whole: float = 0.15
    ends: float = 0.5
    early: float = 2.0

    def __post_init__(self) -> None:
        check_shares(whole=self.whole, ends=self.ends)
        check_positive(early=self.early)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        draws = torch.rand(4, count, generator=generator, device=generator.device)
        s = torch.where(draws[0] < self.whole, 0.0, draws[1] ** self.early)
        return s, torch.where(draws[2] < self.ends, 1.0, s + draws[3] * (1 - s))


@dataclass(frozen=True)
class LogitNormalIntervals(Intervals):
    """Two times in order whose noise shares ``1 - t`` have normally distributed logits.

    Args:
        mean: mean of the logits.
        std: their standard deviation, positive.

    Raises:
        UserError: if the deviation is not positive.

    Reference:
        Geng et al. 2025, *Mean flows for one-step generative modeling* (arXiv 2505.13447).
    """

    mean: float = -0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        check_positive(logit_std=self.std)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        normal = torch.randn(2, count, generator=generator, device=generator.device)
        return torch.sigmoid(-self.mean - self.std * normal).aminmax(dim=0)


@dataclass(frozen=True)
class KnotIntervals(Intervals):
    """The intervals between neighbouring knots of one or more samplers, equally often.

    Args:
        knots: the knots of each sampler, from 0 to 1.

    Raises:
        UserError: on knots that do not rise from 0 to 1.
    """

    knots: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        for times in self.knots:
            check_knots(times)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        ends = [pair for times in self.knots for pair in pairwise(times)]
        pick = torch.randint(len(ends), (count,), generator=generator, device=generator.device)
        s, t = torch.tensor(ends, dtype=torch.float64, device=pick.device)[pick].unbind(1)
        return s, t


@dataclass(frozen=True)
class EitherIntervals(Intervals):
    """Each row from one of two distributions, equally often.

    Raises:
        UserError: if one of them draws instants, which are trained on otherwise.
    """

    first: Intervals
    second: Intervals

    def __post_init__(self) -> None:
        if self.first.instants or self.second.instants:
            raise UserError("one of two intervals are instants, expected intervals of any length")

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`Intervals`."""
        (s, t), (other_s, other_t) = self.first(count, generator), self.second(count, generator)
        pick = torch.rand(count, generator=generator, device=generator.device) < 0.5
        return torch.where(pick, s, other_s), torch.where(pick, t, other_t)

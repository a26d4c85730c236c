r"""A model of another library as a velocity field, however it counts time and adds noise.

A state :math:`y = \alpha x_1 + \sigma \epsilon` divided by :math:`\alpha + \sigma` is one of ours,

.. math:: x = \frac{y}{\alpha + \sigma} = (1 - t)\, x_0 + t\, x_1,
   \qquad x_0 = \epsilon, \quad t = \frac{\alpha}{\alpha + \sigma},

so a model that knows the noise or the data in y knows the velocity :math:`v(x, t) = E[x_1 - x_0
\mid x]`, exactly. What the model predicts and its schedule are never guessed.

Source: Lipman et al. 2024, *Flow matching guide and code* (arXiv 2412.06264), section 4.8, for the
change of path; Salimans & Ho 2022 (arXiv 2202.00512), appendix D, for v-prediction; Karras et al.
2022 (arXiv 2206.00364) for denoisers over sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from bezierdistill.curves import Time, expand_time, match_time, widest
from bezierdistill.errors import UserError
from bezierdistill.settings import Prediction, check_choice


class Schedule(Protocol):
    """Noise levels over our time t in [0, 1], from noise to data, and the model's time input."""

    @property
    def span(self) -> tuple[float, float]:
        """The times that the model was trained on; beyond them its nearest time is used."""
        ...

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha``, ``sigma`` and the model's own time for times ``(B,)`` of ours."""
        ...


@dataclass(frozen=True)
class LinearSchedule:
    """Flow matching and rectified flow: ``alpha = t``, ``sigma = 1 - t``.

    Args:
        time: ``up`` if the model's time is 0 at the noise, ``down`` if it is 0 at the data.
        scale: factor of its time input (999 for RectifiedFlow, 1000 for diffusers' transformers).
        low: smallest time of ours that it was trained on, in [0, 1).
        high: greatest time of ours, in (low, 1].

    Raises:
        UserError: on another word for ``time``, a scale that is not positive, or an empty span.
    """

    time: Literal["up", "down"]
    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.time not in ("up", "down"):
            raise UserError(f"time is {self.time!r}, expected 'up' (from noise) or 'down'")
        if self.scale <= 0:
            raise UserError(f"scale is {self.scale}, expected a positive number")
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"span is {self.low} to {self.high}, expected 0 <= low < high <= 1")

    @property
    def span(self) -> tuple[float, float]:
        """See :class:`Schedule`."""
        return self.low, self.high

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Schedule`."""
        t = t.clamp(self.low, self.high)
        return t, 1 - t, self.scale * (t if self.time == "up" else 1 - t)


@dataclass(frozen=True)
class SigmaSchedule:
    """EDM and consistency models: ``alpha = 1``, and the time input is ``sigma``.

    Args:
        least, most: smallest and greatest sigma that the model was trained on.

    Raises:
        UserError: unless ``0 < least < most``.
    """

    least: float = 0.002
    most: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most:
            raise UserError(f"sigma is {self.least} to {self.most}, expected 0 < least < most")

    @property
    def span(self) -> tuple[float, float]:
        """See :class:`Schedule`."""
        return 1 / (1 + self.most), 1 / (1 + self.least)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Schedule`."""
        sigma = 1 / t.clamp(*self.span) - 1
        return torch.ones_like(sigma), sigma, sigma


@dataclass(frozen=True)
class StepSchedule:
    r"""DDPM and most of diffusers: steps 0 (data) to N - 1, :math:`\alpha^2 + \sigma^2 = 1`.

    Between two steps the time input is a fraction, linear in :math:`\log (\sigma / \alpha)`.

    Args:
        alphas_cumprod: ``(N,)`` products of ``1 - beta``, falling, each in (0, 1): the attribute of
            that name of a diffusers scheduler.

    Raises:
        UserError: on numbers that are no such products.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        inside = a.ndim == 1 and len(a) > 1 and bool(((a > 0) & (a < 1)).all())
        if not inside or not bool((a[1:] < a[:-1]).all()):
            raise UserError("alphas_cumprod must be two or more falling numbers in (0, 1)")

    @cached_property
    def _levels(self) -> Tensor:
        a = self.alphas_cumprod.cpu().double()
        return 0.5 * ((1 - a).log() - a.log())  # log sigma / alpha, rising

    @property
    def span(self) -> tuple[float, float]:
        """See :class:`Schedule`."""
        first, last = (float(self._levels[i].exp()) for i in (0, -1))
        return 1 / (1 + last), 1 / (1 + first)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Schedule`."""
        levels = self._levels.to(widest(t.device)).to(t.device)
        ratio = 1 / t.to(levels).clamp(1e-12, 1) - 1  # sigma / alpha
        level = ratio.log().clamp(levels[0], levels[-1])  # of zero: -inf, clamped
        above = torch.searchsorted(levels, level.contiguous()).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        step = above - 1 + (level - low) / (high - low)
        alpha = torch.sigmoid(-2 * level).sqrt()
        return alpha.to(t), torch.sigmoid(2 * level).sqrt().to(t), step.to(t)


def check_prediction(prediction: Prediction, schedule: Schedule) -> None:
    """Whether a model that predicts this has a velocity over the whole span of its schedule.

    Raises:
        UserError: on another prediction, or one that says nothing at an end of the span (the noise
            at pure noise, the data at pure data).
    """
    check_choice("prediction", prediction, Prediction)
    low, high = schedule.span
    if (prediction == "epsilon" and low <= 0) or (prediction == "sample" and high >= 1):
        edge = "pure noise (low > 0)" if prediction == "epsilon" else "pure data (high < 1)"
        given = f"the schedule spans {low:g} to {high:g}, a model that predicts {prediction}"
        raise UserError(f"{given} needs a span that ends before {edge}")


def velocity(
    model: Callable[[Tensor, Tensor], Tensor],
    prediction: Prediction,
    schedule: Schedule,
    x: Tensor,
    t: Time,
) -> Tensor:
    """The velocity ``(B, ...)`` at ``x`` ``(B, ...)`` and time ``t`` of what a model predicts.

    Args:
        model: called as ``model(y, time)``, its own state and its own time ``(B,)``.
        prediction: what it predicts; see :class:`~bezierdistill.Teacher`.
        schedule: its noise levels and times.
        x: states of ours.
        t: time of ours.
    """
    alpha, sigma, time = schedule.at(match_time(t, x))
    alpha, sigma = expand_time(alpha, x), expand_time(sigma, x)
    y = (alpha + sigma) * x
    out = model(y, time)
    if prediction == "velocity":
        return out
    if prediction == "flow":
        return -out
    if prediction == "epsilon":
        return (y - sigma * out) / alpha - out
    if prediction == "sample":
        return out - (y - alpha * out) / sigma
    return ((alpha - sigma) * y - (alpha + sigma) * out) / (alpha**2 + sigma**2)

r"""Mean flows on the pairs of one reflow, whose paths are almost straight: the average velocity is
then nearly that of the line, and its target far less noisy.

The loss is :class:`~bezierdistill.objectives.MeanFlow`'s, on noise and what a teacher made of it.
The most distant pairs, whose paths stay curved, are left out (:func:`nearest`; here by batch).
Starts are U-shaped (as in 2-rectified flow++), lengths logit-normal, and jumps from near the noise
to near the data become whole ones. The rows that learn the velocity are at the starts.

Source: Zhang et al. 2025, *Flow straighter and faster: efficient one-step generative modeling via
MeanFlow on rectified trajectories* (Re-MeanFlow, arXiv 2511.23342), and the authors' code
(Xinxi-Zhang/Re-MeanFlow) for the times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.objectives.base import Curves, Pairs, check_positive
from bezierdistill.objectives.intervals import Intervals, UShapedInstants
from bezierdistill.objectives.mean_flow import MeanFlow

NEAR_NOISE, NEAR_DATA = 0.2, 0.6  # a jump from before the one to beyond the other is a whole one


@dataclass(frozen=True)
class RectifiedIntervals(Intervals):
    """U-shaped starts, and lengths with normal logits, cut off at the end.

    Args:
        mean: mean of the logit of the length.
        std: its deviation, positive.
        steepness: of the starts, positive.

    Raises:
        UserError: if one of them is not positive.
    """

    mean: float = -0.4
    std: float = 1.0
    steepness: float = 4.0

    def __post_init__(self) -> None:
        check_positive(logit_std=self.std, steepness=self.steepness)

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :class:`~bezierdistill.objectives.Intervals`."""
        s, _ = UShapedInstants(self.steepness)(count, generator)
        normal = torch.randn(count, generator=generator, device=generator.device)
        t = (s + torch.sigmoid(self.mean + self.std * normal)).clamp_max(1.0)
        return s, t.masked_fill((s < NEAR_NOISE) & (t > NEAR_DATA), 1.0)


@dataclass(frozen=True)
class RectifiedMeanFlow(MeanFlow):
    """Mean flow at the times of a reflow's pairs; settings as of
    :class:`~bezierdistill.objectives.MeanFlow`, the logits those of the lengths.

    Args:
        steepness: of the starts, positive.
    """

    steepness: float = 4.0

    @property
    def intervals(self) -> RectifiedIntervals:
        """Where s < t; the others are at their s."""
        return RectifiedIntervals(self.logit_mean, self.logit_std, self.steepness)


def nearest(batch: Curves, count: int) -> Pairs:
    """The ``count`` curves of a batch whose ends are nearest to each other, as pairs.

    Raises:
        UserError: if the batch has fewer.
    """
    x0, x1, cond = batch.curve.source, batch.curve.data, batch.cond
    if not 0 < count <= len(x0):
        raise UserError(f"{count} nearest curves of {len(x0)}, expected 1 to {len(x0)}")
    rows = (x1 - x0).flatten(1).square().sum(1).argsort()[:count]
    return Pairs(x0[rows], x1[rows], None if cond is None else cond[rows])

r"""Law alignment: keep the law of the student's samples on the data's law, without a discriminator.

For a student sample x re-noised to :math:`x_t = (1-t) z + t x`, a critic flow trained by flow matching on the student's own samples
and the blended teacher each give a velocity. Their difference, as end points :math:`x_t + (1-t) v`, is up to a positive factor the
gradient of the divergence between the two laws, so the student's sample is moved by

.. math:: g = (1-t)\,\big(v_{critic}(x_t, t) - v_{teacher}(x_t, t)\big), \qquad \text{loss } \tfrac12 |x - \mathrm{sg}(x - g)|^2.

Every sampler of the student (one pass, two passes) has its own law, hence its own critic. The sample comes from a stored curve's
source, so the curve regression that anchors it costs no further pass.

Source: Yin et al. 2024, *One-step diffusion with distribution matching distillation* (arXiv 2311.18828), eq. 7-8; here the real score
is a blend of several teachers, and the anchor is a Bezier curve at every knot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import Field, NetworkField
from bezierdistill.objectives.curves import CurveBatch
from bezierdistill.objectives.losses import Loss
from bezierdistill.students import flow_map


@dataclass
class Alignment:
    """Distribution matching along one sampler, with the curve regression as an anchor.

    Args:
        teacher: the field whose law is matched: a teacher or a blend.
        knots: the sampler's knots, from 0 to 1.
        metric: distance of the anchor regression.
        anchor: weight of the anchor, >= 0.
        times: range of the re-noising time.
    """

    teacher: Field
    knots: Sequence[float]
    metric: Loss = field(default_factory=Loss)
    anchor: float = 0.3
    times: tuple[float, float] = (0.02, 0.7)

    @property
    def passes(self) -> int:
        """Network passes a row and step: the sampler and its gradient, the teachers, the critic, and the critic's own step."""
        return 3 * (len(self.knots) - 1) + self.teacher.passes + 1 + 3

    def student_loss(self, net: nn.Module, critic: nn.Module, batch: CurveBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss of the student, and its samples ``(B, ...)``, detached, to train the critic on."""
        curve, cond = batch
        x, anchor = curve.source, torch.zeros((), device=curve.points.device)
        for s, t in pairwise(self.knots):
            x = flow_map(net, x, s, t, cond)
            anchor = anchor + self.metric(x, curve.point(t))
        matching = matching_loss(x, self.teacher, critic, self.times, cond, generator)
        return matching + self.anchor * anchor, x.detach()


def matching_loss(
    x: Tensor, teacher: Field, critic: nn.Module, times: tuple[float, float], cond: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Loss whose gradient moves samples ``x`` ``(B, ...)`` from the critic's law towards the teacher's, re-noised at ``times``.

    The gradient of a row is divided by the mean distance of its sample from the teacher's end point (arXiv 2311.18828, eq. 8).
    """
    with torch.no_grad():
        noisy, t = _renoise(x, times, generator)
        to_end = 1 - expand_time(t, x)
        real = teacher(noisy, t, cond)
        gradient = to_end * (NetworkField(critic)(noisy, t, cond) - real)
        scale = (x - (noisy + to_end * real)).abs().flatten(1).mean(1).clamp_min(1e-3)
    return 0.5 * ((x - (x - gradient).detach()).square().flatten(1).mean(1) / scale).mean()


def _renoise(x: Tensor, times: tuple[float, float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    low, high = times
    t = low + (high - low) * torch.rand(len(x), generator=generator, device=generator.device).to(x)
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    time = expand_time(t, x)
    return (1 - time) * noise + time * x, t

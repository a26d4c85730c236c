r"""The student: a flow map along the curves, one network pass per interval.

.. math:: F(x, s, t) = x + (t - s)\, u(x, s, t)

predicts the state at t from the state at s. ``F(x0, 0, 1)`` is the one-pass generator,
``F(F(x0, 0, s), s, 1)`` the two-pass one: a sampler jumps between *knots*
(:mod:`bezierdistill.knots`).

Source: Boffi et al. 2024, *Flow map matching* (arXiv 2406.07507); Geng et al. 2025, *Mean flows*
(arXiv 2505.13447), for u.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bezierdistill.curves import Time, expand_time, match_time
from bezierdistill.errors import UserError


def flow_map(net: nn.Module, x: Tensor, s: Time, t: Time, cond: Tensor | None = None) -> Tensor:
    """The state at ``t`` predicted from the state ``x`` ``(B, ...)`` at ``s``: ``F(x, s, t)``, one
    network pass.
    """
    start, end = match_time(s, x), match_time(t, x)
    return torch.addcmul(x, expand_time(end - start, x), net(x, start, end, cond))


def sample(
    net: nn.Module, x0: Tensor, knots: Sequence[float], cond: Tensor | None = None
) -> Tensor:
    """Jump from knot to knot: ``len(knots) - 1`` passes from the sources ``x0`` ``(B, ...)`` at
    ``knots[0]``.
    """
    x = x0
    for s, t in pairwise(knots):
        x = flow_map(net, x, s, t, cond)
    return x


jump = sample  # its public name; "sample" is a command's


def fresh_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise like ``x``, in its dtype and on its device."""
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x)


def renoised_sample(
    net: nn.Module,
    x0: Tensor,
    times: Sequence[float],
    generator: torch.Generator,
    cond: Tensor | None = None,
) -> Tensor:
    """Jump from ``x0`` ``(B, ...)`` to the end; from each of the ``times`` renoise and jump again.

    Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1): one pass for
    the first jump and one for every time.

    Args:
        net: the network.
        x0: sources.
        times: rising times in (0, 1).
        generator: of the fresh noise.
        cond: conditions ``(B, C)``.

    Raises:
        UserError: if the times do not rise within (0, 1).
    """
    if any(b <= a for a, b in pairwise((0.0, *times, 1.0))):
        raise UserError(f"times are {list(times)}, expected them to rise strictly within (0, 1)")
    x = flow_map(net, x0, 0.0, 1.0, cond)
    for s in times:
        x = flow_map(net, torch.lerp(fresh_noise(x, generator), x, s), s, 1.0, cond)
    return x

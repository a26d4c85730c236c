"""How straight paths are, and how well curves follow them."""

from __future__ import annotations

import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.fields import Field
from bezierdistill.solvers import solve, time_grid


@torch.no_grad()
def straightness(field: Field, x0: Tensor, steps: int = 32) -> float:
    r"""Mean over paths and time of :math:`|(x_1 - x_0) - v(x_t, t)|^2` a component along the
    field's own paths; 0 is straight.

    Reference: Liu et al. 2022, arXiv 2209.03003, eq. 4 (there summed over components).
    """
    times = time_grid(steps)
    path: list[Tensor] = []
    end = solve(field, x0, times, "heun", observe=lambda k, x: path.append(x)).state
    gaps = [((end - x0) - field(x, t)).square().mean() for x, t in zip(path, times, strict=True)]
    return float(torch.trapezoid(torch.stack(gaps), dx=1 / steps))


def curve_fit_error(curve: BezierCurve, path: Tensor, times: tuple[float, ...]) -> float:
    """Root-mean-square distance a component between a curve and the stored path ``(N, B, ...)``
    that it was fitted to.
    """
    gaps = [(curve.point(t) - x).square().mean() for x, t in zip(path, times, strict=True)]
    return float(torch.stack(gaps).mean().sqrt())

"""How straight paths are, how well curves follow them, and what a translation keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.fields import Field
from bezierdistill.solvers import solve, time_grid


@torch.no_grad()
def straightness(field: Field, x0: Tensor, steps: int = 32) -> float:
    r"""Mean over paths and time of :math:`|(x_1 - x_0) - v(x_t, t)|^2` per component along the
    field's own paths; 0 is straight.

    Reference: Liu et al. 2022, arXiv 2209.03003, eq. 4 (there summed over components).
    """
    times = time_grid(steps)
    path: list[Tensor] = []
    end = solve(field, x0, times, "heun", observe=lambda k, x: path.append(x)).state
    gaps = [((end - x0) - field(x, t)).square().mean() for x, t in zip(path, times, strict=True)]
    return float(torch.trapezoid(torch.stack(gaps), dx=1 / steps))


def curve_fit_error(curve: BezierCurve, path: Tensor, times: tuple[float, ...]) -> float:
    """RMS distance per component between a curve and the path ``(N, B, ...)`` it was fitted to."""
    gaps = [(curve.point(t) - x).square().mean() for x, t in zip(path, times, strict=True)]
    return float(torch.stack(gaps).mean().sqrt())


def relative_distance(x: Tensor, y: Tensor, shuffles: int = 8) -> float:
    """Mean distance between rows of ``x`` and ``y``, ``(N, ...)`` each, over that between rows that
    do not belong together.

    0 is a copy, 1 is as far as chance. States, or features of an extractor, may be given.

    Args:
        x: inputs.
        y: their outputs, row by row.
        shuffles: how many shifted pairings the denominator averages over, fewer than N.

    Raises:
        UserError: on different shapes, or too few rows.
    """
    if x.shape != y.shape or len(x) <= shuffles:
        told = f"inputs have shape {tuple(x.shape)}, outputs {tuple(y.shape)}"
        raise UserError(f"{told}, expected equal ones of more than {shuffles} rows")
    a, b = x.flatten(1).double(), y.flatten(1).double()
    kept = (a - b).norm(dim=1).mean()
    steps = torch.linspace(1, len(a) - 1, shuffles).round().long().tolist()
    others = torch.stack([(a - b.roll(step, 0)).norm(dim=1).mean() for step in steps]).mean()
    return float(kept / others) if float(others) else 0.0

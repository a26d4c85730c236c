r"""The student: a flow map along the curves, one network pass an interval.

.. math:: F(x, s, t) = x + (t - s)\, u(x, s, t)

predicts the state at t from the state at s. ``F(x0, 0, 1)`` is the one-pass generator, ``F(F(x0, 0,
s), s, 1)`` the two-pass one. The *knots* are the times between which a sampler jumps;
:func:`cheapest_knots` finds them by dynamic programming.

Source: Boffi et al. 2024, *Flow map matching* (arXiv 2406.07507); Geng et al. 2025, *Mean flows*
(arXiv 2505.13447), for u.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve, Time, expand_time, match_time
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


def check_knots(knots: Sequence[float]) -> tuple[float, ...]:
    """Return the knots as floats.

    Raises:
        UserError: unless they rise strictly from 0 to 1.
    """
    knots = tuple(float(k) for k in knots)
    if (
        len(knots) < 2
        or knots[0] != 0.0
        or knots[-1] != 1.0
        or not all(b > a for a, b in pairwise(knots))
    ):
        raise UserError(f"knots are {list(knots)}, expected them to rise strictly from 0 to 1")
    return knots


@torch.no_grad()
def interval_errors(
    net: nn.Module, curve: BezierCurve, grid: Sequence[float], cond: Tensor | None = None
) -> Tensor:
    """Mean squared error of ``F(B(s), s, t)`` against ``B(t)`` for every ``s < t`` of a grid.

    Returns:
        ``(N, N)`` tensor, per state component; infinite where ``s >= t``.
    """
    errors = torch.full((len(grid), len(grid)), torch.inf)
    for i, s in enumerate(grid):
        start = curve.point(s)
        for j in range(i + 1, len(grid)):
            errors[i, j] = (
                (flow_map(net, start, s, grid[j], cond) - curve.point(grid[j])).square().mean()
            )
    return errors


def cheapest_knots(costs: Tensor, grid: Sequence[float], passes: int) -> tuple[float, ...]:
    """The ``passes`` jumps through a grid of times with the least total cost, by dynamic
    programming.

    Args:
        costs: ``(N, N)`` cost of jumping from ``grid[i]`` to ``grid[j]``; infinite where not
            allowed.
        grid: times from 0 to 1.
        passes: number of jumps, 1 to N - 1.

    Raises:
        UserError: if the grid has too few times for the jumps.
    """
    if not 1 <= passes < len(grid):
        raise UserError(
            f"passes is {passes}, expected 1 to {len(grid) - 1} on a grid of {len(grid)} times"
        )
    best = costs[0]
    parents = []
    for _ in range(passes - 1):
        best, parent = (best[:, None] + costs).min(0)
        parents.append(parent)
    path = [len(grid) - 1]
    for parent in reversed(parents):
        path.append(int(parent[path[-1]]))
    return (0.0, *(float(grid[i]) for i in reversed(path)))

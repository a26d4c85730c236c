"""Knots: the times between which a sampler jumps, rising from 0 (source) to 1 (data).

They are given, evenly spaced, powers of even ones, or found by dynamic programming over measured
errors of intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.flow_map import flow_map
from bezierdistill.solvers import time_grid

Knots = tuple[float, ...]
GRID = time_grid(10)


def check_knots(knots: Sequence[float]) -> Knots:
    """Return the knots as floats.

    Raises:
        UserError: unless they rise strictly from 0 to 1.
    """
    knots = tuple(float(k) for k in knots)
    rises = all(b > a for a, b in pairwise(knots))
    if len(knots) < 2 or knots[0] != 0.0 or knots[-1] != 1.0 or not rises:
        raise UserError(f"knots are {list(knots)}, expected them to rise strictly from 0 to 1")
    return knots


def inner_knots(inner: Sequence[float], passes: int) -> Knots:
    """The knots of a sampler of so many passes from those between 0 and 1.

    Raises:
        UserError: unless they are as many numbers as needed, rising between 0 and 1.
    """
    if len(inner) != passes - 1:
        raise UserError(
            f"{len(inner)} knots for {passes} passes, expected {passes - 1} between 0 and 1"
        )
    return check_knots((0.0, *inner, 1.0))


def even_knots(passes: int, given: Knots | None = None) -> dict[int, Knots]:
    """Evenly spaced knots for every number of passes up to the most, for which there may be given
    ones.
    """
    even = {k: time_grid(k) for k in range(1, passes + 1)}
    return even if given is None else even | {passes: given}


@torch.no_grad()
def interval_errors(
    net: nn.Module, curve: BezierCurve, grid: Sequence[float] = GRID, cond: Tensor | None = None
) -> Tensor:
    """Mean squared error of ``F(B(s), s, t)`` against ``B(t)`` for every ``s < t`` of a grid.

    Returns:
        ``(N, N)`` tensor, per state component; infinite where ``s >= t``.
    """
    errors = torch.full((len(grid), len(grid)), torch.inf)
    for i, s in enumerate(grid):
        start = curve.point(s)
        for j in range(i + 1, len(grid)):
            end = flow_map(net, start, s, grid[j], cond)
            errors[i, j] = (end - curve.point(grid[j])).square().mean()
    return errors


def cheapest_knots(costs: Tensor, grid: Sequence[float], passes: int) -> Knots:
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
    best, parents = costs[0], []
    for _ in range(passes - 1):
        best, parent = (best[:, None] + costs).min(0)
        parents.append(parent)
    path = [len(grid) - 1]
    for parent in reversed(parents):
        path.append(int(parent[path[-1]]))
    return (0.0, *(float(grid[i]) for i in reversed(path)))


def powered_knots(passes: int, power: float) -> Knots:
    """Knots ``(k / passes) ** power``: even ones for 1, closer to the data the smaller it is."""
    return tuple(t**power for t in time_grid(passes))

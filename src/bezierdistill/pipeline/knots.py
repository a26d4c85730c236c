"""Between which times a student jumps: given, evenly spaced, or found."""

from __future__ import annotations

import torch
from torch import nn

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.solvers import time_grid
from bezierdistill.store import CurveStore
from bezierdistill.students import cheapest_knots, check_knots, interval_errors

KNOT_GRID = time_grid(10)
KNOT_CURVES, KNOT_SHARE = (
    512,
    8,
)  # at most so many, and at most one in eight: finding the knots must not cost more than making curves


def parse_knots(text: str, passes: int) -> tuple[float, ...]:
    """The knots of a sampler of so many passes from the text of its inner ones.

    Raises:
        UserError: unless they are as many numbers as needed, rising between 0 and 1.
    """
    try:
        inner = [float(number) for number in text.split(",")] if text else []
    except ValueError:
        raise UserError(
            f"knots are {text!r}, expected {passes - 1} numbers between 0 and 1, separated by"
            " commas"
        ) from None
    if len(inner) != passes - 1:
        raise UserError(
            f"{len(inner)} knots for {passes} passes, expected {passes - 1} between 0 and 1"
        )
    return check_knots((0.0, *inner, 1.0))


def even_schedules(passes: int, given: tuple[float, ...] | None) -> dict[int, tuple[float, ...]]:
    """Evenly spaced knots for every number of passes up to the most, for which there may be given
    ones.
    """
    schedules = {k: time_grid(k) for k in range(1, passes + 1)}
    return schedules if given is None else schedules | {passes: given}


def best_schedules(
    net: nn.Module, store: CurveStore, passes: int, device: torch.device
) -> tuple[dict[int, tuple[float, ...]], int]:
    """Knots for every number of passes by dynamic programming, and the network passes that
    measuring the errors cost.
    """
    rows = torch.arange(_knot_curves(store))
    curve, cond = store.take(rows)
    curve = BezierCurve(curve.points.to(device))
    costs = interval_errors(
        net.to(device), curve, KNOT_GRID, None if cond is None else cond.to(device)
    )
    return {k: cheapest_knots(costs, KNOT_GRID, k) for k in range(1, passes + 1)}, knots_cost(store)


def knots_cost(store: CurveStore) -> int:
    """Network passes that finding the knots costs: every interval of the grid on some of the
    curves.
    """
    return len(KNOT_GRID) * (len(KNOT_GRID) - 1) // 2 * _knot_curves(store)


def _knot_curves(store: CurveStore) -> int:
    return min(KNOT_CURVES, max(1, len(store) // KNOT_SHARE))

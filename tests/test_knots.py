"""Knots: the cheapest ones against brute force, measured errors in closed form, the checks."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.knots import (
    cheapest_knots,
    check_knots,
    even_knots,
    inner_knots,
    interval_errors,
    powered_knots,
)
from bezierdistill.solvers import time_grid
from conftest import RATE, Draw, ExactMap


@pytest.mark.parametrize("size", [2, 3, 6, 8])
def test_cheapest_knots_equal_brute_force(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    grid = [
        0.0,
        *sorted(torch.rand(size - 2, generator=generator, dtype=torch.float64).tolist()),
        1.0,
    ]
    costs = torch.where(
        torch.ones(size, size).triu(1) > 0, torch.rand(size, size, generator=generator), torch.inf
    )
    for passes in range(1, size):
        paths = [(0, *inner, size - 1) for inner in combinations(range(1, size - 1), passes - 1)]
        best = min(paths, key=lambda path: sum(float(costs[i, j]) for i, j in pairwise(path)))
        assert cheapest_knots(costs, grid, passes) == tuple(grid[i] for i in best)
    for passes in (0, size):
        with pytest.raises(ValueError, match=f"passes is {passes}, expected 1 to {size - 1}"):
            cheapest_knots(costs, grid, passes)


def test_interval_errors_are_the_mean_squares_and_choose_the_knots(draw: Draw) -> None:
    # A net that knows nothing (u = 0) errs by |B(t) - B(s)|^2; on the line x0 + t d that is (t -
    # s)^2 |d|^2, so even knots are cheapest.
    class Zero(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x)

    curve, grid = BezierCurve.line(draw(6, 2), draw(6, 2)), time_grid(12)
    times = torch.tensor(grid)
    gap = times - times[:, None]
    expected = torch.where(
        gap > 0, gap**2 * (curve.data - curve.source).square().mean(), torch.inf
    ).float()
    torch.testing.assert_close(interval_errors(Zero(), curve, grid), expected)
    for passes in (1, 2, 3, 4):
        assert cheapest_knots(expected, grid, passes) == pytest.approx(time_grid(passes))
    exact = BezierCurve.fit(
        torch.stack([curve.source * math.exp(RATE * t) for t in time_grid(40)]), time_grid(40), 9
    )
    assert interval_errors(ExactMap(), exact, grid)[gap > 0].max() < 1e-14


@pytest.mark.parametrize(
    "knots",
    [
        (),
        (0.0,),
        (1.0,),
        (0.0, 0.5),
        (0.1, 1.0),
        (0.0, 0.5, 0.5, 1.0),
        (0.0, 0.7, 0.3, 1.0),
        (0.0, math.nan, 1.0),
    ],
)
def test_knots_that_do_not_rise_from_0_to_1_are_rejected(knots: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected them to rise strictly from 0 to 1"):
        check_knots(knots)


def test_good_knots_come_back_as_floats() -> None:
    assert check_knots([0, 0.25, 1]) == (0.0, 0.25, 1.0)


def test_knots_between_0_and_1_are_as_many_as_needed() -> None:
    assert inner_knots((0.2, 0.7), 3) == (0.0, 0.2, 0.7, 1.0)
    assert even_knots(2) == {1: (0.0, 1.0), 2: (0.0, 0.5, 1.0)}
    assert even_knots(2, (0.0, 0.3, 1.0)) == {1: (0.0, 1.0), 2: (0.0, 0.3, 1.0)}
    for inner, passes, message in (
        ((0.2, 0.7), 2, "2 knots for 2 passes, expected 1 between 0 and 1"),
        ((0.7, 0.2), 3, "expected them to rise strictly from 0 to 1"),
        ((1.5,), 2, "expected them to rise strictly from 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            inner_knots(inner, passes)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.4])
@pytest.mark.parametrize("passes", [1, 2, 3, 7])
def test_powered_knots_are_even_in_the_root_of_the_time(passes: int, power: float) -> None:
    knots = powered_knots(passes, power)
    assert check_knots(knots) == knots
    assert [t ** (1 / power) for t in knots] == pytest.approx(time_grid(passes))
    if passes > 1:
        assert (knots[1] > 1 / passes, knots[1] < 1 / passes) == (power < 1, power > 1)

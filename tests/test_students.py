"""Students: the exact flow map of a linear equation, and knots against brute force."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.fields import NetworkField
from bezierdistill.flow_map import cheapest_knots, check_knots, flow_map, interval_errors, sample
from bezierdistill.networks.mlp import MLP
from bezierdistill.solvers import solve, time_grid
from conftest import RATE, CountedNet, Draw, ExactMap, close


@pytest.mark.parametrize("by_row", [False, True])
def test_flow_map_of_an_exact_net_is_a_semigroup(
    by_row: bool, shape: tuple[int, ...], draw: Draw
) -> None:
    x = draw(*shape)
    r, s, t = (
        torch.linspace(a, a + 0.2, shape[0], dtype=torch.float64) if by_row else a
        for a in (0.1, 0.35, 0.8)
    )
    step = flow_map(ExactMap(), flow_map(ExactMap(), x, r, s), s, t)
    close(step, flow_map(ExactMap(), x, r, t))
    close(step, x * math.exp(RATE * (0.8 - 0.1)))
    close(flow_map(ExactMap(), step, t, r), x)
    assert torch.equal(flow_map(ExactMap(), x, s, s), x)


@pytest.mark.parametrize(
    "knots", [(0.0, 1.0), (0.0, 0.6, 1.0), (0.0, 0.01, 0.5, 0.51, 1.0)], ids=str
)
def test_sampling_an_exact_map_is_exact_for_any_knots(
    knots: tuple[float, ...], shape: tuple[int, ...], draw: Draw
) -> None:
    net, x0 = CountedNet(ExactMap()), draw(*shape)
    close(sample(net, x0, knots), x0 * math.exp(RATE))
    assert net.passes == len(knots) - 1


@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.3, 0.7, 1.0), time_grid(9)], ids=len)
def test_a_net_without_interval_input_samples_as_euler_solves(
    knots: tuple[float, ...], shape: tuple[int, ...], draw: Draw
) -> None:
    net, x0 = MLP(shape[1:], width=16, depth=2).double(), draw(*shape)
    close(sample(net, x0, knots), solve(NetworkField(net), x0, knots, "euler").state)


def test_the_condition_reaches_the_network(draw: Draw) -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return cond[:, None].expand_as(x)

    x, cond = draw(4, 2), torch.arange(4.0, dtype=torch.float64)
    torch.testing.assert_close(sample(Conditional(), x, (0.0, 0.4, 1.0), cond), x + cond[:, None])


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

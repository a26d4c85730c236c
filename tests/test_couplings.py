"""Couplings: the assignment against scipy, and the teacher's way forwards and back."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from bezierdistill import couplings
from bezierdistill.couplings import Independent, Inversion, MinibatchOT, Teacher
from bezierdistill.fields import GaussianMixture
from bezierdistill.solvers import solve, time_grid
from conftest import CountedField, Draw


def test_independent_is_the_identity(shape: tuple[int, ...], draw: Draw) -> None:
    x0, x1 = draw(*shape), draw(*shape)
    pair = Independent()(x0, x1)
    assert pair.x0 is x0
    assert pair.x1 is x1
    assert pair.passes == 0


@pytest.mark.parametrize("size", [(1, 3), (2, 3), (37, 2), (64, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minibatch_ot_costs_what_scipy_costs_and_keeps_the_data_order(
    size: tuple[int, ...], dtype: torch.dtype, draw: Draw
) -> None:
    x0, x1 = draw(*size).to(dtype), 2 * draw(*size).to(dtype) + 1
    pair = MinibatchOT()(x0, x1)
    cost = cdist(x0.flatten(1).double(), x1.flatten(1).double(), "sqeuclidean")
    best = cost[linear_sum_assignment(cost)].sum()
    assert float((pair.x0 - pair.x1).double().square().sum()) == pytest.approx(best, rel=1e-6)
    assert pair.x1 is x1
    assert sorted(map(tuple, pair.x0.flatten(1).tolist())) == sorted(
        map(tuple, x0.flatten(1).tolist())
    )  # every source once


def test_minibatch_ot_in_one_dimension_sorts(draw: Draw) -> None:
    x0, x1 = draw(50, 1), draw(50, 1).exp()
    pair = MinibatchOT()(x0, x1)
    assert torch.equal(pair.x0[pair.x1[:, 0].argsort()], x0.sort(0).values)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_teacher_then_inversion_returns_to_the_start(
    method: str, mixture: GaussianMixture, draw: Draw
) -> None:
    x0, times = draw(20, 2), time_grid(100)
    there = Teacher(mixture, times, method)(x0)
    back = Inversion(mixture, times[::-1], method)(None, there.x1)
    assert there.x0 is x0
    assert back.x1 is there.x1
    assert back.passes == (400 if method == "rk4" else pytest.approx(there.passes, rel=0.2))
    torch.testing.assert_close(back.x0, x0, rtol=0, atol=1e-6 if method == "rk4" else 2e-4)
    assert (there.x1 - x0).abs().mean() > 0.3  # they did move


def test_teacher_is_the_solver_with_its_observer_and_passes(
    mixture: GaussianMixture, draw: Draw
) -> None:
    field, x0, visited = CountedField(mixture, passes=2), draw(4, 2), []
    pair = Teacher(field, time_grid(5), "midpoint", lambda k, x: visited.append(k))(x0, draw(4, 2))
    assert torch.equal(pair.x1, solve(mixture, x0, time_grid(5), "midpoint").state)
    assert visited == [0, 1, 2, 3, 4, 5]
    assert pair.passes == 2 * field.calls == 20


def test_minibatch_ot_needs_no_double_precision(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0, x1 = draw(16, 3), draw(16, 3)
    wide = MinibatchOT()(x0, x1)
    monkeypatch.setattr(couplings, "widest", lambda device: torch.float32)
    assert torch.equal(MinibatchOT()(x0, x1).x0, wide.x0)

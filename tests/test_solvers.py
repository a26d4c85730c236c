"""Solvers: convergence order, the closed form, and the count of passes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bezierdistill.curves import Time
from bezierdistill.fields import Blend, GaussianMixture
from bezierdistill.solvers import TABLEAUX, check_method, solve, time_grid
from conftest import ConditionField, CountedField, Draw, close

UNEVEN = (0.0, 0.1, 0.15, 0.5, 0.7, 1.0)


def riccati(x: Tensor, t: Time) -> Tensor:
    """``dx/dt = x^2 cos(2t)``, nonlinear in x and dependent on t: it tells every order condition up
    to 4 apart."""
    return x**2 * torch.cos(2 * torch.as_tensor(t, dtype=x.dtype))


def riccati_solution(x0: Tensor, t: float) -> Tensor:
    return 1 / (1 / x0 - math.sin(2 * t) / 2)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", list(TABLEAUX))
def test_convergence_order(method: str, backwards: bool) -> None:
    x0 = torch.linspace(0.6, 1.2, 5, dtype=torch.float64)[:, None]
    start, end = (1.0, 0.0) if backwards else (0.0, 1.0)
    counts, errors = [16, 32, 64, 128], []
    for steps in counts:
        got = solve(
            CountedField(riccati), riccati_solution(x0, start), time_grid(steps, start, end), method
        ).state
        errors.append(float((got - riccati_solution(x0, end)).square().mean().sqrt()))
    log_steps, log_errors = (
        torch.tensor(counts, dtype=torch.float64).log(),
        torch.tensor(errors, dtype=torch.float64).log(),
    )
    slope = torch.linalg.lstsq(
        torch.stack([log_steps, torch.ones(4)], 1).double(), log_errors[:, None]
    ).solution[0]
    assert -float(slope) == pytest.approx(TABLEAUX[method].order, abs=0.15)


@pytest.mark.parametrize(
    "times", [(0.0, 1.0), (1.0, 0.0), UNEVEN, UNEVEN[::-1], (0.2, 0.9)], ids=str
)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-9])
def test_dopri5_hits_the_closed_form_at_every_time(
    times: tuple[float, ...], tolerance: float
) -> None:
    x0, path = torch.linspace(0.6, 1.2, 5, dtype=torch.float64)[:, None], dict[int, Tensor]()
    solution = solve(
        CountedField(riccati),
        riccati_solution(x0, times[0]),
        times,
        "dopri5",
        observe=path.__setitem__,
        tolerance=tolerance,
    )
    assert path[len(times) - 1].equal(solution.state)
    for k, t in enumerate(times):
        torch.testing.assert_close(path[k], riccati_solution(x0, t), rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("method", [*TABLEAUX, "dopri5"])
@pytest.mark.parametrize("passes", [1, 3])
def test_passes_are_the_calls_times_the_cost_of_a_call(
    method: str, passes: int, draw: Draw
) -> None:
    field = CountedField(riccati, passes)
    solution = solve(field, draw(4, 3).abs() / 4, UNEVEN, method)
    assert solution.passes == field.calls * passes
    if method in TABLEAUX:
        assert field.calls == len(TABLEAUX[method].b) * 5
    one, two = CountedField(riccati, 1), CountedField(riccati, 2)
    assert (
        solve(Blend([one, two], torch.tensor([0.5, 0.5])), draw(1, 2) / 9, UNEVEN, method).passes
        == one.calls + 2 * two.calls
    )


@pytest.mark.parametrize("times", [UNEVEN, UNEVEN[::-1]], ids=["forwards", "backwards"])
def test_euler_on_an_uneven_grid_is_the_written_out_loop_and_is_observed(
    times: tuple[float, ...], shape: tuple[int, ...], draw: Draw
) -> None:
    x, path = draw(*shape) / 4, dict[int, Tensor]()
    end = solve(CountedField(riccati), x, times, "euler", observe=path.__setitem__).state
    for k, (s, t) in enumerate(pairwise(times)):
        close(path[k], x)
        x = x + (t - s) * riccati(x, s)
    assert list(path) == list(range(len(times)))
    assert path[len(times) - 1] is end
    close(end, x)


@pytest.mark.parametrize(
    ("method", "degree"), [("euler", 0), ("midpoint", 1), ("heun", 1), ("rk4", 3)]
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2e-2)]
)
def test_polynomial_quadrature_is_exact_in_every_dtype(
    method: str, degree: int, dtype: torch.dtype, tolerance: float
) -> None:
    field = CountedField(lambda x, t: torch.full_like(x, (degree + 1) * float(t) ** degree))
    end = solve(field, torch.zeros(2, 3, dtype=dtype), (0.0, 0.3, 1.0), method).state
    assert end.dtype == dtype
    assert (end - 1).abs().max() <= tolerance


@pytest.mark.parametrize("method", [*TABLEAUX, "dopri5"])
def test_condition_reaches_the_field(method: str, draw: Draw) -> None:
    x, cond = draw(4, 2), torch.arange(4.0, dtype=torch.float64)
    end = solve(ConditionField(), x, UNEVEN, method, cond).state
    close(end, x + cond[:, None])


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_forwards_then_backwards_returns_to_the_start(
    method: str, mixture: GaussianMixture, draw: Draw
) -> None:
    x0 = draw(20, 2)
    there = solve(mixture, x0, time_grid(100), method)
    back = solve(mixture, there.state, time_grid(100, 1.0, 0.0), method)
    assert back.passes == (400 if method == "rk4" else pytest.approx(there.passes, rel=0.2))
    torch.testing.assert_close(back.state, x0, rtol=0, atol=1e-6 if method == "rk4" else 2e-4)
    assert (there.state - x0).abs().mean() > 0.3  # they did move


def test_time_grid() -> None:
    assert time_grid(4) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert time_grid(2, 1.0, 0.0) == (1.0, 0.5, 0.0)
    assert time_grid(7, 0.3, 0.9)[-1] == 0.9
    for steps in (0, -1):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            time_grid(steps)


@pytest.mark.parametrize(
    "times",
    [(), (0.0,), (0.0, 0.0), (0.0, 0.5, 0.5, 1.0), (0.0, 0.6, 0.4, 1.0), (0.0, math.nan, 1.0)],
    ids=str,
)
@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_grids_that_are_not_monotone_are_rejected(times: tuple[float, ...], method: str) -> None:
    with pytest.raises(ValueError, match="strictly rising or strictly falling"):
        solve(CountedField(riccati), torch.zeros(1, 1), times, method)


def test_unknown_methods_are_rejected_and_the_known_are_named() -> None:
    with pytest.raises(
        ValueError, match="'rk5', expected one of euler, midpoint, heun, rk4, dopri5"
    ):
        check_method("rk5")
    with pytest.raises(ValueError, match="solver is"):
        solve(CountedField(riccati), torch.zeros(1, 1), (0.0, 1.0), "RK4")

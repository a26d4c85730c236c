"""Piecewise rectified flow: its straight field in closed form for a Gaussian, orders of the solver,
windows, passes."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import Time, expand_time
from bezierdistill.fields import NetworkField, Stretched
from bezierdistill.flow_map import sample
from bezierdistill.objectives import Pairs, Piecewise
from bezierdistill.solvers import TABLEAUX, evaluations, solve, time_grid
from conftest import ConditionField, CountedField, CountedNet, Draw, close, gaussian
from gaussian_map import GaussianMap

F64 = torch.float64
MEAN, STD = 0.7, 0.5
FIELD = gaussian(MEAN, STD)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class StraightField(nn.Module):
    r"""The piecewise rectified field of a Gaussian, plus ``theta`` times a perturbation, for the
    window that ends at t.

    In the window [a, b] the exact map is :math:`x_a + (b-a)(m + \rho (x_a - a m))`; its straight
    path visits :math:`x_t - t m = (1 + (t-a) \rho)(x_a - a m)`, which is inverted for the velocity
    as a function of :math:`x_t`."""

    def __init__(self, windows: int, shift: float = 0.0) -> None:
        super().__init__()
        self.windows, self.average = windows, GaussianMap(MEAN, STD)
        self.theta = nn.Parameter(torch.tensor([shift, 0.0], dtype=F64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        a, b = t - 1 / self.windows, t
        rho = (self.average(torch.ones_like(x) + expand_time(a, x) * MEAN, a, b) - MEAN).detach()
        centred = x - expand_time(s, x) * MEAN
        straight = MEAN + rho * centred / (1 + expand_time(s - a, x) * rho)
        return straight + self.theta[0] + self.theta[1] * x * expand_time(s, x)


def data(draw: Draw, count: int) -> Pairs:
    return Pairs(draw(count, 1), MEAN + STD * draw(count, 1))


@pytest.mark.parametrize("windows", [1, 2, 4])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_straight_field_of_a_gaussian_is_the_limit_in_the_solver_steps(
    windows: int, method: str, order: int, draw: Draw
) -> None:
    batch, steps = data(draw, 300), (8, 16, 32)
    errors = [
        math.sqrt(
            float(
                Piecewise(FIELD, windows, n, method).loss(StraightField(windows), batch, seeded())
            )
        )
        for n in steps
    ]
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.25), errors


def test_the_straight_field_is_the_minimiser_and_a_shift_costs_its_square(draw: Draw) -> None:
    batch, objective = data(draw, 500), Piecewise(FIELD, 2, 40, "rk4")
    net = StraightField(2)
    gradient = torch.autograd.grad(objective.loss(net, batch, seeded()), net.theta)[0]
    assert gradient.abs().max() < 1e-6
    assert float(objective.loss(StraightField(2, 0.2), batch, seeded())) == pytest.approx(
        0.04, rel=1e-4
    )
    assert (
        float(objective.loss(StraightField(1), batch, seeded())) > 1e-4
    )  # straight in another window, so wrong in these


@pytest.mark.parametrize("windows", [1, 2, 4])
def test_one_euler_step_per_window_of_the_straight_field_is_the_exact_map(
    windows: int, draw: Draw
) -> None:
    x0 = draw(100, 1)
    close(
        sample(StraightField(windows), x0, time_grid(windows)),
        GaussianMap(MEAN, STD).exact(x0, 0.0, 1.0),
        1e-8,
    )


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls.append((x, s, t))
        return torch.zeros_like(x)


def test_times_are_uniform_and_the_teacher_starts_from_noised_data_at_its_window(
    draw: Draw,
) -> None:
    starts: list[tuple[Tensor, Tensor]] = []

    def still(x: Tensor, t: Time) -> Tensor:
        starts.append((x, torch.as_tensor(t)))
        return torch.zeros_like(x)

    net, (x0, x1, *_) = Recorder(), data(draw, 4000)
    Piecewise(CountedField(still), 4, 1).loss(net, Pairs(x0, x1), seeded())
    (x, t), (seen, s, end) = starts[0], net.calls[0]
    close(t, (s * 4).floor() / 4)
    close(end, t + 0.25)
    close(x, (1 - t)[:, None] * x0 + t[:, None] * x1)
    close(seen, x)  # a teacher that stands still: the path is its start
    counts = torch.histc(s, 8, 0.0, 1.0)
    assert (counts - 500).abs().max() < 4 * math.sqrt(4000 / 8 * 7 / 8)


def test_a_stretched_field_moves_every_row_over_its_own_interval(
    shape: tuple[int, ...], draw: Draw
) -> None:
    x, net = draw(*shape), GaussianMap(MEAN, STD)
    a, b = torch.rand(2, shape[0], generator=seeded(), dtype=F64).aminmax(dim=0)
    field = CountedField(
        lambda x, t: net(x, torch.as_tensor(t), torch.as_tensor(t)).detach(), passes=2
    )
    end = solve(Stretched(field, a, b), x, time_grid(40), "rk4")
    close(end.state, x + expand_time(b - a, x) * net(x, a, b).detach(), 1e-6)
    assert end.passes == 40 * 4 * 2


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_straight_teacher_under_a_condition_is_its_own_student(
    dtype: torch.dtype, shape: tuple[int, ...], draw: Draw
) -> None:
    class Copy(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            assert cond is not None
            return expand_time(cond, x).expand_as(x)

    class Conditioned(ConditionField):
        def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
            return Copy()(x, torch.as_tensor(t), torch.as_tensor(t), cond)

    batch = Pairs(draw(*shape).to(dtype), draw(*shape).to(dtype), draw(shape[0]).to(dtype))
    loss = Piecewise(Conditioned(), 3, 2).loss(Copy(), batch, seeded())
    assert loss.dtype == dtype
    assert float(loss) < 1e3 * torch.finfo(dtype).eps ** 2


@pytest.mark.parametrize(
    ("method", "passes"), [("euler", 8 * 2 + 3), ("heun", 8 * 2 * 2 + 3), ("rk4", 8 * 4 * 2 + 3)]
)
def test_the_cost_is_what_a_step_spends(method: str, passes: int, draw: Draw) -> None:
    teacher, net = CountedField(lambda x, t: x, passes=2), CountedNet(StraightField(4))
    objective = Piecewise(teacher, method=method)
    objective.loss(net, data(draw, 1), seeded()).backward()
    assert teacher.calls * teacher.passes + net.passes == objective.cost == passes


def test_no_gradient_reaches_the_teacher(draw: Draw) -> None:
    teacher, net = GaussianMap(MEAN, STD), StraightField(4, 0.1)
    Piecewise(NetworkField(teacher)).loss(net, data(draw, 5), seeded()).backward()
    assert teacher.theta.grad is None
    assert net.theta.grad is not None


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"windows is 0, expected 1 or more"):
        Piecewise(FIELD, windows=0)
    with pytest.raises(ValueError, match=r"steps is 0, expected 1 or more"):
        Piecewise(FIELD, steps=0)
    with pytest.raises(
        ValueError, match=r"solver is 'dopri5', expected one with fixed steps: euler"
    ):
        Piecewise(FIELD, method="dopri5")
    assert [evaluations(method) for method in TABLEAUX] == [1, 2, 2, 4]

"""Progressive distillation: the authors' loss in their own terms, rounds that compose a teacher's
steps exactly, passes and grid."""

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.flow_map import flow_map, sample
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import Pairs, Progressive
from bezierdistill.objectives.progressive import halvings
from bezierdistill.solvers import solve, time_grid
from conftest import CountedNet, Draw, close, gaussian
from gaussian_map import GaussianMap

F64 = torch.float64


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class EulerNet(nn.Module):
    """The exact field of N(0.7, 0.5^2) read at the start of the interval: a teacher whose interval
    is not trained."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return gaussian(0.7, 0.5)(x, s)


class Recorder(nn.Module):
    """Zero velocity that keeps what it was called with."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls.append((x, s, t, cond))
        return torch.full_like(x, self.value)


class StepTable(nn.Module):
    """Affine velocity ``a_i x + b_i`` of the i-th of ``steps`` steps, linear in its parameters, so
    that a round has an exact minimiser."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.table = steps, nn.Parameter(torch.zeros(2, steps, dtype=F64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        slope, shift = self.table[:, (s * self.steps).round().long()]
        return expand_time(slope, x) * x + expand_time(shift, x)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_loss_is_algorithm_2_in_data_prediction_under_truncated_snr(
    steps: int, shape: tuple[int, ...], draw: Draw
) -> None:
    x0, x1 = draw(*shape), draw(*shape)
    teacher, student = MLP(shape[1:], 16, 2).double(), MLP(shape[1:], 16, 2).double()
    # An interval that matters: without it the half steps could not be told from equal times.
    for net in (teacher, student):
        nn.init.normal_(net.time.interval.weight)
    i = torch.randint(steps, (shape[0],), generator=seeded()).double()
    noisy, half, clean = i / steps, (i + 0.5) / steps, (i + 1) / steps
    alpha, sigma = expand_time(noisy, x1), 1 - expand_time(noisy, x1)
    z = alpha * x1 + sigma * x0
    end = flow_map(teacher, flow_map(teacher, z, noisy, half), half, clean)
    ratio = (1 - expand_time(clean, x1)) / sigma
    target = (end - ratio * z) / (expand_time(clean, x1) - ratio * alpha)
    predicted = z + sigma * student(z, noisy, clean)
    expected = (((alpha / sigma) ** 2).clamp_min(1) * (predicted - target) ** 2).mean()
    close(Progressive(teacher, steps).loss(student, Pairs(x0, x1), seeded()), expected, 1e-10)


def test_an_exact_map_is_a_fixed_point_and_a_shift_costs_the_mean_weight(draw: Draw) -> None:
    steps, offset, net = 4, 0.3, GaussianMap()
    batch = Pairs(draw(4000, 2), 0.7 + 0.5 * draw(4000, 2))
    loss = Progressive(GaussianMap(), steps).loss(net, batch, seeded())
    assert float(loss) < 1e-28
    assert abs(float(torch.autograd.grad(loss, net.theta)[0])) < 1e-13
    net.theta.data.fill_(offset)
    i = torch.randint(steps, (4000,), generator=seeded())
    weight = torch.tensor([1.0, 0.75**2, 0.5**2, 0.75**2], dtype=F64)[i].mean()
    close(Progressive(GaussianMap(), steps).loss(net, batch, seeded()), offset**2 * weight)


def test_rounds_compose_the_teachers_steps_exactly(draw: Draw) -> None:
    teacher: nn.Module = EulerNet()
    for steps in halvings(16):
        student, objective = StepTable(steps), Progressive(teacher, steps)
        batch = Pairs(draw(600, 1), 0.7 + 0.5 * draw(600, 1))

        loss = objective.loss(
            student, batch, seeded()
        )  # quadratic in the table: one Newton step finds its minimiser
        gradient = torch.autograd.grad(loss, student.table, create_graph=True)[0].flatten()
        hessian = torch.stack(
            [
                torch.autograd.grad(g, student.table, retain_graph=True)[0].flatten()
                for g in gradient
            ]
        )
        student.table.data -= torch.linalg.solve(hessian, gradient.detach()).reshape(2, steps)
        assert float(objective.loss(student, batch, seeded())) < 1e-20
        teacher = student
        x0 = draw(50, 1)
        euler = solve(gaussian(0.7, 0.5), x0, time_grid(16), "euler").state
        close(sample(student, x0, time_grid(steps)), euler, 1e-9)


def test_the_student_sees_its_own_grid_and_the_teacher_both_halves_of_each_step(draw: Draw) -> None:
    teacher, student, cond = Recorder(), Recorder(), draw(4000)
    x0, x1 = draw(4000, 1), draw(4000, 1)
    Progressive(teacher, 4).loss(student, Pairs(x0, x1, cond), seeded())
    x, s, t, seen = student.calls[0]
    close(t - s, torch.full_like(s, 0.25))
    close(x, (1 - s)[:, None] * x0 + s[:, None] * x1)
    counts = torch.bincount((s * 4).long(), minlength=4)
    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 4 * (4000 * 0.25 * 0.75) ** 0.5
    first, second = teacher.calls
    close(first[1], s)
    close(first[2], s + 0.125)
    close(second[1], s + 0.125)
    close(second[2], t)
    assert all(call[3] is cond for call in (*teacher.calls, *student.calls))
    assert seen is cond


def test_the_cost_is_what_a_step_spends_and_no_gradient_reaches_the_teacher(draw: Draw) -> None:
    weights = MLP((3,), 16, 2).double()
    teacher, student = CountedNet(weights), CountedNet(MLP((3,), 16, 2).double())
    objective = Progressive(teacher, 2)
    objective.loss(student, Pairs(draw(1, 3), draw(1, 3)), seeded()).backward()
    assert teacher.passes + student.passes == objective.cost == 5
    assert all(p.grad is None for p in weights.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_precision_of_the_states_is_kept(
    dtype: torch.dtype, shape: tuple[int, ...], draw: Draw
) -> None:
    batch, exact = Pairs(draw(*shape).to(dtype), draw(*shape).to(dtype)), Recorder(1.0)
    loss = Progressive(exact, 3).loss(Recorder(0.0), batch, seeded())
    i = torch.randint(3, (shape[0],), generator=seeded()).double()
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(
        float(torch.maximum(i / 3, 1 - i / 3).square().mean()), rel=1e-5
    )


def test_step_numbers_are_checked_and_halved() -> None:
    assert halvings(16) == (8, 4, 2, 1)
    assert halvings(2) == (1,)
    for steps in (1, 0, 12):
        with pytest.raises(ValueError, match=rf"steps is {steps}, expected a power of two"):
            halvings(steps)
    with pytest.raises(ValueError, match=r"steps is 0, expected 1 or more"):
        Progressive(EulerNet(), 0)

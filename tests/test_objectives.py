"""Objectives: closed-form losses, minimisers at the exact field and map, draws, and the count of passes."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.couplings import Independent, MinibatchOT, Teacher
from bezierdistill.curves import BezierCurve, expand_time
from bezierdistill.fields import Blend, GaussianMixture, NetworkField
from bezierdistill.networks import MLP
from bezierdistill.objectives import Alignment, CurveRegression, FlowMatching, Loss
from bezierdistill.objectives.curves import EndDraw, KnotsDraw, MapDraw, VelocityDraw
from bezierdistill.solvers import time_grid
from conftest import RATE, CountedField, CountedNet, Draw, ExactMap, FieldNet, close, gaussian

SCHEDULES = ((0.0, 1.0), (0.0, 0.6, 1.0))
DRAWS = [VelocityDraw(), EndDraw(), MapDraw(), KnotsDraw(SCHEDULES)]
F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_loss_closed_forms(dtype: torch.dtype, shape: tuple[int, ...], draw: Draw) -> None:
    a, b = draw(*shape).to(dtype), draw(*shape).to(dtype)
    error, tolerance = (a - b).double().flatten(1), 8 * torch.finfo(dtype).eps
    assert float(Loss()(a, b)) == pytest.approx(float(error.square().mean()), rel=tolerance)
    for c in (0.03, 1.0):
        rows = (error.square().mean(1) + c**2).sqrt() - c
        assert float(Loss(c)(a, b)) == pytest.approx(float(rows.mean()), rel=tolerance)
    assert float(Loss()(a, a)) == 0.0
    assert abs(float(Loss(0.03)(a, a))) <= 0.03 * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match=r"huber is -0.1"):
        Loss(-0.1)


@pytest.mark.parametrize("huber", [0.0, 0.1])
def test_loss_weights_are_a_weight_a_row(huber: float, shape: tuple[int, ...], draw: Draw) -> None:
    a, b, weight = draw(*shape), draw(*shape), draw(shape[0]).exp()
    rows = torch.stack([Loss(huber)(a[i : i + 1], b[i : i + 1]) for i in range(shape[0])])
    close(Loss(huber)(a, b, weight), (weight * rows).mean())
    close(Loss(huber)(a, b, torch.ones_like(weight)), Loss(huber)(a, b))


def test_flow_matching_is_minimal_at_the_exact_field(mixture: GaussianMixture, generator: torch.Generator) -> None:
    net = FieldNet(mixture, CountedField(lambda x, t: torch.ones_like(x)), CountedField(lambda x, t: x.sin() * expand_time(t, x)))
    gradients, excess, offset = [], [], torch.tensor([0.2, -0.3], dtype=F64)
    for _ in range(60):
        batch = (torch.randn(500, 2, generator=generator, dtype=F64), mixture.sample(500, generator), None)
        state = generator.get_state()
        net.theta.data.zero_()
        loss = FlowMatching().loss(net, batch, generator)
        gradients.append(torch.autograd.grad(loss, net.theta)[0])
        net.theta.data.copy_(offset)
        generator.set_state(state)
        excess.append(FlowMatching().loss(net, batch, generator) - loss)
    gradient, gain = torch.stack(gradients), torch.stack(excess).detach()
    assert (gradient.mean(0).abs() < 4 * gradient.std(0) / math.sqrt(60)).all()
    assert gradient.std(0).max() / math.sqrt(60) < 0.02
    assert gain.mean() > 4 * gain.std() / math.sqrt(60)


@pytest.mark.parametrize("coupling", [Independent(), MinibatchOT(), Teacher(gaussian([0.5, -1.0], [0.5, 2.0]), time_grid(3))])
def test_flow_matching_regresses_the_line_of_its_coupling(coupling: Independent, draw: Draw) -> None:
    x0, x1 = draw(16, 2), draw(16, 2)
    loss = FlowMatching(coupling).loss(Constant(0.25), (x0, x1, None), torch.Generator())
    pair = coupling(x0, x1)
    close(loss, (pair.x1 - pair.x0 - 0.25).square().mean())


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("draw_of", [*DRAWS, EndDraw(0.0), MapDraw(0.0), MapDraw(1.0)], ids=str)
@pytest.mark.parametrize("huber", [0.0, 0.03])
def test_curve_regression_of_an_exact_map_is_zero_for_every_draw(draw_of: VelocityDraw, huber: float, draw: Draw) -> None:
    x0 = draw(200, 2)
    path = torch.stack([x0 * math.exp(RATE * t) for t in time_grid(40)])
    curve = BezierCurve.fit(path, time_grid(40), 10)  # of the exact path, to 1e-11
    objective = CurveRegression(draw_of, Loss(huber))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        assert float(objective.loss(ExactMap(), (curve, None), generator)) < 1e-14
        assert float(objective.loss(Constant(0.0), (curve, None), generator)) > 1e-2


def test_curve_regression_weighs_intervals_by_their_length(draw: Draw) -> None:
    curve, draw_of = BezierCurve(draw(4, 500, 2)), MapDraw(0.25)
    s, t = (time.double() for time in draw_of(500, torch.Generator().manual_seed(4)))
    squared = (curve.point(t) - curve.point(s)).square().mean(1)
    for power in (0.0, 0.5, 2.0):
        loss = CurveRegression(draw_of, power=power).loss(Constant(0.0), (curve, None), torch.Generator().manual_seed(4))
        torch.testing.assert_close(loss, ((t - s).clamp_min(1e-3) ** -power * squared).mean(), rtol=1e-9, atol=0)


def test_velocity_on_lines_is_flow_matching_of_the_pairs(shape: tuple[int, ...], draw: Draw) -> None:
    x0, x1, net = draw(*shape), draw(*shape), MLP(shape[1:], width=16, depth=2).double()
    on_curves, on_pairs = (torch.Generator().manual_seed(3) for _ in range(2))
    reflow = CurveRegression(VelocityDraw()).loss(net, (BezierCurve.line(x0, x1), None), on_curves)
    assert torch.equal(reflow, FlowMatching().loss(net, (x0, x1, None), on_pairs))


def test_draws_are_ordered_and_have_their_laws(generator: torch.Generator) -> None:
    n = 20_000

    def share(hits: Tensor, expected: float) -> bool:
        return abs(float(hits.double().mean()) - expected) < 4 * math.sqrt(expected * (1 - expected) / n)

    for draw_of in DRAWS:
        s, t = draw_of(n, generator)
        assert s.shape == t.shape == (n,)
        assert ((s >= 0) & (s <= t) & (t <= 1)).all()
    s, t = VelocityDraw()(n, generator)
    assert torch.equal(s, t)
    assert share(s < 0.3, 0.3)
    s, t = EndDraw(0.75)(n, generator)
    assert (t == 1).all()
    assert share(s == 0, 0.75)
    assert share((s > 0) & (s < 0.4), 0.25 * 0.4)
    s, t = MapDraw(0.5)(n, generator)
    assert share((s == 0) & (t == 1), 0.5)
    assert share((s > 0) & (t - s > 0.5), 0.5 * 0.25)  # the gap of two uniform times is triangular
    drawn = list(zip(*(time.tolist() for time in KnotsDraw(SCHEDULES)(n, generator)), strict=True))
    intervals = [(0.0, 1.0), (0.0, pytest.approx(0.6)), (pytest.approx(0.6), 1.0)]
    counts = [sum(pair == interval for pair in drawn) for interval in intervals]
    assert sum(counts) == n
    assert all(abs(count - n / 3) < 4 * math.sqrt(n * 2 / 9) for count in counts)


class Affine(nn.Module):
    """The student ``F(x, 0, 1) = mean + std x``, whose law is N(mean, std^2)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor(p, dtype=F64)) for p in (mean, std))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.mean + (self.std - 1) * x


MEAN, STD = [1.0, -2.0, 0.5], [0.8, 0.5, 1.5]


def alignment_gradient(mean: list[float], std: list[float], draw: Draw, count: int = 4000) -> list[Tensor]:
    student, critic = Affine(mean, std), FieldNet(gaussian(mean, std))
    objective, x0 = Alignment(gaussian(MEAN, STD), (0.0, 1.0), anchor=0.0), draw(count, 3)
    loss, x = objective.student_loss(student, critic, (BezierCurve.line(x0, x0), None), torch.Generator().manual_seed(1))
    torch.testing.assert_close(x, student.mean + student.std * x0)
    assert not x.requires_grad
    return list(torch.autograd.grad(loss, [student.mean, student.std]))


def test_alignment_rests_where_the_laws_are_equal(draw: Draw) -> None:
    for gradient in alignment_gradient(MEAN, STD, draw):
        assert not gradient.any()


def test_alignment_moves_the_student_towards_the_data(draw: Draw) -> None:
    shifted = [0.2, -1.1, 0.9]
    descent = -alignment_gradient(shifted, STD, draw)[0]
    # At equal spread g = (1-t)^2 / ((1-t)^2 + t^2 std^2) (m_student - m_data), so every component of the mean has the sign of its gap.
    gap = torch.tensor(MEAN, dtype=F64) - torch.tensor(shifted, dtype=F64)
    assert (descent * gap > 0).all()
    equal = -alignment_gradient([m - 0.4 for m in MEAN], STD, draw)[0]
    assert equal[1] > equal[0] > equal[2] > 0  # the factor falls with the data's spread
    assert (-alignment_gradient(MEAN, [0.5 * s for s in STD], draw)[1] > 0).all()
    assert (-alignment_gradient(MEAN, [2.0 * s for s in STD], draw)[1] < 0).all()


def test_alignment_gradient_has_the_closed_form(generator: torch.Generator) -> None:
    shift, x0 = 0.7, torch.randn(50, 1, generator=generator, dtype=F64)
    objective = Alignment(gaussian(0.0, 2.0), (0.0, 1.0), anchor=0.0, times=(0.3, 0.3))  # one re-noising time
    student, critic = Affine([shift], [2.0]), FieldNet(gaussian(shift, 2.0))
    loss, x = objective.student_loss(student, critic, (BezierCurve.line(x0, x0), None), torch.Generator().manual_seed(2))
    again = torch.Generator().manual_seed(2)
    torch.rand(50, generator=again)
    noisy, variance = 0.7 * torch.randn(50, 1, generator=again).double() + 0.3 * x, 0.7**2 + 0.3**2 * 4
    g = 0.7**2 / variance * shift
    end = noisy * 0.3 * 4 / variance  # E[x1 | x_t] of N(0, 4)
    scale = (x - end).abs().clamp_min(1e-3)[:, 0]
    torch.testing.assert_close(loss, (g**2 / 2 / scale).mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, student.mean)[0], (g / scale).mean()[None], rtol=1e-10, atol=0)


def test_alignment_anchor_is_the_regression_at_every_knot(draw: Draw) -> None:
    curve, net, knots = BezierCurve(draw(4, 9, 3)), Constant(0.5), (0.0, 0.4, 1.0)
    critic = FieldNet(gaussian(MEAN, STD))

    def loss(anchor: float) -> Tensor:
        objective = Alignment(gaussian(MEAN, STD), knots, Loss(0.1), anchor)
        return objective.student_loss(net, critic, (curve, None), torch.Generator().manual_seed(0))[0]

    expected = sum(Loss(0.1)(curve.source + 0.5 * t, curve.point(t)) for t in knots[1:])
    torch.testing.assert_close(loss(3.0) - loss(0.0), torch.as_tensor(3 * expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("knots", SCHEDULES)
def test_passes_are_what_a_step_spends(knots: tuple[float, ...], draw: Draw, generator: torch.Generator) -> None:
    student, critic, *teachers = (CountedNet(MLP((3,), width=8, depth=1).double()) for _ in range(4))
    blend, curve = Blend([NetworkField(teacher) for teacher in teachers], torch.tensor([1.5, -0.5])), BezierCurve(draw(3, 6, 3))
    alignment = Alignment(blend, knots)
    loss, x = alignment.student_loss(student, critic, (curve, None), generator)
    loss.backward()
    FlowMatching().loss(critic, (draw(6, 3), x, None), generator).backward()
    assert alignment.passes == student.passes + critic.passes + sum(teacher.passes for teacher in teachers)
    assert all(not parameter.grad for teacher in teachers for parameter in teacher.parameters())
    student.passes = 0
    CurveRegression(KnotsDraw([knots])).loss(student, (curve, None), generator).backward()
    assert CurveRegression.passes == FlowMatching.passes == student.passes == 3

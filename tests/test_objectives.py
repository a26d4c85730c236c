"""Objectives: closed-form losses, minimisers at the exact field and map, intervals, and the count
of passes."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.couplings import Coupling, Independent, MinibatchOT
from bezierdistill.curves import BezierCurve, expand_time
from bezierdistill.errors import UserError
from bezierdistill.fields import GaussianMixture
from bezierdistill.metrics import energy_distance
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import (
    Aligned,
    Alignment,
    CurveRegression,
    Curves,
    EarlyIntervals,
    EitherIntervals,
    EndIntervals,
    FlowMatching,
    Instants,
    Intervals,
    KnotIntervals,
    Loss,
    MapIntervals,
    Pairs,
    UShapedInstants,
)
from bezierdistill.objectives.distances import energy, mean_distance
from bezierdistill.solvers import time_grid
from conftest import RATE, CountedField, CountedNet, Draw, ExactMap, FieldNet, close

KNOTS = ((0.0, 1.0), (0.0, 0.6, 1.0))
INTERVALS = [
    Instants(),
    EndIntervals(),
    MapIntervals(),
    EarlyIntervals(),
    KnotIntervals(KNOTS),
]
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
def test_loss_weighs_every_row(huber: float, shape: tuple[int, ...], draw: Draw) -> None:
    a, b, weight = draw(*shape), draw(*shape), draw(shape[0]).exp()
    rows = torch.stack([Loss(huber)(a[i : i + 1], b[i : i + 1]) for i in range(shape[0])])
    close(Loss(huber)(a, b, weight), (weight * rows).mean())
    close(Loss(huber)(a, b, torch.ones_like(weight)), Loss(huber)(a, b))


def test_flow_matching_is_minimal_at_the_exact_field(
    mixture: GaussianMixture, generator: torch.Generator
) -> None:
    net = FieldNet(
        mixture,
        CountedField(lambda x, t: torch.ones_like(x)),
        CountedField(lambda x, t: x.sin() * expand_time(t, x)),
    )
    gradients, excess, offset = [], [], torch.tensor([0.2, -0.3], dtype=F64)
    for _ in range(60):
        batch = Pairs(
            torch.randn(500, 2, generator=generator, dtype=F64), mixture.sample(500, generator)
        )
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


@pytest.mark.parametrize("coupling", [Independent(), MinibatchOT()])
def test_flow_matching_regresses_the_line_of_its_coupling(coupling: Coupling, draw: Draw) -> None:
    x0, x1 = draw(16, 2), draw(16, 2)
    loss = FlowMatching(coupling).loss(Constant(0.25), Pairs(x0, x1), torch.Generator())
    pair = coupling(x0, x1)
    close(loss, (pair.x1 - pair.x0 - 0.25).square().mean())


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize(
    "intervals", [*INTERVALS, EndIntervals(0.0), MapIntervals(0.0), MapIntervals(1.0)], ids=str
)
@pytest.mark.parametrize("huber", [0.0, 0.03])
def test_curve_regression_of_an_exact_map_is_zero_for_all_intervals(
    intervals: Intervals, huber: float, draw: Draw
) -> None:
    x0 = draw(200, 2)
    path = torch.stack([x0 * math.exp(RATE * t) for t in time_grid(40)])
    curve = BezierCurve.fit(path, time_grid(40), 10)  # of the exact path, to 1e-11
    objective = CurveRegression(intervals, Loss(huber))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        assert float(objective.loss(ExactMap(), Curves(curve), generator)) < 1e-14
        assert float(objective.loss(Constant(0.0), Curves(curve), generator)) > 1e-2


def test_curve_regression_weighs_intervals_by_their_length(draw: Draw) -> None:
    curve, intervals = BezierCurve(draw(4, 500, 2)), MapIntervals(0.25)
    s, t = intervals.rows(curve.source, torch.Generator().manual_seed(4))
    squared = (curve.point(t) - curve.point(s)).square().mean(1)
    for power in (0.0, 0.5, 2.0):
        loss = CurveRegression(intervals, power=power).loss(
            Constant(0.0), Curves(curve), torch.Generator().manual_seed(4)
        )
        torch.testing.assert_close(
            loss, ((t - s).clamp_min(1e-3) ** -power * squared).mean(), rtol=1e-9, atol=0
        )


def test_velocity_on_lines_is_flow_matching_of_the_pairs(
    shape: tuple[int, ...], draw: Draw
) -> None:
    x0, x1, net = draw(*shape), draw(*shape), MLP(shape[1:], width=16, depth=2).double()
    on_curves, on_pairs = (torch.Generator().manual_seed(3) for _ in range(2))
    reflow = CurveRegression(Instants()).loss(net, Curves(BezierCurve.line(x0, x1)), on_curves)
    assert torch.equal(reflow, FlowMatching().loss(net, Pairs(x0, x1), on_pairs))


def test_intervals_are_ordered_and_have_their_distributions(generator: torch.Generator) -> None:
    n = 20_000

    def share(hits: Tensor, expected: float) -> bool:
        return abs(float(hits.double().mean()) - expected) < 4 * math.sqrt(
            expected * (1 - expected) / n
        )

    for intervals in INTERVALS:
        s, t = intervals(n, generator)
        assert s.shape == t.shape == (n,)
        assert ((s >= 0) & (s <= t) & (t <= 1)).all()
    s, t = Instants()(n, generator)
    assert torch.equal(s, t)
    assert share(s < 0.3, 0.3)
    s, t = EndIntervals(0.75)(n, generator)
    assert (t == 1).all()
    assert share(s == 0, 0.75)
    assert share((s > 0) & (s < 0.4), 0.25 * 0.4)
    s, t = MapIntervals(0.5)(n, generator)
    assert share((s == 0) & (t == 1), 0.5)
    assert share((s > 0) & (t - s > 0.5), 0.5 * 0.25)  # the gap of two uniform times is triangular
    s, t = EarlyIntervals(0.2, 0.6, 2.0)(n, generator)
    assert share(s == 0, 0.2)
    assert share((s > 0) & (s < 0.09), 0.8 * 0.3)  # of squares
    assert share(t == 1, 0.6)
    assert share((t < 1) & ((t - s) < 0.5 * (1 - s)), 0.4 * 0.5)  # uniform after s
    drawn = list(zip(*(time.tolist() for time in KnotIntervals(KNOTS)(n, generator)), strict=True))
    expected = [(0.0, 1.0), (0.0, 0.6), (0.6, 1.0)]
    counts = [drawn.count(interval) for interval in expected]
    assert sum(counts) == n
    assert all(abs(count - n / 3) < 4 * math.sqrt(n * 2 / 9) for count in counts)


class Affine(nn.Module):
    """The student ``F(x, s, t) = x + (t - s) (shift + (scale - 1) x)``: from 0 to 1, N(0, 1)
    becomes N(shift, scale^2)."""

    def __init__(self, shift: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.shift, self.scale = (nn.Parameter(torch.tensor(p, dtype=F64)) for p in (shift, scale))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.shift + (self.scale - 1) * x


MEAN, STD = [1.0, -2.0, 0.5], [0.8, 0.5, 1.5]
REAL = torch.tensor(MEAN, dtype=F64), torch.tensor(STD, dtype=F64)


def test_energy_is_the_distance_of_the_metric_up_to_the_real_term(
    shape: tuple[int, ...], draw: Draw
) -> None:
    x, real = draw(9, *shape[1:]), draw(17, *shape[1:]) + 0.3
    among, estimated = torch.pdist(real.flatten(1)).mean(), mean_distance(real)
    whole = energy(x, real) + estimated - among  # of all pairs of real states, not of half as many
    assert float(whole) == pytest.approx(energy_distance(x, real), rel=1e-5)
    # The pairs of a state with itself pull the first term down.
    assert float(energy(real, real[torch.arange(17)]) + estimated) < float(among)
    with pytest.raises(ValueError, match="got 1 sample, expected 2 or more"):
        energy(x[:1], real)
    for other in (real[:0], torch.zeros(4, 99)):
        with pytest.raises(ValueError, match="expected one or more of shape"):
            energy(x, other)


def test_energy_of_equal_states_has_a_finite_gradient() -> None:
    x = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    assert torch.equal(
        torch.autograd.grad(energy(x, torch.zeros(5, 3, dtype=F64)), x)[0],
        torch.zeros(4, 3, dtype=F64),
    )


def alignment_gradients(
    shift: Sequence[float], scale: Sequence[float], draw: Draw, count: int = 40
) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the gradient in shift and scale ``(2, 3)``, over fresh batches."""
    student, objective = Affine(shift, scale), Alignment(((0.0, 1.0),), anchor=0.0)
    gradients = []
    for _ in range(count):
        x0, real = draw(200, 3), REAL[0] + REAL[1] * draw(400, 3)
        batch = Aligned(x0, (real,))
        loss = objective.loss(student, batch, torch.Generator())
        gradients.append(torch.stack(torch.autograd.grad(loss, [student.shift, student.scale])))
    stacked = torch.stack(gradients)
    return stacked.mean(0), stacked.std(0) / math.sqrt(count)


def test_alignment_rests_where_the_distributions_are_equal(draw: Draw) -> None:
    mean, error = alignment_gradients(MEAN, STD, draw)
    assert (mean.abs() < 4 * error).all()
    assert error.max() < 0.02


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_alignment_moves_the_student_towards_the_data(sign: float, draw: Draw) -> None:
    mean, error = alignment_gradients([m + 0.5 * sign for m in MEAN], STD, draw)
    assert (sign * mean[0] > 4 * error[0]).all()
    mean, error = alignment_gradients(MEAN, [s * (1 + 0.4 * sign) for s in STD], draw)
    assert (sign * mean[1] > 4 * error[1]).all()


def test_energy_gradient_has_the_closed_form_in_one_dimension(draw: Draw) -> None:
    # d/dx_i of 2 E|X - Y| - E|X - X'|: the signs towards the real states, against those towards the
    # other samples
    x, real = draw(30, 1).requires_grad_(), draw(50, 1)
    towards = (x - real.T).sign().mean(1) * 2 / 30
    apart = (x - x.T).sign().sum(1) * 2 / (30 * 29)
    gradient = torch.autograd.grad(energy(x, real), x)[0][:, 0]
    torch.testing.assert_close(
        gradient, (towards - apart).detach(), rtol=1e-3, atol=1e-5
    )  # near pairs are smoothed


def test_alignment_compares_what_is_saved(draw: Draw) -> None:
    curve, real = BezierCurve(draw(3, 40, 3)), draw(80, 3).clamp(-0.5, 0.5)
    student = Affine([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    objective = Alignment(((0.0, 1.0),), anchor=0.0, clamp=lambda x: x.clamp(-0.5, 0.5))
    torch.testing.assert_close(
        objective.loss(student, Aligned(curve.source, (real,)), torch.Generator()),
        energy(curve.source.clamp(-0.5, 0.5), real) / mean_distance(real),
        rtol=1e-4,  # near pairs are smoothed
        atol=0,
    )


def test_alignment_anchor_is_the_regression_of_every_sampler(draw: Draw) -> None:
    curve, real, net = BezierCurve(draw(4, 9, 3)), draw(20, 3), Constant(0.5)
    knots = ((0.0, 1.0), (0.0, 0.4, 1.0))

    def loss(anchor: float) -> Tensor:
        objective = Alignment(knots, Loss(0.1), anchor)
        batches = [Aligned(curve.source, (real,), end=curve.data, turn=turn) for turn in (3, 4)]
        losses = [objective.loss(net, batch, torch.Generator()) for batch in batches]
        return torch.stack(losses).sum()

    expected = 2 * Loss(0.1)(curve.source + 0.5, curve.data) / mean_distance(curve.data)
    torch.testing.assert_close(
        loss(3.0) - loss(0.0), torch.as_tensor(3 * expected), rtol=1e-10, atol=0
    )
    with pytest.raises(ValueError, match="anchor is -1"):
        Alignment(knots, anchor=-1.0)
    with pytest.raises(ValueError, match="rise strictly from 0 to 1"):
        Alignment(((0.0, 0.5),))


def test_the_gradient_goes_through_the_last_jump_alone(draw: Draw) -> None:
    x0, real, student = draw(20, 3), draw(40, 3), Affine([0.1, 0.2, 0.3], [0.9, 1.1, 1.3])
    loss = Alignment(((0.0, 0.4, 1.0),), anchor=0.0).loss(
        student, Aligned(x0, (real,)), torch.Generator()
    )
    got = torch.autograd.grad(loss, student.shift)[0]
    middle = (x0 + 0.4 * student(x0, x0[:, 0], x0[:, 0])).detach()
    end = middle + 0.6 * student(middle, x0[:, 0], x0[:, 0])
    expected = energy(end, real) / mean_distance(real)
    torch.testing.assert_close(got, torch.autograd.grad(expected, student.shift)[0])


@pytest.mark.parametrize("knots", [KNOTS[:1], KNOTS[1:], KNOTS], ids=str)
def test_the_cost_is_what_a_step_spends(
    knots: tuple[tuple[float, ...], ...], draw: Draw, generator: torch.Generator
) -> None:
    student, curve = CountedNet(MLP((3,), width=8, depth=1).double()), BezierCurve(draw(3, 6, 3))
    alignment = Alignment(knots)
    for turn in range(len(knots)):
        batch = Aligned(curve.source, (draw(12, 3),), end=curve.data, turn=turn)
        alignment.loss(student, batch, generator).backward()
    assert len(knots) * alignment.cost == student.passes
    student.passes = 0
    CurveRegression(KnotIntervals(knots)).loss(student, Curves(curve), generator).backward()
    assert CurveRegression.cost == FlowMatching.cost == student.passes == 3


def test_settings_that_cannot_be_honoured_are_refused() -> None:
    for instants in (Instants(), UShapedInstants()):
        with pytest.raises(UserError, match=r"power is 0\.5 where s = t"):
            CurveRegression(instants, power=0.5)
        for pair in ((instants, MapIntervals()), (EndIntervals(), instants)):
            with pytest.raises(UserError, match="one of two intervals are instants"):
                EitherIntervals(*pair)
    for kind in (EndIntervals, MapIntervals):
        with pytest.raises(UserError, match=r"whole is 1\.5, expected 0"):
            kind(1.5)
    with pytest.raises(UserError, match="rise strictly from 0 to 1"):
        KnotIntervals(((0.0, 0.5),))


def test_either_takes_each_row_from_one_of_two(generator: torch.Generator) -> None:
    s, t = EitherIntervals(KnotIntervals(KNOTS[:1]), EndIntervals(0.0))(20_000, generator)
    whole = (s == 0) & (t == 1)
    assert abs(float(whole.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(20_000)
    assert (t == 1).all()


def test_a_single_objective_trains_the_first_network_by_its_loss(draw: Draw) -> None:
    nets = {"student": Affine([1.0], [0.5]), "other": Affine([0.0], [1.0])}
    batch = Pairs(draw(8, 1), draw(8, 1))
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    ((name, loss),) = FlowMatching().losses(nets, batch, seeds[0], 0.5)
    assert name == "student"
    assert torch.equal(loss, FlowMatching().loss(nets["student"], batch, seeds[1]))


def test_pairs_are_split_by_rows(draw: Draw) -> None:
    pairs = Pairs(draw(5, 2), draw(5, 2), torch.arange(5), torch.arange(5))
    first, others = pairs.split(2)
    for name in Pairs._fields:
        whole, head, tail = (getattr(part, name) for part in (pairs, first, others))
        assert torch.equal(torch.cat([head, tail]), whole)
        assert len(head) == 2
    assert Pairs(draw(5, 2), draw(5, 2)).split(2)[0].cond is None
    t = torch.linspace(0, 1, 5, dtype=F64)
    close(pairs.point(t), (1 - t)[:, None] * pairs.x0 + t[:, None] * pairs.x1)

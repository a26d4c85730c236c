"""Emitted curves: losses vanish, with their gradients, at the curves of a teacher's ODE, converge
with the degree, and ask the teacher for the rows, the conditions and the passes that they say."""

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve, Time, bernstein, expand_time, match_time
from bezierdistill.data import EndlessData, Scaling
from bezierdistill.errors import UserError
from bezierdistill.flow_map import flow_map
from bezierdistill.knots import powered_knots
from bezierdistill.networks.curve import CurveNetwork, combine, mean_weights
from bezierdistill.objectives import (
    CurveRegression,
    Curves,
    EmittedCurves,
    Loss,
    OnPolicy,
    Pairs,
)
from bezierdistill.objectives.emitted_curves import (
    END,
    emitted_cost,
    policy_loss,
    whole_share,
)
from bezierdistill.objectives.intervals import Intervals
from bezierdistill.stages.align import POWERS, TRIED, choose_knots, knots_cost, tried_rows
from conftest import RATE, ConditionField, CountedField, Draw, close, gaussian

SLOPES = ((0.7, -0.3), (-1.1, 0.4), (0.6, 0.9))  # of the velocity a + 2 b t + 3 c t^2


def polynomial(x: Tensor, t: Time) -> Tensor:
    """A velocity that is quadratic in time and the same everywhere."""
    time = expand_time(match_time(t, x), x)
    a, b, c = torch.tensor(SLOPES, dtype=x.dtype)
    return a + 2 * b * time + 3 * c * time**2


def linear(x: Tensor, t: Time) -> Tensor:
    """``dx/dt = RATE x``."""
    return RATE * x


POLYNOMIAL, LINEAR = CountedField(polynomial), CountedField(linear)


class Emits(nn.Module):
    """A network that emits ``inner(x, s, cond)``, and ``theta`` added to its control points."""

    def __init__(self, emit: Any, points: int) -> None:
        super().__init__()
        self.emit, self.asked = emit, 0
        self.theta = nn.Parameter(torch.zeros(points, dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.asked += len(x)
        return self.emit(x, s, cond) + self.theta[:, None]


def network(emit: Any, points: int) -> CurveNetwork:
    return CurveNetwork(Emits(emit, points), points)


def emits(net: CurveNetwork) -> Emits:
    assert isinstance(net.inner, Emits)
    return net.inner


def exact(x: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
    """The three control points of :func:`polynomial` over [s, 1], by interpolation."""
    nodes = torch.tensor([0.0, 0.5, 1.0], dtype=x.dtype)
    times = s[:, None] + nodes * (1 - s[:, None])
    values = torch.stack([polynomial(x, time) for time in times.T], 1)
    return torch.einsum("jk,bkd->bjd", torch.linalg.inv(bernstein(2, nodes).T), values)


def polynomial_curves(source: Tensor) -> BezierCurve:
    """The paths of :func:`polynomial`, cubics."""
    a, b, c = torch.tensor(SLOPES, dtype=source.dtype)
    times = [k / 3 for k in range(4)]
    states = torch.stack([source + a * t + b * t**2 + c * t**3 for t in times])
    return BezierCurve.fit(states, times, 3)


def collocated(points: int, rows: int = 20_000) -> Any:
    """Emits the control points V at which velocities along the curve differ from :func:`linear` by
    nothing that the basis sees: ``sum_j (M_ij - RATE h N_ij) V_j = RATE m_i x``, with h = 1 - s."""
    tau = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    basis, integral = bernstein(points - 1, tau), tau * mean_weights(points, tau)
    own, cross, mean = basis @ basis.T / rows, basis @ integral.T / rows, basis.mean(1)

    def emit(x: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        matrix = own - RATE * (1 - s)[:, None, None] * cross
        shares = torch.linalg.solve(matrix, RATE * mean.expand(len(s), -1))
        return shares[:, :, None] * x[:, None]

    return emit


def gradient(loss: Tensor, net: CurveNetwork) -> Tensor:
    return torch.autograd.grad(loss, emits(net).theta)[0]


def objectives(teacher: Any) -> dict[str, Any]:
    return {
        "stored": EmittedCurves(Loss(0.03), whole=0.5),
        "both": EmittedCurves(Loss(), whole=0.5, teacher=teacher, on_policy=0.5),
        "asked": EmittedCurves(Loss(), teacher=teacher, on_policy=1.0),
        "free": OnPolicy(teacher, asked=3),
    }


@pytest.mark.parametrize("name", objectives(POLYNOMIAL))
def test_losses_and_gradients_vanish_at_the_paths_alone(
    name: str, draw: Draw, generator: torch.Generator
) -> None:
    curve = polynomial_curves(draw(64, 2))
    pairs = Pairs(curve.source, curve.data.flip(0))
    batch: Any = pairs if name == "free" else Curves(curve)
    objective, net = objectives(POLYNOMIAL)[name], network(exact, 3)
    loss = objective.loss(net, batch, generator)
    assert loss < 1e-24 if name != "stored" else loss < 1e-12
    assert gradient(loss, net).abs().max() < 1e-10
    with torch.no_grad():
        emits(net).theta[1] = 0.1
    loss = objective.loss(net, batch, generator)
    assert loss > 1e-4
    assert gradient(loss, net)[1] > 1e-3
    fewer = network(lambda x, s, cond: exact(x, s)[:, ::2], 2)  # a line cannot be the path
    assert objective.loss(fewer, batch, generator) > 1e-3


def test_the_fixed_point_is_the_collocation_of_the_teachers_ode(
    generator: torch.Generator,
) -> None:
    """No gradient at it on average over the curve; ends converge with the degree, and fast."""
    x, ends = torch.ones(2000, 1, dtype=torch.float64), []
    tau = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for points in (1, 2, 3, 4, 5):
        for s in (0.0, 0.6):
            net, start = network(collocated(points), points), torch.full_like(tau, s)
            emitted = net(x, start, start, whole=True)
            loss = policy_loss(LINEAR, x, start, emitted, tau, None)
            assert gradient(loss, net).abs().max() < 1e-6
            moved = policy_loss(LINEAR, x, start, emitted + 0.1, tau, None)
            assert moved > loss + 1e-3
        if points > 1:
            end = flow_map(net, x[:1], 0.0, 1.0)
            ends.append(abs(float(end) - math.exp(RATE)))
    orders = [a / b for a, b in pairwise(ends)]
    assert min(orders) > 50, ends  # two orders a control point, as at Gauss points
    # The objective itself draws one time in every part of the curve: it sees the same.
    data = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    net = network(collocated(3), 3)
    loss = OnPolicy(LINEAR, asked=400, whole=0.5).loss(net, Pairs(data, data + 1), generator)
    assert gradient(loss, net).abs().max() < 2e-4


@pytest.mark.parametrize("points", [2, 4, 6])
def test_curves_of_the_exact_field_pass_through_its_flow_map(points: int, draw: Draw) -> None:
    """Of one Gaussian: x_t = t mean + (q_t / q_s)^(1/2) (x_s - s mean), in closed form. Curves that
    interpolate its velocities have a loss that falls with their degree, and so do their ends."""
    mean, std = torch.tensor([0.4, -0.2]).double(), torch.tensor([0.6, 1.4]).double()
    field = gaussian(mean.tolist(), std.tolist())

    def spread(t: Tensor) -> Tensor:
        return ((1 - t[..., None]) ** 2 + (t[..., None] * std) ** 2).sqrt()

    def path(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return t[:, None] * mean + spread(t) / spread(s) * (x - s[:, None] * mean)

    def emit(x: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        nodes = (1 - torch.cos(math.pi * (torch.arange(points) + 0.5).double() / points)) / 2
        times = s + nodes[:, None] * (1 - s)
        values = torch.stack([field(path(x, s, t), t) for t in times], 1)
        inverse = torch.linalg.inv(bernstein(points - 1, nodes).T)
        return torch.einsum("jk,bkd->bjd", inverse, values)

    net, x, seeds = network(emit, points), draw(400, 2), torch.Generator().manual_seed(1)
    curve = BezierCurve.line(x, path(x, torch.zeros(400).double(), torch.ones(400).double()))
    asked = EmittedCurves(teacher=field, on_policy=1.0).loss(net, Curves(curve), seeds)
    ends = EmittedCurves(Loss(), whole=1.0, power=0.0).loss(net, Curves(curve), seeds)
    jump = flow_map(net, x, 0.0, 1.0)
    assert (jump - curve.data).abs().max() < 0.4 * 5.0 ** (2 - points)
    assert asked < 0.01 * 7.0 ** (2 - points)
    assert ends > 1e-3  # lines are not its paths, however right their ends


def test_no_gradient_goes_through_the_teacher(draw: Draw, generator: torch.Generator) -> None:
    """It is that of B' alone: ``2 (B' - v) b_j``, in the mean, and none of the teacher's."""
    rate = nn.Parameter(torch.tensor(RATE, dtype=torch.float64))

    teacher = CountedField(lambda x, t: rate * x)
    x, emitted, tau = draw(9, 2), draw(9, 3, 2).requires_grad_(), torch.rand(9).double()
    s = torch.rand(9).double()
    loss = policy_loss(teacher, x, s, emitted, tau, None)
    (found,) = torch.autograd.grad(loss, emitted)
    basis = bernstein(2, tau)
    state = x + (tau * (1 - s))[:, None] * combine(mean_weights(3, tau), emitted)
    error = torch.einsum("kb,bkd->bd", basis, emitted) - RATE * state
    close(found, (2 / error.numel() * basis.T[..., None] * error[:, None]).detach())
    close(loss, error.square().mean())
    curve, net = BezierCurve.line(draw(8, 2), draw(8, 2)), network(exact, 3)
    EmittedCurves(teacher=teacher, on_policy=0.5).loss(net, Curves(curve), generator).backward()
    OnPolicy(teacher).loss(net, Pairs(draw(8, 2), draw(8, 2)), generator).backward()
    assert emits(net).theta.grad is not None
    assert rate.grad is None


class Rows(CountedField):
    """Counts the rows that it is asked for, and keeps the times."""

    def __init__(self, passes: int = 1) -> None:
        super().__init__(lambda x, t: RATE * x, passes)
        self.rows, self.times = list[int](), list[Tensor]()

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        self.times.append(match_time(t, x))
        return super().__call__(x, t)


def test_without_on_policy_rows_no_teacher_is_asked(draw: Draw) -> None:
    curve, teacher, net = BezierCurve.line(draw(16, 2), draw(16, 2)), Rows(), network(exact, 3)
    losses = [
        EmittedCurves(teacher=given, on_policy=0.0).loss(
            net, Curves(curve), torch.Generator().manual_seed(0)
        )
        for given in (teacher, None)
    ]
    assert teacher.calls == 0
    assert losses[0] == losses[1] > 0
    assert EmittedCurves().cost == EmittedCurves(teacher=teacher).cost == 3
    with pytest.raises(UserError, match=r"on-policy is 0\.5 and there is no teacher: expected 0"):
        EmittedCurves(on_policy=0.5)
    with pytest.raises(UserError, match="whole"):
        EmittedCurves(whole=1.5)
    with pytest.raises(UserError, match="early is 0"):
        EmittedCurves(early=0.0)


def test_with_on_policy_rows_alone_no_target_is_used(draw: Draw) -> None:
    """Stored curves say where rows start: beside that their ends do not matter."""
    curve, net = polynomial_curves(draw(16, 2)), network(exact, 3)
    objective = EmittedCurves(teacher=POLYNOMIAL, on_policy=1.0, power=3.0)
    other = BezierCurve.line(curve.source, draw(16, 2))
    for given in (curve, other):
        assert objective.loss(net, Curves(given), torch.Generator().manual_seed(0)) < 1e-24


@pytest.mark.parametrize("passes", [1, 4])
def test_rows_are_split_right_on_average_and_cost_what_is_said(passes: int, draw: Draw) -> None:
    curve, net = BezierCurve.line(draw(7, 2), draw(7, 2)), network(exact, 3)
    seeds, teacher, steps = torch.Generator().manual_seed(0), Rows(passes), 1500
    objective = EmittedCurves(teacher=teacher, on_policy=0.3)
    losses = [objective.loss(net, Curves(curve), seeds) for _ in range(steps)]
    assert min(losses) > 0
    assert set(teacher.rows) == {2, 3}  # 2.1 of 7
    assert sum(teacher.rows) / steps == pytest.approx(2.1, abs=4 * math.sqrt(0.09 / steps))
    times = torch.cat(teacher.times)
    assert float(times.mean()) == pytest.approx(0.75, abs=0.02)  # s, and half of what is left
    assert emits(net).asked == 7 * steps  # one pass of the student for all of it
    spent = 3 * emits(net).asked + passes * sum(teacher.rows)
    assert objective.cost == emitted_cost(passes, 0.3) == pytest.approx(3 + 0.3 * passes)
    assert spent == pytest.approx(objective.cost * 7 * steps, rel=0.01)


@pytest.mark.parametrize(("share", "rows", "whole"), [(0.3, 128, 38), (0.29, 100, 29), (0.3, 2, 0)])
def test_whole_rows_cost_the_same_in_every_step(
    share: float, rows: int, whole: int, draw: Draw
) -> None:
    assert whole_share(share, rows) == whole / rows
    curve, net = BezierCurve.line(draw(rows, 2), draw(rows, 2)), network(exact, 3)
    teacher, seeds = Rows(), torch.Generator().manual_seed(0)
    objective = EmittedCurves(teacher=teacher, on_policy=whole_share(share, rows))
    for _ in range(200):
        objective.loss(net, Curves(curve), seeds)
    assert teacher.rows == [whole] * (200 if whole else 0)
    assert round(objective.cost * rows) == 3 * rows + whole


def test_a_policy_asks_in_every_part_of_the_curve_and_says_what_it_costs(
    draw: Draw, generator: torch.Generator
) -> None:
    teacher, net = Rows(2), network(exact, 3)
    objective = OnPolicy(teacher, asked=4, whole=1.0)
    assert objective.loss(net, Pairs(draw(50, 2), draw(50, 2)), generator) > 0
    assert teacher.rows == [50] * 4
    assert objective.cost == 3 + 4 * 2
    for k, times in enumerate(teacher.times):
        assert k / 4 <= float(times.min()) < float(times.max()) <= (k + 1) / 4
    with pytest.raises(UserError, match="asked is 0"):
        OnPolicy(teacher, asked=0)


class Fixed(Intervals):
    """Given intervals."""

    def __init__(self, s: Tensor, t: Tensor) -> None:
        self.given = s, t

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.given


@pytest.mark.parametrize("huber", [0.0, 0.03])
def test_a_straight_curve_learns_the_intervals_of_curve_regression(
    huber: float, draw: Draw
) -> None:
    """Where all control points are one velocity, a drawn time and the end are two intervals."""
    points = torch.stack([draw(12, 2) for _ in range(5)])
    curve, u = BezierCurve(points), draw(12, 2)
    net = network(lambda x, s, cond: u[:, None].expand(-1, 4, -1), 4)
    seeds = torch.Generator().manual_seed(3)
    later, coin = torch.rand(12, generator=seeds), torch.rand(12, generator=seeds)
    s = torch.where(coin < 0.4, 0.0, later**2).double()
    assert 0 < int((s == 0).sum()) < 12
    t = s + torch.rand(12, generator=seeds).double() * (1 - s)
    drawn, ends = (
        CurveRegression(Fixed(s, end), Loss(huber), 1.0).loss(
            lambda x, s, t, cond: u,  # pyright: ignore[reportArgumentType]
            Curves(curve),
            seeds,
        )
        for end in (t, torch.ones_like(s))
    )
    objective = EmittedCurves(Loss(huber), whole=0.4, power=1.0)
    found = objective.loss(net, Curves(curve), torch.Generator().manual_seed(3))
    close(found, (drawn + END * ends) / 2, 1e-6)


@pytest.mark.parametrize("on_policy", [0.0, 0.4, 1.0])
def test_conditions_go_to_their_rows(
    on_policy: float, draw: Draw, generator: torch.Generator
) -> None:
    """A row's velocity is its condition; lines with that velocity are stored."""
    x, cond = draw(40, 2), draw(40)
    curve = BezierCurve.line(x, x + cond[:, None])
    teacher = ConditionField()

    def emit(x: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        return cond[:, None, None].expand(-1, 3, 2)

    right, wrong = network(emit, 3), network(lambda x, s, cond: emit(x, s, cond.flip(0)), 3)
    objective = EmittedCurves(Loss(), teacher=teacher, on_policy=on_policy)
    cases: list[tuple[Any, Any]] = [
        (objective, Curves(curve, cond)),
        (OnPolicy(teacher), Pairs(x, x + cond[:, None], cond)),
    ]
    for policy, batch in cases:
        assert policy.loss(right, batch, generator) < 1e-12
        assert policy.loss(wrong, batch, generator) > 0.1


class Stretches(nn.Module):
    """Leaves states alone up to s and then stretches them, not at all at one s: samples of two
    passes are normal there and nowhere else."""

    def __init__(self, best: float) -> None:
        super().__init__()
        self.best, self.rows = best, list[int]()

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        assert cond is not None
        assert torch.equal(cond[:, 0], x[:, 2])  # of its own row, however rows are split
        wide = 5 * (s - self.best).abs() * (s > 0) / (1 - s).clamp_min(0.1)
        return wide[:, None] * x * torch.tensor([1.0, 1.0, 0.0])


class Sources:
    """As much of a store as knots are chosen by."""

    recipe = SimpleNamespace(shape=(3,))

    def __init__(self, count: int) -> None:
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device, count: int) -> tuple[BezierCurve, Tensor]:
        return BezierCurve.line(self.x[:count], self.x[:count]), self.x[:count, 2:]


def normal_data() -> EndlessData:
    return EndlessData("normal", (3,), Scaling(), lambda n, g: torch.randn(n, 3, generator=g))


@pytest.mark.parametrize("power", POWERS)
def test_knots_are_those_whose_samples_of_two_passes_are_the_data(
    power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bezierdistill import memory

    net, store, cpu = Stretches(0.5**power), Sources(3000), torch.device("cpu")
    given: Any = store
    knots, spent = choose_knots(net, given, normal_data(), 2, cpu)
    assert knots == {k: powered_knots(k, power) for k in (1, 2, 3, 4)}
    assert spent == sum(net.rows) == knots_cost(TRIED) == 2 * len(POWERS) * TRIED
    monkeypatch.setattr(memory, "batch_size", lambda *shape: 300)
    parts = Stretches(0.5**power)
    assert choose_knots(parts, given, normal_data(), 6, cpu)[0].keys() == {1, 2, 3, 4, 5, 6}
    assert max(parts.rows) == 300
    assert sum(parts.rows) == spent


@pytest.mark.parametrize(
    ("curves", "valid", "rows"), [(10**6, None, 1024), (50, None, 50), (10**6, 70, 70), (9, 70, 9)]
)
def test_no_more_samples_are_tried_than_there_are(
    curves: int, valid: int | None, rows: int
) -> None:
    assert tried_rows(curves, valid) == rows

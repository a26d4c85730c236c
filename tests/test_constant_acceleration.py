"""Constant acceleration flow: its path, its two minimisers, conditioning on the initial velocity,
and its sampler."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve, expand_time
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import ConstantAcceleration, Curves, InitialVelocity, Loss
from bezierdistill.objectives.constant_acceleration import acceleration, parabola, sample
from conftest import CountedNet, Draw, close
from gaussian_map import GaussianMap

F64 = torch.float64
MEAN, STD = 0.7, 0.5


class Start(nn.Module):
    """Initial velocity ``h d`` of the pair whose parabola runs through ``x`` at ``t``; ``d = MEAN +
    (STD - 1) x0``. Plus ``theta``."""

    def __init__(self, h: float) -> None:
        super().__init__()
        self.h, self.theta = h, nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        time = expand_time(t, x)
        part = self.h * time + (1 - self.h) * time**2  # x_t = x0 + part d
        x0 = (x - part * MEAN) / (1 + part * (STD - 1))
        return self.h * (MEAN + (STD - 1) * x0) + self.theta.to(x)


class Repair(nn.Module):
    """Acceleration ``2 (d - v0)`` from the state and *any* initial velocity, by solving ``x = x0 +
    v0 t + (d - v0) t^2`` for x0."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        (state, v0), time = x.chunk(2, 1), expand_time(t, x)
        x0 = (state - v0 * (time - time**2) - MEAN * time**2) / (1 + (STD - 1) * time**2)
        a = 2 * (MEAN + (STD - 1) * x0 - v0) + self.theta.to(x)
        return torch.cat([a, torch.full_like(a, 99.0)], 1)  # the second half is not read


def pairs(x0: Tensor) -> Curves:
    return Curves(BezierCurve.line(x0, GaussianMap(MEAN, STD).exact(x0, 0.0, 1.0)))


def test_path_is_the_motion_under_constant_acceleration(shape: tuple[int, ...], draw: Draw) -> None:
    x0, x1, v0, t = draw(*shape), draw(*shape), draw(*shape), torch.rand(shape[0], dtype=F64)
    path, a, time = (
        parabola(BezierCurve.line(x0, x1), v0),
        2 * (x1 - x0) - 2 * v0,
        expand_time(t, x0),
    )
    close(path.point(t), x0 + v0 * time + a * time**2 / 2)
    close(path.velocity(0.0), v0)
    close(path.acceleration(t), a)


@pytest.mark.parametrize("h", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("huber", [0.0, 0.00054])
def test_exact_networks_are_the_minimisers(
    h: float, huber: float, shape: tuple[int, ...], draw: Draw
) -> None:
    batch, start, repair = pairs(draw(*shape)), Start(h), Repair()

    def losses() -> list[Tensor]:
        seeds = [torch.Generator().manual_seed(2) for _ in range(2)]
        return [
            InitialVelocity(h, huber).loss(start, batch, seeds[0]).detach(),
            ConstantAcceleration(start, huber=huber).loss(repair, batch, seeds[1]).detach(),
        ]

    for loss in losses():
        assert abs(float(loss)) < 1e-12
    expected = float(
        Loss(huber * math.sqrt(math.prod(shape[1:])))(
            torch.full((1, *shape[1:]), 0.1, dtype=F64), torch.zeros(1, dtype=F64)
        )
    )
    start.theta.data.fill_(0.1)  # a wrong initial velocity costs in stage 1, and stage 2 repairs it
    velocity, accelerating = losses()
    assert float(velocity) == pytest.approx(expected, rel=1e-9)
    assert abs(float(accelerating)) < 1e-12
    repair.theta.data.fill_(0.1)
    assert float(losses()[1]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_is_exact_for_exact_networks_and_costs_a_pass_more_than_steps(
    steps: int, shape: tuple[int, ...], draw: Draw
) -> None:
    x0 = draw(*shape)
    exact = Start(1.5)
    start, repair = CountedNet(exact), CountedNet(Repair())
    close(sample(start, repair, x0, steps), pairs(x0)[0].data)
    assert (start.passes, repair.passes) == (1, steps)
    exact.theta.data.fill_(0.3)  # the acceleration makes up for a wrong start
    close(sample(start, repair, x0, steps), pairs(x0)[0].data)
    if steps == 1:
        with torch.no_grad():
            zero = torch.zeros(shape[0], dtype=F64)
            v0 = start(x0, zero, zero)
            close(sample(start, repair, x0), x0 + v0 + acceleration(repair, x0, v0, 0.0) / 2)


def test_steps_integrate_any_acceleration_at_the_first_order(draw: Draw) -> None:
    """The field is ``v0 + a t``: at rest at the start and for ``a = cos t`` the end is ``x0 + int t
    cos t dt``."""

    class Rest(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x)

    class Cosine(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return expand_time(t, x).cos().expand_as(x)

    x0, exact = draw(3, 2), math.sin(1.0) + math.cos(1.0) - 1.0  # int_0^1 t cos t dt
    errors = [
        float((sample(Rest(), Cosine(), x0, n) - x0 - exact).abs().max()) for n in (20, 40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


def test_crossing_paths_are_told_apart_by_their_initial_velocity(
    generator: torch.Generator,
) -> None:
    """Two pairs that cross: without the initial velocity the middle is ambiguous, with it the loss
    falls to almost nothing."""
    x0 = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).repeat(32, 1)
    batch = Curves(BezierCurve.line(x0, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).repeat(32, 1)))

    class Exact(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return 1.5 * torch.stack([-2 * x[:, 0].sign(), torch.ones(len(x))], 1)

    class Blind(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return self.net(torch.cat([x[:, :2], torch.zeros_like(x[:, 2:])], 1), s, t, cond)

    objective = ConstantAcceleration(Exact(), huber=0.0)
    final = {}
    for name in ("blind", "conditioned"):
        torch.manual_seed(0)
        inner = MLP((4,), width=32, depth=2)
        net = Blind(inner) if name == "blind" else inner
        adam = torch.optim.Adam(inner.parameters(), 1e-2)
        for _ in range(250):
            loss = objective.loss(net, batch, generator)
            adam.zero_grad()
            loss.backward()
            adam.step()
        final[name] = (
            sum(float(objective.loss(net, batch, generator).detach()) for _ in range(20)) / 20
        )
    assert final["conditioned"] < 0.02
    assert final["blind"] > 4 * final["conditioned"]


def test_stages_cost_what_they_say_and_leave_the_first_network_alone(
    draw: Draw, generator: torch.Generator
) -> None:
    start, repair = (
        CountedNet(MLP((3,), width=8, depth=1).double()),
        CountedNet(MLP((6,), width=8, depth=1).double()),
    )
    batch = pairs(draw(1, 3))
    ConstantAcceleration(start).loss(repair, batch, generator).backward()
    assert start.passes + repair.passes == ConstantAcceleration.cost == 4
    assert all(parameter.grad is None for parameter in start.parameters())
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in repair.parameters()
    )
    start.passes = 0
    InitialVelocity().loss(start, batch, generator).backward()
    assert start.passes == InitialVelocity.cost == 3


def test_times_are_uniform_for_the_velocity_and_u_shaped_for_the_acceleration(
    draw: Draw, generator: torch.Generator
) -> None:
    class Probe(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            self.x, self.t, self.cond = x, t, cond
            return torch.full_like(x, 3.0)

    n, probe = 40_000, Probe()
    cond = draw(n)
    batch = Curves(BezierCurve.line(draw(n, 1), draw(n, 1)), cond)
    InitialVelocity().loss(probe, batch, generator)
    assert float((probe.t < 0.1).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert probe.cond is cond
    start = Probe()
    ConstantAcceleration(start).loss(probe, batch, generator)
    assert not start.t.any()
    assert start.cond is cond
    assert torch.equal(start.x, batch[0].source)
    assert (probe.x[:, 1] == 3.0).all()  # the predicted initial velocity, not the true one
    share = 0.5 * (1 - math.sinh(1.6) / math.sinh(2.0))  # of cosh 4 (t - 1/2) below 0.1
    assert float((probe.t < 0.1).double().mean()) == pytest.approx(share, abs=0.01)
    assert float((probe.t > 0.9).double().mean()) == pytest.approx(share, abs=0.01)
    assert probe.cond is cond


def test_bad_settings_are_refused(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"h is 0.0"):
        InitialVelocity(0.0)
    with pytest.raises(ValueError, match=r"huber is -3"):
        InitialVelocity(huber=-3)
    with pytest.raises(ValueError, match=r"steepness is -1"):
        ConstantAcceleration(Start(1.5), steepness=-1)
    with pytest.raises(ValueError, match=r"huber is -2"):
        ConstantAcceleration(Start(1.5), huber=-2)
    with pytest.raises(ValueError, match=r"steps is 0"):
        sample(Start(1.5), Repair(), draw(2, 2), 0)

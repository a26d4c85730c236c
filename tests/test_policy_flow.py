"""Policy flows: the closed form of a policy's path, its order on an exact flow, where gradient
flows, and the count of passes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import Time, expand_time
from bezierdistill.fields import NetworkField
from bezierdistill.models.weights import start_from
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import KnotIntervals, Pairs, PolicyFlow, policy_sample
from bezierdistill.objectives.policy_flow import _hats, policy_data, policy_state
from bezierdistill.solvers import solve, time_grid
from conftest import ConditionField, CountedField, CountedNet, Draw, close
from gaussian_map import GaussianMap

F64 = torch.float64


class Given(nn.Module):
    """A network whose policy heads for given data ``(B, K, ...)``, shifted by ``theta``."""

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.data, self.theta = data, nn.Parameter(torch.zeros(data.shape[1], dtype=F64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        data = self.data + self.theta.reshape(-1, *[1] * (x.ndim - 1))
        return (data - x[:, None]) / expand_time(1 - s, self.data)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("s", "t"), [(0.0, 1.0), (0.2, 0.7), (0.5, 1.0)])
def test_the_path_is_the_policys_ode(count: int, s: float, t: float, draw: Draw) -> None:
    x, data = draw(4, 2), draw(4, count, 2)
    start, end = torch.full((4,), s, dtype=F64), torch.full((4,), t, dtype=F64)

    def policy(state: Tensor, time: Time) -> Tensor:
        r = torch.full((4,), float(time), dtype=F64)
        there = torch.einsum("bk,bkd->bd", _hats(start, end, r, count), data)
        return (there - state) / (1 - float(time))

    last = min(t, 0.9)
    found = solve(CountedField(policy), x, time_grid(800, s, last), "rk4").state
    close(policy_state(x, data, start, end, torch.full((4,), last, dtype=F64)), found, 1e-6)
    close(policy_state(x, data, start, end, start), x)
    if t == 1:  # where the policy ends is the last of its data
        close(policy_state(x, data, start, end, end), data[:, -1])


def test_equal_data_are_a_straight_line(draw: Draw) -> None:
    x, goal = draw(5, 2, 3, 3), draw(5, 1, 2, 3, 3)
    s, t = torch.full((5,), 0.25, dtype=F64), torch.full((5,), 0.9, dtype=F64)
    r = torch.linspace(0.25, 0.9, 5, dtype=F64)
    part = expand_time((r - s) / (1 - s), x)
    close(policy_state(x, goal.expand(-1, 4, -1, -1, -1), s, t, r), torch.lerp(x, goal[:, 0], part))


def test_data_of_an_exact_flow_are_followed_with_second_order(draw: Draw) -> None:
    flow, x = GaussianMap(), draw(500, 1)
    errors = []
    for count in (17, 33, 65):
        times = [0.8 * k / (count - 1) for k in range(count)]
        states = [flow.exact(x, 0.0, time) for time in times]
        ends = [a + (1 - b) * NetworkField(flow)(a, b) for a, b in zip(states, times, strict=True)]
        net = Given(torch.stack(ends, 1).detach())
        found = policy_sample(net, x, (0.0, 0.8))
        errors.append(float((found - states[-1]).square().mean().sqrt()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2.0] * 2, abs=0.1)


def test_a_single_datum_is_reached_at_once_and_costs_nothing(draw: Draw) -> None:
    goal, x0 = draw(1, 2), draw(6, 2)

    teacher = CountedField(lambda x, t: (goal - x) / (1 - expand_time(t, x)))

    net = Given(goal[:, None].expand(6, 4, 2))
    intervals = KnotIntervals([time_grid(k) for k in (1, 2, 3)])
    objective, batch = PolicyFlow(teacher, intervals, points=3), Pairs(x0, goal.expand(6, 2))
    assert float(objective.loss(net, batch, torch.Generator()).detach()) < 1e-24
    for passes in (1, 2, 4):
        close(policy_sample(net, x0, time_grid(passes)), goal.expand(6, 2))
    net.theta.data.fill_(0.1)
    assert float(objective.loss(net, batch, torch.Generator()).detach()) > 1e-3


def test_gradient_flows_through_the_policy_alone(draw: Draw) -> None:
    """Not through where it is, nor through the teacher there."""
    field, net, x = NetworkField(GaussianMap()), Given(draw(5, 3, 2)), draw(5, 2)
    loss = PolicyFlow(field, points=1).loss(net, Pairs(x, draw(5, 2)), torch.Generator())
    again = torch.Generator()
    KnotIntervals(((0.0, 1.0),))(5, again)
    r = 0.98 * torch.rand(5, generator=again).double()
    s, t = torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64)
    here, hats = policy_state(x, net.data, s, t, r), _hats(s, t, r, 3)
    error = (torch.einsum("bk,bkd->bd", hats, net.data) - here) / (1 - r[:, None]) - field(here, r)
    close(loss, error.square().mean())
    expected = (2 * error.mean(1)[:, None] * hats / (1 - r[:, None])).mean(0)
    close(torch.autograd.grad(loss, net.theta)[0], expected)


@pytest.mark.parametrize(
    ("kind", "shape"), [("mlp", (3,)), ("unet", (1, 8, 8)), ("dit", (1, 8, 8))]
)
def test_a_policy_that_starts_as_its_teacher_is_one_straight_step(
    kind: str, shape: tuple[int, ...]
) -> None:
    config = NetworkConfig(kind, width=32, depth=2)  # pyright: ignore[reportArgumentType]
    teacher, net = config.build(shape, 0), config.build(shape, 1, outputs=4)
    start_from(net, teacher)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        end = x + NetworkField(teacher)(x, 0.0)
        found = policy_sample(net, x, (0.0, 1.0))
        data = policy_data(net, x, 0.0, 1.0)
    torch.testing.assert_close(found, end, atol=1e-5, rtol=1e-4)
    assert data.shape == (2, 4, *shape)


def test_conditions_reach_network_and_teacher(draw: Draw) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            assert cond is not None
            return cond[:, None, None].expand(-1, 3, 2)

    cond, x0 = draw(6), draw(6, 2)
    batch = Pairs(x0, x0 + cond[:, None], cond)
    objective = PolicyFlow(ConditionField(), KnotIntervals([time_grid(2)]))
    assert float(objective.loss(Net(), batch, torch.Generator())) < 1e-24


def test_the_cost_is_what_a_step_spends(draw: Draw) -> None:
    net, teacher = CountedNet(Given(draw(5, 3, 2))), CountedField(lambda x, t: x, passes=2)
    objective = PolicyFlow(teacher, points=4)
    objective.loss(net, Pairs(draw(5, 2), draw(5, 2)), torch.Generator()).backward()
    assert net.passes + 2 * teacher.calls == objective.cost == 3 + 4 * 2


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="points is 0"):
        PolicyFlow(ConditionField(), points=0)
    with pytest.raises(ValueError, match=r"last is 1.0, expected a time in \(0, 1\)"):
        PolicyFlow(ConditionField(), last=1.0)

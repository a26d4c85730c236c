"""Shortcut models: the exact map on the grid, the order of its error, which steps are drawn, the
target, and the count of passes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.fields import NetworkField
from bezierdistill.objectives import Pairs, Shortcut
from bezierdistill.objectives.base import count_rows
from conftest import Draw, close
from gaussian_map import GaussianMap
from test_flow_map_matching import (
    ConditionNet,
    conditioned,
    mean_pairs,
    measured_passes,
    random_net,
)


class Recorder(nn.Module):
    """A network that keeps the times it is asked for and whether gradient is on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls.append((s, t, torch.is_grad_enabled()))
        return self.net(x, s, t, cond)


class SmallestStep(nn.Module):
    """The exact map, which for a step of zero answers with the smallest step."""

    def __init__(self, net: nn.Module, size: float) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, s, torch.where(s == t, s + self.size, t), cond)


@pytest.mark.parametrize("halvings", [1, 2, 7])
def test_steps_of_the_exact_map_agree(halvings: int, shape: tuple[int, ...], draw: Draw) -> None:
    net, batch = GaussianMap(), Pairs(draw(*shape), draw(*shape))
    objective = Shortcut(1.0, halvings, SmallestStep(GaussianMap(), 2.0**-halvings))
    for seed in range(4):
        assert float(objective.loss(net, batch, torch.Generator().manual_seed(seed))) < 1e-24
    net.theta.data.fill_(0.1)
    assert float(objective.loss(net, batch, torch.Generator())) == pytest.approx(0.01)


def test_the_smallest_step_is_read_on_the_diagonal_with_first_order_error(draw: Draw) -> None:
    net, batch = GaussianMap(), Pairs(draw(20_000, 1), 0.7 + 0.5 * draw(20_000, 1))
    errors = [
        math.sqrt(h * float(Shortcut(1.0, h).loss(net, batch, torch.Generator().manual_seed(h))))
        for h in (5, 6, 7, 8)
    ]
    orders = [
        math.log2(a / b) for a, b in pairwise(errors)
    ]  # a share 1/h of the rows has the smallest step
    assert orders == pytest.approx([1.0] * 3, abs=0.08)


def test_one_halving_is_the_mean_of_two_euler_steps(draw: Draw) -> None:
    net = GaussianMap()
    net.theta.data.fill_(0.2)
    v, x0 = NetworkField(net), draw(30, 2)
    first = v(x0, 0.0)
    error = (
        net(x0, torch.zeros(30).double(), torch.ones(30).double())
        - (first + v(x0 + first / 2, 0.5)) / 2
    )
    loss = Shortcut(1.0, 1).loss(net, Pairs(x0, draw(30, 2)), torch.Generator())
    close(loss, error.square().mean())
    close(
        torch.autograd.grad(loss, net.theta)[0], (2 * error).mean()
    )  # d error / d theta is 1: none through the target


def test_steps_and_starts_are_on_their_grids(draw: Draw) -> None:
    net, target, n = Recorder(GaussianMap()), Recorder(GaussianMap()), 28_000
    Shortcut(0.5, target=target).loss(
        net, Pairs(draw(n, 1), draw(n, 1)), torch.Generator().manual_seed(0)
    )
    (s, t, graded), (flow_s, flow_t, _) = net.calls
    (first_s, first_t, graded1), (second_s, second_t, graded2) = target.calls
    assert graded
    assert not graded1
    assert not graded2
    size = t - s
    levels = [2.0**-k for k in range(7)]
    assert sorted(set(size.tolist()), reverse=True) == levels
    for level in levels:
        here = size == level
        assert float(here.double().mean()) == pytest.approx(
            1 / 7, abs=4 * math.sqrt(6 / 49 / (n / 2))
        )
        assert set((s[here] / level).tolist()) == set(range(round(1 / level)))
    half = size / 2
    read = torch.where(size == levels[-1], 0.0, half)
    for asked, expected in (
        (first_s, s),
        (first_t, s + read),
        (second_s, s + half),
        (second_t, s + half + read),
    ):
        assert torch.equal(asked, expected)
    assert torch.equal(flow_s, flow_t)
    assert set((flow_s * 128).tolist()) == set(range(128))


def test_the_other_rows_learn_the_field(draw: Draw) -> None:
    net, objective = GaussianMap(), Shortcut(0.5, 3, SmallestStep(GaussianMap(), 1 / 8))
    recorder = Recorder(net)
    batch = Pairs(draw(40, 2), draw(40, 2))
    objective.loss(recorder, batch, torch.Generator().manual_seed(2))
    x0, x1 = mean_pairs(draw(20, 2), recorder.calls[-1][0], net)
    batch = Pairs(torch.cat([batch[0][:20], x0]), torch.cat([batch[1][:20], x1]))
    assert float(objective.loss(net, batch, torch.Generator().manual_seed(2))) < 1e-24
    assert (
        float(
            objective.loss(net, Pairs(batch[0], batch[1] + 0.1), torch.Generator().manual_seed(2))
        )
        > 1e-3
    )


def test_a_target_network_bootstraps_and_gets_no_gradient(draw: Draw) -> None:
    net, target = random_net("mlp")[0], random_net("mlp")[0]
    batch = Pairs(draw(16, 3), draw(16, 3))

    def loss(target: nn.Module | None) -> Tensor:
        return Shortcut(1.0, target=target).loss(net, batch, torch.Generator().manual_seed(0))

    assert torch.equal(loss(None), loss(target))
    for parameter in target.parameters():
        parameter.data.mul_(1.1)
    other = loss(target)
    assert abs(float(other - loss(None))) > 1e-4
    other.backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    assert any(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_costs_are_measured_multiplications(kind: str) -> None:
    net, x = random_net(kind)
    assert Shortcut().cost == 3.5
    for share in (0.0, 0.25, 0.5, 1.0):
        objective = Shortcut(share)
        assert measured_passes(objective.loss, net, x) == pytest.approx(objective.cost, rel=0.05)


@pytest.mark.parametrize("rows", [(1, 3), (7, 3), (5, 1, 4, 4)])
def test_every_row_keeps_its_condition(rows: tuple[int, ...]) -> None:
    batch = conditioned(*rows)
    counts = set()
    for seed in range(8):
        counts.add(count_rows(rows[0], 0.4, torch.Generator().manual_seed(seed)))
        assert (
            float(Shortcut(0.4).loss(ConditionNet(), batch, torch.Generator().manual_seed(seed)))
            < 1e-10
        )
    assert counts >= ({0, 1} if rows[0] == 1 else {2})


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share is -0.5, expected 0"):
        Shortcut(-0.5)
    with pytest.raises(ValueError, match="halvings is 0, expected 1 or more"):
        Shortcut(halvings=0)

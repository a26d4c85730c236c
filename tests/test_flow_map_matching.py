"""Flow map matching: exact maps, forward-mode derivatives, where gradient flows, a trained map, and
the count of passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bezierdistill.curves import expand_time
from bezierdistill.fields import NetworkField
from bezierdistill.flow_map import flow_map
from bezierdistill.networks.dit import DiT
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import LagrangianMap, LagrangianSelfDistillation, MapIntervals, Pairs
from bezierdistill.objectives.base import count_rows
from bezierdistill.objectives.jvp import forward_derivative
from bezierdistill.settings import check_shares
from conftest import Draw, close
from gaussian_map import GaussianMap

F64 = torch.float64
Loss = Callable[[nn.Module, Pairs, torch.Generator], Tensor]


class ConditionNet(nn.Module):
    """Average velocity: the condition, a number per row."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        assert cond is not None
        return expand_time(cond, x).expand_as(x) + 0 * expand_time(s * t, x)


def conditioned(*shape: int) -> Pairs:
    """A batch whose every row moves with the velocity that is its condition."""
    x0, cond = torch.randn(*shape), torch.randn(shape[0])
    return Pairs(x0, x0 + expand_time(cond, x0), cond)


def mean_pairs(x: Tensor, time: Tensor, net: GaussianMap) -> tuple[Tensor, Tensor]:
    """Ends of a line through ``x`` at ``time`` with the exact field's velocity: the pairs' mean
    given x, without their noise."""
    v = NetworkField(net)(x, time).detach()
    time = expand_time(time, x)
    return x - time * v, x + (1 - time) * v


def random_net(kind: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights in every layer, and eight states."""
    torch.manual_seed(0)
    net, x = (
        (MLP((3,), 256, 4), torch.randn(8, 3))
        if kind == "mlp"
        else (DiT((1, 8, 8), 64, 3), torch.randn(8, 1, 8, 8))
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.08)
    return net.double(), x.double()


class Multiplications(TorchDispatchMode):
    """Counts those of matrix products, except by the zero matrices that torch takes for the
    derivatives of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"mm", "bmm", "addmm"}:
            left, right = args[-2:]
            self.count += out.numel() * left.shape[-1] * bool(left.any() and right.any())
        else:
            assert not any(part in name for part in ("mm", "matmul", "linear", "attention")), (
                f"{name} is not counted"
            )
        return out


def measured_passes(loss: Loss, net: nn.Module, x: Tensor) -> float:
    """Multiplications of a loss and its backward pass, in forward passes of the network."""
    time = torch.rand(len(x), dtype=x.dtype)
    with sdpa_kernel(SDPBackend.MATH):
        with Multiplications() as one, torch.no_grad():
            net(x, time, time, None)
        with Multiplications() as whole:
            loss(net, Pairs(x, x.flip(0)), torch.Generator().manual_seed(0)).backward()
    return whole.count / one.count


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_forward_derivative_is_that_of_finite_differences(kind: str) -> None:
    net, x = random_net(kind)
    s, t = torch.rand(2, 8, dtype=F64)
    v, h = torch.randn_like(x), 1e-5

    def at(step: float) -> Tensor:
        return net(x + step * v, s + step, t, None)

    u, slope = forward_derivative(lambda x, s: net(x, s, t, None), (x, s), (v, torch.ones_like(s)))
    close(u, at(0.0))
    close(slope, (at(h) - at(-h)) / (2 * h), 1e-6)
    weight = next(net.parameters())
    (gradient,) = torch.autograd.grad(slope.square().sum(), weight)
    (expected,) = torch.autograd.grad(((at(h) - at(-h)) / (2 * h)).square().sum(), weight)
    close(gradient, expected, 1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_keeps_its_value_and_its_weights(affine: bool, draw: Draw) -> None:
    norm, x, v = (
        nn.LayerNorm([3, 4], eps=0.1, elementwise_affine=affine).double(),
        draw(5, 3, 4),
        draw(5, 3, 4),
    )
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    value, slope = forward_derivative(norm, (x,), (v,))
    close(value, norm(x))
    close(slope, (norm(x + 1e-5 * v) - norm(x - 1e-5 * v)) / 2e-5, 1e-7)


@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_keeps_its_value_and_its_weights(affine: bool, draw: Draw) -> None:
    norm, x, v = (
        nn.GroupNorm(2, 4, eps=0.1, affine=affine).double(),
        draw(5, 4, 3, 2),
        draw(5, 3, 2, 4).permute(0, 3, 1, 2),
    )
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    value, slope = forward_derivative(norm, (x,), (v,))
    close(value, norm(x))
    close(slope, (norm(x + 1e-5 * v) - norm(x - 1e-5 * v)) / 2e-5, 1e-7)


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_costs_are_measured_multiplications(kind: str) -> None:
    net, x = random_net(kind)
    teacher, _ = random_net(kind)
    objective = LagrangianMap(NetworkField(teacher.requires_grad_(False)))
    assert objective.cost == 7
    assert measured_passes(objective.loss, net, x) == pytest.approx(7, rel=0.06)
    for share, passes in ((0.0, 3), (0.25, 4), (0.5, 5), (1.0, 7)):
        objective = LagrangianSelfDistillation(share)
        assert objective.cost == passes
        assert measured_passes(objective.loss, net, x) == pytest.approx(passes, rel=0.06)


def test_loss_is_zero_at_the_exact_map_and_nowhere_near(shape: tuple[int, ...], draw: Draw) -> None:
    exact, net = GaussianMap(), GaussianMap()
    batch = Pairs(draw(*shape), draw(*shape))
    assert float(LagrangianMap(NetworkField(exact)).loss(net, batch, torch.Generator())) < 1e-24
    net.theta.data.fill_(0.1)
    assert float(LagrangianMap(NetworkField(exact)).loss(net, batch, torch.Generator())) > 1e-4


def test_gradient_flows_through_the_path_but_not_through_the_teacher(draw: Draw) -> None:
    teacher = GaussianMap()
    net = GaussianMap(perturb=lambda x, s, t: expand_time(t - s, x) * x)  # its derivative in t is x
    net.theta.data.fill_(0.3)
    x0, x1 = draw(50, 2), draw(50, 2)
    loss = LagrangianMap(NetworkField(teacher)).loss(
        net, Pairs(x0, x1), torch.Generator().manual_seed(5)
    )
    (gradient,) = torch.autograd.grad(loss, net.theta)
    s, t = torch.rand(2, 50, generator=torch.Generator().manual_seed(5)).double().aminmax(dim=0)
    x, gap = torch.lerp(x0, x1, s[:, None]), (t - s)[:, None]
    moved = flow_map(net, x, s, t)
    error = (
        NetworkField(teacher)(flow_map(teacher, x, s, t), t)
        + 0.3 * 2 * gap * x
        - NetworkField(teacher)(moved, t)
    )
    close(loss, error.square().mean())
    close(gradient, (2 * error * 2 * gap * x).mean())


def test_self_distillation_is_zero_at_the_exact_map_and_its_field(draw: Draw) -> None:
    net, objective = GaussianMap(), LagrangianSelfDistillation(0.5)
    generator = torch.Generator().manual_seed(5)
    assert count_rows(40, 0.5, generator) == 20
    MapIntervals(0.0)(20, generator)
    x0, x1 = mean_pairs(draw(20, 2), torch.rand(20, generator=generator).double(), net)
    batch = Pairs(torch.cat([draw(20, 2), x0]), torch.cat([draw(20, 2), x1]))
    assert float(objective.loss(net, batch, torch.Generator().manual_seed(5))) < 1e-24
    net.theta.data.fill_(0.1)
    assert float(objective.loss(net, batch, torch.Generator().manual_seed(5))) > 1e-4


def test_self_distillation_takes_its_own_frozen_field_as_teacher(draw: Draw) -> None:
    net, frozen, batch = random_net("mlp")[0], random_net("mlp")[0], Pairs(draw(8, 3), draw(8, 3))
    weights = list(net.parameters())
    mine, teachers = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    count_rows(8, 1.0, teachers)
    own = torch.autograd.grad(LagrangianSelfDistillation(1.0).loss(net, batch, mine), weights)
    taught = torch.autograd.grad(
        LagrangianMap(NetworkField(frozen)).loss(net, batch, teachers), weights
    )
    assert all(torch.equal(a, b) for a, b in zip(own, taught, strict=True))
    assert max(float(a.abs().max()) for a in own) > 1e-3


@pytest.mark.parametrize("rows", [(1, 3), (7, 3), (5, 1, 4, 4)])
def test_every_row_keeps_its_condition(rows: tuple[int, ...]) -> None:
    batch = conditioned(*rows)
    for objective in (LagrangianMap(NetworkField(ConditionNet())), LagrangianSelfDistillation(0.4)):
        for seed in range(4):
            assert (
                float(objective.loss(ConditionNet(), batch, torch.Generator().manual_seed(seed)))
                < 1e-10
            )


def test_rows_are_shared_out_right_on_average(generator: torch.Generator) -> None:
    assert {count_rows(256, 0.25, generator) for _ in range(100)} == {64}
    counts = torch.tensor([count_rows(3, 0.25, generator) for _ in range(4000)])
    assert set(counts.tolist()) == {0, 1}
    assert float(counts.double().mean()) == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)


def test_a_teacher_is_distilled_into_its_map(draw: Draw) -> None:
    teacher, net = GaussianMap(), MLP((2,), 32, 2)
    objective, generator = (
        LagrangianMap(NetworkField(teacher.requires_grad_(False))),
        torch.Generator().manual_seed(0),
    )
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    x = draw(500, 2).float()
    exact = teacher.exact(x, 0.0, 1.0)
    before = float((flow_map(net, x, 0.0, 1.0) - exact).square().mean())
    for _ in range(300):
        x0, x1 = (
            torch.randn(128, 2, generator=generator),
            0.7 + 0.5 * torch.randn(128, 2, generator=generator),
        )
        optimizer.zero_grad()
        objective.loss(net, Pairs(x0, x1), generator).backward()
        optimizer.step()
    assert float((flow_map(net, x, 0.0, 1.0) - exact).square().mean()) < 0.01 * before


def test_bad_shares_are_refused() -> None:
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"share is {share}, expected 0"):
            LagrangianSelfDistillation(share)
    check_shares(share=1.0)

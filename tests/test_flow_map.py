"""The flow map and its samplers: exact for a linear equation and for a Gaussian."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import NetworkField
from bezierdistill.flow_map import flow_map, renoised_sample, sample
from bezierdistill.networks.mlp import MLP
from bezierdistill.solvers import solve, time_grid
from conftest import RATE, CountedNet, Draw, ExactMap, close
from gaussian_map import GaussianMap


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("by_row", [False, True])
def test_flow_map_of_an_exact_net_is_a_semigroup(
    by_row: bool, shape: tuple[int, ...], draw: Draw
) -> None:
    x = draw(*shape)
    r, s, t = (
        torch.linspace(a, a + 0.2, shape[0], dtype=torch.float64) if by_row else a
        for a in (0.1, 0.35, 0.8)
    )
    step = flow_map(ExactMap(), flow_map(ExactMap(), x, r, s), s, t)
    close(step, flow_map(ExactMap(), x, r, t))
    close(step, x * math.exp(RATE * (0.8 - 0.1)))
    close(flow_map(ExactMap(), step, t, r), x)
    assert torch.equal(flow_map(ExactMap(), x, s, s), x)


@pytest.mark.parametrize(
    "knots", [(0.0, 1.0), (0.0, 0.6, 1.0), (0.0, 0.01, 0.5, 0.51, 1.0)], ids=str
)
def test_sampling_an_exact_map_is_exact_for_any_knots(
    knots: tuple[float, ...], shape: tuple[int, ...], draw: Draw
) -> None:
    net, x0 = CountedNet(ExactMap()), draw(*shape)
    close(sample(net, x0, knots), x0 * math.exp(RATE))
    assert net.passes == len(knots) - 1


@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.3, 0.7, 1.0), time_grid(9)], ids=len)
def test_a_net_without_interval_input_samples_as_euler_solves(
    knots: tuple[float, ...], shape: tuple[int, ...], draw: Draw
) -> None:
    net, x0 = MLP(shape[1:], width=16, depth=2).double(), draw(*shape)
    close(sample(net, x0, knots), solve(NetworkField(net), x0, knots, "euler").state)


def test_the_condition_reaches_the_network(draw: Draw) -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return cond[:, None].expand_as(x)

    x, cond = draw(4, 2), torch.arange(4.0, dtype=torch.float64)
    torch.testing.assert_close(sample(Conditional(), x, (0.0, 0.4, 1.0), cond), x + cond[:, None])


@pytest.mark.parametrize("times", [(), (0.4,), (0.2, 0.7)])
def test_multistep_sampling_keeps_the_distribution_and_forgets_what_it_noises(
    times: tuple[float, ...], draw: Draw
) -> None:
    mean, std, count = 0.7, 0.5, 20_000
    net = CountedNet(GaussianMap(mean, std))
    x0 = draw(count, 1)
    x = renoised_sample(net, x0, times, seeded()).detach()
    assert net.passes == 3 * (len(times) + 1)
    assert abs(float(x.mean()) - mean) < 4 * std / math.sqrt(count)
    assert abs(float(x.std()) - std) < 4 * std / math.sqrt(2 * count)
    # Renoising at s keeps the share s std / sqrt(q_s) of the correlation with the first end point,
    # which is perfect with x0.
    kept = math.prod(s * std / math.sqrt((1 - s) ** 2 + (s * std) ** 2) for s in times)
    correlation = float(torch.corrcoef(torch.stack([x0[:, 0], x[:, 0]]))[0, 1])
    assert abs(correlation - kept) < 4 / math.sqrt(count) * (1 - kept**2) + 1e-9


def test_multistep_sampling_passes_the_condition(shape: tuple[int, ...], draw: Draw) -> None:
    x0, cond, z = draw(*shape), draw(shape[0]), torch.randn(shape, generator=seeded()).double()
    first = x0 + expand_time(cond, x0)

    class Straight(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return expand_time(cond, x).expand_as(x)

    close(
        renoised_sample(Straight(), x0, (0.25,), seeded(), cond),
        0.75 * z + 0.25 * first + 0.75 * expand_time(cond, x0),
    )


def test_multistep_sampling_renoises_between_its_jumps(shape: tuple[int, ...], draw: Draw) -> None:
    x0, net, s = draw(*shape), GaussianMap(), 0.6
    first = flow_map(net, x0, 0.0, 1.0).detach()
    noise = torch.randn(shape, generator=seeded()).double()
    expected = flow_map(net, (1 - s) * noise + s * first, s, 1.0).detach()
    close(renoised_sample(net, x0, (s,), seeded()).detach(), expected)
    close(renoised_sample(net, x0, (), seeded()).detach(), net.exact(x0, 0.0, 1.0))


@pytest.mark.parametrize("times", [(0.7, 0.2), (0.0,), (1.0,), (0.5, 0.5)], ids=str)
def test_times_of_multistep_sampling_rise_within_0_and_1(
    times: tuple[float, ...], draw: Draw
) -> None:
    with pytest.raises(ValueError, match=r"expected them to rise strictly within \(0, 1\)"):
        renoised_sample(GaussianMap(), draw(2, 1), times, seeded())

"""Mean flow: the identity at the exact map, where gradient flows, the adaptive weight, the
distribution of the times, and the count of passes."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.objectives import LogitNormalIntervals, MeanFlow, Pairs
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


class Shift(nn.Module):
    """The same learned velocity everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((), 0.2, dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.theta.expand_as(x)


def drawn_times(objective: MeanFlow, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """The times that a loss with share 1 draws from a seed."""
    generator = torch.Generator().manual_seed(seed)
    count_rows(rows, 1.0, generator)
    s, t = objective.intervals(rows, generator)
    return s.double(), t.double()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_identity_holds_at_the_exact_map(
    power: float, shape: tuple[int, ...], draw: Draw
) -> None:
    objective, net = MeanFlow(share=1.0, power=power), GaussianMap()
    s, t = drawn_times(objective, shape[0], 3)
    assert (s < t).all()
    batch = Pairs(*mean_pairs(draw(*shape), s, net))
    loss = objective.loss(net, batch, torch.Generator().manual_seed(3))
    assert float(loss) < 1e-22
    net.theta.data.fill_(0.1)
    assert float(objective.loss(net, batch, torch.Generator().manual_seed(3))) > 1e-3


def test_the_exact_map_is_stationary_on_independent_pairs() -> None:
    net, generator = (
        GaussianMap(perturb=lambda x, s, t: x * expand_time(1 + t - s, x)),
        torch.Generator().manual_seed(0),
    )
    gradients = []
    for _ in range(80):
        x0, noise = torch.randn(2, 500, 2, generator=generator, dtype=torch.float64)
        loss = MeanFlow(share=0.75, power=0.0).loss(
            net, Pairs(x0, net.mean + net.std * noise), generator
        )
        gradients.append(torch.autograd.grad(loss, net.theta)[0])
    gradient = torch.stack(gradients)
    error = float(gradient.std()) / math.sqrt(80)
    assert abs(float(gradient.mean())) < 4 * error < 0.1


def test_no_gradient_enters_the_target(draw: Draw) -> None:
    objective, exact = MeanFlow(share=1.0, power=0.0), GaussianMap()
    net = GaussianMap(
        perturb=lambda x, s, t: expand_time(s, x) * x
    )  # along the path it changes by x + s v
    net.theta.data.fill_(0.3)
    s, t = drawn_times(objective, 50, 3)
    x, gap = draw(50, 2), (t - s)[:, None]
    x0, x1 = mean_pairs(x, s, exact)
    loss = objective.loss(net, Pairs(x0, x1), torch.Generator().manual_seed(3))
    error = 0.3 * (s[:, None] * x - gap * (x + s[:, None] * (x1 - x0)))
    close(loss, error.square().sum(1).mean())
    close(torch.autograd.grad(loss, net.theta)[0], (2 * error * s[:, None] * x).sum(1).mean())


@pytest.mark.parametrize(("power", "offset"), [(0.0, 1e-3), (0.5, 0.2), (1.0, 1e-3)])
def test_rows_are_weighted_by_their_own_error_without_gradient(
    power: float, offset: float, shape: tuple[int, ...], draw: Draw
) -> None:
    net, x0, x1 = Shift(), draw(*shape), draw(*shape)
    error = (0.2 - (x1 - x0)).flatten(1)
    weight = (error.square().sum(1) + offset) ** -power
    for share in (0.0, 0.5, 1.0):
        loss = MeanFlow(share=share, power=power, offset=offset).loss(
            net, Pairs(x0, x1), torch.Generator()
        )
        close(loss, (weight * error.square().sum(1)).mean())
        close(torch.autograd.grad(loss, net.theta)[0], (weight * 2 * error.sum(1)).mean())


def test_times_are_ordered_logit_normal_draws_of_the_noise_share(
    generator: torch.Generator,
) -> None:
    n = 20_000
    for mean, std in ((-0.4, 1.0), (-2.0, 2.0)):
        s, t = LogitNormalIntervals(mean, std)(n, generator)
        assert MeanFlow(logit_mean=mean, logit_std=std).intervals == LogitNormalIntervals(mean, std)
        assert (s <= t).all()
        logits = torch.logit(1 - torch.cat([s, t]).double())
        assert float(logits.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(2 * n))
        assert float(logits.std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_costs_are_measured_multiplications(kind: str) -> None:
    net, x = random_net(kind)
    assert MeanFlow().cost == 3.25
    for share in (0.0, 0.25, 0.5, 1.0):
        objective = MeanFlow(share)
        assert measured_passes(objective.loss, net, x) == pytest.approx(objective.cost, rel=0.05)


@pytest.mark.parametrize("rows", [(1, 3), (7, 3), (5, 1, 4, 4)])
def test_every_row_keeps_its_condition(rows: tuple[int, ...]) -> None:
    batch = conditioned(*rows)
    for seed in range(4):
        assert (
            float(
                MeanFlow(share=0.4, power=0.0).loss(
                    ConditionNet(), batch, torch.Generator().manual_seed(seed)
                )
            )
            < 1e-10
        )


def test_bad_settings_are_refused() -> None:
    for name, value in (("share", 1.2), ("power", -1.0), ("logit_std", 0.0), ("offset", 0.0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
            MeanFlow(**{name: value})

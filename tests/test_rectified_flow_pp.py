"""2-rectified flow++: the distribution of the times, the scale of the distance, and the minimiser
on pairs of an exact flow."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.flow_map import sample
from bezierdistill.objectives import (
    CurveRegression,
    Curves,
    Instants,
    Loss,
    RectifiedFlowPP,
    UShapedInstants,
)
from bezierdistill.objectives.losses import pseudo_huber
from conftest import CountedNet, Draw, close
from gaussian_map import GaussianMap

F64 = torch.float64
MEAN, STD = 0.7, 0.5


class Straight(nn.Module):
    """The velocity of the lines from x0 to ``MEAN + STD x0``, plus ``theta``."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        time = s.reshape(-1, *[1] * (x.ndim - 1))
        x0 = (x - time * MEAN) / (1 + time * (STD - 1))
        return MEAN + (STD - 1) * x0 + self.theta.to(x)


def pairs(x0: Tensor) -> Curves:
    """The teacher's pairs for Gaussian data."""
    return Curves(BezierCurve.line(x0, GaussianMap(MEAN, STD).exact(x0, 0.0, 1.0)))


@pytest.mark.parametrize("steepness", [0.5, 4.0, 10.0])
def test_times_have_the_density_of_the_paper(steepness: float) -> None:
    n, generator = 100_000, torch.Generator().manual_seed(0)
    s, t = UShapedInstants(steepness)(n, generator)
    assert torch.equal(s, t)
    assert ((t >= 0) & (t <= 1)).all()
    edges = torch.linspace(0, 1, 21, dtype=F64)
    # The density exp(a t) + exp(a (1 - t)) integrated over every bin, and normalised over all of
    # them.
    primitive = (steepness * edges).exp() - (steepness * (1 - edges)).exp()
    share = primitive.diff() / (primitive[-1] - primitive[0])
    counts = torch.histc(t.double(), 20, 0, 1)
    chi2 = float(((counts - n * share).square() / (n * share)).sum())
    assert chi2 < 19 + 5 * math.sqrt(2 * 19)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_distance_is_the_papers_up_to_the_root_of_the_dimension(
    dtype: torch.dtype, shape: tuple[int, ...], draw: Draw
) -> None:
    a, b, size = draw(*shape).to(dtype), draw(*shape).to(dtype), math.prod(shape[1:])
    for scale in (0.00054, 0.1):
        c = scale * size
        paper = ((a - b).double().square().flatten(1).sum(1) + c**2).sqrt() - c
        torch.testing.assert_close(
            pseudo_huber(a, scale)(a, b).double(),
            paper.mean() / math.sqrt(size),
            rtol=1e-5,
            atol=1e-7,
        )
    assert pseudo_huber(a, 0.0) == Loss(0.0)
    assert pseudo_huber(torch.zeros(1, 3, 32, 32), 0.00054).huber == pytest.approx(0.0299, abs=1e-4)


def test_loss_is_the_regression_at_u_shaped_times(shape: tuple[int, ...], draw: Draw) -> None:
    batch, net = Curves(BezierCurve.line(draw(*shape), draw(*shape))), GaussianMap()
    seeds = [torch.Generator().manual_seed(5) for _ in range(3)]
    loss = RectifiedFlowPP().loss(net, batch, seeds[0])
    t = UShapedInstants(4.0)(shape[0], seeds[1])[0].double()
    close(
        loss,
        Loss(0.00054 * math.sqrt(math.prod(shape[1:])))(
            net(batch[0].point(t), t, t), batch[0].data - batch[0].source
        ),
    )
    assert abs(float(loss - CurveRegression(Instants()).loss(net, batch, seeds[2]))) > 1e-3


def test_straight_flow_is_the_minimiser_and_samples_in_one_pass(
    shape: tuple[int, ...], draw: Draw
) -> None:
    batch, net = pairs(draw(*shape)), Straight()
    for huber in (0.0, 0.00054):
        assert (
            abs(
                float(
                    RectifiedFlowPP(huber=huber)
                    .loss(net, batch, torch.Generator().manual_seed(1))
                    .detach()
                )
            )
            < 1e-12
        )
        net.theta.data.fill_(0.1)
        expected = (
            0.01
            if not huber
            else Loss(huber * math.sqrt(math.prod(shape[1:])))(
                torch.full((1, *shape[1:]), 0.1), torch.zeros(1)
            )
        )
        assert float(
            RectifiedFlowPP(huber=huber).loss(net, batch, torch.Generator()).detach()
        ) == pytest.approx(float(expected), rel=1e-6)
        net.theta.data.zero_()
    for knots in ((0.0, 1.0), (0.0, 0.4, 1.0)):
        close(sample(net, batch[0].source, knots).detach(), batch[0].data)
    # The teacher's own field bends, so it is not the minimiser.
    assert (
        float(
            RectifiedFlowPP(huber=0.0)
            .loss(GaussianMap(MEAN, STD), pairs(draw(64, 2)), torch.Generator())
            .detach()
        )
        > 1e-3
    )


def test_conditions_reach_the_network_and_passes_are_counted(
    draw: Draw, generator: torch.Generator
) -> None:
    class Condition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            assert cond is not None
            return self.one * cond[:, None].expand_as(x)

    x0, cond, net = draw(7, 3), draw(7), CountedNet(Condition())
    loss = RectifiedFlowPP().loss(
        net, Curves(BezierCurve.line(x0, x0 + cond[:, None]), cond), generator
    )
    assert abs(float(loss.detach())) < 1e-12
    assert net.passes == RectifiedFlowPP.cost == 3


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steepness is 0.0"):
        RectifiedFlowPP(steepness=0.0)
    with pytest.raises(ValueError, match=r"huber is -1.0"):
        RectifiedFlowPP(huber=-1.0)

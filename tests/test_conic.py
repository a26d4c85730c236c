"""Balanced conic reflow: slerp's geometry and distribution, what rows are trained on, and the
minimiser for an exact flow."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.objectives import (
    Balanced,
    Conic,
    CurveRegression,
    Curves,
    Intervals,
    MapIntervals,
    UShapedInstants,
)
from bezierdistill.objectives.conic import slerp
from bezierdistill.solvers import solve, time_grid
from conftest import CountedNet, Draw, close, gaussian

F64 = torch.float64


class At(Intervals):
    """A single instant."""

    instants = True

    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        t = torch.full((count,), self.time)
        return t, t


class Probe(nn.Module):
    """A zero velocity that keeps what it was asked."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.x, self.s, self.t, self.cond = x, s, t, cond
        return torch.zeros_like(x)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rows."""
    a, b = a.flatten(1), b.flatten(1)
    return torch.acos(((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).clamp(-1, 1))


def lines(draw: Draw, *shape: int) -> Curves:
    return Curves(BezierCurve.line(draw(*shape), draw(*shape)))


def test_slerp_turns_by_a_share_of_the_angle_and_keeps_the_length(
    shape: tuple[int, ...], draw: Draw
) -> None:
    a, b, share = draw(*shape), draw(*shape), torch.rand(shape[0], dtype=F64)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(-1, *[1] * (a.ndim - 1))
    close(slerp(a, b, torch.zeros_like(share)), a)
    close(slerp(a, b, torch.ones_like(share)), b)
    between = slerp(a, b, share)
    close(between.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    torch.testing.assert_close(angle(a, between), share * angle(a, b), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(angle(b, between), (1 - share) * angle(a, b), rtol=1e-6, atol=1e-7)
    # The paper's formula, for equal lengths.
    phi, rows = angle(a, b), (-1, *[1] * (a.ndim - 1))
    weight_a, weight_b = ((1 - share) * phi).sin() / phi.sin(), (share * phi).sin() / phi.sin()
    close(between, weight_a.reshape(rows) * a + weight_b.reshape(rows) * b, 1e-9)
    close(slerp(a, 7.0 * b, share), between)  # only the direction of b counts


def test_slerp_of_parallel_and_of_nearly_opposite_states_is_bounded(draw: Draw) -> None:
    a, share = draw(50, 3).float(), torch.full((50,), 0.13)
    torch.testing.assert_close(slerp(a, 2 * a, share), a, rtol=1e-5, atol=1e-5)
    near = slerp(a, -a + 1e-3 * draw(50, 3).float(), share)
    torch.testing.assert_close(near.norm(dim=1), a.norm(dim=1), rtol=1e-3, atol=0)
    assert (slerp(a, -2 * a, share).norm(dim=1) < 1.5 * a.norm(dim=1)).all()
    assert (slerp(a[:, :1], draw(50, 1).float(), share).abs() < 1.5 * a[:, :1].abs()).all()
    assert torch.equal(slerp(torch.zeros(2, 3), a[:2], share[:2]), torch.zeros(2, 3))


def test_cone_about_normal_noise_is_normal(generator: torch.Generator) -> None:
    n, probe = 40_000, Probe()
    z = torch.randn(n, 2, generator=generator, dtype=F64)
    batch = Curves(BezierCurve.line(z, torch.zeros_like(z)))
    Conic(share=1.0, zeta=1.0, times=At(0.0)).loss(probe, Balanced(batch, batch), generator)
    assert float((probe.x - z).abs().max()) > 1.0  # it did move
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        values = probe.x**power
        assert ((values.mean(0) - moment).abs() < 4.5 * values.std(0) / math.sqrt(n)).all()
    assert abs(float((probe.x[:, 0] * probe.x[:, 1]).mean())) < 4.5 / math.sqrt(n)


def test_shares_of_the_angle_follow_the_schedule(generator: torch.Generator) -> None:
    n, size, probe = 1000, 2000, Probe()
    z = torch.randn(n, 1, generator=generator).expand(n, size).contiguous()
    batch = Curves(BezierCurve.line(z, torch.zeros_like(z)))
    Conic(share=1.0, times=At(0.0)).loss(probe, Balanced(batch, batch), generator)
    zeta = angle(z, probe.x).double() / (
        math.pi / 2
    )  # fresh noise is orthogonal to anything in many dimensions
    assert float(zeta.max()) == pytest.approx(0.13, rel=0.06)
    u = torch.linspace(0, 1, 2001, dtype=F64)
    expected = 0.13 * 2 * u**2 / (1 + u**2)
    assert float(zeta.mean()) == pytest.approx(float(expected.mean()), rel=0.05)
    assert float(zeta.median()) == pytest.approx(0.13 * 2 * 0.25 / 1.25, rel=0.08)


def test_rows_are_generated_lines_or_cones_that_end_in_the_real_data(draw: Draw) -> None:
    generated, real, n = lines(draw, 2000, 4), lines(draw, 2000, 4), 2000
    tags = torch.arange(2 * n)
    for share in (0.0, 0.3, 1.0):
        probe = Probe()
        batch = Balanced(Curves(generated[0], tags[:n]), Curves(real[0], tags[n:]))
        loss = Conic(share, zeta=0.2).loss(probe, batch, torch.Generator().manual_seed(3))
        assert torch.equal(probe.s, probe.t)
        assert probe.cond is not None
        is_real = probe.cond >= n
        assert abs(float(is_real.double().mean()) - share) <= 4 * math.sqrt(share * (1 - share) / n)
        time = probe.t[:, None]
        close(probe.x[~is_real], generated[0].point(probe.t)[~is_real])
        start = (probe.x - time * real[0].data) / (1 - time)
        rows = is_real & (probe.t < 0.99)
        close(start[rows].norm(dim=1), real[0].source[rows].norm(dim=1), 1e-9)
        turned = angle(start[rows], real[0].source[rows])
        assert (turned <= 0.2 * math.pi).all()
        if share:
            assert float(turned.max()) > 0.1
        target = torch.where(is_real[:, None], real[0].data - start, generated[0].velocity(0.5))
        torch.testing.assert_close(loss, target.square().mean(), rtol=1e-9, atol=0)


def test_without_cone_it_is_reflow_of_the_chosen_pairs(shape: tuple[int, ...], draw: Draw) -> None:
    generated, real, net = lines(draw, *shape), lines(draw, *shape), Probe()
    for share, zeta, chosen in ((0.0, 0.5, generated), (1.0, 0.0, real)):
        loss = Conic(share, zeta, At(0.3)).loss(net, Balanced(generated, real), torch.Generator())
        close(loss, CurveRegression(At(0.3)).loss(net, chosen, torch.Generator()))


def test_times_are_u_shaped(draw: Draw, generator: torch.Generator) -> None:
    probe, batch = Probe(), lines(draw, 20_000, 1)
    Conic().loss(probe, Balanced(batch, batch), generator)
    t = UShapedInstants(4.0)(20_000, generator)[0]
    for level in (0.1, 0.5, 0.9):
        assert float((probe.t < level).double().mean()) == pytest.approx(
            float((t < level).double().mean()), abs=0.02
        )


def test_inverted_pairs_of_an_exact_flow_agree_with_generated_ones(draw: Draw) -> None:
    """Generated and real pairs of an exact teacher lie on the same straight flow; a cone makes its
    target uncertain."""
    mean, std, field = 0.7, 0.5, gaussian([0.7, 0.7], [0.5, 0.5])

    class Straight(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return mean + (std - 1) * (x - t[:, None] * mean) / (1 + t[:, None] * (std - 1))

    x0, x1 = draw(300, 2), mean + std * draw(300, 2)
    inverted = solve(field, x1, time_grid(40, 1.0, 0.0), "rk4").state
    batch = Balanced(
        Curves(BezierCurve.line(x0, mean + std * x0)), Curves(BezierCurve.line(inverted, x1))
    )
    assert float(Conic(0.5, 0.0).loss(Straight(), batch, torch.Generator())) < 1e-10
    assert float(Conic(0.5, 0.2).loss(Straight(), batch, torch.Generator())) > 1e-3


def test_the_cost_is_what_a_step_spends(draw: Draw, generator: torch.Generator) -> None:
    net = CountedNet(nn.Module())
    weight = nn.Parameter(torch.ones((), dtype=F64))
    net.net = type("Scale", (nn.Module,), {"forward": lambda self, x, s, t, cond: weight * x})()
    Conic().loss(net, Balanced(lines(draw, 1, 3), lines(draw, 1, 3)), generator).backward()
    assert net.passes == Conic.cost == 3
    assert weight.grad is not None


def test_bad_settings_and_batches_are_refused(draw: Draw, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"share is 1.5"):
        Conic(share=1.5)
    with pytest.raises(ValueError, match=r"zeta is -0.1"):
        Conic(zeta=-0.1)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) and \(2, 5, 3\)"):
        Conic().loss(Probe(), Balanced(lines(draw, 4, 3), lines(draw, 5, 3)), generator)
    with pytest.raises(ValueError, match="times are intervals, expected instants"):
        Conic(times=MapIntervals())
    cubic = Curves(BezierCurve(draw(4, 5, 3)))
    with pytest.raises(ValueError, match="of lines"):
        Conic().loss(Probe(), Balanced(cubic, cubic), generator)
    other = Curves(lines(draw, 4, 3).curve, torch.arange(4))
    with pytest.raises(ValueError, match="both or neither"):
        Conic().loss(Probe(), Balanced(lines(draw, 4, 3), other), generator)

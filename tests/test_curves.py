"""Bezier curves against scipy's Bernstein polynomials, closed forms, autograd and their own
identities."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.interpolate import BPoly
from scipy.stats import binom
from torch import Tensor
from torch.autograd import gradcheck

from bezierdistill.curves import BezierCurve, CurveFit, bernstein, widest
from bezierdistill.fields import GaussianMixture
from bezierdistill.settings import check_degree
from bezierdistill.solvers import solve, time_grid
from conftest import Draw, close

DEGREES = [1, 2, 3, 4, 7]
UNEVEN = (0.0, 0.05, 0.1, 0.35, 0.4, 0.62, 0.8, 0.93, 1.0)
F64 = torch.float64


def row_times(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 9])
def test_bernstein_is_the_binomial_distribution(degree: int) -> None:
    t = torch.linspace(0, 1, 12, dtype=F64).reshape(3, 4)
    basis = bernstein(degree, t)
    close(
        basis,
        torch.from_numpy(np.stack([binom.pmf(i, degree, t.numpy()) for i in range(degree + 1)])),
    )
    close(basis.sum(0), torch.ones_like(t), 1e-14)


@pytest.mark.parametrize("degree", DEGREES)
def test_point_velocity_acceleration_equal_scipy(
    degree: int, shape: tuple[int, ...], draw: Draw
) -> None:
    curve = BezierCurve(draw(degree + 1, *shape))
    reference = BPoly(curve.points.numpy()[:, None], [0.0, 1.0])
    for t in (0.0, 0.2, 0.7, 1.0):
        for order, value in enumerate([curve.point(t), curve.velocity(t), curve.acceleration(t)]):
            close(value, torch.from_numpy(np.asarray(reference(t, nu=order))), 1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 3e-2)]
)
def test_every_dtype_keeps_itself_and_its_precision(
    dtype: torch.dtype, tolerance: float, draw: Draw
) -> None:
    narrow = BezierCurve(draw(4, 5, 3).to(dtype))
    wide = BezierCurve(narrow.points.to(F64))
    s, t = 0.25, 0.625  # exact in bfloat16
    for name, times in {"point": (t,), "velocity": (t,), "average_velocity": (s, t)}.items():
        value, exact = getattr(narrow, name)(*times), getattr(wide, name)(*times)
        assert value.dtype == dtype
        assert (value.to(F64) - exact).abs().max() <= tolerance * wide.points.abs().max()


@pytest.mark.parametrize("degree", DEGREES)
def test_times_by_row_equal_times_one_by_one(
    degree: int, shape: tuple[int, ...], draw: Draw
) -> None:
    curve, s, t = BezierCurve(draw(degree + 1, *shape)), row_times(shape[0]), row_times(shape[0], 2)
    for row in range(shape[0]):
        alone = BezierCurve(curve.points[:, row : row + 1])
        a, b = float(s[row]), float(t[row])
        close(curve.point(t)[row : row + 1], alone.point(b))
        close(curve.velocity(t)[row : row + 1], alone.velocity(b))
        close(curve.segment(s, t).points[:, row : row + 1], alone.segment(a, b).points)
        close(curve.average_velocity(s, t)[row : row + 1], alone.average_velocity(a, b))


@pytest.mark.parametrize("degree", DEGREES)
def test_derivatives_equal_autograd(degree: int, shape: tuple[int, ...], draw: Draw) -> None:
    curve, t = BezierCurve(draw(degree + 1, *shape)), row_times(shape[0])
    close(torch.func.jvp(curve.point, (t,), (torch.ones_like(t),))[1], curve.velocity(t))
    close(
        torch.func.jvp(curve.velocity, (t,), (torch.ones_like(t),))[1], curve.acceleration(t), 1e-11
    )


def test_gradcheck(draw: Draw) -> None:
    inputs = [
        draw(4, 2, 3).requires_grad_(),
        *(row_times(2, seed).requires_grad_() for seed in (1, 2)),
    ]
    assert gradcheck(lambda p, s, t: BezierCurve(p).point(t), inputs)
    assert gradcheck(lambda p, s, t: BezierCurve(p).segment(s, t).elevate().points, inputs)
    assert gradcheck(lambda p, s, t: BezierCurve(p).average_velocity(s, t), inputs)
    assert gradcheck(
        lambda p, s, t: (BezierCurve(p).arc_length(), BezierCurve(p).curvature(t)), inputs
    )


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_split_segment_elevate_leave_the_curve_unchanged(
    degree: int, dtype: torch.dtype, shape: tuple[int, ...], draw: Draw
) -> None:
    curve, s = BezierCurve(draw(degree + 1, *shape).to(dtype)), row_times(shape[0]).to(dtype)
    tolerance = 1e-6 * (1 if dtype == F64 else 2 * float(curve.points.abs().max()))
    before, after = curve.split(s)
    raised = curve.elevate()
    assert (before.degree, raised.degree) == (degree, degree + 1)
    for u in (0.0, 0.3, 0.8, 1.0):
        close(before.point(u), curve.point(u * s), tolerance)
        close(after.point(u), curve.point(s + u * (1 - s)), tolerance)
        close(curve.segment(1.0, s).point(u), curve.point(1 - u * (1 - s)), tolerance)
        close(raised.point(u), curve.point(u), tolerance)
    close(curve.segment(s, s).points, curve.point(s).expand_as(curve.points), tolerance)


@pytest.mark.parametrize("degree", DEGREES)
def test_average_velocity_is_the_quotient_and_at_its_limit_the_velocity(
    degree: int, shape: tuple[int, ...], draw: Draw
) -> None:
    curve, s, t = BezierCurve(draw(degree + 1, *shape)), row_times(shape[0]), row_times(shape[0], 2)
    gap = (t - s).reshape(-1, *[1] * (len(shape) - 1))
    close(curve.average_velocity(s, t), (curve.point(t) - curve.point(s)) / gap, 1e-10)
    close(curve.average_velocity(t, s), curve.average_velocity(s, t))
    close(curve.average_velocity(s, s), curve.velocity(s))
    close(curve.average_velocity(0.0, 1.0), curve.data - curve.source)


@pytest.mark.parametrize(
    "times", [UNEVEN, UNEVEN[::-1], time_grid(8)], ids=["uneven", "uneven back", "even"]
)
@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_fit_returns_the_curve_that_the_path_lies_on(
    times: Sequence[float], degree: int, shape: tuple[int, ...], draw: Draw
) -> None:
    curve = BezierCurve(draw(degree + 1, *shape))
    path = torch.stack([curve.point(t) for t in times])
    close(BezierCurve.fit(path, times, degree).points, curve.points, 1e-10)
    close(BezierCurve.fit(path, times, degree + 1).points, curve.elevate().points, 1e-10)


@pytest.mark.parametrize("degree", [2, 4])
def test_fit_is_the_least_squares_minimum_with_fixed_ends(degree: int, draw: Draw) -> None:
    path = draw(len(UNEVEN), 3, 2)
    curve = BezierCurve.fit(path, UNEVEN, degree)
    basis = torch.from_numpy(np.stack([binom.pmf(i, degree, UNEVEN) for i in range(degree + 1)], 1))
    free = path - basis[:, 0, None, None] * path[0] - basis[:, -1, None, None] * path[-1]
    inner = np.linalg.lstsq(basis[:, 1:-1].numpy(), free.flatten(1).numpy())[0]
    close(curve.points[1:-1].flatten(1), torch.from_numpy(inner), 1e-10)
    assert torch.equal(curve.points[[0, -1]], path[[0, -1]])


@pytest.mark.parametrize("times", [UNEVEN, UNEVEN[::-1]], ids=["forwards", "backwards"])
def test_running_sums_equal_the_fit_of_the_stored_path(
    times: Sequence[float], mixture: GaussianMixture, draw: Draw
) -> None:
    path: list[Tensor] = []
    fit, start = CurveFit(4, times), draw(6, 2)
    solve(mixture, start, times, observe=fit)
    solve(mixture, start, times, observe=lambda k, x: path.append(x))
    close(fit.curve().points, BezierCurve.fit(torch.stack(path), times, 4).points)


def test_a_fit_that_is_used_again_is_of_the_last_path(draw: Draw) -> None:
    fit, times, paths = CurveFit(3, time_grid(6)), time_grid(6), draw(2, 7, 4, 2)
    curves = []
    for path in paths:
        for k, x in enumerate(path):
            fit(k, x)
        curves.append(fit.curve())
    for path, curve in zip(paths, curves, strict=True):
        close(curve.points, BezierCurve.fit(path, times, 3).points)


def test_degree_one_is_the_straight_line(shape: tuple[int, ...], draw: Draw) -> None:
    x0, x1, t = draw(*shape), draw(*shape), row_times(shape[0])
    time = t.reshape(-1, *[1] * (len(shape) - 1))
    line = BezierCurve.line(x0, x1)
    close(line.point(t), (1 - time) * x0 + time * x1)
    for velocity in (line.velocity(t), line.average_velocity(0.2, t), line.average_velocity(t, t)):
        close(velocity, x1 - x0)
    assert not line.acceleration(t).any()
    close(line.curvature(t), torch.zeros_like(t))
    close(line.split(t)[0].points, torch.stack([x0, line.point(t)]))
    close(line.arc_length(), (x1 - x0).flatten(1).norm(dim=1))
    close(BezierCurve.from_guides(x0, [], x1).points, line.points)
    close(line.elevate().points, torch.stack([x0, (x0 + x1) / 2, x1]))
    close(
        BezierCurve.fit(torch.stack([x0, draw(*shape), x1]), (0.0, 0.4, 1.0), 1).points, line.points
    )


def test_hermite_has_the_end_velocities_and_reproduces_cubics(
    shape: tuple[int, ...], draw: Draw
) -> None:
    x0, x1, v0, v1 = (draw(*shape) for _ in range(4))
    curve = BezierCurve.hermite(x0, x1, v0, v1)
    for got, expected in [
        (curve.source, x0),
        (curve.data, x1),
        (curve.velocity(0.0), v0),
        (curve.velocity(1.0), v1),
    ]:
        close(got, expected)
    cubic = BezierCurve(draw(4, *shape))
    close(
        BezierCurve.hermite(
            cubic.source, cubic.data, cubic.velocity(0.0), cubic.velocity(1.0)
        ).points,
        cubic.points,
    )


def test_arc_length_and_curvature_of_a_parabola(draw: Draw) -> None:
    parabola = BezierCurve(
        torch.tensor([[[0.0, 0.0]], [[0.5, 0.0]], [[1.0, 1.0]]], dtype=F64)
    )  # (t, t^2)
    assert parabola.arc_length().item() == pytest.approx(
        (2 * math.sqrt(5) + math.asinh(2)) / 4, abs=1e-12
    )
    for t in (0.0, 0.4, 1.0):
        assert parabola.curvature(t).item() == pytest.approx(2 / (1 + 4 * t * t) ** 1.5, abs=1e-12)
    before, after = parabola.split(0.3)
    close(before.arc_length() + after.arc_length(), parabola.arc_length())
    close(BezierCurve(3 * parabola.points).curvature(0.4), parabola.curvature(0.4) / 3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_curvature_of_a_line_is_zero_at_any_speed(dtype: torch.dtype, draw: Draw) -> None:
    x0, x1 = draw(5, 3).to(dtype), draw(5, 3).to(dtype)
    uneven = BezierCurve(torch.stack([x0, x0 + 0.1 * (x1 - x0), x0 + 0.4 * (x1 - x0), x1]))
    assert uneven.acceleration(0.3).norm(dim=1).min() > 0.5
    scale = uneven.acceleration(0.3).norm(dim=1) / uneven.velocity(0.3).norm(dim=1) ** 2
    assert (uneven.curvature(0.3) / scale).max() <= 32 * torch.finfo(dtype).eps
    assert (
        BezierCurve(x0.expand(3, -1, -1)).curvature(0.3).tolist() == [0.0] * 5
    )  # a curve that stands still


@pytest.mark.parametrize("degree", [0, -1, 67, 2.0, True])
def test_bad_degrees_are_rejected(degree: int) -> None:
    assert [CurveFit(n, UNEVEN).weights.shape[0] for n in (1, 2)] == [
        2,
        3,
    ]  # a cache must not let 2.0 == 2 and True == 1 pass
    with pytest.raises(ValueError, match="degree is"):
        check_degree(degree)
    with pytest.raises(ValueError, match="degree is"):
        CurveFit(degree, UNEVEN)


@pytest.mark.parametrize(
    "times",
    [
        (0.0, 0.5, 1.0),
        (0.0, 0.5, 0.5, 1.0),
        (0.0, 0.2, 0.4),
        (0.0, 0.3, 0.5, 1.2, 1.0),
        (0.5, 0.7, 0.9, 1.0),
        (),
    ],
)
def test_times_that_cannot_carry_a_fit_are_rejected(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times"):
        CurveFit(3, times)


def test_wrong_shapes_are_rejected(draw: Draw) -> None:
    curve = BezierCurve(draw(3, 4, 2))
    for time in (torch.zeros(3), torch.zeros(4, 1), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"expected a scalar or \(4,\)"):
            curve.point(time)
    with pytest.raises(ValueError, match="expected one state per time"):
        BezierCurve.fit(draw(3, 4, 2), UNEVEN, 2)
    with pytest.raises(ValueError, match="no state was visited"):
        CurveFit(2, UNEVEN).curve()
    for points in (draw(1, 4, 2), draw(3)):
        with pytest.raises(ValueError, match="control points have shape"):
            BezierCurve(points)


@pytest.mark.parametrize("degree", [1, 4])
def test_ends_are_the_points_of_both_times(draw: Draw, degree: int) -> None:
    curve, s, t = BezierCurve(draw(degree + 1, 5, 2, 3)), torch.rand(5), torch.rand(5)
    for end, time in zip(curve.ends(s, t), (s, t), strict=True):
        torch.testing.assert_close(end, curve.point(time))


def test_numbers_are_no_wider_than_their_device_has() -> None:
    kinds = {name: widest(torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert kinds == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32}

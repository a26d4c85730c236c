"""A network that emits a curve: closed forms of its weights, the teacher at the start."""

from dataclasses import replace

import pytest
import torch

from bezierdistill.curves import BezierCurve, bernstein
from bezierdistill.flow_map import flow_map
from bezierdistill.models.weights import start_from
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.curve import CurveNetwork, combine, mean_weights, velocity_weights

SHAPES = {"mlp": (3,), "unet": (2, 8, 8), "dit": (2, 8, 8)}


class Emitting(torch.nn.Module):
    """Control points that are given."""

    def __init__(self, points: torch.Tensor) -> None:
        super().__init__()
        self.points = points

    def forward(self, x, s, t, cond=None):
        return self.points.expand(len(x), -1, -1)


@pytest.mark.parametrize("points", [1, 2, 4, 7])
def test_mean_weights_are_the_integral_of_the_basis(points: int) -> None:
    ends = torch.linspace(0.05, 1, 7, dtype=torch.float64)
    nodes = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    expected = bernstein(points - 1, nodes[:, None] * ends).mean(1)
    found = mean_weights(points, ends)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.sum(0), torch.ones(7, dtype=torch.float64))
    first = torch.zeros(points, dtype=torch.float64)
    first[0] = 1
    assert torch.equal(mean_weights(points, torch.zeros(1, dtype=torch.float64))[:, 0], first)


def test_jumps_are_points_of_the_emitted_bezier_curve() -> None:
    """The integral of B' is the Bezier curve whose differences are the emitted points."""
    s, points = 0.3, torch.randn(1, 4, 2, dtype=torch.float64)
    net = CurveNetwork(Emitting(points), 4)
    x = torch.randn(5, 2, dtype=torch.float64)
    steps = (1 - s) / 4 * points.expand(5, -1, -1).transpose(0, 1)
    curve = BezierCurve(torch.cat([x[None], x + steps.cumsum(0)]))
    for t in (s, 0.5, 0.8, 1.0):
        tau = (t - s) / (1 - s)
        assert torch.allclose(flow_map(net, x, s, t), curve.point(tau))
        weights = velocity_weights(4, torch.full((5,), tau, dtype=torch.float64))
        speed = combine(weights, points.expand(5, -1, -1))
        assert torch.allclose((1 - s) * speed, curve.velocity(tau))


def test_at_the_end_a_jump_of_no_length_is_finite() -> None:
    net = CurveNetwork(Emitting(torch.randn(1, 3, 2)), 3)
    x, one = torch.randn(4, 2), torch.ones(4)
    assert torch.equal(net(x, one, one), net.inner(x, one, one)[:, 0])


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_student_of_curves_starts_as_its_teacher(kind) -> None:
    config = NetworkConfig(kind, 32, 1, 2)
    teacher = config.build(SHAPES[kind], 3, 2)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    student = replace(config, control_points=3).build(SHAPES[kind], 7, 2)
    start_from(student, teacher)
    x, cond = torch.randn(4, *SHAPES[kind]), torch.randn(4, 2)
    s, t = torch.rand(4) / 2, 0.5 + torch.rand(4) / 2
    with torch.no_grad():
        emitted, v = student(x, s, t, cond, whole=True), teacher(x, s, s, cond)
        assert emitted.shape == (4, 3, *SHAPES[kind])
        assert float(v.std()) > 0.01
        for k in range(3):
            assert torch.allclose(emitted[:, k], v, atol=1e-5)
        assert torch.allclose(student(x, s, t, cond), v, atol=1e-5)
    other = replace(config, control_points=3).build(SHAPES[kind], 8, 2)
    start_from(other, student)
    with torch.no_grad():
        assert torch.equal(other(x, s, t, cond), student(x, s, t, cond))

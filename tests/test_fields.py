"""Fields: the exact mixture field against quadrature and its own law, blends against manual
sums."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import Time
from bezierdistill.errors import UserError
from bezierdistill.fields import (
    Blend,
    Field,
    GaussianMixture,
    Guided,
    NetworkField,
    Stretched,
    passes_of,
)
from bezierdistill.objectives import (
    ConsistencyDistillation,
    DistributionMatching,
    LagrangianMap,
    Piecewise,
)
from bezierdistill.settings import parse_weights
from bezierdistill.solvers import solve, time_grid
from conftest import ConditionField, CountedField, Draw, close, gaussian

WAVES: list[Field] = [
    CountedField(lambda x, t, k=k: torch.sin(k * x) * k, passes=k) for k in (1, 2, 3)
]
MATRIX = torch.tensor(
    [[1.0, 1.5, 0.2], [0.25, -0.75, 0.3], [-0.25, 0.25, 0.5]], dtype=torch.float64
)


@pytest.mark.parametrize("how", ["flow", "sample"])
def test_flow_and_samples_have_the_mixtures_moments(
    how: str, mixture: GaussianMixture, draw: Draw, generator: torch.Generator
) -> None:
    count = 20_000
    x = (
        solve(mixture, draw(count, 2), time_grid(48), "rk4").state
        if how == "flow"
        else mixture.sample(count, generator)
    )
    mean = mixture.weights @ mixture.means
    spread = mixture.means - mean
    covariance = (spread.T * mixture.weights) @ spread + torch.diag(
        mixture.weights @ mixture.stds**2
    )
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    for sample, exact in [(x, mean), (products, covariance)]:
        assert ((sample.mean(0) - exact).abs() < 4 * sample.std(0) / math.sqrt(count)).all()


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("backwards", [False, True])
def test_single_gaussian_flow_has_the_closed_form(method: str, backwards: bool, draw: Draw) -> None:
    mean, std = [0.7, -1.2, 0.0], [0.3, 1.0, 2.0]
    field, x0 = gaussian(mean, std), draw(7, 3)

    def exact(t: float) -> Tensor:
        return t * field.means + ((1 - t) ** 2 + t**2 * field.stds**2).sqrt() * x0

    times = time_grid(40)[::-1] if backwards else time_grid(40)
    path: list[Tensor] = []
    solve(
        field, exact(times[0]), times, method, observe=lambda k, x: path.append(x), tolerance=1e-9
    )
    for t, x in zip(times, path, strict=True):
        torch.testing.assert_close(x, exact(t), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_mixture_field_is_the_conditional_expectation(t: float) -> None:
    means, stds, weights = (
        np.array([-1.0, 0.4, 2.0]),
        np.array([0.3, 0.7, 0.5]),
        np.array([0.2, 0.5, 0.3]),
    )
    field = GaussianMixture(
        torch.from_numpy(means[:, None]), torch.from_numpy(stds[:, None]), torch.from_numpy(weights)
    )
    x = np.linspace(-2.0, 2.5, 9)
    # E[x1 - x0 | x_t = x] by the trapezoid rule over whichever end the other follows from,
    # spectrally accurate for these densities.
    grid = np.linspace(-9, 9, 40_001)
    x1 = grid[:, None] if t < 0.5 else (x - (1 - t) * grid[:, None]) / t
    x0 = (x - t * x1) / (1 - t) if t < 0.5 else grid[:, None]
    density = np.exp(-(x0**2) / 2) * (
        weights / stds * np.exp(-(((x1[..., None] - means) / stds) ** 2) / 2)
    ).sum(-1)
    expected = ((x1 - x0) * density).sum(0) / density.sum(0)
    got = field(torch.from_numpy(x)[:, None], torch.full((9,), t, dtype=torch.float64))
    np.testing.assert_allclose(got[:, 0].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_network_field_reads_the_diagonal(shape: tuple[int, ...], draw: Draw) -> None:
    class Times(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            assert torch.equal(s, t)
            return x * s.reshape(-1, *[1] * (x.ndim - 1)) + cond

    x, t = draw(*shape), torch.rand(shape[0], dtype=torch.float64)
    field = NetworkField(Times())
    assert torch.equal(field(x, 0.5, x), 1.5 * x)
    assert torch.equal(field(x, t, 0 * x), x * t.reshape(-1, *[1] * (x.ndim - 1)))
    assert isinstance(field, Field)


@pytest.mark.parametrize("scalar", [True, False])
def test_blend_is_the_manual_sum(shape: tuple[int, ...], scalar: bool, draw: Draw) -> None:
    x, blend = draw(*shape), Blend(WAVES, MATRIX)
    t = (
        torch.tensor(0.3, dtype=torch.float64)
        if scalar
        else torch.linspace(0, 1, shape[0], dtype=torch.float64)
    )
    basis = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
    weights = torch.einsum("mj,j...->m...", MATRIX, basis)
    manual = sum(
        w.reshape(-1, *[1] * (x.ndim - 1)) * torch.sin(k * x) * k
        for k, w in zip((1, 2, 3), weights, strict=True)
    )
    close(blend(x, t), torch.as_tensor(manual))
    assert blend.passes == 1 + 2 + 3


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_blend_weights_sum_to_one_at_every_time(columns: int, draw: Draw) -> None:
    matrix = 3 * draw(4, columns)
    matrix[-1] += 1 - matrix.sum(0)
    weights = Blend([WAVES[0]] * 4, matrix).weight_at(torch.linspace(0, 1, 33, dtype=torch.float64))
    torch.testing.assert_close(
        weights.sum(0), torch.ones(33, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_blend_of_guidance_form_and_of_one_teacher(draw: Draw) -> None:
    x, (strong, weak) = draw(5, 3), WAVES[:2]
    guided = Blend([strong, weak], [1.7, 1 - 1.7])  # pyright: ignore[reportArgumentType]
    close(guided(x, 0.4), weak(x, 0.4) + 1.7 * (strong(x, 0.4) - weak(x, 0.4)))
    assert torch.equal(Blend([strong], torch.ones(1))(x, 0.4), strong(x, 0.4))
    first, last = (
        Blend([strong, weak], [[1.0, 0.0], [0.0, 1.0]])(x, 0.0),
        Blend([strong, weak], [[1.0, 0.0], [0.0, 1.0]])(x, 1.0),
    )
    assert torch.equal(first, strong(x, 0.0))
    assert torch.equal(last, weak(x, 1.0))


def test_blend_hands_the_condition_to_every_teacher(draw: Draw) -> None:
    x, cond = draw(5, 3), torch.arange(5.0, dtype=torch.float64)
    assert torch.equal(
        Blend([ConditionField()] * 2, torch.tensor([1.5, -0.5]))(x, 0.1, cond),
        cond[:, None].expand_as(x),
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.75]], r"sum to \[1.0, 1.25\]"),
        ([0.5, 0.4], r"sum to \[0.9\]"),
        ([math.nan, 1.0], r"sum to \[nan\]"),
        ([1.0], r"shape \(1,\) for 2 fields"),
        ([[[1.0]], [[0.0]]], r"shape \(2, 1, 1\) for 2 fields"),
    ],
)
def test_blend_rejects_bad_weights(weights: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Blend(WAVES[:2], torch.tensor(weights, dtype=torch.float64))


def test_weights_of_text_are_those_of_a_blend_or_refused() -> None:
    assert parse_weights("1") == ((1.0,),)
    assert parse_weights("1.25, -0.25") == ((1.25,), (-0.25,))
    assert parse_weights("1:1.5:2,0:-.5:-1") == ((1.0, 1.5, 2.0), (0.0, -0.5, -1.0))
    with pytest.raises(UserError, match="'x' are no numbers"):
        parse_weights("1,x")
    for text in ("1,", "1:2,3"):
        with pytest.raises(UserError, match="expected equally many numbers per field"):
            Blend(WAVES[:2], parse_weights(text))


def plain(x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
    """A field that does not say what it costs."""
    return -x


def test_a_plain_function_costs_one_pass_wherever_a_field_may_stand(draw: Draw) -> None:
    field: Any = plain
    x, half = draw(4, 2), torch.full((4,), 0.5, dtype=torch.float64)
    assert passes_of(field) == Blend([field], [[1.0]]).passes == 1
    assert (Stretched(field, 0 * half, half).passes, Guided(field, 2.0).passes) == (1, 2)
    for method in ("euler", "heun", "dopri5"):
        counted = CountedField(lambda x, t: -x)
        known = solve(counted, x, time_grid(3), method)
        end = solve(field, x, time_grid(3), method)
        close(end.state, known.state)
        assert end.passes == known.passes == counted.calls
    objectives = (
        (Piecewise(field, 2, 3), 3 + 3),
        (ConsistencyDistillation(field), 2 + 4),
        (LagrangianMap(field), 6 + 1),
        (DistributionMatching(field, critic_steps=1), 3 + 1 + 1 + 3),
    )
    assert [objective.cost for objective, _ in objectives] == [cost for _, cost in objectives]

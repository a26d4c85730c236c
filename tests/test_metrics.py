"""Metrics: closed forms, reference formulas, unbiasedness, and the floor."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.data import ArrayData, EndlessData, Scaling, load_data
from bezierdistill.data.base import Split
from bezierdistill.memory import batch_size
from bezierdistill.metrics import (
    Evaluator,
    RandomFeatures,
    curve_fit_error,
    energy_distance,
    evaluation,
    fidelity,
    frechet_distance,
    mmd,
    precision_recall,
    sliced_wasserstein,
    straightness,
)
from bezierdistill.metrics.distances import nearest
from bezierdistill.metrics.features import weights_digest
from bezierdistill.metrics.scales import KernelFeatures, median_distances, scale_features
from conftest import CountedField, Draw, gaussian

Metric = Callable[[Tensor, Tensor], float]
DISTANCES = [frechet_distance, sliced_wasserstein, energy_distance, mmd]


def whitened(x: Tensor) -> Tensor:
    """The same number of rows with mean zero and covariance one, exactly."""
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("size", [(400, 3), (400, 1, 2, 2)], ids=str)
def test_distances_are_symmetric_and_grow_with_a_shift(
    metric: Metric, size: tuple[int, ...], draw: Draw
) -> None:
    a, b = draw(*size).float(), draw(*size).float()
    values = [metric(a + shift, b) for shift in (0.0, 0.25, 0.5, 1.0)]
    assert values == sorted(values)
    assert values[1] > 2 * values[0]
    if metric is not mmd:  # its bandwidth is that of the real samples
        assert metric(b, a) == pytest.approx(values[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", DISTANCES)
def test_distances_take_any_dtype_and_do_not_see_the_order(metric: Metric, draw: Draw) -> None:
    a, b = draw(60, 3), draw(60, 3) + 0.5
    value = metric(a.float(), b.float())
    assert metric(a.flip(0).float(), b.float()) == pytest.approx(value, rel=1e-5)
    assert metric(a, b) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("std_a", "std_b"), [([1.0, 2.0, 0.5], [1.0, 2.0, 0.5]), ([1.0, 2.0, 0.5], [0.3, 1.5, 2.0])]
)
def test_frechet_of_commuting_gaussians(std_a: list[float], std_b: list[float], draw: Draw) -> None:
    mean = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    p, q = torch.tensor(std_a, dtype=torch.float64), torch.tensor(std_b, dtype=torch.float64)
    value = frechet_distance(
        whitened(draw(100, 3)) * p + mean, whitened(draw(80, 3)) * q, nn.Identity()
    )
    assert value == pytest.approx(float(mean.square().sum() + (p - q).square().sum()), abs=1e-10)


def test_frechet_of_any_gaussians_is_the_matrix_formula_and_rotation_invariant(draw: Draw) -> None:
    left, right, turn = draw(4, 4), draw(4, 4), torch.linalg.qr(draw(4, 4))[0]
    a, b = whitened(draw(100, 4)) @ left.T + 1, whitened(draw(80, 4)) @ right.T
    ca, cb = (left @ left.T).numpy(), (right @ right.T).numpy()
    expected = 4 + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert frechet_distance(a, b, nn.Identity()) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a @ turn, b @ turn, nn.Identity()) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a.flip(0), nn.Identity()) == pytest.approx(0, abs=1e-6)


def test_random_features_are_fixed_and_tell_distributions_of_equal_moments_apart(
    draw: Draw,
) -> None:
    x = draw(50, 2, 3).float()
    assert torch.equal(RandomFeatures(6)(x), RandomFeatures(6)(x.flatten(1)))
    assert not torch.equal(RandomFeatures(6, seed=1)(x), RandomFeatures(6)(x))
    normal, signs = (
        whitened(draw(2000, 2)).float(),
        whitened(draw(2000, 2).sign() + 0.01 * draw(2000, 2)).float(),
    )
    assert frechet_distance(normal, signs, nn.Identity()) < 1e-5
    assert frechet_distance(normal, signs) > 10 * frechet_distance(
        normal, whitened(draw(2000, 2)).float()
    )


def test_energy_and_mmd_are_the_written_out_formulas(draw: Draw) -> None:
    x, y = draw(70, 3), draw(50, 3) + 0.4  # more than 25 rows: torch.cdist takes its fast way
    energy = 2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean()
    assert energy_distance(x, y) == pytest.approx(energy, rel=1e-5)
    assert energy_distance(x.float(), y.float()) == pytest.approx(energy, rel=1e-4)
    median, total = float(torch.pdist(y).median()), 0.0
    for width in (median / 2, median, 2 * median):
        within_x, within_y, cross = (
            np.exp(-(d**2) / (2 * width**2)).mean() for d in (pdist(x), pdist(y), cdist(x, y))
        )
        total += within_x + within_y - 2 * cross
    assert mmd(x, y) == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("metric", [energy_distance, mmd])
def test_energy_and_mmd_are_unbiased(metric: Metric, draw: Draw) -> None:
    values = torch.tensor([metric(draw(30, 2), draw(40, 2)) for _ in range(500)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(500)
    assert (values < 0).double().mean() > 0.3


def test_sliced_wasserstein_closed_forms(draw: Draw) -> None:
    x, shift = draw(40, 3), torch.tensor([3.0, -4.0, 12.0], dtype=torch.float64)
    assert sliced_wasserstein(x[:, :1] + 2.5, x[:, :1]) == pytest.approx(2.5, rel=1e-6)
    assert sliced_wasserstein(x + shift, x, projections=20_000) == pytest.approx(
        13 / math.sqrt(3), rel=0.02
    )
    assert sliced_wasserstein(3 * x, 3 * x.flip(1)) == pytest.approx(
        3 * sliced_wasserstein(x, x.flip(1)), rel=1e-6
    )
    line, other = draw(40, 1), draw(40, 1) * 2
    sorted_gap = line.sort(0).values - other.sort(0).values
    assert sliced_wasserstein(line, other) == pytest.approx(
        float(sorted_gap.square().mean().sqrt()), rel=1e-6
    )


@pytest.mark.parametrize("repeat", [1, 5])
def test_precision_recall_of_known_configurations(repeat: int, draw: Draw) -> None:
    here = draw(30, 2).repeat_interleave(repeat, 0)
    far = here + 100
    assert precision_recall(here, here.flip(0)) == (1.0, 1.0)
    assert precision_recall(here, far) == (0.0, 0.0)
    assert precision_recall(here, torch.cat([here, far])) == (
        1.0,
        0.5,
    )  # half of the modes are missed
    assert precision_recall(torch.cat([here, far, far - 300]), here) == (pytest.approx(1 / 3), 1.0)
    collapsed = here[:1].expand(len(here), -1)
    assert precision_recall(collapsed, here)[0] == 1.0
    assert precision_recall(collapsed, here)[1] == pytest.approx(1 / 30)


def test_precision_recall_radius_is_the_kth_neighbour() -> None:
    line = torch.arange(10.0)[:, None]
    inside, outside = (
        torch.full((10, 1), 10.99),
        torch.full((10, 1), 11.01),
    )  # the last point reaches 2 for k=2
    assert precision_recall(inside, line, k=2)[0] == 1.0
    assert precision_recall(outside, line, k=2)[0] == 0.0
    with pytest.raises(ValueError, match="got 3 and 10 samples, expected more than k=3"):
        precision_recall(line[:3], line)


def test_straightness_closed_forms(shape: tuple[int, ...], draw: Draw) -> None:
    x0, slope = draw(*shape), draw(*shape)
    square = float(slope.square().mean())
    assert straightness(CountedField(lambda x, t: slope), x0) == pytest.approx(0, abs=1e-20)
    assert straightness(CountedField(lambda x, t: 2 * float(t) * slope), x0) == pytest.approx(
        square / 3, rel=0.01
    )
    assert straightness(CountedField(lambda x, t: 3 * float(t) ** 2 * slope), x0) == pytest.approx(
        0.8 * square, rel=0.01
    )


def test_straightness_of_the_gaussian_flow_is_its_integral(draw: Draw) -> None:
    std, x0, t = 2.0, draw(200, 1), torch.linspace(0, 1, 20_001, dtype=torch.float64)
    spread = ((1 - t) ** 2 + t**2 * std**2).sqrt()  # x_t = spread x0, so v = spread' x0
    slope = (t * std**2 - (1 - t)) / spread
    expected = float(torch.trapezoid((std - 1 - slope) ** 2, t) * x0.square().mean())
    assert straightness(gaussian(0.0, std), x0, 128) == pytest.approx(expected, rel=2e-3)


def test_curve_fit_error(shape: tuple[int, ...], draw: Draw) -> None:
    curve, times = BezierCurve(draw(4, *shape)), (0.0, 0.2, 0.7, 1.0)
    path = torch.stack([curve.point(t) for t in times])
    assert curve_fit_error(curve, path, times) == 0.0
    assert curve_fit_error(curve, path + 0.3, times) == pytest.approx(0.3, rel=1e-9)
    path[1] += 1.0
    assert curve_fit_error(curve, path, times) == pytest.approx(0.5, rel=1e-9)


def test_evaluator_gives_real_data_its_floor_and_bad_data_more() -> None:
    data = load_data("manifold16")
    results = [Evaluator(data, seed)(data.real(800, 100 + seed, "train")) for seed in range(4)]
    for name, bound in {
        "frechet": 0.33,
        "sliced_wasserstein": 0.21,
        "precision": 0.02,
        "recall": 0.025,
    }.items():  # 4 standard errors
        assert sum(result[name].ratio for result in results) / 4 == pytest.approx(1, abs=bound)
    assert results[0] == Evaluator(data, 0)(data.real(800, 100, "train"))
    bad = Evaluator(data)(torch.randn(800, 16, generator=torch.Generator().manual_seed(5)))
    for name, bound in {"frechet": 8, "sliced_wasserstein": 2, "energy": 8, "mmd": 8}.items():
        assert bad[name].ratio == pytest.approx(bad[name].value / bad[name].floor)
        assert bad[name].ratio > bound
    assert bad.precision.ratio < 0.2


def test_evaluator_averages_disjoint_parts_and_many_draws_of_finite_data() -> None:
    data = load_data("digits")
    x, size = data.real(1000, 3, "train"), Evaluator(data).size(1000)
    assert size == data.count("test") == 449
    test, train = data.real(449, 0, "test"), data.real(data.count("train") or 0, 0, "train")
    score = Evaluator(data)(x).sliced_wasserstein
    parts = [sliced_wasserstein(part, test) for part in x[:898].split(449)]
    assert score.value == pytest.approx(sum(parts) / 2, rel=1e-9)
    order = torch.Generator().manual_seed(1)
    halves = [train[torch.randperm(len(train), generator=order)[:449]] for _ in range(40)]
    floors = [sliced_wasserstein(half, test) for half in halves]
    spread = float(np.std(floors)) * (1 / 40 + 1 / 8) ** 0.5
    assert score.floor == pytest.approx(np.mean(floors), abs=4 * spread)
    assert spread < np.std(floors) / 2
    assert Evaluator(data).size(100) == 100


def test_each_seed_has_its_own_reference_where_there_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "MIN_REFERENCE", 200)
    rng = np.random.default_rng(0)

    def some(*counts: int) -> ArrayData:
        sides = [rng.normal(size=(count, 2)).astype(np.float32) for count in counts]
        return ArrayData("some", *sides, scaling=Scaling())

    for data, reference, size in (
        (load_data("moons"), "draw", 300),
        (some(300, 40, 400), "draw", 200),  # half of the test split
        (some(300, 40, 199), "whole", 199),
    ):
        x = data.real(300, 7, "train")
        first, second = (Evaluator(data, seed)(x) for seed in (0, 1))
        for one in (first, second):
            assert one.protocol is not None
            assert (one.protocol.reference, one.protocol.count) == (reference, size)
        same = first.recall.value == second.recall.value
        assert same == (reference == "whole")
        assert first.frechet.floor != second.frechet.floor
    one = Evaluator(some(50, 40, 50))(x[:50]).protocol  # the training split as it is
    assert one is not None
    assert one.draws == 1


def test_nearest_distances_and_fidelity_in_closed_form(draw: Draw) -> None:
    grid = torch.cartesian_prod(*[torch.arange(40.0)] * 2)
    flat = torch.cat([grid, torch.zeros(1600, 1)], 1)
    raised = flat.roll(7, 0) + torch.tensor([0.0, 0.0, 0.3])
    assert fidelity(raised, flat) == pytest.approx(0.3, rel=1e-6)
    assert torch.equal(nearest(flat, flat), torch.zeros(1600))
    assert torch.equal(nearest(flat, flat, itself=False), torch.ones(1600))
    x, y = draw(50, 2, 3), draw(70, 2, 3)
    expected = cdist(x.flatten(1), y.flatten(1)).min(1)
    np.testing.assert_allclose(nearest(x, y).numpy(), expected, rtol=1e-9)
    far = torch.full((10, 3), 1e3)
    near = far + torch.arange(10.0)[:, None] * 1e-3  # a matrix product would round these away
    assert nearest(near, far).tolist() == pytest.approx((near - far).norm(dim=1).tolist())


def test_kernel_features_and_their_widths_in_closed_form() -> None:
    places = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    own = KernelFeatures(places, 5.0)
    expected = torch.tensor([[1.0, 0.5**0.5], [0.5**0.5, 1.0]])
    torch.testing.assert_close(own(places), expected)
    line = torch.arange(101.0)[:, None] * 0.25
    median, neighbour = median_distances(line)
    assert neighbour == 0.25
    assert median == pytest.approx(101 * (1 - 0.5**0.5) * 0.25, rel=0.02)  # of a triangle's law
    assert median_distances(torch.zeros(9, 2)) == (1.0, 1e-3)  # rows that are all equal


def test_scales_are_the_data_s_alone_and_the_fine_one_sees_a_blur() -> None:
    data = load_data("loops")
    judges = scale_features(data)
    small, large = (Evaluator(data, seed)(data.real(50 + seed, 9, "train")) for seed in (0, 1))
    assert small.protocol is not None
    assert large.protocol is not None
    assert small.protocol.scales == large.protocol.scales == weights_digest(judges)
    assert small.protocol.widths == large.protocol.widths
    assert list(small.scales) == ["coarse", "middle", "fine"]
    assert small.coarse == small.frechet
    middle, fine = small.protocol.widths
    assert fine < middle / 4
    test = data.real(2000, 0, "test")
    draws = data.real(10_000, 0, "train").split(2000)
    noise = torch.randn(2000, 20, generator=torch.Generator().manual_seed(2)) / 20**0.5

    def ratio(judge: nn.Module, x: Tensor) -> float:
        floor = sum(frechet_distance(part, test, judge) for part in draws[1:]) / 4
        return frechet_distance(x, test, judge) / floor

    blurs = [draws[0] + k * fine * noise for k in (0, 3, 6, 12)]
    coarse, _, seen = ([ratio(judge, x) for x in blurs] for judge in judges.values())
    blurred = blurs[1]
    assert seen[1] - seen[0] > 1
    assert seen[1] - seen[0] > 10 * abs(coarse[1] - coarse[0])
    assert seen[3] > 1.3 * seen[2] > 1.6 * seen[1]  # it tells bad from worse
    assert fidelity(blurred, test) > 1.5 * fidelity(draws[1], test)
    shifted = [ratio(judge, draws[0] + 0.3) for judge in judges.values()]
    assert min(shifted) > 2  # a scale of its own sees the rest too
    for judge in judges.values():
        values = [frechet_distance(part, test, judge) for part in draws]
        assert np.std(values) < 0.35 * np.mean(values)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(100, 3), r"shape \(3,\), expected \(2,\) as in moons"),
        (torch.zeros(100, 2, 1), r"shape \(2, 1\)"),
        (torch.full((100, 2), torch.nan), "NaN or infinite"),
        (torch.tensor([[0.0, torch.inf]]).expand(100, 2), "NaN or infinite"),
        (torch.zeros(7, 2), "expected 8 or more"),
    ],
)
def test_evaluator_rejects_what_it_cannot_judge(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(load_data("moons"))(x)


def test_an_evaluator_measures_real_data_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("manifold16")
    evaluate, drawn = Evaluator(data), []
    real = EndlessData.real

    def counted(own: EndlessData, count: int, seed: int, split: Split) -> Tensor:
        drawn.append(split)
        return real(own, count, seed, split)

    monkeypatch.setattr(EndlessData, "real", counted)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
    assert evaluate(x) == evaluate(x)
    assert sorted(drawn) == ["test", "train", "valid"]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((2,), 4096),
        ((16,), 1024),
        ((64,), 256),
        ((1, 8, 8), 256),
        ((1, 28, 28), 32),
        ((3, 32, 32), 16),
        ((3, 64, 64), 4),
        ((3, 512, 512), 2),
    ],
    ids=str,
)
def test_batches_hold_about_as_many_pixels_or_numbers(shape: tuple[int, ...], rows: int) -> None:
    assert batch_size(shape) == rows
    assert batch_size(shape, "cuda") >= rows

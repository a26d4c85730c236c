"""Stores and simulation: rows that depend on nothing but their index, files that are whole or rejected."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from bezierdistill import store as store_module
from bezierdistill.curves import BezierCurve
from bezierdistill.fields import Blend, Field, GaussianMixture
from bezierdistill.simulate import Simulation, simulate_rows
from bezierdistill.solvers import solve, time_grid
from bezierdistill.sources import BLOCK, block_generator, noise
from bezierdistill.store import MANIFEST, CurveStore, CurveWriter
from conftest import CountedField, close, gaussian

RECIPE: dict[str, Any] = {"degree": 4, "shape": [2], "seed": 7}
COUNT = 230


def draw_rows(start: int, rows: int) -> Tensor:
    return noise(7, start, rows, (2,))


def draw_starts(start: int, rows: int) -> tuple[Tensor, None]:
    return draw_rows(start, rows), None


def simulate(
    folder: Path, field: Field, batch: int = 50, draw: Callable[[int, int], tuple[Tensor, None]] = draw_starts, resume: bool = False
) -> CurveStore:
    simulate_rows(Simulation(field), draw, COUNT, CurveWriter(folder, RECIPE, resume), batch)
    return CurveStore.open(folder)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 60 * 5 * 2 * 4)  # sixty curves


@pytest.fixture
def store(tmp_path: Path, mixture: GaussianMixture) -> CurveStore:
    return simulate(tmp_path / "store", mixture)


@pytest.mark.parametrize("size", [(3,), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_written_is_read(size: tuple[int, ...], dtype: torch.dtype, tmp_path: Path, generator: torch.Generator) -> None:
    points = torch.randn(4, 101, *size, generator=generator, dtype=torch.float64).to(dtype)
    writer = CurveWriter(tmp_path, {"degree": 3, "shape": list(size)})
    for k, part in enumerate(points.split(7, 1)):
        writer.append(BezierCurve(part), 10 * part.shape[1])
        assert writer.rows <= 7 * (k + 1)
    writer.close()
    store = CurveStore.open(tmp_path)
    assert len(store.shards) > 1
    assert len(store) == 101
    assert store.manifest["passes"] == 1010
    everything = torch.arange(101)
    assert torch.equal(store.curves(everything).points, points.float())
    some = torch.tensor([100, 0, 57, 57, 3])
    assert torch.equal(store.curves(some).points, points[:, some].float())
    assert list(store.verify()) == []
    batch, cond = store.batch(5000, torch.Generator().manual_seed(1))
    assert cond is None
    assert torch.equal(batch.points, store.batch(5000, torch.Generator().manual_seed(1))[0].points)
    assert set(batch.source[:, 0].flatten().tolist()) == set(points[0, :, 0].float().flatten().tolist())  # every row, no other


@pytest.mark.parametrize("bad", [COUNT, -COUNT - 1, -1])
def test_rows_outside_the_store_are_rejected(store: CurveStore, bad: int) -> None:
    with pytest.raises((IndexError, ValueError)):
        store.curves(torch.tensor([0, bad]))


@pytest.mark.parametrize("batch", [1, 17, 64, 1000])
def test_rows_are_the_same_whatever_the_batch(batch: int, store: CurveStore, mixture: GaussianMixture, tmp_path: Path) -> None:
    other = simulate(tmp_path / "other", mixture, batch)
    assert len(other) == COUNT
    rows = torch.arange(COUNT)
    assert torch.equal(other.curves(rows).source, store.curves(rows).source)
    torch.testing.assert_close(other.curves(rows).points, store.curves(rows).points, rtol=1e-6, atol=1e-6)


def test_a_stopped_simulation_is_not_read_and_continues_to_the_same_store(
    store: CurveStore, mixture: GaussianMixture, tmp_path: Path
) -> None:
    def stop(start: int, rows: int) -> tuple[Tensor, None]:
        if start >= 150:
            raise KeyboardInterrupt
        return draw_starts(start, rows)

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        simulate(folder, mixture, draw=stop)
    with pytest.raises(ValueError, match=r"not complete \(100 rows so far\)"):
        CurveStore.open(folder)
    with pytest.raises(ValueError, match="already holds a curve store"):
        CurveWriter(folder, RECIPE)
    with pytest.raises(ValueError, match="made with other seed"):
        CurveWriter(folder, RECIPE | {"seed": 8}, resume=True)
    field = CountedField(mixture)
    resumed = simulate(folder, field, resume=True)
    assert field.calls == 3 * 16  # rows 100..230 only
    assert resumed.manifest == store.manifest  # checksums and passes too
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in store.folder.iterdir())
    again = CountedField(mixture)
    simulate(folder, again, resume=True)
    assert again.calls == 0


def test_progress_and_passes_are_counted(tmp_path: Path, mixture: GaussianMixture) -> None:
    done: list[int] = []
    field = CountedField(mixture, passes=3)
    simulate_rows(Simulation(field, steps=5), draw_starts, 120, CurveWriter(tmp_path, RECIPE), 50, done.append)
    assert done == [0, 50, 50, 20]
    assert field.calls == 3 * 10
    assert CurveStore.open(tmp_path).manifest["passes"] == 120 * 3 * 10


def test_nan_states_stop_the_simulation_and_name_their_rows(tmp_path: Path, mixture: GaussianMixture) -> None:
    def draw(start: int, rows: int) -> tuple[Tensor, None]:
        x = draw_rows(start, rows)
        x[max(0, 130 - start) :] *= torch.nan if start <= 130 < start + rows else 1
        return x, None

    with pytest.raises(ValueError, match=r"in 20 rows \(first: row 130\)"):
        simulate(tmp_path, mixture, draw=draw)
    with pytest.raises(ValueError, match="not complete"):
        CurveStore.open(tmp_path)


@pytest.mark.parametrize("index", [0, -1])
def test_damaged_shards_are_found(index: int, store: CurveStore) -> None:
    path = store.folder / store.manifest["shards"][index]["file"]
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert list(CurveStore.open(store.folder).verify()) == [f"{path} differs from its checksum"]
    for cut in (content[:-8], b"", None):
        path.unlink() if cut is None else path.write_bytes(cut)
        with pytest.raises(ValueError, match=f"{path.name} is missing, cut off or damaged"):
            CurveStore.open(store.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "'bezierdistill-curves' version 2, expected 'bezierdistill-curves' version 1"),
        ({"format": "parquet"}, "'parquet' version 1, expected"),
        ({"recipe": {"degree": 4}}, "lacks degree or shape"),
        ({"recipe": RECIPE | {"degree": 3}}, r"shape \(100, 5, 2\), its manifest says \(100, 4, 2\)"),
        ({"shards": [], "rows": 0}, "holds no curve"),
    ],
)
def test_manifests_that_do_not_fit_are_rejected(changes: dict[str, Any], message: str, store: CurveStore) -> None:
    (store.folder / MANIFEST).write_text(json.dumps(store.manifest | changes))
    with pytest.raises(ValueError, match=message):
        CurveStore.open(store.folder)


def test_what_is_no_store_is_rejected(store: CurveStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve store at"):
        CurveStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="curve store"):
        CurveStore.open(store.folder / MANIFEST)  # a file, not a folder
    for text, message in [("{", "is no valid JSON"), ("[]", "holds a list, expected a JSON object"), ("{}", "is None version None")]:
        (store.folder / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=message):
            CurveStore.open(store.folder)


@pytest.mark.parametrize("backwards", [False, True])
def test_fitted_curves_end_where_the_solver_ends(backwards: bool, mixture: GaussianMixture) -> None:
    start = draw_rows(0, 40).double()
    simulation = Simulation(mixture, steps=20, backwards=backwards)
    curve, passes = simulation.curves(start)
    end = solve(mixture, start, simulation.times)
    assert torch.equal(curve.data if backwards else curve.source, start)
    close(curve.source if backwards else curve.data, end.state)
    assert passes == end.passes == 40


def test_the_higher_the_degree_the_nearer_the_fit_is_to_the_path(mixture: GaussianMixture) -> None:
    start = draw_rows(0, 40).double()
    middle = solve(mixture, start, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "rk4").state
    fits = [Simulation(mixture, degree, steps=20).curves(start)[0] for degree in (1, 4, 6)]
    errors = [float((fit.point(0.5) - middle).square().mean()) for fit in fits]
    assert errors[0] > 10 * errors[1] > 10 * errors[2]


@pytest.mark.parametrize("backwards", [False, True])
def test_hermite_guides_have_the_field_at_both_ends(backwards: bool, mixture: GaussianMixture) -> None:
    field = CountedField(mixture, passes=2)
    simulation = Simulation(field, 3, "hermite", steps=6, backwards=backwards)
    curve, passes = simulation.curves(draw_rows(0, 9).double())
    close(curve.velocity(0.0), mixture(curve.source, 0.0))
    close(curve.velocity(1.0), mixture(curve.data, 1.0))
    assert passes == 2 * field.calls == 2 * (12 + 2)


def test_endpoint_guides_are_where_each_teacher_ends() -> None:
    laws = [gaussian([1.0, 0.0], [0.5, 2.0]), gaussian([0.0, -1.0], [1.5, 0.3])]
    teachers = [CountedField(law) for law in laws]
    blend, x0 = Blend(teachers, torch.tensor([1.25, -0.25])), draw_rows(0, 9).double()
    curve, passes = Simulation(blend, 3, "endpoints", teachers, steps=40).curves(x0)
    assert torch.equal(curve.source, x0)
    for guide, law in zip(curve.points[1:-1], laws, strict=True):
        torch.testing.assert_close(guide, law.means + law.stds * x0, rtol=1e-3, atol=1e-3)  # Heun on 40 steps
    assert torch.equal(curve.data, solve(Blend(laws, torch.tensor([1.25, -0.25])), x0, time_grid(40)).state)
    assert passes == sum(teacher.calls for teacher in teachers) == 2 * 80 + 2 * 80


def test_a_higher_degree_than_the_guides_give_is_the_same_curve() -> None:
    field, x0 = gaussian(0.7, 0.4), noise(0, 0, 9, (1,)).double()
    for guides in ("hermite", "endpoints"):
        low = Simulation(field, 3, guides, (field, field)).curves(x0)[0]
        high = Simulation(field, 5, guides, (field, field)).curves(x0)[0]
        assert high.degree == 5
        for t in (0.0, 0.3, 0.8, 1.0):
            torch.testing.assert_close(high.point(t), low.point(t))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degree": 0}, "degree is 0"),
        ({"degree": 4, "steps": 3}, "a fit of degree 4 needs 3 or more distinct inner times"),
        ({"degree": 2, "guides": "hermite"}, "expected 3 or more: a cubic"),
        ({"degree": 1, "guides": "endpoints", "teachers": (gaussian(0.0, 1.0),)}, "expected 2 or more: one guide for each of 1 teachers"),
        ({"steps": 0}, "steps is 0"),
        ({"guides": "spline"}, "guides"),
    ],
)
def test_simulations_that_cannot_be_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(gaussian(0.0, 1.0), **settings)


def test_noise_rows_do_not_depend_on_the_chunks() -> None:
    whole = noise(3, 0, 3000, (2, 2))
    for chunk in (1, 700, BLOCK, 2999):
        parts = [noise(3, start, min(chunk, 3000 - start), (2, 2)) for start in range(0, 3000, chunk)][: 3000 // chunk + 1]
        assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(9)
    assert torch.equal(noise(3, 1000, 100, (2, 2)), whole[1000:1100])
    assert not torch.equal(noise(4, 0, 100, (2, 2)), whole[:100])
    assert not torch.equal(whole[:BLOCK], whole[BLOCK : 2 * BLOCK])


def test_noise_is_standard_normal_and_blocks_are_independent() -> None:
    x = noise(11, 0, 50 * BLOCK, (2,)).double()
    n = len(x)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert ((x**power).mean(0) - moment).abs().max() < 4 * math.sqrt(variance / n)
    assert kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float((x[:, 0] * x[:, 1]).mean())) < 4 / math.sqrt(n)
    assert abs(float((x[:-BLOCK] * x[BLOCK:]).mean())) < 4 / math.sqrt(2 * n)
    seeds = [block_generator(seed, block).initial_seed() for seed in range(30) for block in range(30)]
    assert len(set(seeds)) == 900

"""Stores and simulation: rows that depend on nothing but their index, files that are whole or
rejected."""

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend, Field, GaussianMixture
from bezierdistill.noise import Stream, noise
from bezierdistill.records import (
    Conditions,
    CurveRecipe,
    TeacherRef,
    to_json,
    write_sealed,
)
from bezierdistill.run import MADE, RUN, Run
from bezierdistill.simulation import Simulation
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.simulate import CONTENTS, CurveSettings
from bezierdistill.store import (
    MANIFEST,
    CurveStore,
    CurveWriter,
    held_recipe,
    repair,
    simulate_shards,
)
from bezierdistill.store.manifest import COPY, record_file
from conftest import CountedField, close, gaussian

RECIPE = CurveRecipe(degree=4, shape=(2,), seed=7)
COUNT = 230
SHARD_BYTES = 60 * 5 * 2 * 4  # sixty curves


def draw_rows(start: int, rows: int) -> Tensor:
    return noise(7, Stream.SIMULATE, range(start, start + rows), (2,))


def draw_starts(start: int, rows: int) -> tuple[Tensor, None]:
    return draw_rows(start, rows), None


def simulate(
    folder: Path,
    field: Field,
    batch: int = 50,
    draw: Callable[[int, int], tuple[Tensor, None]] = draw_starts,
    shard_bytes: int = SHARD_BYTES,
    **more: Any,
) -> CurveStore:
    writer = CurveWriter(folder, replace(RECIPE, **more))
    plans = writer.plan(COUNT, batch, shard_bytes)
    simulate_shards(Simulation(field), draw, plans, writer, batch, seed=7)
    writer.close(plans)
    return CurveStore.open(folder, small=0)


def everything(store: CurveStore) -> Tensor:
    return store.curves(torch.arange(len(store))).points


def written(
    folder: Path,
    control: Tensor,
    batch: int = 7,
    cond: Tensor | None = None,
    shard_bytes: int = SHARD_BYTES,
    **more: Any,
) -> CurveStore:
    """A store of given control points ``(degree + 1, rows, *shape)``, read from its files."""
    size = 0 if cond is None else cond.shape[1]
    shape = tuple(control.shape[2:])
    recipe = CurveRecipe(
        degree=len(control) - 1, shape=shape, conditions=Conditions(size=size), **more
    )
    writer = CurveWriter(folder, recipe)
    plans = writer.plan(control.shape[1], batch, shard_bytes)
    for plan in plans:
        rows = slice(plan.first, plan.first + plan.rows)
        packed = writer.pack(BezierCurve(control[:, rows]), None if cond is None else cond[rows])
        writer.write(plan, [packed], 10 * plan.rows, seed=7)
    writer.close(plans)
    return CurveStore.open(folder, small=0)


@pytest.fixture
def store(tmp_path: Path, mixture: GaussianMixture) -> CurveStore:
    return simulate(tmp_path / "store", mixture)


@pytest.mark.parametrize("size", [(3,), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_written_is_read(
    size: tuple[int, ...], dtype: torch.dtype, tmp_path: Path, generator: torch.Generator
) -> None:
    points = torch.randn(4, 101, *size, generator=generator, dtype=torch.float64).to(dtype)
    store = written(tmp_path, points)
    assert len(store.shards) > 1
    assert len(store) == 101
    assert store.manifest.passes == 1010
    assert torch.equal(everything(store), points.float())
    some = torch.tensor([100, 0, 57, 57, 3])
    assert torch.equal(store.curves(some).points, points[:, some].float())
    assert list(store.verify()) == []
    batch, cond = store.batch(5000, torch.Generator().manual_seed(1))
    assert cond is None
    assert torch.equal(batch.points, store.batch(5000, torch.Generator().manual_seed(1))[0].points)
    assert set(batch.source[:, 0].flatten().tolist()) == set(
        points[0, :, 0].float().flatten().tolist()
    )  # every row, no other


@pytest.mark.parametrize("bad", [COUNT, -COUNT - 1, -1])
def test_rows_outside_the_store_are_rejected(store: CurveStore, bad: int) -> None:
    with pytest.raises((IndexError, ValueError)):
        store.curves(torch.tensor([0, bad]))


@pytest.mark.parametrize("batch", [1, 17, 64, 1000])
def test_rows_are_the_same_whatever_the_batch(
    batch: int, store: CurveStore, mixture: GaussianMixture, tmp_path: Path
) -> None:
    other = simulate(tmp_path / "other", mixture, batch)
    assert len(other) == COUNT
    assert torch.equal(everything(other)[0], everything(store)[0])
    torch.testing.assert_close(everything(other), everything(store), rtol=1e-6, atol=1e-6)


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
    with pytest.raises(ValueError, match="not complete: run the simulate that makes it again"):
        CurveStore.open(folder)
    with pytest.raises(ValueError, match="made with other seed"):
        CurveWriter(folder, replace(RECIPE, seed=8))
    field = CountedField(mixture)
    resumed = simulate(folder, field)
    assert field.calls == 2 * 16  # rows 150..230 only
    assert resumed.manifest == store.manifest  # checksums and passes too
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in store.folder.iterdir()
    )
    again = CountedField(mixture)
    simulate(folder, again)
    assert again.calls == 0


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_any_number_of_ranks_writes_the_same_files(
    ranks: int, store: CurveStore, mixture: GaussianMixture, tmp_path: Path
) -> None:
    writers = [CurveWriter(tmp_path / "other", RECIPE) for _ in range(ranks)]
    plans = writers[0].plan(COUNT, 50, SHARD_BYTES)
    for rank in reversed(range(ranks)):
        simulate_shards(
            Simulation(mixture), draw_starts, plans[rank::ranks], writers[rank], 50, seed=7
        )
    writers[0].close(plans)
    names = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert names == sorted(path.name for path in store.folder.iterdir())
    assert all(
        (tmp_path / "other" / name).read_bytes() == (store.folder / name).read_bytes()
        for name in names
    )


def test_a_store_is_not_closed_before_every_shard_is_there(
    mixture: GaussianMixture, tmp_path: Path
) -> None:
    writer = CurveWriter(tmp_path, RECIPE)
    plans = writer.plan(COUNT, 50, SHARD_BYTES)
    simulate_shards(Simulation(mixture), draw_starts, plans[::2], writer, 50)
    with pytest.raises(ValueError, match="no record of a shard"):
        writer.close(plans)
    with pytest.raises(ValueError, match="not complete"):
        CurveStore.open(tmp_path)


def test_progress_and_passes_are_counted(tmp_path: Path, mixture: GaussianMixture) -> None:
    done: list[int] = []
    field = CountedField(mixture, passes=3)
    writer = CurveWriter(tmp_path, RECIPE)
    simulate_shards(
        Simulation(field, steps=5),
        draw_starts,
        writer.plan(120, 50, SHARD_BYTES),
        writer,
        50,
        done.append,
    )
    writer.close(writer.plan(120, 50, SHARD_BYTES))
    assert done == [50, 50, 20]
    assert field.calls == 3 * 10
    assert CurveStore.open(tmp_path).manifest.passes == 120 * 3 * 10


def spoilt(*bad: int) -> Callable[[int, int], tuple[Tensor, None]]:
    """Starts with NaN in some rows."""

    def draw(start: int, rows: int) -> tuple[Tensor, None]:
        x = draw_rows(start, rows)
        x[[row - start for row in bad if start <= row < start + rows]] = torch.nan
        return x, None

    return draw


def test_nan_states_stop_the_simulation_and_name_their_rows(
    tmp_path: Path, mixture: GaussianMixture
) -> None:
    with pytest.raises(ValueError, match=r"in 20 rows so far \(130, 131, .*139, \.\.\.\)"):
        simulate(tmp_path, mixture, draw=spoilt(*range(130, 150)))
    with pytest.raises(ValueError, match="not complete"):
        CurveStore.open(tmp_path)
    with pytest.raises(ValueError, match=r"in 1 rows so far \(130, "):  # two in a hundred
        simulate(tmp_path, mixture, draw=spoilt(130))


def test_teachers_that_give_nan_alone_are_named(tmp_path: Path, mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="in 50 rows so far"):
        simulate(tmp_path, mixture, draw=spoilt(*range(COUNT)))


@pytest.mark.parametrize("noise_kept", ["stored", "seed"])
def test_a_few_nan_rows_are_left_out_and_the_rest_keep_their_rows(
    noise_kept: str, tmp_path: Path, mixture: GaussianMixture
) -> None:
    one = 10**9  # bytes of a shard
    store = simulate(tmp_path / "a", mixture, 50, spoilt(3, 229), one, noise=noise_kept)
    whole = simulate(tmp_path / "b", mixture, 50, draw_starts, one, noise=noise_kept)
    kept = [row for row in range(COUNT) if row not in (3, 229)]
    assert (len(store), store.skipped, store.shards[0].skipped) == (228, 2, (3, 229))
    assert store.manifest.passes == whole.manifest.passes  # they were spent
    assert torch.equal(everything(store), everything(whole)[:, kept])


@pytest.mark.parametrize("index", [0, -1])
def test_damaged_shards_are_found(index: int, store: CurveStore) -> None:
    path = store.folder / store.shards[index].file
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert list(CurveStore.open(store.folder).verify()) == [f"{path} differs from its checksum"]
    for cut in (content[:-8], b"", None):
        path.unlink() if cut is None else path.write_bytes(cut)
        with pytest.raises(
            ValueError,
            match=f"{path.name} (is missing|has [0-9,]+ bytes, its record says .*): .* --repair",
        ):
            CurveStore.open(store.folder)


def run_of(folder: Path) -> None:
    """Do nothing in a folder as a verb would, which leaves its records."""
    config = CurveSettings()
    with Run(folder, "simulate", config, CONTENTS):
        pass


def test_every_single_flipped_bit_of_what_is_read_is_found(
    mixture: GaussianMixture, tmp_path: Path
) -> None:
    run_of(tmp_path)
    store = simulate(tmp_path, mixture)
    everything = [*store.verify_records(), *store.verify()]
    assert everything == []
    rng = random.Random(0)
    files = [MANIFEST, COPY, MADE, RUN, *(shard.file for shard in store.shards)]
    for _ in range(300):
        path = store.folder / rng.choice(files)
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            opened = CurveStore.open(store.folder)
            (problem,) = [*opened.verify_records(), *opened.verify()]
            assert problem.startswith(str(path))
        except UserError as error:
            assert path.name == MANIFEST, error  # noqa: PT017
        path.write_bytes(content)
    assert [*store.verify_records(), *store.verify()] == []
    (store.folder / COPY).unlink()
    assert list(store.verify_records()) == [
        f"{store.folder / COPY} is missing or differs from {MANIFEST}"
    ]


@pytest.mark.parametrize(
    "lost", [[0], [1, 3], [MANIFEST], [0, MANIFEST], [COPY], [2, COPY]], ids=str
)
def test_repair_makes_just_the_damaged_shards_again(
    lost: list[Any], store: CurveStore, mixture: GaussianMixture
) -> None:
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    names = [name if isinstance(name, str) else store.shards[name].file for name in lost]
    shards = [name for name in names if name.startswith("shard")]
    for name in names:
        (store.folder / name).write_bytes(before[name][:-1] + b"\x01")
    assert repair(store.folder, RECIPE) == shards
    field = CountedField(mixture)
    simulate(store.folder, field)
    assert field.calls == 16 * len(shards)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_repair_refuses_another_store(store: CurveStore) -> None:
    with pytest.raises(ValueError, match="made with other seed"):
        repair(store.folder, replace(RECIPE, seed=8))
    with pytest.raises(ValueError, match="no curve store"):
        repair(store.folder / "nowhere", RECIPE)


def test_a_damaged_record_of_a_stopped_store_is_made_again(
    store: CurveStore, mixture: GaussianMixture, tmp_path: Path
) -> None:
    writer = CurveWriter(tmp_path, RECIPE)
    plans = writer.plan(COUNT, 50, SHARD_BYTES)
    simulate_shards(Simulation(mixture), draw_starts, plans, writer, 50, seed=7)
    for index, content in ((0, b""), (1, b"{}"), (2, record_file(tmp_path, 3).read_bytes())):
        record_file(tmp_path, index).write_bytes(content)
    assert [writer.finished(plan) for plan in plans] == [False, False, False, True, True]
    assert simulate(tmp_path, mixture).manifest == store.manifest


def stored_bytes(store: CurveStore) -> float:
    return sum(shard.bytes for shard in store.shards) / len(store)


def test_a_byte_a_number_is_off_by_a_510th_of_the_range(
    tmp_path: Path, generator: torch.Generator
) -> None:
    scales = 10.0 ** torch.randint(-4, 5, (4, 300, 1, 1, 1), generator=generator)
    points = torch.randn(4, 300, 3, 8, 8, generator=generator) * scales
    points[:, 7] = 0.25  # a constant has no range
    store = written(tmp_path, points, 300, None, 10**7, points="uint8")
    read, span = everything(store), points.flatten(2).amax(2) - points.flatten(2).amin(2)
    error = (read - points).flatten(2).abs().amax(2)
    assert (error <= span / 510 * 1.001 + 1e-7 * points.flatten(2).abs().amax(2)).all()
    assert error.max() > 0.9 * span.max() / 510
    assert store.error == pytest.approx(float(error.max()))
    assert torch.equal(read[:, 7], points[:, 7])


def test_images_of_bytes_are_kept_exactly_by_bytes(
    tmp_path: Path, generator: torch.Generator
) -> None:
    images = torch.randint(0, 256, (2, 20, 1, 8, 8), generator=generator) / 127.5 - 1
    images[:, :, 0, 0, :2] = torch.tensor([-1.0, 1.0])  # the whole range
    store = written(tmp_path, images, points="uint8")
    assert store.error < 1e-6


@pytest.mark.parametrize(
    "more", [{}, {"points": "uint8", "noise": "seed"}], ids=["plain", "packed"]
)
def test_a_small_store_is_read_once_and_gives_the_same_rows(
    more: dict[str, Any], tmp_path: Path, generator: torch.Generator
) -> None:
    cond = torch.randn(130, 2, generator=generator) if more else None
    large = written(tmp_path, torch.randn(4, 130, 3, generator=generator), cond=cond, **more)
    size = 130 * (4 * 3 + 2 * bool(more)) * 4
    small, rows = CurveStore.open(tmp_path, size), torch.tensor([129, 0, 60, 60, 7])
    assert small._small is not None
    assert torch.equal(small.curves(rows).points, large.curves(rows).points)
    given = small.conditions(rows)
    assert (given is None) == (cond is None)
    assert given is None or cond is None or torch.equal(given, cond[rows])
    assert CurveStore.open(tmp_path, size - 1)._small is None


def test_bfloat16_keeps_eight_bits(tmp_path: Path, generator: torch.Generator) -> None:
    points = torch.randn(3, 50, 4, generator=generator)
    store = written(tmp_path, points, points="bfloat16")
    assert torch.equal(everything(store), points.bfloat16().float())
    assert store.error == pytest.approx(float((points.bfloat16().float() - points).abs().max()))


def test_noise_comes_back_from_its_seed_bit_for_bit(
    tmp_path: Path, generator: torch.Generator
) -> None:
    x0 = noise(7, Stream.SIMULATE, range(130), (2,))
    points = torch.stack([x0, *torch.randn(4, 130, 2, generator=generator)])
    store = written(tmp_path, points, noise="seed")
    assert len(store.shards) > 1
    assert torch.equal(everything(store), points)
    rows = torch.tensor([129, 3, 77, 3])
    assert torch.equal(store.curves(rows).points, points[:, rows])


def test_a_cifar_curve_takes_9300_bytes(tmp_path: Path, generator: torch.Generator) -> None:
    points = torch.randn(4, 256, 3, 32, 32, generator=generator)
    store = written(tmp_path, points, 256, None, 10**7, points="uint8", noise="seed")
    assert stored_bytes(store) <= 9300


def test_conditions_are_read_with_their_rows(tmp_path: Path, generator: torch.Generator) -> None:
    points, cond = (
        torch.randn(2, 200, 3, generator=generator),
        torch.randn(200, 5, generator=generator),
    )
    store = written(tmp_path, points, cond=cond, points="uint8")
    rows = torch.tensor([199, 0, 55, 56, 0])
    given = store.conditions(rows)
    assert given is not None
    assert torch.equal(given, cond[rows])


def order(store: CurveStore, seed: int, batch: int) -> np.ndarray:
    """The rows of an epoch, told by their sources."""
    sources = {x: k for k, x in enumerate(everything(store)[0, :, 0].tolist())}
    read = itertools.islice(store.epochs(batch, seed), len(store) // batch)
    return np.array([sources[x] for curve, _ in read for x in curve.source[:, 0].tolist()])


@pytest.mark.parametrize("batch", [1, 23, 46, 230])
def test_the_order_of_an_epoch_is_a_seeded_permutation(batch: int, store: CurveStore) -> None:
    first = order(store, 3, batch)
    assert sorted(first) == list(range(COUNT))
    assert (first == order(store, 3, 10)).all()  # whatever the batch
    assert not (first == order(store, 4, batch)).all()
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / math.sqrt(COUNT)
    assert abs(np.corrcoef(first, np.arange(COUNT))[0, 1]) < 4 / math.sqrt(COUNT)


def test_a_batch_may_hold_several_epochs(store: CurveStore) -> None:
    sources = next(store.epochs(2 * COUNT + 30, 3, 1))[0].source  # rows 490 .. 980
    assert len(sources) == 490
    whole = [x for x, _ in itertools.islice(store.epochs(10, 3), 49, 98)]
    assert torch.equal(sources, torch.cat([curve.source for curve in whole]))
    assert len({*sources[200:430, 0].tolist()}) == COUNT  # the third epoch, rows 460 + 230


def test_epochs_read_every_row_once_and_continue_anywhere(store: CurveStore) -> None:
    def sources(start: int, batches: int, part: slice = slice(None)) -> list[Tensor]:
        return [
            curve.source for curve, _ in itertools.islice(store.epochs(46, 3, start, part), batches)
        ]

    read = sources(0, 10)
    first = torch.cat(read[:5])
    assert sorted(first.tolist()) == sorted(everything(store)[0].tolist())
    assert sorted(torch.cat(read[5:]).tolist()) == sorted(first.tolist())
    assert not torch.equal(torch.cat(read[5:]), first)
    assert all(torch.equal(a, b) for a, b in zip(sources(7, 3), read[7:], strict=True))
    halves = zip(sources(0, 10, slice(0, 23)), sources(0, 10, slice(23, 46)), strict=True)
    assert all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(halves, read, strict=True)
    )


def changed(store: CurveStore, **changes: Any) -> None:
    """Change a store's manifest; its checksum fits."""
    write_sealed(store.folder / MANIFEST, {**to_json(store.manifest), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"version": 5},
            "version '5', expected format 'bezierdistill-curves', version 4: it was written by"
            " another version",
        ),
        ({"version": 3}, "version '3', expected .* version 4: .* make it again"),
        ({"format": "parquet"}, "format 'parquet', version '4', expected"),
        ({"recipe": {"degree": 4}}, r"missing required field shape - at \$.recipe"),
        (
            {"recipe": {"degree": 3, "shape": [2]}},
            r"shape \(50, 5, 2\), its manifest says torch.float32, \(50, 4, 2\)",
        ),
        ({"recipe": {"degree": 4, "shape": [10**9, 10**9]}}, "degree and shape is"),
        ({"recipe": {"degree": 4, "shape": [2], "points": "float8"}}, r"'float8' - at .*points"),
        ({"recipe": {"degree": 4, "shape": [2], "data": "digits"}}, "unknown field data"),
        ({"shards": []}, "holds no curve"),
        ({"shards": [{}]}, "missing required field file"),
        ({"rows": 231}, "unknown field rows"),
    ],
)
def test_manifests_that_do_not_fit_are_rejected(
    changes: dict[str, Any], message: str, store: CurveStore
) -> None:
    changed(store, **changes)
    with pytest.raises(UserError, match=message):
        CurveStore.open(store.folder).curves(torch.arange(4))


def test_recipes_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    recipe = replace(RECIPE, points="float8")
    with pytest.raises(UserError, match=r"recipe cannot be used: .*float8"):
        CurveWriter(tmp_path, recipe)
    assert not list(tmp_path.iterdir())


def test_a_store_is_continued_wherever_its_teachers_lie_now(tmp_path: Path) -> None:
    here = TeacherRef(path="../teacher", digest="a1")
    recipe = replace(RECIPE, teachers=(here,), through=here)
    CurveWriter(tmp_path, recipe)
    there = TeacherRef(path="/elsewhere/teacher", digest="a1")
    CurveWriter(tmp_path, replace(recipe, teachers=(there,), through=there))
    other = TeacherRef(path="../teacher", digest="b2")
    with pytest.raises(UserError, match="made with other teachers, count: choose another"):
        CurveWriter(tmp_path, replace(recipe, teachers=(other,), count=3))
    with pytest.raises(UserError, match="made with other through: choose another"):
        CurveWriter(tmp_path, replace(recipe, through=other))


def test_what_made_a_store_is_read_from_whatever_is_whole(store: CurveStore) -> None:
    assert held_recipe(store.folder) == RECIPE
    (store.folder / MANIFEST).write_text("{")
    assert held_recipe(store.folder) == RECIPE
    (store.folder / COPY).write_text("{")
    assert held_recipe(store.folder) is None
    assert held_recipe(store.folder / "nowhere") is None


def test_the_digest_of_a_store_tells_its_curves_not_its_place(
    store: CurveStore, mixture: GaussianMixture, tmp_path: Path
) -> None:
    assert simulate(tmp_path / "again", mixture).digest == store.digest
    other = simulate(tmp_path / "other", mixture, draw=spoilt(3), shard_bytes=10**9)
    assert other.digest != store.digest


def test_a_manifest_that_was_changed_by_hand_is_rejected(store: CurveStore) -> None:
    text = (store.folder / MANIFEST).read_text()
    (store.folder / MANIFEST).write_text(text.replace('"seed": 7', '"seed": 8'))
    with pytest.raises(ValueError, match=r"manifest\.json differs from its checksum"):
        CurveStore.open(store.folder)


def test_a_shard_cannot_claim_a_file_outside_its_folder(store: CurveStore) -> None:
    shards = to_json(store.shards)
    shards[0]["file"] = "../outside.safetensors"
    changed(store, shards=shards)
    with pytest.raises(
        UserError, match=r"file is '\.\./outside\.safetensors', expected a plain name"
    ):
        CurveStore.open(store.folder)


def test_what_is_no_store_is_rejected(store: CurveStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve store at"):
        CurveStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="curve store"):
        CurveStore.open(store.folder / MANIFEST)  # a file, not a folder
    for text, message in [
        ("{", "is no valid JSON"),
        ("[]", "has format 'None', version 'None', expected"),
        ("{}", "has format 'None', version 'None', expected"),
    ]:
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
def test_hermite_guides_have_the_field_at_both_ends(
    backwards: bool, mixture: GaussianMixture
) -> None:
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
        torch.testing.assert_close(
            guide, law.means + law.stds * x0, rtol=1e-3, atol=1e-3
        )  # Heun on 40 steps
    assert torch.equal(
        curve.data, solve(Blend(laws, torch.tensor([1.25, -0.25])), x0, time_grid(40)).state
    )
    assert passes == sum(teacher.calls for teacher in teachers) == 2 * 80 + 2 * 80


def test_a_higher_degree_than_the_guides_give_is_the_same_curve() -> None:
    field, x0 = gaussian(0.7, 0.4), noise(0, Stream.SIMULATE, range(9), (1,)).double()
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
        (
            {"degree": 1, "guides": "endpoints", "teachers": (gaussian(0.0, 1.0),)},
            "expected 2 or more: one guide for each of 1 teachers",
        ),
        ({"steps": 0}, "steps is 0"),
        ({"guides": "spline"}, "guides"),
    ],
)
def test_simulations_that_cannot_be_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(gaussian(0.0, 1.0), **settings)

"""Curves in and out: the same after export and import, whatever the format; what cannot be read is
named."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezierdistill.cli import main
from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.models.folder import find_teacher, load_model, save_model
from bezierdistill.models.model import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import Conditions, ModelCard, Passes
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.exchange import export_curves, import_curves
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.store import CurveStore, CurveWriter, merge
from bezierdistill.training.settings import LoopConfig

COUNT = 90
LOOP = LoopConfig(accelerator="cpu", warmup=0)


def teacher(folder: Path, classes: int = 0) -> Model:
    network = NetworkConfig(width=8, depth=1)
    card = ModelCard(
        kind="teacher",
        network=asdict(network),
        shape=(3,),
        scaling=Scaling((1.0,), (2.0,)),
        seed=0,
        steps=1,
        passes=Passes(training=5),
        conditions=Conditions(size=classes, frequencies=(1 / classes,) * classes)
        if classes
        else Conditions(),
        data="digits",
    )
    net = network.build((3,), 0, classes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2, torch.Generator().manual_seed(parameter.numel()))
    return save_model(folder, Model(net.eval(), card))


def curves(folder: Path, out: str, classes: int = 0, **more: Any) -> CurveStore:
    if not (folder / "teacher").exists():
        teacher(folder / "teacher", classes)
    settings = {"count": COUNT, "steps": 4, "batch": 20, "accelerator": "cpu", **more}
    return simulate(SimulateConfig((folder / "teacher",), folder / out, **settings))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CurveWriter, "plan", partialmethod(CurveWriter.plan, shard_bytes=2000))


def read(store: CurveStore) -> tuple[Tensor, Tensor | None]:
    curve, cond = store.take(torch.arange(len(store)))
    return curve.points, cond


def same(a: CurveStore, b: CurveStore) -> bool:
    """Whether two stores hold the same curves and conditions."""
    pairs = zip(read(a), read(b), strict=True)
    return all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs
    )


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize(
    "more", [{}, {"points": "uint8", "noise": "seed"}], ids=["plain", "packed"]
)
def test_an_exported_npz_holds_every_curve_and_comes_back(
    classes: int, more: dict[str, Any], tmp_path: Path
) -> None:
    store = curves(tmp_path, "c", classes, **more)
    (file,) = export_curves(store, tmp_path / "c.npz", "npz", chunk=32)
    points, cond = read(store)
    with np.load(file, allow_pickle=False) as loaded:
        assert np.array_equal(loaded["points"], points.transpose(0, 1).numpy())
        assert ("cond" in loaded) == (cond is not None)
        assert cond is None or np.array_equal(loaded["cond"], cond.numpy())
    with pytest.raises(UserError, match="exists: choose another"):
        export_curves(store, file, "npz")
    again = import_curves(file, tmp_path / "teacher", tmp_path / "again", shard_bytes=24 * 30)
    assert len(again.shards) == 3
    assert same(again, store)
    assert again.recipe.degree == store.recipe.degree
    assert again.recipe.conditions == store.recipe.conditions


def test_an_exported_file_ends_as_its_format_does(tmp_path: Path) -> None:
    store = curves(tmp_path, "c")
    assert export_curves(store, tmp_path / "pairs") == [tmp_path / "pairs.npz"]
    assert export_curves(store, tmp_path / "v1.0") == [tmp_path / "v1.0.npz"]
    assert not (tmp_path / "pairs").exists()
    with pytest.raises(UserError, match=r"pairs\.npz exists: choose another"):
        export_curves(store, tmp_path / "pairs")


@pytest.mark.parametrize("classes", [0, 4])
def test_webdataset_and_back_is_the_same_store(classes: int, tmp_path: Path) -> None:
    store = curves(tmp_path, "c", classes)
    files = export_curves(store, tmp_path / "tars", "webdataset", archive_rows=40, chunk=32)
    assert [file.name for file in files] == [
        "curves-000000.tar",
        "curves-000001.tar",
        "curves-000002.tar",
    ]
    again = import_curves(tmp_path / "tars", tmp_path / "teacher", tmp_path / "again", passes=8)
    assert again.manifest.passes == 8 * COUNT
    assert same(again, store)
    one = import_curves(files[1], tmp_path / "teacher", tmp_path / "one")
    assert torch.equal(read(one)[0], read(store)[0][:, 40:80])


def test_a_student_of_imported_curves_pays_for_them_and_for_the_teacher(tmp_path: Path) -> None:
    file = export_curves(curves(tmp_path, "c"), tmp_path / "c.npz")[0]
    again = import_curves(file, tmp_path / "teacher", tmp_path / "again", passes=8)
    student = distill(
        DistillConfig(again.folder, tmp_path / "student", steps=2, batch=8, loop=LOOP)
    )
    assert student.card.passes.curves == 8 * COUNT
    assert student.card.passes.teachers == 5
    assert student.sample(3, 1).shape == (3, 3)


@pytest.mark.parametrize("units", ["model", "data"])
@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
def test_pairs_of_arrays_become_straight_lines(units: Any, packed: bool, tmp_path: Path) -> None:
    model = teacher(tmp_path / "teacher")
    z0, z1 = np.random.default_rng(0).normal(size=(2, COUNT, 3)).astype(np.float32)
    source = tmp_path / ("pairs.npz" if packed else "pairs")
    if packed:
        np.savez_compressed(source, z0=z0, z1=z1, other=z0)
    else:
        source.mkdir()
        for name, z in (("z0", z0), ("z1", z1)):
            np.save(source / f"{name}.npy", z)
    store = import_curves(
        source, tmp_path / "teacher", tmp_path / "store", units=units, shard_bytes=24 * 30
    )
    points, _ = read(store)
    assert len(store.shards) == 3
    expected = [
        torch.from_numpy(z) if units == "model" else model.scaling.encode(z) for z in (z0, z1)
    ]
    assert torch.equal(points, torch.stack(expected))


def test_a_teacher_is_found_after_everything_has_moved(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    parts = [curves(tmp_path / "one", f"c{seed}", seed=seed) for seed in (1, 2)]
    file = export_curves(parts[0], tmp_path / "one" / "c.npz")[0]
    import_curves(file, tmp_path / "one" / "teacher", tmp_path / "one" / "sub" / "again")
    merge(tuple(part.folder for part in parts), tmp_path / "one" / "deep" / "er" / "all")
    shutil.move(tmp_path / "one", tmp_path / "two")
    for name, path in (
        ("c1", "../teacher"),
        ("sub/again", "../../teacher"),
        ("deep/er/all", "../../../teacher"),
    ):
        store = CurveStore.open(tmp_path / "two" / name)
        (ref,) = store.recipe.teachers
        assert ref.path == path
        assert find_teacher(ref, store.folder).folder == store.folder / path


@pytest.mark.parametrize(
    "more", [{}, {"points": "uint8", "noise": "seed"}], ids=["plain", "packed"]
)
def test_merged_stores_hold_the_rows_of_all(more: dict[str, Any], tmp_path: Path) -> None:
    parts = [curves(tmp_path, f"c{seed}", seed=seed, **more) for seed in (3, 1, 2)]
    whole = merge(tuple(part.folder for part in parts), tmp_path / "all")
    assert list(whole.verify()) == []
    assert (len(whole), whole.manifest.passes) == (
        3 * COUNT,
        sum(part.manifest.passes for part in parts),
    )
    assert torch.equal(read(whole)[0], torch.cat([read(part)[0] for part in parts], 1))
    (whole.folder / "manifest.json").unlink()  # killed between the two
    (whole.folder / whole.shards[0].file).unlink()
    for _ in range(2):  # goes on, and is left alone
        assert (
            merge(tuple(part.folder for part in parts), tmp_path / "all").manifest == whole.manifest
        )
    with pytest.raises(ValueError, match="holds another store"):
        merge(tuple(part.folder for part in parts[:2]), tmp_path / "all")
    with pytest.raises(ValueError, match="is not empty"):
        merge(tuple(part.folder for part in parts), tmp_path / "teacher")


def test_stores_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    first, again = curves(tmp_path, "a"), curves(tmp_path, "b", count=40)
    with pytest.raises(ValueError, match="hold row 0 of seed 0"):
        merge((first.folder, again.folder), tmp_path / "all")
    with pytest.raises(ValueError, match="made with other degree: expected stores that differ"):
        merge((first.folder, curves(tmp_path, "c", degree=2, seed=1).folder), tmp_path / "all")
    assert not (tmp_path / "all").exists()
    path = first.folder / first.shards[1].file
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ValueError, match="differs from its checksum: repair it"):
        merge((curves(tmp_path, "d", seed=5).folder, first.folder), tmp_path / "all")


def archive(path: Path, *members: tuple[str, Any]) -> Path:
    """A tar of arrays, of bytes, or of links."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
                continue
            data = io.BytesIO()
            if isinstance(content, bytes):
                data.write(content)
            else:
                np.save(data, content, allow_pickle=True)
            info.size = data.tell()
            data.seek(0)
            tar.addfile(info, data)
    return path


ROW = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.points.npy", ROW)], "expected names inside the archive"),
        ([("/etc/a.points.npy", ROW)], "expected names inside the archive"),
        ([("a.points.npy", "/etc/passwd")], "no plain file"),
        ([("a.points.npy", np.array([object()]))], "objects"),
        ([("a.points.npy", b"\x93NUMPY")], "a.points.npy"),
        (
            [("a.points.npy", np.zeros((2, 4), np.float32))],
            r"points of shape \(2, 4\), expected \(2, 3\)",
        ),
        (
            [("a.points.npy", ROW), ("b.points.npy", np.zeros((3, 3), np.float32))],
            "expected one shape",
        ),
        ([("a.points.npy", ROW * np.nan)], "NaN or infinite"),
        ([("a.z0.npy", ROW[0])], r"expected points\.npy, or z0\.npy and z1\.npy"),
        ([("a.z0.npy", ROW[0]), ("a.z1.npy", ROW[0, :2])], "expected one shape"),
        (
            [("a.points.npy", ROW), ("a.cond.npy", ROW[0])],
            "conditions of 3 numbers, the teacher takes 0",
        ),
        ([("readme.txt", b"hello")], "holds no pair"),
    ],
)
def test_archives_that_are_no_pairs_are_refused(
    members: list[tuple[str, Any]], message: str, tmp_path: Path
) -> None:
    teacher(tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        import_curves(
            archive(tmp_path / "a.tar", *members), tmp_path / "teacher", tmp_path / "store"
        )
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no arrays, expected points, or z0 and z1"),
        ({"z0": ROW}, "holds z0, expected points, or z0 and z1"),
        ({"z0": ROW, "z1": ROW, "points": ROW}, "holds points, z0, z1, expected points, or"),
        ({"z0": ROW, "z1": ROW[:1]}, r"shapes \(2, 3\), \(1, 3\), expected \(N, ...\), the same"),
        ({"points": ROW}, r"shapes \(2, 3\), expected \(N, degree \+ 1, ...\)"),
        ({"points": np.zeros(())}, r"shapes \(\), expected"),
        ({"points": ROW[:, None]}, "degree is 0"),
        ({"points": np.zeros((5, 2, 4))}, r"points of shape \(2, 4\), expected \(2, 3\)"),
        ({"points": np.zeros((0, 2, 3))}, "holds no pair"),
        ({"z0": ROW, "z1": ROW, "cond": ROW[:1]}, r"\(1, 3\), expected .* and \(N, C\)"),
        ({"z0": ROW, "z1": ROW, "cond": ROW}, "conditions of 3 numbers, the teacher takes 0"),
        ({"z0": ROW + np.inf, "z1": ROW}, "NaN or infinite"),
        ({"z0": ROW.astype(str), "z1": ROW.astype(str)}, "<U32 in it, expected integers or floats"),
        ({"z0": ROW, "z1": ROW, "cond": ROW.astype(str)}, "conditions|<U32 in it"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["npy", "npz"])
def test_arrays_that_are_no_pairs_are_refused(
    packed: bool, arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    teacher(tmp_path / "teacher")
    source = tmp_path / ("a.npz" if packed else "a")
    if packed:
        np.savez(source, **arrays)  # pyright: ignore[reportArgumentType]
    else:
        source.mkdir()
        for name, array in arrays.items():
            np.save(source / f"{name}.npy", array)
    with pytest.raises(UserError, match=message):
        import_curves(source, tmp_path / "teacher", tmp_path / "store")
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").glob("*.safetensors"))


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    teacher(tmp_path / "teacher")
    for name in ("gone", "gone.npz", "gone.tar"):
        with pytest.raises(UserError, match=rf"{name}\b.*No such file"):
            import_curves(tmp_path / name, tmp_path / "teacher", tmp_path / "store")


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:700],
    "gz": lambda data: b"\x1f\x8b" + data,
    "junk": lambda _: b"x" * 2000,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_damaged_archives_are_named(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    teacher(tmp_path / "teacher")
    path = archive(tmp_path / "a.tar", ("a.points.npy", ROW), ("b.points.npy", ROW))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar"):
        import_curves(path, tmp_path / "teacher", tmp_path / "store")


def test_a_sparse_member_without_a_map_is_named(tmp_path: Path) -> None:
    teacher(tmp_path / "teacher")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.points.npy")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        info.size = 600
        tar.addfile(info, io.BytesIO(b"x" * 600))
    with pytest.raises(
        UserError, match=r"a\.tar is no tar archive, or is packed, cut off or damaged"
    ):
        import_curves(tmp_path / "a.tar", tmp_path / "teacher", tmp_path / "store")


def test_a_member_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    teacher(tmp_path / "teacher")
    path = archive(tmp_path / "a.tar", ("a.points.npy", ROW), ("b.points.npy", ROW))
    info = tarfile.TarInfo("a.points.npy")
    info.size = 2**40
    head = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(head + path.read_bytes()[512:])
    with pytest.raises(
        UserError, match=r"a\.tar is no tar archive, .*claims 1,099,511,627,776 bytes"
    ):
        import_curves(path, tmp_path / "teacher", tmp_path / "store")


def test_the_store_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = curves(tmp_path, "c", points="uint8", noise="seed")
    curves(tmp_path, "d", seed=1, points="uint8", noise="seed")

    def run(*arguments: object) -> str:
        assert main(["store", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    facts = json.loads(run("info", store.folder, "--json"))
    assert (facts["rows"], facts["points"], facts["noise"], facts["seeds"]) == (
        COUNT,
        "uint8",
        "seed",
        [0],
    )
    assert facts["bytes_per_curve"] == pytest.approx(
        sum(shard.bytes for shard in store.shards) / COUNT, abs=0.1
    )
    assert f"rows  {COUNT}" in run("info", store.folder)
    assert "shards are whole" in run("verify", store.folder)
    assert f"{2 * COUNT} curves of 2 stores" in run(
        "merge", store.folder, tmp_path / "d", "--out", tmp_path / "all"
    )
    assert str(tmp_path / "pairs.npz") in run("export", store.folder, "--out", tmp_path / "pairs")
    assert "tars/curves-000000.tar" in run(
        "export", tmp_path / "all", "--to", "webdataset", "--out", tmp_path / "tars"
    )
    imported = run(
        "import",
        tmp_path / "tars",
        "--teacher",
        tmp_path / "teacher",
        "--out",
        tmp_path / "again",
        "--points",
        "bfloat16",
    )
    assert f"{2 * COUNT} curves of degree 4" in imported
    path = store.folder / store.shards[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert main(["store", "verify", str(store.folder)]) == 2
    out, error = capsys.readouterr()
    assert f"{path} differs from its checksum" in out
    assert f"{store.folder} has 1 file missing or damaged: simulate again with --repair" in error
    (store.folder / "made.json").write_text("{}")
    assert main(["store", "verify", str(store.folder), "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem.partition(" ")[0] for problem in problems] == [
        str(store.folder / "made.json"),
        str(path),
    ]


def test_damaged_curves_are_not_trained_on_and_repaired(tmp_path: Path) -> None:
    store = curves(tmp_path, "c")
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    path = store.folder / store.shards[2].file
    path.write_bytes(before[path.name][:-1] + b"\x07")
    config = DistillConfig(store.folder, tmp_path / "student", steps=2, batch=8, loop=LOOP)
    with pytest.raises(ValueError, match=f"{path.name} differs from its checksum"):
        distill(config)
    curves(tmp_path, "c", repair=True)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before
    assert load_model(distill(config).folder or "").card.kind == "student"


def test_a_rerun_of_a_finished_simulation_changes_nothing(tmp_path: Path) -> None:
    store = curves(tmp_path, "c")
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.folder.iterdir()
        if path.name != ".lock"
    }
    curves(tmp_path, "c")
    assert {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.folder.iterdir()
        if path.name != ".lock"
    } == before
    with pytest.raises(ValueError, match="with other points: choose another"):
        curves(tmp_path, "c", points="uint8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": "int4"}, "points is 'int4', expected one of float32"),
        ({"noise": "kept"}, "noise is 'kept', expected one of stored, seed"),
        (
            {"noise": "seed", "invert_from": "digits"},
            "noise is 'seed' and curves start from digits",
        ),
    ],
)
def test_ways_of_keeping_curves_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        SimulateConfig((tmp_path,), tmp_path, **settings)

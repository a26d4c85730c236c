"""Curves in and out of a store: written as one ``.npz`` or as WebDataset archives, made of other
people's pairs.

A WebDataset archive is a tar whose members share a key a row: ``000000000.points.npy`` (degree + 1,
*shape) and, if there are conditions, ``000000000.cond.npy``. Imported ones may hold ``KEY.z0.npy``
and ``KEY.z1.npy`` instead, source and end. Nothing is extracted: members are read from the archive
one by one, and only plain files of numbers are.
"""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.data.arrays import check_member, read_npy
from bezierdistill.errors import UserError
from bezierdistill.files import locked, whole_folder, write_atomically
from bezierdistill.models import Model, load_model
from bezierdistill.progress import progress
from bezierdistill.store import CurveStore, CurveWriter, Kept
from bezierdistill.store.codec import check_kept
from bezierdistill.store.writer import SHARD_BYTES, Plan

Rows = tuple[
    np.ndarray, np.ndarray | None
]  # points (N, degree + 1, *shape) and conditions (N, C) or None
CHUNK = 4096
ARCHIVE_ROWS = 10_000
MOST_MEMBERS = 16  # of a row that are looked at


def export_curves(store: CurveStore, out: Path, to: Literal["npz", "webdataset"]) -> list[Path]:
    """Write a store as one ``.npz`` (arrays ``points`` (N, degree + 1, *shape) and ``cond``), or as
    WebDataset archives in a folder.

    Returns:
        The files.

    Raises:
        UserError: if ``out`` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another --out")
    with progress("export", len(store)) as advance:
        if to == "npz":
            write_atomically(out, lambda temporary: _write_npz(store, temporary, advance))
            return [out]
        with whole_folder(out) as folder:
            for k, start in enumerate(range(0, len(store), ARCHIVE_ROWS)):
                rows = range(start, min(start + ARCHIVE_ROWS, len(store)))
                write_atomically(
                    folder / f"curves-{k:06d}.tar",
                    lambda path, rows=rows: _write_tar(store, path, rows),
                )
                advance(len(rows))
        return sorted(out.iterdir())


def _chunks(store: CurveStore, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    for start in range(rows.start, rows.stop, CHUNK):
        curve, cond = store.take(torch.arange(start, min(start + CHUNK, rows.stop)))
        yield curve.points.transpose(0, 1).numpy(), None if cond is None else cond.numpy()


def _write_npz(store: CurveStore, path: Path, advance: Any) -> None:
    sizes = {"points": (store.recipe["degree"] + 1, *store.recipe["shape"])}
    sizes |= {"cond": (store.condition_size,)} if store.condition_size else {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, size in sizes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                head = {"descr": "<f4", "fortran_order": False, "shape": (len(store), *size)}
                np.lib.format.write_array_header_1_0(cast(Any, member), head)
                for points, cond in _chunks(store, range(len(store))):
                    member.write(
                        np.ascontiguousarray(
                            points if name == "points" or cond is None else cond
                        ).tobytes()
                    )
                    advance(len(points) if name == "points" else 0)


def _write_tar(store: CurveStore, path: Path, rows: range) -> None:
    with tarfile.open(path, "w") as archive:
        row = rows.start
        for points, cond in _chunks(store, rows):
            for k in range(len(points)):
                _add(archive, f"{row:09d}.points.npy", points[k])
                if cond is not None:
                    _add(archive, f"{row:09d}.cond.npy", cond[k])
                row += 1


def _add(archive: tarfile.TarFile, name: str, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array), allow_pickle=False)
    member = tarfile.TarInfo(name)
    member.size = content.tell()
    content.seek(0)
    archive.addfile(member, content)


def import_curves(
    source: Path,
    teacher: Path,
    out: Path,
    passes: int = 0,
    units: Literal["model", "data"] = "model",
    points: Kept = "float32",
) -> CurveStore:
    """A store of other people's pairs or curves.

    Args:
        source: a folder with ``z0.npy`` and ``z1.npy`` (N, *shape) and, for a conditional teacher,
            ``cond.npy`` (N, C); a WebDataset ``.tar``, or a folder of them.
        teacher: the model whose samples they are: a student takes its network, units and weights.
        out: folder of the new store.
        passes: network passes that a row has cost its makers, for the account.
        units: whether points are in the teacher's units or in those of its data (bytes of images,
            ...).
        points: how control points are kept.

    Raises:
        UserError: if they cannot be read, are no states of the teacher, or are not finite.
    """
    check_kept(points)
    if passes < 0:
        raise UserError(f"passes is {passes}, expected 0 or more")
    model = load_model(teacher)
    rows = max(1, SHARD_BYTES // (8 * math.prod(model.shape)))
    chunks = (
        _archived(source, rows)
        if source.suffix == ".tar" or list(source.glob("*.tar"))
        else _arrays(source, rows)
    )
    head = next(chunks, None)
    if head is None:
        raise UserError(f"{source} holds no pair")
    degree = head[0].shape[1] - 1
    with locked(out), progress("import", None) as advance:
        writer = CurveWriter(out, _recipe(source, model, degree, points, passes, units))
        plans: list[Plan] = []
        for chunk in () if writer.complete else chain([head], chunks):
            plan = Plan(len(plans), sum(plan.rows for plan in plans), len(chunk[0]))
            plans.append(plan)
            advance(plan.rows)
            if writer.finished(plan):
                continue
            curve, cond = _states(chunk, model, degree, units, f"{source} from row {plan.first} on")
            writer.write(plan, [writer.pack(curve, cond)], passes * plan.rows)
        writer.close(plans)
    return CurveStore.open(out)


def _recipe(
    source: Path, model: Model, degree: int, points: Kept, passes: int, units: str
) -> dict[str, Any]:
    more = (
        {"conditions": model.conditions, "classes": model.frequencies, "guidance": None}
        if model.conditions
        else {}
    )
    return {
        **more,
        "degree": degree,
        "shape": list(model.shape),
        "guides": "imported",
        "weights": [[1.0]],
        "teachers": [
            {"path": str(model.folder and model.folder.resolve()), "digest": model.card["digest"]}
        ],
        "teacher_passes": model.spent,
        "scaling": asdict(model.scaling),
        "points": points,
        "imported": {"source": str(source), "passes": passes, "units": units},
    }


def _states(
    chunk: Rows, model: Model, degree: int, units: str, name: str
) -> tuple[BezierCurve, Tensor | None]:
    """A chunk as curves in the teacher's units, and its conditions."""
    points, cond = chunk
    states = [torch.from_numpy(np.array(points[:, k], np.float32)) for k in range(points.shape[1])]
    if units == "data":
        states = [model.scaling.encode(state) for state in states]
    if len(states) != degree + 1 or tuple(states[0].shape[1:]) != model.shape:
        raise UserError(
            f"{name} has points of shape {points.shape[1:]}, expected {(degree + 1, *model.shape)}"
            " as the teacher's states"
        )
    size = 0 if cond is None else cond.shape[1]
    if size != model.conditions:
        raise UserError(
            f"{name} has conditions of {size} numbers, the teacher takes {model.conditions}:"
            " expected its own"
        )
    curve, given = (
        BezierCurve(torch.stack(states)),
        None if cond is None else torch.from_numpy(np.array(cond, np.float32)),
    )
    if not bool(curve.points.isfinite().all()) or (
        given is not None and not bool(given.isfinite().all())
    ):
        raise UserError(f"{name} has NaN or infinite numbers: leave these rows out")
    return curve, given


def _arrays(folder: Path, rows: int) -> Iterator[Rows]:
    """Rows of ``z0.npy``, ``z1.npy`` and ``cond.npy``, which are mapped, not loaded."""
    z0, z1 = (read_npy(folder / name, mmap=True) for name in ("z0.npy", "z1.npy"))
    cond = read_npy(folder / "cond.npy", mmap=True) if (folder / "cond.npy").exists() else None
    if (
        z0.shape != z1.shape
        or z0.ndim < 2
        or (cond is not None and (cond.ndim != 2 or len(cond) != len(z0)))
    ):
        shapes = f"{z0.shape}, {z1.shape}" + ("" if cond is None else f", {cond.shape}")
        raise UserError(
            f"{folder} has z0, z1 and conditions of shapes {shapes}, expected (N, ...), the same,"
            " and (N, C)"
        )
    for start in range(0, len(z0), rows):
        part = slice(start, start + rows)
        yield np.stack([z0[part], z1[part]], 1), None if cond is None else cond[part]


def _archived(source: Path, rows: int) -> Iterator[Rows]:
    """Rows of WebDataset archives."""
    ready = (
        row
        for file in ([source] if source.is_file() else sorted(source.glob("*.tar")))
        for row in _rows(file)
    )
    while part := list(islice(ready, rows)):
        shapes = {points.shape for points, _ in part} | {
            None if cond is None else cond.shape for _, cond in part
        }
        if len(shapes) != 2:
            raise UserError(
                f"{source} has rows of shapes {', '.join(sorted(map(str, shapes - {None})))},"
                " expected one shape"
            )
        conds = [cond for _, cond in part if cond is not None]
        yield np.stack([points for points, _ in part]), np.stack(conds) if conds else None


def _rows(file: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Points ``(degree + 1, *shape)`` and condition ``(C,)`` or None of every key of an archive,
    whose members lie side by side.
    """
    for key, members in groupby(_members(file), lambda member: _key(member[0])):
        found = {name[len(key) + 1 :]: array for name, array in islice(members, MOST_MEMBERS)}
        if not ({"points.npy"} <= found.keys() or {"z0.npy", "z1.npy"} <= found.keys()):
            raise UserError(
                f"{file} has {', '.join(sorted(found))[:200]} of row {key[:80]}, expected"
                " points.npy, or z0.npy and z1.npy"
            )
        pair = [found[name] for name in ("z0.npy", "z1.npy") if name in found]
        if len({array.shape for array in pair}) > 1:
            raise UserError(
                f"{file} has z0 and z1 of other shapes in row {key[:80]}, expected one shape"
            )
        points = found["points.npy"] if "points.npy" in found else np.stack(pair)
        if points.ndim < 2 or ("cond.npy" in found and found["cond.npy"].ndim != 1):
            raise UserError(
                f"{file} has points of shape {points.shape} in row {key[:80]}, expected (degree +"
                " 1, ...), and cond (C,)"
            )
        yield points, found.get("cond.npy")


def _key(name: str) -> str:
    """What members of a row share: the folder, and the name up to its first dot."""
    folder, slash, own = name.rpartition("/")
    return f"{folder}{slash}{own.partition('.')[0]}"


def _members(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of an archive's ``.npy`` members; what is no plain file inside it is
    refused.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if not name or (member.isdir() and name == "."):
                    continue  # the folder itself, which tar puts first
                check_member(file, name)
                if not member.isfile() or member.issparse():
                    raise UserError(
                        f"{file} has a member {member.name[:80]!r} that is no plain file, expected"
                        " plain files alone"
                    )
                content = archive.extractfile(member) if name.endswith(".npy") else None
                if content is not None:
                    yield (
                        name,
                        read_npy(cast(BinaryIO, content), member.size, f"{file} ({member.name})"),
                    )
    except (tarfile.TarError, OSError, EOFError, OverflowError) as error:
        raise UserError(
            f"{file} is no tar archive, or is packed, cut off or damaged ({error}): expected a"
            " plain .tar"
        ) from None

"""Curves in and out of a store: written as one ``.npz`` or as WebDataset archives, made of other
people's pairs.

A WebDataset archive is a tar whose members share a key per row: ``000000000.points.npy`` (degree +
1, *shape) and, if there are conditions, ``000000000.cond.npy``. Imported ones may hold
``KEY.z0.npy`` and ``KEY.z1.npy`` instead, source and end. Nothing is extracted: members are read
from the archive one by one, and only plain files of numbers are.
"""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.data.arrays import Archive, check_member, read_npy
from bezierdistill.errors import UserError
from bezierdistill.files import locked, whole_folder, write_atomically
from bezierdistill.models.folder import load_model, refer
from bezierdistill.models.model import Model
from bezierdistill.progress import progress
from bezierdistill.records import CurveRecipe, Imported
from bezierdistill.settings import Points, Units, check_choice, check_degree, check_not_negative
from bezierdistill.store import CurveStore, CurveWriter
from bezierdistill.store.writer import SHARD_BYTES, Plan

# Points (N, degree + 1, *shape) and conditions (N, C) or None.
Rows = tuple[np.ndarray, np.ndarray | None]
Advance = Callable[[int], None]
CHUNK = 4096  # rows at once
ARCHIVE_ROWS = 10_000
ARRAYS = ("points", "z0", "z1", "cond")
MAX_MEMBERS = 16  # of a row that are looked at
# What reading a damaged tar raises.
DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, LookupError)


def export_curves(
    store: CurveStore,
    out: Path,
    to: Literal["npz", "webdataset"] = "npz",
    archive_rows: int = ARCHIVE_ROWS,
    chunk: int = CHUNK,
) -> list[Path]:
    """Write a store as one ``.npz`` (arrays ``points`` (N, degree + 1, *shape) and ``cond``), or as
    WebDataset archives in a folder; both can be imported.

    Args:
        store: the store.
        out: the new file, which gets the ending ``.npz`` if it has none, or the new folder.
        to: the format.
        archive_rows: curves per archive.
        chunk: rows read at once.

    Returns:
        The files.

    Raises:
        UserError: if ``out`` exists.
    """
    if to == "npz" and out.suffix != ".npz":
        out = out.with_name(f"{out.name}.npz")
    if out.exists():
        raise UserError(f"{out} exists: choose another --out")

    def chunks(rows: range) -> Iterator[Rows]:
        for start in range(rows.start, rows.stop, chunk):
            curve, cond = store.take(torch.arange(start, min(start + chunk, rows.stop)))
            yield curve.points.transpose(0, 1).numpy(), None if cond is None else cond.numpy()

    everything = range(len(store))
    with progress("export", len(store)) as advance:
        if to == "npz":
            write_atomically(out, lambda path: _write_npz(store, path, chunks, advance))
            return [out]
        with whole_folder(out) as folder:
            for k, start in enumerate(everything[::archive_rows]):
                rows = everything[start : start + archive_rows]
                _write_tar(folder / f"curves-{k:06d}.tar", start, chunks(rows))
                advance(len(rows))
        return sorted(out.iterdir())


def _write_npz(
    store: CurveStore, path: Path, chunks: Callable[[range], Iterator[Rows]], advance: Advance
) -> None:
    sizes = [("points.npy", (store.recipe.degree + 1, *store.recipe.shape))]
    sizes += [("cond.npy", (store.condition_size,))] if store.condition_size else []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for k, (name, size) in enumerate(sizes):
            head = {"descr": "<f4", "fortran_order": False, "shape": (len(store), *size)}
            with archive.open(name, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(cast(Any, member), head)
                for rows in chunks(range(len(store))):
                    member.write(np.ascontiguousarray(rows[k]).tobytes())
                    advance(0 if k else len(rows[0]))


def _write_tar(path: Path, first: int, chunks: Iterator[Rows]) -> None:
    with tarfile.open(path, "w") as archive:
        for points, cond in chunks:
            for k in range(len(points)):
                _add(archive, f"{first + k:09d}.points.npy", points[k])
                if cond is not None:
                    _add(archive, f"{first + k:09d}.cond.npy", cond[k])
            first += len(points)


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
    units: Units = "model",
    points: Points = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> CurveStore:
    """A store of other people's pairs or curves.

    Args:
        source: an ``.npz``, or a folder of ``.npy``, with the arrays ``z0`` and ``z1``
            (N, *shape), or ``points`` (N, degree + 1, *shape), and, for a conditional teacher,
            ``cond`` (N, C); or a WebDataset ``.tar``, or a folder of them.
        teacher: the model whose samples they are: a student takes its network, units and weights.
        out: folder of the new store.
        passes: network passes that a row has cost its makers, for the account.
        units: whether points are in the teacher's units or in those of its data (bytes of images,
            ...).
        points: how control points are kept.
        shard_bytes: bytes of a shard of pairs in single precision.

    Raises:
        UserError: if they cannot be read, are no states of the teacher, or are not finite.
    """
    check_choice("points", points, Points)
    check_choice("units", units, Units)
    check_not_negative(passes=passes)
    model = load_model(teacher)
    rows = max(1, shard_bytes // (8 * math.prod(model.shape)))
    files = [source] if source.suffix == ".tar" else sorted(source.glob("*.tar"))
    chunks = _archived(source, files, rows) if files else _arrays(source, rows)
    head = next(chunks, None)
    if head is None:
        raise UserError(f"{source} holds no pair")
    degree = head[0].shape[1] - 1
    check_degree(degree)
    recipe = CurveRecipe(
        degree=degree,
        shape=model.shape,
        scaling=model.scaling,
        points=points,
        conditions=model.conditions,
        guides="imported",
        teachers=(refer(model, out),),
        teacher_passes=model.spent,
        imported=Imported(source=str(source), passes=passes, units=units),
    )
    with locked(out):
        writer = CurveWriter(out, recipe)
        plans = _write(writer, () if writer.complete else chain([head], chunks), model, str(source))
        writer.close(plans)
    return CurveStore.open(out)


def _write(writer: CurveWriter, chunks: Iterable[Rows], model: Model, source: str) -> list[Plan]:
    """A shard per chunk, of those that are not there; returns all."""
    imported, plans = writer.recipe.imported, list[Plan]()
    assert imported is not None
    with progress("import", None) as advance:
        for chunk in chunks:
            plan = Plan(len(plans), sum(plan.rows for plan in plans), len(chunk[0]))
            plans.append(plan)
            if not writer.finished(plan):
                name = f"{source} from row {plan.first} on"
                curve, cond = _states(chunk, model, writer.recipe.degree, imported.units, name)
                writer.write(plan, [writer.pack(curve, cond)], imported.passes * plan.rows)
            advance(plan.rows)
    return plans


def _states(
    chunk: Rows, model: Model, degree: int, units: Units, name: str
) -> tuple[BezierCurve, Tensor | None]:
    """A chunk as curves in the teacher's units, and its conditions."""
    points, cond = chunk
    for array in (points, cond):
        if array is not None and array.dtype.kind not in "biuf":
            raise UserError(f"{name} has {array.dtype} in it, expected integers or floats")
    states = [torch.from_numpy(np.array(points[:, k], np.float32)) for k in range(points.shape[1])]
    if units == "data":
        states = [model.scaling.encode(state) for state in states]
    if len(states) != degree + 1 or tuple(states[0].shape[1:]) != model.shape:
        told = f"{name} has points of shape {points.shape[1:]}, expected"
        raise UserError(f"{told} {(degree + 1, *model.shape)} as the teacher's states")
    if (size := 0 if cond is None else cond.shape[1]) != model.condition_size:
        told = f"{name} has conditions of {size} numbers, the teacher takes {model.condition_size}"
        raise UserError(f"{told}: expected its own")
    curve = BezierCurve(torch.stack(states))
    given = None if cond is None else torch.from_numpy(np.array(cond, np.float32))
    if not all(part.isfinite().all() for part in (curve.points, given) if part is not None):
        raise UserError(f"{name} has NaN or infinite numbers: leave these rows out")
    return curve, given


def _arrays(source: Path, rows: int) -> Iterator[Rows]:
    """Rows of an ``.npz``, or of a folder of ``.npy`` files, which are mapped, not loaded."""
    if source.is_dir():
        files = {name: source / f"{name}.npy" for name in ARRAYS}
        found = {name: read_npy(file, mmap=True) for name, file in files.items() if file.exists()}
    else:
        with Archive(source) as archive:
            found = {name: archive[name] for name in ARRAYS if name in archive}
    cond = found.pop("cond", None)
    if found.keys() not in ({"points"}, {"z0", "z1"}):
        told = f"{source} holds {', '.join(found) or 'no arrays'}, expected points, or z0 and z1"
        raise UserError(f"{told}, and cond for a conditional teacher; or a .tar")
    paired, shape = "z0" in found, next(iter(found.values())).shape
    fits = all(array.shape == shape for array in found.values()) and len(shape) >= 3 - paired
    if not fits or (cond is not None and (cond.ndim != 2 or len(cond) != shape[0])):
        told = [str(array.shape) for array in (*found.values(), cond) if array is not None]
        told = f"{source} has {', '.join(found)} and conditions of shapes {', '.join(told)}"
        wanted = "(N, ...), the same" if paired else "(N, degree + 1, ...)"
        raise UserError(f"{told}, expected {wanted}, and (N, C)")
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        parts = [array[part] for array in found.values()]
        yield np.stack(parts, 1) if paired else parts[0], None if cond is None else cond[part]


def _archived(source: Path, files: list[Path], rows: int) -> Iterator[Rows]:
    """Rows of WebDataset archives."""
    ready = (row for file in files for row in _rows(file))
    while part := list(islice(ready, rows)):
        shapes = {points.shape for points, _ in part}
        sizes = {None if cond is None else cond.shape for _, cond in part}
        if len(shapes) > 1 or len(sizes) > 1:
            told = ", ".join(sorted(map(str, shapes | sizes)))
            raise UserError(f"{source} has rows of shapes {told}, expected one shape")
        conds = [cond for _, cond in part if cond is not None]
        yield np.stack([points for points, _ in part]), np.stack(conds) if conds else None


def _rows(file: Path) -> Iterator[Rows]:
    """Points ``(degree + 1, *shape)`` and condition of every key; its members lie side by side."""
    for key, members in groupby(_members(file), lambda member: _key(member[0])):
        found = {name[len(key) + 1 :]: array for name, array in islice(members, MAX_MEMBERS)}
        place = f"row {key[:80]} of {file}"
        pair = [found[name] for name in ("z0.npy", "z1.npy") if name in found]
        if "points.npy" not in found and len(pair) < 2:
            told = f"{place} has {', '.join(sorted(found))[:200]}"
            raise UserError(f"{told}, expected points.npy, or z0.npy and z1.npy")
        if len({array.shape for array in pair}) > 1:
            raise UserError(f"{place} has z0 and z1 of other shapes, expected one shape")
        points = found["points.npy"] if "points.npy" in found else np.stack(pair)
        if points.ndim < 2 or ("cond.npy" in found and found["cond.npy"].ndim != 1):
            told = f"{place} has points of shape {points.shape}"
            raise UserError(f"{told}, expected (degree + 1, ...), and cond (C,)")
        yield points, found.get("cond.npy")


def _key(name: str) -> str:
    """What members of a row share: the folder, and the name up to its first dot."""
    folder, slash, own = name.rpartition("/")
    return f"{folder}{slash}{own.partition('.')[0]}"


def _members(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of ``.npy`` members; what is no plain file inside the archive is refused."""
    try:
        held = file.stat().st_size
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if not name or (member.isdir() and name == "."):
                    continue  # the folder itself, which tar puts first
                check_member(file, name)
                if not member.isfile() or member.issparse():
                    told = f"{file} has a member {member.name[:80]!r} that is no plain file"
                    raise UserError(f"{told}, expected plain files alone")
                if not 0 <= member.size <= held - member.offset_data:
                    raise tarfile.ReadError(f"{member.name[:80]!r} claims {member.size:,} bytes")
                content = archive.extractfile(member) if name.endswith(".npy") else None
                if content is not None:
                    yield name, read_npy(content.read(), name=f"{file} ({member.name})")
    except UserError:
        raise
    except DAMAGED as error:
        told = f"{file} is no tar archive, or is packed, cut off or damaged ({error})"
        raise UserError(f"{told}: expected a plain .tar") from None

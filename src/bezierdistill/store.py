"""Curves on disk: sharded safetensors and one JSON manifest with checksums, written shard by shard, read by memory mapping.

A store is a folder::

    manifest.json             what made it (degree, shape, seed, teachers' digests, ...) and its shards (rows, SHA-256)
    shard-00000.safetensors   "points" (rows, degree + 1, *shape): a row is one curve, contiguous on disk
                              "cond" (rows, C): the condition of every row, if the curves have any

A shard is complete before the manifest names it, so a reader never sees half a shard, and a writer continues after the last one named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.files import digest, read_json, read_tensors, write_json, write_tensors

FORMAT, VERSION = "bezierdistill-curves", 1
MANIFEST = "manifest.json"
SHARD_BYTES = 32 * 2**20


class CurveWriter:
    """Append curves to a store.

    Args:
        folder: the store's folder; made when the first shard is complete.
        recipe: JSON-able description of what makes the rows; must hold ``degree`` and ``shape``, and ``conditions`` (numbers of a
            condition) if rows have any.
        resume: continue a store that is not complete.

    Raises:
        ValueError: if the folder holds another store, or any store and ``resume`` is false.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], resume: bool = False) -> None:
        self.folder = folder
        self.recipe: dict[str, Any] = json.loads(json.dumps(recipe))  # as it is read back: tuples become lists
        self.shards: list[dict[str, Any]] = []
        self.passes = 0
        self._pending: list[dict[str, Tensor]] = []
        numbers = (recipe["degree"] + 1) * torch.Size(recipe["shape"]).numel()
        self.shard_rows = max(1, SHARD_BYTES // (4 * numbers))
        if (folder / MANIFEST).exists():
            if not resume:
                raise ValueError(f"{folder} already holds a curve store: choose another --out, or --resume to continue it")
            self._continue(read_manifest(folder))

    def _continue(self, manifest: dict[str, Any]) -> None:
        other = [key for key, value in self.recipe.items() if manifest["recipe"].get(key) != value]
        if other:
            raise ValueError(f"{self.folder} holds a store made with other {', '.join(other)}: choose another --out")
        self.shards, self.passes = manifest["shards"], manifest["passes"]

    @property
    def rows(self) -> int:
        """Rows in complete shards."""
        return sum(shard["rows"] for shard in self.shards)

    def append(self, curve: BezierCurve, passes: int, cond: Tensor | None = None) -> None:
        """Add curves ``(degree + 1, B, *shape)`` that cost ``passes`` network passes in all, and their conditions ``(B, C)``."""
        tensors = {"points": curve.points.transpose(0, 1)} | ({} if cond is None else {"cond": cond})
        self._pending.append({name: tensor.to("cpu", torch.float32) for name, tensor in tensors.items()})
        self.passes += passes
        if sum(len(part["points"]) for part in self._pending) >= self.shard_rows:
            self._flush(complete=False)

    def close(self) -> None:
        """Write what is pending and mark the store complete."""
        self._flush(complete=True)

    def _flush(self, complete: bool) -> None:
        if self._pending:
            name = f"shard-{len(self.shards):05d}.safetensors"
            tensors = {key: torch.cat([part[key] for part in self._pending]) for key in self._pending[0]}
            write_tensors(self.folder / name, tensors)
            self.shards.append({"file": name, "rows": len(tensors["points"]), "sha256": digest(self.folder / name)})
            self._pending = []
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "complete": complete,
            "rows": self.rows,
            "passes": self.passes,
            "recipe": self.recipe,
            "shards": self.shards,
        }
        write_json(self.folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        ValueError: if there is none, or it is of another format or a newer version.
    """
    manifest = read_json(folder / MANIFEST, "curve store")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        got = f"{manifest.get('format')!r} version {manifest.get('version')!r}"
        raise ValueError(f"{folder / MANIFEST} is {got}, expected {FORMAT!r} version {VERSION}")
    missing = {"complete", "rows", "passes", "recipe", "shards"} - manifest.keys()
    if missing or not {"degree", "shape"} <= dict(manifest["recipe"]).keys():
        raise ValueError(f"{folder / MANIFEST} lacks {', '.join(sorted(missing)) or 'degree or shape'}: restore it or make the store again")
    return manifest


@dataclass(frozen=True)
class CurveStore:
    """Curves of a complete store, memory-mapped: nothing is read before it is used.

    Args:
        folder: where it lies.
        manifest: its manifest.
        shards: the mapped points ``(rows, degree + 1, *shape)`` of every shard.
        conditions: the conditions ``(rows, C)`` of all rows; None if there are none.
    """

    folder: Path
    manifest: dict[str, Any]
    shards: tuple[Tensor, ...]
    conditions: Tensor | None = None

    @classmethod
    def open(cls, folder: str | Path) -> CurveStore:
        """Open a store.

        Raises:
            ValueError: if it is missing, not complete, or a shard is missing, cut off or of another shape than the manifest says.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise ValueError(f"{folder} is not complete ({manifest['rows']} rows so far): run the same simulate with --resume")
        recipe, size = manifest["recipe"], manifest["recipe"].get("conditions", 0)
        shards, conditions = [], []
        for shard in manifest["shards"]:
            file = folder / Path(shard["file"]).name
            tensors = read_tensors(file)[0]
            shards.append(_shaped(file, tensors, "points", (shard["rows"], recipe["degree"] + 1, *recipe["shape"])))
            if size:
                conditions.append(_shaped(file, tensors, "cond", (shard["rows"], size)))
        if not shards:
            raise ValueError(f"{folder} holds no curve")
        return cls(folder, manifest, tuple(shards), torch.cat(conditions) if size else None)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def recipe(self) -> dict[str, Any]:
        """What made the rows."""
        return self.manifest["recipe"]

    def curves(self, rows: Tensor) -> BezierCurve:
        """The curves of given rows, in their order."""
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise ValueError(f"rows run from {int(rows.min())} to {int(rows.max())}, expected 0 to {len(self) - 1}")
        return self._gather(rows)

    def _gather(self, rows: Tensor) -> BezierCurve:
        if len(self.shards) == 1:
            return BezierCurve(self.shards[0].index_select(0, rows).transpose(0, 1))
        points = torch.empty(len(rows), *self.shards[0].shape[1:])
        start = 0
        for shard in self.shards:
            here = (rows >= start) & (rows < start + len(shard))
            points[here] = shard[rows[here] - start]
            start += len(shard)
        return BezierCurve(points.transpose(0, 1))

    def batch(self, count: int, generator: torch.Generator) -> tuple[BezierCurve, Tensor | None]:
        """``count`` curves drawn independently, and their conditions ``(count, C)`` or None."""
        rows = torch.randint(len(self), (count,), generator=generator)
        return self._gather(rows), None if self.conditions is None else self.conditions[rows]

    def verify(self) -> Iterator[str]:
        """Compare every shard with its checksum and yield a line for each that differs."""
        for shard in self.manifest["shards"]:
            file = self.folder / Path(shard["file"]).name
            if digest(file) != shard["sha256"]:
                yield f"{file} differs from its checksum"


def _shaped(file: Path, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    got = tuple(tensors[name].shape) if name in tensors else None
    if got != shape:
        raise ValueError(f"{file} holds {name} of shape {got}, its manifest says {shape}")
    return tensors[name]

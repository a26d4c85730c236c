"""Writing a store: shards in any order, by any number of processes that share its folder, each
shard whole or absent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.files import digest, write_tensors
from bezierdistill.store.codec import Packed, joined, pack, row_bytes
from bezierdistill.store.manifest import (
    COPY,
    MANIFEST,
    MEND,
    Shard,
    check_recipe,
    read_manifest,
    read_sealed,
    record_file,
    shard_name,
    write_manifest,
    write_sealed,
)
from bezierdistill.store.reader import CurveStore, damaged

SHARD_BYTES = (
    8 * 2**20
)  # small, so that small states are spread over ranks too; a shard of images is a batch or two


@dataclass(frozen=True)
class Plan:
    """The rows ``first .. first + rows`` of shard ``index``."""

    index: int
    first: int
    rows: int


class CurveWriter:
    """Fill a store, or continue one with the same recipe.

    Args:
        folder: the store's folder.
        recipe: JSON-able description of what makes the rows; must hold ``degree`` and ``shape``,
            and ``conditions`` (numbers of a condition) if rows have any. ``points`` says how points
            are kept (float32 without it), ``noise`` whether the first of them is stored or
            regenerated from the seed (``"stored"`` without it, ``"seed"``).

    Raises:
        UserError: if the folder holds another store, or a recipe lacks something.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder
        self.recipe: dict[str, Any] = json.loads(
            json.dumps(recipe)
        )  # as it is read back: tuples become lists
        check_recipe(self.recipe)
        self.kept = recipe.get("points", "float32")
        self.first_point = int(recipe.get("noise") == "seed")
        self.complete = False
        if (folder / COPY).exists() and not (folder / MANIFEST).exists():
            raise UserError(f"{folder / MANIFEST} is missing: {MEND}")
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            _same(folder, self.recipe, manifest["recipe"])
            self.complete = manifest["complete"]
        else:
            write_manifest(folder, self.recipe, None)

    def plan(self, count: int, batch: int) -> list[Plan]:
        """The shards of a store of ``count`` rows: whole batches, as many as make about 8 MiB."""
        points = self.recipe["degree"] + 1 - self.first_point
        size = row_bytes(
            self.kept, points, tuple(self.recipe["shape"]), self.recipe.get("conditions", 0)
        )
        rows = max(1, SHARD_BYTES // (size * batch)) * batch
        return [
            Plan(index, first, min(rows, count - first))
            for index, first in enumerate(range(0, count, rows))
        ]

    def finished(self, plan: Plan) -> bool:
        """Whether a shard is there, whole, and need not be made."""
        try:
            return not damaged(self.folder, self._record(plan))
        except ValueError:
            return False  # there is no record, or it was damaged: the shard is made again

    def _record(self, plan: Plan) -> Shard:
        shard = Shard.of(read_sealed(record_file(self.folder, plan.index), "record of a shard"))
        if (shard.file, shard.first, shard.span) != (shard_name(plan.index), plan.first, plan.rows):
            raise UserError(
                f"{record_file(self.folder, plan.index)} is the record of another shard"
            )
        return shard

    def pack(self, curve: BezierCurve, cond: Tensor | None = None) -> Packed:
        """Curves ``(degree + 1, rows, *shape)`` and their conditions ``(rows, C)`` as this store
        keeps them.
        """
        return pack(curve.points[self.first_point :].transpose(0, 1), self.kept, cond)

    def write(
        self,
        plan: Plan,
        parts: Sequence[Packed],
        passes: int,
        skipped: Sequence[int] = (),
        seed: int | None = None,
    ) -> None:
        """Write a whole shard of packed rows that cost ``passes`` in all.

        ``skipped`` are the indices of the plan's range that are left out; ``seed`` is that of the
        table which the rows start from.
        """
        rows, path = joined(list(parts)), self.folder / shard_name(plan.index)
        write_tensors(path, dict(rows.tensors))
        size = path.stat().st_size
        shard = Shard(
            path.name,
            plan.first,
            len(rows),
            seed,
            tuple(skipped),
            passes,
            rows.error,
            size,
            digest(path),
        )
        write_sealed(record_file(self.folder, plan.index), asdict(shard))

    def close(self, plans: Sequence[Plan]) -> None:
        """Mark the store complete: the records of all shards go into the manifest.

        Raises:
            UserError: if one is missing.
        """
        if not self.complete:
            write_manifest(self.folder, self.recipe, tuple(self._record(plan) for plan in plans))
            self.complete = True
        for path in self.folder.glob("shard-*.json"):
            path.unlink(missing_ok=True)


def repair(folder: Path, recipe: dict[str, Any]) -> list[str]:
    """Reopen a store of that recipe without its damaged shards, so that writing it again makes just
    those; returns their names.

    A damaged manifest is restored from its copy first.

    Raises:
        UserError: if both are damaged, there is no store, or it has another recipe.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError:
        manifest = read_manifest(folder, COPY)
    _same(folder, json.loads(json.dumps(recipe)), manifest["recipe"])
    store = CurveStore(folder, manifest)
    lost = [index for index in range(len(store.shards)) if store.problem(index)]
    if not lost:
        write_manifest(folder, manifest["recipe"], store.shards if manifest["complete"] else None)
        return []
    for index, shard in enumerate(store.shards):
        if index in lost:
            record_file(folder, index).unlink(missing_ok=True)
        else:
            write_sealed(record_file(folder, index), asdict(shard))
    write_manifest(folder, manifest["recipe"], None)
    return [store.shards[index].file for index in lost]


def _same(folder: Path, wanted: dict[str, Any], held: dict[str, Any]) -> None:
    other = sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key))
    if other:
        raise UserError(
            f"{folder} holds a store made with other {', '.join(other)}: choose another --out"
        )

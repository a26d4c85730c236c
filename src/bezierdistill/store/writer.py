"""Writing a store: shards in any order, by any number of processes that share its folder, each
shard whole or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.files import digest, write_tensors
from bezierdistill.records import CurveRecipe, Manifest, Shard, from_json, to_json, write_sealed
from bezierdistill.simulation import Simulation
from bezierdistill.store import manifest as manifests
from bezierdistill.store.codec import Packed, joined, pack, row_bytes
from bezierdistill.store.reader import CurveStore

# Small, so that small states are spread over ranks too; a shard of images is a batch or two.
SHARD_BYTES = 8 * 2**20
MAX_SKIPPED = 0.01  # share of the rows of a shard that may be left out
Draw = Callable[[int, int], tuple[Tensor, Tensor | None]]


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
        recipe: what makes the rows.

    Raises:
        UserError: if the folder holds another store, or the recipe does not fit.
    """

    def __init__(self, folder: Path, recipe: CurveRecipe) -> None:
        self.folder = folder
        self.recipe = from_json(to_json(recipe), CurveRecipe, "recipe")  # as it is read back
        self.complete = False
        if (folder / manifests.MANIFEST).exists():
            manifest = manifests.read_manifest(folder)
            _check_same(folder, self.recipe, manifest.recipe)
            self.complete = manifest.complete
        elif (folder / manifests.COPY).exists():
            raise UserError(f"{folder / manifests.MANIFEST} is missing: {manifests.REPAIR}")
        else:
            manifests.write_manifest(folder, Manifest(recipe=self.recipe))

    def plan(self, count: int, batch: int, shard_bytes: int = SHARD_BYTES) -> list[Plan]:
        """The shards of a store of ``count`` rows: whole batches, as many as make so many bytes."""
        rows = max(1, shard_bytes // (row_bytes(self.recipe) * batch)) * batch
        firsts = enumerate(range(0, count, rows))
        return [Plan(index, first, min(rows, count - first)) for index, first in firsts]

    def finished(self, plan: Plan) -> bool:
        """Whether a shard is there, whole, and need not be made."""
        try:
            return self.complete or not manifests.damaged(self.folder, self._record(plan))
        except UserError:
            return False  # there is no record, or it was damaged: the shard is made again

    def _record(self, plan: Plan) -> Shard:
        shard = manifests.read_shard(self.folder, plan.index)
        expected = (manifests.shard_name(plan.index), plan.first, plan.rows)
        if (shard.file, shard.first, shard.span) != expected:
            raise UserError(f"{self.folder} has a record of another shard as that of {expected[0]}")
        return shard

    def pack(self, curve: BezierCurve, cond: Tensor | None = None) -> Packed:
        """Curves ``(degree + 1, rows, *shape)`` and conditions ``(rows, C)`` as they are kept."""
        first = self.recipe.degree + 1 - self.recipe.stored_points
        return pack(curve.points[first:].transpose(0, 1), self.recipe.points, cond)

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
        rows, path = joined(list(parts)), self.folder / manifests.shard_name(plan.index)
        write_tensors(path, dict(rows.tensors))
        shard = Shard(
            file=path.name,
            first=plan.first,
            rows=len(rows),
            seed=seed,
            skipped=tuple(skipped),
            passes=passes,
            error=rows.error,
            bytes=path.stat().st_size,
            sha256=digest(path),
        )
        write_sealed(manifests.record_file(self.folder, plan.index), shard)

    def close(self, plans: Sequence[Plan]) -> None:
        """Mark the store complete: the records of all shards go into the manifest.

        Raises:
            UserError: if one is missing.
        """
        if not self.complete:
            shards = tuple(map(self._record, plans))
            manifest = Manifest(recipe=self.recipe, complete=True, shards=shards)
            manifests.write_manifest(self.folder, manifest)
            self.complete = True
        for path in self.folder.glob("shard-*.json"):
            path.unlink(missing_ok=True)


def simulate_shards(
    simulation: Simulation,
    draw: Draw,
    plans: Sequence[Plan],
    writer: CurveWriter,
    batch: int,
    advance: Callable[[int], None] = lambda rows: None,
    seed: int | None = None,
) -> None:
    """Make those shards of a store that are not there; memory does not grow with their number.

    Args:
        simulation: how curves are made.
        draw: ``draw(start, rows)`` gives the start states of rows ``start .. start + rows`` and
            their conditions, or None.
        plans: the shards to make, of :meth:`CurveWriter.plan`: all, or a part if others are made
            elsewhere.
        writer: the store.
        batch: rows simulated at once; shards are whole batches, so every batch is the same whoever
            makes it.
        advance: called with the number of rows done.
        seed: seed of the table that the rows start from, for the records of the shards.

    Raises:
        UserError: if the teachers give NaN or infinite states in more than one row of a hundred of
            a shard (the rows are named; fewer are left out).
    """
    for plan in plans:
        if writer.finished(plan):
            advance(plan.rows)
            continue
        parts: list[Packed] = []
        skipped: list[int] = []
        spent = 0
        for start in range(0, plan.rows, batch):
            rows = min(batch, plan.rows - start)
            states, cond = draw(plan.first + start, rows)
            curve, passes = simulation.curves(states, cond)
            made = curve.points.to("cpu", torch.float32)
            finite = made.isfinite().transpose(0, 1).flatten(1).all(1)
            skipped += (start + (~finite).nonzero().flatten()).tolist()
            if len(skipped) > MAX_SKIPPED * plan.rows:
                first = ", ".join(str(plan.first + row) for row in skipped[:10])
                told = f"the teachers gave NaN or infinite states in {len(skipped)} rows so far"
                raise UserError(f"{told} ({first}, ...): check their training")
            cond = None if cond is None else cond.cpu()[finite]
            parts.append(writer.pack(BezierCurve(made[:, finite]), cond))
            spent += passes * rows
            advance(rows)
        writer.write(plan, parts, spent, skipped, seed)


def repair(folder: Path, recipe: CurveRecipe) -> list[str]:
    """Reopen a store of that recipe without its damaged shards, so that writing it again makes just
    those; returns their names.

    A damaged manifest is restored from its copy, and a damaged copy from the manifest.

    Raises:
        UserError: if both are damaged, there is no store, or it has another recipe.
    """
    try:
        manifest = manifests.read_manifest(folder)
    except UserError:
        manifest = manifests.read_manifest(folder, manifests.COPY)
    _check_same(folder, recipe, manifest.recipe)
    store = CurveStore(folder, manifest)
    lost = [index for index in range(len(store.shards)) if store.problem(index)]
    if not lost:
        manifests.write_manifest(folder, manifest)
        return []
    for index, shard in enumerate(store.shards):
        if index in lost:
            manifests.record_file(folder, index).unlink(missing_ok=True)
        else:
            write_sealed(manifests.record_file(folder, index), shard)
    manifests.write_manifest(folder, replace(manifest, complete=False, shards=()))
    return [store.shards[index].file for index in lost]


def _check_same(folder: Path, wanted: CurveRecipe, held: CurveRecipe) -> None:
    if other := manifests.differing(wanted, held):
        raise UserError(f"{folder} holds a store made with other {other}: choose another --out")

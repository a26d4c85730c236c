"""Several stores as one: what was simulated on several machines, each with a seed of its own."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

from msgspec.structs import replace

from bezierdistill.errors import UserError
from bezierdistill.files import locked, write_atomically
from bezierdistill.records import CurveRecipe, Manifest, Merged, Shard, TeacherRef
from bezierdistill.store import manifest as manifests
from bezierdistill.store.reader import CurveStore

FREE = {"seed", "count", "merged", "imported", "chosen"}  # in what merged stores may differ


def merge(folders: tuple[Path, ...], out: Path) -> CurveStore:
    """A new store of all curves of several that were made alike, by other seeds; files are linked,
    not copied, where the system can.

    Raises:
        UserError: if they were not made alike, share rows, are damaged, or ``out`` holds
            something.
    """
    stores = [CurveStore.open(folder) for folder in folders]
    chosen = all(store.recipe.chosen for store in stores)
    free = FREE | ({"steps"} if chosen else set())
    for store in stores[1:]:
        if other := manifests.differing(store.recipe, stores[0].recipe, free):
            told = f"{store.folder} and {stores[0].folder} were made with other {other}"
            raise UserError(f"{told}: expected stores that differ in seed")
    pairs = [(store.folder, shard) for store in stores for shard in store.shards]
    _refuse_shared([shard for _, shard in pairs])
    for problem in (problem for store in stores for problem in store.verify()):
        raise UserError(f"{problem}: repair it before merging")
    recipe = _recipe(stores, out)
    with locked(out):
        _check_place(out, recipe)
        if (out / manifests.MANIFEST).exists():
            return CurveStore.open(out)  # it was merged before
        shards = tuple(
            replace(shard, file=_linked(folder / shard.file, out / manifests.shard_name(k)))
            for k, (folder, shard) in enumerate(pairs)
        )
        manifests.write_manifest(out, Manifest(recipe=recipe, complete=True, shards=shards))
    return CurveStore.open(out)


def _recipe(stores: list[CurveStore], out: Path) -> CurveRecipe:
    first = stores[0]

    def moved(teacher: TeacherRef) -> TeacherRef:
        path = (first.folder / teacher.path).resolve()
        return replace(teacher, path=Path(os.path.relpath(path, out.resolve())).as_posix())

    through, every = first.recipe.through, [store.recipe for store in stores]
    chosen = [recipe.chosen for recipe in every if recipe.chosen is not None]
    worst = max(chosen, key=lambda one: one.error, default=None)
    return replace(
        first.recipe,
        seed=None,
        count=sum(len(store) for store in stores),
        steps=min((recipe.steps for recipe in every if recipe.steps), default=None),
        chosen=worst and replace(worst, passes=sum(one.passes for one in chosen)),
        teachers=tuple(moved(teacher) for teacher in first.recipe.teachers),
        through=None if through is None else moved(through),
        merged=tuple(
            Merged(rows=len(store), shards=tuple(shard.sha256 for shard in store.shards))
            for store in stores
        ),
    )


def _check_place(out: Path, recipe: CurveRecipe) -> None:
    """Whether a folder is empty, holds the same merged store, or what a killed process left."""
    if (out / manifests.MANIFEST).exists():
        if manifests.differing(manifests.read_manifest(out).recipe, recipe):
            raise UserError(f"{out} holds another store: choose another --out")
    elif any(not entry.name.startswith((".", "shard-", manifests.COPY)) for entry in out.iterdir()):
        raise UserError(f"{out} is not empty: choose another --out")


def _refuse_shared(shards: list[Shard]) -> None:
    seeded = [shard for shard in shards if shard.seed is not None]
    spans = sorted((shard.seed, shard.first, shard.first + shard.span) for shard in seeded)
    for (seed, _, end), (other, start, _) in pairwise(spans):
        if seed == other and start < end:
            told = f"two of the stores hold row {start} of seed {seed}"
            raise UserError(f"{told}: expected other seeds, simulate with another --seed")
    digests = [shard.sha256 for shard in shards]
    if len(set(digests)) < len(digests):
        raise UserError("two of the stores hold the same shard: expected each store once")


def _linked(file: Path, name: Path) -> str:
    name.unlink(missing_ok=True)
    try:
        os.link(file, name)
    except OSError:
        write_atomically(name, lambda temporary: shutil.copyfile(file, temporary))
    return name.name

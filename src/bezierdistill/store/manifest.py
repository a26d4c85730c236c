"""The manifest: what made a store, and the record of every shard. A flipped bit in it is found by
its own checksum, the seal.

Shards are planned before the first is made: shard k holds the rows from ``k * shard_rows`` on, so
which process makes it, and when, does not matter. Until all are there, the record of each lies
beside it in a file of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from bezierdistill.errors import UserError
from bezierdistill.files import digest
from bezierdistill.records import CurveRecipe, Manifest, Shard, read_sealed, write_sealed

MANIFEST, COPY = "manifest.json", "manifest.copy.json"
REPAIR = "simulate again with --repair (a merged or imported store: make it again)"


def shard_name(index: int) -> str:
    """Name of a shard's file."""
    return f"shard-{index:06d}.safetensors"


def record_file(folder: Path, index: int) -> Path:
    """Where the record of a shard lies while the store is being made."""
    return folder / f"shard-{index:06d}.json"


def read_shard(folder: Path, index: int) -> Shard:
    """The record of a shard while the store is being made; raises as :func:`read_manifest`."""
    return read_sealed(record_file(folder, index), Shard, "record of a shard")


def cut_off(folder: Path, shard: Shard) -> str | None:
    """What is wrong with the size of a shard's file; None if nothing."""
    path = folder / shard.file
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    told = f"{path} has {size:,} bytes, its record says {shard.bytes:,}"
    return None if size == shard.bytes else told


def damaged(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, which is read as a whole; None if nothing."""
    path = folder / shard.file
    if problem := cut_off(folder, shard):
        return problem
    return None if digest(path) == shard.sha256 else f"{path} differs from its checksum"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and its copy.

    Whenever a run is killed between the two, a manifest is there, and it says that the store is
    complete only if its copy does too.
    """
    for name in (COPY, MANIFEST) if manifest.complete else (MANIFEST, COPY):
        write_sealed(folder / name, manifest)


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of a store.

    Raises:
        UserError: if there is none, it was changed or damaged, or it is of another format or
            version.
    """
    return read_sealed(folder / name, Manifest, "curve store", REPAIR)


def held_recipe(folder: Path) -> CurveRecipe | None:
    """What made the store in a folder, as far as that can be read; None if there is none."""
    for name in (MANIFEST, COPY):
        with suppress(UserError):
            return read_manifest(folder, name).recipe
    return None


def differing(a: CurveRecipe, b: CurveRecipe, free: Collection[str] = ()) -> str:
    """The fields in which two recipes differ, ``free`` ones aside; teachers are known by digest."""
    first, second = _known(a), _known(b)
    return ", ".join(name for name in first if name not in free and first[name] != second[name])


def _known(recipe: CurveRecipe) -> dict[str, Any]:
    digests = [teacher.digest for teacher in recipe.teachers]
    through = recipe.through and recipe.through.digest
    return asdict(recipe) | {"teachers": digests, "through": through}

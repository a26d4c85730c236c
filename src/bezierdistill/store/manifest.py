"""The manifest: what made a store, and the record of every shard. A flipped bit in it is found by
its own checksum, the seal.

Shards are planned before the first is made: shard k holds the rows from ``k * shard_rows`` on, so
which process makes it, and when, does not matter. Until all are there, the record of each lies
beside it in a file of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from bezierdistill.errors import UserError
from bezierdistill.files import read_json, write_atomically
from bezierdistill.store.codec import check_kept

FORMAT, VERSION = "bezierdistill-curves", 2
MANIFEST, COPY = "manifest.json", "manifest.copy.json"
MOST_NUMBERS = 2**40
MEND = "simulate again with --repair (a merged or imported store: make it anew)"


@dataclass(frozen=True)
class Shard:
    """The record of a shard.

    Args:
        file: its name.
        first: index of its first row in the table of its seed.
        rows: rows in it.
        seed: seed of the table that its rows start from, which with ``first`` gives their noise
            again; None for imported rows.
        skipped: indices within the shard's range that are left out, because the teachers gave NaN
            or infinite states.
        passes: network passes spent on it.
        error: greatest error of a stored number, from keeping it in fewer bits, in model units.
        bytes: size of the file.
        sha256: its digest.
    """

    file: str
    first: int
    rows: int
    seed: int | None
    skipped: tuple[int, ...]
    passes: int
    error: float
    bytes: int
    sha256: str

    @property
    def span(self) -> int:
        """Rows of the shard's range, those left out among them."""
        return self.rows + len(self.skipped)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Shard:
        """Read a record back.

        Raises:
            UserError: if it is none.
        """
        try:
            shard = cls(**{**record, "skipped": tuple(record["skipped"])})
            counts = (shard.first, shard.rows - 1, shard.passes, shard.bytes, *shard.skipped)
            names = (
                isinstance(shard.file, str)
                and shard.file == Path(shard.file).name
                and isinstance(shard.sha256, str)
            )
            whole = all(type(count) is int and 0 <= count < 2**62 for count in counts)
            seeded = shard.seed is None or (type(shard.seed) is int and 0 <= shard.seed < 2**63)
            rising = all(a < b for a, b in pairwise((*shard.skipped, shard.span, 2**40)))
            if not (names and whole and seeded and rising and 0 <= shard.error < float("inf")):
                raise UserError("numbers or names out of range")
        except (KeyError, TypeError) as error:
            raise UserError(f"a record of a shard cannot be read ({error})") from None
        return shard


def shard_name(index: int) -> str:
    """Name of a shard's file."""
    return f"shard-{index:06d}.safetensors"


def record_file(folder: Path, index: int) -> Path:
    """Where the record of a shard lies while the store is being made."""
    return folder / f"shard-{index:06d}.json"


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that carries its own checksum."""
    write_atomically(path, lambda temporary: temporary.write_text(_sealed(value)))


def _sealed(value: Mapping[str, Any]) -> str:
    seal = hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()
    return json.dumps({**value, "seal": seal}, indent=1, allow_nan=False) + "\n"


def read_sealed(path: Path, what: str) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote.

    Raises:
        UserError: if it is missing, or a single bit of it has changed.
    """
    return _unsealed(path, read_json(path, what))


def _unsealed(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    value.pop("seal", None)
    if _sealed(value) != path.read_text():
        raise UserError(f"{path} differs from its checksum: it was changed or damaged; {MEND}")
    return value


def write_manifest(
    folder: Path, recipe: Mapping[str, Any], shards: tuple[Shard, ...] | None
) -> None:
    """Write the manifest and its copy; without shards that of a store which is being made.

    Whenever a run is killed between the two, a manifest is there, and it says that the store is
    complete only if its copy does too.
    """
    done = shards or ()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "complete": shards is not None,
        "rows": sum(shard.rows for shard in done),
        "passes": sum(shard.passes for shard in done),
        "recipe": recipe,
        "shards": [asdict(shard) for shard in done],
    }
    for name in (MANIFEST, COPY) if shards is None else (COPY, MANIFEST):
        write_sealed(folder / name, manifest)


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        UserError: if there is none, it was changed or damaged, or it is of another format or
            version.
    """
    path = folder / name
    head = read_json(path, "curve store")
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        got = f"{head.get('format')!r} version {head.get('version')!r}"
        newer = isinstance(head.get("version"), int) and head["version"] > VERSION
        do = "update bezierdistill" if newer else "simulate again into another --out"
        raise UserError(f"{path} is {got}, expected {FORMAT!r} version {VERSION}: {do}")
    manifest = _unsealed(path, head)
    try:
        check_recipe(manifest["recipe"])
        shards = [Shard.of(record) for record in manifest["shards"]]
        if manifest["rows"] != sum(shard.rows for shard in shards) or not isinstance(
            manifest["complete"], bool
        ):
            raise UserError("rows are not those of its shards")
        if manifest["passes"] != sum(shard.passes for shard in shards):
            raise UserError("passes are not those of its shards")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} does not describe a curve store: {error}") from None
    return manifest


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Raise ``UserError`` unless a recipe has what reading a store needs."""
    lacking = [key for key in ("degree", "shape") if key not in recipe]
    if lacking:
        raise UserError(f"it lacks {', '.join(lacking)}")
    check_kept(recipe.get("points", "float32"))
    sizes = [recipe["degree"], *recipe["shape"]]
    if (
        not all(type(size) is int and size > 0 for size in sizes)
        or (sizes[0] + 1) * prod(sizes[1:]) > MOST_NUMBERS
    ):
        raise UserError(
            f"degree is {sizes[0]!r:.80} and shape {sizes[1:]!r:.80}, expected whole numbers of 1"
            " or more"
        )
    if (
        type(recipe.get("conditions", 0)) is not int
        or not 0 <= recipe.get("conditions", 0) < MOST_NUMBERS
    ):
        raise UserError(
            f"conditions are {recipe['conditions']!r:.80}, expected how many numbers they have"
        )
    if recipe.get("noise", "stored") not in ("stored", "seed"):
        raise UserError(f"noise is {recipe['noise']!r:.80}, expected stored or seed")
    if not isinstance(recipe.get("teachers", []), list) or not all(
        isinstance(entry, dict) for entry in recipe.get("teachers", [])
    ):
        raise UserError(
            f"teachers are {recipe['teachers']!r:.80}, expected a list of paths and digests"
        )

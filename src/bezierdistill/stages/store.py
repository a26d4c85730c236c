"""The actions on curve stores: ``bezierdistill store info | verify | merge | export | import``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bezierdistill.errors import UnfitError
from bezierdistill.progress import progress
from bezierdistill.settings import Points, Units
from bezierdistill.stages.simulate import CONTENTS

PLACE = {"positional": True}  # a field that has no flag of its own


@dataclass(frozen=True)
class StoreInfoConfig:
    """Say what a curve store holds: rows, bytes, what made it.

    Example::

        bezierdistill store info runs/curves
        bezierdistill store info runs/curves --json
    """

    store: Path = field(metadata=PLACE)
    """Its folder."""


@dataclass(frozen=True)
class StoreVerifyConfig:
    """Compare every file of a curve store with its checksum.

    Example::

        bezierdistill store verify runs/curves
    """

    store: Path = field(metadata=PLACE)
    """Its folder."""


@dataclass(frozen=True)
class StoreMergeConfig:
    """Make one store of several that differ in their seed.

    Example::

        bezierdistill store merge runs/a runs/b --out runs/both
    """

    stores: tuple[Path, ...] = field(metadata=PLACE)
    """Their folders."""
    out: Path
    """Folder of the new store; files are linked where the system can."""


@dataclass(frozen=True)
class StoreExportConfig:
    """Write the curves of a store in another format.

    Both formats can be imported.

    Example::

        bezierdistill store export runs/curves --out curves.npz
        bezierdistill store export runs/curves --to webdataset --out runs/shared
    """

    store: Path = field(metadata=PLACE)
    """Its folder."""
    out: Path
    """The new .npz (arrays points and cond), or the new folder of .tar archives."""
    to: Literal["npz", "webdataset"] = "npz"
    """The format."""


@dataclass(frozen=True)
class StoreImportConfig:
    """Make a store of other people's pairs or curves.

    Example::

        bezierdistill store import runs/shared --teacher runs/strong --out runs/theirs
    """

    source: Path = field(metadata=PLACE)
    """A .npz or a folder of .npy with z0 and z1, or points (and cond), a WebDataset .tar, or a
    folder of them."""
    teacher: Path
    """The model whose samples they are; a student takes its network, units and weights."""
    out: Path
    """Folder of the new store."""
    passes: int = 0
    """Network passes that a row has cost its makers, for the account."""
    units: Units = "model"
    """Whether points are in the teacher's units (model) or in those of its data (data)."""
    points: Points = "float32"
    """How control points are kept: float32, bfloat16, or uint8."""


def main_store_info(config: StoreInfoConfig) -> dict[str, Any]:
    """Print what a store holds, and what made it, a line per fact."""
    from bezierdistill.store import CurveStore

    store = CurveStore.open(config.store)
    recipe, size = store.recipe, sum(shard.bytes for shard in store.shards)
    facts = {
        "rows": len(store),
        "left_out": store.skipped,
        "degree": recipe.degree,
        "shape": list(recipe.shape),
        "conditions": store.condition_size,
        "points": recipe.points,
        "noise": recipe.noise,
        "greatest_error": store.error,
        "shards": len(store.shards),
        "bytes": size,
        "bytes_per_curve": round(size / len(store), 1),
        "passes": store.manifest.passes,
        "guides": recipe.guides,
        "solver_steps": recipe.steps,
        "error_of_ends": recipe.chosen and recipe.chosen.error,
        "neighbours": recipe.chosen and recipe.chosen.neighbours,
        "weights": [list(row) for row in recipe.weights],
        "teachers": [teacher.path for teacher in recipe.teachers],
        "seeds": sorted({shard.seed for shard in store.shards if shard.seed is not None}),
    }
    for name, value in facts.items():
        if value is not None:
            print(
                f"{name.replace('_', ' '):>15}  {f'{value:,}' if isinstance(value, int) else value}"
            )
    return facts


def main_store_verify(config: StoreVerifyConfig) -> dict[str, Any]:
    """Print what differs from its checksum, a line per file.

    Raises:
        UnfitError: if anything does.
    """
    from bezierdistill.store import CurveStore
    from bezierdistill.store.manifest import REPAIR

    store = CurveStore.open(config.store)
    with progress("verify", len(store.shards)) as advance:
        problems = [*store.verify_records(), *store.verify(advance=advance)]
    shards, rows = len(store.shards), len(store)
    result = {"store": config.store, "shards": shards, "rows": rows, "problems": problems}
    if problems:
        print(*problems, sep="\n")
        count = f"{len(problems)} file{'s' if len(problems) > 1 else ''}"
        raise UnfitError(f"{config.store} has {count} missing or damaged: {REPAIR}", result)
    print(f"{config.store}: {shards} shards are whole, {rows:,} curves")
    return result


def main_store_merge(config: StoreMergeConfig) -> dict[str, Any]:
    """One store of several: see :func:`bezierdistill.store.merge.merge`."""
    from bezierdistill.run import made_whole
    from bezierdistill.store import merge

    contents = replace(CONTENTS, what="a store of Bezier curves, merged of several")
    with made_whole(config.out, "store merge", config, contents):
        store = merge(config.stores, config.out)
    print(f"{config.out}: {len(store):,} curves of {len(config.stores)} stores")
    return {"out": config.out, "rows": len(store)}


def main_store_export(config: StoreExportConfig) -> dict[str, Any]:
    """A store in another format: see :func:`~bezierdistill.stages.exchange.export_curves`."""
    from bezierdistill.stages.exchange import export_curves
    from bezierdistill.store import CurveStore

    files = export_curves(CurveStore.open(config.store), config.out, config.to)
    print(*files, sep="\n")
    return {"files": files}


def main_store_import(config: StoreImportConfig) -> dict[str, Any]:
    """A store of other people's curves: see :func:`.exchange.import_curves`."""
    from bezierdistill.run import made_whole
    from bezierdistill.stages.exchange import import_curves

    contents = replace(CONTENTS, what="a store of Bezier curves, imported")
    with made_whole(config.out, "store import", config, contents):
        store = import_curves(
            config.source, config.teacher, config.out, config.passes, config.units, config.points
        )
    degree = store.recipe.degree
    print(f"{config.out}: {len(store):,} curves of degree {degree} from {config.source}")
    return {"out": config.out, "rows": len(store), "degree": degree}

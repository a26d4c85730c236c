"""The actions on curve stores: ``bezierdistill store info | verify | merge | export | import``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from bezierdistill.cli.results import Verb
from bezierdistill.errors import UnfitError
from bezierdistill.progress import progress
from bezierdistill.run import noted
from bezierdistill.stages.exchange import export_curves, import_curves
from bezierdistill.store import CurveStore, Kept, merge
from bezierdistill.store.manifest import MEND

STORE_SUMMARY = "Look at curve stores, check, merge, export and import them."
# How fields are spelt: the first has no flag of its own, others have no default.
FIRST, NEEDED = {"positional": True}, {"required": True}


@dataclasses.dataclass(frozen=True)
class StoreInfoConfig:
    """Say what a curve store holds: rows, bytes, what made it.

    Example::

        bezierdistill store info runs/curves
        bezierdistill store info runs/curves --json
    """

    store: Path = dataclasses.field(metadata=FIRST)
    """Its folder."""


@dataclasses.dataclass(frozen=True)
class StoreVerifyConfig:
    """Compare every shard of a curve store with its checksum.

    Example::

        bezierdistill store verify runs/curves
    """

    store: Path = dataclasses.field(metadata=FIRST)
    """Its folder."""


@dataclasses.dataclass(frozen=True)
class StoreMergeConfig:
    """Make one store of several that differ in their seed.

    Example::

        bezierdistill store merge runs/a runs/b --out runs/both
    """

    stores: tuple[Path, ...] = dataclasses.field(metadata=FIRST)
    """Their folders."""
    out: Path = dataclasses.field(metadata=NEEDED)
    """Folder of the new store; files are linked where the system can."""


@dataclasses.dataclass(frozen=True)
class StoreExportConfig:
    """Write the curves of a store in another format.

    Example::

        bezierdistill store export runs/curves --out curves.npz
        bezierdistill store export runs/curves --to webdataset --out runs/shared
    """

    store: Path = dataclasses.field(metadata=FIRST)
    """Its folder."""
    out: Path = dataclasses.field(metadata=NEEDED)
    """The new .npz (arrays points and cond), or the new folder of .tar archives."""
    to: Literal["npz", "webdataset"] = "npz"
    """Npz or webdataset."""


@dataclasses.dataclass(frozen=True)
class StoreImportConfig:
    """Make a store of other people's pairs or curves.

    Example::

        bezierdistill store import runs/shared --teacher runs/strong --out runs/theirs
    """

    source: Path = dataclasses.field(metadata=FIRST)
    """A folder with z0.npy and z1.npy (and cond.npy), a WebDataset .tar, or a folder of them."""
    teacher: Path = dataclasses.field(metadata=NEEDED)
    """The model whose samples they are; a student takes its network, units and weights."""
    out: Path = dataclasses.field(metadata=NEEDED)
    """Folder of the new store."""
    passes: int = 0
    """Network passes that a row has cost its makers, for the account."""
    units: Literal["model", "data"] = "model"
    """Whether points are in the teacher's units (model) or in those of its data (data)."""
    points: Kept = "float32"
    """How control points are kept: float32, bfloat16, or uint8."""


def _store_info(config: StoreInfoConfig) -> dict[str, Any]:
    store = CurveStore.open(config.store)
    recipe, size = store.recipe, sum(shard.bytes for shard in store.shards)
    facts = {
        "rows": len(store),
        "left out (NaN)": store.skipped,
        "degree": recipe["degree"],
        "shape": recipe["shape"],
        "conditions": store.condition_size,
        "points": recipe.get("points", "float32"),
        "noise": recipe.get("noise", "stored"),
        "greatest error": store.error,
        "shards": len(store.shards),
        "bytes": size,
        "bytes a curve": round(size / len(store), 1),
        "passes": store.manifest["passes"],
        "guides": recipe.get("guides"),
        "weights": recipe.get("weights"),
        "teachers": [teacher["path"] for teacher in recipe.get("teachers", [])],
        "seeds": sorted({shard.seed for shard in store.shards if shard.seed is not None}),
    }
    for name, value in facts.items():
        print(f"{name:>15}  {f'{value:,}' if isinstance(value, int) else value}")
    return facts


def _store_verify(config: StoreVerifyConfig) -> dict[str, Any]:
    store = CurveStore.open(config.store)
    with progress("verify", len(store.shards)) as advance:
        problems = list(store.verify(advance=advance))
    for problem in problems:
        print(problem)
    result = {
        "store": config.store,
        "shards": len(store.shards),
        "rows": len(store),
        "problems": problems,
    }
    if problems:
        raise UnfitError(
            f"{len(problems)} of {len(store.shards)} shards are damaged: {MEND}", result
        )
    print(f"{config.store}: {len(store.shards)} shards are whole, {len(store):,} curves")
    return result


def _store_merge(config: StoreMergeConfig) -> dict[str, Any]:
    with noted(config.out, "store merge", config):
        store = merge(config.stores, config.out)
    print(f"{config.out}: {len(store):,} curves of {len(config.stores)} stores")
    return {"out": config.out, "rows": len(store)}


def _store_export(config: StoreExportConfig) -> dict[str, Any]:
    files = export_curves(CurveStore.open(config.store), config.out, config.to)
    for file in files:
        print(file)
    return {"files": files}


def _store_import(config: StoreImportConfig) -> dict[str, Any]:
    with noted(config.out, "store import", config):
        store = import_curves(
            config.source, config.teacher, config.out, config.passes, config.units, config.points
        )
    print(
        f"{config.out}: {len(store):,} curves of degree {store.recipe['degree']} from"
        f" {config.source}"
    )
    return {"out": config.out, "rows": len(store), "degree": store.recipe["degree"]}


STORE: dict[str, Verb] = {
    "info": (StoreInfoConfig, _store_info),
    "verify": (StoreVerifyConfig, _store_verify),
    "merge": (StoreMergeConfig, _store_merge),
    "export": (StoreExportConfig, _store_export),
    "import": (StoreImportConfig, _store_import),
}

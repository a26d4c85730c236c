"""Damage to a curve store, for ``faults.py``: bits turned over, files cut off or removed, and the
repair of what was damaged.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bezierdistill.files import digest, locked
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig

Damage = Callable[[Path, random.Random], None]


def files(folder: Path, *patterns: str) -> dict[str, str]:
    """Digests of files by name."""
    return {path.name: digest(path) for pattern in patterns for path in folder.glob(pattern)}


def leftovers(out: Path) -> list[str]:
    """What a finished run must not leave: temporary files, half-removed folders, records and shards
    of nothing, a lock.
    """
    left = [
        path.name
        for pattern in (".*.tmp", ".*.gone", "shard-*.json")
        for path in out.rglob(pattern)
    ]
    if (out / "manifest.json").exists():
        listed = {shard.file for shard in CurveStore.open(out).shards}
        left += [path.name for path in out.glob("shard-*.safetensors") if path.name not in listed]
    try:
        with locked(out):
            return left
    except ValueError as error:
        return [*left, str(error)]


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def removed(path: Path, rng: random.Random) -> None:
    path.unlink()


def detected(store: Path) -> bool:
    """Whether reading a store names a damage."""
    try:
        return bool(list(CurveStore.open(store).verify()))
    except ValueError:
        return True


def trained(store: Path, out: Path) -> bool:
    """Whether distil takes a store, or writes anything of a run."""
    with suppress(ValueError):
        distill(DistillConfig(store, out, steps=1, batch=8, loop=LoopConfig(accelerator="cpu")))
        return True
    return out.exists() and any(path.name != ".lock" for path in out.iterdir())


def tried(damage: Damage, chosen: Iterable[Path], rng: random.Random) -> tuple[int, int, int]:
    """Damage one file after the other, and put each back: how often, how often it was detected, how
    often trained on.
    """
    times, seen, taken = 0, 0, 0
    for path in chosen:
        out, whole = path.parent.parent / "student", path.read_bytes()
        damage(path, rng)
        times, seen, taken = (
            times + 1,
            seen + detected(path.parent),
            taken + trained(path.parent, out),
        )
        path.write_bytes(whole)
        shutil.rmtree(out, ignore_errors=True)
    return times, seen, taken


def damaged(store: Path, flips: int, cuts: int, rng: random.Random) -> int:
    """Damage a store in one place at a time; returns how often that was not seen, or trained on."""
    shards, manifest = sorted(store.glob("shard-*.safetensors")), store / "manifest.json"
    plans: dict[str, tuple[Damage, list[Path]]] = {
        "a bit of a shard": (flipped, rng.choices(shards, k=flips - flips // 3)),
        "a bit of the manifest": (flipped, [manifest] * (flips // 3)),
        "a file cut off": (cut, rng.choices([*shards, manifest], k=cuts)),
        "a file removed": (removed, [*shards, manifest]),
    }
    table, missed = (
        Table("damage", "times", "detected", "trained on", "s", title="damaged stores"),
        0,
    )
    for name, (damage, chosen) in plans.items():
        started = time.perf_counter()
        times, seen, taken = tried(damage, chosen, rng)
        table.add_row(
            name, f"{times:,}", f"{seen:,}", f"{taken:,}", f"{time.perf_counter() - started:.0f}"
        )
        missed += times - seen + taken
    Console(width=100).print(table)
    if detected(store) or not trained(
        store, store.parent / "student"
    ):  # else nothing above means anything
        print("the undamaged store is refused")
        missed += 1
    return missed


def repaired(settings: SimulateConfig, times: int, rng: random.Random) -> int:
    """Damage up to three files of a store and repair it; returns how often it was not the same
    again.
    """
    store, wrong = settings.out, 0
    wanted = files(store, "shard-*", "manifest*")
    for _ in range(times):
        either = store / rng.choice(
            ["manifest.json", "manifest.copy.json"]
        )  # one of them must be left
        for path in rng.sample([*sorted(store.glob("shard-*")), either], rng.randint(1, 3)):
            rng.choice([flipped, cut, removed])(path, rng)
        simulate(replace(settings, repair=True))
        wrong += files(store, "shard-*", "manifest*") != wanted or bool(leftovers(store))
    print(
        f"repaired to the same bytes: {times - wrong} of {times} stores with one to three damaged"
        " files"
    )
    return wrong

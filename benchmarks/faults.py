"""What killed processes and damaged files do to results: nothing, or a refusal that says how to
fix them.

    python benchmarks/faults.py            # two minutes on one thread, make faults

1. Kills. Every stage runs once undisturbed, then again and again in processes that SIGKILL ends: at
   a moment drawn over its working time, in its first or last milliseconds, or just as a file
   appears. The same call is made again, and perhaps killed again, until it ends. Its files must
   then have the digests of the undisturbed run (the arena: its figures but the clocks), and nothing
   may be left over: no temporary file, no record of a shard, no lock. A process that has ended
   before its kill is not counted.
2. Single bits of a store are turned over, its files cut off or removed: reading must name the
   damage, and distil must not train on it.
3. ``simulate --repair`` must give a damaged store back byte for byte.

The exit code is 1 if any of this does not hold. 2 and 3 are in ``damage.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # the children find it loaded
from damage import damaged, files, leftovers, repaired
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from bezierdistill.arena.runner import RESULT, ArenaConfig, arena
from bezierdistill.files import read_tensors
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ArenaRow, Shard, read_record, read_sealed, to_json
from bezierdistill.reporting.summary import gather
from bezierdistill.run import machine
from bezierdistill.settings import Coupling
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore, CurveWriter
from bezierdistill.training.settings import LoopConfig

NET = NetworkConfig(width=64, depth=2)
LOOP = LoopConfig(accelerator="cpu", save_every=25, log_every=25)
STEPS, ALIGN, ROWS, SHARD_BYTES = 600, 120, 8_000, 60_000
METHODS = ("rf-2", "rfd-1")
EDGE, POLL = 0.02, 0.0002  # seconds at either end of a run, between two looks at its folder
AGAIN = 0.3  # chance that a run which goes on is killed again
COUNTS = (
    "kills",
    "nothing saved",
    "midway",
    "all saved",
    "writing",
    "too late",
    "runs",
    "identical",
    "left over",
)


@dataclass(frozen=True)
class Stage:
    """A function of settings, the digests of what it makes in a folder, and the share of the work
    that a folder holds.
    """

    name: str
    make: Callable[[Any], object]
    settings: Any
    results: Callable[[Path], dict[str, str]]
    kept: Callable[[Path], float]


def steps_saved(folder: Path, **stages: int) -> float:
    """Share of the steps of all stages that their saved states hold."""
    states = [folder / f"state-{stage}.safetensors" for stage in stages]
    return sum(
        int(read_tensors(state)[1]["state"].split()[0]) for state in states if state.exists()
    ) / sum(stages.values())


def rows_saved(folder: Path) -> float:
    """Share of the rows whose shards have a record, or 1 if the store is complete."""
    with suppress(ValueError):
        CurveStore.open(folder)
        return 1.0
    return (
        sum(
            read_sealed(record, Shard, "record of a shard").rows
            for record in folder.glob("shard-*.json")
        )
        / ROWS
    )


def figures(folder: Path) -> dict[str, str]:
    """A digest of an arena's rows without their clocks."""
    rows = [to_json(replace(row, seconds=0.0, memory=0.0)) for row in gather(folder)]
    listed = len(read_record(folder / RESULT, list[ArenaRow], "arena"))
    return {"rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(), "listed": str(listed)}


def curves(teacher: Path, out: Path, packed: bool, count: int = ROWS) -> SimulateConfig:
    settings = SimulateConfig((teacher,), out, count=count, batch=64, accelerator="cpu")
    return changed(settings, points="uint8", noise="seed") if packed else settings


def teaching(data: str, coupling: Coupling, out: Path, steps: int = STEPS) -> TrainConfig:
    return TrainConfig(data, out, steps, 128, coupling=coupling, network=NET, loop=LOOP)


def stages(folder: Path) -> list[tuple[Stage, ...]]:
    """Two variants of every stage, and one of the arena, with their inputs made."""
    made: list[list[Stage]] = [[], [], []]
    saved = {"curves": STEPS // 2, "alignment": ALIGN}
    variants: tuple[tuple[str, Coupling, bool], ...] = (
        ("digits", "independent", False),
        ("manifold", "ot", True),
    )
    for data, coupling, packed in variants:
        teacher, store = folder / data, folder / f"{data}-curves"
        train(teaching(data, coupling, teacher, 100))
        simulate(curves(teacher, store, packed, ROWS // 2))
        student = DistillConfig(
            store, Path(), steps=STEPS // 2, batch=128, align=ALIGN, data=data, loop=LOOP
        )
        simulation, training = curves(teacher, Path(), packed), teaching(data, coupling, Path())
        made[0].append(
            Stage(
                "simulate",
                simulate,
                simulation,
                lambda out: files(out, "shard-*", "manifest*"),
                rows_saved,
            )
        )
        made[1].append(
            Stage(
                "train",
                train,
                training,
                lambda out: files(out, "model.*"),
                lambda out: steps_saved(out, teacher=STEPS),
            )
        )
        made[2].append(
            Stage(
                "distill",
                distill,
                student,
                lambda out: files(out, "model.*"),
                lambda out: steps_saved(out, **saved),
            )
        )
    network, loop = NetworkConfig(width=16, depth=2), changed(LOOP, save_every=10)
    rivals = ArenaConfig(
        "manifold",
        Path(),
        METHODS,
        60_000,
        1,
        samples=256,
        batch=32,
        network=network,
        loop=loop,
    )
    cells = Stage(
        "arena",
        arena,
        rivals,
        figures,
        lambda out: len(list((out / "cells").glob("*.json"))) / len(METHODS),
    )
    return [*map(tuple, made), (cells,)]


def start(stage: Stage, out: Path) -> int:
    """Run a stage in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        stage.make(changed(stage.settings, out=out))
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def ended(
    child: int, out: Path, seconds: float = 1e9, event: float = 1e9
) -> tuple[int | None, int]:
    """Wait for a process, or kill it after some seconds or when so many files have appeared: its
    exit code, None if killed; the files.
    """
    started, count = time.perf_counter(), 0
    seen: set[str] = set()
    try:
        while time.perf_counter() - started <= seconds and count < event:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), count
            now = {
                os.path.join(folder, name) for folder, _, names in os.walk(out) for name in names
            }
            count, seen = count + len(now - seen), now
            if count < event:
                time.sleep(POLL)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGKILL)
        raise
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (None if code == -signal.SIGKILL else code), count


def moment(rng: random.Random, seconds: float, events: int) -> dict[str, float]:
    """When to kill: anywhere, in the first or last milliseconds, or as a file appears."""
    way = rng.random()
    if way < 0.5:
        return {"seconds": rng.uniform(0, seconds)}
    if way < 0.7:
        return {"seconds": rng.uniform(0, EDGE) if way < 0.6 else seconds - rng.uniform(0, EDGE)}
    return {"event": rng.randint(1, events)}


def disturb(
    stage: Stage, kills: int, rng: random.Random, folder: Path, tally: dict[str, float]
) -> None:
    """Run a stage undisturbed, then as many times with one kill or more, and compare."""
    whole, started, aim = folder / "whole", time.perf_counter(), tally["runs"] + kills
    code, events = ended(start(stage, whole), whole)
    if code != 0:
        raise SystemExit(
            f"{stage.name} fails undisturbed:\n{whole.with_suffix('.log').read_text()}"
        )
    seconds, wanted, out = time.perf_counter() - started, stage.results(whole), folder / "out"
    while tally["runs"] < aim:
        code, kept, chance, hit, before = None, 0.0, 1.0, True, tally["kills"]
        while code is None:
            hit = rng.random() < chance
            code, _ = ended(
                start(stage, out), out, **(moment(rng, seconds * (1 - kept), events) if hit else {})
            )
            chance, kept = AGAIN, stage.kept(out)
            if code is None:
                tally["nothing saved" if kept == 0 else "all saved" if kept == 1 else "midway"] += 1
                tally["kills"], tally["kept"] = tally["kills"] + 1, tally["kept"] + kept
                tally["writing"] += any(out.rglob(".*.tmp"))
        tally["too late"] += hit
        if tally["kills"] > before:
            compare(stage, out, code, wanted, tally)
        shutil.rmtree(out)
    tally["seconds"] += time.perf_counter() - started


def compare(
    stage: Stage, out: Path, code: int, wanted: dict[str, str], tally: dict[str, float]
) -> None:
    """Count a run that has ended, and say what is wrong with it."""
    same, left, log = (
        code == 0 and stage.results(out) == wanted,
        leftovers(out),
        out.with_suffix(".log"),
    )
    if not same or left:
        print(
            f"{stage.name}: exit code {code}, results {'the same' if same else 'differ'}, left over"
            f" {left}"
        )
        print("\n".join(log.read_text().strip().splitlines()[-1:]))
    tally["runs"], tally["identical"], tally["left over"] = (
        tally["runs"] + 1,
        tally["identical"] + same,
        tally["left over"] + len(left),
    )
    log.unlink(missing_ok=True)


def killed(kills: int, arena_kills: int, rng: random.Random, folder: Path) -> int:
    """Kill every stage; returns how many runs ended otherwise than undisturbed ones, or left
    something over.
    """
    caption = (
        "nothing, all saved: no step or shard was on disk, or the last one; writing: a temporary"
        " file was there"
    )
    table, wrong = Table("stage", *COUNTS, "work kept", "s", title="SIGKILL", caption=caption), 0.0
    for variants, count in zip(
        stages(folder), [kills // 3, kills // 3, kills - 2 * (kills // 3), arena_kills], strict=True
    ):
        tally: dict[str, float] = defaultdict(float)
        for k, stage in enumerate(variants):
            place = folder / f"{stage.name}-{k}"
            place.mkdir()
            disturb(stage, count // len(variants) + (k < count % len(variants)), rng, place, tally)
        kept = f"{tally['kept'] / max(1, tally['kills']):.0%}"
        table.add_row(
            variants[0].name,
            *(f"{tally[name]:.0f}" for name in COUNTS),
            kept,
            f"{tally['seconds']:.0f}",
        )
        wrong += tally["runs"] - tally["identical"] + tally["left over"]
    Console(width=140).print(table)
    return int(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in {
        "kills": 100,
        "arena-kills": 10,
        "flips": 1000,
        "cuts": 100,
        "repairs": 20,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    many: Any = partialmethod(CurveWriter.plan, shard_bytes=SHARD_BYTES)
    CurveWriter.plan = many  # small shards instead of one
    rng, started, found = random.Random(chosen.seed), time.perf_counter(), machine()
    print(
        f"{found.processor}, {found.cores} cores, {found.threads} thread, torch"
        f" {found.versions['torch']}, seed {chosen.seed}"
    )
    with (
        tempfile.TemporaryDirectory() as temporary,
        open(os.devnull, "w") as silent,
        redirect_stderr(silent),
    ):
        folder = Path(temporary)
        wrong = killed(chosen.kills, chosen.arena_kills, rng, folder)
        settings = curves(folder / "digits", folder / "store", packed=True, count=1_800)
        simulate(settings)
        wrong += damaged(settings.out, chosen.flips, chosen.cuts, rng)
        wrong += repaired(settings, chosen.repairs, rng)
    print(
        f"{'everything holds' if not wrong else f'{wrong} times it does NOT hold'};"
        f" {(time.perf_counter() - started) / 60:.1f} minutes"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

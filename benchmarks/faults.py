"""What killed processes and damaged files do to results: nothing, or a refusal that says how to mend them.

    python benchmarks/faults.py            # six minutes on one thread, make faults

1. Kills. Every stage runs once undisturbed, then again and again in processes that SIGKILL ends: at a moment drawn over its working time, in
   its first or last milliseconds, or just as a file appears. The same call is made again, and perhaps killed again, until it ends. Its files
   must then have the digests of the undisturbed run (the arena: its figures but the clocks), and nothing may be left over: no temporary
   file, no record of a shard, no lock. A process that has ended before its kill is not counted.
2. Single bits of a store are turned over, its files cut off or removed: reading must name the damage, and distil must not train on it.
3. ``simulate --repair`` must give a damaged store back byte for byte.

The exit code is 1 if any of this does not hold.
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
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.utils.tensorboard  # noqa: F401  # the children find it loaded
from rich.console import Console
from rich.table import Table

from bezierdistill.arena.runner import ArenaConfig, arena, gather, machine
from bezierdistill.files import digest, locked, read_tensors
from bezierdistill.models import NetworkConfig
from bezierdistill.pipeline import distill, simulate, train
from bezierdistill.store import CurveStore, writer
from bezierdistill.training.config import DistillConfig, LoopConfig, SimulateConfig, TrainConfig

NET = NetworkConfig(width=64, depth=2)
LOOP = LoopConfig(accelerator="cpu", save_every=25, log_every=25)
STEPS, ALIGN, SHARD_BYTES = 600, 120, 60_000
EDGE, POLL = 0.02, 0.0002  # seconds at either end of a run, between two looks at its folder
AGAIN = 0.3  # chance that a run which goes on is killed again
PACKED = {"points": "uint8", "noise": "seed"}


@dataclass(frozen=True)
class Stage:
    """A call that fills a folder, the digests of what it gives, and the share of the work that a folder holds."""

    name: str
    run: Callable[[Path], object]
    results: Callable[[Path], dict[str, str]]
    kept: Callable[[Path], float]


def files(folder: Path, *patterns: str) -> dict[str, str]:
    """Digests of results by name."""
    return {path.name: digest(path) for pattern in patterns for path in folder.glob(pattern)}


def steps_saved(folder: Path, **stages: int) -> float:
    """Share of the steps of all stages that their saved states hold."""
    states = [folder / f"state-{stage}.safetensors" for stage in stages]
    return sum(int(read_tensors(state)[1]["step"]) for state in states if state.exists()) / sum(stages.values())


def rows_saved(folder: Path, shards: int) -> float:
    """Share of the shards that have a record, or 1 if the store is complete."""
    with suppress(ValueError):
        CurveStore.open(folder)
        return 1.0
    return len(list(folder.glob("shard-*.json"))) / shards


def figures(folder: Path) -> dict[str, str]:
    """A digest of an arena's rows without their clocks."""
    rows = [{key: value for key, value in row.items() if key not in ("seconds", "peak_memory_mb")} for row in gather(folder)]
    written = json.loads((folder / "arena.json").read_text())
    return {"rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(), "listed": str(len(written))}


def training(data: str, coupling: str) -> Stage:
    settings = TrainConfig(data, Path(), STEPS, 128, coupling=coupling, network=NET, loop=LOOP)  # pyright: ignore[reportArgumentType]

    def run(out: Path) -> object:
        return train(replace(settings, out=out))

    return Stage("train", run, lambda out: files(out, "model.*"), lambda out: steps_saved(out, teacher=STEPS))


def simulation(teacher: Path, **more: str) -> Stage:
    settings = SimulateConfig((teacher,), Path(), count=8_000, batch=64, accelerator="cpu", **more)  # pyright: ignore[reportArgumentType]

    def run(out: Path) -> object:
        return simulate(replace(settings, out=out))

    shards = 42 if more else 125
    return Stage("simulate", run, lambda out: files(out, "shard-*", "manifest*"), lambda out: rows_saved(out, shards))


def distillation(curves: Path, data: str) -> Stage:
    settings = DistillConfig(curves, Path(), steps=STEPS // 2, batch=128, align=ALIGN, data=data, loop=LOOP)

    def run(out: Path) -> object:
        return distill(replace(settings, out=out))

    return Stage("distill", run, lambda out: files(out, "model.*"), lambda out: steps_saved(out, curves=STEPS // 2, alignment=ALIGN))


def comparison(methods: str) -> Stage:
    network, loop = NetworkConfig(width=16, depth=2), replace(LOOP, save_every=10)
    settings = ArenaConfig("manifold", Path(), methods, 60_000, 1, samples=256, batch=32, network=network, loop=loop)

    def run(out: Path) -> object:
        return arena(replace(settings, out=out))

    return Stage("arena", run, figures, lambda out: len(list((out / "cells").glob("*.json"))) / len(methods.split(",")))


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
        stage.run(out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int, out: Path, seconds: float = 1e9, event: int = 10**9) -> tuple[int | None, int]:
    """Wait for a process, or kill it after some seconds or when so many files have appeared: its exit code, None if killed; the files."""
    started, seen, count = time.perf_counter(), set(), 0
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status), count
            now = {os.path.join(folder, name) for folder, _, names in os.walk(out) for name in names}  # noqa: PTH118  # quicker than paths
            count, seen = count + len(now - seen), now
            if time.perf_counter() - started > seconds or count >= event:
                break
            time.sleep(POLL)
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return (None if code == -signal.SIGKILL else code), count
    except KeyboardInterrupt:
        os.kill(child, signal.SIGKILL)
        raise


def leftovers(out: Path) -> list[str]:
    """What a finished run must not leave."""
    left = [path.name for pattern in (".*.tmp", ".*.gone", "shard-*.json") for path in out.rglob(pattern)]
    if (out / "manifest.json").exists():
        listed = {shard.file for shard in CurveStore.open(out).shards}
        left += [path.name for path in out.glob("shard-*.safetensors") if path.name not in listed]
    try:
        with locked(out):
            return left
    except ValueError as error:
        return [*left, str(error)]


@dataclass
class Tally:
    """What the kills of a stage have shown."""

    kills: int = 0
    unsaved: int = 0
    saved: int = 0
    writing: int = 0
    late: int = 0
    kept: float = 0.0
    runs: int = 0
    wrong: int = 0
    seconds: float = 0.0

    def kill(self, stage: Stage, out: Path) -> None:
        """Count a kill."""
        kept = stage.kept(out)
        self.kills, self.kept = self.kills + 1, self.kept + kept
        self.unsaved, self.saved = self.unsaved + (kept == 0), self.saved + (kept == 1)
        self.writing += any(out.rglob(".*.tmp"))


def moment(rng: random.Random, seconds: float, events: int) -> dict[str, float]:
    """When to kill: anywhere, in the first or last milliseconds, or as a file appears."""
    way = rng.random()
    if way < 0.5:
        return {"seconds": rng.uniform(0, seconds)}
    if way < 0.6:
        return {"seconds": rng.uniform(0, EDGE)}
    if way < 0.7:
        return {"seconds": seconds - rng.uniform(0, EDGE)}
    return {"event": rng.randint(1, events)}


def kill_runs(case: Stage, kills: int, rng: random.Random, folder: Path, tally: Tally) -> None:
    """Run a stage undisturbed, then disturbed until it was killed so often, and compare."""
    whole, started = folder / "whole", time.perf_counter()
    code, events = ended(start(case, whole), whole)
    if code != 0:
        raise SystemExit(f"{case.name} fails undisturbed:\n{whole.with_suffix('.log').read_text()}")
    seconds, wanted, aim = time.perf_counter() - started, case.results(whole), tally.kills + kills
    while tally.kills < aim:
        out, disturbed = folder / f"run-{tally.runs}-{tally.late}", 0
        while True:
            chance = tally.kills < aim and (not disturbed or rng.random() < AGAIN)
            code, _ = ended(start(case, out), out, **(moment(rng, seconds * (1 - case.kept(out)), events) if chance else {}))  # pyright: ignore[reportArgumentType]
            if code is not None:
                tally.late += chance
                break
            disturbed += 1
            tally.kill(case, out)
        left = leftovers(out)
        if code != 0 or case.results(out) != wanted or left:
            tally.wrong += 1
            log = out.with_suffix(".log").read_text().strip().splitlines()
            print(f"{case.name}: exit code {code}, left over: {left}, log ends: {log[-1:]}")
        tally.runs += disturbed > 0
        shutil.rmtree(out)
    tally.seconds += time.perf_counter() - started


def killed(kills: int, arena_kills: int, rng: random.Random, folder: Path) -> int:
    """Kill every stage; returns how many runs ended otherwise than undisturbed ones."""
    teachers = {}
    for data in ("digits", "manifold"):
        teachers[data] = train(TrainConfig(data, folder / data, 100, 128, network=NET, loop=LOOP)).folder
    stores = {"digits": folder / "curves", "manifold": folder / "packed"}
    for data, store in stores.items():
        simulate(SimulateConfig((teachers[data],), store, count=4_000, batch=64, accelerator="cpu", **(PACKED if data == "manifold" else {})))
    cases = [
        (simulation(teachers["digits"]), simulation(teachers["digits"], **PACKED)),
        (training("digits", "independent"), training("manifold", "ot")),
        tuple(distillation(store, data) for data, store in stores.items()),
        (comparison("rf-2,rfd-1"),),
    ]
    table = Table(title="SIGKILL", caption="nothing or all saved: no step or shard, or the last one, was on disk; writing: a file was half written")
    for heading in ("stage", "kills", "nothing saved", "midway", "all saved", "writing", "work kept", "runs", "identical", "too late", "s"):
        table.add_column(heading)
    wrong, given = 0, [kills // 3, kills // 3, kills - 2 * (kills // 3), arena_kills]
    for pair, count in zip(cases, given, strict=True):
        tally = Tally()
        for k, case in enumerate(pair):
            place = folder / f"{case.name}-{k}"
            place.mkdir()
            kill_runs(case, count // len(pair) + (k < count % len(pair)), rng, place, tally)
        midway, kept = tally.kills - tally.unsaved - tally.saved, tally.kept / max(1, tally.kills)
        counts = [tally.kills, tally.unsaved, midway, tally.saved, tally.writing, f"{kept:.0%}", tally.runs]
        table.add_row(pair[0].name, *map(str, counts), f"{tally.runs - tally.wrong}", str(tally.late), f"{tally.seconds:.0f}")
        wrong += tally.wrong
    Console(width=130).print(table)
    return wrong


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
        distill(DistillConfig(store, out, steps=1, batch=8, loop=LOOP))
        return True
    return out.exists() and any(path.name != ".lock" for path in out.iterdir())


def damaged(store: Path, flips: int, cuts: int, rng: random.Random) -> int:
    """Damage a store in one place at a time; returns how often that was not seen, or trained on."""
    shards, manifest, out = sorted(store.glob("shard-*.safetensors")), store / "manifest.json", store.parent / "student"
    places = [*shards, manifest]
    plans: dict[str, tuple[Callable[[Path, random.Random], None], Iterator[Path]]] = {
        "a bit of a shard": (flipped, (rng.choice(shards) for _ in range(flips - flips // 3))),
        "a bit of the manifest": (flipped, (manifest for _ in range(flips // 3))),
        "a file cut off": (cut, (rng.choice(places) for _ in range(cuts))),
        "a file removed": (removed, iter(places)),
    }
    table, missed = Table(title="damage"), 0
    for heading in ("damage", "times", "detected", "trained on", "s"):
        table.add_column(heading)
    for name, (damage, chosen) in plans.items():
        times, seen, taken, started = 0, 0, 0, time.perf_counter()
        for path in chosen:
            whole = path.read_bytes()
            damage(path, rng)
            times, seen, taken = times + 1, seen + detected(store), taken + trained(store, out)
            path.write_bytes(whole)
            shutil.rmtree(out, ignore_errors=True)
        table.add_row(name, f"{times:,}", f"{seen:,}", str(taken), f"{time.perf_counter() - started:.0f}")
        missed += times - seen + taken
    if detected(store) or not trained(store, out):
        missed += 1
        print("the whole store is refused")
    Console(width=100).print(table)
    return missed


def repaired(settings: SimulateConfig, times: int, rng: random.Random) -> int:
    """Damage up to three files of a store and repair it; returns how often it was not the same again."""
    store, wrong = settings.out, 0
    wanted = files(store, "shard-*", "manifest*")
    for _ in range(times):
        either = rng.choice(["manifest.json", "manifest.copy.json"])  # one of them must be left
        for path in rng.sample([*sorted(store.glob("shard-*")), store / either], rng.randint(1, 3)):
            rng.choice([flipped, cut, removed])(path, rng)
        simulate(replace(settings, repair=True))
        wrong += files(store, "shard-*", "manifest*") != wanted or bool(leftovers(store))
    print(f"repaired to the same bytes: {times - wrong} of {times} stores with one to three damaged files")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in {"kills": 100, "arena-kills": 10, "flips": 1000, "cuts": 100, "repairs": 20, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    writer.SHARD_BYTES = SHARD_BYTES  # many small shards instead of one
    rng, started, found = random.Random(chosen.seed), time.perf_counter(), machine()
    print(f"{found['processor']}, {found['cores']} cores, {found['threads']} thread, torch {found['torch']}, seed {chosen.seed}")
    with tempfile.TemporaryDirectory() as temporary, open(os.devnull, "w") as silent, redirect_stderr(silent):
        folder = Path(temporary)
        wrong = killed(chosen.kills, chosen.arena_kills, rng, folder)
        settings = SimulateConfig((folder / "digits",), folder / "store", count=900, batch=64, accelerator="cpu", **PACKED)
        simulate(settings)
        wrong += damaged(settings.out, chosen.flips, chosen.cuts, rng)
        wrong += repaired(settings, chosen.repairs, rng)
    print(f"{'everything holds' if not wrong else f'{wrong} times it does NOT hold'}; {(time.perf_counter() - started) / 60:.1f} minutes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

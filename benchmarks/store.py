"""What curves cost on disk and how fast they are read: bytes, rows per second against what training
consumes, memory.

    python benchmarks/store.py            # five minutes and 10 GB of disk, make store

1. bytes of a CIFAR-size curve of degree 3 with a byte per number and noise from its seed, against
   a pair of float32 states;
2. rows per second that a store gives, drawn at random or in epochs by two threads, over the rows
   that the demo's training consumes;
3. memory of writing 1,000,000 CIFAR-size curves (9 GB on disk, removed at the end) over 10,000, and
   of reading as many rows from the one as from the other, in fresh processes; pages of mapped
   files, which the system takes back when it needs them, are counted apart;
4. megabytes per second of writing, of checking and of reading, for plans of larger stores
(docs/scale.md).
"""

from __future__ import annotations

import contextlib
import io
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bezierdistill.curves import BezierCurve
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, noise
from bezierdistill.objectives import CurveRegression, Loss
from bezierdistill.objectives.base import Curves
from bezierdistill.objectives.intervals import MapIntervals
from bezierdistill.records import CurveRecipe
from bezierdistill.store import CurveStore, CurveWriter
from bezierdistill.training.batches import CurveBatches
from bezierdistill.training.loop import Trainer
from bezierdistill.training.settings import LoopConfig

CIFAR, DIGITS, LATENT = (3, 32, 32), (1, 8, 8), (4, 64, 64)
PACKED: dict[str, Any] = {"points": "uint8", "noise": "seed"}
BATCH, ROUNDS, SECONDS = 256, 5, 0.5
LIMITS = {"bytes": 9300, "reader": 5.0, "memory": 1.2}


def made(
    folder: Path, shape: tuple[int, ...], rows: int, degree: int = 3, **more: Any
) -> tuple[CurveStore, float]:
    """A store of random curves, read from its files, and the seconds that writing it took."""
    writer = CurveWriter(folder, CurveRecipe(degree=degree, shape=shape, **more))
    plans = writer.plan(rows, BATCH)
    points = torch.randn(degree + 1, BATCH, *shape)
    started = time.perf_counter()
    for plan in plans:
        parts = [min(BATCH, plan.rows - start) for start in range(0, plan.rows, BATCH)]
        writer.write(
            plan, [writer.pack(BezierCurve(points[:, :count])) for count in parts], 0, seed=0
        )
    writer.close(plans)
    return CurveStore.open(folder, small=0), time.perf_counter() - started


def rate(take: Callable[[], int]) -> float:
    """Rows per second of a call that gives a number of rows."""
    rows, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        rows += take()
    return rows / (time.perf_counter() - started)


def consumed(
    store: CurveStore, network: NetworkConfig, shape: tuple[int, ...], folder: Path, steps: int = 60
) -> float:
    """Rows per second that training on stored curves consumes, reading included."""
    objective, stamps = CurveRegression(MapIntervals(), Loss(0.03)), []
    loop = LoopConfig(accelerator="cpu", save_every=10**9)
    trainer = Trainer({"student": network.build(shape, 0)}, loop, folder, "bench")
    batches = CurveBatches(store, trainer, BATCH)

    def timed(generator: torch.Generator) -> Curves:
        stamps.append(time.perf_counter())
        return batches(generator)

    with contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(objective, timed, steps, 0)
    return BATCH / statistics.median(b - a for a, b in pairwise(stamps[5:]))


def readers(store: CurveStore) -> dict[str, float]:
    """Rows per second of both ways to read, from mapped files, not from memory as small stores
    are.
    """
    generator = torch.Generator().manual_seed(0)
    ahead = store.epochs(BATCH, 0)
    found = {
        "drawn": rate(lambda: len(store.batch(BATCH, generator)[0].source)),
        "epochs": rate(lambda: len(next(ahead)[0].source)),
    }
    ahead.close()  # pyright: ignore[reportAttributeAccessIssue]
    return found


def reading(folder: Path) -> list[tuple[str, float, float]]:
    """Rows per second of readers over those of training, in rounds of both: name, ratio, rows per
    second.
    """
    demo, image = NetworkConfig(), NetworkConfig("unet", 32, 1)
    cases = [
        ("demo's digits, float32", DIGITS, 4, demo, {}),
        ("demo's digits, uint8, seeded", DIGITS, 4, demo, PACKED),
        ("CIFAR size, uint8, seeded (U-Net)", CIFAR, 3, image, PACKED),
    ]
    rows = []
    for k, (name, shape, degree, network, more) in enumerate(cases):
        store, _ = made(folder / f"r{k}", shape, 20_000, degree, **more)
        steps = 60 if network.kind == "mlp" else 9
        rounds = [
            (readers(store), consumed(store, network, shape, folder / f"run{k}-{i}", steps))
            for i in range(ROUNDS)
        ]
        for way in ("drawn", "epochs"):
            ratio = statistics.median(found[way] / use for found, use in rounds)
            rows.append(
                (f"{name}, {way}", ratio, statistics.median(found[way] for found, _ in rounds))
            )
    return rows


CHILD = """
import sys, threading, time
from pathlib import Path
def memory(key):
    return next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith(key))
peak = {"RssAnon": 0.0, "RssFile": 0.0}
def watch():
    while True:
        for key in peak: peak[key] = max(peak[key], memory(key))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
sys.path.insert(0, sys.argv[1])
import store
if sys.argv[2] == "write":
    store.made(Path(sys.argv[3]), store.CIFAR, int(sys.argv[4]), **store.PACKED)
else:
    s = store.CurveStore.open(Path(sys.argv[3]), small=0)
    ahead = s.epochs(store.BATCH, 0)
    for _ in range(1_000_000 // store.BATCH): next(ahead)
    assert not list(s.verify())
print(peak["RssAnon"], peak["RssFile"])
"""


def memory(folder: Path) -> list[tuple[str, float, float]]:
    """Anonymous and mapped peak memory in MiB of writing and reading, for few and for many rows."""
    rows = []
    for way in ("write", "read"):
        for count in (10_000, 1_000_000):
            command = [
                sys.executable,
                "-c",
                CHILD,
                str(Path(__file__).parent),
                way,
                str(folder / f"m{count}"),
                str(count),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            own, mapped = map(float, done.stdout.split())
            rows.append((f"{way} {count:,} rows", own, mapped))
    return rows


def speeds(folder: Path, rows: int = 8192) -> tuple[int, dict[str, float]]:
    """Bytes of a CIFAR-size curve, and MB/s of disk of writing, checking, reading in a row, and of
    noise.
    """
    store, seconds = made(folder / "cifar", CIFAR, rows, **PACKED)
    size = sum(shard.bytes for shard in store.shards)
    found = {"write": size / seconds}
    started = time.perf_counter()
    assert not list(store.verify())
    found["check"] = size / (time.perf_counter() - started)
    order = iter(torch.arange(rows).split(BATCH))
    started = time.perf_counter()
    for part in order:
        store.take(part)
    found["read"] = size / (time.perf_counter() - started)
    drawn = rate(lambda: len(noise(0, Stream.SIMULATE, range(BATCH), CIFAR)))
    found["noise"] = drawn * prod(CIFAR) * 4
    return -(-size // rows), {name: value / 1e6 for name, value in found.items()}


def main() -> int:
    failed = 0
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size, found = speeds(folder)
        failed += size > LIMITS["bytes"]
        pair = 2 * 4 * prod(CIFAR)
        print(
            f"CIFAR-size curve of degree 3: {size:,} bytes (limit {LIMITS['bytes']:,}); a pair of"
            f" float32 states: {pair:,}"
        )
        print(", ".join(f"{name} {value:,.0f} MB/s" for name, value in found.items()))
        latent, _ = made(folder / "latent", LATENT, 512, **PACKED)
        print(
            f"curve of degree 3 of {LATENT} latents:"
            f" {-(-sum(shard.bytes for shard in latent.shards) // 512):,} bytes"
        )
        table = Table(title="readers against training")
        for heading in ("store", "rows per second", "over training", "limit"):
            table.add_column(heading)
        for name, ratio, rows in reading(folder):
            failed += ratio < LIMITS["reader"]
            table.add_row(
                name,
                f"{rows:,.0f}",
                f"{ratio:,.1f}",
                f"{LIMITS['reader']:g}" + ("" if ratio >= LIMITS["reader"] else " MISSED"),
            )
        Console(width=110).print(table)
        peaks = memory(folder)
        for name, own, mapped in peaks:
            print(
                f"{name}: {own:,.0f} MiB of its own, {mapped:,.0f} MiB of mapped files (libraries"
                " among them)"
            )
        for few, many in zip(peaks[::2], peaks[1::2], strict=True):
            failed += many[1] > LIMITS["memory"] * few[1]
            print(f"{many[0]} over {few[0]}: {many[1] / few[1]:.2f} (limit {LIMITS['memory']:g})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

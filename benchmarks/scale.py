"""Two processes against one on this machine, and what a million and a billion curves would take on
many.

    python benchmarks/scale.py                # three minutes, make scale
    python benchmarks/scale.py --rate 2500    # with the passes a second of your network and GPU

benchmarks/throughput.py measures these.

1. seconds of ``simulate`` and of ``train``: one process of one thread, two such processes under
   torchrun (gloo), one process of two threads; rounds are interleaved and ratios are medians. Both
   simulations must have written the same files.
2. a plan for 64 x 64 latents of four channels: bytes of a curve and seconds of checking it are
   measured here; passes a second of a GPU are an input, ``--rate``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bezierdistill.curves import BezierCurve
from bezierdistill.data import Scaling
from bezierdistill.models import Model, save_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import CurveRecipe, ModelCard, Passes
from bezierdistill.store import CurveStore, CurveWriter

LATENT, DEGREE = (4, 64, 64), 3
TEACHERS, SOLVER_STEPS, STEPS, STEP_ROWS = 2, 8, 400_000, 2048
ROUNDS, COUNT, TRAIN_STEPS = 3, 98_304, 200
Sizes = tuple[int, int]  # curves, steps

CHILD = """
import sys, time
from pathlib import Path
from bezierdistill.stages.simulate import simulate
from bezierdistill.stages.train import train
from bezierdistill.training.settings import LoopConfig
from bezierdistill.stages.simulate import SimulateConfig
from bezierdistill.stages.train import TrainConfig
from bezierdistill.training.ranks import open_fabric
out, count, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
fabric = open_fabric("cpu")
fabric.barrier()
started = time.perf_counter()
curves = {"count": count, "steps": 8, "accelerator": "cpu"}
simulate(SimulateConfig((out.parent / "teacher",), out / "curves", **curves))
first = time.perf_counter()
loop = LoopConfig(accelerator="cpu", save_every=10**6)
train(TrainConfig("manifold", out / "model", steps=steps, batch=512, loop=loop))
if fabric.global_rank == 0:
    print("SECONDS", first - started, time.perf_counter() - first)
"""


@dataclass(frozen=True)
class Way:
    """How many processes of how many threads."""

    name: str
    processes: int
    threads: int


WAYS = (
    Way("one process, one thread", 1, 1),
    Way("two processes, one thread each", 2, 1),
    Way("one process, two threads", 1, 2),
)


def timed(way: Way, script: Path, out: Path, sizes: Sizes) -> tuple[float, float]:
    """Seconds of simulating and of training."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={way.processes}"]
        if way.processes > 1
        else []
    )
    command = [sys.executable, *launcher, str(script), str(out), *map(str, sizes)]
    threads = {"OMP_NUM_THREADS": str(way.threads)}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **threads}
    )
    words = next(line for line in done.stdout.splitlines() if "SECONDS" in line).split()
    return float(words[-2]), float(words[-1])


def fingerprint(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted([*folder.glob("shard-*"), *folder.glob("manifest*")]):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def scaling(folder: Path, rounds: int, sizes: Sizes) -> bool:
    """Print rows per second of every way over those of the first; returns whether two processes
    wrote what one did.
    """
    network = NetworkConfig()
    card = ModelCard(
        kind="teacher",
        network=asdict(network),
        shape=(16,),
        scaling=Scaling(),
        seed=0,
        steps=0,
        passes=Passes(training=0),
    )
    save_model(folder / "teacher", Model(network.build((16,), 0), card))
    script = folder / "child.py"
    script.write_text(CHILD)
    seconds: dict[Way, list[tuple[float, float]]] = {way: [] for way in WAYS}
    prints: dict[Way, str] = {}
    for k in range(rounds):
        for way in WAYS:
            out = folder / f"{way.processes}-{way.threads}-{k}"
            seconds[way].append(timed(way, script, out, sizes))
            prints[way] = fingerprint(out / "curves")
    table = Table(
        title=f"{sizes[0]:,} curves and {sizes[1]} steps of 512 rows, MLP 5 x 256, 16 numbers"
    )
    for heading in ("", "simulate, s", "over one process", "train, s", "over one process"):
        table.add_column(heading)
    for way in WAYS:
        cells = []
        for stage in (0, 1):
            mine, base = (
                [row[stage] for row in seconds[way]],
                [row[stage] for row in seconds[WAYS[0]]],
            )
            cells += [
                f"{statistics.median(mine):.2f}",
                f"{statistics.median(b / a for a, b in zip(mine, base, strict=True)):.2f}",
            ]
        table.add_row(way.name, *cells)
    Console(width=110).print(table)
    same = prints[WAYS[0]] == prints[WAYS[1]]
    print(
        f"two processes wrote {'the same files as' if same else 'OTHER files than'} one, byte for"
        " byte"
    )
    return same


def measured(folder: Path, rows: int = 2048) -> tuple[float, float, float]:
    """Bytes of a curve of latents, bytes a second of writing and of checking."""
    recipe = CurveRecipe(
        degree=DEGREE, shape=LATENT, scaling=Scaling(layout="chw"), points="uint8", noise="seed"
    )
    writer = CurveWriter(folder, recipe)
    curve = BezierCurve(torch.randn(DEGREE + 1, 64, *LATENT))
    plans = writer.plan(rows, 64)
    started = time.perf_counter()
    for plan in plans:
        writer.write(plan, [writer.pack(curve) for _ in range(plan.rows // 64)], 0, seed=0)
    writer.close(plans)
    written = time.perf_counter() - started
    store = CurveStore.open(folder)
    size = sum(shard.bytes for shard in store.shards)
    started = time.perf_counter()
    assert not list(store.verify())
    return size / rows, size / written, size / (time.perf_counter() - started)


def plan(folder: Path, rate: float) -> None:
    """Print passes, bytes and hours for a million and a billion curves."""
    size, write, check = measured(folder / "latents")
    passes = 2 * SOLVER_STEPS * TEACHERS
    print(
        f"a curve of degree {DEGREE} of {LATENT}: {size:,.0f} bytes, {passes} passes ({TEACHERS}"
        f" teachers, Heun, {SOLVER_STEPS} steps)"
    )
    print(
        f"here a process writes {write / 1e6:,.0f} MB/s, {write / size:,.0f} curves a second, and"
        f" checks {check / 1e6:,.0f} MB/s"
    )
    table = Table(title=f"assumed: {rate:,.0f} passes a second a GPU")
    for heading in (
        "curves",
        "GPUs",
        "passes",
        "on disk",
        "simulate, h",
        "check, s",
        f"train {STEPS:,} x {STEP_ROWS}, h",
    ):
        table.add_column(heading)
    for curves in (10**6, 10**9):
        for gpus in (8, 512):
            hours = max(curves * passes / rate, curves * size / write) / gpus / 3600
            training = 3 * STEPS * STEP_ROWS / rate / gpus / 3600
            cells = (
                f"{curves * passes:.1e}",
                f"{curves * size / 1e12:,.2f} TB",
                f"{hours:,.1f}",
                f"{curves * size / check / gpus:,.0f}",
            )
            table.add_row(f"{curves:,}", str(gpus), *cells, f"{training:,.1f}")
    Console(width=110).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT, help="curves simulated")
    parser.add_argument("--steps", type=int, default=TRAIN_STEPS, help="steps trained")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--rate", type=float, default=1000.0, help="network passes a second of a GPU"
    )
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        same = scaling(Path(folder), arguments.rounds, (arguments.count, arguments.steps))
        plan(Path(folder), arguments.rate)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

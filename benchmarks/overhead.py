"""What our code costs beside the network: ratios measured in one run, ours over bare, alternating
so that the machine's moods cancel.

    python benchmarks/overhead.py

1. a training step of curve regression over forward, backward and optimizer step of the same network
   and batch;
2. simulation of curves (blend, solver, fit, store) over its bare network passes;
3. peak memory of ``simulate`` for 200,000 curves over 20,000 (two fresh processes).
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
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from bezierdistill.curves import BezierCurve
from bezierdistill.data import Scaling
from bezierdistill.fields import Blend, NetworkField
from bezierdistill.models import Model, save_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import noise
from bezierdistill.objectives import CurveRegression, Curves, Loss, MapIntervals
from bezierdistill.simulation import Simulation, simulate_shards
from bezierdistill.store import CurveStore, CurveWriter
from bezierdistill.training.batches import CurveBatches
from bezierdistill.training.loop import Trainer
from bezierdistill.training.settings import LoopConfig

ROUNDS = 9
LIMITS = {"training step": 1.10, "simulation": 1.10, "memory": 1.20}


def store(folder: Path, shape: tuple[int, ...], rows: int = 20_000) -> CurveStore:
    writer = CurveWriter(
        folder, {"degree": 4, "shape": list(shape), "teachers": [], "weights": [[1.0]]}
    )
    plans = writer.plan(rows, 4096)
    for plan in plans:
        writer.write(plan, [writer.pack(BezierCurve(torch.randn(5, plan.rows, *shape)))], 0)
    writer.close(plans)
    return CurveStore.open(folder)


def ours_seconds(
    net: nn.Module, curves: CurveStore, batch: int, steps: int, folder: Path
) -> list[float]:
    """Seconds of every step of the real training loop, logging and averaging included."""
    objective, stamps = CurveRegression(MapIntervals(), Loss(0.03)), []
    loop = LoopConfig(accelerator="cpu", save_every=10**9)
    trainer = Trainer({"student": net}, loop, folder, "bench")
    batches = CurveBatches(curves, trainer, batch)

    def timed(generator: torch.Generator) -> Curves:
        stamps.append(time.perf_counter())
        return batches(generator)

    with contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(objective, timed, steps, 0)
    return [b - a for a, b in pairwise(stamps[5:])]


def bare_seconds(net: nn.Module, shape: tuple[int, ...], batch: int, steps: int) -> list[float]:
    """Seconds of forward, backward and AdamW on fixed inputs."""
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    x, target, s, t = (
        torch.randn(batch, *shape),
        torch.randn(batch, *shape),
        torch.rand(batch),
        torch.rand(batch),
    )
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        adamw.zero_grad()
        (net(x, s, t, None) - target).square().mean().backward()
        adamw.step()
        seconds.append(time.perf_counter() - start)
    return seconds[5:]


def ratio(
    ours: Callable[[], float], bare: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Median of the rounds' ratios, and the median costs."""
    pairs = [(ours(), bare()) for _ in range(rounds)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def training_step(
    config: NetworkConfig, shape: tuple[int, ...], batch: int, steps: int
) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        curves = store(Path(folder) / "curves", shape)
        return ratio(
            lambda: statistics.median(
                ours_seconds(
                    config.build(shape, 0), curves, batch, steps, Path(tempfile.mkdtemp(dir=folder))
                )
            ),
            lambda: statistics.median(bare_seconds(config.build(shape, 0), shape, batch, steps)),
        )


def simulation(rows: int = 16_384, batch: int = 4096, steps: int = 8) -> tuple[float, float, float]:
    shape = (16,)
    nets = [NetworkConfig().build(shape, seed).eval() for seed in (0, 1)]

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            curves = Simulation(
                Blend([NetworkField(net) for net in nets], [[1.25], [-0.25]]), steps=steps
            )
            writer = CurveWriter(Path(folder), {"degree": 4, "shape": list(shape)})
            plans = writer.plan(rows, batch)
            simulate_shards(
                curves,
                lambda first, count: (noise(0, first, count, shape), None),
                plans,
                writer,
                batch,
            )
            writer.close(plans)
            return time.perf_counter() - start

    @torch.no_grad()
    def bare() -> float:
        x, t = torch.randn(batch, *shape), torch.rand(batch)
        start = time.perf_counter()
        for _ in range(rows // batch * steps * 2):
            for net in nets:
                net(x, t, t, None)
        return time.perf_counter() - start

    return ratio(ours, bare)


CHILD = """
import resource, sys
from bezierdistill.stages.simulate import simulate
from bezierdistill.stages.simulate import SimulateConfig
from itertools import pairwise
from pathlib import Path
simulate(SimulateConfig((Path(sys.argv[1]),), Path(sys.argv[2]), count=int(sys.argv[3]), steps=4))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / 2**10 if sys.platform == "linux" else peak / 2**20)
"""


def memory() -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        network = NetworkConfig()
        model = Model(
            network.build((16,), 0),
            network,
            (16,),
            Scaling(),
            card={"kind": "teacher", "passes": {"total": 0}},
        )
        save_model(Path(folder) / "teacher", model)
        peaks = []
        for count in (200_000, 20_000):
            command = [
                sys.executable,
                "-c",
                CHILD,
                f"{folder}/teacher",
                f"{folder}/curves-{count}",
                str(count),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(float(done.stdout.split()[-1]))
        return peaks[0] / peaks[1], *peaks


def main() -> int:
    mlp, dit = NetworkConfig(), NetworkConfig("dit", 64, 4)
    rows = [
        (
            "training step",
            "mlp 5x256, 16 numbers, batch 512",
            "ms",
            1e3,
            training_step(mlp, (16,), 512, 200),
        ),
        (
            "training step",
            "mlp 5x256, digits, batch 512",
            "ms",
            1e3,
            training_step(mlp, (1, 8, 8), 512, 200),
        ),
        (
            "training step",
            "DiT 4x64, digits, batch 128",
            "ms",
            1e3,
            training_step(dit, (1, 8, 8), 128, 40),
        ),
        ("simulation", "16,384 curves, blend of two, Heun 8", "s", 1.0, simulation()),
        ("memory", "simulate, 200,000 over 20,000 curves", "MiB", 1.0, memory()),
    ]
    table = Table(
        title=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for heading in ("what", "setting", "ours", "bare", "unit", "ratio", "limit", ""):
        table.add_column(
            heading, justify="right" if heading in ("ours", "bare", "ratio", "limit") else "left"
        )
    failed = 0
    for what, setting, unit, scale, (value, ours, bare) in rows:
        good = value <= LIMITS[what]
        failed += not good
        cells = (
            f"{ours * scale:.2f}",
            f"{bare * scale:.2f}",
            unit,
            f"{value:.3f}",
            f"{LIMITS[what]:.2f}",
            "ok" if good else "OVER",
        )
        table.add_row(what, setting, *cells)
    Console(width=130).print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

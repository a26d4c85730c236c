"""What our code costs beside the network: ratios measured in one run, ours over bare, alternating
so that the machine's moods cancel.

    python benchmarks/overhead.py

1. a training step of curve regression over forward, backward and optimizer step of the same network
   and batch;
2. simulation of curves (blend, solver, fit, store) and sampling (noise, knots, original units), at
   the batch that we choose, over as many bare network passes at the *best* batch of the bare
   network, which is found first;
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
from bezierdistill.memory import batch_size
from bezierdistill.models import Model, save_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, noise
from bezierdistill.objectives import CurveRegression, Curves, Loss, MapIntervals
from bezierdistill.records import CurveRecipe, ModelCard, Passes, to_json
from bezierdistill.simulation import Simulation
from bezierdistill.store import CurveStore, CurveWriter, simulate_shards
from bezierdistill.training.batches import CurveBatches
from bezierdistill.training.loop import Trainer
from bezierdistill.training.settings import LoopConfig

ROUNDS = 9
LIMITS = {"training step": 1.08, "simulation": 1.05, "sampling": 1.05, "memory": 1.20}
Ratio = tuple[float, float, float]
# Network, shape of a state, rows per training step, training steps, rows simulated and sampled.
CASES = {
    "mlp 5x256, 16 numbers": (NetworkConfig(), (16,), 512, 200, 16_384),
    "mlp 5x256, digits": (NetworkConfig(), (1, 8, 8), 512, 200, 16_384),
    "U-Net 32, 28x28": (NetworkConfig("unet", 32, 1, 2), (1, 28, 28), 64, 12, 256),
    "DiT 4x64, 28x28": (NetworkConfig("dit", 64, 4, 4), (1, 28, 28), 128, 20, 1024),
}


def flat(shape: tuple[int, ...]) -> Scaling:
    return Scaling(layout="flat" if len(shape) == 1 else "chw")


def store(folder: Path, shape: tuple[int, ...], rows: int) -> CurveStore:
    writer = CurveWriter(folder, CurveRecipe(degree=4, shape=shape, scaling=flat(shape)))
    plans = writer.plan(rows, rows)
    for plan in plans:
        writer.write(plan, [writer.pack(BezierCurve(torch.randn(5, plan.rows, *shape)))], 0)
    writer.close(plans)
    return CurveStore.open(folder)


class Stamped(CurveBatches):
    """Batches of curves that note when they are asked for."""

    stamps: list[float]

    def __call__(self, generator: torch.Generator) -> Curves:
        """A batch."""
        self.stamps.append(time.perf_counter())
        return super().__call__(generator)


def ours_seconds(net: nn.Module, curves: CurveStore, batch: int, steps: int) -> float:
    """Seconds of a step of the real training loop, logging and averaging included."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loop = LoopConfig(accelerator="cpu", save_every=10**9)
        trainer = Trainer({"student": net}, loop, Path(folder), "bench")
        batches = Stamped(curves, trainer, batch)
        batches.stamps = []
        trainer.fit(CurveRegression(MapIntervals(), Loss(0.03)), batches, steps, 0)
    return statistics.median(b - a for a, b in pairwise(batches.stamps[3:]))


def bare_seconds(net: nn.Module, shape: tuple[int, ...], batch: int, steps: int) -> float:
    """Seconds of forward, backward and AdamW on fixed inputs."""
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    x, target = torch.randn(batch, *shape), torch.randn(batch, *shape)
    s, t = torch.rand(2, batch)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        adamw.zero_grad()
        (net(x, s, t, None) - target).square().mean().backward()
        adamw.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def ratio(ours: Callable[[], float], bare: Callable[[], float], rounds: int = ROUNDS) -> Ratio:
    """Median of the rounds' ratios, and the median costs."""
    pairs = [(ours(), bare()) for _ in range(rounds)]
    ratios, ours_all, bare_all = zip(*((a / b, a, b) for a, b in pairs), strict=True)
    return statistics.median(ratios), statistics.median(ours_all), statistics.median(bare_all)


def training_step(config: NetworkConfig, shape: tuple[int, ...], batch: int, steps: int) -> Ratio:
    with tempfile.TemporaryDirectory() as folder:
        curves = store(Path(folder), shape, 4096)
        return ratio(
            lambda: ours_seconds(config.build(shape, 0), curves, batch, steps),
            lambda: bare_seconds(config.build(shape, 0), shape, batch, steps),
        )


@torch.no_grad()
def passes_seconds(nets: list[nn.Module], shape: tuple[int, ...], rows: int, batch: int) -> float:
    """Seconds of one bare pass of some rows through every network."""
    x, t = torch.randn(batch, *shape), torch.rand(batch)
    start = time.perf_counter()
    for _ in range(rows // batch):
        for net in nets:
            net(x, t, t, None)
    return time.perf_counter() - start


def best_batch(net: nn.Module, shape: tuple[int, ...], rows: int) -> int:
    """The batch at which the bare network is fastest."""
    batches = [2**k for k in range(3, 13) if 2**k <= rows]
    few = min(rows, 512)

    def seconds(batch: int) -> float:
        count = max(few, batch)
        trials = (passes_seconds([net], shape, count, batch) for _ in range(3))
        return min(trials) / count

    return min(batches, key=seconds)


def simulation(config: NetworkConfig, shape: tuple[int, ...], rows: int, best: int) -> Ratio:
    nets, steps = [config.build(shape, seed).eval() for seed in (0, 1)], 4
    curves = Simulation(Blend([NetworkField(net) for net in nets], [[1.25], [-0.25]]), steps=steps)
    batch = min(rows, batch_size(shape, "cpu", config.kind == "mlp"))

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            recipe = CurveRecipe(degree=4, shape=shape, scaling=flat(shape))
            writer = CurveWriter(Path(folder), recipe)
            plans = writer.plan(rows, batch)
            draw = lambda first, count: (  # noqa: E731
                noise(0, Stream.SIMULATE, range(first, first + count), shape),
                None,
            )
            simulate_shards(curves, draw, plans, writer, batch)
            writer.close(plans)
            return time.perf_counter() - start

    return ratio(
        ours, lambda: sum(passes_seconds(nets, shape, rows, best) for _ in range(2 * steps))
    )


def model(config: NetworkConfig, shape: tuple[int, ...]) -> Model:
    card = ModelCard(
        kind="teacher",
        network=to_json(config),
        shape=shape,
        scaling=flat(shape),
        seed=0,
        steps=1,
        passes=Passes(training=0),
    )
    return Model(config.build(shape, 0).eval().requires_grad_(False), card)


def sampling(config: NetworkConfig, shape: tuple[int, ...], rows: int, best: int) -> Ratio:
    made, passes = model(config, shape), 4

    def ours() -> float:
        start = time.perf_counter()
        made.sample(rows, passes)
        return time.perf_counter() - start

    return ratio(
        ours, lambda: sum(passes_seconds([made.net], shape, rows, best) for _ in range(passes))
    )


CHILD = """
import resource, sys
from pathlib import Path
from bezierdistill.stages.simulate import SimulateConfig, simulate
simulate(SimulateConfig((Path(sys.argv[1]),), Path(sys.argv[2]), count=int(sys.argv[3]), steps=4))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / 2**10 if sys.platform == "linux" else peak / 2**20)
"""


def memory() -> Ratio:
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        save_model(teacher, model(NetworkConfig(), (16,)))
        peaks = []
        for count in (200_000, 20_000):
            command = [sys.executable, "-c", CHILD, teacher, f"{folder}/curves-{count}", str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(float(done.stdout.split()[-1]))
        return peaks[0] / peaks[1], *peaks


def main() -> int:
    measured: list[tuple[str, str, str, float, Ratio]] = []
    for name, (config, shape, batch, steps, rows) in CASES.items():
        best = best_batch(config.build(shape, 0).eval(), shape, rows)
        ours = batch_size(shape, "cpu", config.kind == "mlp")
        told = f"{name}, batch {ours} (best {best})"
        step = training_step(config, shape, batch, steps)
        measured += [
            ("training step", f"{name}, batch {batch}", "ms", 1e3, step),
            ("simulation", told, "s", 1.0, simulation(config, shape, rows, best)),
            ("sampling", told, "s", 1.0, sampling(config, shape, rows, best)),
        ]
    measured.append(("memory", "simulate, 200,000 over 20,000 curves", "MiB", 1.0, memory()))
    threads = torch.get_num_threads()
    table = Table(title=f"{platform.machine()}, {threads} threads, torch {torch.__version__}")
    for heading in ("what", "setting", "ours", "bare", "unit", "ratio", "limit", ""):
        right = heading in ("ours", "bare", "ratio", "limit")
        table.add_column(heading, justify="right" if right else "left")
    failed = 0
    for what, setting, unit, scale, (value, ours, bare) in measured:
        good = value <= LIMITS[what]
        failed += not good
        costs = (f"{ours * scale:.2f}", f"{bare * scale:.2f}", unit)
        verdict = (f"{value:.3f}", f"{LIMITS[what]:.2f}", "ok" if good else "OVER")
        table.add_row(what, setting, *costs, *verdict)
    Console(width=130).print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

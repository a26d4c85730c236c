"""What the weights of your own module are worth: a student that starts from them against a network
of ours from scratch, on the same stored curves and for the same passes.

    python benchmarks/own_module.py --out runs/own [--data ../shared/data/fashion_mnist.npz]
    [--seeds 3] [--search]

A U-Net that is not ours (below) is trained for ten times the passes of the distillation. Both
students read the same curves, with the rate that did best on a seed of its own (``--search``, which
also prints what the others did). Finished cells are not run again; every call ends with
``OUT/results.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import bezierdistill as bd
from bezierdistill.files import read_tensors, write_json, write_tensors
from bezierdistill.metrics import Evaluator, classifier_features
from bezierdistill.reporting.plots import save_grid
from bezierdistill.run import machine

TEACHER_STEPS, BATCH, PASS = 4000, 64, 3
# 1,300 * 16 + 245 * 64 * 3 + 162 * 55 (the search of the knots): 76,750, a tenth of the teacher's
CURVES, STEPS = 1300, 245
NETWORK = bd.NetworkConfig("unet", 32, 1, 2)
RATES = {"own": 1e-3, "scratch": 2e-3}
SEARCHED, SEARCH_SEED = (5e-4, 1e-3, 2e-3, 4e-3), 100
COUNT = 5000  # samples that are judged


class Block(nn.Module):
    """Two convolutions around a shift by the time."""

    def __init__(self, inner: int, outer: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1)
        )
        self.time = nn.Linear(width, outer)
        self.second = nn.Sequential(
            nn.GroupNorm(8, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Hidden states of half the side."""
        hidden = self.first(x) + self.time(functional.silu(time))[:, :, None, None]
        return self.skip(x) + self.second(hidden)


class TheirUNet(nn.Module):
    """A U-Net of somebody else: ``net(x, time)``, time 0 at the noise, data minus noise."""

    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.high = nn.ModuleList([Block(width, width, 128), Block(2 * width, width, 128)])
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.low = nn.ModuleList([Block(2 * width, 2 * width, 128) for _ in range(3)])
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 4 * channels, 3, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Velocity of images."""
        phase = 1000 * time[:, None] * torch.exp(-torch.arange(32) / 32 * 9.21).to(x)
        embedded = self.time_mlp(torch.cat([phase.sin(), phase.cos()], 1))
        high = self.high[0](self.enter(functional.pixel_unshuffle(x, 2)), embedded)
        low = self.down(high)
        for block in self.low:
            low = block(low, embedded)
        back = self.up(functional.interpolate(low, scale_factor=2.0))
        return functional.pixel_shuffle(
            self.leave(self.high[1](torch.cat([high, back], 1), embedded)), 2
        )


def train_theirs(data: Any, seed: int, file: Path) -> nn.Module:
    """Their training loop, with averaged weights; read again if it is there."""
    torch.manual_seed(seed)
    net = TheirUNet(data.shape[0])
    if file.exists():
        net.load_state_dict(read_tensors(file)[0])
        return net
    mean, draws = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TEACHER_STEPS)
    for step in range(TEACHER_STEPS):
        x1, _ = data.batch(BATCH, draws)
        x0 = torch.randn(x1.shape, generator=draws)
        t = torch.rand(BATCH, generator=draws)
        x = torch.lerp(x0, x1, t[:, None, None, None])
        loss = (net(x, t) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, live in zip(mean.parameters(), net.parameters(), strict=True):
                kept.lerp_(live, 1 - decay)
    write_tensors(file, dict(mean.state_dict()))
    return mean


def run_cell(out: Path, data: Any, name: str, seed: int, rate: float) -> dict[str, Any]:
    """A student and its figures; read again if they are there."""
    cell = out / f"{name}-{seed}-{rate:g}"
    if (cell / "figures.json").exists():
        return json.loads((cell / "figures.json").read_text())
    theirs = train_theirs(data, seed, out / f"theirs-{seed}.safetensors")
    teacher = bd.Teacher(theirs, "velocity", bd.LinearSchedule("up"), data=str(data.name))
    curves, started = out / f"curves-{seed}", time.perf_counter()
    bd.simulate(
        bd.SimulateConfig(
            teachers=(teacher,), out=curves, count=CURVES, seed=seed, steps=8, batch=100
        )
    )
    student = {
        "own": teacher.student,
        "scratch": lambda: NETWORK,
    }[name]()
    config = bd.DistillConfig(
        curves,
        cell / "student",
        student=student,
        init="scratch" if name == "scratch" else "teacher",
        steps=STEPS,
        batch=BATCH,
        seed=seed,
        loop=bd.LoopConfig(lr=rate, accelerator="cpu"),
    )
    model = bd.distill(config)
    figures = judged(data, seed, {1: model, 2: model}, cell) | {
        "passes": model.spent,
        "seconds": time.perf_counter() - started,
    }
    write_json(cell / "figures.json", figures)
    return figures


def judged(data: Any, seed: int, samplers: dict[int, Any], cell: Path) -> dict[str, Any]:
    """Excess by random features and FD-classifier, by the number of passes."""
    random = Evaluator(data, seed)
    classifier = Evaluator(data, seed, classifier_features(data))
    found = {}
    for passes, model in samplers.items():
        solver = "euler" if model.card.kind == "student" else "heun"
        x = data.scaling.encode(model.sample(COUNT, passes, 1000 + seed, solver))
        first, second = random(x), classifier(x)
        found[str(passes)] = {
            "excess": first.frechet.excess,
            "FD-classifier": second.frechet.value,
            "precision": second.precision.value,
            "recall": second.recall.value,
        }
        save_grid(cell / f"{passes}.png", x[:64])
    return found


def teacher_cell(out: Path, data: Any, seed: int) -> dict[str, Any]:
    """The figures of the teacher at 20 passes."""
    cell = out / f"teacher-{seed}"
    if not (cell / "figures.json").exists():
        theirs = train_theirs(data, seed, out / f"theirs-{seed}.safetensors")
        teacher = bd.Teacher(theirs, "velocity", bd.LinearSchedule("up"), data=str(data.name))
        cell.mkdir(parents=True, exist_ok=True)
        write_json(cell / "figures.json", judged(data, seed, {20: teacher}, cell))
    return json.loads((cell / "figures.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="../shared/data/fashion_mnist.npz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search", action="store_true")
    arguments = parser.parse_args()
    data = bd.load_data(arguments.data)
    if arguments.search:
        for name in RATES:
            for rate in SEARCHED:
                figures = run_cell(arguments.out, data, name, SEARCH_SEED, rate)
                print(name, rate, json.dumps(figures["1"]), flush=True)
        return
    table: dict[tuple[str, str], list[dict[str, float]]] = {}
    spent = 0
    for seed in range(arguments.seeds):
        cells = {name: run_cell(arguments.out, data, name, seed, RATES[name]) for name in RATES}
        spent = cells["own"]["passes"]
        for name, figures in (cells | {"teacher": teacher_cell(arguments.out, data, seed)}).items():
            for passes in (key for key in figures if key.isdigit()):
                table.setdefault((name, passes), []).append(figures[passes])
    lines = [
        f"{arguments.data}, {arguments.seeds} seeds, {spent:,} passes of distillation,"
        f" {TEACHER_STEPS * BATCH * PASS:,} of the teacher; {machine().processor}",
        "",
        "| student | passes | excess | FD-classifier | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for (name, passes), rows in table.items():
        shown = [
            f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"
            if len(values := [row[key] for row in rows]) > 1
            else f"{values[0]:.2f}"
            for key in rows[0]
        ]
        lines.append(f"| {name} | {passes} | {' | '.join(shown)} |")
    (arguments.out / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

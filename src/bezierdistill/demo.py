"""The whole method on one data set beside rectified-flow distillation, with the same student network and the same total of passes.

    two teachers -> blend chosen on held-out data -> curves -> two-pass student with alignment
    one teacher  -> pairs -> (reflow ->) one-pass student, with the budget that ours has spent

Everything lies in one folder: models, curves, samples, ``metrics.json``.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bezierdistill import __version__
from bezierdistill.data import Data, load_data
from bezierdistill.fields import Blend
from bezierdistill.files import write_array, write_json
from bezierdistill.metrics import Evaluator, frechet_distance
from bezierdistill.models import Model, NetworkConfig, load_model
from bezierdistill.pipeline import distill, simulate, train
from bezierdistill.reflow import ReflowConfig, reflow
from bezierdistill.solvers import solve, time_grid
from bezierdistill.sources import noise
from bezierdistill.training.config import DistillConfig, LoopConfig, SimulateConfig, TrainConfig, as_paths

METRICS = "metrics.json"
GUIDANCE = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
FINER = (-0.1, 0.1)
SEARCH_SEED, JUDGE_SEED = 2_000_003, 1_000_003


@dataclass(frozen=True)
class DemoConfig:
    """Run the whole method beside rectified-flow distillation, at the same total of network passes, and write a report.

    Args:
        out: folder of the run.
        data: built-in name or path.
        seed: seed of everything.
        fast: a small run of a minute, to see that everything works; its figures mean little.
        steps: optimizer steps of the strong teacher; the student gets as many.
        weak_steps: optimizer steps of the weak teacher.
        align: steps of law alignment.
        batch: rows a step.
        count: number of curves, and of pairs for the rivals.
        samples: samples judged.
        network: the network of every teacher and student.
        loop: how weights are updated.
    """

    out: Path
    data: str = "digits"
    seed: int = 0
    fast: bool = False
    steps: int = 3000
    weak_steps: int = 500
    align: int = 600
    batch: int = 512
    count: int = 20_000
    samples: int = 4096
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        as_paths(self, "out")

    def scaled(self) -> DemoConfig:
        """The settings that are run: much smaller ones with ``fast``."""
        if not self.fast:
            return self
        return replace(self, steps=300, weak_steps=60, align=30, batch=128, count=2000, samples=512)


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run the comparison.

    Returns:
        What ``metrics.json`` holds: ``rows`` (a method and number of passes each, with ``passes``, ``spent_passes``, ``seconds`` and all
        metrics with floors), the ``search`` of the blend, the settings and the machine.

    Raises:
        ValueError: on bad data or settings, or a folder that holds another run.
    """
    data = load_data(config.data)
    if config.out.exists() and any(config.out.iterdir()):
        raise ValueError(f"{config.out} is not empty: choose another --out, or remove it")
    config = config.scaled()
    started = time.perf_counter()
    strong = train(_teacher(config, "teacher", config.steps, config.seed))
    weak = train(_teacher(config, "weak", config.weak_steps, config.seed + 1))
    weights, search = choose_blend(strong, weak, data, config.seed)
    student = _ours(config, weights)
    seconds = {"ours": time.perf_counter() - started}
    budget = student.spent + search["passes"]
    started = time.perf_counter()
    reflow(
        ReflowConfig(
            config.data,
            config.out / "reflow",
            teacher=config.out / "teacher",
            batch=config.batch,
            seed=config.seed,
            count=config.count,
            budget=budget,
            loop=config.loop,
        )
    )
    seconds["reflow"] = time.perf_counter() - started
    rows = _judge(config, data, strong, weak, weights, search["passes"])
    settings = {key: value for key, value in asdict(config).items() if key != "out"}
    result = {
        "data": config.data,
        "command": command(config),
        "settings": settings,
        "search": search,
        "budget": budget,
        "seconds": seconds,
        "machine": machine(),
        "rows": rows,
    }
    write_json(config.out / METRICS, result)
    return result


def _teacher(config: DemoConfig, name: str, steps: int, seed: int) -> TrainConfig:
    return TrainConfig(config.data, config.out / name, steps, config.batch, seed, network=config.network, loop=config.loop)


@torch.no_grad()
def choose_blend(strong: Model, weak: Model, data: Data, seed: int, steps: int = 8) -> tuple[str, dict[str, Any]]:
    """Choose the weight g of the strong teacher (the weak one has 1 - g) by the Frechet distance to validation data.

    Returns:
        The weights as text, and the record of the search: metric, trials, scores, passes spent.
    """
    real = data.real(min(data.count("valid") or 20_000, 20_000), seed, "valid")
    x0 = noise(seed + SEARCH_SEED, 0, 4096, data.shape)
    scores: dict[float, float] = {}

    def best() -> float:
        return min(scores, key=lambda g: scores[g])

    def trials(candidates: Iterable[float]) -> None:
        for g in candidates:
            blend = Blend([strong.field, weak.field], [[g], [1 - g]])
            scores[g] = frechet_distance(solve(blend, x0, time_grid(steps)).state, real)

    trials(GUIDANCE)
    trials([round(best() + step, 2) for step in FINER])
    passes = len(scores) * len(x0) * 2 * steps * 2
    record = {
        "metric": "frechet on validation data",
        "trials": len(scores),
        "scores": {str(g): scores[g] for g in sorted(scores)},
        "best": best(),
    }
    return f"{best():g},{1 - best():g}", record | {"passes": passes}


def _ours(config: DemoConfig, weights: str) -> Model:
    out = config.out
    curves = SimulateConfig((out / "teacher", out / "weak"), out / "curves", weights, count=config.count, seed=config.seed)
    simulate(curves)
    return distill(
        DistillConfig(
            out / "curves",
            out / "student",
            passes=2,
            align=config.align,
            steps=config.steps,
            batch=config.batch,
            seed=config.seed,
            loop=config.loop,
        )
    )


def _judge(config: DemoConfig, data: Data, strong: Model, weak: Model, weights: str, searched: int) -> list[dict[str, Any]]:
    """Sample every method from the same noise, keep the samples, and measure them."""
    out = config.out
    student = load_model(out / "student")
    rf = [load_model(out / "reflow" / f"round-{k}" / "student") for k in (1, 2)]
    second = load_model(out / "reflow" / "round-2" / "flow")
    g = float(weights.split(",", maxsplit=1)[0])
    blend = Blend([strong.field, weak.field], [[g], [1 - g]])
    ours = student.spent + searched
    methods: list[tuple[str, bool, int, int, Callable[[Tensor], Tensor]]] = [
        ("teacher, Heun", False, 40, strong.spent, lambda x: strong.generate(x, 40, "heun")),
        ("blend of teachers, Heun", False, 32, strong.spent + weak.spent + searched, lambda x: solve(blend, x, time_grid(8)).state),
        ("teacher, Euler", False, 2, strong.spent, lambda x: strong.generate(x, 2)),
        ("teacher, Euler", False, 1, strong.spent, lambda x: strong.generate(x, 1)),
        ("2-rectified flow, Euler", False, 2, second.spent, lambda x: second.generate(x, 2)),
        ("2-rectified flow, Euler", False, 1, second.spent, lambda x: second.generate(x, 1)),
        ("rectified-flow distillation, k=1", False, 1, rf[0].spent, lambda x: rf[0].generate(x, 1)),
        ("rectified-flow distillation, k=2", False, 1, rf[1].spent, lambda x: rf[1].generate(x, 1)),
        ("Bezier distillation", True, 2, ours, lambda x: student.generate(x, 2)),
        ("Bezier distillation", True, 1, ours, lambda x: student.generate(x, 1)),
    ]
    evaluate, x0 = Evaluator(data), noise(config.seed + JUDGE_SEED, 0, config.samples, data.shape)
    write_array(out / "samples" / "real.npz", data.scaling.decode(data.real(evaluate.size(config.samples), 0, "test")))
    rows = []
    for method, is_ours, passes, spent, generate in methods:
        x = generate(x0)
        name = f"{_slug(method)}-{passes}.npz"
        own = data.scaling.decode(x)
        write_array(out / "samples" / name, own)
        rows.append(
            {
                "method": method,
                "ours": is_ours,
                "passes": passes,
                "spent_passes": spent,
                "samples": name,
                **evaluate(data.scaling.encode(own)),
            }
        )
    return rows


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).replace("--", "-").strip("-")


def command(config: DemoConfig) -> str:
    """The command that runs these settings again."""
    plain = {key: value for key, value in vars(config).items() if isinstance(value, int | str) and not isinstance(value, bool)}
    parts = [f"{name}.{key}" for name in ("network", "loop") for key in vars(getattr(config, name))]
    values = {part: getattr(getattr(config, part.split(".")[0]), part.split(".")[1]) for part in parts}
    return " ".join(["bezierdistill demo --out DIR", *(f"--{key} {value}" for key, value in (plain | values).items())])


def machine() -> dict[str, Any]:
    """Where a result comes from: processor, threads, versions."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bezierdistill": __version__,
    }

"""Run methods against each other: cells of a method and a seed, resumable, judged on the same
held-out samples from the same noise.
"""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bezierdistill.arena.bench import Bench, Method, Sampler
from bezierdistill.arena.methods import METHODS, OURS
from bezierdistill.data import Data, load_data
from bezierdistill.errors import UserError
from bezierdistill.files import (
    check_entries,
    claim,
    discard,
    load_function,
    locked,
    read_json,
    remove_unfinished,
    write_array,
    write_json,
)
from bezierdistill.metrics import Evaluator
from bezierdistill.models import NetworkConfig
from bezierdistill.noise import noise
from bezierdistill.progress import announce
from bezierdistill.run import machine, recorded
from bezierdistill.settings import as_paths, check_counts, check_seed, check_whole_batches
from bezierdistill.stages.train import conditions_of
from bezierdistill.training.ranks import open_fabric
from bezierdistill.training.settings import LoopConfig

RESULT, SETTINGS = "arena.json", "run.json"
JUDGE_SEED = 1_000_003
# What every row of a cell has, and what those of a method that ran have.
HEAD = {"method": str, "seed": int, "ours": bool}
RATIOS = ("frechet_ratio", "sliced_wasserstein_ratio", "energy_ratio")
FIGURES = {"passes": int} | dict.fromkeys(
    ("spent_passes", "seconds", "peak_memory_mb", *RATIOS), (int, float)
)


@dataclass(frozen=True)
class ArenaConfig:
    """Compare few-step methods within one budget of network passes.

    All have the same network and optimizer, and are judged alike.

    Example::

        bezierdistill arena --data digits --methods bezier,rfd-1 --out runs/arena
        bezierdistill arena --data moons --fast --out runs/quick
    """

    data: str
    """Built-in name or path (of vectors or images)."""
    out: Path
    """Folder of the run; cells that are finished there are not run again."""
    methods: str = "all"
    """All, or names separated by commas; a path ending in .py enters a method of your own (its
    function method(bench))."""
    budget: int = 2_000_000
    """Network passes that each method may spend: a forward counts 1, forward and backward 3, a
    row."""
    seeds: int = 3
    """Number of seeds."""
    first_seed: int = 0
    """The first of them."""
    samples: int = 4096
    """Samples judged."""
    batch: int = 256
    """Rows a step."""
    keep_samples: bool = False
    """Keep the judged samples as samples/METHOD-SEED-PASSES.npz, and the held-out real ones as
    samples/real.npz."""
    keep_models: bool = False
    """Keep the models and curves of every cell; otherwise only figures stay."""
    conditional: bool = False
    """Train every network on the data's labels or conditions, and judge samples of as frequent
    ones."""
    fast: bool = False
    """A small network, budget and few samples, to see that everything runs; its figures mean
    little."""
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(width=192, depth=3))
    """The network of every teacher and student."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        as_paths(self, "out")
        check_seed(self.first_seed)
        check_counts(budget=self.budget, seeds=self.seeds, samples=self.samples, batch=self.batch)

    def scaled(self) -> ArenaConfig:
        """The settings that are run: much smaller ones with ``fast``."""
        if not self.fast:
            return self
        return replace(
            self,
            budget=400_000,
            batch=64,
            samples=512,
            network=replace(self.network, width=32, depth=2),
        )


def arena(config: ArenaConfig, verb: str = "arena", asked: object = None) -> list[dict[str, Any]]:
    """Run every cell that is not finished, and write ``arena.json``.

    Args:
        config: the settings.
        verb: by which command the run was asked for.
        asked: the settings of that command, if they are not these.

    Returns:
        Its rows, one a method, seed and number of passes: ``method``, ``ours``, ``seed``,
        ``passes``, ``spent_passes``, ``seconds``, ``peak_memory_mb``, and every metric with its
        ``_floor`` and ``_ratio``; a cell that failed is one row with its ``error``.

    Raises:
        UserError: on bad data or settings, an unknown method, or a folder that holds an arena with
            other settings or is being written.
    """
    asked, config = asked or config, config.scaled()
    methods, data = choose_methods(config.methods), load_data(config.data)
    if open_fabric(config.loop.accelerator).device.type != "cpu":
        raise UserError(
            f"accelerator {config.loop.accelerator!r} is not the CPU here, on which the arena"
            " trains: --loop.accelerator cpu"
        )
    check_whole_batches(config.loop)
    if config.conditional:
        conditions_of(data)
    with locked(config.out):
        _claim(config)
        for part in ("cells", "samples"):
            remove_unfinished(config.out / part)
        with recorded(config.out, verb, asked):
            _run_cells(config, methods, data)
            rows = gather(config.out)
            write_json(config.out / RESULT, rows)
    return rows


def _run_cells(config: ArenaConfig, methods: Mapping[str, Method], data: Data) -> None:
    evaluate = Evaluator(data)
    if config.keep_samples:
        write_array(
            config.out / "samples" / "real.npz",
            data.scaling.decode(data.real(evaluate.size(config.samples), 0, "test")),
        )
    for k, seed in enumerate(range(config.first_seed, config.first_seed + config.seeds)):
        for place, (name, method) in enumerate(methods.items(), 1 + k * len(methods)):
            announce(f"cell {place} of {len(methods) * config.seeds}: {name}, seed {seed}")
            cell = config.out / "cells" / f"{name}-{seed}.json"
            if not cell.exists():
                write_json(cell, {"rows": _run_cell(config, data, evaluate, name, method, seed)})
                write_json(config.out / RESULT, gather(config.out))
        if not config.keep_models:
            discard(config.out / "shared" / str(seed))


def gather(out: Path) -> list[dict[str, Any]]:
    """The rows of all finished cells of a folder."""
    return [row for cell in sorted((out / "cells").glob("*.json")) for row in _rows(cell)]


def _rows(cell: Path) -> list[dict[str, Any]]:
    rows = check_entries(read_json(cell, "arena cell"), {"rows": list}, str(cell))["rows"]
    for row in rows:
        failed = isinstance(row, dict) and "error" in row
        check_entries(row, HEAD | ({"error": str} if failed else FIGURES), f"a row of {cell}")
    return rows


def choose_methods(text: str) -> dict[str, Method]:
    """Methods by name: ``all``, names separated by commas, paths of Python files.

    Raises:
        UserError: on a name that is not known, or a file without a function ``method``.
    """
    chosen: dict[str, Method] = {}
    for name in METHODS if text == "all" else [part.strip() for part in text.split(",")]:
        if name.endswith(".py"):
            if Path(name).stem in chosen:
                raise UserError(
                    f"two methods are called {Path(name).stem}: rename {name}, or list it once"
                )
            chosen[Path(name).stem] = _from_file(Path(name))
        elif name in METHODS:
            chosen[name] = METHODS[name]
        else:
            raise UserError(
                f"no method called {name!r}: expected all, a path ending in .py, or some of"
                f" {', '.join(METHODS)}"
            )
    return chosen


def _from_file(path: Path) -> Method:
    if path.stem in METHODS:
        raise UserError(f"{path} has the name of a method of the arena: rename the file")
    return load_function(
        path, "method", "takes a bench, trains on it and returns {passes: sampler}"
    )


def _claim(config: ArenaConfig) -> None:
    """Take a folder, or check that its settings are these; methods and seeds may be added."""
    free = ("out", "methods", "seeds", "first_seed", "keep_samples", "keep_models")
    settings = {key: value for key, value in asdict(config).items() if key not in free}
    claim(config.out / SETTINGS, settings, "arena", machine=machine())


def _run_cell(
    config: ArenaConfig, data: Data, evaluate: Evaluator, name: str, method: Method, seed: int
) -> list[dict[str, Any]]:
    folder = config.out / "models" / f"{name}-{seed}"
    shared = config.out / "shared" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)  # what a stopped run left of this cell
    bench = Bench(
        data,
        config.budget,
        seed,
        folder,
        shared,
        config.batch,
        config.network,
        config.loop,
        config.conditional,
    )
    head = {"method": name, "ours": name == OURS, "seed": seed}
    _reset_peak()
    started = time.perf_counter()
    try:
        samplers = method(bench)
        if not isinstance(samplers, Mapping) or not samplers:
            raise UserError(
                f"{name} returned {type(samplers).__name__}, expected {{passes: sampler}} with one"
                " sampler or more"
            )
        cost = {
            "spent_passes": bench.spent,
            "seconds": round(time.perf_counter() - started + bench.seconds, 2),
            "peak_memory_mb": round(_peak_mb(), 1),
        }
        rows = [
            {
                **head,
                "passes": passes,
                **cost,
                **_judge(config, data, evaluate, name, seed, passes, sampler),
            }
            for passes, sampler in sorted(samplers.items())
        ]
    except (ValueError, FloatingPointError) as error:
        print(f"{name}, seed {seed}: {error}", file=sys.stderr)
        return [{**head, "error": " ".join(str(error).split())}]
    finally:
        if not config.keep_models:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


@torch.no_grad()
def _judge(
    config: ArenaConfig,
    data: Data,
    evaluate: Evaluator,
    name: str,
    seed: int,
    passes: int,
    sampler: Sampler,
) -> dict[str, Any]:
    """Metrics of a sampler's samples as they would be saved: in own units, clamped to their
    range.
    """
    x0 = noise(JUDGE_SEED + seed, 0, config.samples, data.shape)
    cond = judged_conditions(data, config.samples, seed) if config.conditional else None
    x = sampler(x0) if cond is None else sampler(x0, cond=cond)
    if x.shape != x0.shape:
        raise UserError(
            f"the sampler of {passes} passes made samples of shape {tuple(x.shape)}, expected"
            f" {tuple(x0.shape)} as its noise"
        )
    own = data.scaling.decode(x)
    if config.keep_samples:
        labels = {} if cond is None or not data.classes else {"labels": cond.argmax(1).numpy()}
        write_array(config.out / "samples" / f"{name}-{seed}-{passes}.npz", own, **labels)
    metrics = evaluate(data.scaling.encode(own))
    bad = [
        key
        for key, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if bad:
        raise UserError(
            f"samples at {passes} passes are so far off that {bad[0]} is not finite: the method has"
            " diverged"
        )
    return metrics


def judged_conditions(data: Data, count: int, seed: int) -> Tensor | None:
    """Conditions of the judged samples: those of training data, which are as frequent as they
    should be.
    """
    return data.batch(count, torch.Generator().manual_seed(JUDGE_SEED + seed))[1]


def _reset_peak() -> None:
    """Start measuring peak memory anew, where the system can (Linux, but not in every sandbox)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Peak memory in MB since the last reset: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss  # since the start of the process; macOS counts bytes, others kB
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

"""Run methods against each other: cells of a method and a seed, resumable, judged on the same
held-out samples from the same noise: ``bezierdistill arena``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UnfitError, UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objects import as_named, find_function, is_object, label
from bezierdistill.settings import (
    WORDS,
    Contents,
    as_paths,
    check_counts,
    check_seed,
    check_whole_batches,
    written,
)
from bezierdistill.stages.sources import as_data
from bezierdistill.training.settings import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from bezierdistill.arena.bench import Method, Sampler
    from bezierdistill.data import Data
    from bezierdistill.metrics import Evaluator
    from bezierdistill.records import ArenaRow, Scores

RESULT = "arena.json"
FREE = ("methods", "seeds", "first_seed", "keep_samples", "keep_models")


@dataclass(frozen=True)
class ArenaConfig:
    """Compare few-step methods within one budget of network passes.

    All have the same network and optimizer, and are judged alike.

    Example::

        bezierdistill arena --data digits --methods bezier,rfd-1 --out runs/arena
        bezierdistill arena --data moons --fast --out runs/quick
    """

    data: str | object
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function, of vectors or images; in Python an
    object as well."""
    out: Path
    """Folder of the run; cells that are finished there are not run again."""
    methods: tuple[str | object, ...] = written(("all",), WORDS)
    """All, or names separated by commas; FILE.py:function enters a method of your own, a function
    method(bench)."""
    budget: int = 2_000_000
    """Network passes that each method may spend: a forward counts 1, forward and backward 3, per
    row."""
    seeds: int = 3
    """Number of seeds."""
    first_seed: int = 0
    """The first of them."""
    samples: int = 4096
    """Samples judged."""
    batch: int = 256
    """Rows per step."""
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
        as_named(self, "methods")
        as_data(self, "data")
        check_seed(self.first_seed)
        check_counts(budget=self.budget, seeds=self.seeds, samples=self.samples, batch=self.batch)
        check_whole_batches(self.loop.accumulate)
        if self.loop.accelerator not in ("auto", "cpu"):
            raise UserError(
                f"loop.accelerator is {self.loop.accelerator!r}, expected cpu: methods of the arena"
                " are compared on the processor"
            )

    def scaled(self) -> ArenaConfig:
        """The settings that are run: much smaller ones with ``fast``."""
        own = replace(self, loop=replace(self.loop, accelerator="cpu"))
        if not self.fast:
            return own
        return replace(
            own,
            budget=400_000,
            batch=64,
            samples=512,
            network=replace(self.network, width=32, depth=2),
        )


CONTENTS = Contents(
    "methods compared within one budget of network passes",
    {
        "arena.json": "the result: a row for each method, seed and number of passes",
        "cells/": "the same by method and seed; remove a cell's file to run it again",
        "samples/": "judged samples, where they are kept",
        "models/, shared/": "models and curves of every method, where they are kept",
    },
)


def arena(config: ArenaConfig, verb: str = "arena", asked: object = None) -> list[ArenaRow]:
    """Run every cell that is not finished, and write ``arena.json``.

    Args:
        config: the settings.
        verb: by which command the run was asked for.
        asked: the settings of that command, if they are not these.

    Returns:
        A row per method, seed and number of passes; a cell that failed is one row with its error.

    Raises:
        UserError: on bad data or settings, an unknown method, or a folder that holds an arena with
            other settings or is being written.
    """
    from bezierdistill.data import load_data
    from bezierdistill.files import remove_unfinished, write_json
    from bezierdistill.records import to_json
    from bezierdistill.reporting.summary import gather
    from bezierdistill.run import Run
    from bezierdistill.stages.train import conditions_of

    asked, fast, config = asked or config, config.fast, config.scaled()
    methods, data = choose_methods(config.methods), load_data(config.data)
    if config.conditional:
        conditions_of(data)
    with Run(config.out, verb, config, CONTENTS, FREE, asked=asked, fast=fast):
        for part in ("cells", "samples"):
            remove_unfinished(config.out / part)
        crashed = _run_cells(config, methods, data)
        rows = gather(config.out)
        write_json(config.out / RESULT, to_json(rows))
    return rows + crashed


def _run_cells(config: ArenaConfig, methods: Mapping[str, Method], data: Data) -> list[ArenaRow]:
    """Run the cells; rows of those that ended in an error that is no user's, which are tried again
    by the next run.
    """
    import traceback

    from bezierdistill.files import discard, write_array, write_json
    from bezierdistill.metrics import Evaluator
    from bezierdistill.progress import announce
    from bezierdistill.records import ArenaRow, to_json
    from bezierdistill.reporting.summary import gather

    evaluate, crashed = Evaluator(data), []
    if config.keep_samples:
        real = data.real(evaluate.size(config.samples), 0, "test")
        write_array(config.out / "samples" / "real.npz", data.scaling.decode(real))
    for k, seed in enumerate(range(config.first_seed, config.first_seed + config.seeds)):
        for place, (name, method) in enumerate(methods.items(), 1 + k * len(methods)):
            announce(f"cell {place} of {len(methods) * config.seeds}: {name}, seed {seed}")
            cell = config.out / "cells" / f"{name}-{seed}.json"
            if cell.exists():
                continue
            try:
                rows = _run_cell(config, data, evaluate, name, method, seed)
            except Exception as error:
                if isinstance(error, OSError) and not hasattr(error, "__notes__"):
                    raise  # a full disk, which no other cell would survive
                traceback.print_exc()  # of a method: it helps who wrote it
                told = f"{type(error).__name__}: {error}"
                crashed.append(ArenaRow(method=name, seed=seed, error=told))
                continue
            write_json(cell, to_json(rows))
            write_json(config.out / RESULT, to_json(gather(config.out)))
        if not config.keep_models:
            discard(config.out / "shared" / str(seed))
    return crashed


def choose_methods(names: Sequence[Any]) -> dict[str, Method]:
    """Methods by name: ``all``, names, functions of Python files.

    Raises:
        UserError: on a name that is not known, or a file without such a function.
    """
    from bezierdistill.arena.methods import METHODS

    chosen: dict[str, Method] = {}
    for name in METHODS if tuple(names) == ("all",) else names:
        own = label(name, "method")
        if name in METHODS:
            chosen[name] = METHODS[name]
        elif not is_object(name):
            raise UserError(
                f"no method called {name!r}: expected all, FILE.py:function, or some of"
                f" {', '.join(METHODS)}"
            )
        elif own in chosen or own in METHODS:
            raise UserError(f"two methods are called {own}: rename {name}")
        else:
            does = "takes a bench, trains on it and returns {passes: sampler}"
            chosen[own] = find_function(name, "method", does)
    return chosen


def _run_cell(
    config: ArenaConfig, data: Data, evaluate: Evaluator, name: str, method: Method, seed: int
) -> list[ArenaRow]:
    import shutil
    import time
    from collections.abc import Mapping

    from bezierdistill.arena.bench import Bench
    from bezierdistill.arena.methods import OURS
    from bezierdistill.arena.peak import peak_mb, reset_peak
    from bezierdistill.budget import Budget
    from bezierdistill.records import ArenaRow

    folder = config.out / "models" / f"{name}-{seed}"
    shared = config.out / "shared" / str(seed)
    shutil.rmtree(folder, ignore_errors=True)  # what a stopped run left of this cell
    budget = Budget(config.budget, config.batch)
    bench = Bench(
        data, budget, seed, folder, shared, config.network, config.loop, config.conditional
    )
    ours = name == OURS
    reset_peak()
    started = time.perf_counter()
    try:
        samplers = method(bench)
        if not isinstance(samplers, Mapping) or not samplers:
            raise UserError(
                f"{name} returned {type(samplers).__name__}, expected {{passes: sampler}} with one"
                " sampler or more"
            )
        seconds = round(time.perf_counter() - started + bench.seconds, 2)
        memory = round(peak_mb(), 1)
        return [
            ArenaRow(
                method=name,
                seed=seed,
                ours=ours,
                passes=passes,
                spent=budget.spent,
                seconds=seconds,
                memory=memory,
                scores=_judge(config, data, evaluate, f"{name}-{seed}-{passes}", seed, sampler),
            )
            for passes, sampler in sorted(samplers.items())
        ]
    except (UserError, FloatingPointError) as error:
        print(f"{name}, seed {seed}: {error}", file=sys.stderr)
        return [ArenaRow(method=name, seed=seed, ours=ours, error=" ".join(str(error).split()))]
    finally:
        if not config.keep_models:
            shutil.rmtree(folder, ignore_errors=True)


def _judge(
    config: ArenaConfig, data: Data, evaluate: Evaluator, name: str, seed: int, sampler: Sampler
) -> Scores:
    """Metrics of a sampler's samples as they would be saved: in original units, clamped to their
    range.
    """
    import torch

    from bezierdistill.files import write_array
    from bezierdistill.noise import Stream, noise

    x0 = noise(seed, Stream.JUDGE, range(config.samples), data.shape)
    cond = judged_conditions(data, config.samples, seed) if config.conditional else None
    with torch.no_grad():
        x = sampler(x0) if cond is None else sampler(x0, cond=cond)
    if x.shape != x0.shape:
        raise UserError(
            f"{name} made samples of shape {tuple(x.shape)}, expected {tuple(x0.shape)} as its"
            " noise"
        )
    if not bool(x.isfinite().all()):
        raise UserError(f"{name} made NaN or infinite samples: the method has diverged")
    original = data.scaling.decode(x)
    if config.keep_samples:
        labels = {} if cond is None or not data.classes else {"labels": cond.argmax(1).numpy()}
        write_array(config.out / "samples" / f"{name}.npz", original, **labels)
    scores = evaluate(data.scaling.encode(original))
    if not scores.finite:
        raise UserError(f"{name} is so far off that a metric is not finite: it has diverged")
    return scores


def judged_conditions(data: Data, count: int, seed: int) -> Tensor | None:
    """Conditions of the judged samples: those of training data, which are as frequent as they
    should be.
    """
    from bezierdistill.noise import Stream

    return data.take(range(count), seed, Stream.JUDGE)[1]


def compared(out: Path, rows: list[ArenaRow]) -> dict[str, Any]:
    """Print the table of an arena, tell which cells failed, and write its report.

    Raises:
        UnfitError: if a method ended in an error of its own, which the next run tries again.
    """
    from bezierdistill.records import to_json
    from bezierdistill.reporting import write_report
    from bezierdistill.reporting.tables import print_arena

    print_arena(rows)
    failed = [f"{row.method} (seed {row.seed})" for row in rows if row.error is not None]
    if failed:
        print(f"failed: {', '.join(failed)}; see above and the report", file=sys.stderr)
    page = write_report(out)
    print(page)
    result = {"out": out, "rows": to_json(rows), "report": page}
    broken = [row for row in rows if not (out / "cells" / f"{row.method}-{row.seed}.json").exists()]
    if broken:
        raise UnfitError(
            f"{len(broken)} cells ended in errors of their methods, whose tracebacks are above: fix"
            " these, and the same command tries them again",
            result,
        )
    return result


def main_arena(config: ArenaConfig) -> dict[str, Any]:
    """The verb ``arena``."""
    return compared(config.out, arena(config))

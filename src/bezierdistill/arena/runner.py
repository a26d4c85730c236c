"""Run methods against each other: cells of a method and a seed, resumable, judged on the same
held-out samples from the same noise: ``bezierdistill arena``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.errors import UnfitError, UserError
from bezierdistill.networks.config import NetworkConfig, ask_for
from bezierdistill.objects import START, as_named, find_function, is_object, label
from bezierdistill.reporting.names import method_lines
from bezierdistill.settings import (
    WORDS,
    Contents,
    Usual,
    as_paths,
    check_choice,
    check_counts,
    check_seed,
    check_whole_batches,
    settle,
    written,
)
from bezierdistill.stages.evaluate import check_metrics
from bezierdistill.stages.sources import as_data
from bezierdistill.training.settings import LoopConfig
from bezierdistill.words import counted, did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bezierdistill.arena.bench import Method
    from bezierdistill.arena.cells import Cell, Cells
    from bezierdistill.records import ArenaRow

Track = Literal["own-teacher", "given-teacher"]
RESULT = "arena.json"
GIVEN = "teacher-20"  # the given teacher's own samples, in every table of its track
FREE = (
    *("methods", "seeds", "first_seed", "keep_samples", "keep_models", "jobs"),
    *("teacher", "weak"),  # which are known by their digests
)


def small_network() -> NetworkConfig:
    """The arena's own network."""
    return NetworkConfig(width=Usual(192, fast=32), depth=Usual(3, fast=2))


@dataclass(frozen=True)
class ArenaConfig:
    """Compare few-step methods within one budget of network passes.

    All have the same network and optimizer, and are judged alike.

    Example::

        bezierdistill arena --data digits --methods bezier,rfd-1 --out runs/arena
        bezierdistill arena --data moons --fast --out runs/quick
        bezierdistill arena --data digits --track given-teacher --teacher runs/mine --out runs/own
    """

    EPILOG = f"""The methods, by their names; one of your own is FILE.py:function.

{method_lines()}"""

    data: str | object
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function, of vectors or images; in Python an
    object as well."""
    out: Path
    """Folder of the run; cells that are finished there are not run again, those that have failed
    are."""
    methods: tuple[str | object, ...] = written(("all",), WORDS)
    """All, or names separated by commas; FILE.py:function enters a method of your own, a function
    method(bench)."""
    budget: int = Usual(2_000_000, fast=400_000)
    """Network passes that each method may spend: a forward counts 1, forward and backward 3, per
    row."""
    seeds: int = 3
    """Number of seeds."""
    first_seed: int = 0
    """The first of them."""
    samples: int = Usual(4096, fast=512)
    """Samples judged."""
    batch: int = Usual(256, fast=64)
    """Rows per step."""
    track: Track = "own-teacher"
    """Whether a method trains its teacher out of its own budget, or is given one, and the budget
    is that of distillation alone; methods from scratch are not entered then."""
    teacher: Path | None = None
    """The teacher that is given; without it one is trained for each seed with ten times the budget,
    and a weak one with 8 % of its steps."""
    weak: Path | None = None
    """A weak teacher that is given beside it; without it methods that want one train it."""
    extractor: tuple[str | object, ...] = written(("auto",), WORDS)
    """Features to judge by beside the random ones, as for evaluate: random (these alone),
    classifier, squeezenet:PATH, inception:PATH, dino:FOLDER, FILE.py:function; auto is the
    classifier of labelled images, else random."""
    metric: tuple[str | object, ...] = written((), WORDS)
    """Metrics of your own beside the others, as FILE.py:function, which takes two sets of states
    and returns a number."""
    jobs: int = 1
    """Processes that share the cells, of one thread each; no more than cores."""
    keep_samples: bool = False
    """Keep the judged samples as samples/METHOD-SEED-PASSES.npz, and the held-out real ones as
    samples/real.npz."""
    keep_models: bool = False
    """Keep the models and curves of every cell; otherwise only figures stay."""
    conditional: bool = False
    """Train every network on the data's labels or conditions, and judge samples of as frequent
    ones."""
    fast: bool = False
    """A small network (width 32, depth 2), 400,000 passes, batches of 64 and 512 samples, to see
    that everything runs; its figures mean little. What is given is kept."""
    network: NetworkConfig = field(default_factory=small_network)
    """The network of every teacher and student."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        settle(self, self.fast)
        as_paths(self, "out")
        for name in ("teacher", "weak"):
            if getattr(self, name) is not None:
                as_paths(self, name)
        as_named(self, "methods", "extractor", "metric")
        as_data(self, "data")
        check_metrics(self.metric)
        ask_for(self.network)
        check_choice("track", self.track, Track)
        check_seed(self.first_seed)
        check_counts(budget=self.budget, seeds=self.seeds, samples=self.samples, batch=self.batch)
        check_counts(jobs=self.jobs)
        check_whole_batches(self.loop.accumulate)
        if self.teacher is not None and self.track != "given-teacher":
            raise UserError(
                f"teacher is {self.teacher} and track {self.track}: expected --track given-teacher"
            )
        if self.weak is not None and self.teacher is None:
            raise UserError(f"weak is {self.weak} and teacher none: expected --teacher as well")


CONTENTS = Contents(
    "methods compared within one budget of network passes",
    {
        "arena.json": "the result: a row for each method, seed and number of passes",
        "arena.csv, arena.tex, arena.md, arena.pdf, arena.svg": "the table and its figure, where"
        " report --to asks for them",
        "cells/": "the rows by method and seed, or the error and its traceback; remove a cell's"
        " file to run it again",
        "samples/": "judged samples, where they are kept",
        "models/, shared/": "models and curves of every method, where they are kept, and teachers"
        " that are given to all of a seed",
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
        UserError: on bad data or settings, an unknown method, a teacher that does not fit, or a
            folder that holds an arena with other settings or is being written.
    """
    from bezierdistill.arena.cells import RESULTS, Cell, Cells
    from bezierdistill.arena.given import check_given
    from bezierdistill.data import load_data
    from bezierdistill.files import discard, remove_unfinished
    from bezierdistill.run import Run
    from bezierdistill.stages.train import conditions_of
    from bezierdistill.training.ranks import open_fabric

    asked = asked or config
    methods, data = choose_methods(config.methods, config.track), load_data(config.data)
    if config.conditional:
        conditions_of(data)
    _check_jobs(config)
    device = open_fabric(config.loop.accelerator).device.type  # auto is another run elsewhere
    config = replace(config, loop=replace(config.loop, accelerator=device))
    runner, identity = Cells(config, data, methods), check_given(config, data)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    cells = [Cell(name, seed) for seed in seeds for name in methods]
    runner.check_metrics(config.first_seed)
    with Run(config.out, verb, config, CONTENTS, FREE, identity, asked=asked, fast=config.fast):
        for part in (RESULTS, "samples"):
            remove_unfinished(config.out / part)
        _keep_real(config, runner)
        _run_cells(config, runner, [cell for cell in cells if not cell.finished(config.out)])
        for seed in seeds if not config.keep_models else ():
            discard(config.out / "shared" / str(seed))  # what a stopped run has left
        rows = _written(config.out)
        return [row for row in rows if not row.error or Cell(row.method, row.seed) in cells]


def cores() -> int:
    """Cores that this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1


def _check_jobs(config: ArenaConfig) -> None:
    """Refuse more processes than cores, and objects that other processes do not have."""
    import json

    from bezierdistill.records import to_json

    if config.jobs > cores():
        told = f"jobs is {config.jobs}, expected 1 to {cores()}"
        raise UserError(f"{told}: no more processes than cores")
    if config.jobs > 1 and f'"{START}' in json.dumps(to_json(config)):
        raise UserError(
            f"jobs is {config.jobs} and some settings are Python objects, which other processes do"
            " not have: expected FILE.py:function, or 1"
        )


def _keep_real(config: ArenaConfig, runner: Cells) -> None:
    from bezierdistill.files import write_array

    if config.keep_samples:
        data, size = runner.data, runner.evaluator(config.first_seed, "").size(config.samples)
        real = data.scaling.decode(data.real(size, 0, "test"))
        write_array(config.out / "samples" / "real.npz", real)


def _run_cells(config: ArenaConfig, runner: Cells, cells: list[Cell]) -> None:
    """Run cells, here or in several processes; what a seed's cells share goes with the last."""
    from bezierdistill.arena.cells import Cell
    from bezierdistill.files import discard
    from bezierdistill.progress import announce

    seeds, left = sorted({cell.seed for cell in cells}), set(cells)

    def done(cell: Cell) -> None:
        left.discard(cell)
        _written(config.out)
        if cell.method and not config.keep_models and cell.seed not in {c.seed for c in left}:
            discard(config.out / "shared" / str(cell.seed))

    given = [Cell("", seed) for seed in seeds if config.track == "given-teacher"]
    if config.jobs > 1:
        from bezierdistill.arena.crew import Crew

        crew, order = Crew(config, done), list(dict.fromkeys(cell.method for cell in cells))
        crew.run(given)
        # Seeds take turns, so that few cells wait for a teacher that another is training.
        crew.run(sorted(cells, key=lambda cell: order.index(cell.method)))
        return
    for k, cell in enumerate(cells, 1):
        announce(f"cell {k} of {len(cells)}: {cell.method}, seed {cell.seed}")
        runner.run(Cell("", cell.seed))
        runner.run(cell)
        done(cell)


def _written(out: Path) -> list[ArenaRow]:
    """The rows of all finished cells, which ``arena.json`` has now."""
    from bezierdistill.files import write_json
    from bezierdistill.records import to_json
    from bezierdistill.reporting.summary import gather

    rows = gather(out)
    write_json(out / RESULT, to_json(rows))
    return rows


def choose_methods(names: Sequence[Any], track: Track = "own-teacher") -> dict[str, Method]:
    """Methods by name: ``all``, names, functions of Python files. Where teachers are given, those
    from scratch are left out, and the given one's own samples at 20 passes are always among them.

    Raises:
        UserError: on a name that is not known, a method from scratch where teachers are given, or a
            file without such a function.
    """
    from bezierdistill.arena.methods import METHODS, SCRATCH

    given = track == "given-teacher"
    chosen: dict[str, Method] = {}
    entered = [name for name in METHODS if not (given and name in SCRATCH)]
    for name in chain.from_iterable(entered if name == "all" else (name,) for name in names):
        own = label(name, "method")
        if name in METHODS and name not in entered:
            raise UserError(
                f"{name} learns without a teacher, and track given-teacher compares what is made of"
                " a given one: leave it out, or choose --track own-teacher"
            )
        if name in METHODS:
            chosen[name] = METHODS[name]
        elif not is_object(name):
            raise UserError(
                f"no method called {str(name)[:80]!r}, expected all, FILE.py:function or names that"
                f" bezierdistill arena --help lists{did_you_mean(name, METHODS)}"
            )
        elif own in chosen or own in METHODS:
            raise UserError(f"two methods are called {own}: rename {name}")
        else:
            does = "takes a bench, trains on it and returns {passes: sampler}"
            chosen[own] = find_function(name, "method", does)
    return chosen | ({GIVEN: METHODS[GIVEN]} if given else {})


def compared(out: Path, rows: list[ArenaRow]) -> dict[str, Any]:
    """Print the table of an arena, and write its report.

    Raises:
        UnfitError: if cells have failed: which, and where their tracebacks are.
    """
    from bezierdistill.records import to_json
    from bezierdistill.reporting import write_report
    from bezierdistill.reporting.tables import print_arena

    print_arena(rows)
    page = write_report(out)
    print(page)
    result = {"out": out, "rows": to_json(rows), "report": page}
    if failed := [f"{row.method}, seed {row.seed}" for row in rows if row.error is not None]:
        count, cells = len(failed), counted(len({(row.method, row.seed) for row in rows}), "cell")
        raise UnfitError(
            f"{count} of {cells} failed ({listed(failed, '; ')}): tracebacks are in {page} and"
            f" {out / RESULT}, the same command tries them again",
            result,
            code=1,
        )
    return result


def main_arena(config: ArenaConfig) -> dict[str, Any]:
    """The verb ``arena``."""
    return compared(config.out, arena(config))

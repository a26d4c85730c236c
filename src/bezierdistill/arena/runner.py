"""Run methods against each other: cells of a method and a seed, resumable, judged on the same
held-out samples from the same noise: ``bezierdistill arena``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.errors import UnfitError, UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objects import START, as_named, find_function, is_object, label
from bezierdistill.settings import (
    WORDS,
    Contents,
    as_paths,
    check_choice,
    check_counts,
    check_seed,
    check_whole_batches,
    written,
)
from bezierdistill.stages.sources import as_data
from bezierdistill.training.settings import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bezierdistill.arena.bench import Method
    from bezierdistill.arena.cells import Cell, Cells
    from bezierdistill.records import ArenaRow

Track = Literal["own-teacher", "given-teacher"]
RESULT, TABLES = "arena.json", ("csv", "latex")
GIVEN = "teacher-20"  # the given teacher's own samples, in every table of its track
FREE = (
    *("methods", "seeds", "first_seed", "keep_samples", "keep_models", "jobs", "retry"),
    *("to", "teacher", "weak"),  # the last two are known by their digests
)


@dataclass(frozen=True)
class ArenaConfig:
    """Compare few-step methods within one budget of network passes.

    All have the same network and optimizer, and are judged alike.

    Example::

        bezierdistill arena --data digits --methods bezier,rfd-1 --out runs/arena
        bezierdistill arena --data moons --fast --out runs/quick
        bezierdistill arena --data digits --track given-teacher --teacher runs/mine --out runs/own
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
    track: Track = "own-teacher"
    """Whether a method trains its teacher out of its own budget, or is given one, and the budget
    is that of distillation alone; methods from scratch are not entered then."""
    teacher: Path | None = None
    """The teacher that is given; without it one is trained for each seed with ten times the budget,
    and a weak one with 8 % of its steps."""
    weak: Path | None = None
    """A weak teacher that is given beside it; without it methods that want one train it."""
    judges: tuple[str | object, ...] = written(("auto",), WORDS)
    """Further features to judge by, beside the random ones: classifier, squeezenet:PATH,
    FILE.py:function; auto is the classifier of labelled images, else none."""
    jobs: int = 1
    """Processes that share the cells, of one thread each; no more than cores."""
    retry: bool = False
    """Run cells that have failed again; those that ended in an error of their method are in any
    case."""
    to: tuple[str, ...] = written((), WORDS)
    """Write the table as arena.csv (csv) or arena.tex (latex) as well, with all figures and their
    standard errors."""
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
        for name in ("teacher", "weak"):
            if getattr(self, name) is not None:
                as_paths(self, name)
        as_named(self, "methods", "judges")
        as_data(self, "data")
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
        if wrong := [name for name in self.to if name not in TABLES]:
            raise UserError(f"to is {', '.join(wrong)}, expected some of {', '.join(TABLES)}")

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


CONTENTS = Contents(
    "methods compared within one budget of network passes",
    {
        "arena.json": "the result: a row for each method, seed and number of passes",
        "arena.csv, arena.tex": "the table, where --to asks for it",
        "cells/": "the rows by method and seed; remove a cell's file to run it again",
        "crashed/": "cells that ended in an error of their method, which are tried again",
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
    from bezierdistill.arena.cells import CRASHED, RESULTS, Cell, Cells, forget_failures
    from bezierdistill.arena.given import check_given
    from bezierdistill.data import load_data
    from bezierdistill.files import discard, remove_unfinished
    from bezierdistill.reporting.arenas import crashes
    from bezierdistill.run import Run
    from bezierdistill.stages.train import conditions_of
    from bezierdistill.training.ranks import open_fabric

    asked, fast, config = asked or config, config.fast, config.scaled()
    methods, data = choose_methods(config.methods, config.track), load_data(config.data)
    if config.conditional:
        conditions_of(data)
    _check_jobs(config)
    device = open_fabric(config.loop.accelerator).device.type  # auto is another run elsewhere
    config = replace(config, loop=replace(config.loop, accelerator=device))
    runner, identity = Cells(config, data, methods), check_given(config, data)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    cells = [Cell(name, seed) for seed in seeds for name in methods]
    with Run(config.out, verb, config, CONTENTS, FREE, identity, asked=asked, fast=fast):
        for part in (RESULTS, CRASHED, "samples"):
            remove_unfinished(config.out / part)
        if config.retry:
            forget_failures(config.out, cells)
        _keep_real(config, runner)
        _run_cells(config, runner, [cell for cell in cells if not cell.file(config.out).exists()])
        for seed in seeds if not config.keep_models else ():
            discard(config.out / "shared" / str(seed))  # what a stopped run has left
        broken = [row for row in crashes(config.out) if Cell(row.method, row.seed) in cells]
        return _written(config.out) + broken


def _check_jobs(config: ArenaConfig) -> None:
    """Refuse more processes than cores, and objects that other processes do not have."""
    import json

    from bezierdistill.records import to_json

    known = getattr(os, "sched_getaffinity", None)
    cores = len(known(0)) if known else os.cpu_count() or 1
    if config.jobs > cores:
        told = f"jobs is {config.jobs}, expected 1 to {cores}"
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
                f"no method called {name!r}: expected all, FILE.py:function, or some of"
                f" {', '.join(METHODS)}"
            )
        elif own in chosen or own in METHODS:
            raise UserError(f"two methods are called {own}: rename {name}")
        else:
            does = "takes a bench, trains on it and returns {passes: sampler}"
            chosen[own] = find_function(name, "method", does)
    return chosen | ({GIVEN: METHODS[GIVEN]} if given else {})


def compared(out: Path, rows: list[ArenaRow], to: Sequence[str] = ()) -> dict[str, Any]:
    """Print the table of an arena, write it as files of the kinds ``to``, tell which cells failed
    and why, and write its report.

    Raises:
        UnfitError: if a method ended in an error of its own, which the next run tries again.
    """
    from bezierdistill.records import to_json
    from bezierdistill.reporting import write_report
    from bezierdistill.reporting.export import write_csv, write_latex
    from bezierdistill.reporting.tables import print_arena

    print_arena(rows)
    tables = {"csv": (out / "arena.csv", write_csv), "latex": (out / "arena.tex", write_latex)}
    for path, write in (tables[kind] for kind in to):
        write(path, rows)
        print(path)
    for row in rows:
        if row.error is not None:
            print(f"failed: {row.method}, seed {row.seed}: {row.error}", file=sys.stderr)
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
    return compared(config.out, arena(config), config.to)

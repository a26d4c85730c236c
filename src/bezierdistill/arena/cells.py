"""Cells of the arena: a method and a seed, trained within the budget and judged, each a file of its
own once it is finished.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from bezierdistill.arena.bench import TRAINED, Bench, Method, Sampler
from bezierdistill.arena.given import digests, given_teachers, network_of
from bezierdistill.arena.methods import OURS, TRAINED_ON
from bezierdistill.arena.peak import peak_mb, reset_peak
from bezierdistill.budget import Budget
from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.files import write_array
from bezierdistill.memory import batch_size
from bezierdistill.metrics import Evaluator, load_extractor
from bezierdistill.noise import Stream, noise
from bezierdistill.objects import is_object, label
from bezierdistill.records import ArenaRow, Scores, read_record, write_record
from bezierdistill.training.ranks import open_fabric

if TYPE_CHECKING:
    from bezierdistill.arena.runner import ArenaConfig

RESULTS, CRASHED = "cells", "crashed"


class Cell(NamedTuple):
    """A method and a seed; without a method, the teachers that are given to all of the seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.seed}"

    def file(self, out: Path, kind: str = RESULTS) -> Path:
        """Where its rows are, once it is finished, or has crashed."""
        return out / kind / f"{self.name}.json"


def choose_judges(config: ArenaConfig, data: Data) -> dict[str, nn.Module]:
    """Further extractors by name: those of the settings; ``auto`` is the classifier of labelled
    images, else none.

    Raises:
        UserError: if there is no such extractor, it does not suit the data, or two have one name.
    """
    names: Any = config.judges
    if names == ("auto",):
        names = ("classifier",) if len(data.shape) == 3 and data.classes else ()
    names = () if names == ("none",) else names
    found: dict[str, nn.Module] = {}
    for name in names:
        own = label(name, "extractor") if is_object(name) else str(name).partition(":")[0]
        if own in found:
            raise UserError(f"two judges are called {own}: rename or leave out {name}")
        found[own] = load_extractor(str(name), data)
    return found


class Cells:
    """Runs cells.

    Args:
        config: settings of the arena, as they are run.
        data: its data.
        methods: its methods by name.
    """

    def __init__(self, config: ArenaConfig, data: Data, methods: Mapping[str, Method]) -> None:
        self.config, self.data, self.methods = config, data, methods
        self.device = open_fabric(config.loop.accelerator).device
        self.judges: dict[str, nn.Module | None] = {"": None, **choose_judges(config, data)}
        self.network = network_of(config)
        self.evaluator = cache(self._evaluator)

    def _evaluator(self, seed: int, judge: str) -> Evaluator:
        """A judge is placed when it is first asked, so not where others run the cells."""
        own = self.judges[judge]
        return Evaluator(self.data, seed, own if own is None else own.to(self.device))

    def run(self, cell: Cell) -> None:
        """Run a cell and write its rows; an error that is no user's is told with its traceback and
        written apart, for the next run tries it again.

        Raises:
            OSError: if the disk is full, which no other cell would survive.
        """
        if not cell.method:
            given_teachers(self.config, cell.seed)
            return
        crashed = cell.file(self.config.out, CRASHED)
        crashed.unlink(missing_ok=True)
        try:
            rows = self._rows(cell)
        except Exception as error:
            if isinstance(error, OSError) and not hasattr(error, "__notes__"):
                raise
            traceback.print_exc()  # of a method: it helps who wrote it
            write_record(crashed, [failed(cell, f"{type(error).__name__}: {error}")])
        else:
            write_record(cell.file(self.config.out), rows)

    def _rows(self, cell: Cell) -> list[ArenaRow]:
        config, folder = self.config, self.config.out / "models" / cell.name
        shutil.rmtree(folder, ignore_errors=True)  # what a stopped run left of this cell
        given = given_teachers(config, cell.seed)
        bench = Bench(
            self.data,
            Budget(config.budget, config.batch),
            cell.seed,
            folder,
            config.out / "shared" / str(cell.seed),
            self.network,
            config.loop,
            config.conditional,
            *given,
        )
        try:
            return self._judged(cell, bench, digests(given))
        except (UserError, FloatingPointError) as error:
            print(f"{cell.method}, seed {cell.seed}: {error}", file=sys.stderr)
            return [failed(cell, str(error))]
        finally:
            if not config.keep_models:
                shutil.rmtree(folder, ignore_errors=True)

    def _judged(self, cell: Cell, bench: Bench, teachers: tuple[str, ...]) -> list[ArenaRow]:
        reset_peak(bench.device)
        started = time.perf_counter()
        samplers = self.methods[cell.method](bench)
        if not isinstance(samplers, Mapping) or not samplers:
            raise UserError(
                f"{cell.method} returned {type(samplers).__name__}, expected {{passes: sampler}}"
                " with one sampler or more"
            )
        own = getattr(self.methods[cell.method], TRAINED, ())
        row = ArenaRow(
            method=cell.method,
            seed=cell.seed,
            ours=cell.method == OURS,
            spent=bench.budget.spent,
            seconds=round(time.perf_counter() - started + bench.seconds, 2),
            memory=round(peak_mb(bench.device), 1),
            trained_on=tuple(sorted(TRAINED_ON.get(cell.method) or own)),
            teachers=teachers,
            error="not judged",
        )
        rows = []
        for passes, sampler in sorted(samplers.items()):
            first, *others = self._judge(f"{cell.name}-{passes}", bench, sampler).items()
            judged = {"scores": first[1], "judges": dict(others), "error": None}
            rows.append(replace(row, passes=passes, **judged))
        return rows

    def _judge(self, name: str, bench: Bench, sampler: Sampler) -> dict[str, Scores]:
        """Metrics of a sampler's samples as they would be saved: in original units, clamped to
        their range.
        """
        config, data, seed = self.config, self.data, bench.seed
        cond = judged_conditions(data, config.samples, seed) if config.conditional else None
        x = self._sampled(name, bench, sampler, cond)
        if not bool(x.isfinite().all()):
            raise UserError(f"{name} made NaN or infinite samples: the method has diverged")
        original = data.scaling.decode(x)
        labels = None if cond is None or not data.classes else cond.argmax(1)
        if config.keep_samples:
            more = {} if labels is None else {"labels": labels.numpy()}
            write_array(config.out / "samples" / f"{name}.npz", original, **more)
        x, found = data.scaling.encode(original), {}
        for judge, extractor in self.judges.items():
            evaluate = self.evaluator(seed, judge)
            scores = evaluate(x)
            if labels is not None and extractor is not None:
                scores = replace(scores, classes=evaluate.classes(x, labels))
            if not scores.finite:
                raise UserError(
                    f"{name} is so far off that a metric is not finite: it has diverged"
                )
            found[judge] = scores
        return found

    @torch.no_grad()
    def _sampled(self, name: str, bench: Bench, sampler: Sampler, cond: Tensor | None) -> Tensor:
        """Samples of the noise that judges, on the CPU; images go through in parts."""
        count, shape = self.config.samples, self.data.shape
        x0 = noise(bench.seed, Stream.JUDGE, range(count), shape)
        size = batch_size(shape, bench.device.type) if len(shape) == 3 else count
        parts = []
        for start in range(0, count, size):
            rows = slice(start, start + size)
            given = {} if cond is None else {"cond": cond[rows].to(bench.device)}
            x = sampler(x0[rows].to(bench.device), **given)
            if x.shape != x0[rows].shape:
                raise UserError(
                    f"{name} made samples of shape {tuple(x.shape)}, expected"
                    f" {tuple(x0[rows].shape)} as its noise"
                )
            parts.append(x.cpu())
        return torch.cat(parts)


def failed(cell: Cell, error: str) -> ArenaRow:
    """The row of a cell that has failed."""
    told = " ".join(error.split())
    return ArenaRow(method=cell.method, seed=cell.seed, ours=cell.method == OURS, error=told)


def forget_failures(out: Path, cells: list[Cell]) -> None:
    """Remove the rows of those cells that have failed, so that they are run again."""
    for cell in cells:
        with suppress(FileNotFoundError):
            file = cell.file(out)
            if file.exists() and any(row.error for row in read_rows(file)):
                file.unlink()


def read_rows(file: Path) -> list[ArenaRow]:
    """The rows of a cell's file."""
    return read_record(file, list[ArenaRow], "arena cell")


def judged_conditions(data: Data, count: int, seed: int) -> Tensor | None:
    """Conditions of the judged samples: those of training data, which are as frequent as they
    should be.
    """
    return data.take(range(count), seed, Stream.JUDGE)[1]

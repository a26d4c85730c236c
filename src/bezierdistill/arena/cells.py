"""Cells of the arena: a method and a seed, trained within the budget and judged, each a file of its
own once it is finished.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
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
from bezierdistill.stages.evaluate import find_metrics
from bezierdistill.training.ranks import open_fabric
from bezierdistill.training.stopping import Ended

if TYPE_CHECKING:
    from bezierdistill.arena.runner import ArenaConfig

RESULTS = "cells"
TOLD = (UserError, FloatingPointError)  # whose words say everything
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what no other cell would survive


class Cell(NamedTuple):
    """A method and a seed; without a method, the teachers that are given to all of the seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.seed}"

    def file(self, out: Path) -> Path:
        """Where its rows are, once it was run."""
        return out / RESULTS / f"{self.name}.json"

    def finished(self, out: Path) -> bool:
        """Whether it was run and has not failed."""
        file = self.file(out)
        if not file.exists():
            return False
        rows = read_record(file, list[ArenaRow], "arena cell")
        return all(row.error is None for row in rows)


def choose_judges(config: ArenaConfig, data: Data) -> dict[str, nn.Module]:
    """Further extractors by name: those of the settings; ``auto`` is the classifier of labelled
    images, else none.

    Raises:
        UserError: if there is no such extractor, it does not suit the data, or two have one name.
    """
    names: Any = config.extractor
    if names == ("auto",):
        names = ("classifier",) if len(data.shape) == 3 and data.classes else ()
    found: dict[str, nn.Module] = {}
    for name in names:
        if name == "random":
            continue
        own = label(name, "extractor") if is_object(name) else str(name).partition(":")[0]
        if own in found:
            raise UserError(f"two extractors are called {own}: rename or leave out {name}")
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
        self.metrics = find_metrics(config.metric)
        self.network = network_of(config)
        self.evaluator = cache(self._evaluator)

    def _evaluator(self, seed: int, judge: str) -> Evaluator:
        """A judge is placed when it is first asked, so not where others run the cells."""
        own = self.judges[judge]
        return Evaluator(self.data, seed, own if own is None else own.to(self.device))

    def check_metrics(self, seed: int) -> None:
        """Try the user's own metrics on real samples, before anything is trained.

        Raises:
            UserError: if one gives no finite number.
        """
        for metric in self.metrics.values():
            count = self.evaluator(seed, "").size(self.config.samples)
            self.evaluator(seed, "").measure(self.data.real(count, seed, "train"), metric)

    def run(self, cell: Cell) -> None:
        """Run a cell and write its rows, or its error: the next run tries it again.

        Raises:
            OSError: if the disk is full.
            Ended: if a signal has asked the process to end.
        """
        if not cell.method:
            given_teachers(self.config, cell.seed)
            return
        try:
            rows = self._rows(cell)
        except Ended:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            kind = "" if isinstance(error, TOLD) else f"{type(error).__name__}: "
            rows = [failed(cell, f"{kind}{error}", "".join(traceback.format_exception(error)))]
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
            judged = self._judge(f"{cell.name}-{passes}", bench, sampler)
            rows.append(replace(row, passes=passes, error=None, **judged))
        return rows

    def _judge(self, name: str, bench: Bench, sampler: Sampler) -> dict[str, Any]:
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
        x, found = data.scaling.encode(original), dict[str, Scores]()
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
        measure = self.evaluator(seed, "").measure
        metrics = {key: measure(x, metric) for key, metric in self.metrics.items()}
        return {"scores": found.pop(""), "judges": found, "metrics": metrics}

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


def failed(cell: Cell, error: str, trace: str | None = None) -> ArenaRow:
    """The row of a cell that has failed, which is told."""
    told = " ".join(error.split())
    print(f"{cell.method}, seed {cell.seed}: {told}", file=sys.stderr)
    ours = cell.method == OURS
    return ArenaRow(method=cell.method, seed=cell.seed, ours=ours, error=told, traceback=trace)


def judged_conditions(data: Data, count: int, seed: int) -> Tensor | None:
    """Conditions of the judged samples: those of training data, which are as frequent as they
    should be.
    """
    return data.take(range(count), seed, Stream.JUDGE)[1]

"""Seeds to means: the table of an arena, with standard errors and ranks among the methods of equal
passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from bezierdistill.records import ArenaRow, Sampled, read_record
from bezierdistill.reporting.names import title
from bezierdistill.words import counted

LEARNT = 5.0  # the most excess of what has learnt anything; ranks above it are ranks of noise


def gather(out: Path) -> list[ArenaRow]:
    """The rows of all finished cells of an arena's folder.

    Raises:
        UserError: if one is damaged.
    """
    cells = sorted((out / "cells").glob("*.json"))
    return [row for cell in cells for row in read_record(cell, list[ArenaRow], "arena cell")]


@dataclass(frozen=True)
class Entry:
    """A method at a number of passes over all its seeds.

    Args:
        method: its name.
        ours: whether it is our default recipe.
        passes: network passes per sample.
        rank: place among all methods of equal passes, by mean excess; 1 is the best.
        excess: mean over seeds of distance / floor - 1 (0 is as good as real data).
        error: standard error of that mean; 0 for a single seed.
        seeds: number of seeds.
        seconds: mean wall time of training.
        spent: mean network passes spent.
        memory: greatest peak memory in MB.
        trained_on: metrics that it trains on, whose figures are no evidence for it.
    """

    method: str
    ours: bool
    passes: int
    rank: int
    excess: float
    error: float
    seeds: int
    seconds: float
    spent: float
    memory: float
    trained_on: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its full name; it says whether it is ours."""
        return f"{title(self.method)} (ours)" if self.ours else title(self.method)


def excess(row: ArenaRow, metric: str = "frechet") -> float:
    """Distance over its floor, minus one."""
    return row.judged[metric].excess


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def summarise(rows: Sequence[ArenaRow], metric: str = "frechet") -> list[Entry]:
    """Means over seeds, by passes and then by rank; rows of failed cells, and of before the metric
    was measured, are left out.
    """
    groups: dict[tuple[int, str], list[ArenaRow]] = {}
    for row in rows:
        if row.scores is not None and getattr(row.scores, metric) is not None:
            groups.setdefault((row.passes, row.method), []).append(row)
    own = {key: [excess(row, metric) for row in group] for key, group in groups.items()}
    means = {key: statistics.mean(values) for key, values in own.items()}
    entries = []
    for passes, method in sorted(groups, key=lambda key: (key[0], means[key])):
        group, mean = groups[passes, method], means[passes, method]
        entry = Entry(
            method=method,
            ours=group[0].ours,
            passes=passes,
            rank=1 + sum(key[0] == passes and means[key] < mean for key in groups),
            excess=mean,
            error=standard_error(own[passes, method]),
            seeds=len(group),
            seconds=statistics.mean(row.seconds for row in group),
            spent=statistics.mean(row.spent for row in group),
            memory=max(row.memory for row in group),
            trained_on=tuple(sorted({name for row in group for name in row.trained_on})),
        )
        entries.append(entry)
    return entries


def learnt(entries: Iterable[Entry]) -> set[int]:
    """Numbers of passes at which some method has learnt; elsewhere a rank means nothing."""
    return {entry.passes for entry in entries if entry.excess <= LEARNT}


def with_error(entry: Entry) -> str:
    """The excess, and its standard error where there are several seeds."""
    return f"{entry.excess:.2f} ± {entry.error:.2f}" if entry.seeds > 1 else f"{entry.excess:.2f}"


def sampler_label(sampled: Sampled) -> str:
    """``flow, Heun, 40 passes`` or ``distilled, 1 pass``: whose samples, the solver, the passes."""
    solver = [] if sampled.solver == "jumps" else [sampled.solver.capitalize()]
    return ", ".join([sampled.who, *solver, counted(sampled.passes, "pass")])

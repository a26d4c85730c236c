"""Seeds to means: the table of an arena, with standard errors and ranks among the methods of equal
passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A method at a number of passes over all its seeds.

    Args:
        method: its name.
        ours: whether it is our default recipe.
        passes: network passes a sample.
        rank: place among all methods of equal passes, by mean excess; 1 is the best.
        excess: mean over seeds of distance / floor - 1 (0 is as good as real data).
        error: standard error of that mean; 0 for a single seed.
        seeds: number of seeds.
        seconds: mean wall time of training.
        spent: mean network passes spent.
        memory: greatest peak memory in MB.
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


def excess(row: Row, metric: str = "frechet") -> float:
    """Distance over its floor, minus one."""
    return row[f"{metric}_ratio"] - 1


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def summarise(rows: Sequence[Row], metric: str = "frechet") -> list[Entry]:
    """Means over seeds, by passes and then by rank; rows of failed cells are left out."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["passes"], row["method"]), []).append(row)
    means = {
        key: statistics.mean(excess(row, metric) for row in own) for key, own in groups.items()
    }
    order = sorted(groups, key=lambda key: (key[0], means[key]))
    entries = []
    for passes, method in order:
        own = groups[passes, method]
        values = [excess(row, metric) for row in own]
        entries.append(
            Entry(
                method,
                bool(own[0]["ours"]),
                passes,
                1
                + sum(
                    other[0] == passes and means[other] < means[passes, method] for other in order
                ),
                means[passes, method],
                standard_error(values),
                len(values),
                statistics.mean(row["seconds"] for row in own),
                statistics.mean(row["spent_passes"] for row in own),
                max(row["peak_memory_mb"] for row in own),
            )
        )
    return entries

"""Rows of results as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bezierdistill.arena.summary import Entry, summarise

METRICS = {
    "frechet": "Frechet",
    "kernel": "kernel",
    "sliced_wasserstein": "sliced W2",
    "energy": "energy",
    "mmd": "MMD",
    "precision": "precision",
    "recall": "recall",
}


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of results as text: the method, its costs where given, and every metric (distances with
    their ratio to the floor).
    """
    text = [str(row["method"])]
    text += [f"{row[key]:,}" if key in row else "" for key in ("passes", "spent_passes")]
    for name in [name for name in METRICS if name in row]:
        share = name in ("precision", "recall")
        text.append(
            f"{row[name]:.3f}" if share else f"{row[name]:.4g} ({row[f'{name}_ratio']:.2f}x)"
        )
    return text


def headings(row: Mapping[str, Any]) -> list[str]:
    """Headings of the columns of :func:`cells`; the Frechet distance has the name of its features,
    if they were chosen.
    """
    names = {name: heading for name, heading in METRICS.items() if name in row}
    if "kernel" in row:
        names["frechet"] = row["protocol"]["metric"]
    return ["method", "passes", "passes spent", *names.values()]


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of results; distances stand with their ratio to the floor (real against real)."""
    table = Table(
        caption=(
            "in brackets: distance over its floor, real against real; 1.00x is as good as real data"
        )
    )
    for k, heading in enumerate(headings(rows[0])):
        table.add_column(heading, justify="left" if k == 0 else "right")
    for row in rows:
        table.add_row(*cells(row), style="bold" if row.get("ours") else None)
    Console(width=None if Console().is_terminal else 160).print(table)


def protocol_lines(row: Mapping[str, Any]) -> list[str]:
    """What figures of a result hang on, and what it says of classes, if it does, for people."""
    by = row["protocol"]
    digest = f" ({by['digest'][:8]})" if by.get("digest") else ""
    counts = (
        f"{by['samples']:,} samples against {by['count']:,} real ones of the {by['split']} side,"
        f" floor from the {by['floor']} side"
    )
    rounded = ", rounded to whole numbers" if by["quantised"] else ""
    lines = [f"features: {by['extractor']}{digest}; {counts}; seed {by['seed']}{rounded}"]
    if "classes" in row:
        figures = {
            name: row["classes"][name]
            for name in ("accuracy", "accuracy_real", "coverage", "coverage_real")
        }
        lines.append(
            "classes: accuracy {accuracy:.3f} (real {accuracy_real:.3f}), coverage {coverage:.3f}"
            " (real {coverage_real:.3f})".format(**figures)
        )
    return lines


ARENA_HEADINGS = [
    "passes",
    "rank",
    "method",
    "excess",
    "sliced W2",
    "energy",
    "passes spent",
    "seconds",
    "MB",
]


def arena_cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], bool]]:
    """An arena's rows as lines of text, a method and number of passes each, and whether it is ours.

    The excess is that of the Frechet distance over its floor, with standard error and rank; sliced
    W2 and energy distance likewise.
    """
    others = {
        metric: {(entry.passes, entry.method): entry for entry in summarise(rows, metric)}
        for metric in ("sliced_wasserstein", "energy")
    }
    lines = []
    for entry in summarise(rows):
        key = (entry.passes, entry.method)
        distances = [
            _with_error(entry),
            *(f"{_with_error(own[key])} ({own[key].rank})" for own in others.values()),
        ]
        costs = [f"{entry.spent:,.0f}", f"{entry.seconds:.0f}", f"{entry.memory:.0f}"]
        lines.append(
            ([str(entry.passes), str(entry.rank), entry.method, *distances, *costs], entry.ours)
        )
    return lines


def _with_error(entry: Entry) -> str:
    return f"{entry.excess:.2f} ± {entry.error:.2f}" if entry.seeds > 1 else f"{entry.excess:.2f}"


def print_arena(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of an arena: means over seeds with standard errors, ranked among methods of
    equal passes.
    """
    table = Table(
        caption=(
            "excess: Frechet distance / floor - 1, mean ± standard error over seeds; 0 is as good"
            " as real data; (rank)"
        )
    )
    for k, heading in enumerate(ARENA_HEADINGS):
        table.add_column(heading, justify="left" if k == 2 else "right")
    lines = arena_cells(rows)
    for k, (line, ours) in enumerate(lines):
        last = k + 1 == len(lines) or lines[k + 1][0][0] != line[0]
        table.add_row(*line, style="bold" if ours else None, end_section=last)
    Console(width=None if Console().is_terminal else 160).print(table)

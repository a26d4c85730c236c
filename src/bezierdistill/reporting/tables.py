"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from bezierdistill.records import ArenaRow, Scores
from bezierdistill.reporting.export import MARK, NOTE, is_marked
from bezierdistill.reporting.summary import Entry, summarise

METRICS = {
    "frechet": "Frechet",
    "kernel": "kernel",
    "sliced_wasserstein": "sliced W2",
    "energy": "energy",
    "mmd": "MMD",
}
SHARES = ("precision", "recall")
ARENA_HEADINGS = (
    *("passes", "rank", "method", "excess", "sliced W2", "energy"),
    *("passes spent", "seconds", "MB"),
)
METHOD = ARENA_HEADINGS.index("method")


def print_rows(rows: Mapping[str, Scores]) -> None:
    """Print scores by whose they are; distances stand with their ratio to the floor (real against
    real). The Frechet distance has the name of its features, if they were chosen.
    """
    first = next(iter(rows.values()))
    names = {name: heading for name, heading in METRICS.items() if getattr(first, name) is not None}
    if first.kernel is not None and first.protocol is not None:
        names["frechet"] = first.protocol.metric
    caption = (
        "in brackets: distance over its floor, real against real; 1.00x is as good as real data"
    )
    table = _table(["samples of", *names.values(), *SHARES], 0, caption)
    for who, scores in rows.items():
        distances = [f"{scores[name].value:.4g} ({scores[name].ratio:.2f}x)" for name in names]
        table.add_row(who, *distances, *(f"{scores[name].value:.3f}" for name in SHARES))
    _print(table)


def protocol_lines(scores: Scores) -> list[str]:
    """What figures depend on, and what they say of classes, for people."""
    by, classes, lines = scores.protocol, scores.classes, []
    if by is not None:
        digest = f" ({by.digest[:8]})" if by.digest else ""
        rounded = ", rounded to whole numbers" if by.quantised else ""
        lines.append(
            f"features: {by.extractor}{digest}; {by.samples:,} samples against {by.count:,} real"
            f" ones of the {by.split} split, floor from the {by.floor} split; seed"
            f" {by.seed}{rounded}"
        )
    if classes is not None:
        lines.append(
            f"classes: accuracy {classes.accuracy:.3f} (real {classes.accuracy_real:.3f}),"
            f" coverage {classes.coverage:.3f} (real {classes.coverage_real:.3f})"
        )
    return lines


def arena_lines(rows: Sequence[ArenaRow]) -> list[tuple[Entry, list[str]]]:
    """An entry per method and number of passes, and its line of text.

    The excess is that of the Frechet distance over its floor, with standard error and rank; sliced
    W2 and energy distance likewise.
    """
    others = [
        {(entry.passes, entry.method): entry for entry in summarise(rows, metric)}
        for metric in ("sliced_wasserstein", "energy")
    ]
    lines = []
    for entry in summarise(rows):
        beside = [other[entry.passes, entry.method] for other in others]
        distances = [_with_error(entry), *(f"{_with_error(own)} ({own.rank})" for own in beside)]
        costs = [f"{entry.spent:,.0f}", f"{entry.seconds:.0f}", f"{entry.memory:.0f}"]
        line = [str(entry.passes), str(entry.rank), entry.method, *distances, *costs]
        lines.append((entry, line))
    return [(entry, _marked(line, entry.trained_on)) for entry, line in lines]


def _marked(line: Sequence[str], trained_on: Sequence[str]) -> list[str]:
    """A line with a mark on each figure that the method trains on."""
    names = {heading: name for name, heading in METRICS.items()} | {"excess": "frechet"}
    figures = [names.get(heading, heading) for heading in ARENA_HEADINGS]
    pairs = zip(figures, line, strict=True)
    return [f"{cell} {MARK}" if is_marked(name, trained_on) else cell for name, cell in pairs]


def _with_error(entry: Entry) -> str:
    return f"{entry.excess:.2f} ± {entry.error:.2f}" if entry.seeds > 1 else f"{entry.excess:.2f}"


def print_arena(rows: Sequence[ArenaRow]) -> None:
    """Print the table of an arena: means over seeds with standard errors, ranked among methods of
    equal passes.
    """
    caption = (
        "excess: Frechet distance / floor - 1, mean ± standard error over seeds; 0 is as good as"
        " real data; (rank)"
    )
    table = _table(ARENA_HEADINGS, METHOD, caption)
    for _, group in groupby(arena_lines(rows), lambda pair: pair[0].passes):
        for entry, line in group:
            table.add_row(*line, style="bold" if entry.ours else None)
        table.add_section()
    if any(row.trained_on for row in rows):
        table.caption = f"{table.caption}; {MARK} {NOTE}"
    _print(table)


def _table(headings: Sequence[str], left: int, caption: str) -> Table:
    table = Table(caption=caption)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k == left else "right")
    return table


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 160).print(table)

"""The table of an arena as a file, with all figures: CSV for programs, LaTeX for papers.

A line is a method at a number of passes; a figure is its mean over seeds, with the standard error.
Figures that a method trains on are marked, and are no evidence for it.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from bezierdistill.files import write_text
from bezierdistill.records import ArenaRow, Score, Scores
from bezierdistill.reporting.summary import Entry, standard_error, summarise

MARK = "*"  # of a figure that a method trains on
NOTE = "a figure that the method trains on, and no evidence for it"
SHARES = ("precision", "recall")
OF_JUDGES = ("frechet", "kernel", *SHARES)  # the others are the same whatever the features
OWN = ("frechet", "middle", "fine", "sliced_wasserstein", "energy", "mmd", "fidelity")
HEADINGS = {"frechet": "excess", "sliced_wasserstein": "sliced W2", "mmd": "MMD"}
SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"}
SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


class Mean(NamedTuple):
    """A figure over seeds; ``marked`` is whether the method trains on it."""

    mean: float
    error: float
    marked: bool


class Line(NamedTuple):
    """A method at a number of passes, and its figures by name."""

    entry: Entry
    figures: dict[str, Mean]


def figures(row: ArenaRow) -> dict[str, float]:
    """What a row says, by name: excess of distances over their floors, ``fidelity`` over that of
    real data, ``precision``, ``recall``; ``JUDGE FD`` and ``JUDGE KD``, the distances themselves in
    a further judge's features, and its precision, recall, and accuracy and coverage of classes.
    """
    scores = row.judged
    known = {name: getattr(scores, name, None) for name in OWN}
    found = {name: score.excess for name, score in known.items() if isinstance(score, Score)}
    if "fidelity" in found:
        found["fidelity"] += 1  # over its floor
    found |= {name: scores[name].value for name in SHARES}
    for judge, own in row.judges.items():
        found |= {f"{judge} {name}": value for name, value in _judged(own).items()}
    return found


def _judged(scores: Scores) -> dict[str, float]:
    names = {"frechet": "FD", "kernel": "KD"}
    known = {names.get(name, name): getattr(scores, name) for name in OF_JUDGES}
    found = {name: score.value for name, score in known.items() if score is not None}
    if (classes := scores.classes) is not None:
        own = {"accuracy": classes.accuracy, "coverage": classes.coverage}
        found |= {name: value for name, value in own.items() if value is not None}
    return found


def is_marked(figure: str, trained_on: Collection[str]) -> bool:
    """Whether a method that trains on some metrics, or in a judge's features, trains on a
    figure.
    """
    return figure in trained_on or figure.partition(" ")[0] in trained_on


def lines(rows: Sequence[ArenaRow]) -> list[Line]:
    """A line per number of passes and method, the least excess first."""
    groups: dict[tuple[int, str], list[ArenaRow]] = {}
    for row in rows:
        if row.error is None:
            groups.setdefault((row.passes, row.method), []).append(row)
    found = []
    for entry in summarise(rows):
        group = groups[entry.passes, entry.method]
        told = [figures(row) for row in group]
        names = [name for name in told[0] if all(name in own for own in told)]
        means = {}
        for name in names:
            values = [own[name] for own in told]
            marked = is_marked(name, entry.trained_on)
            means[name] = Mean(statistics.mean(values), standard_error(values), marked)
        found.append(Line(entry, means))
    return found


def _names(table: Sequence[Line]) -> list[str]:
    """The figures that some line has."""
    return list(dict.fromkeys(name for line in table for name in line.figures))


def write_csv(path: Path, rows: Sequence[ArenaRow]) -> None:
    """Write the table as CSV: after each figure its standard error (empty for a single seed), at
    the end the names of those that the method trains on.
    """
    table = lines(rows)
    names, text = _names(table), io.StringIO()
    head = ["method", "ours", "passes", "rank", "seeds"]
    head += [column for name in names for column in (name, f"{name} error")]
    head += ["passes spent", "seconds", "MB", "trained on"]
    out = csv.writer(text, lineterminator="\n")
    out.writerow(head)
    for entry, means in table:
        cells: list[object] = [entry.method, entry.ours, entry.passes, entry.rank, entry.seeds]
        for name in names:
            own = means.get(name)
            error = own.error if own is not None and entry.seeds > 1 else ""
            cells += ["" if own is None else own.mean, error]
        marked = " ".join(name for name, own in means.items() if own.marked)
        out.writerow([*cells, entry.spent, entry.seconds, entry.memory, marked])
    write_text(path, text.getvalue())


def write_latex(path: Path, rows: Sequence[ArenaRow]) -> None:
    r"""Write the table as a ``tabular`` for ``\usepackage{booktabs}``, ours in bold, figures that a
    method trains on with an asterisk.
    """
    table = lines(rows)
    names = _names(table)
    head = ["passes", "method", *(HEADINGS.get(name, name) for name in names)]
    text = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{rl{'r' * len(names)}}}",
        "\\toprule",
        f"{' & '.join(map(escaped, head))} \\\\",
    ]
    for _, group in groupby(table, lambda line: line.entry.passes):
        text.append("\\midrule")
        for entry, means in group:
            method = escaped(entry.method)
            method = f"\\textbf{{{method}}}" if entry.ours else method
            cells = [_cell(means.get(name), entry.seeds) for name in names]
            text.append(f"{' & '.join([str(entry.passes), method, *cells])} \\\\")
    text += ["\\bottomrule", "\\end{tabular}"]
    if any(mean.marked for line in table for mean in line.figures.values()):
        text += ["", f"$^{{{MARK}}}$ {NOTE}"]
    write_text(path, "\n".join(text) + "\n")


def _cell(own: Mean | None, seeds: int) -> str:
    if own is None:
        return "--"
    error = rf" \pm {own.error:.2f}" if seeds > 1 else ""
    mark = f"^{{{MARK}}}" if own.marked else ""
    return f"${own.mean:.2f}{error}{mark}$"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)

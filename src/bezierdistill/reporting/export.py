"""The table of an arena as a file, with all figures: CSV for programs, LaTeX and Markdown for
people.

A line is a method at a number of passes; a figure is its mean over seeds, with the standard error.
Figures that a method trains on are marked, and are no evidence for it. For people the best figure
among methods of equal passes is bold.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Iterator, Sequence
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
HEADINGS = {"frechet": "Fréchet", "sliced_wasserstein": "sliced W2", "mmd": "MMD"}
HIGHER = (*SHARES, "accuracy", "coverage")  # is better; of every other figure lower is
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
    real data, ``precision``, ``recall``; excess of metrics of one's own; ``JUDGE FD`` and ``JUDGE
    KD``, the distances themselves in a further judge's features, and its precision, recall, and
    accuracy and coverage of classes.
    """
    scores = row.judged
    known = {name: getattr(scores, name, None) for name in OWN}
    found = {name: score.excess for name, score in known.items() if isinstance(score, Score)}
    if "fidelity" in found:
        found["fidelity"] += 1  # over its floor
    found |= {name: scores[name].value for name in SHARES}
    found |= {name: score.excess for name, score in row.metrics.items()}
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


def write_csv(path: Path, rows: Sequence[ArenaRow], names: Sequence[str]) -> None:
    """Write the figures ``names`` as CSV: after each its standard error (empty for a single seed),
    at the end the names of those that the method trains on.
    """
    table = lines(rows)
    text = io.StringIO()
    head = ["method", "ours", "passes", "rank", "seeds"]
    head += [column for name in names for column in (name, f"{name}_error")]
    head += ["passes_spent", "seconds", "memory_mb", "trained_on"]
    out = csv.writer(text, lineterminator="\n")
    out.writerow(name.replace(" ", "_") for name in head)
    for entry, means in table:
        cells: list[object] = [entry.method, entry.ours, entry.passes, entry.rank, entry.seeds]
        for name in names:
            own = means.get(name)
            error = own.error if own is not None and entry.seeds > 1 else ""
            cells += ["" if own is None else own.mean, error]
        marked = " ".join(name.replace(" ", "_") for name, own in means.items() if own.marked)
        out.writerow([*cells, entry.spent, entry.seconds, entry.memory, marked])
    write_text(path, text.getvalue())


def write_latex(
    path: Path, rows: Sequence[ArenaRow], names: Sequence[str], caption: str = ""
) -> None:
    r"""Write the figures ``names`` as a ``tabular`` for ``\usepackage{booktabs}``, its caption as a
    comment above; figures that a method trains on have an asterisk.
    """
    table = lines(rows)
    head = ["passes", "method", *map(_latex_heading, names)]
    text = ["% \\usepackage{booktabs}"]
    text += [f"% \\caption{{{escaped(caption)}}}"] if caption else []
    text += [
        f"\\begin{{tabular}}{{rl{'r' * len(names)}}}",
        "\\toprule",
        f"{' & '.join(head)} \\\\",
    ]
    for _, group in groupby(table, lambda line: line.entry.passes):
        text.append("\\midrule")
        for entry, cells in _cells([*group], names):
            told = [_latex(own, entry.seeds, bold) for own, bold in cells]
            text.append(f"{' & '.join([str(entry.passes), escaped(entry.label), *told])} \\\\")
    text += ["\\bottomrule", "\\end{tabular}"]
    if _has_marks(table, names):
        text += ["", f"$^{{{MARK}}}$ {NOTE}"]
    write_text(path, "\n".join(text) + "\n")


def write_markdown(
    path: Path, rows: Sequence[ArenaRow], names: Sequence[str], caption: str = ""
) -> None:
    """Write the figures ``names`` as a table in Markdown, below its caption."""
    table = lines(rows)
    text = [caption, ""] if caption else []
    head = ["passes", "method", *(f"{heading(name)} {'↓↑'[_is_higher(name)]}" for name in names)]
    text += [f"| {' | '.join(head)} |", f"|--:|:--|{'--:|' * len(names)}"]
    for _, group in groupby(table, lambda line: line.entry.passes):
        for entry, cells in _cells([*group], names):
            told = [_markdown(own, entry.seeds, bold) for own, bold in cells]
            method = entry.label.replace("|", "\\|")
            text.append(f"| {' | '.join([str(entry.passes), method, *told])} |")
    text += ["", f"\\{MARK} {NOTE}"] if _has_marks(table, names) else []
    write_text(path, "\n".join(text) + "\n")


def _has_marks(table: Sequence[Line], names: Sequence[str]) -> bool:
    return any(
        line.figures[name].marked for line in table for name in names if name in line.figures
    )


def _is_higher(name: str) -> bool:
    """Whether more of a figure is better; a judge's have its name before theirs."""
    return name.rpartition(" ")[2] in HIGHER


def _cells(
    group: Sequence[Line], names: Sequence[str]
) -> Iterator[tuple[Entry, list[tuple[Mean | None, bool]]]]:
    """The figures of methods of equal passes, and whether each is the best one of several; one
    that a method trains on never is.
    """
    best = {}
    for name in names:
        means = [line.figures[name] for line in group if name in line.figures]
        values = [own.mean for own in means if not own.marked]
        if len(means) > 1 and values:
            best[name] = max(values) if _is_higher(name) else min(values)
    for entry, means in group:
        told = []
        for name in names:
            own = means.get(name)
            bold = own is not None and not own.marked and own.mean == best.get(name)
            told.append((own, bold))
        yield entry, told


def heading(name: str) -> str:
    """What people call a figure."""
    return HEADINGS.get(name, name)


def _latex_heading(name: str) -> str:
    arrow = r"$\uparrow$" if _is_higher(name) else r"$\downarrow$"
    return f"{escaped(heading(name))} {arrow}"


def _latex(own: Mean | None, seeds: int, bold: bool) -> str:
    if own is None:
        return "--"
    mean = rf"\mathbf{{{own.mean:z.2f}}}" if bold else f"{own.mean:z.2f}"
    error = rf" \pm {own.error:.2f}" if seeds > 1 else ""
    mark = f"^{{{MARK}}}" if own.marked else ""
    return f"${mean}{error}{mark}$"


def _markdown(own: Mean | None, seeds: int, bold: bool) -> str:
    if own is None:
        return "–"
    mean = f"**{own.mean:z.2f}**" if bold else f"{own.mean:z.2f}"
    error = f" ± {own.error:.2f}" if seeds > 1 else ""
    return f"{mean}{error}" + rf" \{MARK}" * own.marked


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)

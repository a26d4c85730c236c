"""Files of an arena for papers and programs: its table as CSV, LaTeX and Markdown, its figure as
PDF and SVG: ``bezierdistill report --to``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from msgspec.structs import replace

from bezierdistill.errors import UserError
from bezierdistill.files import write_atomically
from bezierdistill.records import ArenaRow, from_json
from bezierdistill.reporting.export import figures, write_csv, write_latex, write_markdown
from bezierdistill.reporting.names import EXPORTS
from bezierdistill.reporting.plots import draw_methods, grid_of
from bezierdistill.reporting.runs import Asked
from bezierdistill.reporting.summary import Entry, gather, summarise
from bezierdistill.run import RUN, read_settings
from bezierdistill.words import counted, did_you_mean

PANELS = {"frechet": "Fréchet distance", "fine": "Fréchet distance, fine scale"}
# Letters that can be searched and edited; the same bytes from the same figures.
STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "bezierdistill"}
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write_exports(
    folder: Path, kinds: Sequence[str], methods: Sequence[str] = (), columns: Sequence[str] = ()
) -> list[Path]:
    """Write files of an arena, or a demo, into its folder.

    Args:
        folder: the folder.
        kinds: which of :data:`~bezierdistill.reporting.names.EXPORTS`.
        methods: those that are told; none are all.
        columns: the figures that tables have, as CSV names them; none are all.

    Returns:
        Their paths.

    Raises:
        UserError: if it holds no arena, no cell that is finished, or no such method or figure.
    """
    held = read_settings(folder) if (folder / RUN).exists() else None
    if held is None or held.verb not in ("arena", "demo"):
        raise UserError(f"{folder} holds no arena: expected that of an arena or a demo for --to")
    rows = [row for row in gather(folder) if row.scores]
    if not rows:
        raise UserError(f"{folder} has no cell that is finished: run the arena first")
    _check("methods", methods, dict.fromkeys(row.method for row in rows))
    rows = [row for row in rows if row.method in (methods or (row.method,))]
    known = {name.replace(" ", "_"): name for row in rows for name in figures(row)}
    _check("columns", columns, known)
    names = [known[name] for name in columns or known]
    caption = describe(from_json(held.settings, Asked, folder / RUN), rows)
    for kind in kinds:
        path = folder / EXPORTS[kind]
        if kind == "csv":
            write_csv(path, rows, names)
        elif kind == "latex":
            write_latex(path, rows, names, caption)
        elif kind == "markdown":
            write_markdown(path, rows, names, caption)
        else:
            with mpl.rc_context(STYLE):
                save = partial(paper_figure(rows).savefig, format=kind, metadata=UNDATED[kind])
                write_atomically(path, save)
    return [folder / EXPORTS[kind] for kind in kinds]


def _check(what: str, asked: Sequence[str], known: Mapping[str, object]) -> None:
    if wrong := [name for name in asked if name not in known]:
        told = f"{what} has {wrong[0][:80]!r}, which this arena has not"
        close = did_you_mean(wrong[0], known)
        raise UserError(f"{told}{close or ':'} expected some of {', '.join(known)}")


def describe(asked: Asked, rows: Sequence[ArenaRow]) -> str:
    """What a table says, in sentences."""
    seeds = counted(len({row.seed for row in rows}), "seed")
    given = ", from a given teacher" if asked.track == "given-teacher" else ""
    found = [row.scores.protocol for row in rows if row.scores and row.scores.protocol]
    judged = f", {found[0].samples:,} samples" if found else ""
    budget = "as many" if asked.budget is None else f"{asked.budget:,}"
    return (
        f"Few-step methods on {asked.data}, {budget} network passes of training each{given};"
        f" {seeds}{judged}. Distances are their excess over real data's (0 is as good as real"
        " data), fidelity is over real data's; mean ± standard error over seeds (without it: one"
        " seed); the best of equal passes is bold."
    )


def paper_figure(rows: Sequence[ArenaRow]) -> Figure:
    """Excess of distances against passes per sample, a line per method: a panel for each of two
    scales, and one for each further judge.
    """
    panels = {text: summarise(rows, name) for name, text in PANELS.items()}
    for judge in dict.fromkeys(name for row in rows for name in row.judges):
        own = [replace(row, scores=row.judges[judge]) for row in rows if judge in row.judges]
        panels[f"Fréchet distance, {judge}"] = summarise(own)
    panels = {text: entries for text, entries in panels.items() if entries}
    names = _methods(next(iter(panels.values())))
    across = min(3, len(panels))
    down, lines = math.ceil(len(panels) / across), math.ceil(len(names) / 3)
    figure = Figure(figsize=(7.0, 2.4 * down + 0.16 * lines), layout="constrained")
    charts = grid_of(figure, down, across)
    for axes, (text, entries) in zip(charts, panels.items(), strict=False):
        draw_methods(axes, entries, "passes", names, "excess (0 is real data)", text, 7.5)
    for axes in charts[len(panels) :]:
        axes.remove()
    handles = charts[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=7.5, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _methods(entries: Sequence[Entry]) -> dict[str, str]:
    """Methods and their names in full, ours first, then from the best."""
    ordered = sorted(entries, key=lambda entry: not entry.ours)
    return {entry.method: entry.label for entry in ordered}

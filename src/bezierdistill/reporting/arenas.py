"""The report of an arena or a demo: sheets of samples, its table, quality against passes, and what
explains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from bezierdistill.data import Scaling, load_data, read_array
from bezierdistill.errors import UserError
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.export import MARK, NOTE, Line, lines
from bezierdistill.reporting.page import Code, Note, Opening, Picture, Section, Table, Words
from bezierdistill.reporting.plots import EVEN, arena_figure
from bezierdistill.reporting.runs import Findings
from bezierdistill.reporting.samples import IMAGES, POINTS, Panel, sheets, shown_texts
from bezierdistill.reporting.summary import Entry, summarise
from bezierdistill.reporting.tables import (
    ARENA_HEADINGS,
    METHOD,
    NONE,
    RANK,
    SEEDS,
    SHARES,
    UNRANKED,
    arena_lines,
)
from bezierdistill.reporting.verdict import SCALE, TEACHERS, verdict
from bezierdistill.words import capital, counted, spelled

ArenaLine = tuple[Entry, list[str]]
SHOWN_PASSES, MAX_PANELS = (1, 2), 11
IN_SHORT = ("passes", "rank", "method", "excess", "middle", "fine", *SHARES, "fidelity")


def opening(found: Findings) -> Opening:
    """What the page begins with."""
    asked, rows = found.asked, found.rows
    entries, given = summarise(rows), asked.track == "given-teacher"
    budget = "as many" if asked.budget is None else f"{asked.budget:,}"
    what = "distillation from a teacher that is given" if given else "everything"
    seeds = sorted({row.seed for row in rows})
    one = " One seed: small differences mean nothing." if len(seeds) == 1 else ""
    lead = (
        f"{SCALE} Every method has the same network, batch and optimizer and {budget} network"
        f" passes for {what}; all are judged on the same held-out samples.{one}"
    )
    if found.made is not None and found.made.fast:
        lead += " This was a fast run, to see that everything works: its figures mean little."
    facts: dict[str, object] = {"data": asked.data, "network passes each": budget}
    facts["seeds" if len(seeds) > 1 else "seed"] = ", ".join(map(str, seeds))
    teachers = dict.fromkeys(digest[:8] for row in rows for digest in row.teachers)
    facts["given teachers, by digest"] = ", ".join(teachers)
    methods = spelled(len({entry.method for entry in entries}), "method")
    how = "of few passes, from a given teacher" if given else "of few passes"
    title = f"{capital(methods)} {how}, compared on {Path(asked.data or 'data').name}"
    return Opening(title, verdict(entries, asked.track), lead, facts)


def sections(found: Findings) -> list[Section]:
    """Samples, the table, quality against passes; what explains them."""
    failed = [row for row in found.rows if row.error is not None]
    notes: list[Note | Code] = []
    for row in failed:
        notes.append(Note(f"Failed: {row.method}, seed {row.seed}: {row.error}"))
        notes += [Code(row.traceback, "Traceback", folded=True)] if row.traceback else []
    if len(failed) == len(found.rows):
        return [Section("Results", notes)]
    pairs = arena_lines(found.rows)
    shown = Section("Results", [_table(pairs, IN_SHORT), *_marks(pairs), *notes])
    every = [_table(pairs, ARENA_HEADINGS), *_judges(found.rows), _short_names(pairs)]
    words = Section("What the words mean", [Words(["excess", "floor", "pass", "rank"])], True)
    figures = Section("All figures", every, True)
    return [*_samples(found), shown, _quality(summarise(found.rows)), figures, words]


def _table(pairs: Sequence[ArenaLine], headings: Sequence[str]) -> Table:
    """A table of some of the columns, methods by their full names."""
    entries = [entry for entry, _ in pairs]
    several = any(entry.seeds > 1 for entry in entries)
    caption = (
        f"Excess of the Frechet distance{SEEDS if several else ''}; middle and fine are the same at"
        " finer scales, with ranks in brackets; fidelity is the distance of a sample to the nearest"
        " real one over that of real data."
    )
    if len(headings) == len(ARENA_HEADINGS):
        caption += " Network passes, seconds of training and peak memory (MB) of each method."
    at = [ARENA_HEADINGS.index(heading) for heading in headings]
    full = [[*line[:METHOD], entry.label, *line[METHOD + 1 :]] for entry, line in pairs]
    return Table(
        caption,
        headings,
        [[line[k] for k in at] for line in full],
        left=(METHOD,),
        ours=[k for k, entry in enumerate(entries) if entry.ours],
        starts=[k for k in range(1, len(pairs)) if entries[k].passes != entries[k - 1].passes],
    )


def _marks(pairs: Sequence[ArenaLine]) -> list[Note]:
    """What the marks in the table mean that it has."""
    at = [ARENA_HEADINGS.index(heading) for heading in IN_SHORT]
    cells = [line[k] for _, line in pairs for k in at]
    marked = [Note(f"{MARK} {NOTE}.")] if any(cell.endswith(MARK) for cell in cells) else []
    unranked = any(line[RANK] == NONE for _, line in pairs)
    return [*marked, *([Note(f"{UNRANKED}.")] if unranked else [])]


def _short_names(pairs: Sequence[ArenaLine]) -> Table:
    names = dict.fromkeys((entry.label, entry.method) for entry, _ in pairs)
    caption = "Methods by their names in the terminal, in files, and for --methods."
    return Table(caption, ["method", "short name"], list(names), left=(0, 1))


def _judges(rows: Sequence[ArenaRow]) -> list[Table]:
    """A table of metrics of one's own, if there are any, and one for every further judge."""
    table = lines(rows)
    known = dict.fromkeys(name for line in table for name in line.figures)
    own = [name for name in known if any(name in row.metrics for row in rows)]
    caption = "Metrics of your own: their excess over real data's."
    tables = [_figures(caption, {name: name for name in own}, table)] if own else []
    for judge in dict.fromkeys(name for row in rows for name in row.judges):
        start = f"{judge} "
        names = {name: name.removeprefix(start) for name in known if name.startswith(start)}
        caption = (
            f"The same samples in the features of {judge}: Frechet (FD) and kernel distance (KD)"
            " themselves, and shares."
        )
        tables.append(_figures(caption, names, table))
    return tables


def _figures(caption: str, known: Mapping[str, str], table: Sequence[Line]) -> Table:
    """A table of figures, by their names and what their columns are called."""
    rows = []
    for entry, means in table:
        cells = []
        for name in known:
            own = means.get(name)
            error = f" ± {own.error:.3g}" if own and entry.seeds > 1 else ""
            mark = f" {MARK}" if own and own.marked else ""
            cells.append(f"{own.mean:.3g}{error}{mark}" if own else "-")
        rows.append([str(entry.passes), entry.label, *cells])
    passes = [entry.passes for entry, _ in table]
    return Table(
        caption,
        ["passes", "method", *known.values()],
        rows,
        left=(1,),
        ours=[k for k, line in enumerate(table) if line.entry.ours],
        starts=[k for k in range(1, len(rows)) if passes[k] != passes[k - 1]],
    )


def _quality(entries: Sequence[Entry]) -> Section:
    methods = counted(len({entry.method for entry in entries}), "method")
    bars = "Bars are standard errors over seeds; " if any(e.seeds > 1 for e in entries) else ""
    chart = Picture(
        arena_figure(entries, "passes"),
        f"{methods}: excess, of which the table has the figures, against network passes per sample",
        f"{bars}{'t' if bars else 'T'}he dashed line is real data. The axis is even below"
        f" {EVEN:g} and logarithmic above.",
    )
    return Section("Quality against passes", [chart])


def _samples(found: Findings) -> list[Section]:
    """Samples that an arena has kept, of its first seed: real ones, then methods from the best to
    the worst, at one and two passes.
    """
    folder = found.folder / "samples"
    if not (folder / "real.npz").exists():
        return []
    held_out = read_array(folder / "real.npz")
    try:
        scaling = load_data(str(found.asked.data)).scaling
    except UserError:  # the data have gone, the samples that are kept have not
        scaling = Scaling.measure(held_out)
    states = scaling.encode(held_out[:POINTS])
    texts = shown_texts(scaling, states)
    real = Panel("real data, held out", scaling.frames(states), texts=texts)
    seed, sections = min(row.seed for row in found.rows), []

    def panel(entry: Entry, passes: str = "") -> list[Panel]:
        file = folder / f"{entry.method}-{seed}-{entry.passes}.npz"
        if not file.exists():
            return []
        x = scaling.encode(read_array(file)[:POINTS])
        told, texts = f"{passes}excess {entry.excess:.2f}", shown_texts(scaling, x)
        return [Panel(entry.label, scaling.frames(x), told, entry.ours, texts)]

    own = summarise([row for row in found.rows if row.seed == seed])
    teachers = [entry for entry in own if entry.method == TEACHERS[found.asked.track]]
    for passes in SHOWN_PASSES:
        group = [entry for entry in own if entry.passes == passes][:MAX_PANELS]
        panels = list(chain.from_iterable(map(panel, group)))
        if panels:
            shown = min(len(panels[-1].x), IMAGES if real.x.ndim >= 4 else POINTS)
            note = (
                f"The first {shown:,} samples of seed {seed}, {counted(passes, 'network pass')}"
                " each, from the same noise; the least excess first."
            )
            for entry in teachers if not sections else ():
                panels += panel(entry, f"{counted(entry.passes, 'pass')}, ")
            parts = [Note(note), sheets([real, *panels])]
            sections.append(Section(f"Samples in {spelled(passes, 'pass')}", parts))
    return sections

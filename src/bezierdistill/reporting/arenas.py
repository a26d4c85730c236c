"""The report of an arena or a demo: its table, quality against passes and against cost, sheets of
samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bezierdistill.data import Scaling, load_data, read_array
from bezierdistill.errors import UserError
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.export import MARK, NOTE, Line, lines
from bezierdistill.reporting.page import (
    Code,
    Gallery,
    Note,
    Opening,
    Picture,
    Section,
    Table,
    Words,
)
from bezierdistill.reporting.plots import arena_figure
from bezierdistill.reporting.runs import Findings
from bezierdistill.reporting.samples import IMAGES, POINTS, Panel, sheets
from bezierdistill.reporting.summary import Entry, summarise
from bezierdistill.reporting.tables import ARENA_HEADINGS, METHOD, arena_lines
from bezierdistill.words import counted

SHOWN_PASSES, MAX_PANELS = (1, 2), 11


def opening(found: Findings) -> Opening:
    """What the page begins with."""
    asked, rows = found.asked, found.rows
    budget = "as many" if asked.budget is None else f"{asked.budget:,}"
    given = asked.track == "given-teacher"
    what = "distillation, from a teacher that is given," if given else "everything,"
    lead = (
        f"Generators of few passes compared on {asked.data}: every method has the same network,"
        f" batch and optimizer and may spend {budget} network passes on {what} and all are judged"
        " on the same held-out samples."
    )
    if found.made is not None and found.made.fast:
        lead += " This was a fast run, to see that everything works: its figures mean little."
    seeds = sorted({row.seed for row in rows})
    facts: dict[str, object] = {"Data": asked.data, "Network passes each": budget}
    facts["Seeds" if len(seeds) > 1 else "Seed"] = ", ".join(map(str, seeds))
    if teachers := dict.fromkeys(digest[:8] for row in rows for digest in row.teachers):
        facts["Given teachers, by digest"] = ", ".join(teachers)
    for entry in summarise(rows):
        if entry.passes in SHOWN_PASSES:  # the best comes first
            name = f"Least excess at {counted(entry.passes, 'pass')}"
            facts.setdefault(name, f"{entry.excess:.2f}, {entry.label}")
    return Opening(found.verb, lead, facts)


def sections(found: Findings) -> list[Section]:
    """Table, pictures and samples."""
    failed = [row for row in found.rows if row.error is not None]
    notes: list[Note | Code] = []
    for row in failed:
        notes.append(Note(f"Failed: {row.method}, seed {row.seed}: {row.error}"))
        notes += [Code(row.traceback, "Traceback", folded=True)] if row.traceback else []
    if len(failed) == len(found.rows):
        return [Section("Results", notes)]
    words = Words(["excess", "floor", "pass", "rank"])
    marks = [Note(f"{MARK} {NOTE}.")] if any(row.trained_on for row in found.rows) else []
    results = [_table(found.rows), *marks, words, *_judges(found.rows), *notes]
    quality = _quality(summarise(found.rows))
    return [Section("Results", results), *quality, *_samples(found)]


def _table(rows: Sequence[ArenaRow]) -> Table:
    pairs = arena_lines(rows)
    entries = [entry for entry, _ in pairs]
    caption = (
        "Excess of the Frechet distance, and, with ranks in brackets, of those at finer scales, of"
        " sliced Wasserstein and energy distance; mean ± standard error over seeds; fidelity is the"
        " distance of a sample to the nearest real one over that of real data; network passes,"
        " seconds of training and peak memory (MB) that each method has spent."
    )
    return Table(
        caption,
        ARENA_HEADINGS,
        [[*line[:METHOD], entry.label, *line[METHOD + 1 :]] for entry, line in pairs],
        left=(METHOD,),
        ours=[k for k, entry in enumerate(entries) if entry.ours],
        starts=[k for k in range(1, len(pairs)) if entries[k].passes != entries[k - 1].passes],
    )


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


def _quality(entries: Sequence[Entry]) -> list[Section]:
    ratio = "Frechet distance over its floor against"
    methods = counted(len({entry.method for entry in entries}), "method")
    by_passes = Picture(
        arena_figure(entries, "passes"),
        f"{methods}: {ratio} network passes per sample, both axes logarithmic",
        "A line per method; bars are standard errors over seeds, the dashed line is real data.",
    )
    by_cost, there = [], {entry.passes for entry in entries}
    for passes in sorted(there & set(SHOWN_PASSES)) or [min(there)]:
        alt = f"Methods at {counted(passes, 'pass')} per sample: {ratio} seconds of training"
        by_cost.append(Picture(arena_figure(entries, "seconds", passes), alt))
    note = Note(
        "Budgets are equal in network passes; seconds differ by what a method does besides, and by"
        " what else the machine did."
    )
    return [
        Section("Quality against passes", [by_passes]),
        Section("Quality against cost", [Gallery("charts", by_cost), note]),
    ]


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
    real = Panel("real data, held out", scaling.encode(held_out[:POINTS]))
    seed, sections = min(row.seed for row in found.rows), []
    for passes in SHOWN_PASSES:
        rows = [row for row in found.rows if row.passes == passes and row.seed == seed]
        panels = []
        for entry in summarise(rows)[:MAX_PANELS]:
            file = folder / f"{entry.method}-{seed}-{passes}.npz"
            if file.exists():
                x = scaling.encode(read_array(file)[:POINTS])
                panels.append(Panel(entry.label, x, f"excess {entry.excess:.2f}", entry.ours))
        if panels:
            shown = min(len(panels[-1].x), IMAGES if real.x.ndim == 4 else POINTS)
            note = (
                f"The first {shown:,} samples of seed {seed}, {counted(passes, 'network pass')}"
                " each, from the same noise; the best first."
            )
            parts = [Note(note), sheets([real, *panels])]
            sections.append(Section(f"Samples at {counted(passes, 'pass')}", parts))
    return sections

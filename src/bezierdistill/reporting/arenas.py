"""The report of an arena or a demo: its table, quality against passes and against cost, sheets of
samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bezierdistill.arena.summary import Entry, summarise
from bezierdistill.data import load_data, read_array
from bezierdistill.reporting.page import Section, explained, gallery, paragraph, picture, table
from bezierdistill.reporting.plots import arena_figure
from bezierdistill.reporting.runs import Run, counted
from bezierdistill.reporting.samples import IMAGES, POINTS, Panel, sheets
from bezierdistill.reporting.tables import ARENA_HEADINGS, arena_cells

METHOD = ARENA_HEADINGS.index("method")
MOST_PANELS, SHOWN_PASSES = 11, (1, 2)
Rows = Sequence[Mapping[str, Any]]


def opening(run: Run) -> tuple[str, str, dict[str, object]]:
    """Kind of run, one sentence, and what one sees first."""
    rows, settings = run.rows, run.settings
    command = run.made.command if run.made else ""
    lead = (
        f"Generators of few passes compared on {settings['data']}: every method has the same"
        f" network, batch and optimizer and may spend {settings['budget']:,} network passes on"
        " everything, and all are judged on the same held-out samples."
    )
    if "--fast" in command:
        lead += " This was a fast run, to see that everything works: its figures mean little."
    seeds = sorted({row["seed"] for row in rows})
    facts: dict[str, object] = {
        "Data": settings["data"],
        "Network passes each": f"{settings['budget']:,}",
    }
    facts["Seeds" if len(seeds) > 1 else "Seed"] = ", ".join(map(str, seeds))
    entries = summarise(rows)
    for passes in SHOWN_PASSES:
        first = next((entry for entry in entries if entry.passes == passes), None)
        if first is not None:
            facts[f"Least excess at {counted(passes, 'pass')}"] = (
                f"{first.excess:.2f}, {_named(first)}"
            )
    return "demo" if command.startswith("bezierdistill demo") else "arena", lead, facts


def sections(run: Run) -> list[Section]:
    """Table, pictures and samples."""
    rows, settings = run.rows, run.settings
    entries, failed = summarise(rows), [row for row in rows if "error" in row]
    results = [_results(rows, entries)] if entries else []
    results += [
        paragraph(f"Failed: {row['method']}, seed {row['seed']}: {row['error']}", "failed")
        for row in failed
    ]
    return [
        Section("Results", "".join(results)),
        *(_quality(entries) if entries else ()),
        *_samples(run, rows, str(settings["data"])),
    ]


def _named(entry: Entry) -> str:
    return f"{entry.method} (ours)" if entry.ours else entry.method


def _results(rows: Rows, entries: Sequence[Entry]) -> str:
    lines, ours = (
        [line for line, _ in arena_cells(rows)],
        [k for k, entry in enumerate(entries) if entry.ours],
    )
    for line, entry in zip(lines, entries, strict=True):
        line[METHOD] = _named(entry)
    starts = [k for k in range(1, len(lines)) if lines[k][0] != lines[k - 1][0]]
    caption = (
        "Excess of the Frechet distance, and of sliced Wasserstein and energy distance with ranks"
        " in brackets; mean ± standard error over seeds; network passes, seconds of training and"
        " peak memory (MB) that each method has spent."
    )
    return table(caption, ARENA_HEADINGS, lines, METHOD, ours, starts) + explained(
        "excess", "floor", "pass", "rank"
    )


def _quality(entries: Sequence[Entry]) -> list[Section]:
    count = len({entry.method for entry in entries})
    by_passes = picture(
        arena_figure(entries, "passes"),
        f"{count} methods: Frechet distance over its floor against network passes a sample, both"
        " axes logarithmic",
        "A line a method; bars are standard errors over seeds, the dashed line is real data.",
    )
    least = [passes for passes in SHOWN_PASSES if any(entry.passes == passes for entry in entries)]
    by_cost = [
        picture(
            arena_figure(entries, "seconds", passes),
            f"Methods at {counted(passes, 'pass')} a sample: Frechet distance over its floor"
            " against seconds of training",
        )
        for passes in least or [entries[0].passes]
    ]
    note = (
        "Budgets are equal in network passes; seconds differ by what a method does besides, and by"
        " what else the machine did."
    )
    return [
        Section("Quality against passes", by_passes),
        Section("Quality against cost", gallery("charts", by_cost) + paragraph(note)),
    ]


def _samples(run: Run, rows: Rows, name: str) -> list[Section]:
    """Samples that an arena has kept, of its first seed: real ones, then methods from the best to
    the worst, at one and two passes.
    """
    folder = run.folder / "samples"
    if not rows or not (folder / "real.npz").exists():
        return []
    scaling, parts = load_data(name).scaling, []
    first = min(row["seed"] for row in rows)
    for passes in SHOWN_PASSES:
        panels = [
            Panel("real data, held out", scaling.encode(read_array(folder / "real.npz")[:POINTS]))
        ]
        for entry in summarise(
            [row for row in rows if row.get("passes") == passes and row["seed"] == first]
        )[:MOST_PANELS]:
            file = folder / f"{entry.method}-{first}-{passes}.npz"
            if file.exists():
                x = scaling.encode(read_array(file)[:POINTS])
                panels.append(Panel(_named(entry), x, f"excess {entry.excess:.2f}", entry.ours))
        if len(panels) > 1:
            shown = min(len(panels[-1].x), IMAGES if panels[-1].x.ndim == 4 else POINTS)
            note = (
                f"The first {shown:,} samples of seed {first}, {counted(passes, 'network pass')}"
                " each, from the same noise; the best first."
            )
            parts.append(
                Section(f"Samples at {counted(passes, 'pass')}", paragraph(note) + sheets(panels))
            )
    return parts

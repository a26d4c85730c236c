"""The last tab: an arena's result as quality against passes and against cost, and as a table to
sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from bezierdistill.app.answers import drawn, follow, image, table, tabled
from bezierdistill.app.run import Shown
from bezierdistill.errors import UserError
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.plots import arena_figure
from bezierdistill.reporting.summary import summarise

METRICS = {
    "Frechet distance": "frechet",
    "the same, middle scale": "middle",
    "the same, fine scale": "fine",
    "sliced Wasserstein": "sliced_wasserstein",
    "energy distance": "energy",
}
HEADINGS = ["passes", "rank", "method", "excess", "± error", "seeds", "passes spent", "seconds"]
TEXT = """Every method has the same network and optimizer and may spend the same **total of network
passes** on everything (*bezier-half* half of it; *bezier-teacher* is our strong teacher alone).
*Excess* is the distance over its floor (real against real), minus one: 0 is as good as real data.
**bezier** is ours. A click on a column's head sorts by it."""


def compare_tab(opened: Any, run: Shown) -> None:
    """Fill the tab."""
    if not run.rows:
        gr.Markdown(
            "This run holds no arena. One is made by `bezierdistill arena --data digits --out"
            " runs/arena`, or `make demo`."
        )
        return
    for row in run.rows:
        if row.error is not None:
            gr.Markdown(f"Failed: `{row.method}`, seed {row.seed}: {row.error}")
    passes = sorted({row.passes for row in run.rows if row.error is None})
    if not passes:
        return
    with gr.Row():
        quality = image("quality against passes", "compare-quality")
        cost = image("quality against seconds of training", "compare-cost")
    with gr.Row():
        metric = gr.Radio(
            list(METRICS), value=next(iter(METRICS)), label="judged by", elem_id="compare-metric"
        )
        chosen = gr.CheckboxGroup(
            passes, value=passes, label="passes a sample", elem_id="compare-passes"
        )
    gr.Markdown(TEXT)
    lines = table("compare-table")

    def compare(metric: str, chosen: list[int]) -> tuple[np.ndarray, np.ndarray, str]:
        rows = _rows(run, metric, chosen)
        entries = summarise(rows, METRICS[metric])
        by_passes, by_cost = (
            drawn(arena_figure(entries, axis, distance=metric), 140)
            for axis in ("passes", "seconds")
        )
        return by_passes, by_cost, tabled(HEADINGS, sorted(_lines(rows, METRICS[metric])))

    follow(opened, compare, [metric, chosen], [quality, cost, lines])


def _rows(run: Shown, metric: str, chosen: list[int]) -> list[ArenaRow]:
    """The rows of some numbers of passes; calls can be made without the page, so what is asked is
    checked again.
    """
    rows = [row for row in run.rows if row.error is None and row.passes in chosen]
    if metric not in METRICS or not rows:
        raise UserError("nothing is chosen: expected a distance and one number of passes or more")
    return rows


def _lines(rows: Sequence[ArenaRow], metric: str) -> list[list[Any]]:
    lines: list[list[Any]] = []
    for one in summarise(rows, metric):
        measured = [round(one.excess, 3), round(one.error, 3), one.seeds]
        costs = [round(one.spent), round(one.seconds, 1)]
        lines.append([one.passes, one.rank, one.method, *measured, *costs])
    return lines

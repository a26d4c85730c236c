"""The fourth tab: an arena's result as a table to sort, and quality against passes and against
cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from bezierdistill.app.answers import drawn, follow, image, table
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
**bezier** is ours."""


def compare_tab(page: gr.Blocks, run: Shown) -> None:
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
    gr.Markdown(TEXT)
    with gr.Row():
        metric = gr.Radio(
            list(METRICS), value=next(iter(METRICS)), label="judged by", elem_id="compare-metric"
        )
        chosen = gr.CheckboxGroup(
            passes, value=passes, label="passes a sample", elem_id="compare-passes"
        )
        first: Any = ["passes", "rank"]
        order = gr.Dropdown(
            HEADINGS, value=first, multiselect=True, label="sorted by", elem_id="compare-order"
        )
        falling = gr.Checkbox(False, label="largest first", elem_id="compare-falling")
    sorted_table = table("compare-table", HEADINGS, ["method"])
    with gr.Row():
        quality = image("quality against passes", "compare-quality")
        cost = image("quality against seconds of training", "compare-cost")

    def table_of(metric: str, chosen: list[int], order: list[str], falling: bool) -> list[Any]:
        keys = [HEADINGS.index(heading) for heading in order or () if heading in HEADINGS]
        lines = _lines(_rows(run, metric, chosen), METRICS[metric])
        return sorted(lines, key=lambda line: [line[key] for key in keys], reverse=bool(falling))

    def pictures(metric: str, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
        entries = summarise(_rows(run, metric, chosen), METRICS[metric])
        by_passes = arena_figure(entries, "passes", distance=metric)
        return drawn(by_passes, 140), drawn(arena_figure(entries, "seconds", distance=metric), 140)

    follow(page, table_of, [metric, chosen, order, falling], [sorted_table])
    follow(page, pictures, [metric, chosen], [quality, cost])


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

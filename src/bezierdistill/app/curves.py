"""The first tab: teachers, their blend, its curves, and what a few steps make of them, in two
dimensions.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from bezierdistill.app import plane
from bezierdistill.app.answers import answered, drawn, follow, image, slider, table
from bezierdistill.errors import UserError

TEXT = """Noise (black dots) moves to data (grey) along the velocity of two teachers: a *strong* one
that blurs the data a little, and a *weak* one that blurs it twice as much. Their **blend** has the
weight *w(t)* for the strong teacher and *1 − w(t)* for the weak one; the three sliders are the
Bernstein coefficients of *w*. More than 1 pushes away from the blur. The blend's paths become
**Bezier curves**, from which a student learns."""
NOTE = """*Excess*: Frechet distance to real points (of fixed random features) over its floor, real
points against real points, minus one; 0 is as good as real data. *Straightness*: mean squared gap
between a path's velocity and its chord; 0 is straight. A step of the blend costs two network
passes, one per teacher. The student is a network of 18,000 weights, trained here and now along
these curves and by alignment with real points."""
HEADINGS = ["field", "straightness", "excess, 1 step", "2 steps", "50 steps"]
GUIDES = [
    ("fitted to the path", "fit"),
    ("from the end velocities", "hermite"),
    ("where each teacher alone ends", "endpoints"),
]
MAX_WEIGHT, MAX_SHIFT = 2.5, 2.0
WEIGHT, PLACES = "weight of the strong teacher", ("at the source", "on the way", "at the data")


def curves_tab(page: gr.Blocks) -> None:
    """Fill the tab."""
    gr.Markdown(TEXT)
    usual = plane.Setting()
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            task = gr.Radio(
                list(plane.TASKS), value=usual.task, label="data", elem_id="curves-task"
            )
            weights = [
                slider(f"curves-weight-{k}", f"{WEIGHT} {where}", -0.5, MAX_WEIGHT, value, 0.05)
                for k, (value, where) in enumerate(zip(usual.weights, PLACES, strict=True))
            ]
            guides = gr.Radio(GUIDES, value=usual.guides, label="guides", elem_id="curves-guides")
            label, most = "degree (1 is a straight line)", plane.MAX_DEGREE
            degree = slider("curves-degree", label, 1, most, usual.degree, 1)
        with gr.Column(scale=3, min_width=320):
            what = "paths of the blend, its curves, and the guides of one of them"
            paths = image(what, "curves-paths")
            words = gr.Markdown(elem_id="curves-words")
        with gr.Column(scale=2, min_width=240):
            row = slider("curves-row", "curve to look at", 1, plane.SHOWN, 3, 1)
            guide = slider("curves-guide", "guide P1, P2, ... to move", 1, 3, 2, 1)
            across, up = (
                slider(f"curves-{way}", f"move it {way}", -MAX_SHIFT, MAX_SHIFT, 0, 0.05)
                for way in ("across", "up")
            )
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            what = (
                "real points, samples of the blend at 1, 2 and 50 steps, and of a student at one"
                " and two passes"
            )
            samples = image(what, "curves-samples")
        with gr.Column(scale=2, min_width=280):
            train = "Train a student on these curves"
            button = gr.Button(train, variant="primary", elem_id="curves-distil")
            widths = ["18%", "28%", "20%", "17%", "17%"]
            look = {"wrap": True, "column_widths": widths}
            measures = table("curves-measures", HEADINGS, ["field"], **look)
            gr.Markdown(NOTE)
    student = gr.State(None)

    given = [task, *weights, degree, guides]
    guides.change(_degrees, [guides, degree], degree, show_progress="hidden")
    degree.change(_guides, [degree, guide], guide, show_progress="hidden")
    follow(page, _paths, [*given, row, guide, across, up], [paths, words])
    follow(page, _samples, [*given, student], [samples, measures])
    button.click(_student, given, student, concurrency_limit=1)


@answered
def _degrees(guides: str, degree: float) -> Any:
    """The degrees that a kind of guides can have."""
    least = 1 if guides == "fit" else 3
    return gr.Slider(minimum=least, value=max(least, int(degree)))


@answered
def _guides(degree: float, guide: float) -> Any:
    """The guides that a degree has; there is none on a straight line."""
    most = int(degree) - 1
    value = max(1, min(most, int(guide)))
    return gr.Slider(maximum=max(most, 2), value=value, interactive=most > 0)


def _setting(
    task: str, first: float, middle: float, last: float, degree: float, guides: plane.Guides
) -> plane.Setting:
    """What the controls say; calls can be made without the page, so it is checked again."""
    weights = (float(first), float(middle), float(last))
    fits = 1 <= degree <= plane.MAX_DEGREE and all(abs(w) <= MAX_WEIGHT for w in weights)
    if task not in plane.TASKS or not fits:
        raise UserError(
            f"data {str(task)[:40]!r}, degree {degree}, weights {weights}: expected one of"
            f" {', '.join(plane.TASKS)}, 1 to {plane.MAX_DEGREE}, and up to {MAX_WEIGHT}"
        )
    return plane.Setting(task, weights, int(degree), guides)


def _paths(*values: Any) -> tuple[np.ndarray, str]:
    *given, row, guide, across, up = values
    x, y = (max(-MAX_SHIFT, min(MAX_SHIFT, float(part))) for part in (across, up))
    row = min(max(int(row), 1), plane.SHOWN) - 1
    figure, words = plane.paths_figure(_setting(*given), row, int(guide), (x, y))
    return drawn(figure), words


def _samples(*values: Any) -> tuple[np.ndarray, list[list[str | float]]]:
    *given, student = values
    setting = _setting(*given)
    ours = student[1] if student is not None and student[0] == setting else None
    return drawn(plane.samples_figure(setting, ours)), plane.measures(setting)


@answered
def _student(*given: Any) -> tuple[plane.Setting, tuple[Tensor, ...]]:
    setting = _setting(*given)
    return setting, plane.distil(setting)

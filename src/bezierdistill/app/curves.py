"""The first tab: teachers, their blend, its curves, and what a few steps make of them, in two
dimensions.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from bezierdistill.app import plane
from bezierdistill.app.answers import LIVE, answered, drawn, image
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
Student = tuple[plane.Setting, tuple[Tensor, ...]] | None


def curves_tab(page: gr.Blocks) -> None:
    """Fill the tab."""
    gr.Markdown(TEXT)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            task = gr.Radio(
                list(plane.TASKS), value=plane.Setting.task, label="data", elem_id="curves-task"
            )
            places = zip(
                plane.Setting.weights, ("at the source", "on the way", "at the data"), strict=True
            )
            weights = [
                gr.Slider(
                    -0.5,
                    MAX_WEIGHT,
                    value,
                    step=0.05,
                    label=f"weight of the strong teacher {where}",
                    elem_id=f"curves-weight-{k}",
                )
                for k, (value, where) in enumerate(places)
            ]
            guides = gr.Radio(GUIDES, value="fit", label="guides", elem_id="curves-guides")
            degree = gr.Slider(
                1,
                plane.MAX_DEGREE,
                4,
                step=1,
                label="degree (1 is a straight line)",
                elem_id="curves-degree",
            )
        with gr.Column(scale=3, min_width=320):
            paths = image(
                "paths of the blend, its curves, and the guides of one of them", "curves-paths"
            )
            words = gr.Markdown(elem_id="curves-words")
        with gr.Column(scale=2, min_width=240):
            row = gr.Slider(
                1, plane.SHOWN, 3, step=1, label="curve to look at", elem_id="curves-row"
            )
            guide = gr.Slider(
                1, 3, 2, step=1, label="guide P1, P2, ... to move", elem_id="curves-guide"
            )
            across = gr.Slider(
                -MAX_SHIFT,
                MAX_SHIFT,
                0,
                step=0.05,
                label="move it across",
                elem_id="curves-across",
            )
            up = gr.Slider(
                -MAX_SHIFT, MAX_SHIFT, 0, step=0.05, label="move it up", elem_id="curves-up"
            )
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            samples = image(
                "real points, samples of the blend at 1, 2 and 50 steps, and of a student at one"
                " and two passes",
                "curves-samples",
            )
        with gr.Column(scale=2, min_width=280):
            button = gr.Button(
                "Train a student on these curves", variant="primary", elem_id="curves-distil"
            )
            table = gr.Dataframe(
                headers=HEADINGS,
                datatype=["str", "number", "number", "number", "number"],
                interactive=False,
                wrap=True,
                column_widths=["18%", "28%", "20%", "17%", "17%"],
                buttons=[],
                elem_id="curves-measures",
            )
            gr.Markdown(NOTE)
    student = gr.State(None)

    given = [task, *weights, degree, guides]
    one = [row, guide, across, up]
    guides.change(_degrees, [guides, degree], degree, show_progress="hidden")
    degree.change(_guides, [degree, guide], guide, show_progress="hidden")
    gr.on(
        [page.load, *(part.change for part in (*given, *one))],
        _paths,
        [*given, *one],
        [paths, words],
        **LIVE,
    )
    gr.on(
        [page.load, *(part.change for part in (*given, student))],
        _samples,
        [*given, student],
        [samples, table],
        **LIVE,
    )
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
    return gr.Slider(
        maximum=max(most, 2), value=max(1, min(most, int(guide))), interactive=most > 0
    )


def _setting(
    task: str, first: float, middle: float, last: float, degree: float, guides: plane.Guides
) -> plane.Setting:
    """What the controls say; calls can be made without the page, so it is checked again."""
    weights = (float(first), float(middle), float(last))
    if (
        task not in plane.TASKS
        or not 1 <= degree <= plane.MAX_DEGREE
        or not all(abs(weight) <= MAX_WEIGHT for weight in weights)
    ):
        got = f"data {str(task)[:40]!r}, degree {degree}, weights {weights}"
        raise UserError(
            f"got {got}; expected one of {', '.join(plane.TASKS)}, 1 to {plane.MAX_DEGREE}, and up"
            f" to {MAX_WEIGHT}"
        )
    return plane.Setting(task, weights, int(degree), guides)


@answered
def _paths(*values: Any) -> tuple[np.ndarray, str]:
    *given, row, guide, across, up = values
    shift = tuple(max(-MAX_SHIFT, min(MAX_SHIFT, float(part))) for part in (across, up))
    figure, words = plane.paths_figure(
        _setting(*given), min(max(int(row), 1), plane.SHOWN) - 1, int(guide), (shift[0], shift[1])
    )
    return drawn(figure), words


@answered
def _samples(*values: Any) -> tuple[np.ndarray, list[list[str | float]]]:
    *given, student = values
    setting = _setting(*given)
    ours = student[1] if student is not None and student[0] == setting else None
    return drawn(plane.samples_figure(setting, ours)), plane.measures(setting)


@answered
def _student(*given: Any) -> Student:
    setting = _setting(*given)
    return setting, plane.distil(setting)

"""The second tab: teachers, their blend, its curves, and what a few steps make of them, in two
dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from bezierdistill.app import plane
from bezierdistill.app.answers import (
    MENDED,
    answered,
    drawn,
    follow,
    image,
    slider,
    table,
    tabled,
)
from bezierdistill.app.drag import draggable, held
from bezierdistill.errors import UserError

TEXT = """Noise (black dots) moves to data (grey) along the velocity of two teachers: a *strong* one
that blurs the data a little, and a *weak* one that blurs it twice as much. Their **blend** has the
weight *w(t)* for the strong teacher and *1 − w(t)* for the weak one; the three sliders are the
Bernstein coefficients of *w*. More than 1 pushes away from the blur. The blend's paths become
**Bezier curves**, from which a student learns: drag the guides (diamonds) of one of them."""
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
PICTURE = "paths of the blend, its curves, and the guides of one of them"
MAX_WEIGHT, MAX_SHIFT = 2.5, 10.0
PROGRESS = gr.Progress()  # by its type Gradio finds the argument that is one
Moved = tuple[int, list[tuple[float, float]]]  # which curve, and by how much each guide
WEIGHT, PLACES = "weight of the strong teacher", ("at the source", "on the way", "at the data")


def curves_tab(opened: Any) -> None:
    """Fill the tab."""
    usual = plane.Setting()
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            paths = draggable("curves-paths")
            words = gr.Markdown(elem_id="curves-words")
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
            row = slider("curves-row", "curve to look at", 1, plane.SHOWN, 6, 1)
            back = gr.Button("Put its guides back", size="sm", elem_id="curves-back")
            gr.Markdown(TEXT)
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
            measures = table("curves-measures")
            gr.Markdown(NOTE)
    student, moved = gr.State(None), gr.State(None)

    given = [task, *weights, degree, guides]
    guides.change(_degrees, [guides, degree], degree, show_progress="hidden")
    paths.input(_moved, None, moved, show_progress="hidden")
    back.click(lambda: None, None, moved, show_progress="hidden")
    follow(opened, _paths, [*given, row, moved], [paths, words])
    follow(opened, _samples, [*given, student], [samples, measures])
    trained = button.click(_student, given, student, concurrency_limit=1, show_progress_on=samples)
    trained.success(None, js=MENDED)


@answered
def _degrees(guides: str, degree: float) -> Any:
    """The degrees that a kind of guides can have."""
    least = 1 if guides == "fit" else 3
    return gr.Slider(minimum=least, value=max(least, int(degree)))


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


def _moved(event: gr.EventData) -> Moved:
    """How far the guides of a curve were dragged."""
    row, shifts = event.row, event.shifts  # pyright: ignore[reportAttributeAccessIssue]
    return int(row), [(float(x), float(y)) for x, y in shifts]


def _paths(*values: Any) -> tuple[str, str]:
    *given, row, moved = values
    setting, row = _setting(*given), min(max(int(row), 1), plane.SHOWN) - 1
    guides = setting.degree - 1
    of, shifts = moved or (row, [])
    if of != row or len(shifts) != guides:  # those of another curve
        shifts = [(0.0, 0.0)] * guides
    if not all(math.isfinite(part) and abs(part) <= MAX_SHIFT for one in shifts for part in one):
        raise UserError(f"a guide was moved by more than {MAX_SHIFT}: expected a place nearer by")
    shifts = [(0.0, 0.0), *shifts, (0.0, 0.0)]
    figure, points, words = plane.paths_figure(setting, row, shifts)
    pixels = drawn(figure)
    places, unit = plane.within(figure, points)
    return held(pixels, places, shifts, unit, row, PICTURE), words


def _samples(*values: Any) -> tuple[np.ndarray, str]:
    *given, student = values
    setting = _setting(*given)
    ours = student[1] if student is not None and student[0] == setting else None
    return drawn(plane.samples_figure(setting, ours)), tabled(HEADINGS, plane.measures(setting))


@answered
def _student(
    task: str,
    first: float,
    middle: float,
    last: float,
    degree: float,
    guides: plane.Guides,
    progress: gr.Progress = PROGRESS,
) -> tuple[plane.Setting, tuple[Tensor, ...]]:
    setting = _setting(task, first, middle, last, degree, guides)

    def tell(done: int, steps: int) -> None:
        progress(done / steps, f"step {done:,} of {steps:,}" if done else "simulating the curves")

    return setting, plane.distil(setting, tell)

"""The second tab: a model at work, a student beside its teacher, with times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from bezierdistill.app.answers import LIVE, answered, image, shown
from bezierdistill.app.run import Shown
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.words import counted

TEXT = """The same noise through a student, in one or two passes, and through the teacher that it
was distilled from, in many. Times are those of this machine, all samples at once, the best of
five."""
COLUMNS, MAX_SAMPLES, MAX_PASSES, MAX_SEED, REPEATS = 8, 160, 100, 2**31, 5
Given = tuple[str, float, float, float, list[int], float, float]


@dataclass(frozen=True)
class Draw:
    """What the controls say, checked again, since calls can be made without the page."""

    model: Model
    seed: int
    passes: int
    count: int
    labels: list[int]
    guidance: float
    many: int

    @classmethod
    def of(
        cls,
        run: Shown,
        name: str,
        seed: float,
        passes: float,
        count: float,
        labels: list[int],
        guidance: float,
        many: float,
    ) -> Draw:
        """Read the controls.

        Raises:
            UserError: if they say what no control says.
        """
        models = run.generators
        if name not in models:
            raise UserError(f"model is {str(name)[:60]!r}, expected one of {', '.join(models)}")
        if seed is None or not 0 <= seed < MAX_SEED:
            raise UserError(f"seed is {seed}, expected a whole number from 0 to {MAX_SEED - 1:,}")
        if (
            not 1 <= count <= MAX_SAMPLES
            or not 1 <= passes <= MAX_PASSES
            or not 1 <= many <= MAX_PASSES
        ):
            raise UserError(
                f"samples are {count}, passes {passes} and {many}: expected up to {MAX_SAMPLES},"
                f" and up to {MAX_PASSES}"
            )
        return cls(models[name], int(seed), int(passes), int(count), labels, guidance, int(many))

    def sampled(self, model: Model, passes: int, solver: str) -> tuple[np.ndarray, str, float]:
        """Its samples as a picture, what it cost in words, and the seconds."""
        asked: dict[str, Any] = {"labels": self.labels or None} if model.conditions.classes else {}
        scale = self.model.teacher_scale(self.guidance)
        if (
            scale is not None
            and model.condition_size
            and (model is not self.model or self.model.conditions.guidance_range is not None)
        ):
            asked["guidance_scale"] = scale
        seconds, x = [], np.empty(0)
        for _ in range(REPEATS):
            started = time.perf_counter()
            x = model.sample(self.count, passes, self.seed, solver, **asked)
            seconds.append(time.perf_counter() - started)
        guided = f", guidance {scale:g}" if scale is not None else ""
        words = (
            f"{counted(passes, 'pass')}, {self.count} samples in {1000 * min(seconds):.1f}"
            f" ms{guided}"
        )
        return shown(model.scaling.encode(x), COLUMNS), words, min(seconds)


def generate_tab(page: gr.Blocks, run: Shown) -> None:
    """Fill the tab."""
    models = run.generators
    if not models:
        gr.Markdown(
            "This run holds no model that starts from noise and takes labels or nothing as"
            " conditions."
        )
        return
    first = next(iter(models))
    gr.Markdown(TEXT)
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            name = gr.Dropdown(list(models), value=first, label="model", elem_id="generate-model")
            seed = gr.Number(0, precision=0, label="seed", elem_id="generate-seed")
            passes = gr.Slider(1, 8, 1, step=1, label="its passes", elem_id="generate-passes")
            count = gr.Slider(
                COLUMNS, MAX_SAMPLES, 64, step=COLUMNS, label="samples", elem_id="generate-count"
            )
            labels, guidance = _asked(models[first])
            many = gr.Slider(
                4, MAX_PASSES, 40, step=4, label="passes of the teacher", elem_id="generate-many"
            )
        with gr.Column(scale=3, min_width=300):
            own = image("samples of the model", "generate-ours")
            own_words = gr.Markdown(elem_id="generate-words")
        with gr.Column(scale=3, min_width=300):
            teacher = image("samples of its teacher from the same noise", "generate-theirs")
            teacher_words = gr.Markdown(elem_id="generate-teacher-words")

    @answered
    def draw(*values: Any) -> tuple[Any, ...]:
        asked = Draw.of(run, *values)
        kind = asked.model.card.kind
        picture, words, seconds = asked.sampled(asked.model, asked.passes, "euler")
        left = f"**The {kind}**: {words}."
        source = run.teacher(asked.model)
        if source is None:
            return (
                left,
                picture,
                (
                    "It is a teacher itself."
                    if kind == "teacher"
                    else "Its teacher is not in this run."
                ),
                None,
            )
        beside, told, longer = asked.sampled(source, asked.many, "heun")
        return (
            left,
            picture,
            f"**Its teacher**: {told} (Heun), **{longer / seconds:.0f} times** as long.",
            beside,
        )

    given = [name, seed, passes, count, labels, guidance, many]
    name.change(
        answered(lambda name: list(_asked(models[name]))),
        name,
        [labels, guidance],
        show_progress="hidden",
    )
    gr.on(
        [page.load, *(part.change for part in given)],
        draw,
        given,
        [own_words, own, teacher_words, teacher],
        **LIVE,
    )


def _asked(model: Model) -> tuple[gr.CheckboxGroup, gr.Slider]:
    """The controls of what a model takes as conditions; hidden where it takes none."""
    classes = list(range(len(model.conditions.frequencies or ())))
    label = "labels (none chosen: as frequent as in the data)"
    low, high = model.conditions.guidance_range or (1.0, 2.0)
    return (
        gr.CheckboxGroup(
            classes, value=[], label=label, visible=bool(classes), elem_id="generate-labels"
        ),
        gr.Slider(
            low,
            high,
            (low + high) / 2,
            step=0.05,
            label="guidance",
            visible=model.conditions.guidance_range is not None,
            elem_id="generate-guidance",
        ),
    )

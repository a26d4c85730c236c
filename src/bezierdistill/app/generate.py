"""The second tab: a model at work, a student beside its teacher, with times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from bezierdistill.app.answers import answered, follow, image, shown, slider
from bezierdistill.app.run import Shown
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.words import counted

TEXT = """The same noise through a student, in one or two passes, and through the teacher that it
was distilled from, in many. Times are those of this machine, all samples at once, the best of
five."""
COLUMNS, MAX_SAMPLES, MAX_PASSES, MAX_SEED, REPEATS = 8, 160, 100, 2**31, 5
MAX_PROMPT, MAX_IMAGES = 1000, 16  # of pipelines


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
    prompt: str = ""

    @classmethod
    def of(cls, run: Shown, name: str, *controls: Any) -> Draw:
        """Read the controls, in the order of the fields.

        Raises:
            UserError: if they say what no control says.
        """
        seed, passes, count, labels, guidance, many, *rest = controls
        models, prompt = run.sampled, " ".join(str(rest[0] or "").split()) if rest else ""
        if name not in models:
            raise UserError(f"model is {str(name)[:60]!r}, expected one of {', '.join(models)}")
        if seed is None or not 0 <= seed < MAX_SEED:
            raise UserError(f"seed is {seed}, expected a whole number from 0 to {MAX_SEED - 1:,}")
        few = all(1 <= number <= MAX_PASSES for number in (passes, many))
        if not few or not 1 <= count <= MAX_SAMPLES:
            raise UserError(
                f"samples are {count}, passes {passes} and {many}: expected up to {MAX_SAMPLES},"
                f" and up to {MAX_PASSES}"
            )
        if models[name].card.is_pipeline and not 0 < len(prompt) <= MAX_PROMPT:
            raise UserError(
                f"the prompt has {len(prompt)} characters, expected 1 to {MAX_PROMPT:,}"
            )
        numbers = int(seed), int(passes), int(count)
        return cls(models[name], *numbers, labels, guidance, int(many), prompt)

    def sampled(self, model: Model, passes: int, solver: str) -> tuple[np.ndarray, str, float]:
        """Its samples as a picture, what it cost in words, and the seconds."""
        if model.card.is_pipeline:
            return self._prompted(model, passes)
        asked: dict[str, Any] = {"labels": self.labels or None} if model.conditions.classes else {}
        scale = self.model.teacher_scale(self.guidance)
        takes = model is not self.model or self.model.conditions.guidance_range is not None
        if scale is not None and model.condition_size and takes:
            asked["guidance_scale"] = scale
        seconds, x = [], np.empty(0)
        for _ in range(REPEATS):
            started = time.perf_counter()
            x = model.sample(self.count, passes, self.seed, solver, **asked)
            seconds.append(time.perf_counter() - started)
        guided = f", guidance {scale:g}" if scale is not None else ""
        took = f"{self.count} samples in {1000 * min(seconds):.1f} ms"
        words = f"{counted(passes, 'pass')}, {took}{guided}"
        return shown(model.scaling.encode(x), COLUMNS), words, min(seconds)

    def _prompted(self, model: Model, passes: int) -> tuple[np.ndarray, str, float]:
        from bezierdistill.models.pipeline import PipelineModel  # it takes diffusers
        from bezierdistill.reporting.prompted import as_pixels

        assert isinstance(model, PipelineModel)
        asked, passes = model.with_prompts([self.prompt]), passes * model.passes
        count, started = min(self.count, MAX_IMAGES), time.perf_counter()
        x = asked.sample(count, passes, self.seed, conditions=np.zeros(count, int))
        seconds = time.perf_counter() - started
        pixels = as_pixels(asked.images(x))
        took = f"{count} samples in {1000 * seconds:.1f} ms, without the decoder"
        return shown(pixels, COLUMNS), f"{counted(passes, 'pass')}, {took}", seconds


def generate_tab(page: gr.Blocks, run: Shown) -> None:
    """Fill the tab."""
    models = run.sampled
    if not models:
        gr.Markdown(
            "This run holds no model that starts from noise and takes labels, a prompt or nothing"
            " as conditions."
        )
        return
    first = next(iter(models))
    gr.Markdown(TEXT)
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            name = gr.Dropdown(list(models), value=first, label="model", elem_id="generate-model")
            seed = gr.Number(0, precision=0, label="seed", elem_id="generate-seed")
            passes = slider("generate-passes", "its passes", 1, 8, 1, 1)
            count = slider("generate-count", "samples", COLUMNS, MAX_SAMPLES, 64, COLUMNS)
            labels, guidance, prompt = _asked(models[first])
            many = slider("generate-many", "passes of the teacher", 4, MAX_PASSES, 40, 4)
        with gr.Column(scale=3, min_width=300):
            own = image("samples of the model", "generate-ours")
            own_words = gr.Markdown(elem_id="generate-words")
        with gr.Column(scale=3, min_width=300):
            teacher = image("samples of its teacher from the same noise", "generate-theirs")
            teacher_words = gr.Markdown(elem_id="generate-teacher-words")

    def draw(*values: Any) -> tuple[Any, ...]:
        asked = Draw.of(run, *values)
        kind, source = asked.model.card.kind, run.teacher(asked.model)
        picture, words, seconds = asked.sampled(asked.model, asked.passes, "euler")
        left = f"**The {kind}**: {words}."
        if source is None:
            alone = (
                "It is a teacher itself" if kind == "teacher" else "Its teacher is not in this run"
            )
            return left, picture, f"{alone}.", None
        beside, told, longer = asked.sampled(source, asked.many, "heun")
        right = f"**Its teacher**: {told} (Heun), **{longer / seconds:.0f} times** as long."
        return left, picture, right, beside

    asked = answered(lambda name: list(_asked(models[name])))
    name.change(asked, name, [labels, guidance, prompt], show_progress="hidden")
    given = [name, seed, passes, count, labels, guidance, many, prompt]
    follow(page, draw, given, [own_words, own, teacher_words, teacher])


def _asked(model: Model) -> tuple[gr.CheckboxGroup, gr.Slider, gr.Textbox]:
    """The controls of what a model takes as conditions; hidden where it takes none."""
    ends, classes = model.conditions.guidance_range, list(range(model.conditions.classes))
    label = "labels (none chosen: as frequent as in the data)"
    low, high = ends or (1.0, 2.0)
    given = {"value": (low + high) / 2, "step": 0.05, "visible": ends is not None}
    labels = gr.CheckboxGroup(
        classes, value=[], label=label, visible=bool(classes), elem_id="generate-labels"
    )
    texts = getattr(getattr(model, "prompts", None), "texts", ("",))
    prompt = gr.Textbox(
        texts[0],
        label="prompt",
        max_length=MAX_PROMPT,
        visible=model.card.is_pipeline,
        elem_id="generate-prompt",
    )
    return labels, slider("generate-guidance", "guidance", low, high, **given), prompt

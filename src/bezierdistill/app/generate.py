"""The first tab: a model at work, a student beside its teacher, with times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from bezierdistill.app.answers import MENDED, answered, drawn, follow, image, shown, slider
from bezierdistill.app.run import Shown
from bezierdistill.app.upload import Upload, read_upload
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.reporting.plots import texts_figure
from bezierdistill.words import counted

TEXT = """The same noise through a student and through the teacher that it was distilled from. Times
are those of this machine, all samples at once, the best of five."""
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

    def sampled(
        self, model: Model, passes: int, solver: str
    ) -> tuple[np.ndarray | str, str, float]:
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
        words = f"{counted(passes, 'pass')}{' of Heun' if solver == 'heun' else ''}, {took}{guided}"
        if model.scaling.layout == "tokens":
            return drawn(texts_figure([str(text) for text in x]), 150), words, min(seconds)
        states = model.scaling.frames(model.scaling.encode(x))
        return shown(states, COLUMNS), words, min(seconds)

    def _prompted(self, model: Model, passes: int) -> tuple[np.ndarray | str, str, float]:
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


def generate_tab(opened: Any, run: Shown) -> None:
    """Fill the tab."""
    models = run.sampled
    if not models:
        gr.Markdown(
            "This run holds no model that starts from noise and takes labels, a prompt or nothing"
            " as conditions."
        )
        return
    first = next(iter(models))
    speed = gr.Markdown(elem_id="generate-speed")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            own = image("samples of the model", "generate-ours")
            own_words = gr.Markdown(elem_id="generate-words")
        with gr.Column(scale=3, min_width=300):
            teacher = image("samples of its teacher from the same noise", "generate-theirs")
            teacher_words = gr.Markdown(elem_id="generate-teacher-words")
        with gr.Column(scale=2, min_width=260):
            name = gr.Dropdown(list(models), value=first, label="model", elem_id="generate-model")
            seed = gr.Number(0, precision=0, label="seed", elem_id="generate-seed")
            count = slider("generate-count", "samples", COLUMNS, MAX_SAMPLES, 64, COLUMNS)
            passes, labels, guidance, prompt = _asked(models[first])
            many = slider("generate-many", "passes of the teacher", 4, MAX_PASSES, 40, 4)
            label = "Upload your own student: its folder as a zip"
            look: dict[str, Any] = {"size": "sm", "elem_id": "generate-upload"}
            file = gr.UploadButton(label, file_types=[".zip"], **look)
    gr.Markdown(TEXT)
    uploaded = gr.State(None)

    def seen(own: Upload | None) -> Shown:
        return own.within(run) if own else run

    def draw(own: Upload | None, *values: Any) -> tuple[Any, ...]:
        return _drawn(seen(own), *values)

    def asked(own: Upload | None, name: str) -> list[Any]:
        return list(_asked(seen(own).sampled[name]))

    def upload(file: str) -> tuple[Upload, gr.Dropdown]:
        own = read_upload(Path(file))
        return own, gr.Dropdown(list(seen(own).sampled), value=own.name)

    file.upload(answered(upload), file, [uploaded, name]).success(None, js=MENDED)
    told: dict[str, Any] = {"show_progress": "hidden"}
    name.change(answered(asked), [uploaded, name], [passes, labels, guidance, prompt], **told)
    given = [uploaded, name, seed, passes, count, labels, guidance, many, prompt]
    follow(opened, draw, given, [speed, own_words, own, teacher_words, teacher])


def _drawn(run: Shown, *controls: Any) -> tuple[Any, ...]:
    """The speed-up, and of the model and of its teacher words and a picture."""
    asked = Draw.of(run, *controls)
    model, source = asked.model, run.teacher(asked.model)
    picture, words, seconds = asked.sampled(model, asked.passes, "euler")
    left = f"**{_called(run, model)}**: {words}."
    if source is None:
        alone = "It is a teacher itself"
        alone = alone if model.card.kind == "teacher" else "Its teacher is not in this run"
        return f"## {counted(asked.passes, 'pass')}", left, picture, f"{alone}.", None
    beside, told, longer = asked.sampled(source, asked.many, "heun")
    right = f"**{_called(run, source)}**: {told}."
    names = f"**{run.name_of(model)}** against its teacher **{run.name_of(source)}**"
    ratio = longer / seconds
    faster = f"## {round(ratio, 0 if ratio >= 10 else 1):g} times as fast"
    return f"{faster}\n{names}", left, picture, right, beside


def _called(run: Shown, model: Model) -> str:
    """A model's name, and its network."""
    net = type(getattr(model.net, "module", model.net)).__name__
    return f"{run.name_of(model)} ({model.card.kind}, {net} of {model.size:,} weights)"


def _asked(model: Model) -> tuple[gr.Slider, gr.CheckboxGroup, gr.Slider, gr.Textbox]:
    """The controls of its passes, at first the fewest that it has learnt, and of what it takes as
    conditions; hidden where it takes none.
    """
    fewest = min(model.knots, default=1)
    passes = slider("generate-passes", "its passes", 1, 8, fewest, 1)
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
    guidance = slider("generate-guidance", "guidance", low, high, **given)
    return passes, labels, guidance, prompt

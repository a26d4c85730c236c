"""The third tab: an image, and what one and two passes of a translation model make of it. Shown
only when the run has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from bezierdistill.app.answers import follow, shown
from bezierdistill.app.run import Shown
from bezierdistill.data import Scaling, from_pixels, load_data
from bezierdistill.data.images import check_size, read_images
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.stages.translate import resized
from bezierdistill.words import counted

TEXT = """A model that starts from images of one domain and ends in another. Drop an image, which is
resized and, for a model of grey images, turned grey; or take a held-out image of the domain. An
image should look as those do: digits here are white on black."""
Captioned = tuple[np.ndarray | str, str]
FLOW_PASSES, MAX_HELD_OUT, WIDTH, MAX_PIXELS = 40, 1000, 256, 2**22


def translate_tab(opened: Any, run: Shown) -> None:
    """Fill the tab."""
    models = run.translators
    gr.Markdown(TEXT)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            look: dict[str, Any] = {"height": 320, "columns": 4, "object_fit": "contain"}
            look |= {"show_label": False, "interactive": False, "format": "png"}
            look["buttons"] = ["download", "download_all"]
            label = "the input and its translations"
            gallery = gr.Gallery(label=label, elem_id="translate-gallery", **look)
        with gr.Column(scale=1, min_width=260):
            first = next(iter(models))
            name = gr.Dropdown(list(models), value=first, label="model", elem_id="translate-model")
            label = "an image (PNG, JPEG, BMP, WebP)"
            file = gr.File(label=label, height=150, elem_id="translate-file")
            label = "or a held-out image, by its number"
            number = gr.Number(0, precision=0, label=label, elem_id="translate-number")

    def translate(name: str, file: str | None, number: float | None) -> list[Captioned]:
        if name not in models:
            raise UserError(f"model is {str(name)[:60]!r}, expected one of {', '.join(models)}")
        model = models[name]
        if file:
            x, what, label = _uploaded(Path(file), model), "your image", None
        else:
            x, what, label = _held_out(model, number)
        assert model.domain is not None
        made = _translations(run, model, x, label)
        return [(_drawn(model.domain, x), what), *made]

    follow(opened, translate, [name, file, number], [gallery])


def _translations(
    run: Shown, model: Model, x: np.ndarray, label: list[int] | None
) -> list[Captioned]:
    """A student's at one and two passes, and those of the flow that it was distilled from (or that
    the model itself is).
    """
    made, flow = [], model
    if model.card.kind == "student":
        made = [(passes, model.translate(x, passes, labels=label), "student") for passes in (1, 2)]
        flow = run.teacher(model)
    if flow is not None and flow.domain is not None:
        made.append((FLOW_PASSES, flow.translate(x, FLOW_PASSES, "heun", labels=label), "flow"))
    return [
        (_drawn(model.scaling, y), f"{kind}, {counted(passes, 'pass')}") for passes, y, kind in made
    ]


def _drawn(scaling: Scaling, x: np.ndarray) -> np.ndarray | str:
    """A sample in original units as a picture."""
    return shown(scaling.frames(scaling.encode(x)), 1, WIDTH)


def _uploaded(file: Path, model: Model) -> np.ndarray:
    """An uploaded image as a state of the model's domain, in original units."""
    assert model.domain is not None
    try:
        check_size(file, MAX_PIXELS)
        pixels = read_images(file)[1]
    except ValueError as error:  # by its own name, without the folders of this machine
        raise UserError(str(error).replace(str(file), file.name)) from None
    return resized(from_pixels(pixels, model.domain, model.shape[0], grey=True), model)


def _held_out(model: Model, number: Any) -> tuple[np.ndarray, str, list[int] | None]:
    """A held-out sample of the data that a model translates from, in original units, what to call
    it, and its label for a model that takes one.
    """
    data = load_data(str(model.card.domain_data))
    count = min(data.count("test") or MAX_HELD_OUT, MAX_HELD_OUT)
    if number is None or not 0 <= number < count:
        raise UserError(f"number is {number}, expected 0 to {count - 1}")
    row = data.real(count, 0, "test")[int(number) : int(number) + 1]
    given = data.conditions(count, 0, "test") if model.condition_size else None
    label = None if given is None else [int(given[int(number)].argmax())]
    return data.scaling.decode(row), f"held-out image {number:.0f}", label

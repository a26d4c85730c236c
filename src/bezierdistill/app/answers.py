"""What every tab needs: mistakes as messages, controls, figures and states as pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill.reporting.plots import scatter_figures, sheet


def answered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what is wrong with its arguments, or with the files they name, as a
    message on the page.
    """

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        try:
            return function(*args)
        except (ValueError, TypeError, OverflowError, OSError, MemoryError) as error:
            message = " ".join(str(error).split()) or "not enough memory: ask for fewer"
            raise gr.Error(message, print_exception=False) from None

    return wrapper


def follow(
    page: gr.Blocks, function: Callable[..., Any], given: Sequence[Any], shown: Sequence[Any]
) -> None:
    """Show what a function makes of controls, now and while one of them is moved."""
    events, told = [page.load, *(part.change for part in given)], answered(function)
    gr.on(events, told, given, shown, show_progress="minimal", trigger_mode="always_last")


def slider(
    name: str, label: str, low: float, high: float, value: float, step: float, **look: Any
) -> gr.Slider:
    """A slider; ``name`` is its element's on the page."""
    return gr.Slider(low, high, value, step=step, label=label, elem_id=name, **look)


def table(name: str, headings: Sequence[str], words: Sequence[str], **look: Any) -> gr.Dataframe:
    """A table of numbers, but for the columns of ``words``."""
    kinds: Any = ["str" if heading in words else "number" for heading in headings]
    fixed = {"interactive": False, "buttons": [], "elem_id": name} | look
    return gr.Dataframe(headers=list(headings), datatype=kinds, **fixed)


def image(what: str, name: str) -> gr.Image:
    """The component of a picture that cannot be changed by hand; ``what`` is read to those who
    cannot see it.
    """
    fixed: dict[str, Any] = {"show_label": False, "interactive": False, "buttons": []}
    return gr.Image(alt_text=what, label=what, elem_id=name, format="png", **fixed)


def drawn(figure: Figure, dpi: int = 110) -> np.ndarray:
    """A figure as pixels ``(H, W, 3)``."""
    figure.dpi = dpi
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shown(x: Tensor, columns: int, least: int = 64) -> np.ndarray:
    """States as pixels: images in a grid, magnified without blur, vectors as points on the axes in
    which they vary most.
    """
    if x.ndim != 4:
        return drawn(scatter_figures([x])[0], 150)
    pixels = sheet(x, columns, least)
    line = pixels.shape[1] // (columns * (x.shape[3] + 1))  # width of the white ones
    return (255 * pixels[:-line, :-line]).round().astype(np.uint8)

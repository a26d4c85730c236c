"""What every tab needs: mistakes as messages, figures and states as pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill.reporting.plots import scatter_figures, sheet

LIVE: dict[str, Any] = {
    "show_progress": "minimal",
    "trigger_mode": "always_last",
}  # of what follows a slider while it is moved


def answered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what is wrong with its arguments, or with the files they name, as a
    message on the page.
    """

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        try:
            return function(*args)
        except (ValueError, TypeError, OverflowError, OSError, MemoryError) as error:
            raise gr.Error(
                " ".join(str(error).split()) or "not enough memory: ask for fewer",
                print_exception=False,
            ) from None

    return wrapper


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
    line = pixels.shape[0] // (
        -(-len(x) // columns) * (x.shape[2] + 1)
    )  # the white one that ends a sheet as it parts its images
    return (255 * pixels[:-line, :-line]).round().astype(np.uint8)


def image(what: str, name: str) -> gr.Image:
    """The component of a picture that cannot be changed by hand; ``what`` is read to those who
    cannot see it.
    """
    return gr.Image(
        alt_text=what,
        label=what,
        show_label=False,
        elem_id=name,
        interactive=False,
        format="png",
        buttons=[],
    )

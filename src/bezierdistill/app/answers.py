"""What every tab needs: mistakes as messages, controls, figures and states as pictures."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill.reporting.films import write_film
from bezierdistill.reporting.plots import film, scatter_figures, sheet

# A message stays until something succeeds again, which closes it.
MENDED = "() => document.querySelectorAll('.toast-close').forEach(button => button.click())"
# A click on a column's head sorts the rows by it, another one the other way round.
SORTED = """
let by = -1, falling = false;
const key = row => {
  const text = row.cells[by].textContent;
  return isNaN(text) ? text : Number(text);
};
const sort = () => {
  const table = element.querySelector('table');
  if (!table || by < 0) return;
  const order = (a, b) => (key(a) < key(b) ? -1 : Number(key(a) > key(b))) * (falling ? -1 : 1);
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  [...table.tHead.rows[0].cells].forEach((cell, k) => {
    cell.ariaSort = k != by ? 'none' : falling ? 'descending' : 'ascending';
  });
};
element.addEventListener('click', event => {
  const head = event.target.closest('th');
  if (!head) return;
  falling = by == head.cellIndex && !falling;
  by = head.cellIndex;
  sort();
});
watch('value', sort);
"""


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
            raise gr.Error(message, duration=None, print_exception=False) from None

    return wrapper


def follow(
    opened: Any, function: Callable[..., Any], given: Sequence[Any], shown: Sequence[Any]
) -> None:
    """Show what a function makes of controls, when a page or tab is ``opened`` and while one of
    them is moved.
    """
    events, told = [opened, *(part.change for part in given)], answered(function)
    look: dict[str, Any] = {"show_progress": "minimal", "trigger_mode": "always_last"}
    gr.on(events, told, given, shown, **look).success(None, js=MENDED)


def slider(
    name: str, label: str, low: float, high: float, value: float, step: float, **look: Any
) -> gr.Slider:
    """A slider; ``name`` is its element's on the page."""
    return gr.Slider(low, high, value, step=step, label=label, elem_id=name, **look)


def table(name: str) -> gr.HTML:
    """The component of a table that is sorted by a click on a column's head."""
    return gr.HTML(elem_id=name, elem_classes="table", js_on_load=SORTED, apply_default_css=False)


def tabled(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """What such a table shows."""
    head = "".join(f"<th><button>{escape(heading)}</button></th>" for heading in headings)
    cells = ("".join(f"<td>{escape(str(value))}</td>" for value in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image(what: str, name: str) -> gr.Image:
    """The component of a picture that cannot be changed by hand; ``what`` is read to those who
    cannot see it.
    """
    fixed: dict[str, Any] = {"show_label": False, "interactive": False}
    fixed["buttons"] = ["download"]
    return gr.Image(alt_text=what, label=what, elem_id=name, format="png", **fixed)


def drawn(figure: Figure, dpi: int = 110) -> np.ndarray:
    """A figure as pixels ``(H, W, 3)``."""
    figure.dpi = dpi
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shown(x: Tensor, columns: int, least: int = 64) -> np.ndarray | str:
    """States as pixels: images in a grid, magnified without blur, vectors as points on the axes in
    which they vary most; clips ``(N, F, C, H, W)`` as the path of an animated picture.
    """
    if x.ndim == 5:
        write_film(file := io.BytesIO(), film(x, columns), "PNG")
        return save_bytes_to_cache(file.getvalue(), "clips.png", get_upload_folder())
    if x.ndim != 4:
        return drawn(scatter_figures([x])[0], 150)
    pixels = sheet(x, columns, least)
    line = pixels.shape[1] // (columns * (x.shape[3] + 1))  # width of the white ones
    return (255 * pixels[:-line, :-line]).round().astype(np.uint8)

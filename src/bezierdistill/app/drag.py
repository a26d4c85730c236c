"""A picture whose guides are dragged: handles over a drawing, by the mouse, a finger or the arrow
keys. What is shown while one is held is drawn in the browser, and the picture itself anew after.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import gradio as gr
import numpy as np
from PIL import Image

from bezierdistill.reporting.page import as_url

# Handles are circles in parts of the picture's size; the first and the last, the ends, stay.
DRAG = """
let held = null;
const handles = () => [...element.querySelectorAll('circle')];
const place = one => [Number(one.getAttribute('cx')), Number(one.getAttribute('cy'))];
const put = (one, x, y) => {
  one.setAttribute('cx', Math.min(1, Math.max(0, x)));
  one.setAttribute('cy', Math.min(1, Math.max(0, y)));
  const points = handles().map(place);
  const at = t => {  // de Casteljau
    let left = points;
    while (left.length > 1)
      left = left.slice(1).map((p, k) => p.map((v, i) => t * v + (1 - t) * left[k][i]));
    return left[0];
  };
  const [polygon, curve] = element.querySelectorAll('polyline');
  polygon.setAttribute('points', points.join(' '));
  curve.setAttribute('points', [...Array(49).keys()].map(k => at(k / 48)).join(' '));
};
const tell = () => {
  const {row, unit} = element.querySelector('svg').dataset;
  const shifts = handles().slice(1, -1).map(one => {
    const [x, y] = place(one);
    return [(x - one.dataset.x) / unit, (one.dataset.y - y) / unit];
  });
  trigger('input', {row: Number(row), shifts});
};
element.addEventListener('pointerdown', event => {
  if (!event.target.matches('circle[tabindex]')) return;
  held = event.target;
  held.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', event => {
  if (!held) return;
  const box = element.querySelector('svg').getBoundingClientRect();
  put(held, (event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height);
});
element.addEventListener('pointerup', () => { if (held) { held = null; tell(); } });
element.addEventListener('pointercancel', () => { held = null; });
element.addEventListener('keydown', event => {
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  if (!(event.key in way) || !event.target.matches('circle[tabindex]')) return;
  event.preventDefault();
  const [x, y] = place(event.target), [across, down] = way[event.key];
  put(event.target, x + across / 50, y + down / 50);
  tell();
});
"""
STYLE = """
.held {position: relative}
img, svg {display: block; width: 100%}
a {text-decoration: underline}
svg {position: absolute; inset: 0; height: 100%}
polyline {fill: none; stroke: #d55e00; stroke-width: 0.004}
circle {fill: transparent}
circle[tabindex] {cursor: grab; touch-action: none}
"""


def draggable(name: str) -> gr.HTML:
    """The component of such a picture."""
    return gr.HTML(elem_id=name, css_template=STYLE, js_on_load=DRAG, apply_default_css=False)


def held(
    pixels: np.ndarray,
    points: Sequence[Sequence[float]],
    shifts: Sequence[Sequence[float]],
    unit: float,
    row: int,
    what: str,
) -> str:
    """What it shows.

    Args:
        pixels: the drawing.
        points: where the curve's points lie in it, in parts of its size from the upper left.
        shifts: how far each of them was moved, in units of the drawing.
        unit: one of these in parts of its size.
        row: which curve it is.
        what: what is read to those who cannot see it.
    """
    Image.fromarray(pixels).save(png := io.BytesIO(), "png")
    url, circles = as_url(png.getvalue()), []
    for k, ((x, y), (across, up)) in enumerate(zip(points, shifts, strict=True)):
        guide = f'tabindex="0" aria-label="guide P{k}" data-guide="P{k}"'
        own = f'data-x="{x - across * unit:.5f}" data-y="{y + up * unit:.5f}"'
        moves = guide if 0 < k < len(points) - 1 else ""
        circles.append(f'<circle cx="{x:.5f}" cy="{y:.5f}" r="0.025" {own} {moves}></circle>')
    lines = "<polyline></polyline>" * 2
    return (
        f'<div class="held"><img src="{url}" alt="{what}">'
        f'<svg viewBox="0 0 1 1" data-row="{row}" data-unit="{unit:.6f}">'
        f"{lines}{''.join(circles)}</svg></div>"
        f'<a href="{url}" download="curves.png">Download the picture</a>'
    )

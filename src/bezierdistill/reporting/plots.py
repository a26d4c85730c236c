"""Pictures: data in, figure out. Colours are Okabe and Ito's, which colour-blind readers can tell
apart.

Every line has a marker or a dash of its own as well, for grey prints; figures are narrow with large
letters, for phones and paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.files import write_atomically
from bezierdistill.records import ERRORS, RoundRow
from bezierdistill.reporting.films import write_film
from bezierdistill.reporting.summary import Entry, sampler_label

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GREY = "#777777"
MARKERS, LINES = "osv^DPXh<>", ("-", "--", "-.", ":")
PLANE = ("first axis (model units)", "second axis (model units)")
AXES = ("first principal axis (model units)", "second principal axis (model units)")
EXCESS = "excess: {} (0 is real data)"
EVEN = 0.5  # up to which excess an axis of it is even; beyond it is logarithmic


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images ``(N, C, H, W)`` in [-1, 1] side by side in one array ``(rows H, columns W, 3)`` in
    [0, 1]; empty places are white.
    """
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    colour = ((images.float().cpu().clamp(-1, 1) + 1) / 2)[:, :3].expand(-1, 3, -1, -1)
    sheet = torch.ones(rows * columns, 3, height + 1, width + 1)
    sheet[:n, :, :height, :width] = colour
    tiles = sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    return tiles.flatten(2, 3).flatten(0, 1).numpy()


def sheet(images: Tensor, columns: int, least: int = 64) -> np.ndarray:
    """:func:`image_grid` with whole pixels repeated, so that every image is at least ``least``
    pixels wide.
    """
    times = math.ceil(least / images.shape[-1])
    return image_grid(images, columns).repeat(times, 0).repeat(times, 1)


def film(clips: Tensor, columns: int) -> np.ndarray:
    """Clips ``(N, F, C, H, W)`` side by side, :func:`sheet` by sheet, as bytes ``(F, rows H,
    columns W, 3)``.
    """
    frames = np.stack([sheet(frame, columns) for frame in clips.unbind(1)])
    return (255 * frames).round().astype(np.uint8)


def principal_axes(x: Tensor) -> Tensor:
    """The two directions ``(D, 2)`` in which samples ``(N, ...)`` vary most; in one or two
    dimensions the axes themselves.
    """
    flat = x.flatten(1).float()
    if flat.shape[1] <= 2:
        return torch.eye(flat.shape[1], 2)
    return torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:2].T


def scatter_figures(panels: Sequence[Tensor], shown: int = 2000) -> list[Figure]:
    """Samples ``(N, ...)`` of several methods as points, a figure each: all on the principal axes
    and in the limits of the first.
    """
    basis, figures = principal_axes(panels[0]), []
    points = [(x[:shown].flatten(1).float() @ basis).cpu() for x in panels]
    low, high = (torch.quantile(points[0], q, dim=0) for q in (0.002, 0.998))
    margin = 0.15 * (high - low).clamp(min=0.5)
    names = PLANE if panels[0][0].numel() <= 2 else AXES
    for own in points:
        figure, axes = _chart(2.6, 2.6)
        axes.scatter(*own.T, s=2.5, alpha=0.5, color=COLOURS[0], linewidths=0, rasterized=True)
        limits = torch.stack([low - margin, high + margin])
        axes.set(xlim=limits[:, 0].tolist(), ylim=limits[:, -1].tolist())
        _label(axes, *names, size=7.5)
        figures.append(figure)
    return figures


def texts_figure(texts: Sequence[str], numbers: int = 80) -> Figure:
    """Texts in a block of columns, about so many characters wide."""
    longest = max(map(len, texts))
    columns = max(1, numbers // (longest + 2))
    rows = [texts[k : k + columns] for k in range(0, len(texts), columns)]
    block = "\n".join("  ".join(plain(text).ljust(longest) for text in row) for row in rows)
    figure = Figure(figsize=(0.066 * columns * (longest + 2) + 0.2, 0.17 * len(rows) + 0.2))
    figure.text(0.1 / figure.get_figwidth(), 0.5, block, family="monospace", size=8, va="center")
    return figure


def curves_figure(curve: BezierCurve, shown: int = 8) -> Figure:
    """Curves with their control polygons on the two principal axes of all their control points."""
    points = curve.points.flatten(2).float()
    flat = BezierCurve(points[:, :shown] @ principal_axes(points.flatten(0, 1)))
    path = torch.stack([flat.point(t) for t in torch.linspace(0, 1, 64).tolist()])
    figure, axes = _chart(5.6, 4.6)
    for b in range(flat.points.shape[1]):
        colour, own = COLOURS[b % len(COLOURS)], flat.points[:, b]
        names = ["curve", "control polygon", "guides"]
        if b or curve.degree == 1:
            names = ["" if b else "curve", "", ""]
        axes.plot(*path[:, b].T, color=colour, lw=1.8, label=names[0])
        axes.plot(*own.T, ":", color=colour, lw=0.9, label=names[1])
        axes.plot(*own[1:-1].T, "D", color=colour, ms=4, mfc="white", label=names[2])
    axes.plot(*flat.points[0].T, "o", color="black", ms=5, ls="", label="source, t = 0")
    axes.plot(*flat.points[-1].T, "*", color="black", ms=10, ls="", label="data end, t = 1")
    guided = f"Bezier curves of degree {curve.degree} and their guides"
    _label(axes, *AXES, guided if curve.degree > 1 else "Curves of degree 1: straight lines")
    axes.legend(fontsize=8)
    return figure


def rounds_figure(rounds: Sequence[RoundRow]) -> Figure:
    """Reflow round by round: excess of the Frechet distances, of the flows, their students, and
    ours beside them.
    """
    figure, axes = _chart(5.2, 4.6)
    for k, first in enumerate(rounds[0].samplers):
        look: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)]}
        if first.who == "ours":
            look = {"marker": "*" if first.passes == 1 else "P", "lw": 2.5, "ls": "--", "ms": 9}
        excess = [row.samplers[k].scores.frechet.excess for row in rounds]
        axes.plot([row.round for row in rounds], excess, label=sampler_label(first), **look)
    _excess(axes)
    _finish_rounds(figure, rounds, EXCESS.format("Frechet distance"), "Samples round by round")
    return figure


def errors_figure(rounds: Sequence[RoundRow]) -> Figure:
    """Reflow round by round: straightness, drift and errors of reconstruction."""
    figure, axes = _chart(5.2, 4.6)
    for k, name in enumerate(ERRORS):
        # Drift is exactly 0 in round 1, which a log axis cannot show.
        values = [getattr(row, name) or math.nan for row in rounds]
        style, label = MARKERS[k] + LINES[k], name.replace("_", ": ")
        axes.plot([row.round for row in rounds], values, style, label=label)
    up = "squared error per component (model units²)"
    _log(axes)
    _finish_rounds(figure, rounds, up, "Paths and reconstruction")
    return figure


def _finish_rounds(figure: Figure, rounds: Sequence[RoundRow], up: str, title: str) -> None:
    (axes,) = figure.axes
    _label(axes, "round of reflow", up, f"{title} (lower is better)")
    axes.set_xticks([row.round for row in rounds])
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)


def arena_figure(
    entries: Sequence[Entry],
    axis: Literal["passes", "seconds"],
    distance: str = "Frechet distance",
) -> Figure:
    """The excess of a distance, with its standard error, against passes per sample or seconds of
    training.

    Args:
        entries: means over seeds.
        axis: what stands below.
        distance: what the excess of the entries is of.
    """
    names = {entry.method: entry.label for entry in entries}
    figure, axes = _chart(5.6, 4.2 + 0.19 * math.ceil(len(names) / 2))
    title = "Quality against passes at sampling" if axis == "passes" else "Quality against cost"
    up = EXCESS.format(distance)
    draw_methods(axes, entries, axis, names, up, f"{title} (lower is better)")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def draw_methods(
    axes: Axes,
    entries: Sequence[Entry],
    axis: Literal["passes", "seconds"],
    names: Mapping[str, str],
    up: str,
    title: str = "",
    size: float = 9,
) -> None:
    """Draw excesses, a line per method; ``names`` are those of all methods, by whose order a method
    has its colour and marker, ``size`` is that of the letters.
    """
    for k, (method, name) in enumerate(names.items()):
        line = [entry for entry in entries if entry.method == method]
        if not line:
            continue
        look: dict[str, Any] = {"marker": MARKERS[(k // 8 + k) % 10], "ms": 0.67 * size}
        if line[0].ours:
            look = {"marker": "*", "ms": 1.5 * size, "zorder": 3}
        look["lw"] = 2.5 if line[0].ours else 0.9
        look |= {"color": COLOURS[k % len(COLOURS)], "ls": "-" if axis == "passes" else ""}
        x, y = [getattr(entry, axis) for entry in line], [entry.excess for entry in line]
        axes.errorbar(x, y, [entry.error for entry in line], label=plain(name), **look)
    _excess(axes)
    across = "seconds of training, everything included"
    if axis == "passes":
        across, ticks = "network passes per sample", sorted({entry.passes for entry in entries})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    _label(axes, across, up, title, size)


def loss_figure(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The losses of a stage of training, of several networks: lists of (step, loss)."""
    figure, axes = _chart(4.2, 2.9 + 0.19 * (len(lines) if len(lines) > 1 else 0))
    for k, (name, line) in enumerate(lines.items()):
        style = ("." if len(line) < 9 else "") + LINES[k % len(LINES)]
        axes.plot(*zip(*line, strict=True), style, label=plain(name), lw=1.2)
    _label(axes, "optimizer step", "loss (mean since the last point)", title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if all(loss > 0 for line in lines.values() for _, loss in line):
        _log(axes)
    if len(lines) > 1:
        figure.legend(fontsize=8, loc="outside lower center")
    return figure


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, grid_of(figure, 1, 1)[0]


def grid_of(figure: Figure, down: int, across: int) -> list[Axes]:
    """Empty charts in rows."""
    found = [*figure.subplots(down, across, squeeze=False).flat]
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
        axes.set_prop_cycle(color=COLOURS)
    return found


def _label(axes: Axes, across: str, up: str, title: str = "", size: float = 9) -> None:
    axes.set_xlabel(across, fontsize=size)
    axes.set_ylabel(up, fontsize=size)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.tick_params(labelsize=size - 0.5)


def plain(text: str) -> str:
    """A text that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def _log(axes: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers, more of them in a decade where there are
    few decades; linear for a narrow range.
    """
    low, high = axes.dataLim.intervaly
    if not high > 1.5 * low > 0:
        return
    subs = (1,) if high > 300 * low else (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _excess(axes: Axes) -> None:
    """An axis of excess: even near 0, which is real data, and logarithmic far from it, by asinh."""
    axes.axhline(0.0, color=GREY, ls="--", lw=1)
    low, high = min(0.0, axes.dataLim.y0), max(0.0, axes.dataLim.y1)
    axes.set_yscale("asinh", linear_width=EVEN)
    sizes = [n * 10.0**k for k in range(-2, 7) for n in (1, 2, 5)]
    ends = math.asinh(low / EVEN), math.asinh(high / EVEN)
    space = (ends[1] - ends[0]) / 9
    axes.set_ylim(*(EVEN * math.sinh(end) for end in (ends[0] - space / 2, ends[1] + space / 2)))
    ticks = [0.0]
    for size in sizes:
        if math.asinh(size / EVEN) - math.asinh(ticks[-1] / EVEN) >= space:
            ticks.append(size)
    both = [tick for tick in (*(-tick for tick in ticks[:0:-1]), *ticks) if low <= tick <= high]
    axes.set_yticks(both, [f"{tick:g}" for tick in both])
    axes.yaxis.set_minor_locator(NullLocator())


def save_grid(path: Path, x: Tensor) -> None:
    """Write samples in model units as a PNG: an image grid, or a scatter of vectors; clips
    ``(N, F, C, H, W)`` as an animated one, or as a GIF.
    """
    if x.ndim == 5:
        pixels, kind = film(x, math.ceil(math.sqrt(len(x)))), path.suffix[1:].upper() or "PNG"
        write_atomically(path, lambda file: write_film(file, pixels, kind))
        return
    if x.ndim == 4:
        pixels = sheet(x, math.ceil(math.sqrt(len(x))))
        write_atomically(path, lambda file: imsave(file, pixels, format="png"))
        return
    (figure,) = scatter_figures([x])
    figure.axes[0].set_title(f"{len(x)} samples", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def save_rows(path: Path, rows: Mapping[str, Tensor], shown: int = 12) -> None:
    """Write images ``(N, C, H, W)`` in rows as a PNG, a row per method: a column is one input and
    what becomes of it.
    """
    columns = min(shown, max(len(x) for x in rows.values()))
    width = 0.3 + 0.075 * max(map(len, rows)) + 0.55 * columns
    figure = Figure(figsize=(width, 0.6 * len(rows) + 0.1), layout="constrained")
    below = figure.subplots(len(rows), 1, squeeze=False).flatten()
    for axes, (title, x) in zip(below, rows.items(), strict=True):
        axes.imshow(image_grid(x[:columns], columns), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    )

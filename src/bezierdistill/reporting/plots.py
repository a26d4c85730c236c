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
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from bezierdistill.arena.summary import Entry
from bezierdistill.curves import BezierCurve
from bezierdistill.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GREY = "#777777"
MARKERS, LINES = "osv^DPXh<>", ("-", "--", "-.", ":")
AXES = ("first principal axis (model units)", "second principal axis (model units)")
RATIO = "{} / floor (1 is real data)"


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images ``(N, C, H, W)`` in [-1, 1] side by side in one array ``(rows H, columns W, 3)`` in
    [0, 1]; empty places are white.
    """
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    colour = ((images.float().cpu().clamp(-1, 1) + 1) / 2)[:, :3].expand(-1, 3, -1, -1)
    sheet = torch.ones(rows * columns, 3, height + 1, width + 1)
    sheet[:n, :, :height, :width] = colour
    return (
        sheet.unflatten(0, (rows, columns))
        .permute(0, 3, 1, 4, 2)
        .flatten(2, 3)
        .flatten(0, 1)
        .numpy()
    )


def sheet(images: Tensor, columns: int, least: int = 64) -> np.ndarray:
    """:func:`image_grid` with whole pixels repeated, so that every image is at least ``least``
    pixels wide.
    """
    times = math.ceil(least / images.shape[-1])
    return image_grid(images, columns).repeat(times, 0).repeat(times, 1)


def principal_axes(x: Tensor) -> Tensor:
    """The two directions ``(D, 2)`` in which samples ``(N, ...)`` vary most (the axes themselves in
    one or two dimensions).
    """
    flat = x.flatten(1).float()
    if flat.shape[1] <= 2:
        return torch.eye(flat.shape[1], 2)
    return torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:2].T


def scatter_figures(panels: Mapping[str, Tensor], most: int = 2000) -> dict[str, Figure]:
    """Samples ``(N, ...)`` of several methods as points, a figure each: all on the principal axes
    and in the limits of the first.
    """
    first = next(iter(panels.values()))
    basis = principal_axes(first)
    points = {name: (x[:most].flatten(1).float() @ basis).cpu() for name, x in panels.items()}
    low, high = (torch.quantile(points[next(iter(panels))], q, dim=0) for q in (0.002, 0.998))
    margin = 0.15 * (high - low).clamp(min=0.5)
    figures = {}
    for name, own in points.items():
        figures[name], axes = _chart(2.6, 2.6)
        axes.scatter(
            own[:, 0], own[:, 1], s=2.5, alpha=0.5, color=COLOURS[0], linewidths=0, rasterized=True
        )
        axes.set(xlim=(low - margin)[0::2].tolist() + (high + margin)[0::2].tolist())
        axes.set(ylim=(low - margin)[1::2].tolist() + (high + margin)[1::2].tolist())
        _label(
            axes,
            *(
                ("first axis (model units)", "second axis (model units)")
                if first[0].numel() <= 2
                else AXES
            ),
            size=7.5,
        )
    return figures


def curves_figure(curve: BezierCurve, shown: int = 8) -> Figure:
    """Curves with their control polygons on the two principal axes of all their control points."""
    points = curve.points.flatten(2).float()
    flat = BezierCurve(points[:, :shown] @ principal_axes(points.flatten(0, 1)))
    path = torch.stack([flat.point(t) for t in torch.linspace(0, 1, 64).tolist()])
    figure, axes = _chart(5.6, 4.6)
    for b in range(flat.points.shape[1]):
        colour, own, inner = COLOURS[b % len(COLOURS)], flat.points[:, b], flat.points[1:-1, b]
        axes.plot(path[:, b, 0], path[:, b, 1], color=colour, lw=1.8, label="" if b else "curve")
        axes.plot(
            own[:, 0],
            own[:, 1],
            ":",
            color=colour,
            lw=0.9,
            label="" if b or curve.degree == 1 else "control polygon",
        )
        axes.plot(
            inner[:, 0],
            inner[:, 1],
            "D",
            color=colour,
            ms=4,
            mfc="white",
            label="" if b or curve.degree == 1 else "guides",
        )
    axes.plot(
        flat.points[0, :, 0], flat.points[0, :, 1], "o", color="black", ms=5, label="source, t = 0"
    )
    axes.plot(
        flat.points[-1, :, 0],
        flat.points[-1, :, 1],
        "*",
        color="black",
        ms=10,
        label="data end, t = 1",
    )
    lines = (
        f"Bezier curves of degree {curve.degree} and their guides"
        if curve.degree > 1
        else "Curves of degree 1: straight lines"
    )
    _label(axes, *AXES, lines)
    axes.legend(fontsize=8)
    return figure


def law_figure(rounds: Sequence[Mapping[str, Any]]) -> Figure:
    """Reflow round by round: Frechet distances over their floor, of the flows, their students, and
    ours beside them.
    """
    figure, axes = _chart(5.2, 4.6)
    numbers = [entry["round"] for entry in rounds]
    for k, name in enumerate([*rounds[0]["samplers"], *rounds[0].get("ours", {})]):
        own = [
            {**entry["samplers"], **entry.get("ours", {})}[name]["frechet_ratio"]
            for entry in rounds
        ]
        ours = name.startswith("ours")
        look: dict[str, Any] = {"lw": 2.5, "ls": "--", "ms": 9} if ours else {}
        look["marker"] = "*P"[name.endswith("es")] if ours else MARKERS[k % len(MARKERS)]
        axes.plot(numbers, own, color=COLOURS[k % len(COLOURS)], label=name, **look)
    axes.axhline(1.0, color=GREY, ls="--", lw=1)
    _label(
        axes,
        "round of reflow",
        RATIO.format("Frechet distance"),
        "Samples round by round (lower is better)",
    )
    _log(axes)
    axes.set_xticks(numbers)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def errors_figure(rounds: Sequence[Mapping[str, Any]]) -> Figure:
    """Reflow round by round: straightness, drift and errors of reconstruction."""
    figure, axes = _chart(5.2, 4.6)
    numbers = [entry["round"] for entry in rounds]
    for k, name in enumerate(
        ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
    ):
        values = [
            entry[name] or math.nan for entry in rounds
        ]  # drift is exactly 0 in round 1, which a log axis cannot show
        axes.plot(
            numbers,
            values,
            color=COLOURS[k],
            marker=MARKERS[k],
            ls=LINES[k],
            label=name.replace("_", ": "),
        )
    _label(
        axes,
        "round of reflow",
        "squared error a component (model units²)",
        "Paths and reconstruction (lower is better)",
    )
    _log(axes)
    axes.set_xticks(numbers)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def arena_figure(
    entries: Sequence[Entry],
    axis: Literal["passes", "seconds"],
    only: int | None = None,
    distance: str = "Frechet distance",
) -> Figure:
    """A distance over its floor, with its standard error, against passes a sample or seconds of
    training.

    Args:
        entries: means over seeds.
        axis: what stands below.
        only: draw the entries of so many passes alone; colours and markers are those of all.
        distance: what the excess of the entries is of.
    """
    ratio = RATIO.format(distance)
    methods = list(dict.fromkeys(entry.method for entry in entries))
    drawn = [entry for entry in entries if only in (None, entry.passes)]
    figure, axes = _chart(5.6, 4.2 + 0.19 * math.ceil(len({entry.method for entry in drawn}) / 3))
    for k, method in enumerate(methods):
        line = [entry for entry in drawn if entry.method == method]
        if not line:
            continue
        ours = line[0].ours
        look = (
            {"marker": "*", "ms": 14, "lw": 2.5, "zorder": 3}
            if ours
            else {"marker": MARKERS[(k // 8 + k) % 10], "ms": 6, "lw": 0.9}
        )
        look |= {} if axis == "passes" else {"ls": ""}
        x, y = [getattr(entry, axis) for entry in line], [1 + entry.excess for entry in line]
        errors, label = (
            [entry.error for entry in line],
            plain(f"{method} (ours)" if ours else method),
        )
        axes.errorbar(x, y, errors, color=COLOURS[k % len(COLOURS)], label=label, **look)
    axes.axhline(1.0, color=GREY, ls="--", lw=1)
    _log(axes)
    if axis == "passes":
        ticks = sorted({entry.passes for entry in drawn})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        _label(
            axes,
            "network passes a sample",
            ratio,
            "Quality against passes at sampling (lower is better)",
        )
    else:
        at = "" if only is None else f" at {only} pass{'es' if only > 1 else ''} a sample"
        _label(
            axes,
            "seconds of training, everything included",
            ratio,
            f"Quality against cost{at} (lower is better)",
        )
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


def loss_figure(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The losses of a stage of training, a line a network: lists of (step, loss)."""
    figure, axes = _chart(4.2, 2.9)
    for k, (name, line) in enumerate(lines.items()):
        axes.plot(
            *zip(*line, strict=True),
            color=COLOURS[k % len(COLOURS)],
            ls=LINES[k % len(LINES)],
            label=plain(name),
            lw=1.2,
            marker="." if len(line) < 9 else "",
        )
    _label(axes, "optimizer step", "loss (mean since the last point)", title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if all(loss > 0 for line in lines.values() for _, loss in line):
        _log(axes)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    return figure


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


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


def save_grid(path: Path, x: Tensor) -> None:
    """Write samples in model units as a PNG: an image grid, or a scatter of vectors."""
    if x.ndim == 4:
        import matplotlib.image

        array = sheet(x, math.ceil(math.sqrt(len(x))))
        write_atomically(path, lambda file: matplotlib.image.imsave(file, array, format="png"))
        return
    figure = scatter_figures({"samples": x})["samples"]
    figure.axes[0].set_title(f"{len(x)} samples", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def save_rows(path: Path, rows: Mapping[str, Tensor], shown: int = 12) -> None:
    """Write images ``(N, C, H, W)`` in rows as a PNG, a row a method: a column is one input and
    what becomes of it.
    """
    columns = min(shown, *(len(x) for x in rows.values()))
    figure = Figure(
        figsize=(0.3 + 0.075 * max(map(len, rows)) + 0.55 * columns, 0.6 * len(rows) + 0.1),
        layout="constrained",
    )
    for axes, (title, x) in zip(
        figure.subplots(len(rows), 1, squeeze=False).flatten(), rows.items(), strict=True
    ):
        axes.imshow(image_grid(x[:columns], columns), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))

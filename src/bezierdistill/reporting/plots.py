"""Pictures: data in, figure out. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bezierdistill.arena.summary import Entry
from bezierdistill.curves import BezierCurve
from bezierdistill.files import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GREY = "#777777"


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images ``(N, C, H, W)`` in [-1, 1] side by side in one array ``(rows H, columns W, 3)`` in [0, 1]; empty places are white."""
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    colour = ((images.float().cpu().clamp(-1, 1) + 1) / 2)[:, :3].expand(-1, 3, -1, -1)
    sheet = torch.ones(rows * columns, 3, height + 1, width + 1)
    sheet[:n, :, :height, :width] = colour
    return sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()


def draw_samples(axes: Axes, x: Tensor, title: str, basis: Tensor | None = None, most: int = 36) -> None:
    """Draw samples in model units: images as a grid, vectors as points on two axes (``basis`` ``(D, 2)``; 2-D states as they are)."""
    axes.set_title(title, fontsize=9)
    if x.ndim == 4:
        shown = x[:most]
        axes.imshow(image_grid(shown, math.ceil(math.sqrt(len(shown)))), interpolation="nearest")
        axes.set_axis_off()
        return
    flat = x[:2000].flatten(1).float()
    points = flat @ basis if basis is not None else flat[:, :2]
    axes.scatter(points[:, 0], points[:, 1], s=1.5, alpha=0.5, color=COLOURS[0], linewidths=0, rasterized=True)
    axes.tick_params(labelsize=7)


def principal_axes(x: Tensor) -> Tensor:
    """The two directions ``(D, 2)`` in which samples ``(N, ...)`` vary most (the axes themselves in one or two dimensions)."""
    flat = x.flatten(1).float()
    if flat.shape[1] <= 2:
        return torch.eye(flat.shape[1], 2)
    return torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:2].T


def samples_figure(panels: Mapping[str, Tensor]) -> Figure:
    """Samples of several methods side by side; vectors all on the principal axes of the first panel."""
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    first = next(iter(panels.values()))
    basis = None if first.ndim == 4 else principal_axes(first)
    for axes, (title, x) in zip(grid, panels.items(), strict=False):
        draw_samples(axes, x, title, basis)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def curves_figure(curve: BezierCurve, shown: int = 8) -> Figure:
    """Curves with their control polygons on the two principal axes of all their control points."""
    points = curve.points.flatten(2).float()
    basis = principal_axes(points.flatten(0, 1))
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    flat = BezierCurve(points[:, :shown] @ basis)
    path = torch.stack([flat.point(t) for t in torch.linspace(0, 1, 64).tolist()])
    for b in range(flat.points.shape[1]):
        colour = COLOURS[b % len(COLOURS)]
        axes.plot(path[:, b, 0], path[:, b, 1], color=colour, lw=1.8, label="curve" if b == 0 else None)
        axes.plot(flat.points[:, b, 0], flat.points[:, b, 1], ":", color=colour, lw=0.8)
        axes.plot(
            flat.points[1:-1, b, 0], flat.points[1:-1, b, 1], "D", color=colour, ms=4, mfc="white", label="guides" if b == 0 else None
        )
    axes.plot(flat.points[0, :, 0], flat.points[0, :, 1], "o", color="black", ms=5, label="source, t=0")
    axes.plot(flat.points[-1, :, 0], flat.points[-1, :, 1], "*", color="black", ms=10, label="data end, t=1")
    axes.set(xlabel="first principal axis (model units)", ylabel="second principal axis (model units)")
    axes.set_title(f"Bezier curves of degree {curve.degree} and their guides")
    axes.legend(fontsize=8)
    return figure


def rounds_figure(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Reflow round by round: laws over their floor (ours beside), and straightness, drift and reconstruction errors."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    law, error = figure.subplots(1, 2)
    rounds = [entry["round"] for entry in entries]
    names = [*entries[0]["samplers"], *entries[0].get("ours", {})]
    for k, name in enumerate(names):
        own = [{**entry["samplers"], **entry.get("ours", {})}[name]["frechet_ratio"] for entry in entries]
        look = {"lw": 2.5, "ls": "--", "marker": "*", "ms": 10} if name.startswith("ours") else {"marker": "osv^"[k % 4]}
        law.plot(rounds, own, color=COLOURS[k % len(COLOURS)], label=name, **look)
    for k, name in enumerate(("straightness", "drift", "reconstruction_real", "reconstruction_generated")):
        values = [entry[name] or math.nan for entry in entries]  # drift is exactly 0 in round 1, which a log axis cannot show
        error.plot(rounds, values, color=COLOURS[k], marker="osv^"[k], label=name.replace("_", ": "))
    law.axhline(1.0, color=GREY, ls="--", lw=1)
    law.set(yscale="log", ylabel="Frechet distance / floor", title="Law")
    error.set(yscale="log", ylabel="squared error a component (model units)", title="Paths and reconstruction")
    for axes in (law, error):
        axes.set_xlabel("round of reflow")
        axes.set_xticks(rounds)
        axes.legend(fontsize=7)
    return figure


def arena_figure(entries: Sequence[Entry], axis: Literal["passes", "seconds"]) -> Figure:
    """Mean excess with its standard error against passes a sample, or against seconds of training (a panel each for the fewest passes)."""
    methods = list(dict.fromkeys(entry.method for entry in entries))
    look = {method: (COLOURS[k % len(COLOURS)], "osv^DPXh<>"[(k // len(COLOURS) + k) % 10]) for k, method in enumerate(methods)}
    least = sorted({entry.passes for entry in entries})[:3]
    panels = [entries] if axis == "passes" else [[entry for entry in entries if entry.passes == k] for k in least]
    figure = Figure(
        figsize=(9, 5.5) if axis == "passes" else (4.2 * min(3, len(panels)) + 2.5, 4.2 * math.ceil(len(panels) / 3)), layout="constrained"
    )
    grid = figure.subplots(math.ceil(len(panels) / 3), min(3, len(panels)), squeeze=False, sharey=True).flatten()
    for axes, own in zip(grid, panels, strict=False):
        for method in dict.fromkeys(entry.method for entry in own):
            line = [entry for entry in own if entry.method == method]
            colour, marker = look[method]
            axes.errorbar(
                [getattr(entry, axis) for entry in line],
                [1 + entry.excess for entry in line],
                [entry.error for entry in line],
                color=colour,
                marker="*" if line[0].ours else marker,
                ms=13 if line[0].ours else 5,
                lw=2.5 if line[0].ours else 0.8,
                zorder=3 if line[0].ours else 2,
                label=method,
            )
        axes.axhline(1.0, color=GREY, ls="--", lw=1)
        axes.set_yscale("log")
        if axis == "passes":
            axes.set_xscale("log")
            ticks = sorted({entry.passes for entry in own})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set(xlabel="network passes a sample", title="Quality against passes at sampling (lower is better)")
        else:
            axes.set(xlabel="seconds of training", title=f"{own[0].passes} pass{'es' if own[0].passes > 1 else ''} a sample")
        axes.minorticks_off()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    grid[0].set_ylabel("Frechet distance / floor")
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside right upper")
    return figure


def losses_figure(logs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Loss curves: a panel a stage, a line a network; ``logs[stage][network]`` is a list of (step, loss)."""
    columns = min(3, len(logs))
    rows = math.ceil(len(logs) / columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (stage, lines) in zip(grid, logs.items(), strict=False):
        for k, (name, line) in enumerate(lines.items()):
            axes.plot([step for step, _ in line], [loss for _, loss in line], color=COLOURS[k % len(COLOURS)], label=name, lw=1)
        axes.set_title(stage, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel("loss", fontsize=8)
        axes.tick_params(labelsize=7)
        if all(loss > 0 for line in lines.values() for _, loss in line):
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend(fontsize=7)
    for axes in grid[len(logs) :]:
        axes.set_visible(False)
    return figure


def save_grid(path: Path, x: Tensor) -> None:
    """Write samples in model units as a PNG: an image grid, or a scatter of vectors."""
    if x.ndim == 4:
        import matplotlib.image

        sheet = image_grid(x, math.ceil(math.sqrt(len(x)))).repeat(max(1, 64 // x.shape[-1]), 0).repeat(max(1, 64 // x.shape[-1]), 1)
        write_atomically(path, lambda file: matplotlib.image.imsave(file, sheet, format="png"))
        return
    figure = samples_figure({"samples": x})
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def rows_figure(rows: Mapping[str, Tensor], shown: int = 12) -> Figure:
    """Images ``(N, C, H, W)`` in rows, one a method, so that a column is one input and what becomes of it."""
    columns = min(shown, *(len(x) for x in rows.values()))
    figure = Figure(figsize=(0.3 + 0.075 * max(map(len, rows)) + 0.55 * columns, 0.6 * len(rows) + 0.1), layout="constrained")
    for axes, (title, x) in zip(figure.subplots(len(rows), 1, squeeze=False).flatten(), rows.items(), strict=True):
        axes.imshow(image_grid(x[:columns], columns), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def save_rows(path: Path, rows: Mapping[str, Tensor], shown: int = 12) -> None:
    """Write :func:`rows_figure` as a PNG."""
    figure = rows_figure(rows, shown)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))

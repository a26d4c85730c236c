"""The drawings of the concepts page, made by the library itself.

    python docs/drawings.py [--out docs/pictures] [--only flow,curves]
    python docs/drawings.py --run runs/demo    # docs/demo.png, of the samples that a demo has kept
    python docs/drawings.py --front            # docs/front.png, of pictures of the results

In two dimensions the distribution is a mixture of Gaussians on two half circles, whose rectified
flow is known exactly: a teacher without an error. The images are the 8x8 digits, with two small
teachers and a student. Everything is seeded and takes less than a minute on one thread.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import bezierdistill as bd
from bezierdistill.data import read_array
from bezierdistill.fields import Field
from bezierdistill.flow_map import sample
from bezierdistill.knots import GRID, cheapest_knots, interval_errors
from bezierdistill.metrics import (
    curve_fit_error,
    frechet_distance,
    sliced_wasserstein,
    straightness,
)
from bezierdistill.noise import Stream, noise
from bezierdistill.objectives import (
    Aligned,
    Alignment,
    CurveRegression,
    Curves,
    Instants,
    Loss,
    MapIntervals,
)
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.reporting.plots import COLOURS, GREY, image_grid
from bezierdistill.reporting.summary import gather, summarise
from bezierdistill.settings import parse_weights
from bezierdistill.words import counted

BLUE, RED, GREEN = COLOURS[:3]
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
BOX = (-2.8, 2.8)
JUDGED, PARTS = 2000, 4
HELD_OUT = 1
STEPS = 1000
WRONG = 0.35


# The distribution in two dimensions, its exact flow, and networks that are trained on its curves.


@cache
def moons(width: float = 0.12) -> bd.GaussianMixture:
    """Two half circles of twelve Gaussians each, centred; another width than theirs makes a
    teacher that is wrong.
    """
    angle = torch.linspace(0, math.pi, 12)
    upper = torch.stack([1.5 * angle.cos() - 0.75, 1.5 * angle.sin() - 0.4], 1)
    means = torch.cat([upper, -upper])
    return bd.GaussianMixture(
        means, torch.full_like(means, width), torch.ones(len(means)) / len(means)
    )


def real(count: int, seed: int) -> Tensor:
    """Fresh draws from the distribution."""
    return moons().sample(count, torch.Generator().manual_seed(seed))


@cache
def held_out(count: int) -> Tensor:
    """What samples are compared with."""
    return real(count, HELD_OUT)


def distance(x: Tensor, count: int = JUDGED) -> float:
    """Mean sliced Wasserstein distance of parts of a size to as many held-out real samples."""
    return float(
        np.mean(
            [sliced_wasserstein(part, held_out(count), projections=64) for part in x.split(count)]
        )
    )


@cache
def floor(count: int = JUDGED) -> float:
    """That distance of real samples."""
    return distance(real(8 * count, HELD_OUT + 1), count)


def excess(x: Tensor, count: int = JUDGED) -> float:
    """The distance over its floor, less one."""
    return distance(x, count) / floor(count) - 1


@cache
def judged() -> Tensor:
    """The noise that all samples here start from."""
    return noise(3, Stream.JUDGE, range(PARTS * JUDGED), (2,))


@cache
def stored(field: Field, degree: int) -> bd.BezierCurve:
    """Curves of a flow, as simulation makes them."""
    times = bd.time_grid(16)
    fit = bd.CurveFit(degree, times)
    bd.solve(field, noise(0, Stream.SIMULATE, range(10_000), (2,)), times, observe=fit)
    return fit.curve()


def take(curve: bd.BezierCurve, rows: Tensor) -> bd.BezierCurve:
    """Some curves of a batch."""
    return bd.BezierCurve(curve.points[:, rows])


def fitted(
    net: nn.Module, loss: Callable[[torch.Generator], Tensor], steps: int, lr: float = 6e-3
) -> nn.Module:
    """Train a network by AdamW with a rate that falls to zero."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(generator).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def network() -> nn.Module:
    """A small network for states of two numbers."""
    return bd.NetworkConfig(width=64, depth=3).build((2,), seed=0)


def regressed(curve: bd.BezierCurve, objective: CurveRegression, steps: int) -> nn.Module:
    """A network trained along curves."""
    net = network()

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(curve.points.shape[1], (256,), generator=generator)
        return objective.loss(net, Curves(take(curve, rows)), generator)

    return fitted(net, loss, steps)


@cache
def student(width: float = 0.12) -> nn.Module:
    """A flow map trained along curves of degree 4; of the exact flow, or of a teacher whose moons
    have another width.
    """
    return regressed(
        stored(moons(width), 4), CurveRegression(MapIntervals(), Loss(0.03), power=1.0), STEPS
    )


@cache
def errors() -> Tensor:
    """Squared errors of the student's jumps on curves."""
    return interval_errors(student(), take(stored(moons(), 4), torch.arange(512)), GRID)


@cache
def knots(passes: int) -> tuple[float, ...]:
    """The student's knots, by dynamic programming."""
    return cheapest_knots(errors(), GRID, passes)


@cache
def aligned() -> nn.Module:
    """The student of the wrong teacher after alignment at one and two passes."""
    net, curve = network(), stored(moons(WRONG), 4)
    net.load_state_dict(student(WRONG).state_dict())
    objective, turns = Alignment([knots(1), knots(2)], Loss(0.03)), count()

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(curve.points.shape[1], (256,), generator=generator)
        own, real = take(curve, rows), moons().sample(REAL_ROWS * 256, generator)
        batch = Aligned(own.source, (real,), end=own.data, turn=next(turns))
        return objective.loss(net, batch, generator)

    return fitted(net, loss, 600, 2e-3)


@cache
def rounds() -> list[Field]:
    """The exact flow, and two rounds of reflow after it."""
    flows: list[Field] = [moons()]
    for _ in range(2):
        x0 = noise(0, Stream.SIMULATE, range(10_000), (2,))
        pairs = bd.BezierCurve.line(x0, bd.solve(flows[-1], x0, bd.time_grid(16)).state)
        flows.append(bd.NetworkField(regressed(pairs, CurveRegression(Instants()), STEPS)))
    return flows


# The digits, from data to a student.


class Digits:
    """Two teachers of the digits, curves of their blend, and a student."""

    def __init__(self, folder: Path) -> None:
        self.data = bd.load_data("digits")
        net = bd.NetworkConfig(width=192, depth=3)
        self.strong = bd.train(bd.TrainConfig("digits", folder / "strong", 1500, 256, network=net))
        self.weak = bd.train(
            bd.TrainConfig("digits", folder / "weak", 120, 256, seed=1, network=net)
        )
        teachers = (folder / "strong", folder / "weak")
        self.curves = bd.simulate(
            bd.SimulateConfig(
                teachers,
                folder / "curves",
                ((1.25,), (-0.25,)),
                count=4096,
                steps=6,
                points="uint8",
            )
        )
        self.student = bd.distill(
            bd.DistillConfig(
                folder / "curves",
                folder / "student",
                steps=800,
                batch=256,
                align=150,
                data="digits",
            )
        )
        self.test = self.data.real(self.data.count("test") or 0, 0, "test")
        self.floor = frechet_distance(self.data.real(len(self.test), 0, "train"), self.test)

    def blend(self, weight: float) -> bd.Blend:
        """The strong teacher with a weight, the weak one with the rest."""
        return bd.Blend([self.strong.field, self.weak.field], [[weight], [1 - weight]])

    def samples(self, field: Field, count: int = 2048) -> Tensor:
        """Samples of a field in eight steps of Heun, clamped as they are saved."""
        return self.data.scaling.clamp(
            bd.solve(
                field, noise(3, Stream.JUDGE, range(count), self.data.shape), bd.time_grid(8)
            ).state
        )

    def excess(self, x: Tensor) -> float:
        """Mean excess of parts as large as the held-out split."""
        parts = x.split(len(self.test))[: len(x) // len(self.test)]
        return (
            float(np.mean([frechet_distance(part, self.test) for part in parts])) / self.floor - 1
        )


@cache
def digits() -> Digits:
    """See :class:`Digits`."""
    with tempfile.TemporaryDirectory() as folder:
        made = Digits(Path(folder))
        made.curves.curves(
            torch.arange(1)
        )  # a small store is read as a whole: it outlives its folder
        return made


# Drawings.


def plane(axes: Axes) -> None:
    """The frame of everything in two dimensions."""
    axes.set(xlim=BOX, ylim=BOX, aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])


def panels(
    rows: int, columns: int, width: float = 7.2, height: float = 2.5, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; square ones of the plane unless they share nothing."""
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    if share:
        for one in axes:
            plane(one)
        figure.supxlabel("first component", fontsize=10)
        figure.supylabel("second component", fontsize=10)
    return figure, axes


def dots(axes: Axes, x: Tensor, colour: str = BLUE, label: str | None = None) -> None:
    """Samples in the plane."""
    axes.scatter(x[:1500, 0], x[:1500, 1], s=3, alpha=0.5, color=colour, linewidths=0, label=label)


def paths(axes: Axes, states: Tensor, colour: str = GREY, width: float = 0.8) -> None:
    """Paths ``(N, B, 2)`` from a circle each to a dot."""
    axes.plot(states[:, :, 0], states[:, :, 1], color=colour, lw=width, zorder=1)
    axes.scatter(
        states[0, :, 0],
        states[0, :, 1],
        s=12,
        facecolors="white",
        edgecolors="black",
        linewidths=0.8,
        zorder=2,
    )
    axes.scatter(states[-1, :, 0], states[-1, :, 1], s=12, color=BLUE, linewidths=0, zorder=3)


def visited(field: Field, x0: Tensor, steps: int, method: str = "heun") -> Tensor:
    """The states ``(steps + 1, B, 2)`` of a solve."""
    states: list[Tensor] = []
    bd.solve(field, x0, bd.time_grid(steps), method, observe=lambda k, x: states.append(x))
    return torch.stack(states)


def starts(count: int) -> Tensor:
    """Noise within the frame."""
    x0 = noise(5, Stream.SAMPLE, range(4 * count), (2,))
    return x0[x0.norm(dim=1) < 2.2][:count]


def flow() -> Figure:
    """Paths of a rectified flow, and what few Euler steps make of it."""
    figure, axes = panels(2, 3)
    paths(axes[0], visited(moons(), starts(40), 64))
    axes[0].set_title("paths of the flow:\nnoise (circles) to data")
    dots(axes[1], held_out(JUDGED))
    axes[1].set_title("real data\n")
    for one, steps in zip(axes[2:], (1, 2, 4, 20), strict=True):
        x = visited(moons(), judged(), steps, "euler")[-1]
        dots(one, x, RED)
        one.set_title(f"{counted(steps, 'Euler step')}:\nexcess {excess(x):.1f}")
    return figure


def reflow() -> Figure:
    """Three rectified flows: straighter round by round, and further from the data."""
    figure, axes = panels(2, 3)
    first = visited(moons(), judged(), 32)[-1]
    for k, field in enumerate(rounds()):
        one, end = visited(field, judged(), 1, "euler")[-1], visited(field, judged(), 32)[-1]
        paths(axes[k], visited(field, starts(40), 32))
        drift = float((end - first).square().mean())
        axes[k].set_title(
            f"round {k + 1}: straightness {straightness(field, judged()[:JUDGED]):.3f}\ndrift"
            f" {drift:.3f}"
        )
        dots(axes[3 + k], one, RED)
        axes[3 + k].set_title(
            f"1 Euler step: excess {excess(one):.1f}\n32 Heun steps:"
            f" {round(excess(end), 2) + 0.0:.2f}"
        )
    return figure


def curves() -> Figure:
    """A path and the curves that are fitted to it; the error of the fit by degree."""
    figure, (left, right) = panels(1, 2, height=3.9, share=False)
    times = bd.time_grid(32)
    path = visited(moons(), noise(5, Stream.SAMPLE, range(512), (2,)), 32)
    direct = (path[-1] - path[0]).norm(dim=1).clamp_min(1.5)
    bent = int((bd.BezierCurve.fit(path, times, 4).arc_length() / direct).argmax())
    left.plot(
        path[::2, bent, 0],
        path[::2, bent, 1],
        "o",
        ms=4,
        color="black",
        mfc="white",
        label="teacher's path",
    )
    for degree, colour, style in ((1, RED, "--"), (2, COLOURS[4], "-."), (4, BLUE, "-")):
        curve = bd.BezierCurve.fit(path[:, bent : bent + 1], times, degree)
        line = torch.stack([curve.point(t)[0] for t in torch.linspace(0, 1, 64).tolist()])
        left.plot(line[:, 0], line[:, 1], style, color=colour, lw=1.8, label=f"degree {degree}")
    polygon = curve.points[:, 0]
    left.plot(
        polygon[:, 0],
        polygon[:, 1],
        ":D",
        color=BLUE,
        lw=0.8,
        ms=5,
        mfc="white",
        label="guides of degree 4",
    )
    for i, point in enumerate(polygon):
        left.annotate(
            f"$P_{i}$", (float(point[0]), float(point[1])), (6, 6), textcoords="offset points"
        )
    left.set(
        title="one path, three curves",
        aspect="equal",
        xlabel="first component",
        ylabel="second component",
    )
    left.margins(0.12)
    figure.legend(
        *left.get_legend_handles_labels(), fontsize=9, ncols=3, loc="outside lower center"
    )
    degrees = range(1, 9)
    gaps = [
        curve_fit_error(bd.BezierCurve.fit(path, times, degree), path, times) for degree in degrees
    ]
    right.plot(degrees, gaps, "o-", color=BLUE)
    right.set(
        yscale="log",
        xlabel="degree",
        ylabel="rms error per component",
        title="error of the fit, 512 paths",
    )
    right.set_xticks(list(degrees))
    return figure


def blend() -> Figure:
    """Two teachers as one: weights over time, the blend by its weight, and samples."""
    made = digits()
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[2, 1])
    left, right = halves[0].subplots(1, 2)
    t = torch.linspace(0, 1, 101)
    for text, style in (("1.25,-0.25", "-"), ("1.0:1.5,0.0:-0.5", "--")):
        blended = bd.Blend([made.strong.field, made.weak.field], parse_weights(text))
        weights = blended.weight_at(t)
        for row, colour, name in zip(weights, (BLUE, RED), ("strong", "weak"), strict=True):
            left.plot(t, row, style, color=colour, label=f"{name}, {text}")
    left.axhline(0, color=GREY, lw=0.6)
    left.set(xlabel="t", ylabel="weight", title="weights over time", ylim=(-0.6, 2.6))
    left.legend(fontsize=7.5, loc="upper left")
    values = {
        g: made.excess(made.samples(made.blend(g)))
        for g in (0.75, 1.0, 1.1, 1.25, 1.4, 1.6, 1.8, 2.0)
    }
    right.plot(list(values), list(values.values()), "o-", color=BLUE)
    right.plot(1.0, values[1.0], "s", ms=9, color=RED, label="the strong teacher alone")
    right.plot(1.25, values[1.25], "*", ms=14, color=GREEN, label="1.25, -0.25")
    right.set(
        xlabel="weight of the strong teacher",
        ylabel="excess",
        title="the blend, by its weight",
        ylim=(0, None),
    )
    right.legend(fontsize=8)
    for axes, (name, weight) in zip(
        halves[1].subplots(1, 3), (("weak", 0.0), ("strong", 1.0), ("blend", 1.25)), strict=True
    ):
        x = made.samples(made.blend(weight))
        axes.imshow(image_grid(x[:32], 8), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"{name}: excess {made.excess(x):.2f}")
    return figure


def jumps() -> Figure:
    """A student's jumps of one and two passes, and how its knot is found."""
    figure, axes = panels(1, 3, height=2.9, share=False)
    few = take(stored(moons(), 4), torch.arange(40, 52))
    path = torch.stack([few.point(t) for t in torch.linspace(0, 1, 48).tolist()])
    for one, passes in zip(axes, (1, 2), strict=False):
        plane(one)
        one.plot(path[:, :, 0], path[:, :, 1], color=GREY, lw=0.8, zorder=1)
        states = torch.stack(
            [sample(student(), few.source, knots(passes)[: k + 1]) for k in range(1, passes + 1)]
        )
        paths(one, torch.cat([few.source[None], states]), RED, 1.4)
        one.plot(states[:-1, :, 0], states[:-1, :, 1], "s", ms=3, color=RED, zorder=3)
        one.set_title(
            f"{counted(passes, 'pass')}: excess"
            f" {excess(sample(student(), judged(), knots(passes))):.2f}"
        )
    inner, costs = GRID[1:-1], errors()
    first, second = costs[0, 1:-1], costs[1:-1, -1]
    axes[2].plot(inner, first, "--", color=COLOURS[4], label="0 to s")
    axes[2].plot(inner, second, "-.", color=BLUE, label="s to 1")
    axes[2].plot(inner, first + second, "o-", ms=4, color="black", label="both")
    axes[2].plot(
        knots(2)[1],
        float((first + second).min()),
        "*",
        ms=13,
        color=RED,
        label=f"the knot, {knots(2)[1]:g}",
    )
    axes[2].set(
        xlabel="s", title="squared error of jumps", ylim=(0, 1.5 * float((first + second).max()))
    )
    axes[2].legend(fontsize=8, ncols=2, loc="upper left", borderaxespad=0)
    return figure


def alignment() -> Figure:
    """Samples of a student of a wrong teacher, before and after alignment with real data."""
    figure, axes = panels(2, 3)
    dots(axes[0], visited(moons(WRONG), judged(), 16)[-1], GREY)
    axes[0].set_title("the teacher\n")
    dots(axes[3], held_out(JUDGED))
    axes[3].set_title("real data\n")
    for row, passes in enumerate((1, 2)):
        for column, (net, colour, when) in enumerate(
            ((student(WRONG), RED, "before"), (aligned(), GREEN, "after")), start=1
        ):
            x = sample(net, judged(), knots(passes))
            dots(axes[3 * row + column], x, colour)
            axes[3 * row + column].set_title(
                f"{counted(passes, 'pass')}, {when}:\nexcess {excess(x):.2f}"
            )
    return figure


def measure() -> Figure:
    """A distance, its floor and the excess, by the number of samples."""
    figure, (left, right) = panels(1, 2, height=3.2, share=False)
    sizes = [250, 500, 1000, 2000, 4000, 8000]
    left.plot(
        sizes, [floor(n) for n in sizes], "--", color=GREY, label="real against real: the floor"
    )
    for net, colour, marker, name in (
        (student(WRONG), RED, "s", "student"),
        (aligned(), GREEN, "o", "student, aligned"),
    ):
        x = sample(net, judged(), knots(1))
        left.plot(
            sizes, [distance(x, n) for n in sizes], marker + "-", ms=4, color=colour, label=name
        )
        right.plot(
            sizes, [excess(x, n) for n in sizes], marker + "-", ms=4, color=colour, label=name
        )
    right.axhline(0, color=GREY, ls="--")
    left.set(yscale="log", title="sliced Wasserstein distance to real data")
    right.set(title="excess = distance / floor - 1")
    for one in (left, right):
        one.set(xscale="log", xlabel="samples in each set")
        one.set_xticks(sizes, [str(n) for n in sizes])
        one.minorticks_off()
    left.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
    left.legend(fontsize=8)
    return figure


def line() -> Figure:
    """The way from data to samples, one row per stage."""
    made = digits()
    pair = bd.BezierCurve.line(
        noise(8, Stream.SAMPLE, range(1), made.data.shape), made.data.real(1, 4, "train")
    )
    curve = made.curves.curves(torch.tensor([4]))
    x0 = noise(3, Stream.JUDGE, range(12), made.data.shape)
    times = torch.linspace(0, 1, 12).tolist()
    rows: list[tuple[str, Tensor]] = [
        ("data", made.data.real(12, 0, "train")),
        ("flow matching: lines from noise to data", torch.cat([pair.point(t) for t in times])),
        ("strong teacher, 16 passes", made.samples(made.strong.field)[:12]),
        ("weak teacher, 16 passes", made.samples(made.weak.field)[:12]),
        ("blend 1.25, -0.25, 32 passes", made.samples(made.blend(1.25))[:12]),
        ("one path of the blend, as a Bezier curve", torch.cat([curve.point(t) for t in times])),
        ("what the store keeps of it: five control points, a byte per number", curve.points[:, 0]),
        ("student, 1 pass", made.student.generate(x0, 1)),
        ("student, 2 passes", made.student.generate(x0, 2)),
    ]
    figure = Figure(figsize=(7.2, 0.82 * len(rows)), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        axes.imshow(image_grid(images, 12), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, loc="left")
    return figure


DRAWINGS: dict[str, Callable[[], Figure]] = {
    drawing.__name__: drawing
    for drawing in (line, flow, reflow, curves, blend, jumps, alignment, measure)
}


def draw(name: str, out: Path) -> Path:
    """Make one drawing as ``out/NAME.png``."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        return saved(DRAWINGS[name](), out / f"{name}.png")


def saved(figure: Figure, path: Path, coloured: bool = False) -> Path:
    """Write a drawing, and nothing in the file but the picture. A palette makes a third of the
    bytes, but for coloured samples, which it would change.
    """
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130 if coloured else 200)
    image = Image.open(picture).convert("RGB")
    if not coloured:
        image = image.quantize(128, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    return path


def demo(run: Path) -> Figure:
    """Samples of one pass that a demo has kept, from the same noise: real ones, then the best
    method first.
    """
    data, names = bd.load_data("digits"), {"real digits": "real"}
    for entry in summarise([row for row in gather(run) if row.passes == 1]):
        names[f"{'ours' if entry.ours else entry.method}\nexcess {entry.excess:.2f}"] = (
            f"{entry.method}-0-1"
        )
    figure = Figure(figsize=(1.5 * len(names), 1.95), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(1, len(names)), names.items(), strict=True):
        axes.imshow(
            image_grid(data.scaling.encode(read_array(run / "samples" / f"{name}.npz")[:36]), 6),
            interpolation="nearest",
        )
        axes.set_axis_off()
        axes.set_title(title, fontsize=10)
    return figure


def front() -> Figure:
    """Rows of ``docs/text-to-image.png`` and ``docs/fashion.png``, which the benchmarks make: what
    a teacher makes of the same noise and captions, cut to few passes, and its students.
    """
    here = Path(__file__).parent
    prompts = np.asarray(Image.open(here / "text-to-image.png").convert("RGB"))
    fashion = np.asarray(Image.open(here / "fashion.png").convert("RGB"))
    left = [88, 146, 204, 262, 320, 378, 436, 494, 553, 611, 669, 727]

    def row(top: int) -> np.ndarray:
        return np.stack([prompts[top : top + 56, x : x + 56] for x in left])

    def panel(top: int, x: int) -> np.ndarray:
        places = [(top + 77 * k // 2, x + 77 * n // 2) for k in (0, 1) for n in range(6)]
        tiles = [Image.fromarray(fashion[y : y + 38, x : x + 38]) for y, x in places]
        return np.stack([np.asarray(tile.resize((56, 56))) for tile in tiles])

    parts = {
        "a pipeline, 56 passes": row(77),
        "cut to 2 passes": row(279),
        "**ours, 1 pass**": row(346),
        "rectified-flow\ndistillation, 1 pass": row(414),
        "a teacher, 20 passes": panel(274, 244),
        "**ours, 1 pass** ": panel(18, 244),
        "rectified-flow\ndistillation, 1 pass ": panel(274, 4),
    }
    figure = Figure(figsize=(9.2, 4.7))
    for k, (name, tiles) in enumerate(parts.items()):
        axes = figure.add_axes((0.19, 0.865 - 0.14 * k - 0.02 * (k > 3), 0.805, 0.13))
        gap = np.full((len(tiles), 56, 2, 3), 255, np.uint8)
        axes.imshow(np.concatenate([*np.concatenate([tiles, gap], 2)], 1), aspect="auto")
        axes.set_axis_off()
        weight = "bold" if name.startswith("**") else "normal"
        axes.text(
            -0.012,
            0.5,
            name.strip("* "),
            ha="right",
            va="center",
            fontsize=11,
            weight=weight,
            transform=axes.transAxes,
        )
    return figure


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Make the drawings of docs/concepts.md.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--only", default=",".join(DRAWINGS), help="names by commas")
    parser.add_argument(
        "--run", type=Path, help="draw docs/demo.png of this demo, and nothing else"
    )
    parser.add_argument(
        "--front", action="store_true", help="draw docs/front.png, and nothing else"
    )
    arguments = parser.parse_args()
    if arguments.front:
        print(saved(front(), Path(__file__).parent / "front.png", coloured=True))
        return
    if arguments.run is not None:
        print(saved(demo(arguments.run), Path(__file__).parent / "demo.png"))
        return
    for name in arguments.only.split(","):
        print(draw(name, arguments.out))


if __name__ == "__main__":
    main()

"""Two dimensions, live: two exact teachers, their blend, its curves, and a student that is trained
while one waits.

The teachers are Gaussian mixtures around the same points of a synthetic distribution, one sharp and
one blurred, so their velocity fields are known in closed form and nothing has to be trained before
there is something to see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.data import load_data
from bezierdistill.data.toys import TOYS
from bezierdistill.fields import Blend, GaussianMixture
from bezierdistill.flow_map import sample
from bezierdistill.metrics import curve_fit_error, frechet_distance, straightness
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, generator, noise
from bezierdistill.objectives import Alignment, CurveRegression, Loss
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.objectives.base import Aligned, Curves
from bezierdistill.objectives.intervals import MapIntervals
from bezierdistill.reporting.plots import COLOURS, GREY
from bezierdistill.settings import Guides
from bezierdistill.simulation import Simulation
from bezierdistill.solvers import solve, time_grid
from bezierdistill.training.loop import Trainer
from bezierdistill.training.settings import LoopConfig
from bezierdistill.words import counted

TASKS = tuple(TOYS)
CENTRES, SHARP, BLURRED = 256, 0.3, 0.6  # points per mixture, deviations in model units
STEPS, SHOWN, JUDGED, HELD_OUT, LEARNT = 12, 8, 1000, 8000, 8000
STEPS_SHOWN, MAX_DEGREE = (1, 2, 50), 6
LABELS = ("first number of a state", "second number of a state")
REACH = 2.5  # model units shown on each axis
KNOTS = ((0.0, 1.0), (0.0, 0.5, 1.0))
RATE, ALIGN_RATE = 1e-2, 2e-3  # of a network that is small and has little time


class Plane(NamedTuple):
    """A task: real points ``(HELD_OUT, 2)`` to judge by, others for the floor and to learn from,
    and two exact teachers.
    """

    real: Tensor
    floor: Tensor
    learnt: Tensor
    strong: GaussianMixture
    weak: GaussianMixture


@dataclass(frozen=True)
class Setting:
    """What the sliders say.

    Args:
        task: name of the synthetic distribution.
        weights: Bernstein coefficients of the strong teacher's weight over time; the weak one has
            one minus that.
        degree: degree of the curves.
        guides: how the guides are made.
    """

    task: str = "moons"
    weights: tuple[float, ...] = (1.0, 1.5, 2.0)
    degree: int = 4
    guides: Guides = "fit"

    @property
    def teachers(self) -> tuple[GaussianMixture, GaussianMixture]:
        """The strong and the weak teacher."""
        plane = open_plane(self.task)
        return plane.strong, plane.weak

    @property
    def blend(self) -> Blend:
        """Both teachers as one field."""
        return Blend(self.teachers, [self.weights, [1 - weight for weight in self.weights]])

    def curves(self, x0: Tensor) -> BezierCurve:
        """The curves from sources ``(B, 2)``."""
        return Simulation(self.blend, self.degree, self.guides, self.teachers, STEPS).curves(x0)[0]


@lru_cache
def open_plane(task: str) -> Plane:
    """The task of that name."""
    data = load_data(task)
    centres = data.batch(CENTRES, generator(1, Stream.TRAIN))[0]
    strong, weak = (
        GaussianMixture(centres, torch.full_like(centres, std), torch.full((CENTRES,), 1 / CENTRES))
        for std in (SHARP, BLURRED)
    )
    real, floor = data.real(HELD_OUT, 0, "test"), data.real(LEARNT, 0, "train")
    learnt = data.batch(LEARNT, generator(0, Stream.TRAIN))[0]
    return Plane(real, floor, learnt, strong, weak)


def judged_sources(count: int = JUDGED) -> Tensor:
    """The noise ``(count, 2)`` that everything is judged on."""
    return noise(0, Stream.JUDGE, range(count), (2,))


@lru_cache(maxsize=64)
def _flow(setting: Setting, steps: int) -> Tensor:
    return solve(setting.blend, judged_sources(), time_grid(steps), "euler").state


@lru_cache(maxsize=64)
def _excess_of(setting: Setting, steps: int) -> float:
    return excess(setting.task, _flow(setting, steps))


@lru_cache(maxsize=64)
def _straightness(setting: Setting) -> float:
    return straightness(setting.blend, judged_sources(200), 16)


def excess(task: str, x: Tensor) -> float:
    """Frechet distance of ``JUDGED`` samples to real points, by fixed random features, over its
    floor, minus one.
    """
    return frechet_distance(x, open_plane(task).real) / _floor(task) - 1


@lru_cache
def _floor(task: str) -> float:
    """The mean over sets of real points: that of one is off by half."""
    plane = open_plane(task)
    return mean(frechet_distance(part, plane.real) for part in plane.floor.split(JUDGED))


def measures(setting: Setting) -> list[list[str | float]]:
    """A row each for the strong teacher, the weak one and the blend: straightness, and the excess
    at 1, 2 and 50 Euler steps.
    """
    count = len(setting.weights)
    fields = {"strong": (1.0,) * count, "weak": (0.0,) * count, "blend": setting.weights}
    rows: list[list[str | float]] = []
    for name, weights in fields.items():
        own = Setting(setting.task, weights)
        excesses = (round(_excess_of(own, steps), 2) for steps in STEPS_SHOWN)
        rows.append([name, round(_straightness(own), 3), *excesses])
    return rows


def moved(curve: BezierCurve, row: int, shifts: Sequence[tuple[float, float]]) -> BezierCurve:
    """The curves with the points of one of them shifted."""
    points = curve.points.clone()
    points[:, row] += torch.tensor(shifts)
    return BezierCurve(points)


def within(figure: Figure, points: Tensor) -> tuple[list[list[float]], float]:
    """Where points lie in a figure that was drawn, in parts of its size from the upper left, and
    how large one unit is.
    """
    width, height = figure.bbox.size
    places = figure.axes[0].transData.transform([*points.tolist(), (0, 0), (1, 0)])
    parts = [[float(x / width), float(1 - y / height)] for x, y in places]
    return parts[:-2], parts[-1][0] - parts[-2][0]


def paths_figure(
    setting: Setting, row: int, shifts: Sequence[tuple[float, float]]
) -> tuple[Figure, Tensor, str]:
    """Teacher paths and curves, one of them with its guides; its points, shifted; and what was
    measured of it in words.
    """
    x0, times = noise(0, Stream.SAMPLE, range(SHOWN), (2,)), time_grid(48)
    path: list[Tensor] = []
    solve(setting.blend, x0, times, "heun", observe=lambda k, x: path.append(x))
    states, curve = torch.stack(path), moved(setting.curves(x0), row, shifts)
    line, points = torch.stack([curve.point(t) for t in times]), curve.points[:, row]
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    real, own = open_plane(setting.task).real[:JUDGED], COLOURS[1]
    axes.plot(*real.T, ".", color=GREY, ms=2, alpha=0.4, label="real data")
    for k in range(SHOWN):
        names = ["" if k else name for name in ("path of the blend", "Bezier curve")]
        axes.plot(*states[:, k].T, "--", color=COLOURS[6], lw=1, label=names[0])
        axes.plot(*line[:, k].T, color=COLOURS[0], lw=1.6, label=names[1])
    axes.plot(*points.T, ":", lw=1, color=own)
    axes.plot(*line[:, row].T, lw=2.6, label=f"curve {row + 1}", color=own)
    axes.plot(*points[1:-1].T, "D", mfc="white", ms=8, label="its guides", color=own)
    for k, place in enumerate(points.tolist()):
        offset = (-20 if k % 2 else 8, -3)
        axes.annotate(f"P{k}", place, offset, textcoords="offset points", fontsize=9, color=own)
    axes.plot(*x0.T, "o", color=COLOURS[6], ms=4, label="source, t=0")
    _frame(axes, max(REACH, float(curve.points.abs().max()) * 1.05))
    axes.set(xlabel=LABELS[0], ylabel=LABELS[1])
    axes.set_title(f"Paths of the blend and curves of degree {setting.degree}")
    axes.legend(fontsize=7, loc="upper left")
    length, chord = float(curve.arc_length()[row]), float((points[-1] - points[0]).norm())
    gap = curve_fit_error(curve, states, times)
    words = (
        f"Curve {row + 1}: length {length:.2f}, chord {chord:.2f}, **{length / chord:.3f}** times"
        f" as long as straight. All curves stay within **{gap:.3f}** (root mean square, model"
        " units) of the paths."
    )
    return figure, points, words


def _frame(axes: Axes, reach: float) -> None:
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def samples_figure(setting: Setting, student: Sequence[Tensor] | None = None) -> Figure:
    """Real points, the blend at 1, 2 and 50 Euler steps, and a student's samples at one and two
    passes, if there is one.
    """
    panels = [("real points", open_plane(setting.task).real[:JUDGED], GREY)]
    for steps in STEPS_SHOWN:
        title = f"blend, {counted(steps, 'step')}: excess {_excess_of(setting, steps):.2f}"
        panels.append((title, _flow(setting, steps), COLOURS[0]))
    for passes, x in zip((1, 2), student or [None, None], strict=True):
        told = "" if x is None else f": excess {excess(setting.task, x):.2f}"
        title = f"student, {counted(passes, 'pass')}{told}"
        panels.append((title, torch.empty(0, 2) if x is None else x, COLOURS[1]))
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (title, x, colour) in zip(grid.flatten(), panels, strict=True):
        axes.plot(*x.T, ".", color=colour, ms=2.5, alpha=0.6)
        _frame(axes, REACH)
        axes.set_title(title, fontsize=10)
        if not len(x):
            missing = "not trained\non these curves yet"
            axes.text(0, 0, missing, ha="center", va="center", color=GREY)
    figure.supxlabel(f"{LABELS[0]} (model units)", fontsize=9)
    figure.supylabel(f"{LABELS[1]} (model units)", fontsize=9)
    return figure


def distil(
    setting: Setting,
    tell: Callable[[int, int], object] = lambda done, steps: None,
    steps: int = 800,
    align: int = 300,
    batch: int = 256,
) -> tuple[Tensor, ...]:
    """Train a small student on the curves of a setting; its samples at one and two passes from the
    noise that all are judged on. ``tell`` is called with the steps done and those of all.
    """
    tell(0, steps + align)
    points = setting.curves(noise(0, Stream.SIMULATE, range(LEARNT), (2,))).points
    real, metric = open_plane(setting.task).learnt, Loss(0.03)
    turns, done = count(), count(1)

    def curves(draws: torch.Generator) -> Curves:
        tell(next(done), steps + align)
        rows = torch.randint(LEARNT, (batch,), generator=draws)
        return Curves(BezierCurve(points[:, rows]))

    def aligned(draws: torch.Generator) -> Aligned:
        curve = curves(draws).curve
        few = torch.randint(LEARNT, (REAL_ROWS * batch,), generator=draws)
        return Aligned(curve.source, (real[few],), end=curve.data, turn=next(turns))

    net: nn.Module = NetworkConfig("mlp", 64, 3).build((2,), 0)
    with TemporaryDirectory() as folder:
        loop = LoopConfig(accelerator="cpu", lr=RATE, ema=0.99)
        trainer = Trainer({"student": net}, loop, Path(folder), "curves")
        net = trainer.fit(CurveRegression(MapIntervals(), metric, 1.0), curves, steps, 0)
        trainer = Trainer(
            {"student": net}, loop, Path(folder), "alignment", {"student": ALIGN_RATE}
        )
        net = trainer.fit(Alignment(KNOTS, metric), aligned, align, 1)
    with torch.no_grad():
        return tuple(sample(net, judged_sources(), knots) for knots in KNOTS)

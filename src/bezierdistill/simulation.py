"""Simulation: a field moves sources (or real data, backwards), and the paths become Bezier curves
in a store.

The inner control points, the *guides*, come from the teachers in one of three ways:

* ``fit``: least squares along the solver's path, as running sums; any degree, no further pass;
* ``hermite``: a cubic from the velocities at both ends, two further evaluations;
* ``endpoints``: the paper's guiding distributions (arXiv 2503.16562): guide i is where teacher i
  alone carries the same source; M teachers give degree M + 1.

A higher degree than the guides give is the same curve, elevated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bezierdistill.couplings import Inversion, Teacher
from bezierdistill.curves import BezierCurve, CurveFit, check_degree, fit_weights
from bezierdistill.errors import UserError
from bezierdistill.fields import Field
from bezierdistill.noise import BLOCK
from bezierdistill.solvers import solve, time_grid
from bezierdistill.store import CurveWriter
from bezierdistill.store.codec import Packed
from bezierdistill.store.writer import Plan

Guides = Literal["fit", "hermite", "endpoints"]
MOST_SKIPPED = 0.01  # share of the rows of a shard that may be left out


@dataclass(frozen=True)
class Simulation:
    """How a batch of sources, or of data, becomes curves.

    Args:
        field: the teacher or blend that is simulated.
        degree: degree of the curves.
        guides: how the guides are made (module docstring).
        teachers: the single teachers, for ``endpoints``.
        steps: solver steps.
        method: fixed-step solver.
        backwards: start from real data and solve from t=1 to t=0.
        through: the flow of another domain: states of that domain are carried back to noise by it
            first, in as many steps, then forwards by ``field``; the curve spans both halves.

    Raises:
        UserError: on a degree that the guides cannot have, or too few steps for a fit.
    """

    field: Field
    degree: int = 4
    guides: Guides = "fit"
    teachers: Sequence[Field] = ()
    steps: int = 8
    method: str = "heun"
    backwards: bool = False
    through: Field | None = None

    def __post_init__(self) -> None:
        check_degree(self.degree)
        if self.guides not in get_args(Guides):
            raise UserError(
                f"guides are {self.guides!r}, expected one of {', '.join(get_args(Guides))}"
            )
        if self.guides == "fit":
            fit_weights(self.degree, self.fit_times)
        if self.through is not None and (self.backwards or self.guides != "fit"):
            raise UserError(
                "a path through another domain's noise runs forwards and its guides are fitted:"
                " expected --guides fit, no --data"
            )
        if self.degree < self._least_degree:
            why = (
                "a cubic"
                if self.guides == "hermite"
                else f"one guide for each of {len(self.teachers)} teachers"
            )
            raise UserError(
                f"degree is {self.degree} with guides {self.guides!r}, expected"
                f" {self._least_degree} or more: {why}"
            )

    @property
    def _least_degree(self) -> int:
        return {"fit": 1, "hermite": 3, "endpoints": len(self.teachers) + 1}[self.guides]

    @property
    def times(self) -> tuple[float, ...]:
        """The solver's grid."""
        return time_grid(self.steps, 1.0, 0.0) if self.backwards else time_grid(self.steps)

    @property
    def fit_times(self) -> tuple[float, ...]:
        """The times of the states that a fit sees: two grids, end to end, on a path through another
        domain's noise.
        """
        return self.times if self.through is None else time_grid(2 * self.steps)

    @torch.no_grad()
    def curves(self, start: Tensor, cond: Tensor | None = None) -> tuple[BezierCurve, int]:
        """Curves from states ``(B, ...)`` at the first time with conditions ``(B, C)``, and the
        network passes a row.
        """
        fit = CurveFit(self.degree, self.fit_times) if self.guides == "fit" else None
        if self.through is not None and fit is not None:
            return self._through(self.through, start, cond, fit)
        if self.backwards:
            pair = Inversion(self.field, self.times, self.method, fit)(None, start, cond)
        else:
            pair = Teacher(self.field, self.times, self.method, fit)(start, cond=cond)
        if fit is not None:
            return fit.curve(), pair.passes
        if self.guides == "hermite":
            v0, v1 = self.field(pair.x0, 0.0, cond), self.field(pair.x1, 1.0, cond)
            return (
                self._elevated(BezierCurve.hermite(pair.x0, pair.x1, v0, v1)),
                pair.passes + 2 * self.field.passes,
            )
        ends = [
            solve(teacher, pair.x0, time_grid(self.steps), self.method, cond)
            for teacher in self.teachers
        ]
        curve = BezierCurve.from_guides(pair.x0, [end.state for end in ends], pair.x1)
        return self._elevated(curve), pair.passes + sum(end.passes for end in ends)

    def _through(
        self, through: Field, start: Tensor, cond: Tensor | None, fit: CurveFit
    ) -> tuple[BezierCurve, int]:
        """Back to noise by one flow, forwards by the other; the noise where they meet is seen by
        the fit once.
        """
        back = solve(through, start, time_grid(self.steps, 1.0, 0.0), self.method, cond, fit)

        def observe(k: int, x: Tensor) -> None:
            if k:
                fit(self.steps + k, x)

        forth = solve(self.field, back.state, time_grid(self.steps), self.method, cond, observe)
        return fit.curve(), back.passes + forth.passes

    def _elevated(self, curve: BezierCurve) -> BezierCurve:
        while curve.degree < self.degree:
            curve = curve.elevate()
        return curve


def simulate_shards(
    simulation: Simulation,
    draw: Callable[[int, int], tuple[Tensor, Tensor | None]],
    plans: Sequence[Plan],
    writer: CurveWriter,
    batch: int = 4 * BLOCK,
    advance: Callable[[int], None] = lambda rows: None,
    seed: int | None = None,
) -> None:
    """Make those shards of a store that are not there; memory does not grow with their number.

    Args:
        simulation: how curves are made.
        draw: ``draw(start, rows)`` gives the start states of rows ``start .. start + rows`` and
            their conditions, or None.
        plans: the shards to make, of :meth:`~bezierdistill.store.CurveWriter.plan`: all, or a part
            if others are made elsewhere.
        writer: the store.
        batch: rows simulated at once; shards are whole batches, so every batch is the same whoever
            makes it.
        advance: called with the number of rows done.
        seed: seed of the table that the rows start from, for the records of the shards.

    Raises:
        UserError: if the teachers give NaN or infinite states in more than one row of a hundred of
            a shard (the rows are named; fewer are left out).
    """
    for plan in plans:
        if writer.complete or writer.finished(plan):
            advance(plan.rows)
        else:
            writer.write(plan, *_simulated(simulation, draw, plan, writer, batch, advance), seed)


def _simulated(
    simulation: Simulation,
    draw: Callable[[int, int], tuple[Tensor, Tensor | None]],
    plan: Plan,
    writer: CurveWriter,
    batch: int,
    advance: Callable[[int], None],
) -> tuple[list[Packed], int, list[int]]:
    """The curves of a shard, packed, the network passes spent, and the indices of the rows that are
    left out.
    """
    parts: list[Packed] = []
    skipped: list[int] = []
    spent = 0
    for start in range(plan.first, plan.first + plan.rows, batch):
        states, cond = draw(start, min(batch, plan.first + plan.rows - start))
        curve, passes = simulation.curves(states, cond)
        made = curve.points.to("cpu", torch.float32)
        finite = made.isfinite().transpose(0, 1).flatten(1).all(1)
        skipped += (start - plan.first + (~finite).nonzero().flatten()).tolist()
        if len(skipped) > MOST_SKIPPED * plan.rows:
            rows = ", ".join(str(plan.first + row) for row in skipped[:10])
            raise UserError(
                f"the teachers gave NaN or infinite states in {len(skipped)} rows so far ({rows},"
                " ...): check their training"
            )
        parts.append(
            writer.pack(BezierCurve(made[:, finite]), None if cond is None else cond.cpu()[finite])
        )
        spent += passes * len(finite)
        advance(len(finite))
    return parts, spent, skipped

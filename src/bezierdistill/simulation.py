"""Simulation: a field moves sources (or real data, backwards) along what become Bezier curves.

The inner control points, the *guides*, come from the teachers in one of three ways:

* ``fit``: least squares along the solver's path, as running sums; any degree, no further pass;
* ``hermite``: a cubic from the velocities at both ends, two further evaluations;
* ``endpoints``: the paper's guiding distributions (arXiv 2503.16562): guide i is where teacher i
  alone carries the same source; M teachers give degree M + 1.

A higher degree than the guides give is the same curve, elevated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve, CurveFit, fit_weights
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, passes_of
from bezierdistill.settings import Guides, check_choice, check_degree
from bezierdistill.solvers import solve, time_grid


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
        through: the flow of another domain, whose states it carries back to noise first, in as many
            steps; the curve spans both halves.

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
        check_choice("guides", self.guides, Guides)
        if self.guides == "fit":
            fit_weights(self.degree, self.fit_times)
        if self.through is not None and (self.backwards or self.guides != "fit"):
            raise UserError(
                "a path through another domain's noise runs forwards and its guides are fitted:"
                " expected --guides fit, no --invert-from"
            )
        least = {"fit": 1, "hermite": 3, "endpoints": len(self.teachers) + 1}[self.guides]
        if self.degree < least:
            guides = f"one guide for each of {len(self.teachers)} teachers"
            why = "a cubic" if self.guides == "hermite" else guides
            given = f"degree is {self.degree} with guides {self.guides!r}"
            raise UserError(f"{given}, expected {least} or more: {why}")

    @property
    def times(self) -> tuple[float, ...]:
        """The solver's grid."""
        return time_grid(self.steps, 1.0, 0.0) if self.backwards else time_grid(self.steps)

    @property
    def fit_times(self) -> tuple[float, ...]:
        """The times of the states that a fit sees: two grids, end to end, from another domain."""
        return self.times if self.through is None else time_grid(2 * self.steps)

    @torch.no_grad()
    def curves(self, start: Tensor, cond: Tensor | None = None) -> tuple[BezierCurve, int]:
        """Curves from states ``(B, ...)`` with conditions ``(B, C)``, and the passes per row."""
        fit = CurveFit(self.degree, self.fit_times) if self.guides == "fit" else None
        if self.through is not None and fit is not None:
            return self._through(self.through, start, cond, fit)
        end = solve(self.field, start, self.times, self.method, cond, fit)
        if fit is not None:
            return fit.curve(), end.passes
        x0, x1 = (end.state, start) if self.backwards else (start, end.state)
        if self.guides == "hermite":
            v0, v1 = self.field(x0, 0.0, cond), self.field(x1, 1.0, cond)
            curve, passes = BezierCurve.hermite(x0, x1, v0, v1), 2 * passes_of(self.field)
        else:
            grid = time_grid(self.steps)
            ends = [solve(teacher, x0, grid, self.method, cond) for teacher in self.teachers]
            curve = BezierCurve.from_guides(x0, [guide.state for guide in ends], x1)
            passes = sum(guide.passes for guide in ends)
        while curve.degree < self.degree:
            curve = curve.elevate()
        return curve, end.passes + passes

    def _through(
        self, through: Field, start: Tensor, cond: Tensor | None, fit: CurveFit
    ) -> tuple[BezierCurve, int]:
        back = solve(through, start, time_grid(self.steps, 1.0, 0.0), self.method, cond, fit)

        def observe(k: int, x: Tensor) -> None:
            if k:  # the noise where both halves meet is seen by the fit once
                fit(self.steps + k, x)

        forth = solve(self.field, back.state, time_grid(self.steps), self.method, cond, observe)
        return fit.curve(), back.passes + forth.passes

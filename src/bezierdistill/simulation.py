"""Simulation: a field moves sources (or real data, backwards) along what become Bezier curves.

The inner control points, the *guides*, come from the teachers in one of three ways:

* ``fit``: least squares along the solver's path, as running sums; any degree, no further pass;
* ``hermite``: a cubic from the velocities at both ends, two further evaluations;
* ``endpoints``: the paper's guiding distributions (arXiv 2503.16562): guide i is where teacher i
  alone carries the same source; M teachers give degree M + 1.

A higher degree than the guides give is the same curve, elevated.

As many solver steps as are needed, and no more: :func:`choose_steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve, CurveFit, fit_weights
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, passes_of
from bezierdistill.records import ChosenSteps
from bezierdistill.settings import Guides, check_choice, check_degree, check_tolerance
from bezierdistill.solvers import Observer, Solution, evaluations, order_of, solve, time_grid

# Rows of the sample on which steps are chosen, and numbers in all of them; the most steps.
SAMPLE, NUMBERS, MOST_STEPS = 512, 2**24, 64
FEW = 64  # rows that a sample has, where that can be paid


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

    @property
    def cost(self) -> int:
        """Network passes of a curve, by a solver of fixed steps."""
        solved = [self.field, *([] if self.through is None else [self.through])]
        solved += self.teachers if self.guides == "endpoints" else ()
        ends = 2 * passes_of(self.field) if self.guides == "hermite" else 0
        return evaluations(self.method) * self.steps * sum(map(passes_of, solved)) + ends

    @torch.no_grad()
    def end(
        self, start: Tensor, cond: Tensor | None = None, observe: Observer | None = None
    ) -> Solution:
        """Where states ``(B, ...)`` with conditions ``(B, C)`` end; ``observe`` sees the states at
        :attr:`fit_times`.
        """
        if self.through is None:
            return solve(self.field, start, self.times, self.method, cond, observe)
        back = solve(
            self.through, start, time_grid(self.steps, 1.0, 0.0), self.method, cond, observe
        )

        def later(k: int, x: Tensor) -> None:
            if k and observe is not None:  # the noise where both halves meet is seen once
                observe(self.steps + k, x)

        forth = solve(self.field, back.state, time_grid(self.steps), self.method, cond, later)
        return Solution(forth.state, back.passes + forth.passes)

    @torch.no_grad()
    def curves(self, start: Tensor, cond: Tensor | None = None) -> tuple[BezierCurve, int]:
        """Curves from states ``(B, ...)`` with conditions ``(B, C)``, and the passes per row."""
        fit = CurveFit(self.degree, self.fit_times) if self.guides == "fit" else None
        end = self.end(start, cond, fit)
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


def least_steps(degree: int) -> int:
    """The fewest steps that are tried for curves of a degree: a power of two, and enough for a fit
    of the inner points.
    """
    return max(2, 2 ** (degree - 1).bit_length())


def choose_steps(
    simulation: Simulation,
    draw: Callable[[int, int], tuple[Tensor, Tensor | None]],
    tolerance: float = 0.1,
    rows: int = SAMPLE,
    batch: int = SAMPLE,
    most: int | None = None,
) -> tuple[Simulation, ChosenSteps]:
    r"""The simulation with the fewest steps, a power of two, whose ends are right.

    Step doubling: a method of order p errs by :math:`|x_n - x| = |x_n - x_{2n}| / (1 - 2^{-p})` up
    to higher orders. Steps are doubled until the median of that over a sample is at most
    ``tolerance`` times the median distance from an end to the nearest other of the sample.

    Source: Hairer, Norsett & Wanner, *Solving Ordinary Differential Equations I*, ch. II.4.

    Args:
        simulation: how curves are made, in any number of steps.
        draw: ``draw(start, rows)`` gives start states and conditions, as for
            :func:`~bezierdistill.simulate_shards`; equal starts are no neighbours.
        tolerance: the error in distances between neighbours.
        rows: size of the sample, 2 or more; large states and few ``most`` passes make it smaller.
        batch: rows solved at once.
        most: passes that may be spent; without it steps are doubled up to 64.

    Raises:
        UserError: on a tolerance that is not above 0, a solver without fixed steps, or teachers
            that give NaN or infinite states.
    """
    check_tolerance(tolerance)
    n = least_steps(simulation.degree)
    trial, order = replace(simulation, steps=n), order_of(simulation.method)
    rows = min(rows, SAMPLE, NUMBERS // draw(0, 1)[0].numel())
    if most is not None:  # for n and 2 n steps, and for 4 n and 8 n if it is not too small for it
        rows = min(rows, max(most // (15 * trial.cost), min(FEW, most // (3 * trial.cost))))
    rows = max(2, rows)
    starts = [draw(first, min(batch, rows - first)) for first in range(0, rows, batch)]
    coarse, spent = _ends(trial, starts)
    same = _same([start for start, _ in starts])
    while True:
        fine, passes = _ends(replace(simulation, steps=2 * n), starts)
        spent += passes
        off, neighbours = _compared(coarse, fine, same)
        chosen = ChosenSteps(off / (1 - 2**-order), neighbours, tolerance, spent)
        dear = most is not None and spent + 2 * passes > most
        if chosen.reached or dear or n >= MOST_STEPS:
            return replace(simulation, steps=n), chosen
        n, coarse = 2 * n, fine


def _ends(
    simulation: Simulation, starts: Sequence[tuple[Tensor, Tensor | None]]
) -> tuple[Tensor, int]:
    """The ends ``(rows, numbers)`` of all, in double precision, and the passes in all."""
    found = [simulation.end(*start) for start in starts]
    states = [end.state.flatten(1).cpu().double() for end in found]
    return torch.cat(states), sum(
        end.passes * len(state) for end, state in zip(found, states, strict=True)
    )


def _same(starts: Sequence[Tensor]) -> Tensor:
    """Which rows start from the same state, ``(rows, rows)``: real data are drawn again."""
    seen: dict[bytes, int] = {}
    rows = (row.cpu().float().numpy().tobytes() for start in starts for row in start)
    kind = torch.tensor([seen.setdefault(row, len(seen)) for row in rows])
    return kind[:, None] == kind


def _compared(coarse: Tensor, fine: Tensor, same: Tensor) -> tuple[float, float]:
    """Medians over rows: the distance between both ends, and from a fine one to the nearest other
    that does not start from the ``same`` state (0 if there is none).

    Raises:
        UserError: if too few rows are finite to have neighbours.
    """
    whole = (coarse + fine).isfinite().all(1)
    if int(whole.sum()) < 2:
        told = f"the teachers gave NaN or infinite states in {int((~whole).sum())} rows of"
        raise UserError(f"{told} {len(whole)} that were tried: check their training")
    coarse, fine = coarse[whole], fine[whole]
    apart = torch.cdist(fine, fine)  # by products, which double precision allows
    nearest = apart.masked_fill_(same[whole][:, whole], torch.inf).amin(1).nan_to_num(posinf=0.0)
    return float((fine - coarse).norm(dim=1).median()), float(nearest.median())

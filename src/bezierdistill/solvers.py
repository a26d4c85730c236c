r"""Solving :math:`dx/dt = v(x, t)` on a time grid, in either direction, with the network passes
counted.

A fixed-step explicit Runge-Kutta method is its Butcher tableau: stages :math:`k_i = v(x + h \sum_j
a_{ij} k_j,\; t + c_i h)` and update :math:`x + h \sum_i b_i k_i`. The adaptive Dormand-Prince
method comes from torchdiffeq.

Source: Hairer, Norsett & Wanner, *Solving Ordinary Differential Equations I*, ch. II.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bezierdistill.curves import widest
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, passes_of
from bezierdistill.settings import check_counts

Observer = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau: ``a`` (rows below the diagonal), weights ``b``, nodes ``c``, ``order``."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int


TABLEAUX = {
    "euler": Tableau(((),), (1.0,), (0.0,), 1),
    "midpoint": Tableau(((), (0.5,)), (0.0, 1.0), (0.0, 0.5), 2),
    "heun": Tableau(((), (1.0,)), (0.5, 0.5), (0.0, 1.0), 2),
    "rk4": Tableau(
        ((), (0.5,), (0, 0.5), (0, 0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0), 4
    ),
}


@dataclass(frozen=True)
class Solution:
    """``state`` ``(B, ...)`` at the last time, and the network ``passes`` that each row cost."""

    state: Tensor
    passes: int


def time_grid(steps: int, start: float = 0.0, end: float = 1.0) -> tuple[float, ...]:
    """``steps + 1`` equally spaced times from ``start`` to ``end`` (either direction).

    Raises:
        UserError: if ``steps < 1``.
    """
    check_counts(steps=steps)
    return (*(start + (end - start) * k / steps for k in range(steps)), end)


def check_method(method: str) -> None:
    """Raise ``UserError`` unless ``method`` names a fixed-step solver or ``dopri5``."""
    if method not in TABLEAUX and method != "dopri5":
        raise UserError(f"solver is {method!r}, expected one of {', '.join([*TABLEAUX, 'dopri5'])}")


def evaluations(method: str) -> int:
    """Field evaluations that one step of a fixed-step method costs.

    Raises:
        UserError: if the method has no fixed number of them.
    """
    return len(_tableau(method).b)


def order_of(method: str) -> int:
    """Order of a fixed-step method; raises as :func:`evaluations`."""
    return _tableau(method).order


def _tableau(method: str) -> Tableau:
    if method not in TABLEAUX:
        names = ", ".join(TABLEAUX)
        raise UserError(f"solver is {method!r}, expected one with fixed steps: {names}")
    return TABLEAUX[method]


def solve(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    method: str = "heun",
    cond: Tensor | None = None,
    observe: Observer | None = None,
    tolerance: float = 1e-5,
) -> Solution:
    """Move states along a field from ``times[0]`` to ``times[-1]``.

    Args:
        field: the velocity field.
        x: states ``(B, ...)`` at ``times[0]``.
        times: two or more times in [0, 1], strictly rising or strictly falling.
        method: ``euler``, ``midpoint``, ``heun``, ``rk4`` (one step between neighbouring times) or
            ``dopri5`` (adaptive).
        cond: conditions ``(B, C)``, handed to the field.
        observe: called as ``observe(k, x_k)`` with the state at every ``times[k]``, the first and
            the last included.
        tolerance: relative and absolute tolerance of ``dopri5``; the fixed-step methods have none.

    Returns:
        The final states, and per row the evaluations times :func:`~bezierdistill.fields.passes_of`.

    Raises:
        UserError: on an unknown method or a grid that is not monotone.
    """
    check_method(method)
    steps = [b - a for a, b in pairwise(times)]
    if not steps or not (all(h > 0 for h in steps) or all(h < 0 for h in steps)):
        raise UserError(f"times are {[*times]}, expected strictly rising or strictly falling ones")
    observe = observe or (lambda k, state: None)
    if method == "dopri5":
        states, evaluations = _solve_adaptive(field, x, times, cond, tolerance)
        for k, state in enumerate(states):
            observe(k, state)
        return Solution(states[-1], evaluations * passes_of(field))
    tableau = TABLEAUX[method]
    observe(0, x)
    for k, h in enumerate(steps):
        x = _step(field, x, times[k], h, tableau, cond)
        observe(k + 1, x)
    return Solution(x, len(steps) * len(tableau.b) * passes_of(field))


def _step(
    field: Field, x: Tensor, t: float, h: float, tableau: Tableau, cond: Tensor | None
) -> Tensor:
    slopes: list[Tensor] = []
    for row, node in zip(tableau.a, tableau.c, strict=True):
        slopes.append(field(_advance(x, h, row, slopes), t + node * h, cond))
    return _advance(x, h, tableau.b, slopes)


def _advance(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=h * weight)
    return x


def _solve_adaptive(
    field: Field, x: Tensor, times: Sequence[float], cond: Tensor | None, tolerance: float
) -> tuple[Tensor, int]:
    """The states at all times, and the number of evaluations."""
    from torchdiffeq import odeint  # imported here: it takes scipy

    evaluations = 0

    def velocity(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return field(state, float(t), cond)

    grid = torch.tensor(list(times), dtype=widest(x.device), device=x.device)
    states = odeint(velocity, x, grid, method="dopri5", rtol=tolerance, atol=tolerance)
    assert isinstance(states, Tensor)
    return states, evaluations

r"""Bezier curves whose control points are batches of states.

With the Bernstein basis :math:`b_{i,n}(t) = \binom{n}{i} t^i (1-t)^{n-i}` a curve of degree n is

.. math:: B(t) = \sum_{i=0}^{n} b_{i,n}(t)\, P_i, \qquad P_0 = x_0 \text{ (source)}, \quad
          P_n = x_1 \text{ (data)}.

The inner control points are the *guides*. Degree 1 is the straight line of rectified flow.

Control points come first, ``(n + 1, B, *shape)``: every operation is a weighted sum over the first
axis, whatever the shape of a state.

Source: Farin, *Curves and Surfaces for CAGD* (blossoms, ch. 4; derivatives, ch. 5); Feng & Yang,
arXiv 2503.16562 (guides).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.settings import check_degree

Time = float | Tensor


def match_time(t: Time, x: Tensor) -> Tensor:
    """Bring a time to one number per row ``(B,)``, in dtype and on device of states ``(B, ...)``.

    Raises:
        UserError: if ``t`` is neither a scalar nor of shape ``(B,)``.
    """
    time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if time.ndim == 0:
        return time.expand(x.shape[0])
    if time.shape != x.shape[:1]:
        raise UserError(f"time has shape {tuple(time.shape)}, expected a scalar or ({len(x)},)")
    return time


def expand_time(t: Time, x: Tensor) -> Tensor:
    """Bring a time to shape ``(B, 1, ...)``, so that it multiplies states ``x`` ``(B, ...)``."""
    return match_time(t, x).reshape(-1, *[1] * (x.ndim - 1))


def widest(device: torch.device) -> torch.dtype:
    """The most precise floating type of a device: Apple's MPS has no double precision."""
    return torch.float32 if device.type == "mps" else torch.float64


def bernstein(degree: int, t: Tensor) -> Tensor:
    """Bernstein polynomials of one degree.

    Args:
        degree: ``n >= 0``.
        t: times of any shape.

    Returns:
        Tensor ``(n + 1, *t.shape)``; it sums to one over the first axis.
    """
    up, down = _powers(t, degree), _powers(1 - t, degree)
    inner = [comb(degree, i) * up[i] * down[degree - i] for i in range(1, degree)]
    return torch.stack([down[degree], *inner, up[degree]][: degree + 1])


def _powers(t: Tensor, degree: int) -> list[Tensor]:
    powers = [torch.ones_like(t), t]
    while len(powers) <= degree:
        powers.append(powers[-1] * t)
    return powers


@lru_cache(maxsize=None, typed=True)
def fit_weights(degree: int, times: tuple[float, ...]) -> Tensor:
    r"""Linear map from the states of a path to the points of its least-squares curve of fixed ends.

    With ``A`` the inner and ``E`` the outer columns of the Bernstein matrix at the inner times, the
    inner points are :math:`A^{+}(X - E\,[x_0, x_1])`. A solver can therefore add ``weights[:, k] *
    x_k`` as it goes (:class:`CurveFit`), and no path is stored.

    Args:
        degree: ``n >= 1``.
        times: the times of the path, from 0 to 1 or from 1 to 0, at least ``n - 1`` of them
            strictly inside.

    Returns:
        Float64 tensor ``(n + 1, N)``; ``points = weights @ path``.

    Raises:
        UserError: if the times do not run between 0 and 1, or are too few for the degree.
    """
    check_degree(degree)
    if len(times) < 2 or {times[0], times[-1]} != {0.0, 1.0}:
        raise UserError(f"path times are {list(times)}, expected them to join 0 and 1")
    first, last = (0, len(times) - 1) if times[0] == 0.0 else (len(times) - 1, 0)
    inner = tuple(t for t in times if 0.0 < t < 1.0)
    if len(set(inner)) < degree - 1 or len(inner) != len(times) - 2:
        raise UserError(
            f"a fit of degree {degree} needs {degree - 1} or more distinct inner times, got"
            f" {len(set(inner))}: use more steps or a lower degree"
        )
    weights = np.zeros((degree + 1, len(times)))
    weights[0, first] = weights[-1, last] = 1.0
    if degree > 1:
        basis = bernstein(degree, torch.tensor(inner, dtype=torch.float64)).T.numpy()
        solve = np.linalg.pinv(basis[:, 1:-1])
        weights[1:-1, 1:-1] = solve
        weights[1:-1, first] = -solve @ basis[:, 0]
        weights[1:-1, last] = -solve @ basis[:, -1]
    return torch.from_numpy(weights)


class CurveFit:
    """Least-squares curve with fixed ends, by running sums while a solver visits a path's states.

    Pass it as ``observe`` to :func:`bezierdistill.solvers.solve`; memory is ``degree + 1`` states
    whatever the number of steps. A second solve, from index 0, starts again.

    Args:
        degree: degree of the curve.
        times: the solver's time grid (see :func:`fit_weights`).

    Example:
        >>> fit = CurveFit(2, (0.0, 0.5, 1.0))
        >>> for k, x in enumerate(torch.tensor([[[0.0]], [[2.0]], [[1.0]]])):
        ...     fit(k, x)
        >>> fit.curve().points.flatten().tolist()
        [0.0, 3.5, 1.0]
    """

    def __init__(self, degree: int, times: Sequence[float]) -> None:
        self.weights = fit_weights(degree, tuple(float(t) for t in times))
        self._sums: Tensor | None = None
        self._dtype = torch.float32

    def __call__(self, k: int, x: Tensor) -> None:
        """Add the state ``x`` ``(B, ...)`` visited at grid index ``k``."""
        if self._sums is None or k == 0:
            self._dtype = x.dtype
            wide = torch.promote_types(x.dtype, torch.float32)
            self._sums = torch.zeros((self.weights.shape[0], *x.shape), dtype=wide, device=x.device)
        for i, weight in enumerate(self.weights[:, k].tolist()):
            if weight:
                self._sums[i].add_(x, alpha=weight)

    def curve(self) -> BezierCurve:
        """The curve fitted to what was visited.

        Raises:
            UserError: if nothing was visited.
        """
        if self._sums is None:
            raise UserError("no state was visited: call solve(..., observe=fit) first")
        return BezierCurve(self._sums.to(self._dtype))


@dataclass(frozen=True)
class BezierCurve:
    """A batch of Bezier curves.

    Args:
        points: control points ``(n + 1, B, *shape)``, any floating dtype; ``points[0]`` is the
            source, ``points[-1]`` the data end.

    Raises:
        UserError: on fewer than two control points.

    Example:
        >>> curve = BezierCurve(torch.tensor([[[0.0]], [[1.0]], [[0.0]]]))
        >>> curve.point(0.5).item(), curve.velocity(0.0).item()
        (0.5, 2.0)
    """

    points: Tensor

    def __post_init__(self) -> None:
        if self.points.ndim < 2 or self.points.shape[0] < 2:
            shape = tuple(self.points.shape)
            raise UserError(f"control points have shape {shape}, expected (2 or more, B, ...)")

    def __repr__(self) -> str:
        batch, *shape = self.points.shape[1:]
        return f"BezierCurve(degree {self.degree}, batch {batch}, shape {tuple(shape)})"

    @classmethod
    def line(cls, x0: Tensor, x1: Tensor) -> BezierCurve:
        """The straight line of rectified flow, degree 1, between states ``(B, ...)``."""
        return cls(torch.stack([x0, x1]))

    @classmethod
    def from_guides(cls, x0: Tensor, guides: Sequence[Tensor], x1: Tensor) -> BezierCurve:
        """Curve of degree ``len(guides) + 1`` with given guides, every state ``(B, ...)``."""
        return cls(torch.stack([x0, *guides, x1]))

    @classmethod
    def hermite(cls, x0: Tensor, x1: Tensor, v0: Tensor, v1: Tensor) -> BezierCurve:
        """Cubic with end velocities ``v0`` and ``v1``: ``P_1 = x0 + v0/3``, ``P_2 = x1 - v1/3``."""
        return cls(torch.stack([x0, x0 + v0 / 3, x1 - v1 / 3, x1]))

    @classmethod
    def fit(cls, path: Tensor, times: Sequence[float], degree: int) -> BezierCurve:
        """Least-squares curve through a path ``(N, B, ...)``; see :func:`fit_weights`."""
        fit = CurveFit(degree, times)
        if len(path) != fit.weights.shape[1]:
            raise UserError(f"path has {len(path)} states, expected one state per time")
        for k, x in enumerate(path):
            fit(k, x)
        return fit.curve()

    @property
    def degree(self) -> int:
        """The degree ``n``."""
        return self.points.shape[0] - 1

    @property
    def source(self) -> Tensor:
        """The states at t=0, ``(B, ...)``."""
        return self.points[0]

    @property
    def data(self) -> Tensor:
        """The states at t=1, ``(B, ...)``."""
        return self.points[-1]

    def _combine(self, weights: Tensor, points: Tensor) -> Tensor:
        return (weights.reshape(*weights.shape, *[1] * (points.ndim - 2)) * points).sum(0)

    def _differences(self) -> Tensor:
        return self.degree * (self.points[1:] - self.points[:-1])

    def point(self, t: Time) -> Tensor:
        """The state ``B(t)``, shape ``(B, ...)``, at a scalar time or one time per row ``(B,)``."""
        return self._combine(bernstein(self.degree, match_time(t, self.points[0])), self.points)

    def ends(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The states ``(B(s), B(t))`` of an interval per row, times ``(B,)``, in one product."""
        weights = bernstein(self.degree, torch.stack([s, t], 1).to(self.points)).permute(1, 2, 0)
        rows = self.points.reshape(*self.points.shape[:2], -1).transpose(0, 1)
        start, end = torch.bmm(weights, rows).unbind(1)
        return start.reshape(self.points.shape[1:]), end.reshape(self.points.shape[1:])

    def velocity(self, t: Time) -> Tensor:
        """The drift ``B'(t) = n sum_i b[i, n-1](t) (P_{i+1} - P_i)``, shape ``(B, ...)``."""
        weights = bernstein(self.degree - 1, match_time(t, self.points[0]))
        return self._combine(weights, self._differences())

    def acceleration(self, t: Time) -> Tensor:
        """The second derivative ``B''(t)``, shape ``(B, ...)``; zero for a line."""
        if self.degree == 1:
            return torch.zeros_like(self.points[0])
        return BezierCurve(self._differences()).velocity(t)

    def segment(self, s: Time, t: Time) -> BezierCurve:
        """The part of the curve between ``s`` and ``t`` as a curve of its own on [0, 1].

        Its control points are the blossom values ``b[s^(n-j), t^j]``: ``s = t`` is allowed.
        """
        return BezierCurve(_blossoms(self.points, s, t))

    def split(self, s: Time) -> tuple[BezierCurve, BezierCurve]:
        """The two parts before and after ``s``, each a curve on [0, 1]."""
        return self.segment(0.0, s), self.segment(s, 1.0)

    def elevate(self) -> BezierCurve:
        """The same curve written with one degree more."""
        n = self.degree
        ratio = torch.arange(1, n + 1, dtype=self.points.dtype, device=self.points.device) / (n + 1)
        ratio = ratio.reshape(-1, *[1] * (self.points.ndim - 1))
        inner = ratio * self.points[:-1] + (1 - ratio) * self.points[1:]
        return BezierCurve(torch.cat([self.points[:1], inner, self.points[-1:]]))

    def average_velocity(self, s: Time, t: Time) -> Tensor:
        """``(B(t) - B(s)) / (t - s)``, exact in the limit ``s = t``, shape ``(B, ...)``.

        A curve's mean over [0, 1] is that of its control points; that of a segment of ``B'`` needs
        no division.
        """
        return _blossoms(self._differences(), s, t).mean(0)

    def arc_length(self, nodes: int = 32) -> Tensor:
        """Lengths ``(B,)`` by Gauss-Legendre quadrature of ``|B'(t)|`` with ``nodes`` nodes."""
        abscissae, weights = np.polynomial.legendre.leggauss(nodes)
        length = self.points.new_zeros(self.points.shape[1])
        for a, w in zip(abscissae.tolist(), weights.tolist(), strict=True):
            length = length + w / 2 * self.velocity((a + 1) / 2).flatten(1).norm(dim=1)
        return length

    def curvature(self, t: Time) -> Tensor:
        r"""Curvature :math:`\sqrt{|v|^2|a|^2 - (v \cdot a)^2} / |v|^3` at ``t``, ``(B,)``."""
        v, a = self.velocity(t).flatten(1), self.acceleration(t).flatten(1)
        vv = (v * v).sum(1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        return ((a - (v * a).sum(1, keepdim=True) / vv * v) / vv).norm(dim=1)


def _blossoms(points: Tensor, start: Time, end: Time) -> Tensor:
    """Blossom values of j arguments ``end``, the others ``start``: the points of that segment."""
    s, t, rows = expand_time(start, points[0]), expand_time(end, points[0]), [points]
    while len(rows[0]) > 1:
        # De Casteljau: each row takes one more argument s, the last one also starts one of t.
        last = (1 - t) * rows[-1][:-1] + t * rows[-1][1:]
        rows = [*((1 - s) * row[:-1] + s * row[1:] for row in rows), last]
    return torch.cat(rows)

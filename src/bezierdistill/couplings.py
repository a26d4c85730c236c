"""Couplings: which source state is joined to which data state.

Every coupling takes independent draws of sources and data and returns a coupled :class:`Pair`, so
flow matching, reflow and simulation differ in nothing else:

* :class:`Independent`: as drawn (flow matching, Lipman et al. 2022);
* :class:`MinibatchOT`: the exact optimal assignment within the batch (Pooladian et al. 2023; Tong
  et al. 2023), by POT;
* :class:`Teacher`: sources moved forwards by a field (reflow, Liu et al. 2022);
* :class:`Inversion`: data moved backwards by a field (Balanced Conic Rectified Flow, arXiv
  2510.25229).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bezierdistill.curves import widest
from bezierdistill.fields import Field
from bezierdistill.solvers import Observer, solve


@dataclass(frozen=True)
class Pair:
    """Coupled states ``x0`` and ``x1`` of shape ``(B, ...)``, and the network ``passes`` that each
    row cost.
    """

    x0: Tensor
    x1: Tensor
    passes: int = 0


class Coupling(Protocol):
    """``coupling(x0, x1, cond)`` turns independent draws ``(B, ...)`` into a :class:`Pair`."""

    def __call__(self, x0: Tensor, x1: Tensor, cond: Tensor | None = None) -> Pair:
        """Couple a batch."""
        ...


@dataclass(frozen=True)
class Independent:
    """Sources and data as drawn."""

    def __call__(self, x0: Tensor, x1: Tensor, cond: Tensor | None = None) -> Pair:
        """Couple a batch; see :class:`Coupling`."""
        return Pair(x0, x1)


@dataclass(frozen=True)
class MinibatchOT:
    """The assignment within the batch that minimises the total squared distance; the data keep
    their order (and conditions).
    """

    def __call__(self, x0: Tensor, x1: Tensor, cond: Tensor | None = None) -> Pair:
        """Couple a batch; see :class:`Coupling`."""
        import ot  # POT takes a second to import and only this class needs it

        rows, columns = (x.flatten(1).to(widest(x.device)) for x in (x1, x0))
        cost = torch.cdist(rows, columns).square().cpu().double()
        plan = ot.emd(ot.unif(len(x1)), ot.unif(len(x0)), cost.numpy())
        return Pair(x0[torch.as_tensor(plan.argmax(1), device=x0.device)], x1)


@dataclass(frozen=True)
class Teacher:
    """Sources carried forwards by a field; the drawn data are not used.

    Args:
        field: a teacher or a blend of teachers.
        times: rising grid from 0 to 1.
        method: solver (:func:`bezierdistill.solvers.solve`).
        observe: called with every visited state, for curve fits.
    """

    field: Field
    times: tuple[float, ...]
    method: str = "heun"
    observe: Observer | None = None

    def __call__(self, x0: Tensor, x1: Tensor | None = None, cond: Tensor | None = None) -> Pair:
        """Couple a batch; see :class:`Coupling`."""
        end = solve(self.field, x0, self.times, self.method, cond, self.observe)
        return Pair(x0, end.state, end.passes)


@dataclass(frozen=True)
class Inversion:
    """Data carried backwards to the source by a field; the drawn sources are not used. Arguments as
    :class:`Teacher`, grid from 1 to 0.
    """

    field: Field
    times: tuple[float, ...]
    method: str = "heun"
    observe: Observer | None = None

    def __call__(self, x0: Tensor | None, x1: Tensor, cond: Tensor | None = None) -> Pair:
        """Couple a batch; see :class:`Coupling`."""
        end = solve(self.field, x1, self.times, self.method, cond, self.observe)
        return Pair(end.state, x1, end.passes)

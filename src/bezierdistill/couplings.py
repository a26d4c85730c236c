"""Couplings: which source state is joined to which data state.

* :class:`Independent`: as drawn (flow matching, Lipman et al. 2022);
* :class:`MinibatchOT`: the exact optimal assignment within the batch (Pooladian et al. 2023; Tong
  et al. 2023), by POT; with labels, within each label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bezierdistill.curves import widest


class Pair(NamedTuple):
    """Coupled states ``(B, ...)``."""

    x0: Tensor
    x1: Tensor


class Coupling(Protocol):
    """``coupling(x0, x1, labels)`` turns independent draws ``(B, ...)``, of the same label in each
    row if there are labels ``(B,)``, into a :class:`Pair`.
    """

    def __call__(self, x0: Tensor, x1: Tensor, labels: Tensor | None = None) -> Pair:
        """Couple a batch."""
        ...


@dataclass(frozen=True)
class Independent:
    """Sources and data as drawn."""

    def __call__(self, x0: Tensor, x1: Tensor, labels: Tensor | None = None) -> Pair:
        """Couple a batch; see :class:`Coupling`."""
        return Pair(x0, x1)


@dataclass(frozen=True)
class MinibatchOT:
    """The assignment of the least total squared distance; the data keep their order."""

    def __call__(self, x0: Tensor, x1: Tensor, labels: Tensor | None = None) -> Pair:
        """Couple a batch; see :class:`Coupling`."""
        if labels is None:
            return Pair(self._assigned(x0, x1), x1)
        joined = torch.empty_like(x0)
        for label in labels.unique():
            rows = labels == label
            joined[rows] = self._assigned(x0[rows], x1[rows])
        return Pair(joined, x1)

    def _assigned(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The sources in the order of the data."""
        import ot  # POT takes a second to import and only this class needs it

        rows, columns = (x.flatten(1).to(widest(x.device)) for x in (x1, x0))
        cost = torch.cdist(rows, columns).square().cpu().double()
        plan = ot.emd(ot.unif(len(x1)), ot.unif(len(x0)), cost.numpy())
        return x0[torch.as_tensor(plan.argmax(1), device=x0.device)]

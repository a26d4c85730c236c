"""What objectives are trained on: ``batches(generator)`` draws a batch for a trainer's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.objectives.base import Aligned, Curves, Pairs
from bezierdistill.store import CurveStore
from bezierdistill.training.loop import Trainer
from bezierdistill.training.pool import Pool

Real = Callable[[torch.Generator], tuple[Tensor, Tensor | None]]
MAX_DRAWS = 1000  # batches of a domain in which a label is looked for
Starts = Callable[[torch.Generator], tuple[Tensor, Tensor | None, Tensor | None]]


def real_batches(data: Data, rows: int, trainer: Trainer | None) -> Real:
    """Batches of training data and their conditions; data that come one by one go on from the
    trainer's step.

    Args:
        data: the data.
        rows: rows of a batch.
        trainer: whose share of each batch they are, if there is one.
    """
    epochs = getattr(data, "epochs", None)
    if trainer is None or epochs is None:
        return lambda generator: data.batch(rows, generator)
    ahead = epochs(rows * trainer.ranks, *_place(trainer, rows))
    return lambda _: next(ahead)


def _place(trainer: Trainer, rows: int) -> tuple[int, slice]:
    """Of batches in a fixed order the one that comes next, and the rows of it of this rank."""
    part = slice(trainer.rank * rows, (trainer.rank + 1) * rows)
    return trainer.done * trainer.config.accumulate, part


@dataclass(frozen=True)
class PairBatches:
    """Independent draws of sources and data, or draws of the same label.

    Args:
        data: what flows end on.
        rows: rows of a batch.
        device: where batches are put.
        drop: share of rows whose condition is set to zero, which is none; None leaves all out.
        domain: what flows start from; without it sources are standard normal.
        trainer: from whose step data that come one by one go on, and whose share of them is taken;
            without it they are drawn from those that are kept.
        alike: whether each source has the label of the data in its row: labels are as frequent as
            in the data.
    """

    data: Data
    rows: int
    device: torch.device
    drop: float | None = None
    domain: Data | None = None
    trainer: Trainer | None = None
    alike: bool = False

    def __call__(self, generator: torch.Generator) -> Pairs:
        """A batch.

        Raises:
            UserError: if the domain gives no sample of a label of the data.
        """
        x1, cond = self._real(generator)
        labels = None if cond is None or not self.alike else cond.argmax(1)
        if labels is not None:
            x0 = self._labelled(labels, generator)
        elif self.domain is None:
            x0 = torch.randn(x1.shape, generator=generator)
        else:
            x0 = self._source(generator)[0]
        if cond is not None and self.drop:
            cond = cond * (torch.rand(self.rows, 1, generator=generator) >= self.drop)
        cond = None if cond is None or self.drop is None else cond.to(self.device)
        labels = None if labels is None else labels.to(self.device)
        return Pairs(x0.to(self.device), x1.to(self.device), cond, labels)

    def _labelled(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Sources of labels ``(B,)``, from batches drawn until there are some of each; a label that
        has too few of them has them in turn.
        """
        wanted, parts, kept = labels.unique(), [], []
        for _ in range(MAX_DRAWS):
            x, cond = self._source(generator)
            assert cond is not None  # of data with labels
            parts.append(x)
            kept.append(cond.argmax(1))
            if bool(torch.isin(wanted, torch.cat(kept)).all()):
                break
        else:
            told = f"{MAX_DRAWS} batches of the domain lack a class of {self.data.name}"
            raise UserError(f"{told}: expected samples of every class")
        given, chosen = torch.cat(kept), torch.empty_like(labels)
        for label in wanted:
            rows, own = ((some == label).nonzero()[:, 0] for some in (labels, given))
            chosen[rows] = own[torch.arange(len(rows)) % len(own)]
        return torch.cat(parts)[chosen]

    @cached_property
    def _real(self) -> Real:
        return real_batches(self.data, self.rows, self.trainer)

    @cached_property
    def _source(self) -> Real:
        assert self.domain is not None
        return real_batches(self.domain, self.rows, self.trainer)


class CurveBatches:
    """Stored curves: drawn independently, or with a seed each once per epoch.

    Args:
        store: the curves.
        trainer: whose share of each batch is read, and from whose step epochs go on.
        batch: rows of a batch on all ranks.
        seed: seed of the order of epochs; None draws independently.
    """

    def __init__(
        self, store: CurveStore, trainer: Trainer, batch: int, seed: int | None = None
    ) -> None:
        self.store, self.trainer, self.batch, self.seed = store, trainer, batch, seed
        self.rows = trainer.share(batch)

    def __call__(self, generator: torch.Generator) -> Curves:
        """A batch."""
        if self.seed is None:
            curve, cond = self.store.batch(self.rows, generator)
        else:
            curve, cond = next(self._ahead)
        device = self.trainer.device
        points = curve.points.to(device)
        return Curves(BezierCurve(points), None if cond is None else cond.to(device))

    def starts(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The sources of a batch, its ends and its conditions."""
        curve, cond = self(generator)
        return curve.source, curve.data, cond

    @cached_property
    def _ahead(self) -> Iterator[tuple[BezierCurve, Tensor | None]]:
        """Opened at the first batch, when the trainer knows where it goes on."""
        assert self.seed is not None
        return self.store.epochs(self.batch, self.seed, *_place(self.trainer, self.rows))


@dataclass(frozen=True)
class AlignedBatches:
    """Starts of samples beside real states from a pool.

    Args:
        starts: draws sources, where their samples are held (or None), and conditions (or None):
            :meth:`CurveBatches.starts` of stored curves, or fresh noise.
        pool: the real states.
        rows: real rows of a batch.
        trainer: whose steps are counted.
    """

    starts: Starts
    pool: Pool
    rows: int
    trainer: Trainer

    def __call__(self, generator: torch.Generator) -> Aligned:
        """A batch."""
        x0, end, cond = self.starts(generator)
        real, given = self.pool.draw(self.rows, generator)
        return Aligned(x0, real, cond, None if cond is None else given, end, next(self._turns))

    @cached_property
    def _turns(self) -> Iterator[int]:
        """Opened at the first batch, when the trainer knows where it goes on."""
        return count(self.trainer.done * self.trainer.config.accumulate)

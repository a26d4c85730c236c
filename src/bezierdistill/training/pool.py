"""Real states whose features are computed once and drawn from in every step.

A pool is a function of the data, the seed and the number of rows alone: all rows of a training
split that has no more than asked for, else so many drawn from it; of data that come one by one the
first behind those held out. It stays on the trainer's device, in single precision; where states or
features are large it has fewer rows, so that it takes no more than :data:`MOST_BYTES`. Under
torchrun each rank has its share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from bezierdistill.data import Data
from bezierdistill.memory import batch_size
from bezierdistill.models.features import Features
from bezierdistill.noise import Stream
from bezierdistill.progress import stage
from bezierdistill.training.loop import Trainer

MOST_BYTES = 2**30  # of a pool, and of the states that it is made of
NUMBER = 4  # bytes of one

Rows = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Pool:
    """Real states as groups of features, and their conditions.

    Args:
        groups: the groups, each ``(N, D)``.
        cond: conditions ``(N, C)``, or None.
        rows: rows on all ranks.
    """

    groups: tuple[Tensor, ...]
    cond: Tensor | None
    rows: int

    def draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Independent rows: the groups, each ``(count, D)``, and the conditions."""
        own = torch.randint(len(self.groups[0]), (count,), generator=generator)
        own = own.to(self.groups[0].device)
        return tuple(g[own] for g in self.groups), None if self.cond is None else self.cond[own]


@torch.no_grad()
@stage("features of real data")
def make_pool(
    data: Data, features: Features, rows: int, seed: int, trainer: Trainer, conditional: bool = True
) -> Pool:
    """Draw real states and compute their features.

    Args:
        data: the real data.
        features: what is kept of them; each of its calls is a network pass per row of the pool.
        rows: the most rows, on all ranks.
        seed: seed of the draw, where not all are taken.
        trainer: whose device it is on, and whose share is made.
        conditional: whether conditions of the data are kept, and given to the features.
    """
    rows = min(rows, MOST_BYTES // (NUMBER * math.prod(data.shape)))
    left, step = max(2, rows // trainer.ranks), batch_size(data.shape)
    kept: list[
        Tensor
    ] = []  # filled in place: parts that are joined later take several times as much
    given: list[Tensor] = []
    done = 0
    for x, cond in _blocks(data, left, step, seed, trainer):
        x, cond = x[: left - done].to(trainer.device), None if cond is None else cond[: left - done]
        cond = None if cond is None or not conditional else cond.to(trainer.device)
        found = features(x, cond)
        if not kept:  # now it is known how many numbers a row has
            numbers = sum(group.shape[1] for group in found)
            left = max(len(x), min(left, MOST_BYTES // (NUMBER * numbers * trainer.ranks)))
            kept = [group.new_empty(left, group.shape[1], dtype=torch.float32) for group in found]
        for group, made in zip(kept, found, strict=True):
            group[done : done + len(x)] = made
        given += [] if cond is None else [cond]
        done += len(x)
        if done == left:
            break
    groups = tuple(group[:done] for group in kept)
    return Pool(groups, torch.cat(given) if given else None, done * trainer.ranks)


def _blocks(data: Data, rows: int, step: int, seed: int, trainer: Trainer) -> Iterator[Rows]:
    """The rows of this rank, ``rows`` or all that there are, in blocks of ``step``."""
    rank, ranks, count = trainer.rank, trainer.ranks, data.count("train")
    epochs = getattr(data, "epochs", None)
    if epochs is not None:
        yield from islice(epochs(step * ranks, 0, slice(rank, None, ranks)), -(-rows // step))
    elif count is not None and 2 * ranks <= count <= rows * ranks:
        # All of them in some order, so that nothing is chosen by the stream of those who judge.
        own = slice(rank, count - count % ranks, ranks)
        x, cond = data.real(count, 0, "train")[own], data.conditions(count, 0, "train")
        cond = None if cond is None else cond[own]
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            yield x[part], None if cond is None else cond[part]
    else:
        for start in range(0, rows, step):
            index = range(start * ranks + rank, min(start + step, rows) * ranks, ranks)
            yield data.take(index, seed, Stream.TRAIN)

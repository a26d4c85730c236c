"""Data that come one after the other: an ``IterableDataset``, a ``DataLoader`` with an order of its
own.

The first rows are kept: a quarter to test on, a quarter to validate on, and the first half of
training. Training goes on behind those held out and begins there again at the end, in the order in
which rows come: shuffle them yourself. What needs rows in any order (the starts of curves,
evaluation, the arena) has those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from bezierdistill.data.base import ArrayData, Split
from bezierdistill.data.draws import Draws
from bezierdistill.data.items import Change, Reader, condition_vectors, measured_labels
from bezierdistill.data.lazy import BLOCK, FEW, ITEM, MAX_BYTES
from bezierdistill.data.reading import Samples
from bezierdistill.data.splits import MIN_SAMPLES, array_data
from bezierdistill.errors import UserError
from bezierdistill.noise import Stream, generator

KEPT, AHEAD = 8192, 16  # rows that are kept, and that are read at once


class Start(NamedTuple):
    """What the first rows tell: how they are read, what they are, how many are held out."""

    reader: Reader
    kept: ArrayData
    held: int


def _kept(name: str) -> Any:
    return property(lambda self: getattr(self.start.kept, name), doc="See :class:`Data`.")


@dataclass(frozen=True)
class StreamData:
    """Real samples in the order in which they come.

    Args:
        name: what the user called it.
        items: an iterable, which begins again whenever it is asked to.
        reader: from items to arrays.
        names: of the classes, in the order of their numbers, where they are known.
    """

    name: str
    items: Any
    reader: Reader
    names: tuple[str, ...] = ()

    shape = _kept("shape")
    scaling = _kept("scaling")
    class_names = _kept("class_names")
    classes = _kept("classes")
    frequencies = _kept("frequencies")
    condition_size = _kept("condition_size")
    count = _kept("count")
    batch = _kept("batch")
    take = _kept("take")
    real = _kept("real")
    conditions = _kept("conditions")

    def changed(self, name: str, change: Change) -> StreamData:
        """A view: every sample changed as it is read."""
        reader = replace(self.reader, name=name, changes=(*self.reader.changes, change))
        return replace(self, name=name, reader=reader)

    @property
    def fingerprint(self) -> str:
        """For :class:`~bezierdistill.objects.Named`: data of a name are the same."""
        return self.name

    @cached_property
    def start(self) -> Start:
        """The first rows."""
        rows = self._epoch(0)
        first = list(islice(rows, FEW))
        if not first:
            raise UserError(f"{self.name} gives no item, expected {2 * MIN_SAMPLES} or more")
        reader = self.reader.fitted([item for _, item in first], range(len(first)))[0]
        assert reader.like is not None
        rows = islice(
            chain(first, rows), max(4 * MIN_SAMPLES, min(KEPT, MAX_BYTES // reader.like.nbytes))
        )
        parts, labels = [], list[Any]()
        while block := list(islice(rows, BLOCK)):
            x, own = reader.read([item for _, item in block], [number for number, _ in block])
            parts.append(x)
            labels += own
        x, part = np.concatenate(parts), len(labels) // 4
        array, names, problem = measured_labels(self.name, labels, range(len(x)), self.names)
        ends: dict[Split, slice] = {
            "test": slice(part),
            "valid": slice(part, 2 * part),
            "train": slice(2 * part, None),
        }
        given: dict[Split, np.ndarray] = (
            {} if array is None else {s: array[own] for s, own in ends.items()}
        )
        samples = Samples({split: x[own] for split, own in ends.items()}, given, names, problem)
        return Start(reader, array_data(self.name, samples), 2 * part)

    def epochs(self, batch: int, first: int, part: slice) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches in the order of the rows, and their conditions or None, without an end.

        Args:
            batch: rows of a batch.
            first: number of the first batch; the rows of those before are passed over.
            part: of each batch that is given.
        """
        reader, kept, _ = self.start
        rows = self._training()
        for _ in islice(rows, first * batch):
            pass
        while True:
            own = list(islice(rows, batch))[part]
            numbers = [number for number, _ in own]
            x, labels = reader.read([item for _, item in own], numbers)
            cond = condition_vectors(kept, labels, numbers) if kept.given else None
            yield kept.scaling.encode(x), cond

    def _training(self) -> Iterator[tuple[int, Any]]:
        epoch = 0
        while True:
            last = -1
            for number, item in islice(self._epoch(epoch), self.start.held, None):
                last = number
                yield number, item
            if last < 0:
                raise UserError(
                    f"{self.name} gives no more than {self.start.held} items when it begins again:"
                    " expected an iterable that gives all of them every time"
                )
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[tuple[int, Any]]:
        """Items with their numbers; their random numbers are a function of the epoch."""
        draws, number = Draws(generator(epoch, Stream.TRAIN, ITEM)), 0
        with draws:
            items = iter(self.items)
        while True:
            with draws:  # it takes as long as a small item
                block = list(islice(items, AHEAD))
            if not block:
                return
            yield from enumerate(block, number)
            number += len(block)

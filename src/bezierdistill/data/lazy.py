"""Data of which items are read when they are asked for: a torch ``Dataset``, a table of Arrow, a
mapped file. What it takes to know them is measured on at most :data:`SAMPLE` of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data.base import Split, one_hot, real_rows
from bezierdistill.data.draws import Draws
from bezierdistill.data.items import Change, Reader, condition_vectors, measured_labels
from bezierdistill.data.scaling import Scaling
from bezierdistill.errors import UserError
from bezierdistill.noise import Rows, Stream, indices
from bezierdistill.noise import generator as _draws

FEW, SAMPLE, MAX_BYTES = 64, 2048, 2**28  # items that are measured, and bytes of them
BLOCK = 256  # items that are read at once
ITEM = 1003  # what a generator of a stream is for: draws within an item


class Part(NamedTuple):
    """A split: items of a data set that has ``items[k]``, or ``items.__getitems__([...])``.

    Args:
        items: the data set.
        rows: which of its items, ``(N,)``.
        labels: all labels of the data set, whole numbers, where they are known without its items.
        fixed: whether items are the same whenever they are read.
    """

    items: Any
    rows: np.ndarray
    labels: np.ndarray | None = None
    fixed: bool = False

    def get(self, rows: np.ndarray) -> list[Any]:
        """Items of the split."""
        numbers = self.rows[rows].tolist()
        together = getattr(self.items, "__getitems__", None)
        return together(numbers) if together else [self.items[number] for number in numbers]


class Measured(NamedTuple):
    """What is known of data once some of the items have been read."""

    reader: Reader
    scaling: Scaling
    labels: np.ndarray | None
    names: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class LazyData:
    """Finite real samples that are read when they are asked for.

    What an item draws from the global generators of torch, numpy and Python (augmentations) is a
    function of what it is read for: of the batch in training, of the row elsewhere.

    Args:
        name: what the user called it.
        reader: from items to arrays.
        parts: the items of every split.
        names: of the classes, in the order of their numbers, where they are known.
        problem: why labels that are there cannot be used.
        labelled: whether labels that are there are conditions.
    """

    name: str
    reader: Reader
    parts: Mapping[Split, Part]
    names: tuple[str, ...] = ()
    problem: str = ""
    labelled: bool = True

    def changed(self, name: str, change: Change) -> LazyData:
        """A view: every sample changed as it is read."""
        reader = replace(self.reader, name=name, changes=(*self.reader.changes, change))
        return replace(self, name=name, reader=reader)

    def only(self, name: str, label: int) -> LazyData:
        """The samples of one class, without conditions.

        Raises:
            UserError: if labels are not known without reading all items.
        """
        parts: dict[Split, Part] = {}
        for split, part in self.parts.items():
            if part.labels is None:
                told = f"{name} asks for a class, {self.name} tells labels item by item"
                raise UserError(f"{told}: expected targets, or a data set of that class")
            parts[split] = part._replace(rows=part.rows[part.labels[part.rows] == label])
            if not len(parts[split].rows):
                raise UserError(f"{name} has no {split} samples, expected some of each split")
        parts = {split: part._replace(labels=None) for split, part in parts.items()}
        return replace(self, name=name, parts=parts, names=(), labelled=False)

    @cached_property
    def _measured(self) -> Measured:
        part = self.parts["train"]
        order = np.random.default_rng(0).permutation(len(part.rows))[:SAMPLE]
        rows = np.sort(order[:FEW])
        with Draws(_draws(0, Stream.TRAIN, ITEM)):
            reader, x, labels = self.reader.fitted(part.get(rows), part.rows[rows].tolist())
            known = part.labels is not None or self.names or labels[0] is None or not self.labelled
            if x.dtype != np.uint8 or not known:
                rows = np.sort(order[: max(FEW, MAX_BYTES // x[0].nbytes)])
                x, labels = reader.read(part.get(rows), part.rows[rows].tolist())
        scaling, problem = Scaling.measure(x), self.problem
        if part.labels is not None:
            return Measured(reader, scaling, part.labels[part.rows], self.names)
        if problem or not self.labelled:
            return Measured(reader, scaling, None, (), problem)
        found = measured_labels(self.name, labels, part.rows[rows].tolist(), self.names)
        return Measured(reader, scaling, *found)

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Data`."""
        like = self._measured.reader.like
        assert like is not None
        return tuple(self.scaling.encode(like[None]).shape[1:])

    @property
    def scaling(self) -> Scaling:
        """See :class:`Data`."""
        return self._measured.scaling

    @property
    def class_names(self) -> tuple[str, ...]:
        """See :class:`Data`."""
        return self._class_names

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        own = self._measured
        if own.problem:
            raise UserError(own.problem)
        if own.labels is None or own.labels.ndim == 2:
            return ()
        known = [part.labels for part in self.parts.values() if part.labels is not None]
        most = max(int(labels.max()) for labels in [own.labels, *known])
        return own.names or tuple(map(str, range(1 + most)))

    @property
    def classes(self) -> int:
        """See :class:`Data`."""
        return len(self.class_names)

    @property
    def frequencies(self) -> tuple[float, ...] | None:
        """See :class:`Data`; where labels are not known without the items, of some of these."""
        if not self.classes or self._measured.labels is None:
            return None
        counts = np.bincount(self._measured.labels, minlength=self.classes)
        return tuple((counts / counts.sum()).tolist())

    @property
    def condition_size(self) -> int:
        """See :class:`Data`."""
        labels = self._measured.labels
        return self.classes or (0 if labels is None else labels.shape[1])

    @property
    def fingerprint(self) -> str:
        """For :class:`~bezierdistill.objects.Named`: data of a name are the same."""
        return self.name

    def count(self, split: Split) -> int:
        """See :class:`Data`."""
        return len(self.parts[split].rows)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        rows = torch.randint(self.count("train"), (count,), generator=generator).numpy()
        with Draws(_draws(zlib.crc32(rows.tobytes()), Stream.TRAIN, ITEM)):
            x, labels = self._read("train", rows)
        return self.scaling.encode(x), self._conditions("train", rows, labels)

    def take(self, rows: Rows, seed: int, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        chosen = indices(seed, stream, rows, self.count("train"))
        x, labels = self._apart("train", chosen, seed, stream, np.asarray(rows))
        return self.scaling.encode(x), self._conditions("train", chosen, labels)

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        rows = real_rows(self, count, seed, split)
        return self.scaling.encode(self._apart(split, rows, 0, Stream.JUDGE, rows)[0])

    def conditions(self, count: int, seed: int, split: Split) -> Tensor | None:
        """See :class:`Data`."""
        rows, labels = real_rows(self, count, seed, split), list[Any]()
        if self.condition_size and self.parts[split].labels is None:
            labels = self._apart(split, rows, 0, Stream.JUDGE, rows)[1]
        return self._conditions(split, rows, labels)

    def _read(self, split: Split, rows: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        part = self.parts[split]
        return self._measured.reader.read(part.get(rows), part.rows[rows].tolist())

    def _apart(
        self, split: Split, rows: np.ndarray, seed: int, stream: Stream, places: np.ndarray
    ) -> tuple[np.ndarray, list[Any]]:
        """Rows, each by itself: what an item draws is a function of its place alone."""
        like = self._measured.reader.like
        assert like is not None
        x, labels = np.empty((len(rows), *like.shape), like.dtype), list[Any]()
        step = BLOCK if self.parts[split].fixed else 1
        with Draws(_draws(seed, stream, ITEM)) as draws:
            for k in range(0, len(rows), step):
                draws.begin(_draws(seed, stream, ITEM, int(places[k])))
                x[k : k + step], own = self._read(split, rows[k : k + step])
                labels += own
        return x, labels

    def _conditions(self, split: Split, rows: np.ndarray, labels: list[Any]) -> Tensor | None:
        part, own = self.parts[split], self._measured
        if own.labels is None:
            return None  # none, or none that can be used
        if part.labels is not None:
            return one_hot(torch.from_numpy(part.labels[part.rows[rows]]), self.classes)
        return condition_vectors(self, labels, part.rows[rows].tolist())

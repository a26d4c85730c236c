"""Data that are given as Python objects: arrays, tensors, a tuple ``(x, labels)``, a torch
``Dataset`` (indexed or iterable), a ``DataLoader``, a table of ``datasets``; and dictionaries of
them by split.

Arrays and tensors are kept in memory (:class:`~bezierdistill.data.base.ArrayData`), indexed data
are read when they are asked for (:class:`~bezierdistill.data.lazy.LazyData`), others as they come
(:class:`~bezierdistill.data.stream.StreamData`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils import data as torch_data

from bezierdistill import objects
from bezierdistill.data.base import ArrayData, Data, Split
from bezierdistill.data.hub import find_columns, is_table, read_table
from bezierdistill.data.items import Reader, as_array, parts_of
from bezierdistill.data.labels import number_classes
from bezierdistill.data.lazy import LazyData, Part
from bezierdistill.data.loaders import (
    Collated,
    Unbatched,
    Zipped,
    few_items,
    of_loader,
    told_labels,
    told_names,
)
from bezierdistill.data.reading import WORDS, checked, with_conditions
from bezierdistill.data.splits import MIN_SAMPLES, array_data, hold_out
from bezierdistill.data.stream import StreamData
from bezierdistill.data.toys import EndlessData
from bezierdistill.errors import UserError
from bezierdistill.objects import Named

DATA = (ArrayData, EndlessData, LazyData, StreamData)


@dataclass(frozen=True)
class Given:
    """Data as an object, and where its items have samples and labels; :class:`Named` holds it.

    Args:
        value: the object.
        key: where items that are dictionaries, or a table, have samples.
        labels: where they have labels.
    """

    value: Any
    key: str | None = None
    labels: str | None = None

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return type(self.value).__name__

    @cached_property
    def fingerprint(self) -> str:
        """A digest: of all numbers in memory; else of the type, the length and a few items, unless
        these are others when they are read again.
        """
        value, found = self.value, sha256(f"{self.key} {self.labels} ".encode())
        if not isinstance(value, DATA) and not _in_memory(value):
            size = length_hint(value)
            found.update(f"{type(value).__module__} {type(value).__qualname__} {size} ".encode())
            items = [[few_items(own) for own in _by_split(value).values()] for _ in range(2)]
            first, second = map(objects.fingerprint, items)
            value = first if first == second else ""
        found.update(objects.fingerprint(value).encode())
        return found.hexdigest()


def name_data(source: object, key: str | None = None, labels: str | None = None) -> str:
    """Data as text, which :func:`~bezierdistill.data.load_data` takes: objects by their names.

    Args:
        source: text, or an object.
        key: see :class:`Given`; in text ``@key=NAME``.
        labels: likewise, ``@labels=NAME``.
    """
    if not isinstance(source, str | Path):
        return Named(Given(source, key, labels))
    name = source if isinstance(source, Named) else str(source)
    more = {"key": key, "labels": labels}
    found = "".join(f"@{word}={place}" for word, place in more.items() if place is not None)
    return name + found if found else name


def load_given(name: str, given: Given) -> Data:
    """A data set of an object.

    Raises:
        UserError: if it is no data; on what its items are once they are read.
    """
    if isinstance(given.value, DATA):
        return given.value
    opened: dict[Split, Arrays | Stored | StreamData] = {
        split: _opened(name, source, given) for split, source in _by_split(given.value).items()
    }
    arrays: dict[Split, Arrays]
    stored: dict[Split, Stored]
    arrays = {split: own for split, own in opened.items() if isinstance(own, Arrays)}
    stored = {split: own for split, own in opened.items() if isinstance(own, Stored)}
    if len(arrays) == len(opened):
        return _arrays(name, arrays)
    if len(stored) == len(opened):
        return _lazy(name, stored)
    first = opened["train"]
    if isinstance(first, StreamData) and len(opened) == 1:
        return first
    raise UserError(f"{name} has splits of several kinds, or that are iterables: expected one kind")


class Arrays(NamedTuple):
    """Samples and labels (or None) in memory."""

    x: np.ndarray
    labels: np.ndarray | None


class Stored(NamedTuple):
    """A map-style data set, how it is read, and what it tells without its items."""

    items: Any
    reader: Reader
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    problem: str = ""
    fixed: bool = False


def _by_split(value: Any) -> dict[Split, Any]:
    """A dictionary by split; anything else is to train on."""
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(str(k).lower() in WORDS for k in value)
    ):
        return {"train": value}
    sources: dict[Split, Any] = {WORDS[str(word).lower()]: own for word, own in value.items()}
    if "train" not in sources:
        raise UserError(f"data have the splits {', '.join(map(str, value))}, expected train")
    return sources


def _in_memory(value: Any) -> bool:
    """Whether it is arrays and tensors, or a tuple or dictionary of them."""
    if isinstance(value, tuple | Mapping) and value:
        return all(map(_in_memory, value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, torch_data.TensorDataset):
        return True
    mapped = isinstance(value, np.memmap)
    return not mapped and (isinstance(value, np.ndarray | Tensor) or hasattr(value, "__dlpack__"))


def _opened(name: str, value: Any, given: Given) -> Arrays | Stored | StreamData:
    """What an object is, for one split."""
    key, labels = given.key, given.labels
    value = value.tensors if isinstance(value, torch_data.TensorDataset) else value
    if _in_memory(value):
        x, y = parts_of(value, key, labels, name)
        return Arrays(as_array(x), None if y is None else as_array(y))
    reader = Reader(name, key, labels)
    if isinstance(value, tuple) and len(value) == 2:
        value = Zipped(*value)
    if isinstance(value, torch_data.DataLoader):
        value = of_loader(value, key, labels, name)
        reader = Reader(name) if isinstance(value, Unbatched | Collated) else reader
    if is_table(value):
        columns = find_columns(value, key, labels, name)
        reader = Reader(name, columns.key, columns.labels, dtype=columns.dtype)
        if not hasattr(value, "__len__"):
            return StreamData(name, value, reader, columns.names)
        items, found = read_table(value, columns)
        reader = reader if found is None else replace(reader, labels=None)  # that column is read
        return Stored(items, reader, found, columns.names, columns.problem(name), True)
    sized = hasattr(value, "__len__") and not isinstance(value, torch_data.IterableDataset)
    if sized and hasattr(value, "__getitem__") and not isinstance(value, str):
        found = told_labels(value, reader.key, reader.labels)
        fixed = isinstance(value, Zipped | np.memmap)
        return Stored(value, reader, found, told_names(value), fixed=fixed)
    if not hasattr(value, "__iter__") or isinstance(value, str | set) or iter(value) is value:
        told = f"{name} is a {type(value).__name__} without a length, or one that is read once"
        raise UserError(
            f"{told}: expected an array, a tensor, (x, labels), a Dataset, a DataLoader"
        )
    return StreamData(name, value, reader, told_names(getattr(value, "dataset", value)))


def _arrays(name: str, sources: dict[Split, Arrays]) -> ArrayData:
    x: dict[Split, np.ndarray] = {s: checked(name, source.x) for s, source in sources.items()}
    given: dict[Split, np.ndarray]
    given = {s: source.labels for s, source in sources.items() if source.labels is not None}
    return array_data(name, with_conditions(name, x, given))


def _lazy(name: str, sources: dict[Split, Stored]) -> LazyData:
    first = sources["train"]
    rows: dict[Split, np.ndarray]
    rows = {split: np.arange(len(source.items)) for split, source in sources.items()}
    if len(rows["train"]) < MIN_SAMPLES:
        told = f"{name} holds {len(rows['train'])} items to train on"
        raise UserError(f"{told}, expected {MIN_SAMPLES} or more")
    hold_out(rows)
    labels: dict[Split, np.ndarray]
    labels = {s: source.labels for s, source in sources.items() if source.labels is not None}
    names, problem = first.names, first.problem
    if labels.keys() == sources.keys():
        try:
            labels, names = number_classes(labels, names)
        except UserError as error:
            labels, problem = {}, f"{name}: {error}"
    parts: dict[Split, Part] = {}
    for split, own in rows.items():
        source: Split = split if split in sources else "train"
        stored = sources[source]
        parts[split] = Part(stored.items, own, labels.get(source), stored.fixed)
    return LazyData(name, first.reader, parts, names, problem)

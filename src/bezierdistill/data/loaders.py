"""Data sets of torch, and loaders of them: what they tell of their labels without being read, and
what tells one from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch.utils import data as torch_data

from bezierdistill.data.draws import Draws
from bezierdistill.data.images import given_pixels
from bezierdistill.data.items import as_array, parts_of, rows_of
from bezierdistill.errors import UserError
from bezierdistill.noise import Stream, generator

PLAIN = (torch_data.SequentialSampler, torch_data.RandomSampler)
FEW = 8  # items that tell one data set from another
CHECKED = 4  # items whose labels are compared with those that a data set tells


def told_names(data: Any) -> tuple[str, ...]:
    """Names of the classes of a data set: of ``classes`` (or as many numbers), ``class_to_idx``."""
    if isinstance(data, torch_data.Subset):
        return told_names(data.dataset)
    if getattr(data, "target_transform", None) is not None:
        return ()
    names, places = getattr(data, "classes", None), getattr(data, "class_to_idx", None)
    if names is None and isinstance(places, Mapping):
        names = sorted(places, key=lambda name: places[name])
    names = range(names) if isinstance(names, int) else names
    return tuple(map(str, names)) if isinstance(names, list | tuple | range | np.ndarray) else ()


def told_labels(data: Any, key: str | None, labels: str | None) -> np.ndarray | None:
    """All labels ``(N,)`` of a data set, of ``targets`` or ``labels``; None if it does not tell
    them, or not as its items have them.
    """
    found = _told(data)
    if found is None:
        return None
    for number in np.linspace(0, len(data) - 1, CHECKED).astype(int).tolist():
        with Draws(generator(0, Stream.TRAIN, number)):
            own = parts_of(data[number], key, labels, f"item {number}")[1]
        if own is None or not np.array_equal(as_array(own).reshape(-1), found[number : number + 1]):
            return None
    return found


def _told(data: Any) -> np.ndarray | None:
    if isinstance(data, torch_data.Subset):
        found = _told(data.dataset)
        return None if found is None else found[np.asarray(data.indices)]
    told = getattr(data, "targets", getattr(data, "labels", None))
    if told is None or callable(told) or not len(data):
        return None
    found = as_array(told)
    return found if found.shape == (len(data),) and found.dtype.kind in "uibU" else None


def few_items(value: Any) -> list[Any]:
    """A few items of data that are not in memory, images as their pixels."""
    if isinstance(value, torch_data.DataLoader):
        value = value.dataset
    if isinstance(value, tuple):
        return [few_items(own) for own in value]
    with Draws(generator(0, Stream.TRAIN)):
        if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
            places = dict.fromkeys(np.linspace(0, len(value) - 1, FEW).astype(int).tolist())
            return [_plain(value[place]) for place in places if len(value)]
        return [_plain(item) for item in islice(value, FEW)] if hasattr(value, "__iter__") else []


def _plain(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {key: _plain(own) for key, own in item.items()}
    if isinstance(item, tuple | list):
        return [_plain(own) for own in item]
    pixels = given_pixels(item, False)
    return item if pixels is None else pixels


def of_loader(
    loader: torch_data.DataLoader[Any], key: str | None, labels: str | None, name: str
) -> Any:
    """The data set of a loader, with its ``collate_fn``; or its rows as they come, where the loader
    has an order of its own.
    """
    batches = loader.batch_sampler
    single = loader.batch_size is None and batches is None
    sampler = loader.sampler if single else getattr(batches, "sampler", None)
    if (
        type(sampler) not in PLAIN
        or not (single or type(batches) is torch_data.BatchSampler)
        or getattr(sampler, "replacement", False)
        or len(sampler) != len(loader.dataset)  # pyright: ignore[reportArgumentType]
    ):
        return loader if single else Unbatched(loader, key, labels, name)
    usual = torch_data.default_convert if single else torch_data.default_collate
    if loader.collate_fn is usual:
        return loader.dataset
    return Collated(loader.dataset, loader.collate_fn, single, key, labels, name)


@dataclass(frozen=True)
class Unbatched:
    """The rows of a loader's batches, as pairs of a sample and its label.

    Args:
        loader: an iterable of batches.
        key: where batches that are mappings have samples.
        labels: where they have labels.
        name: of the data, for messages.
    """

    loader: torch_data.DataLoader[Any]
    key: str | None
    labels: str | None
    name: str

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader):
            yield from rows_of(batch, self.key, self.labels, f"batch {number} of {self.name}")


@dataclass(frozen=True)
class Collated:
    """The items of a data set as a ``collate_fn`` makes them.

    Args:
        dataset: the data set.
        collate: of a list of items, or of one.
        single: whether it takes one.
        key: where what it makes has samples, if that is a mapping.
        labels: where it has labels.
        name: of the data, for messages.
    """

    dataset: Any
    collate: Callable[[Any], Any]
    single: bool
    key: str | None
    labels: str | None
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        """Items as pairs of a sample and its label."""
        items, what = [self.dataset[number] for number in numbers], f"a batch of {self.name}"
        if self.single:
            return [parts_of(self.collate(item), self.key, self.labels, what) for item in items]
        rows = rows_of(self.collate(items), self.key, self.labels, what)
        if len(rows) != len(items):
            told = f"the collate_fn of {self.name} makes {len(rows)} rows of {len(items)} items"
            raise UserError(f"{told}, expected as many")
        return rows


@dataclass(frozen=True)
class Zipped:
    """Samples and labels, of which one is a mapped file.

    Args:
        x: samples ``(N, ...)``.
        targets: as many labels.
    """

    x: Any
    targets: Any

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> Any:
        return self.x[number], self.targets[number]

"""What a data set is here: training batches, and distinct real samples of three disjoint splits,
with their conditions if there are any.

Whatever a data set gives belongs to a :class:`~bezierdistill.noise.Stream`: training draws its
batches from its own generator, :meth:`Data.take` from the stream that it is told, and
:meth:`Data.real` from ``JUDGE`` (``train`` for the floor, ``test``) or ``SEARCH`` (``valid``), so
that no draw of an endless data set is trained on and evaluated against.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.data.scaling import Scaling
from bezierdistill.errors import UserError
from bezierdistill.noise import Rows, Stream, generator, indices

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REAL = 1001  # what a generator of a stream is for


def real_generator(seed: int, split: Split) -> torch.Generator:
    """Draws what :meth:`Data.real` gives of a split."""
    stream = Stream.SEARCH if split == "valid" else Stream.JUDGE
    return generator(seed, stream, REAL, SPLITS.index(split))


class Data(Protocol):
    """Real samples; all that is given is in model units (see
    :class:`~bezierdistill.data.scaling.Scaling`), conditions are vectors, class labels one-hot.
    """

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state: ``(D,)`` or ``(C, H, W)``."""
        ...

    @property
    def scaling(self) -> Scaling:
        """The way to model units."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty without class labels.

        Raises:
            UserError: if there are labels or conditions that cannot be used.
        """
        ...

    @property
    def classes(self) -> int:
        """Number of classes; 0 without class labels. Raises as :attr:`class_names`."""
        ...

    @property
    def frequencies(self) -> tuple[float, ...] | None:
        """How often each class occurs in the training split; None without class labels."""
        ...

    @property
    def condition_size(self) -> int:
        """Numbers of a condition; 0 if states have none. Raises as :attr:`class_names`."""
        ...

    def count(self, split: Split) -> int | None:
        """Number of distinct states of a split; None if there is no end of them."""
        ...

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Independent training states ``(count, *shape)``, and their conditions or None."""
        ...

    def take(self, rows: Rows, seed: int, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """Rows of an endless table of training states, each a function of the seed, the stream and
        its index alone, and their conditions or None.
        """
        ...

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """Distinct states ``(count, *shape)`` of a split, a function of the seed alone.

        Raises:
            UserError: if the split has fewer.
        """
        ...

    def conditions(self, count: int, seed: int, split: Split) -> Tensor | None:
        """The conditions ``(count, condition_size)`` of the states that :meth:`real` gives."""
        ...


def real_rows(data: Data, count: int, seed: int, split: Split) -> np.ndarray:
    """The rows of a split of finite data that :meth:`Data.real` gives."""
    size = data.count(split) or 0
    if count > size:
        raise UserError(f"{count} {split} samples of {data.name} asked for, it has {size}")
    return torch.randperm(size, generator=real_generator(seed, split))[:count].numpy()


@dataclass(frozen=True)
class ArrayData:
    """Finite real samples in memory.

    Args:
        name: what the user called it.
        train: the training split, in original units, ``(N, ...)``.
        valid: the split to choose settings by.
        test: the split to evaluate against.
        scaling: the way to model units.
        given: the conditions of each split: labels ``(N,)`` of integers, or vectors ``(N, C)`` of
            floats; empty if there are none.
        names: of the classes, in the order of their numbers; without them they are called by their
            numbers.
        problem: why labels or conditions that are there cannot be used; raised when they are asked
            for.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    scaling: Scaling
    given: Mapping[Split, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    problem: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Data`."""
        return tuple(self.scaling.encode(self.train[:1]).shape[1:])

    @property
    def class_names(self) -> tuple[str, ...]:
        """See :class:`Data`."""
        return self._class_names

    @cached_property
    def _class_names(self) -> tuple[str, ...]:
        if self.problem:
            raise UserError(self.problem)
        if not self.given or self.given["train"].ndim == 2:
            return ()
        most = max(int(labels.max()) for labels in self.given.values())
        return self.names or tuple(map(str, range(1 + most)))

    @property
    def classes(self) -> int:
        """See :class:`Data`."""
        return len(self.class_names)

    @property
    def frequencies(self) -> tuple[float, ...] | None:
        """See :class:`Data`."""
        if not self.classes:
            return None
        counts = np.bincount(self.given["train"], minlength=self.classes)
        return tuple((counts / counts.sum()).tolist())

    @property
    def condition_size(self) -> int:
        """See :class:`Data`."""
        return self.classes or (self.given["train"].shape[1] if self.given else 0)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all samples and conditions, for :class:`~bezierdistill.objects.Named`."""
        found = hashlib.sha256(repr((self.scaling, self.names, self.problem)).encode())
        for split in SPLITS:
            for own in (self.original(split), *([self.given[split]] if self.given else [])):
                found.update(f"{own.dtype} {own.shape}".encode())
                found.update(np.ascontiguousarray(own).tobytes())
        return found.hexdigest()

    def count(self, split: Split) -> int:
        """See :class:`Data`."""
        return len(self.original(split))

    def original(self, split: Split) -> np.ndarray:
        """All states of a split in original units."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        rows = torch.randint(len(self.train), (count,), generator=generator).numpy()
        return self._at("train", rows)

    def take(self, rows: Rows, seed: int, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        return self._at("train", indices(seed, stream, rows, len(self.train)))

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        return self.scaling.encode(self.original(split)[real_rows(self, count, seed, split)])

    def conditions(self, count: int, seed: int, split: Split) -> Tensor | None:
        """See :class:`Data`."""
        return self._vectors(split, real_rows(self, count, seed, split))

    def _at(self, split: Split, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return self.scaling.encode(self.original(split)[rows]), self._vectors(split, rows)

    def _vectors(self, split: Split, rows: np.ndarray) -> Tensor | None:
        if not self.given:
            return None
        own = torch.from_numpy(self.given[split][rows])
        return own.float() if own.ndim == 2 else one_hot(own.long(), self.classes)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels ``(N,)`` as float32 vectors ``(N, classes)``.

    Raises:
        UserError: if a label is not in ``0 .. classes - 1``.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        low, high = int(labels.min()), int(labels.max())
        raise UserError(f"labels run from {low} to {high}, expected 0 to {classes - 1}")
    return functional.one_hot(labels.long(), classes).float()


def rescaled(data: Data, scaling: Scaling) -> Data:
    """Data in the model units of somebody else, such as a user's own module."""
    return data if data.scaling == scaling else cast(Data, _Rescaled(data, scaling))


class _Rescaled:
    def __init__(self, data: Any, scaling: Scaling) -> None:
        scaling.check(data.shape)
        self.data, self.scaling = data, scaling

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def _moved(self, x: Tensor) -> Tensor:
        return self.scaling.encode(self.data.scaling.decode(x))

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        x, cond = self.data.batch(count, generator)
        return self._moved(x), cond

    def take(self, rows: Rows, seed: int, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        x, cond = self.data.take(rows, seed, stream)
        return self._moved(x), cond

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        return self._moved(self.data.real(count, seed, split))

    @property
    def epochs(self) -> Callable[..., Iterator[tuple[Tensor, Tensor | None]]]:
        """Of data that come one by one; others have none."""
        epochs = self.data.epochs
        return lambda *which: ((self._moved(x), cond) for x, cond in epochs(*which))

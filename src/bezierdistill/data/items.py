"""Items of data that are given as Python objects: samples, pairs of a sample and its label, or
dictionaries; of arrays, tensors, numbers or PIL images; read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data.base import Data, one_hot
from bezierdistill.data.images import given_pixels
from bezierdistill.data.labels import check_vectors, number_classes, parse_labels
from bezierdistill.data.reading import LABELS, MAX_NUMBER, SAMPLES, VECTORS
from bezierdistill.errors import UserError

X_KEYS = ("x", "image", "img", "pixel_values", "latent", "latents", *SAMPLES)
LABEL_KEYS = (*LABELS, "class", "cls", *VECTORS)
Change = Callable[[np.ndarray], np.ndarray]


def find_key(keys: Sequence[str], usual: Sequence[str], asked: str | None, what: str) -> str | None:
    """The key that is asked for, or the first of the usual ones, in any case.

    Raises:
        UserError: if the one that is asked for is not there.
    """
    if asked is not None:
        if asked not in keys:
            known = ", ".join(map(str, keys))[:200]
            raise UserError(f"{what} holds no {asked!r}, expected one of {known}")
        return asked
    known = {key.lower(): key for key in sorted(keys, reverse=True)}
    return next((known[word] for word in usual if word in known), None)


def parts_of(item: Any, key: str | None, labels: str | None, what: str) -> tuple[Any, Any]:
    """The sample and the label (or None) of an item, a batch, or a whole data set.

    Args:
        item: the sample alone; a tuple or list of it and its label; or a mapping.
        key: where a mapping has samples; by default a usual name.
        labels: where it has labels, likewise.
        what: what to call the item in messages.

    Raises:
        UserError: if it has no such key, or no key is found.
    """
    if isinstance(item, Mapping):
        keys = [name for name in item if isinstance(name, str)]
        place = find_key(keys, X_KEYS, key, what)
        if place is None:
            told = f"{what} holds {', '.join(keys)[:200] or 'nothing'}, expected {X_KEYS[0]}"
            raise UserError(f"{told}, {X_KEYS[1]} or another usual name, or key=NAME (text: @key=)")
        label = find_key(keys, LABEL_KEYS, labels, what)
        return item[place], None if label is None else item[label]
    if key is not None or labels is not None:
        told = f"{what} is a {type(item).__name__}, without names"
        raise UserError(f"{told}: expected a dictionary for key {key or labels!r}")
    if isinstance(item, tuple | list) and item and not _is_number(item[0]):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def rows_of(batch: Any, key: str | None, labels: str | None, what: str) -> list[Any]:
    """The rows of a batch as pairs of a sample and its label; see :func:`parts_of`.

    Raises:
        UserError: if it has not as many labels as samples.
    """
    x, label = parts_of(batch, key, labels, what)
    if not hasattr(x, "__len__") or (label is not None and len(label) != len(x)):
        told = f"{what} has {getattr(label, 'shape', type(label).__name__)} labels for samples of"
        told = f"{told} {getattr(x, 'shape', type(x).__name__)}"
        raise UserError(f"{told}, expected a row for every item, and as many labels")
    return [(x[k], None if label is None else label[k]) for k in range(len(x))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def as_array(value: Any) -> np.ndarray:
    """Numbers of any kind as an array; a tensor on the processor shares its memory."""
    if isinstance(value, Tensor):
        own = value.detach().cpu()
        return (own.float() if own.dtype == torch.bfloat16 else own).numpy()
    return np.asarray(value)


@dataclass(frozen=True)
class Reader:
    """From items to arrays of one shape.

    Args:
        name: of the data, for messages.
        key: where items that are mappings have samples; by default a usual name.
        labels: where they have labels, likewise.
        changes: of every sample (views), before it has to have the shape of the others.
        colour: make grey PIL images colour ones.
        dtype: the number type that samples are of, if items have lost it.
        like: an array of the shape, and of bytes or not, that all samples have.
    """

    name: str
    key: str | None = None
    labels: str | None = None
    changes: tuple[Change, ...] = ()
    colour: bool = False
    dtype: str | None = None
    like: np.ndarray | None = None

    def read(self, items: Sequence[Any], numbers: Sequence[int]) -> tuple[np.ndarray, list[Any]]:
        """Samples ``(N, ...)`` in original units, and their labels as they are.

        Args:
            items: one or more.
            numbers: of the items, for messages.

        Raises:
            UserError: if one has no such key, holds no finite numbers, or has another shape.
        """
        pairs = [
            parts_of(item, self.key, self.labels, f"item {number} of {self.name}")
            for item, number in zip(items, numbers, strict=True)
        ]
        arrays = [self._array(x, k) for (x, _), k in zip(pairs, numbers, strict=True)]
        like = arrays[0] if self.like is None else self.like
        for array, number in zip(arrays, numbers, strict=True):
            if array.shape != like.shape:
                told = f"item {number} of {self.name} has shape {array.shape}, others {like.shape}"
                raise UserError(f"{told}: expected one shape, resize them (of images: @16x16)")
            if (array.dtype == np.uint8) != (like.dtype == np.uint8):
                told = f"item {number} of {self.name} holds {array.dtype}, others {like.dtype}"
                raise UserError(f"{told}: expected bytes in all, or in none")
        x = np.stack(arrays)
        if x.dtype.kind == "f" and not (np.abs(x) <= MAX_NUMBER).all():
            bad = np.flatnonzero(~(np.abs(x) <= MAX_NUMBER).reshape(len(x), -1).all(1))[0]
            told = f"{self.name} has NaN, infinite or too large numbers in item {numbers[bad]}"
            raise UserError(f"{told}: remove or fill them")
        return x, [label for _, label in pairs]

    def _array(self, value: Any, number: int) -> np.ndarray:
        image = given_pixels(value, self.colour)
        try:
            array = as_array(value) if image is None else image
        except ValueError as error:  # rows of several lengths
            raise UserError(f"item {number} of {self.name} is no array: {error}") from None
        if array.dtype.kind not in "uif" or array.ndim == 0 or 0 in array.shape:
            told = f"item {number} of {self.name} is {type(value).__name__} ({array.dtype} of shape"
            raise UserError(f"{told} {array.shape}), expected numbers (D,) or an image")
        array = array if self.dtype is None else array.astype(self.dtype)
        for change in self.changes:
            array = change(array)
        return array

    def fitted(
        self, items: Sequence[Any], numbers: Sequence[int]
    ) -> tuple[Reader, np.ndarray, list[Any]]:
        """A reader for the shape that some items have, in which all images are grey or all colour;
        and what it reads of these items, see :meth:`read`.
        """
        own = self
        try:
            x, labels = self.read(items, numbers)
        except UserError:  # PIL images of both kinds, or a true problem
            own = replace(self, colour=True)
            x, labels = own.read(items, numbers)
        return replace(own, like=x[0], colour=own.colour or x.ndim == 4), x, labels


def label_array(labels: Sequence[Any], numbers: Sequence[int], name: str) -> np.ndarray:
    """Labels of items as one array: whole numbers or text ``(N,)``, or float vectors ``(N, C)``.

    Raises:
        UserError: if they are none of these.
    """
    found: list[np.ndarray] = []
    for label, number in zip(labels, numbers, strict=True):
        try:
            own = as_array(label)
        except (ValueError, TypeError):
            own = np.empty(0)
        own = own[0] if own.shape == (1,) and own.dtype.kind in "uib" else own
        number_or_text = own.ndim == 0 and own.dtype.kind in "uibU"
        fits = number_or_text or (own.ndim == 1 and own.dtype.kind == "f" and own.size > 0)
        alike = not found or (own.shape, own.dtype.kind == "U") == (
            found[0].shape,
            found[0].dtype.kind == "U",
        )
        if not fits or not alike:
            told = f"{name} has the label {str(label)[:60]!r} in item {number}"
            raise UserError(f"{told}, expected all whole numbers, text, or vectors of floats")
        found.append(own)
    return np.asarray(found)


def measured_labels(
    name: str, labels: Sequence[Any], numbers: Sequence[int], names: tuple[str, ...]
) -> tuple[np.ndarray | None, tuple[str, ...], str]:
    """Labels of items as numbers of classes ``(N,)`` or vectors ``(N, C)``, None if there are none;
    the names of classes; and why labels that are there cannot be used.
    """
    if all(label is None for label in labels):
        return None, (), ""
    try:
        array = label_array(labels, numbers, name)
        if array.ndim == 2:
            return check_vectors("train", array), (), ""
        found, names = number_classes({"train": array}, names)
        return found["train"], names, ""
    except UserError as error:
        told = str(error)
    return None, (), told if told.startswith(name) else f"{name}: {told}"


def condition_vectors(data: Data, labels: Sequence[Any], numbers: Sequence[int]) -> Tensor | None:
    """The conditions ``(N, condition_size)`` that labels of items are; None if the data have none.

    Raises:
        UserError: if one is no class, or no vector, of the data.
    """
    if not data.condition_size:
        return None
    array = label_array(labels, numbers, data.name)
    if array.ndim == 2 and not data.classes and array.shape[1] == data.condition_size:
        return torch.from_numpy(check_vectors("train", array))
    found: list[int] = []
    for label, number in zip(array.tolist(), numbers, strict=True):
        try:
            found += parse_labels([label], data.class_names)
        except (UserError, TypeError):
            told = f"{data.name} has the label {str(label)[:60]!r} in item {number}"
            known = f"one of {data.classes} classes" if data.classes else "a vector as in others"
            raise UserError(
                f"{told}, expected {known}: let its attribute classes name all"
            ) from None
    return one_hot(torch.tensor(found), data.classes)

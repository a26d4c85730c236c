"""Class labels: their numbers and names, and what a file may hold as labels or conditions.

A class has a number, from 0 up, and a name: its folder's, or the number as text. Names are put in
the order of the numbers in them, so that ``2`` comes before ``10``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bezierdistill.data.base import Split
from bezierdistill.errors import UserError
from bezierdistill.words import listed

MAX_CLASSES = 100_000
NUMBER = re.compile(r"([0-9]+)")


def parse_labels(labels: Sequence[str | int], names: Sequence[str]) -> list[int]:
    """Numbers of classes that are given by number or, as text, by name or number.

    A name goes before a number. Where all names are numbers (folders ``1`` to ``10``), text is
    compared with these by value, and never means a class by its place.

    Args:
        labels: numbers, or text.
        names: of all classes, in the order of their numbers.

    Raises:
        UserError: if there is no such class.

    Example:
        >>> parse_labels(["dogs", "0", 1], ["cats", "dogs"]), parse_labels(["2", 1], ["2", "10"])
        ([1, 0, 1], [0, 1])
    """
    places = {name: number for number, name in enumerate(names)}
    numeric = all(map(NUMBER.fullmatch, names))
    values = {int(name) if numeric else number: number for name, number in places.items()}
    found = []
    for label in labels:
        if isinstance(label, str):
            number = places.get(label, values.get(int(label)) if NUMBER.fullmatch(label) else None)
        else:
            number = int(label) if 0 <= label < len(names) else None
        if number is None:
            more = "" if isinstance(label, str) else f", or a number from 0 to {len(names) - 1}"
            known = listed(names) or "none at all"
            raise UserError(f"no class {label!r:.80}, expected {known}{more}")
        found.append(number)
    return found


def natural_order(names: Iterable[str]) -> list[str]:
    """Names in alphabetical order, numbers in them in the order of numbers.

    Example:
        >>> natural_order(["10", "2", "set 10", "set 9"])
        ['2', '10', 'set 9', 'set 10']
    """
    return sorted(names, key=lambda name: (list(map(_part, NUMBER.split(name))), name))


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if NUMBER.fullmatch(text) else (-1, text)


def number_classes(
    labels: Mapping[Split, np.ndarray], names: Sequence[str]
) -> tuple[dict[Split, np.ndarray], tuple[str, ...]]:
    """Labels ``(N,)`` of every split as numbers, int64, and the names of the classes if they have
    any.

    Args:
        labels: whole numbers or text, ``(N,)`` or ``(N, 1)``.
        names: of the classes, in the order of their numbers; without them labels that are text are
            names themselves.

    Raises:
        UserError: if they are no labels; the value that is wrong is told.
    """
    flat: dict[Split, np.ndarray] = {
        split: x[:, 0] if x.shape[1:] == (1,) else x for split, x in labels.items()
    }
    if all(x.dtype.kind == "U" for x in flat.values()):
        words = {word for x in flat.values() for word in np.unique(x).tolist()}
        names = names or natural_order(words)
        for split, x in flat.items():
            own, places = np.unique(x, return_inverse=True)
            flat[split] = np.array(parse_labels(own.tolist(), names), np.int64)[places]
    for split, x in flat.items():
        _check(split, x, len(names) or MAX_CLASSES)
        flat[split] = x.astype(np.int64)
    return flat, tuple(names)


def _check(split: Split, x: np.ndarray, classes: int) -> None:
    if x.ndim != 1:
        told = f"{split} labels have shape {x.shape}, expected (N,) or (N, 1)"
        raise UserError(f"{told}: vectors to condition on are floats called conditions")
    if x.dtype.kind not in "uib":
        raise UserError(f"{split} labels are {x.dtype}, {x[0]!r} first, expected whole numbers")
    wrong = np.flatnonzero((x < 0) | (x >= classes))
    if len(wrong):
        told = f"{split} labels have {x[wrong[0]]} in row {wrong[0]}"
        raise UserError(f"{told}, expected 0 to {classes - 1}")


def check_vectors(split: Split, x: np.ndarray) -> np.ndarray:
    """Condition vectors ``(N, C)`` as float32.

    Raises:
        UserError: if they are none; the value that is wrong is told.
    """
    if x.ndim != 2 or x.dtype.kind != "f" or 0 in x.shape:
        told = f"{split} conditions are {x.dtype} of shape {x.shape}"
        raise UserError(f"{told}, expected floats (N, C)")
    wrong = np.flatnonzero(~np.isfinite(x).all(1))
    if len(wrong):
        raise UserError(f"{split} conditions have {x[wrong[0]]} in row {wrong[0]}, expected finite")
    return x.astype(np.float32)

"""From a name or a path to a :class:`~bezierdistill.data.base.Data`.

A path is a file or folder that :mod:`~bezierdistill.data.reading` knows. Where it has no test
split, a quarter is held out; where it has no validation split, an eighth of the training split
(each at most 10,000, by a fixed seed).

What follows an ``@`` changes the data, from left to right:

* ``PATH@key=noto``: the array of that name in a ``.npz``;
* ``PATH@rgba``: the images of a folder with their transparency as a fourth channel, instead of on
  white;
* ``@crop20x20``: the middle 20 rows and 20 columns of images;
* ``@16x16``: images resized to 16 rows and 16 columns;
* ``@rgb``: grey images in three equal channels;
* ``@classcats``, ``@class5``: only the samples of one class, by its name or number;
* ``@pca48``: coordinates on the 48 principal components of the training split, each scaled to unit
  variance like every vector here: real data of a size at which methods can be compared in minutes.

A file or folder that is really called ``set@16x16`` goes before a view.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from bezierdistill.data.base import ArrayData, Data, Split
from bezierdistill.data.images import walk
from bezierdistill.data.reading import Samples, read_file
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.toys import TOYS, load_toy, manifold_sampler
from bezierdistill.data.views import coloured, cropped, only_class, principal, resized
from bezierdistill.errors import UserError

BUILT_IN = ("digits", "manifold", *TOYS)
MAX_HELD_OUT, MIN_SAMPLES = 10_000, 64
VIEW = re.compile(r"pca([1-9]\d{0,3})|class(.+)|(rgb)|(crop)?([1-9]\d{0,3})x([1-9]\d{0,3})")
SOURCE = re.compile(r"(?:@key=([^@]+)|@(rgba))?")


def load_data(name: str) -> Data:
    """Load a data set; the same object as before, unless a file of it has changed.

    Args:
        name: ``digits``, ``manifold`` (16 dimensions) or ``manifoldN`` (N dimensions),
            ``checkerboard``, ``moons``, ``gaussians``, ``spirals``, or a path; with views after an
            ``@`` (module docstring).

    Raises:
        UserError: if there is no such data, or it holds too few samples, other shapes than one, or
            numbers that are not finite.
    """
    if "\0" in name:
        raise UserError(f"no data called {name[:200]!r}, expected a name or a path")
    base = _base(name)
    return _load(name, base, _stamp(base))


def _base(name: str) -> str:
    """The part of a name before its views: the longest path that is there."""
    parts = name.split("@")
    heads = ["@".join(parts[:k]) for k in range(len(parts), 0, -1)]
    return next((head for head in heads if head and os.path.exists(head)), parts[0])


def _stamp(base: str) -> int:
    """A number that changes with a file, or with any file below a folder."""
    found = []
    below = walk(base) if os.path.isdir(base) else ()  # a name with a null byte cannot be walked
    for file in [base, *(f"{here}/{name}" for here, names, _ in below for name in names)]:
        with suppress(OSError, ValueError):  # no file, or one that is being replaced
            state = os.stat(file)
            found.append((file, state.st_ino, state.st_size, state.st_mtime_ns))
    return hash(tuple(sorted(found)))


@lru_cache(maxsize=4)
def _load(name: str, base: str, stamp: int) -> Data:
    """Cached, as every stage loads its data by name and reading can take longer than training."""
    source = SOURCE.fullmatch(name.removeprefix(base))
    if source is not None:
        return _read(name, base, source[1], source[2] is not None)
    whole, _, text = name.rpartition("@")
    view = VIEW.fullmatch(text)
    data = _load(whole, base, stamp)
    if view is None:
        told = f"{name[:200]} asks for the view @{text[:80]}, expected @cropNxN, @NxN, @rgb"
        raise UserError(f"{told}, @classNAME or @pcaN, or @key=NAME or @rgba right after a path")
    if not isinstance(data, ArrayData):
        told = f"{name} asks for a view of {data.name}"
        raise UserError(f"{told}, expected a file, a folder or digits")
    components, label, colour, crop, rows, columns = view.groups()
    if components:
        return principal(data, name, int(components))
    if colour:
        return coloured(data, name)
    if label:
        return only_class(data, name, label)
    return (cropped if crop else resized)(data, name, (int(rows), int(columns)))


def _read(name: str, base: str, key: str | None, alpha: bool) -> Data:
    """A built-in data set, a file or a folder."""
    dimension = re.fullmatch(r"manifold([1-9]\d{0,3})?", name)
    if dimension:
        return load_toy(name, manifold_sampler(int(dimension[1] or 16)))
    if name in TOYS:
        return load_toy(name, TOYS[name])
    if name == "digits":
        return _digits()
    if not os.path.exists(base):
        told = f"no data called {name[:200]!r}: expected one of {', '.join(BUILT_IN)}"
        raise UserError(f"{told}, or the path of a .npz, .npy or folder of images")
    return _array_data(name, read_file(Path(base), key, alpha))


def _array_data(name: str, found: Samples) -> ArrayData:
    x, given = dict(found.x), dict(found.given)
    first = x["train"]
    if len(first) < MIN_SAMPLES or first.ndim < 2:
        told = f"{name} holds samples of shape {first.shape}"
        raise UserError(f"{told}, expected (N, ...) with N of {MIN_SAMPLES} or more")
    for split, array in x.items():
        if array.shape[1:] != first.shape[1:]:
            told = f"training samples of shape {first.shape[1:]} and {split} ones of"
            raise UserError(f"{name} has {told} {array.shape[1:]}, expected one shape")
    _hold_out("test", 1 / 4, x, given)
    _hold_out("valid", 1 / 8, x, given)
    scaling = Scaling.measure(x["train"])
    return ArrayData(
        name, x["train"], x["valid"], x["test"], scaling, given, found.names, found.problem
    )


def _hold_out(split: Split, share: float, *arrays: dict[Split, np.ndarray]) -> None:
    """Move a share of the training rows to a split, by a fixed seed, unless it is there."""
    if split in arrays[0]:
        return
    count = len(arrays[0]["train"])
    order = np.random.default_rng(0).permutation(count)
    held = min(int(share * count), MAX_HELD_OUT)
    for own in arrays:
        if own:
            rows = own["train"]
            own[split], own["train"] = rows[np.sort(order[:held])], rows[np.sort(order[held:])]


def _digits() -> Data:
    from sklearn.datasets import load_digits  # imported here: scikit-learn takes a second to import

    bunch = load_digits()
    images, labels = (np.asarray(getattr(bunch, key)) for key in ("images", "target"))
    found = Samples({"train": images.astype(np.float32)}, {"train": labels.astype(np.int64)})
    return replace(_array_data("digits", found), scaling=Scaling((8.0,), (8.0,), "hw", 0.0, 16.0))

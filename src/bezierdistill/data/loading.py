"""From a name or a path to a :class:`~bezierdistill.data.base.Data`.

A path is a file or folder that :mod:`~bezierdistill.data.reading` knows. Where it has no test side,
a quarter is held out; then an eighth of the training side for validation (each at most 10,000, by a
fixed seed).

What follows an ``@`` changes the data, from left to right:

* ``PATH@key=noto``: the array of that name in a ``.npz``;
* ``@crop20x20``: the middle 20 rows and 20 columns of images;
* ``@16x16``: images resized to 16 rows and 16 columns;
* ``@rgb``: grey images in three equal channels;
* ``@class5``: only the samples of one class;
* ``@pca48``: coordinates on the 48 principal components of the training side, each scaled to unit
  variance like every vector here: real data of a size at which methods can be compared in minutes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from bezierdistill.data.base import ArrayData, Data, Split
from bezierdistill.data.reading import Side, read_sides
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.toys import TOYS, load_toy, manifold_sampler
from bezierdistill.data.views import coloured, cropped, only_class, principal, resized
from bezierdistill.errors import UserError

BUILT_IN = ("digits", "manifold", *TOYS)
HELD_OUT_MOST = 10_000
LEAST_SAMPLES = 64
VIEW = re.compile(
    r"(.+)@(?:pca([1-9]\d{0,3})|class(\d{1,5})|(rgb)|(crop)?([1-9]\d{0,3})x([1-9]\d{0,3}))"
)


def load_data(name: str) -> Data:
    """Load a data set.

    Args:
        name: ``digits``, ``manifold`` (16 dimensions) or ``manifoldN`` (N dimensions),
            ``checkerboard``, ``moons``, ``gaussians``, ``spirals``, or a path; with views after an
            ``@`` (module docstring).

    Raises:
        UserError: if there is no such data, or it holds too few samples, other shapes than one, or
            numbers that are not finite.
    """
    dimension = re.fullmatch(r"manifold([1-9]\d{0,3})?", name)
    if dimension:
        return load_toy(name, manifold_sampler(int(dimension[1] or 16)))
    if name in TOYS:
        return load_toy(name, TOYS[name])
    file = Path(name.partition("@")[0])
    return _load(name, file.stat().st_mtime_ns if len(name) < 4096 and file.is_file() else 0)


@lru_cache(maxsize=4)
def _cached_view(name: str, stamp: int) -> Data:
    """Every stage loads its data by name; decomposing or resizing anew each time would take longer
    than training.
    """
    found = VIEW.fullmatch(name)
    assert found is not None
    whole, components, label, colour, crop, rows, columns = found.groups()
    data = load_data(whole) if whole == "digits" or whole in BUILT_IN else _load(whole, stamp)
    if not isinstance(data, ArrayData):
        raise UserError(
            f"{name} asks for a view of {data.name}, expected a file, a folder or digits"
        )
    if components:
        return principal(data, name, int(components))
    if colour:
        return coloured(data, name)
    if label:
        return only_class(data, name, int(label))
    return (cropped if crop else resized)(data, name, (int(rows), int(columns)))


def _load(name: str, stamp: int) -> Data:
    """A file, folder or digits, with its views; ``stamp`` tells a changed file."""
    if VIEW.fullmatch(name):
        return _cached_view(name, stamp)
    if name == "digits":
        return _digits()
    keyed = re.fullmatch(r"(.+)@key=(\w+)", name)
    path = Path(keyed[1] if keyed else name)
    if not name or len(name) > 4096 or not path.exists():
        raise UserError(
            f"no data called {name[:200]!r}: expected one of {', '.join(BUILT_IN)}, or the path of"
            " a .npz, .npy or folder of images"
        )
    return _array_data(name, *read_sides(path, keyed[2] if keyed else None))


def _array_data(name: str, train: Side, test: Side | None) -> ArrayData:
    if len(train) < LEAST_SAMPLES or train.x.ndim < 2:
        raise UserError(
            f"{name} holds samples of shape {train.x.shape}, expected (N, ...) with N of"
            f" {LEAST_SAMPLES} or more"
        )
    if test is None:
        train, test = _hold_out(train, 1 / 4)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise UserError(
            f"{name} has training samples of shape {train.x.shape[1:]} and held-out ones of"
            f" {test.x.shape[1:]}, expected one shape"
        )
    if (train.given is None) != (test.given is None):
        raise UserError(
            f"{name} has labels or conditions on one of its sides, expected both or neither"
        )
    train, valid = _hold_out(train, 1 / 8)
    sides: dict[Split, Side] = {"train": train, "valid": valid, "test": test}
    given: dict[Split, np.ndarray] = {
        split: side.given for split, side in sides.items() if side.given is not None
    }
    return ArrayData(name, train.x, valid.x, test.x, Scaling.measure(train.x), given)


def _hold_out(side: Side, share: float) -> tuple[Side, Side]:
    order = np.random.default_rng(0).permutation(len(side))
    held = min(int(share * len(side)), HELD_OUT_MOST)
    return side.at(np.sort(order[held:])), side.at(np.sort(order[:held]))


def _digits() -> Data:
    from sklearn.datasets import load_digits  # imported here: scikit-learn takes a second to import

    bunch = load_digits()
    images, labels = (
        np.asarray(getattr(bunch, key)) for key in ("images", "target")
    )  # its type stub is too narrow
    data = _array_data("digits", Side(images.astype(np.float32), labels.astype(np.int64)), None)
    return replace(data, scaling=Scaling((8.0,), (8.0,), "hw", 0.0, 16.0))

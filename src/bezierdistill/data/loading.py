"""From a name, a path or an object to a :class:`~bezierdistill.data.base.Data`.

A path is a file or folder that :mod:`~bezierdistill.data.reading` knows; ``hf:OWNER/NAME`` is in
:mod:`~bezierdistill.data.hub`; what ``FILE.py:function`` returns, and objects, in
:mod:`~bezierdistill.data.given`.

A word and a colon before a path say what is to be made of it (:data:`KINDS`):

* ``words:PATH``, ``text:PATH``: texts, see :mod:`~bezierdistill.data.texts`; ``words:PATH@10``, the
  longest word, ``text:PATH@32``, the length of a piece, ``...@alphabet=a-z``, the characters.
* ``clips:PATH``: clips, see :mod:`~bezierdistill.data.clips`;
* ``bouncing:PATH.npz``: bouncing digits, see :mod:`~bezierdistill.data.bouncing`;
  ``bouncing:PATH.npz@16x32x32``: 16 frames of 32 rows and 32 columns, ``...@two``: two digits.

What follows an ``@`` changes the data, from left to right:

* ``PATH@key=noto``: the array of that name in a ``.npz``, the samples in a table of ``hf:`` or in
  items that are dictionaries; ``@labels=kind`` after it, or alone: the labels there;
* ``PATH@rgba``: the images of a folder with their transparency as a fourth channel, instead of on
  white;
* ``@crop20x20``: the middle 20 rows and 20 columns of images;
* ``@16x16``: images resized to 16 rows and 16 columns; right after a folder this and a crop give
  each file its size, so that they may be of several;
* ``@rgb``: grey images in three equal channels;
* ``@classcats``, ``@class5``: only the samples of one class, by its name or number;
* ``@first``: clips with their first frames as condition vectors; ``@frames``: their frames as
  images;
* ``@pca48``: coordinates on the 48 principal components of the training split, each scaled to unit
  variance like every vector here: real data of a size at which methods can be compared in minutes.

A file or folder that is really called ``set@16x16`` goes before a view.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bezierdistill.data.base import ArrayData, Data
from bezierdistill.data.bouncing import load_bouncing
from bezierdistill.data.clips import load_clips
from bezierdistill.data.given import Given, load_given, name_data
from bezierdistill.data.hub import HUB, load_hub
from bezierdistill.data.images import walk
from bezierdistill.data.lazy import LazyData
from bezierdistill.data.reading import Samples, read_file
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.sizes import SIZE, Size, split_sizes
from bezierdistill.data.splits import array_data
from bezierdistill.data.stream import StreamData
from bezierdistill.data.texts import load_prose, load_words
from bezierdistill.data.toys import TOYS, load_toy, loops_sampler, manifold_sampler
from bezierdistill.data.views import coloured, frames, on_first, only_class, principal, sized
from bezierdistill.errors import UserError
from bezierdistill.objects import START, Named, find_object, is_object
from bezierdistill.progress import stage

BUILT_IN = ("digits", "manifold", "loops", *TOYS)
ENDLESS = {"manifold": (manifold_sampler, 16), "loops": (loops_sampler, 20)}  # and dimensions
VIEW = re.compile(rf"pca([1-9]\d{{0,3}})|class(.+)|(rgb|first|frames)|{SIZE}")
TEXTS = re.compile(r"(?:@([1-9]\d{0,3}))?(?:@alphabet=(.+))?")  # length, characters
WORDS = {"rgb": coloured, "first": on_first, "frames": frames}
SOURCE = re.compile(r"(?:@key=([^@]+))?(?:@labels=([^@]+))?|@(rgba)")
PLACE = re.compile(r"hf:([^:]+)(?::[^@]+)?|(.+\.py)(?::\w+)?")  # of what is not a path itself


class Kind(NamedTuple):
    """What is made of a path: ``load(name, path, *groups)``, the groups those of the options, which
    match all that may follow the path at once.
    """

    load: Callable[..., Data]
    options: re.Pattern[str] = re.compile("")


KINDS = {
    "words": Kind(load_words, TEXTS),
    "text": Kind(load_prose, TEXTS),
    "clips": Kind(load_clips),
    "bouncing": Kind(load_bouncing, re.compile(r"(?:@(\d{1,3})x(\d{1,3})x(\d{1,3}))?(@two)?")),
}


@stage("loading data")
def load_data(source: str | object, key: str | None = None, labels: str | None = None) -> Data:
    """Load a data set; the same object as before, unless a file of it has changed.

    Args:
        source: ``digits``, ``manifold`` (16 dimensions) or ``manifoldN`` (N dimensions), ``loops``
            (20 dimensions) or ``loopsN``, ``checkerboard``, ``moons``, ``gaussians``, ``spirals``;
            a path; ``hf:OWNER/NAME`` or ``hf:./FOLDER``, with ``:SPLIT`` or without;
            ``words:PATH``, ``text:PATH``, ``clips:PATH``, ``bouncing:PATH``; ``FILE.py:function``,
            a function that returns an object; each with views after an ``@`` (module docstring).
            Or an object: an array or tensor, a tuple ``(x, labels)``, a torch ``Dataset`` (indexed
            or iterable), a ``DataLoader``, a table of ``datasets``, a dictionary of these by split.
        key: where a file, a table or items that are dictionaries have samples, if by no usual name.
        labels: where they have labels, likewise.

    Raises:
        UserError: if there is no such data, or it holds too few samples, other shapes than one, or
            numbers that are not finite; items that are read later tell theirs when they are read.
    """
    name = name_data(source, key, labels)
    if "\0" in name:
        raise UserError(f"no data called {name[:200]!r}, expected a name or a path")
    base = name if isinstance(name, Named) else _base(name)
    data = _load(name, base, _stamp(base))
    _ = data.shape  # what is read later is measured now
    return data


def _base(name: str) -> str:
    """The part of a name before its views: the longest of which the path is there."""
    parts = name.split("@")
    heads = ["@".join(parts[:k]) for k in range(len(parts), 0, -1)]
    return next((head for head in heads if head and os.path.exists(_place(head))), parts[0])


def _kind(base: str) -> Kind | None:
    """What is to be made of the path in a name; None if nobody says."""
    return None if os.path.exists(base) else KINDS.get(base.partition(":")[0])


def _place(base: str) -> str:
    """The path in a name: of a file or folder, ``words:PATH``, ``hf:FOLDER:SPLIT`` or
    ``FILE.py:function``.
    """
    if _kind(base) is not None:
        return base.partition(":")[2]
    match = None if os.path.exists(base) else PLACE.fullmatch(base)
    return base if match is None else match[1] or match[2]


def _stamp(base: str) -> int:
    """A number that changes with a file, or with any file below a folder; of an object its own."""
    if base.startswith(START):
        found = _object(base)
        return id(found.value if isinstance(found, Given) else found)
    base, found = _place(base), []
    below = walk(base) if os.path.isdir(base) else ()  # a name with a null byte cannot be walked
    for file in [base, *(f"{here}/{name}" for here, names, _ in below for name in names)]:
        with suppress(OSError, ValueError):  # no file, or one that is being replaced
            state = os.stat(file)
            found.append((file, state.st_ino, state.st_size, state.st_mtime_ns))
    return hash(tuple(sorted(found)))


@lru_cache(maxsize=4)
def _load(name: str, base: str, stamp: int) -> Data:
    """Cached, as every stage loads its data by name and reading can take longer than training."""
    views, sizes, kind = name.removeprefix(base), (), _kind(base)
    if os.path.isdir(base):  # whose images are cropped and resized one by one
        views, sizes = split_sizes(views)
    source = (SOURCE if kind is None else kind.options).fullmatch(views)
    if source is not None and kind is not None:
        return kind.load(name, Path(_place(base)), *source.groups())
    if source is not None:
        return _read(name, base, sizes, *source.groups())
    whole, _, text = name.rpartition("@")
    view = VIEW.fullmatch(text)
    data = _load(whole, base, stamp)
    texts = isinstance(data, ArrayData) and data.scaling.layout == "tokens"  # others are not read
    if view is not None and texts:
        raise UserError(f"{name[:200]} asks for a view of texts, which have none: leave it out")
    if view is None:
        told = f"{name[:200]} asks for the view @{text[:80]}, expected @cropNxN, @NxN, @rgb"
        raise UserError(
            f"{told}, @classNAME, @pcaN, @first or @frames, or @key=NAME, @labels=NAME, @rgba right"
            " after a path"
        )
    if not isinstance(data, ArrayData | LazyData | StreamData):
        told = f"{name} asks for a view of {data.name}"
        raise UserError(f"{told}, expected a file, a folder or digits, or an object")
    components, label, word, *size = view.groups()
    if components:
        return principal(data, name, int(components))
    if word:
        return WORDS[word](data, name)
    if label:
        return only_class(data, name, label)
    return sized(data, name, Size.read(*size))


def _read(
    name: str,
    base: str,
    sizes: tuple[Size, ...],
    key: str | None,
    labels: str | None,
    alpha: str | None,
) -> Data:
    """A built-in data set, a file, a folder or an object."""
    endless = re.fullmatch(r"(manifold|loops)([1-9]\d{0,3})?", name)
    if endless:
        sampler, usual = ENDLESS[endless[1]]
        return load_toy(name, sampler(int(endless[2] or usual)))
    if name in TOYS:
        return load_toy(name, TOYS[name])
    if name == "digits":
        return _digits()
    if is_object(base) or base.startswith(HUB):
        if alpha:
            raise UserError(f"{name} asks for @rgba, expected it after a folder of images")
        found = load_hub(base) if base.startswith(HUB) else _object(base)
        given = found if isinstance(found, Given) else Given(found)
        return load_given(name, replace(given, key=key or given.key, labels=labels or given.labels))
    if not os.path.exists(base):
        told = f"no data called {name[:200]!r}: expected one of {', '.join(BUILT_IN)}"
        kinds = ", ".join(f"{kind}:PATH" for kind in KINDS)
        told = f"{told}, the path of a .npz, .npy or folder of images, {kinds}"
        raise UserError(f"{told} or hf:OWNER/NAME")
    return array_data(name, read_file(Path(base), key, labels, alpha is not None, sizes))


def _object(base: str) -> Any:
    return find_object(base, "data", "returns the data")


def _digits() -> Data:
    from sklearn.datasets import load_digits  # imported here: scikit-learn takes a second to import

    bunch = load_digits()
    images, labels = (np.asarray(getattr(bunch, key)) for key in ("images", "target"))
    found = Samples({"train": images.astype(np.float32)}, {"train": labels.astype(np.int64)})
    return replace(array_data("digits", found), scaling=Scaling((8.0,), (8.0,), "hw", 0.0, 16.0))

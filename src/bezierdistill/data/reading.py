"""Samples from files: ``.npy`` and ``.npz`` arrays, JPEG files packed in a ``.npz``, folders of
images; with labels or conditions.

**Arrays.** A ``.npz`` holds one array of samples, or one per split, by the names that people give
them, in any case: ``x``, ``X``, ``images``, ``data`` or ``arr_0``; ``train_images`` and
``test_images``, ``x_train`` and ``x_test``. Labels are ``labels``, ``y`` or ``arr_1``, vectors to
condition on are ``conditions``, each with the split's name as the samples have it (``val_labels``,
``y_test``); ``class_names`` are the names of the classes. ``train_jpeg`` and ``train_offsets`` are
files end to end, and where each starts. Arrays that are not used are told. Any other array is
reached by its name (``PATH@key=NAME``); a boolean array ``is_test`` then says which rows are held
out.

**Folders.** Folders called ``train``, ``val`` and ``test`` are splits; other folders, and those
within a split, are classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np

from bezierdistill.data.arrays import read_arrays
from bezierdistill.data.base import Split
from bezierdistill.data.images import find_images, stack_images, unpack_images
from bezierdistill.data.labels import check_vectors, natural_order, number_classes
from bezierdistill.data.sizes import Size
from bezierdistill.errors import UserError
from bezierdistill.progress import notice

WORDS: dict[str, Split] = {
    **{"train": "train", "training": "train"},
    **{"val": "valid", "valid": "valid", "validation": "valid"},
    **{"test": "test", "testing": "test"},
}
SAMPLES = ("x", "images", "jpeg", "data", "samples", "arr_0")
LABELS = ("labels", "label", "y", "targets", "target", "arr_1")
VECTORS = ("conditions",)
NAMES = "class_names"
MAX_NUMBER = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Samples:
    """What a file or folder holds, in original units.

    Args:
        x: samples ``(N, ...)`` of every split that there is; always of ``train``.
        given: labels ``(N,)``, int64, or condition vectors ``(N, C)``, float32, of the same splits;
            empty if there are none that can be used.
        names: of the classes, in the order of their numbers; empty if they have none.
        problem: why labels or conditions that are there cannot be used; it stops nobody who does
            not ask for them.
        files: where in a folder the images of ``train`` lie, without endings; empty of arrays.
        alphabet: of texts, its characters; empty is those that are there.
    """

    x: dict[Split, np.ndarray]
    given: dict[Split, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    problem: str = ""
    files: tuple[str, ...] = ()
    alphabet: str = ""


def read_file(
    path: Path,
    key: str | None = None,
    labels: str | None = None,
    alpha: bool = False,
    sizes: Sequence[Size] = (),
) -> Samples:
    """The samples of a file or folder.

    Args:
        path: a ``.npy`` or ``.npz`` file, or a folder of images.
        key: an array of the ``.npz`` by its name.
        labels: the array of its labels by its name, beside ``key``.
        alpha: keep the transparency of a folder's images, as a fourth channel.
        sizes: what each image of a folder is cropped and resized to before they are stacked.

    Raises:
        UserError: if it cannot be read, lacks the arrays, or holds numbers that are not finite.
    """
    if labels is not None and key is None:
        raise UserError(f"{path}@labels={labels} names no samples, expected @key=NAME before it")
    if path.is_dir() and key is None:
        files = find_images(path)

        def stack(own: Sequence[Path]) -> np.ndarray:
            return stack_images(list(map(str, own)), own, alpha, sizes)

        return in_folders(path, files, stack)
    if alpha:
        raise UserError(f"{path} is no folder, expected one of images for @rgba")
    if not path.is_file():
        more = "" if key is None else f" with the array {key}"
        raise UserError(f"no file {path}: expected a .npz or .npy of samples{more}")
    loaded = read_arrays(path)
    if isinstance(loaded, np.ndarray):
        return Samples({"train": checked(path, loaded)})
    with loaded:
        return _read_archive(path, loaded) if key is None else _keyed(path, loaded, key, labels)


def read_array(path: Path) -> np.ndarray:
    """The samples ``(N, ...)`` of a file or folder (its training split, if it has several)."""
    return read_file(path).x["train"]


def _read_archive(path: Path, loaded: Mapping[str, np.ndarray]) -> Samples:
    keys = {key.lower(): key for key in sorted(loaded, reverse=True)}  # x rather than X
    places = {split: _find(keys, split) for split in get_args(Split)}
    styles = {split: place for split, place in places.items() if place is not None}
    if "train" not in styles:
        told = f"{path} holds {str(sorted(loaded))[:200]}, expected x, or train_images and"
        raise UserError(f"{told} test_images, or @key=NAME after the path")
    used, x = {keys.get(NAMES)}, {}
    for split, (style, word) in styles.items():
        key, offsets = keys[style.format(word)], keys.get(style.format("offsets"))
        packed = word == "jpeg"
        used |= {key, offsets if packed else None}
        x[split] = (
            unpack_images(path, loaded, key, offsets) if packed else checked(path, loaded[key])
        )
    names = tuple(map(str, loaded[keys[NAMES]].ravel())) if NAMES in keys else ()
    samples = Samples(x)
    for words in (LABELS, VECTORS):
        named = {
            split: keys[style.format(word)]
            for split, (style, _) in styles.items()
            for word in reversed(words)
            if style.format(word) in keys
        }
        if named:
            used |= set(named.values())
            given = {split: loaded[key] for split, key in named.items()}
            samples = with_conditions(path, x, given, names, words is VECTORS)
            break
    if left := sorted(set(loaded) - used):
        notice(f"{path}: not used: {', '.join(left)[:200]}")
    return samples


def _find(keys: Mapping[str, str], split: Split) -> tuple[str, str] | None:
    """How the samples of a split are called: the style of the name, and the word in it."""
    words = [word for word, meant in WORDS.items() if meant == split]
    patterns = ("{0}_{{}}", "{{}}_{0}", "{0}{{}}", "{{}}{0}")
    styles = [pattern.format(word) for word in words for pattern in patterns]
    for style in [*styles, "{}"] if split == "train" else styles:
        for word in SAMPLES:
            if style.format(word) in keys:
                return style, word
    return None


def with_conditions(
    path: Path | str,
    x: dict[Split, np.ndarray],
    given: dict[Split, np.ndarray],
    names: tuple[str, ...] = (),
    vectors: bool | None = None,
) -> Samples:
    """Samples with their labels or condition vectors, if any, or with the reason why these are no
    use; ``vectors`` says which they are, by default floats ``(N, C)`` are vectors.
    """
    if not given:
        return Samples(x)
    if vectors is None:
        vectors = any(own.ndim == 2 and own.dtype.kind == "f" for own in given.values())
    try:
        for split, samples in x.items():
            if split not in given:
                raise UserError(f"{split} samples have no labels or conditions, others have")
            if given[split].shape[:1] != (len(samples),):
                told = f"{len(samples)} {split} samples have labels or conditions of shape"
                raise UserError(f"{told} {given[split].shape}, expected one per sample")
        if vectors:
            return Samples(x, {split: check_vectors(split, c) for split, c in given.items()})
        return Samples(x, *number_classes(given, names))
    except UserError as error:
        return Samples(x, problem=f"{path}: {error}")


def _keyed(path: Path, loaded: Mapping[str, np.ndarray], key: str, labels: str | None) -> Samples:
    for name in filter(None, (key, labels)):
        if name not in loaded:
            told = f"{path} holds no array {name!r}"
            raise UserError(f"{told}, expected one of {', '.join(sorted(loaded))[:200]}")
    x = checked(path, loaded[key])
    given = None if labels is None else loaded[labels]
    if "is_test" not in loaded:
        return with_conditions(path, {"train": x}, {} if given is None else {"train": given})
    held = loaded["is_test"]
    if held.shape != (len(x),) or held.dtype != bool:
        told = f"{path} has is_test of shape {held.shape} and type {held.dtype}"
        raise UserError(f"{told}, expected ({len(x)},) of booleans")
    if held.all() or not held.any():
        raise UserError(f"{path} has is_test that is {held[0]} everywhere, expected some of each")
    parts: dict[Split, np.ndarray] = {"train": ~held, "test": held}
    own: dict[Split, np.ndarray] = (
        {} if given is None else {split: given[rows] for split, rows in parts.items()}
    )
    return with_conditions(path, {split: x[rows] for split, rows in parts.items()}, own)


def checked(path: Path | str, array: np.ndarray) -> np.ndarray:
    """Samples ``(N, ...)`` as they are.

    Raises:
        UserError: unless they are finite numbers, or texts ``(N,)``.
    """
    if array.dtype.kind == "U" and array.ndim == 1 and len(array):
        return array
    if array.dtype.kind not in "uif":
        raise UserError(f"{path} holds {array.dtype} numbers, expected integers or floats")
    if array.ndim < 2 or 0 in array.shape:
        told = f"{path} holds an array of shape {array.shape}"
        raise UserError(f"{told}, expected (N, ...) with one sample or more")
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        told = f"{path} has NaN or infinite numbers in {len(rows)} rows (first: row {rows[0]})"
        raise UserError(f"{told}: remove or fill them")
    if array.dtype.itemsize > 4 and max(array.max(), -array.min()) > MAX_NUMBER:
        told = f"{path} has numbers beyond {MAX_NUMBER:.3g}, the largest of single precision"
        raise UserError(f"{told}: scale or remove them")
    return array


def in_folders(
    path: Path, files: Sequence[Path], stack: Callable[[Sequence[Path]], np.ndarray]
) -> Samples:
    """Samples of what lies below a folder, whose folders are splits or classes.

    Args:
        path: the folder.
        files: below it, a sample each.
        stack: the samples ``(N, ...)`` of some of them.

    Raises:
        UserError: if there are splits and no training split.
    """
    folders = [file.relative_to(path).parts[:-1] for file in files]
    tops = {parts[0] for parts in folders if parts}
    depth = int(bool(tops) and all(top.lower() in WORDS for top in tops))  # of class folders
    if depth:
        beside = sum(not parts for parts in folders)
        if beside:
            notice(f"{path}: passed over {beside} samples beside the folders of its splits")
        files = [file for file, parts in zip(files, folders, strict=True) if parts]
        folders = [parts for parts in folders if parts]
    splits = [WORDS[parts[0].lower()] if depth else "train" for parts in folders]
    if "train" not in splits:
        told = f"{path} holds the folders {', '.join(sorted(tops))}"
        raise UserError(f"{told}, expected train beside them")
    pixels = stack(files)
    rows = {s: np.flatnonzero(np.array(splits) == s) for s in get_args(Split) if s in splits}
    x = {split: pixels if len(rows) == 1 else pixels[own] for split, own in rows.items()}
    classes = [parts[depth] if len(parts) > depth else "" for parts in folders]
    names = natural_order(set(classes))
    places = tuple(
        str(files[row].relative_to(path).with_suffix("")) for row in rows["train"].tolist()
    )
    if len(names) < 2:
        return Samples(x, files=places)
    if "" in names:
        problem = f"{files[classes.index('')]} is in no folder of a class, others are"
        return Samples(x, problem=f"{problem}: expected all or none", files=places)
    given = {split: np.array(classes)[own] for split, own in rows.items()}
    return replace(with_conditions(path, x, given, tuple(names)), files=places)

"""Samples from files: ``.npy`` and ``.npz`` arrays, packed JPEG files in a ``.npz``, folders of
images; with labels or conditions.

A ``.npz`` holds ``x``, or ``train_images`` and ``test_images``, or ``train_jpeg`` and
``train_offsets`` (files end to end, and where each starts) and the same for ``test_``. Labels are
``labels``, or ``train_labels`` and ``test_labels``; vectors to condition on are ``conditions``,
``train_conditions`` and ``test_conditions``. Any other array is reached by its name
(``PATH@key=NAME``); a boolean array ``is_test`` then says which rows are held out. The folders that
a folder of images consists of are classes.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bezierdistill.data.arrays import check_memory, read_arrays
from bezierdistill.errors import UserError

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "WEBP",
)  # whatever the name ends in: Pillow would hand PostScript to a program
MOST_CLASSES, MOST_PIXELS = 100_000, 2**27
LARGEST = float(np.finfo(np.float32).max)
NO_IMAGE = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Side:
    """Samples in own units ``(N, ...)``, and their labels ``(N,)`` or condition vectors ``(N, C)``
    if they have any.
    """

    x: np.ndarray
    given: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def at(self, rows: np.ndarray) -> Side:
        """Some of the rows."""
        return Side(self.x[rows], None if self.given is None else self.given[rows])


def read_sides(path: Path, key: str | None = None) -> tuple[Side, Side | None]:
    """Samples of a file or folder, and its held-out side if it has one.

    Args:
        path: a ``.npy`` or ``.npz`` file, or a folder of images.
        key: an array of the ``.npz`` by its name.

    Raises:
        UserError: if it cannot be read, lacks the arrays, or holds numbers that are not finite.
    """
    if path.is_dir() and key is None:
        return _read_folder(path), None
    if not path.is_file():
        raise UserError(
            f"no file {path}: expected a .npz or .npy of"
            f" samples{'' if key is None else ' with the array ' + key}"
        )
    loaded = read_arrays(path)
    if isinstance(loaded, np.ndarray):
        return Side(_checked(path, loaded)), None
    with loaded:
        return _sides(path, loaded, key)


def _sides(
    path: Path, loaded: Mapping[str, np.ndarray], key: str | None
) -> tuple[Side, Side | None]:
    if key is not None:
        return _keyed(path, loaded, key)
    if "x" in loaded:
        return _side(path, loaded, ""), None
    if "train_images" not in loaded and "train_jpeg" not in loaded:
        raise UserError(
            f"{path} holds {str(sorted(loaded))[:200]}, expected x, or train_images and"
            " test_images, or @key=NAME after the path"
        )
    test = (
        _side(path, loaded, "test_") if "test_images" in loaded or "test_jpeg" in loaded else None
    )
    return _side(path, loaded, "train_"), test


def read_array(path: Path) -> np.ndarray:
    """The samples ``(N, ...)`` of a ``.npy`` or ``.npz`` file (its training side, if it has
    two).
    """
    return read_sides(path)[0].x


def _side(path: Path, loaded: Mapping[str, np.ndarray], prefix: str) -> Side:
    packed, plain = f"{prefix}jpeg" in loaded, f"{prefix}images" if prefix else "x"
    x = _unpacked(path, loaded, prefix) if packed else _checked(path, loaded[plain])
    for name, check in ((f"{prefix}labels", _labels), (f"{prefix}conditions", _vectors)):
        if name in loaded:
            given = check(path, name, loaded[name])
            if len(given) != len(x):
                raise UserError(
                    f"{path} has {len(given)} {name} for {len(x)} samples, expected one a sample"
                )
            return Side(x, given)
    return Side(x)


def _keyed(path: Path, loaded: Mapping[str, np.ndarray], key: str) -> tuple[Side, Side | None]:
    if key not in loaded:
        raise UserError(
            f"{path} holds no array {key!r}, expected one of {', '.join(sorted(loaded))[:200]}"
        )
    x = _checked(path, loaded[key])
    if "is_test" not in loaded:
        return Side(x), None
    held = loaded["is_test"]
    if held.shape != (len(x),) or held.dtype != bool:
        raise UserError(
            f"{path} has is_test of shape {held.shape} and type {held.dtype}, expected ({len(x)},)"
            " of booleans"
        )
    if held.all() or not held.any():
        raise UserError(
            f"{path} has is_test that is {held[0]} for every row, expected some of each"
        )
    return Side(x[~held]), Side(x[held])


def _checked(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "uif":
        raise UserError(f"{path} holds {array.dtype} numbers, expected integers or floats")
    if array.ndim < 2 or 0 in array.shape:
        raise UserError(
            f"{path} holds an array of shape {array.shape}, expected (N, ...) with one sample or"
            " more"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        raise UserError(
            f"{path} has NaN or infinite numbers in {len(rows)} rows (first: row {rows[0]}): remove"
            " or fill them"
        )
    if (
        array.dtype.kind == "f"
        and array.dtype.itemsize > 4
        and max(array.max(), -array.min()) > LARGEST
    ):
        raise UserError(
            f"{path} has numbers beyond {LARGEST:.3g}, the largest of single precision: scale or"
            " remove them"
        )
    return array


def _labels(path: Path, name: str, labels: np.ndarray) -> np.ndarray:
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "ui"
        or not len(labels)
        or not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES
    ):
        raise UserError(
            f"{path} has {name} of shape {labels.shape} and type {labels.dtype}, expected (N,)"
            " integers from 0 to the classes"
        )
    return labels.astype(np.int64)


def _vectors(path: Path, name: str, vectors: np.ndarray) -> np.ndarray:
    if (
        vectors.ndim != 2
        or vectors.dtype.kind != "f"
        or 0 in vectors.shape
        or not np.isfinite(vectors).all()
    ):
        raise UserError(
            f"{path} has {name} of shape {vectors.shape} and type {vectors.dtype}, expected (N, C)"
            " of finite floats"
        )
    return vectors.astype(np.float32)


def _unpacked(path: Path, loaded: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    if f"{prefix}offsets" not in loaded:
        raise UserError(
            f"{path} has {prefix}jpeg and no {prefix}offsets, expected where each file starts and"
            " the last one ends"
        )
    packed, offsets = loaded[f"{prefix}jpeg"], loaded[f"{prefix}offsets"]
    if (
        packed.dtype != np.uint8
        or packed.ndim != 1
        or offsets.ndim != 1
        or len(offsets) < 2
        or offsets.dtype.kind not in "ui"
    ):
        raise UserError(
            f"{path} has {prefix}jpeg of type {packed.dtype}, expected bytes, and two whole offsets"
            " or more"
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(packed) or not (offsets[1:] > offsets[:-1]).all():
        raise UserError(
            f"{path} has {prefix}offsets that do not rise within the {len(packed)} bytes of"
            f" {prefix}jpeg"
        )
    data = packed.tobytes()
    names = [f"{path} ({prefix}jpeg, file {k})" for k in range(len(offsets) - 1)]
    return _stacked(
        names,
        [lambda k=k: io.BytesIO(data[offsets[k] : offsets[k + 1]]) for k in range(len(names))],
    )


def read_images(path: Path) -> tuple[list[Path], np.ndarray]:
    """Image files of one size, a single one or all in a folder: their paths, and their pixels ``(N,
    H, W)`` or ``(N, H, W, 3)``.

    Raises:
        UserError: if there is none, one cannot be read, or their sizes differ.
    """
    files = (
        sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
        if path.is_dir()
        else [path]
    )
    if not files:
        raise UserError(
            f"folder {path} holds no image, expected files ending in {', '.join(sorted(IMAGES))}"
        )
    return files, _stacked(
        [str(file) for file in files], [lambda file=file: file for file in files]
    )


def check_size(file: Path, most: int) -> None:
    """Raise ``UserError`` if an image file says that it has more than so many pixels; nothing is
    unpacked, and no image is not judged.
    """
    from PIL import Image

    width = height = 0
    with (
        contextlib.suppress(*NO_IMAGE, Image.DecompressionBombError),
        Image.open(file, formats=FORMATS) as image,
    ):
        width, height = image.size
    if width * height > most:
        raise UserError(
            f"{file} has {width} x {height} pixels, expected {most:,} or fewer: resize it"
        )


def _read_folder(path: Path) -> Side:
    files, x = read_images(path)
    folders = [file.relative_to(path).parts[0] if file.parent != path else "" for file in files]
    classes = sorted(set(folders))
    if len(classes) < 2 or "" in classes:
        return Side(x)
    return Side(x, np.array([classes.index(folder) for folder in folders]))


def _stacked(names: list[str], sources: list[Callable[[], Any]]) -> np.ndarray:
    """Images of one size as bytes: ``(N, H, W)`` if all are grey, else ``(N, H, W, 3)``."""
    array, grey = np.empty(0), True
    for k, (name, source) in enumerate(zip(names, sources, strict=True)):
        pixels, is_grey = _pixels(name, source, names[0], array.shape[1:3])
        if k == 0:
            check_memory(
                len(names) * pixels.nbytes,
                f"{len(names):,} images of {pixels.shape[1]} x {pixels.shape[0]}",
            )
            array = np.empty((len(names), *pixels.shape), np.uint8)
        array[k], grey = pixels, grey and is_grey
    return array[..., 0] if grey else array


def _pixels(
    name: str, source: Callable[[], Any], first: str, size: tuple[int, ...]
) -> tuple[np.ndarray, bool]:
    """Pixels ``(H, W, 3)`` of one image, and whether it is grey; its header is judged before it is
    unpacked.
    """
    from PIL import Image

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(source(), formats=FORMATS) as image,
        ):
            problem = _judge(image, name, first, size)
            if problem is None:
                return np.asarray(image.convert("RGB")), image.mode in ("L", "1")
    except (*NO_IMAGE, Image.DecompressionBombError) as error:
        problem = f"{name} cannot be read as an image: {error}"
    raise UserError(problem)


def _judge(image: Any, name: str, first: str, size: tuple[int, ...]) -> str | None:
    """What is wrong with an image by its header."""
    width, height = image.size
    if image.mode[0] in "IF":
        return f"{name} has pixels of mode {image.mode}, expected 8 bits a channel"
    if width * height > MOST_PIXELS:
        return f"{name} claims {width} x {height} pixels, expected {MOST_PIXELS:,} or fewer"
    if size and size != (height, width):
        return (
            f"{name} is {width} x {height}, {first} is {size[1]} x {size[0]}: resize them to one"
            " size"
        )
    return None

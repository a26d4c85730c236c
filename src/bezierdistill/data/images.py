"""Images from files, as a viewer shows them.

Transparent pixels lie on white, whatever colour is hidden under them, unless all four channels are
asked for; a photo is turned as its EXIF orientation says; 16 bits per channel become 8, and CMYK
becomes RGB. What a folder holds beside images (``._photo.png`` and ``__MACOSX`` of macOS,
``Thumbs.db``, other hidden files, other formats) is passed over, and told in one line.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bezierdistill.data.scaling import Scaling
from bezierdistill.data.sizes import Size
from bezierdistill.errors import UserError
from bezierdistill.memory import check_memory
from bezierdistill.progress import notice

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # whatever a name ends in: Pillow runs PostScript
MAX_PIXELS = 2**27
NO_IMAGE = (OSError, EOFError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError)
NO_IMAGE = (*NO_IMAGE, RuntimeError, struct.error, zlib.error)

SIZED = "@16x16 after data, or translate --resize"
PIXELS = Scaling.of_bytes("hwc")

Source = Path | bytes


def read_images(path: Path, sizes: Sequence[Size] = ()) -> tuple[list[Path], np.ndarray]:
    """Image files, a single one or all below a folder: their paths in the order of their names, and
    their pixels, see :func:`stack_images`.

    Raises:
        UserError: if there is none, one cannot be read, or their sizes differ.
    """
    files = find_images(path) if path.is_dir() else [path]
    return files, stack_images(list(map(str, files)), files, sizes=sizes)


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, links followed, in the order of their names.

    Raises:
        UserError: if there is none.
    """
    files: list[Path] = []
    passed: Counter[str] = Counter()
    for here, names, hidden in walk(folder):
        passed["hidden"] += hidden
        for file in (Path(here, name) for name in names):
            if file.suffix.lower() in IMAGES:
                files.append(file)
            else:
                passed[file.suffix.lower() or "without an ending"] += 1
    if not files:
        endings = ", ".join(sorted(IMAGES))
        raise UserError(f"folder {folder} holds no image, expected files ending in {endings}")
    if told := ", ".join(f"{count} {kind}" for kind, count in passed.items() if count):
        notice(f"{folder}: {len(files):,} images, passed over {told}")
    return sorted(files)


def walk(folder: str | Path) -> Iterator[tuple[str, list[str], int]]:
    """A folder and all below it, links followed: path, names of files, and count of hidden ones."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        shown, files = (
            [n for n in some if n[0] != "." and n != "__MACOSX"] for some in (folders, names)
        )
        hidden = len(folders) + len(names) - len(shown) - len(files)
        folders[:] = [] if place in seen else shown  # a link may lead to a folder above
        if place not in seen:
            seen.add(place)
            yield here, files, hidden


def stack_images(
    names: Sequence[str],
    sources: Sequence[Source],
    alpha: bool = False,
    sizes: Sequence[Size] = (),
) -> np.ndarray:
    """Bytes of images of one size: ``(N, H, W)`` if all are grey, else ``(N, H, W, 3)``; with
    ``alpha`` always ``(N, H, W, 4)``.

    Args:
        names: what to call each in messages.
        sources: the path or the bytes of each.
        alpha: keep the transparency instead of laying images on white.
        sizes: what each is cropped and resized to, in this order, before they are stacked.

    Raises:
        UserError: if one cannot be read, is too small, or their sizes differ.
    """
    array, grey = np.empty((0, 0, 0, 0), np.uint8), not alpha
    for k, (name, source) in enumerate(zip(names, sources, strict=True)):
        pixels, is_grey = _pixels(name, source, alpha)
        for size in sizes:
            pixels = size(pixels[None], PIXELS, name)[0]
        height, width = pixels.shape[:2]
        if k == 0:
            check_memory(len(names) * pixels.nbytes, f"{len(names):,} images of {width} x {height}")
            array = np.empty((len(names), *pixels.shape), np.uint8)
        if array.shape[1:] != pixels.shape:
            first = " x ".join(map(str, array.shape[2:0:-1]))
            told = f"{name} is {width} x {height}, {names[0]} is {first}"
            raise UserError(f"{told}: resize them to one size, by {SIZED}")
        array[k], grey = pixels, grey and is_grey
    return array[..., 0].copy() if grey else array


def unpack_images(
    path: Path, loaded: Mapping[str, np.ndarray], key: str, place: str | None
) -> np.ndarray:
    """The images of files that lie end to end in an array.

    Args:
        path: of the archive, for messages.
        loaded: its arrays.
        key: that of bytes.
        place: that of where each file starts and the last one ends.

    Raises:
        UserError: if an array is no such, or an image cannot be read.
    """
    if place is None:
        told = f"{path} has {key} and no offsets"
        raise UserError(f"{told}, expected where each file starts and the last one ends")
    packed, offsets = loaded[key], loaded[place]
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise UserError(f"{path} has {key} of type {packed.dtype}, expected bytes (N,)")
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "ui":
        told = f"{path} has {place} of shape {offsets.shape}"
        raise UserError(f"{told}, expected two whole numbers or more")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(packed) or not (offsets[1:] > offsets[:-1]).all():
        told = f"do not rise within the {len(packed)} bytes of {key}"
        raise UserError(f"{path} has {place} that {told}")
    names = [f"{path} ({key}, file {k})" for k in range(len(offsets) - 1)]
    return stack_images(names, [packed[a:b].tobytes() for a, b in pairwise(offsets)])


def _pixels(name: str, source: Source, alpha: bool) -> tuple[np.ndarray, bool]:
    """Pixels ``(H, W, 3)`` or ``(H, W, 4)`` of an image, and whether it is grey."""
    from PIL import Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if math.prod(image.size) <= MAX_PIXELS:
                return shown(image, alpha), image.mode[0] in "1LI"
            pixels = f"{image.width} x {image.height} pixels"
    except (*NO_IMAGE, Image.DecompressionBombError) as error:
        raise UserError(f"{name} cannot be read as an image: {error}") from None
    raise UserError(f"{name} claims {pixels}, expected {MAX_PIXELS:,} or fewer")


def shown(image: Any, alpha: bool) -> np.ndarray:
    """Pixels ``(H, W, 3)`` of a PIL image, or ``(H, W, 4)``, as a viewer shows it."""
    from PIL import Image, ImageOps

    image.load()
    with contextlib.suppress(*NO_IMAGE):  # damaged EXIF: a viewer shows the image all the same
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] == "I":
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    seen_through = image.mode[-1] in "Aa" or "transparency" in image.info
    if alpha or seen_through:
        image = image.convert("RGBA")
        if not alpha:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if alpha else image.convert("RGB"))


def given_pixels(image: Any, colour: bool) -> np.ndarray | None:
    """Bytes of a PIL image that is given, ``(H, W)`` if it is grey and ``colour`` is not asked for,
    else ``(H, W, 3)``; None if it is no PIL image.
    """
    if "PIL.Image" not in sys.modules or not isinstance(image, sys.modules["PIL.Image"].Image):
        return None
    pixels = shown(image.copy(), False)
    return pixels if colour or image.mode[0] not in "1LI" else pixels[..., 0]


def check_size(file: Path, most: int) -> None:
    """Raise ``UserError`` if an image file claims more pixels than ``most``; others pass."""
    from PIL import Image

    width = height = 0
    with (
        contextlib.suppress(*NO_IMAGE, Image.DecompressionBombError),
        Image.open(file, formats=FORMATS) as image,
    ):
        width, height = image.size
    if width * height > most:
        told = f"{file} has {width} x {height} pixels"
        raise UserError(f"{told}, expected {most:,} or fewer: resize it")


def from_pixels(
    pixels: np.ndarray, scaling: Scaling, channels: int = 3, grey: bool = False
) -> np.ndarray:
    """Bytes of image files, ``(N, H, W)`` or ``(N, H, W, 3)``, as a data set stores its images, in
    its original units.

    Args:
        pixels: from black, 0, to white, 255.
        scaling: of the data set.
        channels: of the data set; one where its images are stored as (H, W).
        grey: turn colour into grey (ITU-R BT.601) for a data set of grey images.

    Raises:
        UserError: on colour for a data set of grey images, or one whose numbers have no range that
            black and white could be.
    """
    channels = 1 if scaling.layout == "hw" else channels
    if pixels.ndim == 3:
        pixels = np.repeat(pixels[..., None], channels, axis=3)
    elif channels == 1:
        if not grey:
            raise UserError("the images are in colour, expected grey ones: convert them")
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]])
    if scaling.layout == "hw":
        pixels = pixels[..., 0]
    elif scaling.layout == "chw":
        pixels = np.moveaxis(pixels, 3, 1)
    if scaling.integer:
        return pixels
    if scaling.low is None or scaling.high is None:
        told = "the data have no range from black to white, expected a .npz or .npy of samples in"
        raise UserError(f"{told} their original units instead of image files")
    return scaling.low + (scaling.high - scaling.low) / 255 * pixels

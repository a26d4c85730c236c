"""Clips of frames from folders and arrays, all of one length and one size.

A GIF is a clip, and so is a folder of images, its frames in the order of the numbers in their
names. Folders of splits and of classes lie around clips as they do around images. A frame of a GIF
that is shown k times as long as the shortest, or as its comment says that one is (``60 ms a
frame``), is k frames: writers leave out what does not change.
Arrays are ``(N, F, H, W)`` of grey frames or ``(N, F, H, W, 3)``, of bytes, in a ``.npz`` or
``.npy``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bezierdistill.data.base import ArrayData
from bezierdistill.data.images import IMAGES, MAX_PIXELS, NO_IMAGE, shown, stack_images, walk
from bezierdistill.data.labels import natural_order
from bezierdistill.data.reading import Samples, in_folders, read_file
from bezierdistill.data.scaling import COLOURS, Scaling
from bezierdistill.data.splits import array_data
from bezierdistill.errors import UserError
from bezierdistill.memory import check_memory

END = b";"  # the last byte of a GIF
TIME = re.compile(rb"([1-9]\d{0,4}) ms a frame")  # its comment, if we have written it


def load_clips(name: str, path: Path) -> ArrayData:
    """The clips of a folder or an array as a data set.

    Raises:
        UserError: if there are too few, one cannot be read, or they differ in length or size.
    """
    found = read_clips(path)
    return array_data(name, found, clip_scaling(found.x["train"]))


def clip_scaling(x: np.ndarray) -> Scaling:
    """The way to model units of clips of bytes ``(N, F, H, W)`` or ``(N, F, H, W, 3)``."""
    return Scaling.of_bytes("fhwc" if x.ndim == 5 else "fhw")


def read_clips(path: Path) -> Samples:
    """The clips of a folder or of an array, or the one of a GIF.

    Raises:
        UserError: see :func:`load_clips`.
    """
    if path.is_dir():
        return in_folders(path, find_clips(path), _stack)
    if path.is_file() and path.suffix.lower() == ".gif":
        return Samples({"train": _stack([path])})
    if not path.exists() or path.suffix.lower() == ".mp4":
        told = f"no clips at {path}"
        raise UserError(f"{told}: expected a folder of GIFs or of frames, a .gif or a .npz")
    found = read_file(path)
    for x in found.x.values():
        colours = x.shape[-1] == COLOURS
        grey, colour = x.ndim == 4 and not colours, x.ndim == 5 and colours
        if x.dtype != np.uint8 or not (grey or colour) or x.shape[1] < 2:
            raise UserError(
                f"{path} holds {x.dtype} samples of shape {x.shape[1:]}, expected clips of two"
                " frames of bytes or more, (N, F, H, W) or (N, F, H, W, 3)"
            )
    return found


def find_clips(folder: Path) -> list[Path]:
    """The GIFs below a folder, and the folders of images that hold no GIF, by their names.

    Raises:
        UserError: if there is none.
    """
    found: list[Path] = []
    for here, names, _ in walk(folder):
        endings = {name: os.path.splitext(name)[1].lower() for name in names}
        gifs = [Path(here, name) for name, ending in endings.items() if ending == ".gif"]
        frames = IMAGES & set(endings.values())
        found += gifs or ([Path(here)] if frames else [])
    if not found:
        raise UserError(f"folder {folder} holds no clip, expected .gif files or folders of frames")
    return sorted(found)


def _stack(clips: Sequence[Path]) -> np.ndarray:
    """Bytes of all clips, ``(N, F, H, W)`` if all are grey, else ``(N, F, H, W, 3)``."""
    array: np.ndarray = np.empty((0, 0, 0, 0, 0), np.uint8)
    for k, clip in enumerate(clips):
        frames = _gif(clip) if clip.is_file() else _sequence(clip)
        count, height, width = frames.shape[:3]
        if k == 0:
            check_memory(2 * len(clips) * frames.nbytes, f"{len(clips):,} clips like {clip}")
            array = np.empty((len(clips), *frames.shape), np.uint8)
        first = array.shape[1:4]
        if count < 2:
            raise UserError(f"{clip} has one frame, expected two or more in a clip")
        if count != first[0]:
            told = f"{clip} has {count} frames, {clips[0]} {first[0]}"
            raise UserError(f"{told}: cut them to one length")
        if frames.shape != array.shape[1:]:
            told = f"{clip} is {width} x {height}, {clips[0]} {first[2]} x {first[1]}"
            raise UserError(f"{told}: resize them to one size")
        array[k] = frames
    grey = (array[..., :1] == array[..., 1:]).all()
    return array[..., 0].copy() if grey else array


def _sequence(folder: Path) -> np.ndarray:
    """Frames ``(F, H, W, 3)`` of a folder of images."""
    names = [name for name in os.listdir(folder) if name[0] != "."]
    names = natural_order(name for name in names if Path(name).suffix.lower() in IMAGES)
    files = [folder / name for name in names]
    frames = stack_images(list(map(str, files)), files)
    return np.repeat(frames[..., None], COLOURS, -1) if frames.ndim == 3 else frames


def _gif(file: Path) -> np.ndarray:
    """Frames ``(F, H, W, 3)`` of a GIF, in equal steps of time."""
    from PIL import Image, ImageSequence

    frames, times = list[np.ndarray](), list[int]()
    try:
        if not file.read_bytes().rstrip(b"\0").endswith(END):
            raise ValueError("it is cut short")
        with Image.open(file, formats=("GIF",)) as gif:
            for frame in ImageSequence.Iterator(gif):
                if math.prod(gif.size) * (len(frames) + 1) > MAX_PIXELS:
                    raise ValueError(f"it claims more than {MAX_PIXELS:,} pixels")
                times.append(int(frame.info.get("duration", 0)))
                frames.append(shown(frame.copy(), False))
    except (*NO_IMAGE, Image.DecompressionBombError) as error:
        told = f"{file} cannot be read as a GIF: {error}"
        raise UserError(f"{told}; restore it or make it again") from None
    clock = TIME.fullmatch(gif.info.get("comment", b""))
    step = int(clock[1]) if clock else min((time for time in times if time), default=1)
    counts = [max(1, round(time / step)) for time in times]
    if sum(counts) * math.prod(frames[0].shape) > COLOURS * MAX_PIXELS:
        raise UserError(f"{file} lasts {sum(counts):,} frames, which is too long for a clip")
    return np.repeat(np.stack(frames), counts, 0)

"""Samples that somebody made, read to be compared with a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bezierdistill.data.base import Data
from bezierdistill.data.clips import clip_scaling, read_clips
from bezierdistill.data.images import PIXELS, from_pixels
from bezierdistill.data.labels import parse_labels
from bezierdistill.data.reading import Samples, read_file
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.sizes import split_sizes
from bezierdistill.data.texts import read_lines
from bezierdistill.errors import UserError
from bezierdistill.progress import notice

MAX_ROWS = 1000  # of the data that its range is taken from
TOLERANCE, WIDER, NARROWER = 0.01, 10.0, 0.05  # shares of the data's range


def read_samples(
    path: Path, data: Data, labelled: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples of a file or of a folder of images, as the data set has them.

    Args:
        path: a ``.npy``, a ``.npz`` (its training split, if it has several) or a folder of images
            or clips, whose folders may be classes of the data; of images with ``@16x16`` after it
            or without; of texts also a file with one a line.
        data: the data set that they are compared with.
        labelled: whether the labels are asked for.

    Returns:
        The samples ``(N, ...)`` in original units; and the numbers ``(N,)`` of their classes, if
        they are asked for and there are some.

    Raises:
        UserError: if they cannot be read, are of another shape or range than the data, or labels
            that are asked for are none of the data.
    """
    if data.scaling.layout == "tokens":
        return read_texts(path, data), None
    clips = data.scaling.is_clips and path.suffix not in (".npz", ".npy")
    found = _read(path, clips)
    x = found.x["train"]
    if found.files and not clips and len(data.shape) == 3:
        x = from_pixels(x, data.scaling, data.shape[0])
    expected = data.scaling.decode(data.real(1, 0, "test")).shape[1:]
    if x.shape[1:] != expected:
        told = f"{path} holds samples of shape {x.shape[1:]}, {data.name} of {expected}"
        raise UserError(f"{told}: expected samples of that data")
    check_range(x, data, str(path))
    if labelled and found.problem:
        raise UserError(found.problem)
    return x, _labels(found, data) if labelled else None


class Inputs(NamedTuple):
    """What samples were translated from.

    Args:
        x: states ``(N, ...)`` in model units.
        labels: their classes ``(N,)``, numbers as in the data translated to; None if they have
            none of these.
        back: the states that the samples become when they are translated back, or None.
    """

    x: Tensor
    labels: np.ndarray | None
    back: Tensor | None


def read_inputs(path: Path, samples: Path, data: Data, back: Path | None = None) -> Inputs:
    """The inputs of a translation, in the order of its samples.

    Args:
        path: a ``.npy``, a ``.npz`` or a folder of images or clips, of the shape of the data;
            numbers that are no bytes are in the units of the data.
        samples: what they became, see :func:`read_samples`.
        data: the data set that they were translated to.
        back: what the samples become when they are translated back, likewise.

    Raises:
        UserError: if they cannot be read, are of another shape than the data, or are not as many or
            not called as the samples are.
    """
    clips = data.scaling.is_clips
    made, found = _read(samples, clips), _read(path, clips)
    scaling = PIXELS if found.files and not clips else _scaling(found.x["train"], data)

    def states(own: Samples, where: Path) -> Tensor:
        x = own.x["train"]
        if len(x) != len(made.x["train"]):
            told = f"{where} holds {len(x):,} samples, {samples} {len(made.x['train']):,}"
            raise UserError(f"{told}: expected one for each, in the same order")
        for one, other in zip(own.files, made.files, strict=False):
            if one != other:
                told = f"{where} has {one} where {samples} has {other}"
                raise UserError(f"{told}: expected files of the same names")
        if own.files and not clips and len(data.shape) == 3:
            x = from_pixels(x, PIXELS, data.shape[0], grey=True)
        x = scaling.encode(x)
        if tuple(x.shape[1:]) != data.shape:
            told = (
                f"{where} holds states of shape {tuple(x.shape[1:])}, {data.name} of {data.shape}"
            )
            raise UserError(f"{told}: resize images by @16x16 after the path")
        return x

    try:
        labels = _labels(found, data) if data.classes else None
    except UserError:  # they, or those of the data, are of no use here
        labels = None
    return Inputs(
        states(found, path), labels, None if back is None else states(_read(back, clips), back)
    )


def _scaling(x: np.ndarray, data: Data) -> Scaling:
    """The scaling of inputs: that of the data, unless either are bytes, or they look different."""
    if data.scaling.is_clips:
        return clip_scaling(x)
    alike = data.scaling.decode(data.real(1, 0, "test")).shape[1:] == x.shape[1:]
    known = alike and x.dtype != np.uint8 and not data.scaling.integer
    return data.scaling if known else Scaling.measure(x)


def _read(path: Path, clips: bool) -> Samples:
    """What a file or folder holds: clips, or images cropped and resized as ``@16x16`` after its
    path asks.
    """
    if clips:
        return read_clips(path)
    text, sizes = (str(path), ()) if path.exists() else split_sizes(str(path))
    found = read_file(Path(text), sizes=sizes)
    if found.files or not sizes:
        return found
    x = found.x["train"]
    for size in sizes:
        x = size(x, Scaling.measure(x), text)
    return replace(found, x={"train": x})


def _labels(found: Samples, data: Data) -> np.ndarray | None:
    """The numbers ``(N,)`` of the classes that samples have in the data, if they have some."""
    labels = found.given.get("train")
    if labels is None or labels.ndim == 2:
        return None
    if not found.names:
        return labels
    return np.array(parse_labels(found.names, data.class_names))[labels]


def read_texts(path: Path, data: Data) -> np.ndarray:
    """Texts ``(N,)`` of a file, a line each, or of an array in a ``.npz``, of the data's length.

    Raises:
        UserError: if they cannot be read, or are longer than those of the data.
    """
    arrays = path.suffix in (".npz", ".npy")
    x, length = read_file(path).x["train"] if arrays else read_lines(path), data.shape[0]
    longest = max(map(len, x), default=0) if x.dtype.kind == "U" else 0
    if not 0 < longest <= length:
        told = f"{path} holds texts of up to {longest} characters, {data.name} of {length}"
        raise UserError(f"{told}: expected samples of that data")
    return x.astype(f"U{length}")


def check_range(x: np.ndarray, data: Data, what: str) -> None:
    """Compare the range of samples with that of the data.

    Samples beyond the bounds of the data are refused. Where there are none, or the samples fill
    a small part of them only, a bad model may have made them: this is told in one line.

    Args:
        x: samples in original units.
        data: the data set that they are compared with.
        what: what they are called.

    Raises:
        UserError: if they leave the data's bounds by more than a hundredth of these.
    """
    scaling, count = data.scaling, data.count("test")
    low, high = scaling.low, scaling.high
    bounded = low is not None and high is not None
    if low is None or high is None:
        real = scaling.decode(data.real(min(count or MAX_ROWS, MAX_ROWS), 0, "test"))
        low, high = float(real.min()), float(real.max())
    least, most = float(x.min()), float(x.max())
    told = f"{what} holds numbers from {least:g} to {most:g}, {data.name} from {low:g} to {high:g}"
    room = (TOLERANCE if bounded else WIDER) * (high - low)
    beyond = least < low - room or most > high + room
    if beyond and bounded:
        raise UserError(f"{told}: expected samples in the original units of the data")
    if beyond or most - least < NARROWER * (high - low):
        notice(f"{told}: if these are other units, no figure of them means anything")

"""Samples that somebody made, read to be compared with a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bezierdistill.data.base import Data
from bezierdistill.data.images import from_pixels
from bezierdistill.data.labels import parse_labels
from bezierdistill.data.reading import read_file
from bezierdistill.errors import UserError
from bezierdistill.progress import notice

MAX_ROWS = 1000  # of the data that its range is taken from
TOLERANCE, WIDER, NARROWER = 0.01, 10.0, 0.05  # shares of the data's range


def read_samples(
    path: Path, data: Data, labelled: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples of a file or of a folder of images, as the data set has them.

    Args:
        path: a ``.npy``, a ``.npz`` (its training split, if it has several) or a folder of images,
            whose folders may be classes of the data.
        data: the data set that they are compared with.
        labelled: whether the labels are asked for.

    Returns:
        The samples ``(N, ...)`` in original units; and the numbers ``(N,)`` of their classes, if
        they are asked for and there are some.

    Raises:
        UserError: if they cannot be read, are of another shape or range than the data, or labels
            that are asked for are none of the data.
    """
    found = read_file(path)
    x = found.x["train"]
    if path.is_dir() and len(data.shape) == 3:
        x = from_pixels(x, data.scaling, data.shape[0])
    expected = data.scaling.decode(data.real(1, 0, "test")).shape[1:]
    if x.shape[1:] != expected:
        told = f"{path} holds samples of shape {x.shape[1:]}, {data.name} of {expected}"
        raise UserError(f"{told}: expected samples of that data")
    check_range(x, data, str(path))
    if labelled and found.problem:
        raise UserError(found.problem)
    labels = found.given.get("train") if labelled else None
    if labels is None or labels.ndim == 2:
        return x, None
    if not found.names:
        return x, labels
    return x, np.array(parse_labels(found.names, data.class_names))[labels]


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

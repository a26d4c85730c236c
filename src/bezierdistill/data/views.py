"""Views of a data set: one class of it, its images cropped, at another size or in colour, its
principal components.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bezierdistill.data.base import ArrayData, Split
from bezierdistill.data.scaling import Scaling
from bezierdistill.errors import UserError

SIDES: tuple[Split, ...] = ("train", "valid", "test")


def only_class(data: ArrayData, name: str, label: int) -> ArrayData:
    """The samples of one class, without conditions.

    Raises:
        UserError: if the data have no labels, or a side holds none of the class.
    """
    if label >= data.classes:
        raise UserError(
            f"{name} asks for class {label}, {data.name} has"
            f" {f'classes 0 to {data.classes - 1}' if data.classes else 'none'}"
        )
    sides = [data.side(split)[data.given[split] == label] for split in SIDES]
    if not all(len(side) for side in sides):
        raise UserError(
            f"{name} has {[len(side) for side in sides]} samples to train, validate and test on,"
            " expected some of each"
        )
    return replace(data, name=name, train=sides[0], valid=sides[1], test=sides[2], given={})


def cropped(data: ArrayData, name: str, size: tuple[int, int]) -> ArrayData:
    """The middle of every image.

    Raises:
        UserError: if the data are no images, or smaller.
    """
    rows, columns = data.shape[1:] if len(data.shape) == 3 else (0, 0)
    if size[0] > rows or size[1] > columns:
        raise UserError(
            f"{name} asks for a middle of {size[0]} x {size[1]}, {data.name} holds states of shape"
            f" {data.shape}"
        )
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    window = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    window = (slice(None), *window) if data.scaling.layout == "chw" else window
    train, valid, test = (data.side(split)[window] for split in SIDES)
    return replace(data, name=name, train=train, valid=valid, test=test)


def coloured(data: ArrayData, name: str) -> ArrayData:
    """Grey images in three equal channels.

    Raises:
        UserError: if the data are no grey images of bytes.
    """
    if data.scaling.layout != "hw" or not data.scaling.integer:
        raise UserError(
            f"{name} asks for grey images in colour, {data.name} holds states of shape {data.shape}"
        )
    train, valid, test = (np.repeat(data.side(split)[..., None], 3, axis=3) for split in SIDES)
    return replace(
        data,
        name=name,
        train=train,
        valid=valid,
        test=test,
        scaling=replace(data.scaling, layout="hwc"),
    )


def resized(data: ArrayData, name: str, size: tuple[int, int]) -> ArrayData:
    """Images at another size, by antialiased bilinear interpolation; bytes stay bytes.

    Raises:
        UserError: if the data are no images.
    """
    if len(data.shape) != 3:
        raise UserError(
            f"{name} asks for images of {size[0]} x {size[1]}, {data.name} holds vectors of"
            f" {data.shape[0]} numbers"
        )

    def resize(own: np.ndarray) -> np.ndarray:
        states = data.scaling.encode(own)
        return data.scaling.decode(
            torch.nn.functional.interpolate(states, size, mode="bilinear", antialias=True)
        )

    train, valid, test = (
        np.concatenate(
            [resize(data.side(split)[k : k + 4096]) for k in range(0, len(data.side(split)), 4096)]
        )
        for split in SIDES
    )
    return replace(data, name=name, train=train, valid=valid, test=test)


def principal(data: ArrayData, name: str, components: int) -> ArrayData:
    """Coordinates on the first principal components of the training side, each of unit variance.

    Raises:
        UserError: if the data have fewer components.
    """
    sides = [
        data.side(split).reshape(len(data.side(split)), -1).astype(np.float32) for split in SIDES
    ]
    most = min(sides[0].shape)
    if components > most:
        raise UserError(
            f"{name} asks for {components} principal components, {data.name} has {most}"
        )
    from sklearn.decomposition import PCA  # imported here: scikit-learn takes a second to import

    pca = PCA(components, svd_solver="covariance_eigh").fit(sides[0])
    train, valid, test = (np.asarray(pca.transform(side), dtype=np.float32) for side in sides)
    return replace(
        data, name=name, train=train, valid=valid, test=test, scaling=Scaling.measure(train)
    )

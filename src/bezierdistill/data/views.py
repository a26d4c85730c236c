"""Views of a data set: one class of it, its images cropped, at another size or in colour, its
principal components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch.nn import functional

from bezierdistill.data.base import SPLITS, ArrayData
from bezierdistill.data.labels import parse_labels
from bezierdistill.data.scaling import Scaling
from bezierdistill.errors import UserError

CHUNK = 4096  # images that are resized together


def _changed(data: ArrayData, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ArrayData:
    train, valid, test = (change(data.original(split)) for split in SPLITS)
    return replace(data, name=name, train=train, valid=valid, test=test)


def only_class(data: ArrayData, name: str, label: str) -> ArrayData:
    """The samples of one class, by its name or number, without conditions.

    Raises:
        UserError: if the data have no such class, or a split holds none of it.
    """
    if not data.classes:
        raise UserError(f"{name} asks for class {label}, {data.name} has no class labels")
    try:
        number = parse_labels([label], data.class_names)[0]
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    train, valid, test = (data.original(s)[data.given[s] == number] for s in SPLITS)
    if 0 in (counts := [len(train), len(valid), len(test)]):
        told = f"{name} has {counts} samples to train, validate and test on"
        raise UserError(f"{told}, expected some of each")
    return replace(data, name=name, train=train, valid=valid, test=test, given={}, names=())


def cropped(data: ArrayData, name: str, size: tuple[int, int]) -> ArrayData:
    """The middle of every image.

    Raises:
        UserError: if the data are no images, or smaller.
    """
    rows, columns = data.shape[1:] if len(data.shape) == 3 else (0, 0)
    if size[0] > rows or size[1] > columns:
        told = f"{name} asks for a middle of {size[0]} x {size[1]}"
        raise UserError(f"{told}, {data.name} holds states of shape {data.shape}")
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    window = (slice(top, top + size[0]), slice(left, left + size[1]))
    before = 2 if data.scaling.layout == "chw" else 1
    return _changed(data, name, lambda x: x[(*[slice(None)] * before, *window)])


def coloured(data: ArrayData, name: str) -> ArrayData:
    """Grey images in three equal channels.

    Raises:
        UserError: if the data are no grey images of bytes.
    """
    if data.scaling.layout != "hw" or not data.scaling.integer:
        told = f"{name} asks for grey images in colour"
        raise UserError(f"{told}, {data.name} holds states of shape {data.shape}")
    found = _changed(data, name, lambda x: np.repeat(x[..., None], 3, axis=3))
    return replace(found, scaling=replace(data.scaling, layout="hwc"))


def resized(data: ArrayData, name: str, size: tuple[int, int]) -> ArrayData:
    """Images at another size, by antialiased bilinear interpolation; bytes stay bytes.

    Raises:
        UserError: if the data are no images.
    """
    if len(data.shape) != 3:
        told = f"{name} asks for images of {size[0]} x {size[1]}"
        raise UserError(f"{told}, {data.name} holds vectors of {data.shape[0]} numbers")

    def resize(x: np.ndarray) -> np.ndarray:
        states = data.scaling.encode(x)
        states = functional.interpolate(states, size, mode="bilinear", antialias=True)
        return data.scaling.decode(states)

    def parts(x: np.ndarray) -> np.ndarray:
        return np.concatenate([resize(x[k : k + CHUNK]) for k in range(0, len(x), CHUNK)])

    return _changed(data, name, parts)


def principal(data: ArrayData, name: str, components: int) -> ArrayData:
    """Coordinates on the first principal components of the training split, each of unit variance.

    Raises:
        UserError: if the data have fewer components.
    """

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1).astype(np.float32)

    most = min(flat(data.train).shape)
    if components > most:
        told = f"{name} asks for {components} principal components"
        raise UserError(f"{told}, {data.name} has {most}")
    from sklearn.decomposition import PCA  # imported here: scikit-learn takes a second to import

    pca = PCA(components, svd_solver="covariance_eigh").fit(flat(data.train))
    found = _changed(data, name, lambda x: np.asarray(pca.transform(flat(x)), dtype=np.float32))
    return replace(found, scaling=Scaling.measure(found.train))

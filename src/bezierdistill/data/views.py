"""Views of a data set: one class of it, its images cropped, at another size or in colour, its
principal components; of clips their frames, or their first frames as conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bezierdistill.data.base import SPLITS, ArrayData, Data, Split
from bezierdistill.data.labels import parse_labels
from bezierdistill.data.lazy import LazyData
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.sizes import Size
from bezierdistill.data.stream import StreamData
from bezierdistill.errors import UserError

Viewed = ArrayData | LazyData | StreamData


def _changed(
    data: Viewed, name: str, change: Callable[[np.ndarray, Scaling], np.ndarray]
) -> Viewed:
    """Data whose samples ``(N, ...)`` of a scaling are changed, now or as they are read."""
    if isinstance(data, ArrayData):
        train, valid, test = (change(data.original(split), data.scaling) for split in SPLITS)
        return replace(data, name=name, train=train, valid=valid, test=test)
    return data.changed(name, lambda x: change(x[None], Scaling.measure(x[None]))[0])


def only_class(data: Viewed, name: str, label: str) -> Viewed:
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
    if isinstance(data, StreamData):
        raise UserError(f"{name} asks for a class of data that come one by one: give it alone")
    if isinstance(data, LazyData):
        return data.only(name, number)
    train, valid, test = (data.original(s)[data.given[s] == number] for s in SPLITS)
    if 0 in (counts := [len(train), len(valid), len(test)]):
        told = f"{name} has {counts} samples to train, validate and test on"
        raise UserError(f"{told}, expected some of each")
    return replace(data, name=name, train=train, valid=valid, test=test, given={}, names=())


def sized(data: Viewed, name: str, size: Size) -> Viewed:
    """Images at another size, see :class:`~bezierdistill.data.sizes.Size`."""
    return _changed(data, name, lambda x, scaling: size(x, scaling, data.name))


def coloured(data: Viewed, name: str) -> Viewed:
    """Grey images in three equal channels; of data that are read later, colour stays as it is.

    Raises:
        UserError: if the data are no grey images of bytes.
    """

    def colour(x: np.ndarray, scaling: Scaling) -> np.ndarray:
        if scaling.layout == "hwc" and scaling.integer and not isinstance(data, ArrayData):
            return x
        if scaling.layout != "hw" or not scaling.integer:
            told = f"{name} asks for grey images in colour"
            raise UserError(f"{told}, {data.name} holds samples of shape {x.shape[1:]}")
        return np.repeat(x[..., None], 3, axis=3)

    found = _changed(data, name, colour)
    if isinstance(found, ArrayData):
        return replace(found, scaling=replace(found.scaling, layout="hwc"))
    return found


def frames(data: Data, name: str) -> ArrayData:
    """The frames of clips as images, each of its clip's class.

    Raises:
        UserError: if the data are no clips.
    """
    own = _clips(data, name)

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, *x.shape[2:])

    train, valid, test = (flat(own.original(split)) for split in SPLITS)
    labels: dict[Split, np.ndarray] = {
        split: np.repeat(given, own.original(split).shape[1])
        for split, given in own.given.items()
        if given.ndim == 1
    }
    scaling = replace(own.scaling, layout="hw" if own.scaling.layout == "fhw" else "hwc")
    return ArrayData(name, train, valid, test, scaling, labels, own.names, own.problem)


def on_first(data: Data, name: str) -> ArrayData:
    """Clips with their first frames, in model units, as condition vectors.

    Raises:
        UserError: if the data are no clips.
    """
    own = _clips(data, name)
    given: dict[Split, np.ndarray] = {
        split: own.scaling.encode(own.original(split)[:, :1]).flatten(1).numpy() for split in SPLITS
    }
    return replace(own, name=name, given=given, names=(), problem="")


def _clips(data: Data, name: str) -> ArrayData:
    if not isinstance(data, ArrayData) or not data.scaling.is_clips:
        told = f"{name} asks for frames of clips, {data.name} holds states of shape {data.shape}"
        raise UserError(f"{told}: expected clips:PATH or bouncing:PATH")
    return data


def principal(data: Viewed, name: str, components: int) -> ArrayData:
    """Coordinates on the first principal components of the training split, each of unit variance.

    Raises:
        UserError: if the data have fewer components, or are not in memory.
    """
    if not isinstance(data, ArrayData):
        raise UserError(f"{name} asks for principal components, {data.name} is not all in memory")

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1).astype(np.float32)

    most = min(flat(data.train).shape)
    if components > most:
        told = f"{name} asks for {components} principal components"
        raise UserError(f"{told}, {data.name} has {most}")
    from sklearn.decomposition import PCA  # imported here: scikit-learn takes a second to import

    pca = PCA(components, svd_solver="covariance_eigh").fit(flat(data.train))

    def transform(x: np.ndarray, _: Scaling) -> np.ndarray:
        return np.asarray(pca.transform(flat(x)), dtype=np.float32)

    found = _changed(data, name, transform)
    assert isinstance(found, ArrayData)
    return replace(found, scaling=Scaling.measure(found.train))

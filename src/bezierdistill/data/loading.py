"""From a name or a path to a :class:`~bezierdistill.data.base.Data`.

A path is a ``.npy`` array, a ``.npz`` with ``x`` (or ``train_images`` and ``test_images``), or a folder of images of one size. Where a file
has no test side, a quarter of it is held out; then an eighth of the training side for validation (each at most 10,000, by a fixed seed).

``PATH@pca48`` is the same data as coordinates on the 48 principal components of its training side, each scaled to unit variance like every
vector here: real data of a size at which methods can be compared in minutes.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from bezierdistill.data.base import ArrayData, Data
from bezierdistill.data.scaling import Scaling
from bezierdistill.data.toys import TOYS, load_toy, manifold_sampler

BUILT_IN = ("digits", "manifold", *TOYS)
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
KEYS = ("x", "train_images", "test_images")
HELD_OUT_MOST = 10_000
LEAST_SAMPLES = 64


def load_data(name: str) -> Data:
    """Load a data set.

    Args:
        name: ``digits``, ``manifold`` (16 dimensions) or ``manifoldN`` (N dimensions), ``checkerboard``, ``moons``, ``gaussians``,
            ``spirals``, or a path (module docstring). ``@pcaN`` after a path or ``digits``: its first N principal components.

    Raises:
        ValueError: if there is no such data, or it holds too few samples, other shapes than one, or numbers that are not finite.
    """
    dimension = re.fullmatch(r"manifold([1-9]\d{0,3})?", name)
    if dimension:
        return load_toy(name, manifold_sampler(int(dimension[1] or 16)))
    if name in TOYS:
        return load_toy(name, TOYS[name])
    components = re.fullmatch(r"(.+)@pca([1-9]\d{0,3})", name)
    if components:
        return _principal(name, components[1], int(components[2]))
    if name == "digits":
        return _digits()
    path = Path(name)
    if not name or len(name) > 4096 or not path.exists():
        raise ValueError(
            f"no data called {name[:200]!r}: expected one of {', '.join(BUILT_IN)}, or the path of a .npz, .npy or folder of images"
        )
    train, test = _read_folder(path) if path.is_dir() else read_array(path)
    return _array_data(name, train, test)


def _principal(name: str, whole: str, components: int) -> Data:
    stamp = Path(whole).stat().st_mtime_ns if Path(whole).exists() else 0
    return _cached_principal(name, whole, components, stamp)


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples of a ``.npy`` or ``.npz`` file in own units, ``(N, ...)``, and its held-out side if it has one.

    Raises:
        ValueError: if the file cannot be read, lacks the keys, or holds numbers that are not finite.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}: expected a .npz or .npy of samples")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in KEYS if key in loaded}
        held = ["x"] if isinstance(loaded, np.ndarray) else sorted(loaded)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz or .npy of numbers: {error}") from None
    keys = ("x",) if "x" in arrays else KEYS[1:]
    if keys[0] not in arrays:
        raise ValueError(f"{path} holds {held}, expected x, or train_images and test_images")
    sides = [_checked(path, arrays[key]) for key in keys if key in arrays]
    return sides[0], sides[1] if len(sides) > 1 else None


def _checked(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "uif":
        raise ValueError(f"{path} holds {array.dtype} numbers, expected integers or floats")
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"{path} holds an array of shape {array.shape}, expected (N, ...) with one sample or more")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        raise ValueError(f"{path} has NaN or infinite numbers in {len(rows)} rows (first: row {rows[0]}): remove or fill them")
    return array


def _array_data(name: str, train: np.ndarray, test: np.ndarray | None) -> Data:
    if len(train) < LEAST_SAMPLES or train.ndim < 2:
        raise ValueError(f"{name} holds samples of shape {train.shape}, expected (N, ...) with N of {LEAST_SAMPLES} or more")
    if test is None:
        train, test = _hold_out(train, 1 / 4)
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(
            f"{name} has training samples of shape {train.shape[1:]} and held-out ones of {test.shape[1:]}, expected one shape"
        )
    train, valid = _hold_out(train, 1 / 8)
    return ArrayData(name, train, valid, test, Scaling.measure(train))


def _hold_out(array: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(0).permutation(len(array))
    held = min(int(share * len(array)), HELD_OUT_MOST)
    return array[np.sort(order[held:])], array[np.sort(order[:held])]


@lru_cache(maxsize=2)
def _cached_principal(name: str, whole: str, components: int, stamp: int) -> Data:
    """Every stage loads its data by name; decomposing it anew each time would take longer than training. ``stamp`` tells a changed file."""
    data = load_data(whole)
    if not isinstance(data, ArrayData):
        raise ValueError(f"{name} asks for principal components of {data.name}, expected a file, a folder or digits")
    sides = [side.reshape(len(side), -1).astype(np.float32) for side in (data.train, data.valid, data.test)]
    most = min(sides[0].shape)
    if components > most:
        raise ValueError(f"{name} asks for {components} principal components, {data.name} has {most}")
    from sklearn.decomposition import PCA  # imported here: scikit-learn takes a second to import

    pca = PCA(components, svd_solver="covariance_eigh").fit(sides[0])
    train, valid, test = (np.asarray(pca.transform(side), dtype=np.float32) for side in sides)
    return ArrayData(name, train, valid, test, Scaling.measure(train))


def _digits() -> Data:
    from sklearn.datasets import load_digits  # imported here: scikit-learn takes a second to import

    images = np.asarray(getattr(load_digits(), "images"), dtype=np.float32)  # noqa: B009 (its type stub is too narrow)
    data = _array_data("digits", images, None)
    assert isinstance(data, ArrayData)
    return replace(data, scaling=Scaling((8.0,), (8.0,), "hw", 0.0, 16.0))


def _read_folder(path: Path) -> tuple[np.ndarray, None]:
    from PIL import Image, UnidentifiedImageError

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"folder {path} holds no image, expected files ending in {', '.join(sorted(IMAGES))}")
    images, grey = [], True
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"{file} has pixels of mode {image.mode}, expected 8 bits a channel")
                grey = grey and image.mode in ("L", "1")
                images.append(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file} cannot be read as an image: {error}") from None
        if images[-1].size != images[0].size:
            raise ValueError(f"{file} is {images[-1].size}, {files[0]} is {images[0].size}: resize them to one size")
    array = np.stack([np.asarray(image) for image in images])
    return (array[..., 0] if grey else array), None

"""Views of data by what follows an @: classes, middles, sizes, arrays by name, packed files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bezierdistill.data import ArrayData, load_data


def write(path: Path, colour: bool = False) -> str:
    """200 images of 8 x 10 with labels 0 to 3; image k is k in its middle and 255 at its edge."""
    x = np.full((200, 8, 10), 255, np.uint8)
    x[:, 2:6, 3:7] = np.arange(200)[:, None, None]
    x = np.repeat(x[..., None], 3, 3) if colour else x
    np.savez(path, x=x, labels=np.arange(200) % 4)
    return str(path)


@pytest.mark.parametrize("colour", [False, True])
def test_the_middle_of_images(colour: bool, tmp_path: Path) -> None:
    name = write(tmp_path / "a.npz", colour)
    whole, middle = load_data(name), load_data(f"{name}@crop4x4")
    assert isinstance(middle, ArrayData)
    assert isinstance(whole, ArrayData)
    assert middle.shape == (3 if colour else 1, 4, 4)
    assert np.array_equal(middle.train, whole.train[:, 2:6, 3:7])
    assert middle.classes == 4


def test_views_follow_each_other(tmp_path: Path) -> None:
    data = load_data(write(tmp_path / "a.npz") + "@crop4x4@2x2@class1")
    assert isinstance(data, ArrayData)
    assert data.shape == (1, 2, 2)
    assert data.classes == data.condition_size == 0
    rows = np.concatenate([data.train, data.valid, data.test])
    assert rows.dtype == np.uint8
    assert sorted(rows[:, 0, 0].tolist()) == [
        k for k in range(200) if k % 4 == 1
    ]  # a constant middle stays what it is
    assert (rows == rows[:, :1, :1]).all()


def test_resizing_keeps_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "r.npz", x=rng.integers(0, 256, (100, 8, 8)).astype(np.uint8))
    whole, half = load_data(str(tmp_path / "r.npz")), load_data(f"{tmp_path / 'r.npz'}@4x4")
    assert isinstance(whole, ArrayData)
    assert isinstance(half, ArrayData)
    assert half.train.mean() == pytest.approx(whole.train.mean(), rel=0.02)
    assert half.train.std() < whole.train.std()  # antialiased


def test_grey_images_in_colour(tmp_path: Path) -> None:
    name = write(tmp_path / "a.npz")
    grey, colour = load_data(name), load_data(f"{name}@rgb")
    assert colour.shape == (3, 8, 10)
    assert (colour.real(9, 0, "test") == grey.real(9, 0, "test")).all()
    with pytest.raises(ValueError, match="asks for grey images in colour"):
        load_data(f"{name}@rgb@rgb")


def test_arrays_by_name_and_their_held_out_rows(tmp_path: Path) -> None:
    a, b = np.arange(100 * 4).reshape(100, 2, 2).astype(np.uint8), np.zeros((100, 2, 2), np.uint8)
    held = np.arange(100) % 5 == 0
    np.savez(tmp_path / "pair.npz", a=a, b=b, is_test=held, names=np.array(["x"] * 100))
    data = load_data(f"{tmp_path / 'pair.npz'}@key=a")
    assert isinstance(data, ArrayData)
    assert np.array_equal(data.test, a[held])
    assert load_data(f"{tmp_path / 'pair.npz'}@key=b").real(20, 0, "test").unique().tolist() == [
        -1.0
    ]
    with pytest.raises(ValueError, match="no array 'c', expected one of a, b, is_test, names"):
        load_data(f"{tmp_path / 'pair.npz'}@key=c")


def packed(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        files.append(buffer.getvalue())
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def test_packed_image_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, 4, 3)).astype(np.uint8) for _ in range(160)]
    train, test = packed(images[:100]), packed(images[100:])
    arrays: dict[str, Any] = {
        "train_jpeg": train[0],
        "train_offsets": train[1],
        "test_jpeg": test[0],
        "test_offsets": test[1],
    }
    labels: dict[str, Any] = {"train_labels": np.arange(100) % 2, "test_labels": np.arange(60) % 2}
    np.savez(tmp_path / "p.npz", **arrays, **labels)
    data = load_data(str(tmp_path / "p.npz"))
    assert isinstance(data, ArrayData)
    assert np.array_equal(data.test, np.stack(images[100:]))
    assert data.classes == 2
    np.savez(tmp_path / "bad.npz", **{**arrays, "train_offsets": train[1] + 10**9})
    with pytest.raises(ValueError, match="do not rise within"):
        load_data(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "cut.npz", **{**arrays, "train_jpeg": train[0] ^ 1})
    with pytest.raises(ValueError, match=r"train_jpeg, file 0\) cannot be read as an image"):
        load_data(str(tmp_path / "cut.npz"))


def test_folders_are_classes(tmp_path: Path) -> None:
    for k in range(90):
        folder = tmp_path / ("cat" if k % 3 else "dog")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), 200 if k % 3 else 10, np.uint8)).save(folder / f"{k}.png")
    data = load_data(str(tmp_path))
    assert data.classes == 2
    x, cond = data.real(20, 0, "test"), data.conditions(20, 0, "test")
    assert cond is not None
    assert ((x.mean((1, 2, 3)) > 0) == (cond[:, 0] == 1)).all()


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("@class7", r"@class7: no class '7', expected 0, 1, 2, 3"),
        ("@crop9x9", "asks for a middle of 9 x 9"),
        ("@pca5@4x4", r"asks for images of 4 x 4, .* holds samples of shape \(5,\)"),
        ("@class1@class1", "asks for class 1, .* has no class labels"),
        ("@huge", "asks for the view @huge, expected @cropNxN"),
    ],
)
def test_views_that_cannot_be(view: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(write(tmp_path / "a.npz") + view)


def test_views_of_endless_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no data called|asks for a view"):
        load_data("moons@class1")

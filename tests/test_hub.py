"""Tables of the hub's formats, read from local folders without a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import config
from PIL import Image

from bezierdistill.cli import main
from bezierdistill.data import LazyData, StreamData, load_data
from bezierdistill.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (200, 4, 6)).astype(np.uint8)
FEATURES = datasets.Features(
    {
        "pixels": datasets.Array2D((4, 6), "uint8"),
        "vector": datasets.List(datasets.Value("float32")),
        "kind": datasets.ClassLabel(names=["cat", "dog", "owl"]),
        "word": datasets.Value("string"),
    }
)
ROWS = {
    "pixels": X,
    "vector": RNG.normal(size=(200, 5)).astype(np.float32),
    "kind": np.arange(200) % 3,
    "word": ["b", "a"] * 100,
}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, and a cache of the test's own."""
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table() -> datasets.Dataset:
    return datasets.Dataset.from_dict(ROWS, features=FEATURES)


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    """A folder with a split of 200 rows, and one of 80."""
    (tmp_path / "set").mkdir()
    table().to_parquet(tmp_path / "set" / "train.parquet")
    table().select(range(80)).to_parquet(tmp_path / "set" / "test.parquet")
    return f"hf:{tmp_path / 'set'}"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A folder of images of several sizes, grey and in colour, each of one value."""
    for k in range(150):
        file = tmp_path / "photos" / ("dog" if k % 3 else "cat") / f"{k:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8 + k % 4, 10 + k % 5, 3), k, np.uint8)
        Image.fromarray(pixels if k % 2 else pixels[..., 0]).save(file)
    return f"hf:{tmp_path / 'photos'}"


def rows(x: Any) -> set[bytes]:
    return {np.ascontiguousarray(row).tobytes() for row in x}


def test_a_folder_of_parquet_is_read_as_arrays_are(parquet: str, tmp_path: Path) -> None:
    data = load_data(parquet, key="pixels", labels="kind")
    assert isinstance(data, LazyData)
    assert data.name == f"{parquet}@key=pixels@labels=kind"
    np.savez(
        tmp_path / "same.npz",
        train_images=X,
        test_images=X[:80],
        train_labels=ROWS["kind"],
        test_labels=ROWS["kind"][:80],
    )
    same = load_data(str(tmp_path / "same.npz"))
    assert data.class_names == ("cat", "dog", "owl")
    assert (data.shape, data.scaling, data.frequencies) == (
        same.shape,
        same.scaling,
        same.frequencies,
    )
    draws = (torch.Generator().manual_seed(3) for _ in range(2))
    for got, expected in [
        *zip(*(own.batch(40, g) for own, g in zip((data, same), draws, strict=True)), strict=True),
        (data.real(80, 1, "test"), same.real(80, 1, "test")),
        (data.conditions(80, 1, "test"), same.conditions(80, 1, "test")),
    ]:
        assert torch.equal(got, expected)


def test_a_split_is_divided_and_columns_are_found(parquet: str) -> None:
    split = load_data(f"{parquet}:test@key=pixels")
    assert [split.count(own) for own in ("train", "valid", "test")] == [53, 7, 20]  # of 80 rows
    assert split.class_names == ("cat", "dog", "owl")  # of the only column of class labels
    part = load_data(f"{parquet}:train[:120]@key=pixels@labels=kind@classowl")
    assert sum(part.count(own) or 0 for own in ("train", "valid", "test")) == 40
    found = rows(part.scaling.decode(part.real(10, 0, "test")))
    assert found <= rows(X[2:120:3])
    words = load_data(parquet, key="pixels", labels="word")
    assert words.class_names == ("a", "b")
    vectors = load_data(parquet, key="vector", labels="vector")
    assert (vectors.shape, vectors.condition_size, vectors.classes) == ((5,), 5, 0)
    assert vectors.scaling.shift == pytest.approx(ROWS["vector"].mean(0).tolist(), abs=0.15)
    with pytest.raises(UserError, match="has the columns pixels, vector, kind, word"):
        load_data(parquet)
    with pytest.raises(UserError, match="holds no 'photo', expected one of pixels, vector"):
        load_data(f"{parquet}@key=photo")


def test_images_of_any_size_are_resized_before_they_are_stacked(photos: str) -> None:
    data = load_data(f"{photos}@rgb@crop8x8@4x4")
    assert isinstance(data, LazyData)
    assert data.shape == (3, 4, 4)
    assert data.class_names == ("cat", "dog")
    values = data.scaling.decode(data.real(30, 0, "test"))
    assert len(np.unique(values)) == 30  # each is of the value that it had
    cond = data.conditions(30, 0, "test")
    assert cond is not None
    assert cond.argmax(1).tolist() == [min(1, k % 3) for k in values[:, 0, 0, 0].tolist()]
    grey = load_data(f"{photos}@4x4")
    assert grey.shape == (3, 4, 4)  # some are in colour
    with pytest.raises(UserError, match=r"item \d+ of .* has shape .*: expected one shape"):
        load_data(photos)
    with pytest.raises(UserError, match="asks for @rgba, expected it after a folder of images"):
        load_data(f"{photos}@rgba")


def test_a_table_that_was_saved_and_tables_as_objects(tmp_path: Path) -> None:
    split = datasets.DatasetDict({"train": table(), "validation": table().select(range(70))})
    split.save_to_disk(tmp_path / "saved")
    stored, given = load_data(f"hf:{tmp_path / 'saved'}", "pixels"), load_data(split, "pixels")
    assert [given.count(own) for own in ("train", "valid", "test")] == [150, 70, 50]
    assert torch.equal(stored.real(20, 0, "valid"), given.real(20, 0, "valid"))
    one = load_data(f"hf:{tmp_path / 'saved'}:validation@key=pixels")
    assert one.count("train") == 47
    stream = load_data(table().to_iterable_dataset(), "pixels", "kind")
    assert isinstance(stream, StreamData)
    assert (stream.class_names, stream.scaling.integer) == (("cat", "dog", "owl"), True)
    assert rows(stream.scaling.decode(stream.real(50, 0, "test"))) == rows(X[:50])

    def doubled(batch: dict[str, Any]) -> dict[str, Any]:
        return {"x": [2.0 * np.asarray(own) for own in batch["pixels"]], "y": batch["kind"]}

    made = load_data(table().with_transform(doubled))
    assert isinstance(made, LazyData)
    assert made.classes == 3
    assert made.scaling.decode(made.real(10, 0, "test")).max() > 255


def test_labels_that_are_not_found_are_told_when_they_are_asked_for() -> None:
    data = load_data(table().remove_columns(["kind"]).rename_column("pixels", "image"))
    assert data.batch(5, torch.Generator())[1] is None
    with pytest.raises(UserError, match="has no labels, only vector, word: name them by @labels="):
        _ = data.classes


def test_what_is_not_there_is_told_in_a_line(
    parquet: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, message in {
        "hf:owner/nothing": r"hf:owner/nothing cannot be loaded \(ConnectionError: Couldn't reach",
        "hf:owner/nothing/config:train": "cannot be loaded",
        f"hf:{tmp_path}/none": "no folder .*none: expected one of data files",
        "hf:./none:train": "no folder ./none",
        f"{parquet}:other": 'Unknown split "other"',
        "hf:": "expected hf:OWNER/NAME",
    }.items():
        with pytest.raises(UserError, match=message) as told:
            load_data(name)
        assert "\n" not in str(told.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    out = str(tmp_path / "m")
    assert main(["train", "--data", parquet, "--out", out]) == 2
    assert "is not installed: pip install 'bezierdistill[hub]'" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_model_is_trained_on_a_folder(photos: str, tmp_path: Path) -> None:
    words = ["train", "--data", f"{photos}@rgb@4x4", "--out", str(tmp_path / "m"), "--steps", "3"]
    small = ["--network.width", "8", "--network.depth", "1", "--batch", "8", "--conditional"]
    assert not main([*words, *small])

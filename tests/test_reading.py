"""Files and folders as people have them: splits and classes by name, what else lies about, images
as a viewer shows them, arrays of other habits, samples in other units."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bezierdistill.data import (
    ArrayData,
    Scaling,
    from_pixels,
    load_data,
    parse_labels,
    read_samples,
)
from bezierdistill.data.arrays import read_npy

RNG = np.random.default_rng(0)


def picture(path: Path, value: int, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def loaded(path: Path | str) -> ArrayData:
    data = load_data(str(path))
    assert isinstance(data, ArrayData)
    return data


def values(x: np.ndarray) -> list[int]:
    """The values of images that have one each, sorted."""
    return sorted(x.reshape(len(x), -1)[:, 0].tolist())


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [("train", None, "test"), ("Training", "VAL", "Test"), ("TRAIN", "validation", "testing")],
)
def test_folders_of_splits_are_no_classes(
    train: str, valid: str | None, test: str, tmp_path: Path
) -> None:
    for k in range(120):
        picture(tmp_path / train / ("cats", "dogs", "eels")[k % 3] / f"{k}.png", k)
    for k in range(30):
        picture(tmp_path / test / ("cats", "dogs")[k % 2] / f"{k}.png", 200 + k % 2)
        if valid is not None:
            picture(tmp_path / valid / "eels" / f"{k}.png", 150)
    data = loaded(tmp_path)
    assert data.class_names == ("cats", "dogs", "eels")
    assert values(data.test) == [200] * 15 + [201] * 15
    assert data.given["test"].tolist() == [k - 200 for k in data.test[:, 0, 0].tolist()]
    held = len(data.valid) if valid is None else 0
    assert len(data.train) == 120 - held
    assert held == (15 if valid is None else 0)
    assert set(values(data.train)) <= set(range(120))
    assert (data.given["train"] == data.train[:, 0, 0] % 3).all()
    if valid is not None:
        assert values(data.valid) == [150] * 30
        assert set(data.given["valid"].tolist()) == {2}


def test_a_class_may_be_called_train_among_others(tmp_path: Path) -> None:
    for k in range(90):
        picture(tmp_path / ("car", "train")[k % 2] / f"{k}.png", k)
    assert loaded(tmp_path).class_names == ("car", "train")
    for k in range(90):
        picture(tmp_path / "only" / "test" / f"{k}.png", k)
    with pytest.raises(ValueError, match="holds the folders test, expected train beside them"):
        load_data(str(tmp_path / "only"))


def test_numeric_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for k in range(480):
        picture(tmp_path / str(k % 12) / f"{k}.png", 20 * (k % 12))
    data = loaded(tmp_path)
    assert data.class_names == tuple(map(str, range(12)))
    assert set(values(loaded(f"{tmp_path}@class2").train)) == {40}
    assert set(values(loaded(f"{tmp_path}@class10").train)) == {200}
    assert data.frequencies is not None
    assert sum(data.frequencies) == pytest.approx(1)
    assert (data.given["train"] == data.train[:, 0, 0] // 20).all()


def test_classes_by_name(tmp_path: Path) -> None:
    for k in range(99):
        picture(tmp_path / ("set 10", "set 9", "dogs")[k % 3] / f"{k}.png", k % 3)
    data = loaded(tmp_path)
    assert data.class_names == ("dogs", "set 9", "set 10")
    assert set(values(loaded(f"{tmp_path}@classset 9").train)) == {1}
    assert set(values(loaded(f"{tmp_path}@class0").train)) == {2}
    with pytest.raises(ValueError, match="no class 'cats', expected dogs, set 9, set 10"):
        load_data(f"{tmp_path}@classcats")


@pytest.mark.parametrize(
    ("words", "names", "numbers"),
    [
        (["dogs", "cats", "1"], ["cats", "dogs"], [1, 0, 1]),
        (["2", "10"], ["1", "2", "10"], [1, 2]),  # all names are numbers: these are meant
        (["2"], ["0", "1", "2"], [2]),
        (["1", "01"], ["00", "01"], [1, 1]),
        (["1"], ["b", "a", "1"], [2]),  # a name goes before a number
        ([], [], []),
        ([0, 2], ["1", "2", "10"], [0, 2]),  # numbers are numbers of classes, whatever their names
        ([np.int64(1), "cats"], ["cats", "dogs"], [1, 0]),
    ],
)
def test_labels_by_number_or_name(
    words: list[str | int], names: list[str], numbers: list[int]
) -> None:
    assert parse_labels(words, names) == numbers


@pytest.mark.parametrize("word", ["cat", "2", "-1", "1.0", "", "²", 2, -1])
def test_labels_that_no_class_has(word: str | int) -> None:
    with pytest.raises(ValueError, match=r"no class .*, expected cats, dogs"):
        parse_labels([word], ["cats", "dogs"])
    with pytest.raises(ValueError, match=r"no class .*, expected 10, 11"):
        parse_labels([word], ["10", "11"])


def test_what_lies_beside_images_is_passed_over_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(80):
        picture(tmp_path / ("cats", "dogs")[k % 2] / f"{k}.png", k)
        (tmp_path / "cats" / f"._{k}.png").write_bytes(b"\0\5\x16\7 of macOS")
    picture(tmp_path / "__MACOSX" / "cats" / "1.png", 255)
    picture(tmp_path / ".ipynb_checkpoints" / "1.png", 255)
    for name in ("cats/.DS_Store", "dogs/Thumbs.db", "labels.csv", "more.csv", "LICENSE"):
        (tmp_path / name).write_bytes(b"?")
    data = loaded(tmp_path)
    assert (data.classes, len(data.train) + len(data.valid) + len(data.test)) == (2, 80)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path}: 80 images, passed over 83 hidden" in error
    for told in ("2 .csv", "1 .db", "1 without an ending"):
        assert told in error
    assert load_data(str(tmp_path)) is data  # and it is told once
    assert capsys.readouterr().err == ""


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    for k in range(80):
        picture(tmp_path / "store" / f"{k}.png", k)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "above").symlink_to(tmp_path / "set")
    data = loaded(tmp_path / "set")
    assert values(np.concatenate([data.train, data.valid, data.test])) == list(range(80))


def seen(images: list[Image.Image], folder: Path, ending: str = "png", **save: Any) -> np.ndarray:
    """What is read of images, the first of them 70 times."""
    folder.mkdir(exist_ok=True)
    for k in range(70):
        images[min(k, len(images) - 1)].save(folder / f"{k:02}.{ending}", **save)
    data = loaded(folder)
    return np.concatenate([data.train, data.valid, data.test])


def half_transparent(mode: str) -> Image.Image:
    """Left half: grey 40, opaque. Right half: a colour that is hidden under alpha 0."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (40, 40, 40, 255)
    rgba[:, 2:] = (200, 200, 200, 0)
    image = Image.fromarray(rgba)
    if mode == "P":
        palette = Image.fromarray((rgba[..., 0] == 200).astype(np.uint8), "P")
        palette.putpalette([40, 40, 40, 200, 200, 200])
        palette.info["transparency"] = 1
        return palette
    if mode in ("L", "RGB"):  # one colour is said to be transparent
        keyed = image.convert("RGB").convert(mode)
        keyed.info["transparency"] = 200 if mode == "L" else (200, 200, 200)
        return keyed
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_hidden_colours_are_white(mode: str, tmp_path: Path) -> None:
    image = half_transparent(mode)
    x = seen([image], tmp_path / "a", transparency=image.info.get("transparency"))
    assert x.shape[1:] == ((4, 4) if mode in ("L", "LA") else (4, 4, 3))
    assert (x[:, :, :2] == 40).all()
    assert (x[:, :, 2:] == 255).all()
    four = loaded(f"{tmp_path / 'a'}@rgba")
    assert four.shape == (4, 4, 4)
    assert (four.train[..., 3] == [255, 255, 0, 0]).all()
    assert (four.train[..., :2, :3] == 40).all()
    with pytest.raises(
        ValueError, match=r"asks for the view @rgba, expected .* right after a path"
    ):
        load_data(f"{tmp_path / 'a'}@2x2@rgba")


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    rgba = np.full((4, 4, 4), (255, 0, 100, 51), np.uint8)  # a fifth
    x = seen([Image.fromarray(rgba)], tmp_path / "a")
    assert (abs(x.astype(int) - [255, 204, 224]) <= 1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_they_say(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((16, 16), np.uint8)
    upright[:8], upright[:8, :8] = 80, 240  # a corner that is bright, beside it a darker one
    back = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(back))
    for ending, tolerance in (("png", 0), ("jpg", 24)):
        x = seen([image], tmp_path / ending, ending, exif=exif)
        assert (abs(x.astype(int) - upright) <= tolerance).all()


def test_deep_and_printed_images_become_bytes(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 16).reshape(4, 4).astype(np.uint16)
    x = seen([Image.fromarray(deep)], tmp_path / "deep")
    assert x.dtype == np.uint8
    assert (abs(x - np.rint(deep / 257)) == 0).all()
    ink = Image.fromarray(np.full((8, 8, 3), (250, 120, 10), np.uint8)).convert("CMYK")
    x = seen([ink], tmp_path / "ink", "jpg", quality=100)
    assert (abs(x.astype(int) - [250, 120, 10]) <= 4).all()


def test_a_changed_folder_is_noticed_through_views(tmp_path: Path) -> None:
    for k in range(70):
        picture(tmp_path / f"{k}.png", 10)
    for name in (f"{tmp_path}", f"{tmp_path}@2x2"):
        before = loaded(name)
        assert loaded(name) is before
        picture(tmp_path / "0.png", 90)
        picture(tmp_path / "new" / "1.png", 90)
        after = loaded(name)
        assert len(after.train) + len(after.valid) + len(after.test) == 71
        assert set(values(np.concatenate([after.train, after.valid, after.test]))) == {10, 90}
        picture(tmp_path / "0.png", 10)
        (tmp_path / "new" / "1.png").unlink()


@pytest.mark.parametrize("name", ["set@16x16", "user@home/a", "set@16x16@rgb"])
def test_paths_with_an_at_sign_can_be_named_and_are_noticed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    file = folder / "a.npz"
    np.savez(file, x=np.zeros((80, 4, 4), np.uint8))
    assert loaded(f"{file}@2x2").shape == (1, 2, 2)
    np.savez(file, x=np.ones((80, 4, 4), np.uint8))
    assert set(values(loaded(f"{file}@2x2").train)) == {1}
    for k in range(70):
        picture(folder / f"{k}.png", 10)
    file.unlink()
    assert loaded(folder).shape == (1, 4, 4)
    assert loaded(f"{folder}@2x2").shape == (1, 2, 2)


def test_a_file_replaced_within_a_tick_of_the_clock_is_noticed(tmp_path: Path) -> None:
    for value in (0, 1):
        np.save(tmp_path / "b.npy", np.full((80, 3), value, np.uint8))
        os.utime(tmp_path / "b.npy", (1e9, 1e9))
        os.replace(tmp_path / "b.npy", tmp_path / "a.npy")
        assert set(values(loaded(tmp_path / "a.npy").train)) == {value}


def test_labels_of_one_column_and_a_validation_split(tmp_path: Path) -> None:
    """The layout of MedMNIST."""
    sizes = {"train": 100, "val": 30, "test": 40}
    arrays = {f"{k}_images": np.full((n, 4, 4), n, np.uint8) for k, n in sizes.items()}
    labels = {f"{k}_labels": np.arange(n, dtype=np.uint8)[:, None] % 5 for k, n in sizes.items()}
    np.savez(tmp_path / "m.npz", allow_pickle=False, **arrays, **labels)
    data = loaded(tmp_path / "m.npz")
    for split, own in zip(("train", "valid", "test"), sizes.values(), strict=True):
        assert values(data.original(split)) == [own] * own
        assert data.given[split].tolist() == [k % 5 for k in range(own)]
    assert (data.classes, data.class_names) == (5, ("0", "1", "2", "3", "4"))
    assert set(values(loaded(f"{tmp_path / 'm.npz'}@class3").valid)) == {30}


WRONG = {
    "99 labels": ({"labels": np.arange(99)}, "100 train samples have labels .* shape .99,."),
    "negative": ({"labels": np.arange(100) - 1}, "labels have -1 in row 0, expected 0 to"),
    "fractions": ({"labels": np.full(100, 0.5)}, r"labels are float64, .*0\.5.* first, expected"),
    "several": ({"labels": np.zeros((100, 14), np.uint8)}, r"shape \(100, 14\), expected \(N,\)"),
    "scalar": ({"labels": np.array(3)}, r"shape \(\), expected one per sample"),
    "names": (
        {"labels": np.arange(100) % 3, "class_names": np.array(["a", "b"])},
        "labels have 2 in row 2, expected 0 to 1",
    ),
    "a word": (
        {"labels": np.array(["a", "b"] * 50), "class_names": np.array(["a", "c"])},
        "no class 'b', expected a, c",
    ),
    "NaN": ({"conditions": np.full((100, 2), np.nan)}, "conditions have .*nan.* in row 0"),
    "whole": ({"conditions": np.zeros((100, 2), int)}, "conditions are int64 .* expected floats"),
    "test only": (
        {"x_test": np.zeros((9, 3)), "y_test": np.zeros(9, int)},
        "train samples have no labels or conditions, others have",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_labels_stop_only_who_asks_for_them(name: str, tmp_path: Path) -> None:
    arrays, message = WRONG[name]
    np.savez(tmp_path / "x.npz", allow_pickle=False, x=np.ones((100, 3), np.float32), **arrays)
    data = load_data(str(tmp_path / "x.npz"))
    x, cond = data.batch(5, torch.Generator())
    assert x.shape == (5, 3)
    assert cond is None
    for ask in (
        lambda: data.classes,
        lambda: data.class_names,
        lambda: data.frequencies,
        lambda: data.condition_size,
        lambda: load_data(f"{tmp_path / 'x.npz'}@class0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            ask()
        assert "\n" not in str(error.value)
        assert str(tmp_path / "x.npz") in str(error.value)


def test_images_beside_folders_of_classes_stop_only_who_asks_for_classes(tmp_path: Path) -> None:
    for k in range(80):
        picture(tmp_path / ("cats", "dogs")[k % 2] / f"{k}.png", k)
    picture(tmp_path / "preview.png", 255)
    data = loaded(tmp_path)
    assert data.count("test") == 20
    with pytest.raises(ValueError, match=r"preview\.png is in no folder of a class, others are"):
        assert data.classes


HABITS = [
    (("arr_0", "arr_1"), ()),
    (("X", "y"), ()),
    (("x", "labels"), ()),
    (("data", "target"), ()),
    (("images", "label"), ("images_test", "label_test")),
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("X_Train", "Y_Train"), ("X_Test", "Y_Test")),
    (("train_x", "train_y"), ("test_x", "test_y")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("trainX", "trainy"), ("testX", "testy")),
    (("x", "y"), ("x_test", "y_test")),
]


@pytest.mark.parametrize(("train", "test"), HABITS, ids=str)
@pytest.mark.parametrize("text", [False, True])
def test_arrays_by_the_names_that_people_give_them(
    train: tuple[str, ...], test: tuple[str, ...], text: bool, tmp_path: Path
) -> None:
    words = np.array(["eel", "cat", "dog"])
    own, held = np.arange(90).astype(np.uint8), np.arange(150, 189).astype(np.uint8)
    arrays: dict[str, Any] = {"unused": np.zeros(3)}
    for (images, labels), numbers in zip((train, test) if test else (train,), (own, held)):  # noqa: B905
        arrays[images] = np.repeat(numbers[:, None], 4, 1)
        arrays[labels] = words[numbers % 3] if text else numbers % 3
    np.savez(tmp_path / "a.npz", allow_pickle=False, **arrays)
    data = loaded(tmp_path / "a.npz")
    assert values(data.test) == held.tolist() if test else len(data.test) == 22
    assert data.class_names == (("cat", "dog", "eel") if text else ("0", "1", "2"))
    for split in ("train", "valid", "test"):
        own = data.original(split)[:, 0] % 3
        names = np.array(data.class_names)[data.given[split]]
        assert (names == (words[own] if text else own.astype(str))).all()


def test_arrays_that_are_not_used_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.zeros((90, 2), np.float32)
    np.savez(tmp_path / "a.npz", x=x, labels=np.zeros(90, int), conditions=x, weights=x)
    load_data(str(tmp_path / "a.npz"))
    assert capsys.readouterr().err == f"{tmp_path / 'a.npz'}: not used: conditions, weights\n"
    load_data(f"{tmp_path / 'a.npz'}@key=weights")
    assert capsys.readouterr().err == ""


def test_class_names_of_a_file(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((90, 2), np.float32), "labels": np.arange(90) % 2}
    np.savez(
        tmp_path / "a.npz", allow_pickle=False, **arrays, class_names=np.array(["no", "yes", "?"])
    )
    data = loaded(tmp_path / "a.npz")
    assert (data.class_names, data.condition_size) == (("no", "yes", "?"), 3)
    assert data.frequencies is not None
    assert data.frequencies[2] == 0
    assert (loaded(f"{tmp_path / 'a.npz'}@classyes").classes, data.classes) == (0, 3)


def test_text_is_read_as_it_is_and_no_damaged_one(tmp_path: Path) -> None:
    for words in (
        np.array(["a", "bé", ""]),
        np.array([["x" * 9]]).astype(">U9"),
        np.array([], "U3"),
    ):
        np.save(tmp_path / "t.npy", words)
        assert (read_npy(tmp_path / "t.npy") == words).all()
    np.save(tmp_path / "t.npy", np.array(["abcd"]))
    content = bytearray((tmp_path / "t.npy").read_bytes())
    content[-1] = 0x7F
    (tmp_path / "t.npy").write_bytes(content)
    with pytest.raises(ValueError, match="has bytes that are no <U4: it is damaged"):
        read_npy(tmp_path / "t.npy")


LAYOUTS = [
    ((9, 3, 4, 4), "chw", (3, 4, 4)),
    ((9, 4, 4, 3), "hwc", (3, 4, 4)),
    ((9, 1, 3, 3), "chw", (1, 3, 3)),
    ((9, 3, 3, 1), "hwc", (1, 3, 3)),
    ((9, 4, 3, 3), "chw", (4, 3, 3)),
    ((9, 3, 3, 3), "hwc", (3, 3, 3)),
    ((9, 3, 5, 4), "hwc", (4, 3, 5)),  # no square either way
    ((9, 3, 32, 32), "chw", (3, 32, 32)),
    ((9, 32, 32, 3), "hwc", (3, 32, 32)),
    ((9, 1, 28, 20), "chw", (1, 28, 20)),
]


@pytest.mark.parametrize(("shape", "layout", "state"), LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_small_images_are_read_as_squares(
    shape: tuple[int, ...], layout: str, state: tuple[int, ...], dtype: type
) -> None:
    x = (255 * RNG.random(shape)).astype(dtype)
    scaling = Scaling.measure(x)
    assert scaling.layout == layout
    assert scaling.encode(x).shape[1:] == state
    np.testing.assert_allclose(scaling.decode(scaling.encode(x)), x, atol=1e-4)


def labelled_images(folder: Path) -> ArrayData:
    """80 images of a level of grey for each of three classes."""
    for k in range(80):
        picture(folder / ("cats", "dogs", "eels")[k % 3] / f"{k}.png", 3 * k)
    return loaded(folder)


def test_a_folder_of_images_can_be_samples(tmp_path: Path) -> None:
    data = labelled_images(tmp_path / "data")
    for k in range(20):
        picture(tmp_path / "made" / ("eels", "dogs")[k % 2] / f"{k:02}.png", 10 * k)
    x, labels = read_samples(tmp_path / "made", data, labelled=True)
    assert labels is not None
    assert x.shape == (20, 4, 4)
    assert [
        (int(v) // 10 % 2, int(label)) for v, label in zip(x[:, 0, 0], labels, strict=True)
    ] == [
        (1, 1) if label == 1 else (0, 2) for label in labels
    ]  # by name: dogs is 1 and eels is 2, though cats are missing
    assert read_samples(tmp_path / "made", data)[1] is None
    (tmp_path / "made" / "dogs").rename(tmp_path / "made" / "wolves")
    assert read_samples(tmp_path / "made", data)[0].shape == (20, 4, 4)
    with pytest.raises(ValueError, match="no class 'wolves', expected cats, dogs, eels"):
        read_samples(tmp_path / "made", data, labelled=True)


@pytest.mark.parametrize("layout", ["hw", "hwc", "chw"])
def test_images_of_samples_get_the_layout_of_the_data(layout: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (80, 6, 6, 3), np.uint8)
    own = {"hw": pixels[..., 0], "hwc": pixels, "chw": pixels.transpose(0, 3, 1, 2)}[layout]
    np.savez(tmp_path / "d.npz", x=own)
    data = load_data(str(tmp_path / "d.npz"))
    (tmp_path / "s").mkdir()
    for k in range(9):
        Image.fromarray(pixels[k, ..., 0] if layout == "hw" else pixels[k]).save(
            tmp_path / "s" / f"{k}.png"
        )
    np.testing.assert_array_equal(read_samples(tmp_path / "s", data)[0], own[:9])
    for channels in (1, 3):
        stored = from_pixels(pixels[..., 0], data.scaling, channels)
        assert stored.size == 80 * 36 * (1 if layout == "hw" else channels)
    if layout == "hw":
        with pytest.raises(ValueError, match="the images are in colour, expected grey ones"):
            from_pixels(pixels, data.scaling)
        grey = from_pixels(pixels, data.scaling, grey=True)
        np.testing.assert_allclose(grey, pixels @ np.array([0.299, 0.587, 0.114]), rtol=1e-12)
    np.save(tmp_path / "wrong.npy", np.zeros((9, 5), np.uint8))
    with pytest.raises(ValueError, match=r"wrong.npy holds samples of shape \(5,\), .*d.npz of"):
        read_samples(tmp_path / "wrong.npy", data)


def test_samples_in_other_units_are_refused_or_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, moons = load_data("digits"), load_data("moons")
    file = tmp_path / "s.npy"
    np.save(file, RNG.integers(0, 256, (50, 8, 8)).astype(np.uint8))
    with pytest.raises(ValueError, match="from 0 to 255, digits from 0 to 16: expected samples in"):
        read_samples(file, digits)
    for x, told in (
        (16 * RNG.random((50, 8, 8)), ""),
        (RNG.random((50, 8, 8)) / 2, "digits from 0 to 16: if these are other units"),
        (np.full((50, 8, 8), 16.1), "other units"),  # rounding is no other unit, one value is told
    ):
        np.save(file, x.astype(np.float32))
        read_samples(file, digits)
        assert told in capsys.readouterr().err
    for scale, told in ((1.0, 0), (3.0, 0), (200.0, 1), (0.01, 1)):
        np.save(file, scale * moons.scaling.decode(moons.real(500, 3, "test")))
        read_samples(file, moons)
        assert capsys.readouterr().err.count("\n") == told

"""Data as Python objects: the same draws as of files, read when they are asked for, continued
exactly."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.cli import main
from bezierdistill.cli.parser import parse
from bezierdistill.data import (
    ArrayData,
    LazyData,
    Scaling,
    StreamData,
    load_data,
    name_data,
    rescaled,
)
from bezierdistill.errors import UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream
from bezierdistill.objectives import FlowMatching
from bezierdistill.objects import Named
from bezierdistill.reporting import write_report
from bezierdistill.stages.evaluate import EvaluateConfig, main_evaluate
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.batches import PairBatches
from bezierdistill.training.settings import LoopConfig

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 3)).astype(np.float32)
Y = np.arange(300) % 4
GREY = RNG.integers(0, 256, (300, 6, 8)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (300, 6, 8, 3)).astype(np.uint8)
NET, LOOP = NetworkConfig(width=16, depth=1), LoopConfig(warmup=1, log_every=5, save_every=5)
SPLITS = ("train", "valid", "test")


class Items(Dataset[Any]):
    """The items that a function of their number gives; counts how many are read."""

    def __init__(self, item: Callable[[int], Any], count: int = 300, **told: Any) -> None:
        self.item, self.count, self.reads = item, count, 0
        self.__dict__.update(told)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        self.reads += 1
        return self.item(number)


class Ordered(IterableDataset[Any]):
    """The same in their order."""

    def __init__(self, item: Callable[[int], Any], count: int, **told: Any) -> None:
        self.item, self.count, self.reads = item, count, 0
        self.__dict__.update(told)

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            self.reads += 1
            yield self.item(number)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def originals(data: Any, count: int = 50, seed: int = 0) -> tuple[np.ndarray, Tensor | None]:
    x, cond = data.batch(count, generator(seed))
    return data.scaling.decode(x), cond


def from_file(folder: Path, x: np.ndarray, y: np.ndarray) -> Any:
    np.savez(folder / "same.npz", x=x, labels=y)
    return load_data(str(folder / "same.npz"))


IN_MEMORY: dict[str, Any] = {
    "arrays": (X, Y),
    "tensors": (torch.tensor(X), torch.tensor(Y)),
    "with gradients": (torch.tensor(X, requires_grad=True), Y[:, None]),
    "by name": {"x": X, "labels": torch.tensor(Y, dtype=torch.uint8)},
    "TensorDataset": TensorDataset(torch.tensor(X), torch.tensor(Y)),
}


@pytest.mark.parametrize("form", IN_MEMORY)
def test_arrays_are_what_a_file_of_them_is(form: str, tmp_path: Path) -> None:
    data, file = load_data(IN_MEMORY[form]), from_file(tmp_path, X, Y)
    assert isinstance(data, ArrayData)
    assert data.name.startswith("python:")
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(data, split), getattr(file, split))
        np.testing.assert_array_equal(data.given[split], file.given[split])
    assert (data.scaling, data.classes) == (file.scaling, 4)
    assert load_data(IN_MEMORY[form]) is data  # as it is the same object


def test_splits_vectors_bytes_and_half_precision() -> None:
    data = load_data({"train": (X[:200], X[:200, :2]), "Validation": (X[200:240], X[200:240, :2])})
    assert isinstance(data, ArrayData)
    np.testing.assert_array_equal(data.valid, X[200:240])
    assert (data.count("train"), data.count("test")) == (150, 50)
    assert (data.classes, data.condition_size) == (0, 2)
    assert load_data(COLOUR).shape == load_data(COLOUR.transpose(0, 3, 1, 2)).shape == (3, 6, 8)
    assert load_data(GREY).scaling.integer
    half = load_data(torch.tensor(X, dtype=torch.bfloat16))
    assert isinstance(half, ArrayData)
    assert np.abs(half.scaling.decode(half.real(40, 0, "test"))).max() > 1
    assert load_data(data) is data


def pil(k: int) -> Any:
    return Image.fromarray(COLOUR[k])


FORMS: dict[str, tuple[np.ndarray, Callable[[int], Any]]] = {
    "pair": (X, lambda k: (torch.tensor(X[k]), int(Y[k]))),
    "dictionary": (X, lambda k: {"X": X[k].tolist(), "Target": torch.tensor(Y[k]), "id": k}),
    "more": (X, lambda k: [X[k], np.array([Y[k]]), "more"]),
    "grey": (GREY, lambda k: (Image.fromarray(GREY[k]), Y[k])),
    "colour": (COLOUR, lambda k: (pil(k), Y[k])),
    "some grey": (COLOUR, lambda k: (pil(k), Y[k])),
    "transparent": (COLOUR, lambda k: (pil(k).convert("RGBA"), Y[k])),
    "chw": (COLOUR.transpose(0, 3, 1, 2), lambda k: (torch.tensor(COLOUR[k]).movedim(2, 0), Y[k])),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_gives_what_a_file_of_its_items_gives(form: str, tmp_path: Path) -> None:
    x, item = FORMS[form]
    if form == "some grey":
        x = x.copy()
        x[::3] = x[::3, ..., :1]
        item = lambda k: (Image.fromarray(x[k, ..., 0] if k % 3 == 0 else x[k]), Y[k])  # noqa: E731
    data: Any = load_data(Items(item, len(x)))
    file = from_file(tmp_path, x, Y)
    assert not isinstance(data, ArrayData)
    assert (data.shape, data.classes) == (file.shape, 4)
    assert [data.count(split) for split in SPLITS] == [file.count(split) for split in SPLITS]
    # fewer than 2,048 items: all are measured
    np.testing.assert_allclose(data.scaling.shift, file.scaling.shift, rtol=1e-6)
    np.testing.assert_allclose(data.scaling.scale, file.scaling.scale, rtol=1e-6)
    rows = np.array([5, 2**40, 0])
    for draws in (
        lambda own: own.batch(50, generator()),
        lambda own: own.take(rows, 3, Stream.SIMULATE),
    ):
        (states, cond), (same, vectors) = draws(data), draws(file)
        np.testing.assert_allclose(
            data.scaling.decode(states), file.scaling.decode(same), atol=1e-5
        )
        assert torch.equal(cond, vectors)
    for split in SPLITS:
        got, expected = (own.scaling.decode(own.real(19, 7, split)) for own in (data, file))
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert torch.equal(data.conditions(19, 7, split), file.conditions(19, 7, split))
    with pytest.raises(UserError, match="1000 test samples"):
        data.real(1000, 0, "test")


@pytest.mark.parametrize("told", [False, True])
def test_of_a_million_items_few_are_read_and_kept(told: bool) -> None:
    """Each has 64 kB: a whole would have 64 GB."""
    more = {"targets": np.arange(10**6) % 5} if told else {}
    items = Items(lambda k: (np.full((128, 128, 4), k % 251, np.uint8), k % 5), 10**6, **more)
    tracemalloc.start()
    data = load_data(items)
    assert data.count("train") == 980_000
    assert data.classes == 5
    assert data.frequencies == pytest.approx([0.2] * 5, abs=1e-3 if told else 0.05)
    pairs = PairBatches(data, 32, torch.device("cpu"), 0.1)
    draws = generator()
    seen = torch.cat([pairs(draws).x1 for _ in range(4)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen[:, 0, 0, 0].unique()) > 80
    assert items.reads < (300 if told else 2400)
    assert peak < 2**28 + 2**27  # what is measured at once, and an index


def test_what_items_draw_is_a_function_of_the_batch_or_the_row() -> None:
    def augmented(k: int) -> Any:
        return X[k] + [torch.rand(()).item(), np.random.rand(), random.random()], k

    data = load_data(Items(augmented))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    first, again = (data.batch(40, generator(1))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # pyright: ignore[reportArgumentType]
    assert random.getstate() == before[2]
    rows, some = (data.take(r, 0, Stream.SIMULATE)[0] for r in (range(900), np.array([899, 3])))
    assert torch.equal(rows[[899, 3]], some)
    assert len(rows[:, 0].unique()) == 900  # 300 samples, augmented anew in each row
    added = (
        originals(data, 300)[0]
        - X[np.argmin(np.abs(originals(data, 300)[0][:, None] - X - 0.5).sum(2), 1)]
    )
    assert 0.3 < added.mean() < 0.7


def test_names_are_of_content_and_hold_the_object() -> None:
    def items(shift: float = 0.0) -> Items:
        return Items(lambda k: (X[k] + shift, 0))

    names = [name_data(own) for own in (items(), items(), items(1.0))]
    assert names[0] == names[1] != names[2]
    assert name_data(items()) != name_data(items(), key="x")
    augmented = [name_data(Items(lambda k: np.random.default_rng().random(3))) for _ in range(2)]
    assert augmented[0] == augmented[1]  # as far as can be told
    late, early = (Items(lambda k, a=a: (X[k] + a * (k == 5), 0)) for a in (0.0, 1.0))
    pair = [TrainConfig(own, Path("x")).data for own in (late, early)]
    assert pair[0] == pair[1]
    assert [load_data(own).parts["train"].items for own in pair] == [late, early]  # pyright: ignore[reportAttributeAccessIssue]
    del names, augmented, pair
    own = items(2.0)
    config = TrainConfig(own, Path("x"), domain=X)
    assert isinstance(config.data, Named)
    assert load_data(config.data) is load_data(own)
    assert load_data(config.data).name == config.data
    assert load_data(str(config.data)) is load_data(own)
    assert (
        TrainConfig(load_data(own), Path("x")).data == TrainConfig(load_data(own), Path("x")).data
    )
    with pytest.raises(UserError, match="not there any more: give it again, or name it by FILE"):
        load_data("python:Items-000000000000")


def test_labels_are_found_and_named() -> None:
    plain = lambda k: (X[k], int(Y[k]))  # noqa: E731
    names = ("a", "b", "c", "d")
    told = Items(plain, targets=Y.tolist(), classes=list(names))
    assert load_data(told).class_names == names
    # 4 that are compared, 8 of the name twice, 64 and all of those that are measured
    known = load_data(Items(lambda k: (GREY[k], int(Y[k])), targets=Y.tolist()))
    assert known.classes == 4
    part = load_data(Subset(told, range(0, 300, 2)))
    assert part.class_names == names
    assert part.frequencies == pytest.approx([0.5, 0, 0.5, 0], abs=0.1)
    others = load_data(Items(plain, targets=(Y + 1).tolist()))  # not those of the items
    assert others.classes == 4
    assert (
        load_data(
            Items(plain, class_to_idx=dict(zip("dcba", (3, 2, 1, 0), strict=True)))
        ).class_names
        == names
    )
    words = load_data(Items(lambda k: (X[k], names[Y[k]]), classes=names))
    assert torch.equal(words.conditions(30, 0, "test"), load_data(told).conditions(30, 0, "test"))  # pyright: ignore[reportArgumentType]
    assert load_data(ConcatDataset([told, told])).classes == 4
    assert load_data(Items(lambda k: (X[k], X[k, :2]))).condition_size == 2
    odd = {"train": Items(lambda k: {"pixels": X[k], "kind": Y[k], "label": 0})}
    data = load_data(odd, key="pixels", labels="kind")
    assert data.classes == 4
    only = load_data(f"{name_data(told)}@classb")
    assert sum(only.count(split) or 0 for split in SPLITS) == 75
    assert len({tuple(row) for row in originals(only, 400)[0].round(4).tolist()}) <= 75
    assert only.classes == only.condition_size == 0
    assert only.batch(3, generator())[1] is None


def test_views_of_images_of_any_size() -> None:
    def item(k: int) -> Any:
        image = Image.fromarray(np.full((6 + k % 5, 8 + k % 3, 3), k, np.uint8))
        return image.convert("L") if k % 2 else image

    own = Items(item, 200)
    name = name_data(own)
    with pytest.raises(
        UserError, match=r"item \d+ of .* has shape \(\d+, \d+, 3\), others .*@16x16"
    ):
        load_data(own)
    data = load_data(f"{name}@rgb@crop6x6@4x4")
    assert data.shape == (3, 4, 4)
    x = data.scaling.decode(data.real(40, 0, "test"))
    assert x.dtype == np.uint8
    assert len(np.unique(x)) == 40  # each of one colour, which stays
    with pytest.raises(UserError, match=r"asks for a middle of 9 x 9"):
        load_data(f"{name}@crop9x9")
    with pytest.raises(UserError, match="not all in memory"):
        load_data(f"{name}@4x4@pca2")


def test_a_mapped_file_is_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(load_data(mapped), LazyData)
    data = load_data((mapped, Y))
    assert isinstance(data, LazyData)
    assert data.parts["train"].labels is not None
    got, cond = originals(data)
    expected, vectors = originals(load_data((X, Y)))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert torch.equal(cond, vectors)  # pyright: ignore[reportArgumentType]


def stream(count: int = 400, **told: Any) -> Ordered:
    return Ordered(lambda k: (X[k % 300] + k, int(Y[k % 300])), count, **told)


def test_a_stream_holds_out_its_first_rows_and_begins_again_behind_them() -> None:
    data = load_data(stream())
    assert isinstance(data, StreamData)
    assert [data.count(split) for split in SPLITS] == [200, 100, 100]
    assert data.classes == 4
    order = np.stack([X[k % 300] + k for k in range(400)])
    test = data.scaling.decode(data.real(100, 0, "test"))
    np.testing.assert_allclose(np.sort(test, 0), np.sort(order[:100], 0), atol=1e-3)
    rows = data.epochs(30, 0, slice(None))
    seen = np.concatenate([data.scaling.decode(next(rows)[0]) for _ in range(20)])
    np.testing.assert_allclose(seen, np.tile(order[200:], (3, 1)), atol=1e-3)
    later = data.epochs(30, 13, slice(10, 20))
    np.testing.assert_allclose(
        data.scaling.decode(next(later)[0]), seen[13 * 30 + 10 : 13 * 30 + 20], atol=1e-3
    )


def test_of_a_long_stream_the_first_rows_are_kept() -> None:
    items = stream(10**9)
    data = load_data(items)
    assert [data.count(split) for split in SPLITS] == [4096, 2048, 2048]
    assert items.reads < 8192 + 100
    next(data.epochs(50, 3, slice(None)))  # pyright: ignore[reportAttributeAccessIssue]
    assert items.reads < 8192 + 100 + 4096 + 200


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("data", ["stream", "dataset", "loader"])
def test_kill_and_resume_are_bit_identical(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def augmented(k: int) -> Any:
        return X[k % 300] + torch.rand(3).numpy() + np.random.rand(), int(Y[k % 300])

    def config(folder: str) -> TrainConfig:
        weighted = WeightedRandomSampler(torch.arange(1.0, 301).tolist(), 400)
        own: Any = {
            "stream": Ordered(augmented, 400),
            "dataset": Items(augmented),
            "loader": DataLoader(Items(augmented), 32, sampler=weighted),
        }[data]
        loop = LoopConfig(warmup=1, log_every=5, save_every=5, accumulate=2)
        return TrainConfig(own, tmp_path / folder, 24, 16, network=NET, loop=loop, conditional=True)

    whole = train(config("whole"))
    assert load_data(config("whole").data).name == config("parts").data
    true, calls = FlowMatching.loss, 0

    def dies(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2 * 17:
            raise Killed
        return true(*arguments)

    monkeypatch.setattr(FlowMatching, "loss", dies)
    with pytest.raises(Killed):
        train(config("parts"))
    monkeypatch.setattr(FlowMatching, "loss", true)
    parts = train(config("parts"))
    assert calls == 34
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, parts.net.state_dict()[name]), name
    assert parts.card.data == config("parts").data


def test_ranks_share_the_batches_of_a_stream() -> None:
    class Two:
        rank, ranks, done, config = 1, 2, 3, LoopConfig(accumulate=2)

    data: Any = load_data(stream())
    trainer: Any = Two()
    pairs = PairBatches(data, 5, torch.device("cpu"), trainer=trainer)(generator())
    rows = data.epochs(10, 6, slice(None))
    assert torch.equal(pairs.x1, next(rows)[0][5:])
    units = rescaled(data, Scaling((1.0,), (2.0,)))
    moved = PairBatches(units, 5, torch.device("cpu"), trainer=trainer)(generator())
    again = units.scaling.decode(moved.x1)
    np.testing.assert_allclose(again, data.scaling.decode(pairs.x1), rtol=1e-5, atol=1e-3)
    assert not hasattr(rescaled(load_data(X), units.scaling), "epochs")


def doubled(items: list[Any]) -> Any:
    return {
        "image": torch.stack([torch.tensor(2 * x) for x, _ in items]),
        "y": [y for _, y in items],
    }


def test_loaders_are_their_dataset_unless_they_have_an_order_of_their_own() -> None:
    own = Items(lambda k: (X[k], int(Y[k])))
    for plain in (DataLoader(own, 7), DataLoader(own, 7, shuffle=True), DataLoader(own, None)):
        data = load_data(plain)
        assert isinstance(data, LazyData)
        np.testing.assert_array_equal(originals(data)[0], originals(load_data(own))[0])
    made = load_data(DataLoader(own, 7, collate_fn=doubled))
    assert isinstance(made, LazyData)
    assert made.classes == 4
    np.testing.assert_allclose(originals(made)[0], 2 * originals(load_data(own))[0], atol=1e-5)
    single = load_data(DataLoader(own, None, collate_fn=lambda item: (3 * item[0], item[1])))
    np.testing.assert_allclose(originals(single)[0], 3 * originals(load_data(own))[0], atol=1e-5)
    late = torch.zeros(300)
    late[290:] = 1
    for loader in (
        DataLoader(own, 7, sampler=WeightedRandomSampler(late.tolist(), 500)),
        DataLoader(own, batch_sampler=Late(SequentialSampler(own), 7, False)),
    ):
        data = load_data(loader)
        assert isinstance(data, StreamData)
        rows, _ = next(data.epochs(64, 0, slice(None)))
        found = {tuple(row) for row in data.scaling.decode(rows).round(3).tolist()}
        assert found <= {tuple(row) for row in X[290:].round(3).tolist()}
    data = load_data(DataLoader(stream(), 9, collate_fn=None))
    assert isinstance(data, StreamData)
    assert torch.equal(
        next(data.epochs(40, 2, slice(None)))[0],
        next(load_data(stream()).epochs(40, 2, slice(None)))[0],  # pyright: ignore[reportAttributeAccessIssue]
    )


class Late(BatchSampler):
    """Batches of the last ten items alone."""

    def __iter__(self) -> Iterator[list[int]]:
        for k in range(100):
            yield [290 + (k + j) % 10 for j in range(7)]


def usual(k: int) -> Any:
    return X[k % 300], k % 4


def one(at: int, value: Any, others: Callable[[int], Any]) -> Callable[[int], Any]:
    return lambda k: value if k == at else others(k)


def bad(every: int, value: Any) -> Callable[[int], Any]:
    return lambda k: usual(k) if k % every else value


WRONG: dict[str, tuple[Any, str]] = {
    "shapes": (
        Items(bad(3, (X[0, :2], 0))),
        r"item \d+ of python:Items\S+ has shape \(\d,\), others",
    ),
    "bytes": (
        Items(bad(3, (X[0].astype(np.uint8), 0))),
        r"item \d+ .* holds \w+, others (float32|uint8)",
    ),
    "NaN": (
        Items(bad(3, (X[0] * np.nan, 0))),
        r"has NaN, infinite or too large numbers in item \d+",
    ),
    "too few": (Items(lambda k: X[k], 60), "holds 60 items to train on, expected 64 or more"),
    "few rows": (X[:63], r"holds samples of shape \(63, 3\)"),
    "none": (Items(lambda k: X[k], 0), "holds 0 items"),
    "short stream": (stream(100), "expected .* 64 or more"),
    "empty stream": (stream(0), "gives no item"),
    "NaN in a stream": (Ordered(bad(3, (X[0] * np.inf, 0)), 200), "numbers in item 0"),
    "read once": ((x for x in X), "is a generator without a length, or one that is read once"),
    "keys": (Items(lambda k: {"photo": X[k]}), r"item \d+ of .* holds photo, expected x, image or"),
    "words": (
        Items(lambda k: "abc"),
        r"item \d+ of .* is str .*expected numbers \(D,\) or an image",
    ),
    "no data": (3.5, "is a float without a length"),
    "a set": ({1, 2}, "is a set without a length"),
    "nan array": (X * np.nan, r"NaN or infinite numbers in 300 rows"),
    "no train": ({"test": X}, "have the splits test, expected train"),
    "kinds": ({"train": X, "test": Items(lambda k: X[k])}, "splits of several kinds"),
    "collated": (
        DataLoader(Items(lambda k: (X[k], 0)), 8, collate_fn=lambda items: torch.zeros(3, 3)),
        "makes 3 rows of 64 items",
    ),
    "empty mapping": ({}, "holds 0 items"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_a_line(case: str) -> None:
    source, message = WRONG[case]
    with pytest.raises(UserError, match=message) as told:
        load_data(source)
    assert "\n" not in str(told.value)


def test_keys_that_are_asked_for_have_to_be_there() -> None:
    own = Items(lambda k: {"image": X[k], "label": 0})
    with pytest.raises(UserError, match=r"holds no 'img', expected one of image, label"):
        load_data(own, key="img")
    with pytest.raises(UserError, match=r"holds no 'kind', expected one of image, label"):
        load_data(own, labels="kind")
    with pytest.raises(UserError, match="is a tuple, without names: expected a dictionary for key"):
        load_data(Items(lambda k: (X[k], 0)), key="img")


def _met(data: LazyData, rows: np.ndarray) -> None:
    data._conditions("train", rows, data._read("train", rows)[1])


def test_what_is_wrong_late_is_told_when_it_is_met() -> None:
    """Item 5,000 of 10,000 is not among those that are measured."""
    measured = load_data(Items(lambda k: (X[k % 300], 0), 10_000))
    assert isinstance(measured, LazyData)
    at = int(measured.parts["train"].rows[4000])
    rows = np.array([3, 4000])
    for value, message in [
        ((X[0, :2], 0), rf"item {at} of .* has shape \(2,\), others \(3,\)"),
        ((X[0] * np.nan, 0), f"numbers in item {at}: remove"),
        ((X[0], 9), f"has the label '9' in item {at}, expected one of 4 classes"),
        ((X[0], "cat"), f"has the label 'cat' in item {at}"),
        ((X[0], None), f"has the label 'None' in item {at}"),
    ]:
        data = load_data(Items(one(at, value, usual), 10_000))
        assert isinstance(data, LazyData)
        with pytest.raises(UserError, match=message):
            _met(data, rows)
    data = load_data(Ordered(one(300, (X[0], 9), usual), 400))
    assert data.classes == 10  # it is among the rows that are kept
    late: Any = load_data(Ordered(one(9000, (X[0], 9), usual), 9100))
    with pytest.raises(UserError, match="label '9' in item 9000"):
        next(late.epochs(1, 9000 - 4096, slice(None)))  # pyright: ignore[reportAttributeAccessIssue]


def test_labels_that_cannot_be_used_stop_nobody_who_does_not_ask() -> None:
    for label in ({"box": 3}, 0.5, [1, 2]):
        data = load_data(Items(lambda k, label=label: (X[k], label)))
        assert data.batch(5, generator())[1] is None
        with pytest.raises(UserError, match=r"has the label .* in item \d+, expected all whole"):
            _ = data.classes
    named = load_data(Items(lambda k: (X[k], int(Y[k])), classes=["a", "b"]))
    with pytest.raises(UserError, match="expected 0 to 1"):
        _ = named.classes


def test_a_function_of_a_file_gives_the_data(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def data():\n    return torch.arange(400.0).reshape(200, 2)\n"
        "def faces():\n"
        "    return [{'face': torch.full((6, 6), float(k)), 'who': k % 3} for k in range(200)]\n"
        "def nothing():\n    return None\n"
    )
    assert load_data(str(file)).shape == (2,)
    faces = load_data(f"{file}:faces", key="face", labels="who")
    assert faces is load_data(f"{file}:faces@key=face@labels=who")
    assert faces.classes == 3
    assert load_data(f"{file}:faces@key=face@3x3").shape == (1, 3, 3)
    with pytest.raises(UserError, match="has no function other, which returns the data"):
        load_data(f"{file}:other")
    with pytest.raises(UserError, match="is a NoneType"):
        load_data(f"{file}:nothing")
    words = ["train", "--data", f"{file}:data", "--out", str(tmp_path / "m"), "--steps", "2"]
    assert not main([*words, "--network.width", "16", "--network.depth", "1", "--batch", "8"])
    before = load_data(str(file))
    file.write_text(file.read_text().replace("200, 2", "100, 4"))
    assert load_data(str(file)).shape == (4,) != before.shape


def test_an_array_of_a_file_with_its_labels_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", faces=X, who=Y, is_test=np.arange(300) > 200)
    data = load_data(str(tmp_path / "a.npz"), key="faces", labels="who")
    assert isinstance(data, ArrayData)
    np.testing.assert_array_equal(data.given["test"], Y[201:])
    with pytest.raises(UserError, match=r"names no samples, expected @key=NAME before it"):
        load_data(str(tmp_path / "a.npz"), labels="who")
    with pytest.raises(UserError, match=r"holds no array 'what'"):
        load_data(str(tmp_path / "a.npz"), key="faces", labels="what")


def test_stages_take_objects_and_reports_outlive_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Items(lambda k: (X[k], int(Y[k])))
    small: Mapping[str, Any] = {"network": NET, "loop": LOOP}
    recipe = run_recipe(RecipeConfig(own, tmp_path / "recipe", 9_000, batch=16, **small))
    assert recipe.card.data == name_data(own)
    assert (
        run_recipe(RecipeConfig(own, tmp_path / "recipe", 9_000, batch=16, **small)).card
        == recipe.card
    )
    samples = tmp_path / "s.npz"
    np.savez(samples, x=X[:40] + 0.1)
    result = main_evaluate(EvaluateConfig(samples, stream()))
    assert result["protocol"]["count"] == 40
    few: Mapping[str, Any] = {"steps": 2, "batch": 8, "count": 20, "solver_steps": 2}
    assert len(reflow(ReflowConfig((X, Y), tmp_path / "reflow", 1, **few, **small))) == 1
    settings: Mapping[str, Any] = {"seeds": 1, "samples": 64, "batch": 32, "keep_samples": True}
    rows = arena(ArenaConfig(own, tmp_path / "arena", ("rfd-1",), 12_000, **settings, **small))
    assert all(row.error is None for row in rows)
    moved = train(TrainConfig(X, tmp_path / "moved", 2, 8, domain=stream(), **small))
    assert str(moved.card.domain_data).startswith("python:Ordered-")

    def gone(name: str) -> Any:
        raise UserError(f"{name} is not there any more")

    for module in ("models", "arenas"):
        monkeypatch.setattr(f"bezierdistill.reporting.{module}.load_data", gone)
    for folder in ("recipe", "arena", "moved"):
        text = write_report(tmp_path / folder).read_text()
        assert "python:" in text
        assert "Samples" in text or "not there any more" in text


def test_the_command_line_takes_lists_of_what_may_be_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import field, make_dataclass

    from bezierdistill.cli import parser

    kinds = [
        ("many", tuple[Path | object, ...], field(default=())),
        ("one", str | object | None, None),
    ]
    config = make_dataclass("config", kinds)
    Told = type("Told", (), {"fields": {"many": "", "one": ""}})
    with monkeypatch.context() as patch:
        patch.setattr(parser, "read_help", lambda _: Told)
        own = parser.Parser()
        list(parser._add_options(own, config, None, "", "options"))
    found = vars(own.parse_args(["--many", "a.py:f", "b", "--one", "c"]))
    assert found == {"many": [Path("a.py:f"), Path("b")], "one": "c"}
    assert parse(["train", "--data", "a.py:f", "--out", "x"]).config.data == "a.py:f"

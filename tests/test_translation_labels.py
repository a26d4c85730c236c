"""Translation as users ask for it: folders of images of several sizes, labels that are kept, and
how much of an input is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bezierdistill.cli import main
from bezierdistill.data import ArrayData, Scaling, load_data
from bezierdistill.errors import UserError
from bezierdistill.metrics import RandomFeatures, relative_distance, translation_scores
from bezierdistill.models import load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.stages.train import TrainConfig, check_labels, train
from bezierdistill.training.batches import PairBatches
from bezierdistill.training.settings import LoopConfig
from conftest import Draw

CPU = LoopConfig(lr=3e-3, accelerator="cpu", warmup=5)
TINY = ["--batch", "16", "--loop.accelerator", "cpu"]
A, B = ((80, 60), (180, 90)), ((155, 150), (105, 180))  # where labels 0 and 1 lie, in bytes


def labelled(
    path: Path, places: Any, seed: int, shares: Any = (0.5, 0.5), names: Any = None
) -> str:
    """Images of two pixels, near a place of each label."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), 320, p=shares)
    x = np.array(places)[labels] + rng.normal(0, 4, (320, 2))
    more: dict[str, Any] = {} if names is None else {"class_names": np.array(names)}
    np.savez(path, x=x.round().astype(np.uint8)[:, None], labels=labels, **more)
    return str(path)


def photos(folder: Path, ground: int, seed: int, count: int = 96) -> Path:
    """PNGs of several sizes in folders of two classes: dark or bright above a ground."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        pixels = np.full((*rng.integers(7, 20, 2), 3), ground, np.uint8)
        pixels[: len(pixels) // 2] = 30 if k % 2 else 220
        file = folder / ("dark" if k % 2 else "bright") / f"{k:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_flow_keeps_labels_that_optimal_transport_alone_swaps(tmp_path: Path) -> None:
    """Between these places the other label is the nearer one."""
    a, b = labelled(tmp_path / "a.npz", A, 0), labelled(tmp_path / "b.npz", B, 1)
    x, labels = np.load(a)["x"], np.load(a)["labels"]
    net, found = NetworkConfig(width=64, depth=2), {}
    for coupling in ("ot", "label-ot"):
        out = tmp_path / coupling
        train(TrainConfig(b, out, 300, 128, domain=a, coupling=coupling, network=net, loop=CPU))
        y = load_model(out).translate(x, 40, "heun")[:, 0].astype(float)
        apart = np.linalg.norm(y[:, None] - np.array(B)[None], axis=2)
        found[coupling] = float((apart.argmin(1) == labels).mean())
    assert found["ot"] < 0.05
    assert found["label-ot"] > 0.95


def test_sources_have_the_labels_of_the_data(tmp_path: Path, generator: torch.Generator) -> None:
    a = load_data(labelled(tmp_path / "a.npz", A, 0, (0.99, 0.01)))
    b = load_data(labelled(tmp_path / "b.npz", B, 1, (0.3, 0.7)))
    batches = PairBatches(b, 64, torch.device("cpu"), domain=a, alike=True)
    for _ in range(5):
        x0, x1, cond, labels = batches(generator)
        assert labels is not None
        assert cond is None
        for x, places in ((x0, A), (x1, B)):
            pixels = 127.5 * x.flatten(1) + 127.5
            assert torch.equal(torch.cdist(pixels, torch.tensor(places).float()).argmin(1), labels)
        assert len(x0) == 64
        assert 0.5 < float(labels.double().mean()) < 0.9  # as frequent as in the data


def test_domains_without_the_same_labels_are_refused(tmp_path: Path) -> None:
    a, b = labelled(tmp_path / "a.npz", A, 0), labelled(tmp_path / "b.npz", B, 1)
    named = labelled(tmp_path / "n.npz", B, 1, names=("cat", "dog"))
    more = labelled(tmp_path / "m.npz", (*B, (10, 10)), 1, (0.4, 0.4, 0.2))
    none = tmp_path / "none.npz"
    np.savez(none, x=np.load(a)["x"])
    for domain, data, message in (
        (str(none), b, "has no labels, coupling label-ot joins both sides"),
        (a, str(none), "has no labels"),
        (a, named, "has the classes 0, 1, data .* cat, dog"),
        (a, more, "expects the same in one order"),
    ):
        with pytest.raises(UserError, match=message):
            train(TrainConfig(data, tmp_path / "out", 5, 16, domain=domain, coupling="label-ot"))
        assert not (tmp_path / "out").exists()
    x = np.zeros((9, 2), np.float32)
    given: dict[Any, Any] = dict.fromkeys(("train", "valid", "test"), np.zeros(9, np.int64))
    lacking = ArrayData("lacking", x, x, x, Scaling(), given, ("0", "1"))
    with pytest.raises(UserError, match="no training samples of class 1"):
        check_labels(lacking, load_data(b))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"coupling": "label-ot"}, "expected --domain"),
        ({"conditional": True, "domain": a, "coupling": "ot"}, "expected --coupling label-ot"),
    ]
    for changes, told in refused:
        with pytest.raises(UserError, match=told):
            TrainConfig(b, tmp_path / "out", **changes)


def test_folders_of_several_sizes_from_recipe_to_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe, conditional on labels of folders, its preview, and what translations keep."""
    a, b = photos(tmp_path / "a", 60, 0), photos(tmp_path / "b", 180, 1)
    recipe = ["recipe", "--data", f"{b}@6x6", "--domain", f"{a}@6x6", *TINY]
    recipe += ["--budget", 20_000, "--network.width", 32, "--train.coupling", "label-ot"]
    assert run(*recipe, "--train.conditional", "--out", tmp_path / "run") == 0
    assert Image.open(tmp_path / "run" / "translations.png").width > 100
    model = ["--model", tmp_path / "run" / "student"]
    translate = ["translate", *model, "--input", a, "--out", tmp_path / "made"]
    assert "resize them to one size, by" in fails(capsys, *translate)
    grid = ["--grid", tmp_path / "grid.png"]
    assert run(*translate, "--resize", *grid) == 0
    assert Image.open(tmp_path / "grid.png").height > 100
    student = load_model(tmp_path / "run" / "student")
    files = sorted(a.rglob("*.png"))
    first = np.asarray(Image.open(tmp_path / "made" / files[0].relative_to(a)))
    x = load_sized(files[0])
    y = [student.translate(x, labels=[name])[0].astype(int) for name in ("bright", "dark")]
    assert np.abs(first - y[0]).max() <= 1  # the label of its folder
    assert np.abs(first - y[1]).max() > 1
    with pytest.raises(UserError, match="trained with labels of its inputs"):
        student.translate(x)
    alone = ["translate", *model, "--input", files[0], "--resize", "--out", tmp_path / "one"]
    assert "expected --labels" in fails(capsys, *alone)
    assert run(*alone, "--labels", "dark") == 0
    other = np.asarray(Image.open(tmp_path / "one" / files[0].name))
    assert np.abs(other - y[1]).max() <= 1
    evaluate = ["evaluate", "--samples", tmp_path / "made", "--data", f"{b}@6x6"]
    out = tmp_path / "scores.json"
    assert run(*evaluate, "--inputs", f"{a}@6x6", "--out", out) == 0
    assert "distance from inputs" in capsys.readouterr().out
    kept = json.loads(out.read_text())["translation"]
    assert kept["pixel"] > 0
    assert (kept["agreement"], kept["cycle"]) == (None, None)
    assert "resize them to one size" in fails(capsys, *evaluate, "--inputs", a)
    (tmp_path / "made" / "dark" / "001.png").rename(tmp_path / "made" / "dark" / "000.png")
    assert "expected files of the same names" in fails(capsys, *evaluate, "--inputs", f"{a}@6x6")
    (tmp_path / "made" / "dark" / "000.png").unlink()
    assert "expected one for each" in fails(capsys, *evaluate, "--inputs", f"{a}@6x6")


def load_sized(file: Path) -> np.ndarray:
    """An image ``(1, 6, 6, 3)`` as ``@6x6`` makes it."""
    pixels = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)[None].float()
    x = torch.nn.functional.interpolate(pixels, (6, 6), mode="bilinear", antialias=True)
    return x.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_files_are_cropped_and_resized_one_by_one(tmp_path: Path) -> None:
    a = photos(tmp_path / "a", 60, 0)
    data: Any = load_data(f"{a}@6x6")
    assert data.class_names == ("bright", "dark")
    every = np.concatenate([data.train, data.valid, data.test])
    expected = np.concatenate([load_sized(file) for file in sorted(a.rglob("*.png"))])
    order = (np.lexsort(x.reshape(len(x), -1).T) for x in (every, expected))
    apart = [x[rows].astype(int) for x, rows in zip((every, expected), order, strict=True)]
    assert np.abs(apart[0] - apart[1]).max() <= 1
    assert load_data(f"{a}@crop7x7").shape == (3, 7, 7)
    assert load_data(f"{a}@crop7x7@4x5").shape == (3, 4, 5)
    assert load_data(f"{a}@rgba@4x4").shape == (4, 4, 4)
    with pytest.raises(UserError, match=r"@crop9x9 asks for a middle of 9 x 9, .*\.png holds"):
        load_data(f"{a}@crop9x9")
    with pytest.raises(UserError, match="resize them to one size, by @16x16"):
        load_data(str(a))


class Halves(RandomFeatures):
    """A classifier by the sign of the first number."""

    def logits(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        return torch.stack([-first, first], 1)


def test_figures_of_what_is_kept(draw: Draw) -> None:
    x, other = draw(500, 4), draw(500, 4)
    labels, judge = (x[:, 0] > 0).long(), Halves(4)
    same = translation_scores(x, x, judge, labels, x)
    assert (same.pixel, same.feature, same.agreement, same.cycle) == (0, 0, 1, 0)
    strange = translation_scores(x, other, judge, labels, other)
    assert strange.agreement == pytest.approx(0.5, abs=0.1)
    assert strange.pixel == strange.cycle == relative_distance(x, other)
    assert strange.feature == pytest.approx(1, abs=0.1)
    plain = translation_scores(x, other, RandomFeatures(4), labels)
    assert (plain.agreement, plain.cycle) == (None, None)


def test_evaluate_measures_labels_and_the_way_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = labelled(tmp_path / "a.npz", A, 0), labelled(tmp_path / "b.npz", B, 1)
    x, labels = np.load(a)["x"], np.load(a)["labels"]
    right = np.array(B, np.uint8)[labels][:, None] + (np.arange(320) % 5)[:, None, None]
    np.savez(tmp_path / "y.npz", x=right.astype(np.uint8))
    evaluate = ["evaluate", "--samples", tmp_path / "y.npz", "--data", b]
    more = ["--inputs", a, "--back", a, "--extractor", "classifier", "--out", tmp_path / "m.json"]
    assert run(*evaluate, *more) == 0
    assert "label agreement 1.000" in capsys.readouterr().out
    kept = json.loads((tmp_path / "m.json").read_text())["translation"]
    assert kept["agreement"] == 1
    assert kept["cycle"] == 0
    y = Scaling((127.5,), (127.5,), "hw").encode(np.load(tmp_path / "y.npz")["x"])
    given = load_data(a).scaling.encode(x)
    assert kept["pixel"] == pytest.approx(relative_distance(given, y))
    assert "expected --inputs as well" in fails(capsys, *evaluate, "--back", a)

"""Extractors: torchmetrics as the reference, the classifier and its cache, SqueezeNet written out,
figures of classes that are known."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.cli import main
from bezierdistill.data import ArrayData, Scaling, load_data, read_samples
from bezierdistill.errors import UserError
from bezierdistill.metrics import (
    ClassifierFeatures,
    DinoFeatures,
    Evaluator,
    InceptionFeatures,
    RandomFeatures,
    SqueezeNetFeatures,
    classifier,
    classifier_features,
    energy_distance,
    fidelity,
    frechet_distance,
    kernel_distance,
    load_extractor,
    precision_recall,
    squeezenet,
)
from bezierdistill.metrics import inception as inception_module
from bezierdistill.metrics.features import describe, extract, weights_digest
from bezierdistill.metrics.scales import describe_scales, scale_features
from bezierdistill.metrics.squeezenet import SQUEEZED
from bezierdistill.records import (
    ClassScore,
    ClassScores,
    Protocol,
    Scores,
    from_json,
    read_record,
    to_json,
)
from conftest import Draw

Metric = Callable[[Tensor, Tensor, nn.Module], float]
REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, and a short training."""
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "STEPS", 40)
    return tmp_path / "cache"


def labelled(classes: int = 3, count: int = 90, side: int = 0, valid: int = 20) -> ArrayData:
    """Classes that are easily told apart: a row of numbers or an image of bytes, bright in its
    class's part."""
    rng = np.random.default_rng(0)

    def some(size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(size) % classes
        x = 4 * np.eye(classes)[labels] + rng.normal(size=(size, classes))
        if not side:
            return x.astype(np.float32), labels
        image = np.repeat(np.clip(40 * x + 40, 0, 255), -(-side // classes), 1)[
            :, None, :side
        ].repeat(side, 1)
        return image.astype(np.uint8), labels

    sides = [some(size) for size in (count, valid, count)]
    given: Any = dict(zip(("train", "valid", "test"), (labels for _, labels in sides), strict=True))
    return ArrayData(
        "easy", *(x for x, _ in sides), scaling=Scaling.measure(sides[0][0]), given=given
    )


class Projection(nn.Module):
    """A module as torchmetrics takes it: fixed features, ``num_features``, and nothing else."""

    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1).to(self.weight) @ self.weight)


@pytest.mark.parametrize(
    "extractor",
    [RandomFeatures(12), Projection(), ClassifierFeatures((3, 2, 2), 4)],
    ids=lambda e: type(e).__name__,
)
def test_frechet_and_kernel_distance_are_those_of_torchmetrics(
    extractor: nn.Module, draw: Draw
) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = draw(150, 3, 2, 2), 1.5 * draw(150, 3, 2, 2) + 0.3
    frechet = FrechetInceptionDistance(feature=extractor)
    kernel = KernelInceptionDistance(feature=extractor, subsets=1, subset_size=150)
    for metric in (frechet, kernel):
        metric.update(b, real=True)
        metric.update(a, real=False)
    assert frechet_distance(a, b, extractor) == pytest.approx(float(frechet.compute()), rel=1e-3)
    assert kernel_distance(a, b, extractor) == pytest.approx(
        float(kernel.compute()[0]), rel=1e-3, abs=1e-6
    )


def test_kernel_distance_is_the_written_out_formula(draw: Draw) -> None:
    x, y = draw(7, 3).numpy(), draw(5, 3).numpy() + 1

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        return float(
            np.mean(
                [
                    (p @ q / 3 + 1) ** 3
                    for i, p in enumerate(a)
                    for j, q in enumerate(b)
                    if not (same and i == j)
                ]
            )
        )

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(
        torch.from_numpy(x), torch.from_numpy(y), nn.Identity()
    ) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased_and_sees_a_shift(draw: Draw) -> None:
    values = torch.tensor(
        [kernel_distance(draw(30, 2), draw(40, 2), nn.Identity()) for _ in range(500)]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / 500**0.5
    assert (values < 0).double().mean() > 0.3
    assert kernel_distance(draw(200, 2) + 1, draw(200, 2), nn.Identity()) > 4 * float(values.std())


def test_kernel_distance_of_a_shifted_distribution_in_closed_form(draw: Draw) -> None:
    """For point masses at u and v it is ``k(u, u) + k(v, v) - 2 k(u, v)``."""
    u, v = torch.tensor([[1.0, 2.0]]).expand(9, 2), torch.tensor([[0.0, -1.0]]).expand(4, 2)
    assert kernel_distance(u, v, nn.Identity()) == pytest.approx(3.5**3 + 1.5**3 - 0.0, rel=1e-12)


@pytest.mark.parametrize("side", [0, 8, 16])
def test_the_classifier_is_a_function_of_the_data_alone(side: int, cache: Path) -> None:
    data = labelled(side=side)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        first = classifier_features(data)
    assert torch.equal(torch.random.get_rng_state(), state)
    next(cache.glob("*.safetensors")).unlink()
    torch.rand(3)
    torch.set_num_threads(2)
    try:
        second = classifier_features(data)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert first.digest == second.digest == weights_digest(second)
    assert first.accuracy == second.accuracy > 0.9
    x = data.real(90, 5, "test")
    labels = data.conditions(90, 5, "test")
    assert labels is not None
    assert (first.logits(x).argmax(1) == labels.argmax(1)).double().mean() == pytest.approx(
        first.accuracy
    )
    assert first(x).shape == (90, first.num_features)
    torch.testing.assert_close(first(x)[3:4], first(x[3:4]), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 5, 9), (4, 64, 64), (7,)], ids=str)
def test_the_classifier_takes_any_shape_and_no_other_than_its_own(shape: tuple[int, ...]) -> None:
    extractor = ClassifierFeatures(shape, 3)
    assert extractor(torch.zeros(2, *shape)).shape == (2, 96)
    assert extractor.logits(torch.zeros(1, *shape)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"got states of shape \(2,\), expected"):
        extractor(torch.zeros(2, 2))


def test_the_cache_is_read_told_apart_and_repaired(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = classifier_features(labelled())
    path = next(cache.glob("*.safetensors"))
    trained: list[int] = []
    train = classifier.train_classifier

    def counted(*arguments: Any) -> ClassifierFeatures:
        trained.append(1)
        return train(*arguments)

    monkeypatch.setattr(classifier, "train_classifier", counted)
    again = classifier_features(labelled())
    assert not trained
    assert (again.digest, again.accuracy) == (first.digest, first.accuracy)
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"not safetensors"):
        path.write_bytes(damaged)
        assert classifier_features(labelled()).digest == first.digest
        assert len(path.read_bytes()) == len(whole)
        assert classifier_features(labelled()).accuracy == first.accuracy
    assert len(trained) == 4
    assert classifier_features(labelled(count=93)).digest != first.digest
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "file"))
    assert classifier_features(labelled()).accuracy > 0.9


def fake_weights(path: Path, **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """SqueezeNet weights of the right names and shapes; random, so that every part matters."""
    rng, shapes, width = np.random.default_rng(0), {"conv1": (96, 3, 7, 7)}, 96
    for name, squeezed in SQUEEZED.items():
        shapes |= {
            f"{name}.squeeze": (squeezed, width, 1, 1),
            f"{name}.expand1x1": (4 * squeezed, squeezed, 1, 1),
        }
        shapes |= {f"{name}.expand3x3": (4 * squeezed, squeezed, 3, 3)}
        width = 8 * squeezed
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        arrays[f"{name}.weight"] = rng.normal(
            scale=(2 / np.prod(shape[1:])) ** 0.5, size=shape
        ).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(scale=0.1, size=shape[0]).astype(np.float32)
    arrays |= {key: array for key, array in changes.items() if array is not None}
    np.savez(
        path,
        allow_pickle=False,
        **{
            key: array
            for key, array in arrays.items()
            if key not in changes or changes[key] is not None
        },
    )
    return arrays


def written_out(arrays: dict[str, np.ndarray], image: Tensor) -> Tensor:
    """SqueezeNet 1.0 to fire9 as in its definition, of one RGB image (3, H, W) in 0..255, in
    float64."""
    weights = {key: torch.from_numpy(array).double() for key, array in arrays.items()}

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return functional.conv2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options
        ).clamp_min(0)

    red, green, blue = functional.interpolate(image.double()[None], (227, 227), mode="bilinear")[0]
    x = conv(torch.stack([blue - 104, green - 117, red - 123])[None], "conv1", stride=2)
    assert x.shape[2:] == (111, 111)
    for k in range(2, 10):
        if k in (2, 5, 9):  # after conv1, fire4 and fire8
            x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-1.0), 3, 2)
        squeezed = conv(x, f"fire{k}.squeeze")
        x = torch.cat(
            [conv(squeezed, f"fire{k}.expand1x1"), conv(squeezed, f"fire{k}.expand3x3", padding=1)],
            1,
        )
    assert x.shape == (1, 512, 13, 13)
    return x.sum((2, 3)) / 13**2


def test_squeezenet_is_its_definition(tmp_path: Path) -> None:
    arrays = fake_weights(tmp_path / "w.npz")
    extractor = SqueezeNetFeatures(tmp_path / "w.npz")
    images = torch.randint(
        0, 256, (2, 3, 20, 24), generator=torch.Generator().manual_seed(0)
    ).float()
    expected = torch.cat([written_out(arrays, image) for image in images])
    torch.testing.assert_close(
        extractor(images / 127.5 - 1).double(),
        expected,
        rtol=1e-3,
        atol=1e-3 * float(expected.std()),
    )
    grey = images[:, :1] / 127.5 - 1
    torch.testing.assert_close(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    assert extractor(grey).shape[1] == extractor.num_features
    assert describe(extractor) == {"extractor": "SqueezeNet", "digest": weights_digest(extractor)}
    with pytest.raises(ValueError, match=r"got states of shape \(2, 8, 8\), expected images"):
        extractor(torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fire5.expand3x3.bias": None},
            r"lack fire5.expand3x3.bias, expected conv1 and fire2 to fire9",
        ),
        (
            {"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)},
            r"hold conv1.weight of float32 \(64, 3, 3, 3\), expected floats of shape \(96",
        ),
        (
            {"conv1.bias": np.zeros(96, np.int64)},
            r"hold conv1.bias of int64 \(96,\), expected floats",
        ),
        ({"conv1.bias": np.full(96, np.nan, np.float32)}, "NaN or infinite numbers in conv1.bias"),
    ],
)
def test_squeezenet_says_what_is_wrong_with_its_weights(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fake_weights(tmp_path / "w.npz", **changes)
    with pytest.raises(ValueError, match=message):
        SqueezeNetFeatures(tmp_path / "w.npz")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off"])
def test_squeezenet_weights_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.npz cannot be read as \.npz of numbers"):
        SqueezeNetFeatures(tmp_path / "w.npz")


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "squeezenet_imagenet.npz").exists(), reason="needs the weights")
def test_real_squeezenet_tells_sandals_from_shirts() -> None:
    data = load_data(str(REAL / "fashion_mnist.npz"))
    extractor, labels = (
        load_extractor(f"squeezenet:{REAL / 'squeezenet_imagenet.npz'}", data),
        data.conditions(400, 0, "test"),
    )
    assert labels is not None
    x = data.real(400, 0, "test")
    sandals, shirts = x[labels.argmax(1) == 5][:30], x[labels.argmax(1) == 6][:30]
    close = kernel_distance(sandals[:15], sandals[15:], extractor)
    assert kernel_distance(sandals, shirts, extractor) > 10 * abs(close)


def test_load_extractor_says_what_it_knows(tmp_path: Path) -> None:
    fake_weights(tmp_path / "w.npz")
    images, vectors = labelled(side=8), labelled()
    x = vectors.real(50, 0, "test")
    assert torch.equal(load_extractor("random", vectors)(x), RandomFeatures(3)(x))
    assert isinstance(load_extractor("classifier", vectors), ClassifierFeatures)
    assert isinstance(
        load_extractor(f"squeezenet:{tmp_path / 'w.npz'}", images), SqueezeNetFeatures
    )
    for text in ("inception", "squeezenet", "squeezenet:", ""):
        with pytest.raises(
            ValueError,
            match=(
                f"no extractor called '{text}': expected random, classifier, squeezenet:PATH,"
                " inception:PATH, dino:FOLDER or FILE.py:function"
            ),
        ):
            load_extractor(text, images)
    with pytest.raises(
        ValueError, match=r"easy holds states of shape \(3,\), expected images of bytes"
    ):
        load_extractor(f"squeezenet:{tmp_path / 'w.npz'}", vectors)
    with pytest.raises(ValueError, match="moons has no class labels"):
        load_extractor("classifier", load_data("moons"))


def test_the_evaluator_measures_on_the_features_it_is_given() -> None:
    data = labelled(count=80)
    x, test = data.real(80, 1, "train") + 0.2, data.real(80, 0, "test")
    extractor = Counted(classifier_features(data))
    evaluate = Evaluator(data, extractor=extractor)
    result = evaluate(x)
    assert extractor.rows == 3 * 80  # samples, held-out and training states, once each
    assert evaluate(x) == result
    assert extractor.rows == 4 * 80
    features, real = extractor(x), extractor(test)
    assert result.kernel is not None
    assert result.frechet.value == pytest.approx(frechet_distance(x, test, extractor), rel=1e-5)
    assert result.kernel.value == pytest.approx(kernel_distance(x, test, extractor), rel=1e-5)
    assert (result.precision.value, result.recall.value) == precision_recall(features, real)
    assert result.fidelity is not None
    assert result.fidelity.value == pytest.approx(fidelity(features, real), rel=1e-5)
    assert result.fidelity.floor == pytest.approx(
        fidelity(extractor(data.real(80, 0, "train")), real), rel=1e-5
    )
    assert result.energy.value == energy_distance(x, test)
    assert result.kernel.floor == pytest.approx(
        abs(kernel_distance(data.real(80, 0, "train"), test, extractor)), rel=1e-5
    )
    assert result.kernel.ratio == result.kernel.value / result.kernel.floor
    plain = Evaluator(data)(x)
    assert plain.frechet.value == frechet_distance(x, test)
    assert (plain.precision.value, plain.recall.value) == precision_recall(x, test)
    assert plain.kernel is None
    assert plain.fidelity is not None
    assert plain.fidelity.value == fidelity(x, test)
    assert plain.scales == result.scales  # of states, whatever the features


class Counted(nn.Module):
    """An extractor that counts rows."""

    num_features = 96

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor, self.rows = extractor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.extractor(x)


def test_the_protocol_says_all_that_figures_depend_on() -> None:
    data, image = labelled(), labelled(side=8)
    extractor = classifier_features(data)
    common = {"count": 90, "split": "test", "floor": "train", "reference": "whole", "draws": 1}
    learned = Evaluator(data, 2, extractor)(data.real(90, 0, "train").repeat(3, 1)).protocol
    assert to_json(learned) == {
        **{
            "extractor": "classifier",
            "digest": extractor.digest,
            "metric": "FD-classifier",
            "manifold": "features",
            "trained": "train",
            **to_json(describe_scales(scale_features(data))),
        },
        **{**common, "samples": 270, "parts": 3, "seed": 2, "quantised": False},
    }
    plain = Evaluator(image)(image.real(90, 0, "train")).protocol
    assert to_json(plain) == {
        **{
            "extractor": "random",
            "digest": RandomFeatures(64).digest,
            "metric": "FD-random",
            "manifold": "states",
            "trained": None,
            **to_json(describe_scales(scale_features(image))),
        },
        **{**common, "samples": 90, "parts": 1, "seed": 0, "quantised": True},
    }
    own = Evaluator(data, extractor=Counted(extractor))(data.real(90, 0, "train")).protocol
    assert own is not None
    assert own.extractor == "Counted"
    assert own.digest == weights_digest(Counted(extractor))
    assert from_json(to_json(learned), Protocol, "here") == learned


class Own(nn.Module):
    """The state itself as features, and the greatest number as class."""

    num_features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x

    def logits(self, x: Tensor) -> Tensor:
        return x


def far() -> ArrayData:
    """Three classes so far apart that none is ever mistaken for another."""
    labels, rng = np.arange(60) % 3, np.random.default_rng(0)
    sides = [
        (100 * np.eye(3)[labels] + rng.normal(size=(60, 3))).astype(np.float32) for _ in range(3)
    ]
    return ArrayData(
        "far",
        sides[0],
        sides[1],
        sides[2],
        Scaling(),
        {"train": labels, "valid": labels, "test": labels},
    )


def test_figures_of_classes_in_known_cases() -> None:
    data = far()
    evaluate = Evaluator(data, extractor=Own())
    x, given = data.real(60, 0, "test"), data.conditions(60, 0, "test")
    assert given is not None
    labels = given.argmax(1)
    whole = evaluate.classes(x, labels)
    assert (whole.accuracy, whole.accuracy_real, whole.coverage) == (1.0, 1.0, 1.0)
    assert 0.5 < whole.coverage_real <= 1.0
    assert [row.count for row in whole.by_class] == [20, 20, 20]
    swapped = evaluate.classes(x, (labels + 1) % 3)
    assert (swapped.accuracy, swapped.accuracy_real, swapped.coverage) == (0.0, 1.0, 0.0)
    half = torch.where(
        labels == 2, (labels + 1) % 3, labels
    )  # the third class is said to be the first
    mixed = evaluate.classes(x, half.numpy().astype(np.uint8))
    assert mixed.accuracy == pytest.approx(2 / 3)
    assert mixed.by_class[0].accuracy == 0.5
    assert mixed.by_class[2] == ClassScore(
        name="2", count=0, accuracy=None, coverage=0.0, coverage_real=0.0
    )
    collapsed = torch.stack([x[labels == label][0] for label in range(3)])[labels]
    one = evaluate.classes(collapsed, labels)
    assert (one.accuracy, one.coverage) == (
        1.0,
        pytest.approx(1 / 20),
    )  # only the copied sample is covered
    assert from_json(to_json(mixed), ClassScores, "here") == mixed


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.zeros(59, dtype=torch.long),
            r"labels are int64 of shape \(59,\), expected integers of shape \(60,\)",
        ),
        (torch.zeros(60, 1, dtype=torch.long), r"shape \(60, 1\)"),
        (torch.zeros(60), "labels are float32"),
        (torch.full((60,), 3), "labels run from 3 to 3, expected 0 to 2"),
        (np.full(60, -1), "labels run from -1 to -1"),
    ],
)
def test_labels_that_do_not_suit_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluator(far(), extractor=Own()).classes(far().real(60, 0, "test"), labels)


def test_figures_of_classes_without_a_classifier_are_coverage_alone() -> None:
    data = far()
    x, given = data.real(60, 0, "test"), data.conditions(60, 0, "test")
    assert given is not None
    expected = Evaluator(data, extractor=Own()).classes(x, given.argmax(1))
    for extractor in (None, nn.Flatten()):
        found = Evaluator(data, extractor=extractor).classes(x, given.argmax(1))
        assert (found.accuracy, found.accuracy_real) == (None, None)
        assert (found.coverage, found.coverage_real) == (1.0, expected.coverage_real)
        assert [row.accuracy for row in found.by_class] == [None] * 3
        assert from_json(to_json(found), ClassScores, "here") == found
    with pytest.raises(ValueError, match="moons has no class labels"):
        Evaluator(load_data("moons"), extractor=Own()).classes(
            torch.zeros(60, 2), torch.zeros(60, dtype=torch.long)
        )


def test_the_classifier_has_seen_nothing_that_others_train_on() -> None:
    data = labelled(valid=2000)
    extractor = classifier_features(data)
    assert (extractor.split, classifier_features(data).split) == ("valid", "valid")  # read again
    assert (
        classifier_features(replace(data, train=data.train[::-1].copy())).digest == extractor.digest
    )
    assert extractor.accuracy > 0.9
    assert classifier.training_split(labelled(valid=1999)) == "train"
    lacking: Any = {**data.given, "valid": data.given["valid"] // 2}  # two classes of three
    assert classifier.training_split(replace(data, given=lacking)) == "train"


def test_two_judges_of_images_give_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squeezenet, "SIZE", 64)  # faster
    data, samples, out = labelled(side=8, count=120), tmp_path / "s.npz", tmp_path / "m.json"
    fake_weights(tmp_path / "w.npz")
    np.savez(tmp_path / "d.npz", x=data.train, labels=data.given["train"])
    np.savez(samples, x=data.test, labels=data.given["test"])
    words = ["classifier", f"squeezenet:{tmp_path / 'w.npz'}"]
    command = ["evaluate", "--samples", samples, "--data", tmp_path / "d.npz", "--out", out]
    (tmp_path / "mine.py").write_text("def metric(a, b): return 2.0\n")
    own = ["--metric", tmp_path / "mine.py"]
    assert run(*command, "--extractor", ",".join(words), *own) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(text) == 1 for text in ("FD-classifier", "FD-SqueezeNet", "mine: 2"))
    assert printed.count("classes: ") == 2
    result = json.loads(out.read_text())
    assert list(result) == [*words, "metrics"]
    both = [from_json(result[word], Scores, "the output") for word in words]
    for scores, name in zip(both, ("classifier", "SqueezeNet"), strict=True):
        assert scores.protocol is not None
        assert scores.protocol.extractor == name
        assert None not in (scores.kernel, scores.fidelity, scores.coarse, scores.classes)
        assert scores.classes is not None
        assert 0 < scores.classes.coverage <= 1
        assert (scores.classes.accuracy is None) == (name == "SqueezeNet")
    assert both[0].fine == both[1].fine
    assert both[0].fidelity != both[1].fidelity
    assert run(*command, "--extractor", "random,random") == 0
    one = read_record(out, Scores, "scores")
    assert one.kernel is None
    assert one.classes is None
    assert run(*command, "--extractor", "") == 2
    assert "extractor is empty, expected one or more" in capsys.readouterr().err


def run(*arguments: Any) -> int:
    from bezierdistill.cli import main

    return main([str(argument) for argument in arguments])


def test_classes_of_samples_from_a_file(tmp_path: Path) -> None:
    data, samples = labelled(count=300), tmp_path / "s.npz"
    np.savez(tmp_path / "d.npz", x=data.train, labels=data.given["train"])
    loaded = load_data(str(tmp_path / "d.npz"))
    np.savez(samples, x=data.test, labels=data.given["test"])
    x, labels = read_samples(samples, loaded, labelled=True)
    assert labels is not None
    result = Evaluator(loaded, 0, classifier_features(loaded)).classes(
        loaded.scaling.encode(x), labels
    )
    assert min(result.accuracy or 0, result.accuracy_real or 0) > 0.9
    assert [row.name for row in result.by_class] == ["0", "1", "2"]
    np.savez(samples, x=data.test, labels=data.given["test"][:-1])
    with pytest.raises(ValueError, match="300 train samples have labels or conditions of shape"):
        read_samples(samples, loaded, labelled=True)
    assert read_samples(samples, loaded)[1] is None


def test_evaluate_says_what_is_wrong_with_labels_or_extractors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, samples = labelled(count=300), tmp_path / "s.npz"
    np.savez(tmp_path / "d.npz", x=data.train, labels=data.given["train"])
    command = ["evaluate", "--samples", samples, "--data", tmp_path / "d.npz"]
    for labels, extractor, message in (
        (data.given["test"] + 1, "classifier", "labels run from 1 to 3"),
        (data.given["test"][:-1], "classifier", "300 train samples have labels"),
        (data.given["test"], "inception", "no extractor called 'inception'"),
    ):
        np.savez(samples, x=data.test, labels=labels)
        assert run(*command, "--extractor", extractor) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    np.savez(samples, x=data.test, labels=data.given["test"])
    assert run(*command, "--extractor", "classifier", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    known = {name: told[name] for name in Scores.__struct_fields__}
    result = from_json(known, Scores, "the output")
    assert result.classes is not None
    assert (result.classes.accuracy or 0) > 0.9


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the right shapes, with some that no extractor reads."""
    file = tmp_path_factory.mktemp("inception") / "w.safetensors"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(inception_module, "_read_weights", lambda path, known: known)
        weights = InceptionFeatures(file).state_dict()
    kept = {name: tensor for name, tensor in weights.items() if "num_batches" not in name}
    save_file({**kept, "fc.weight": torch.zeros(1008, 2048)}, file)
    return file


def test_inception_is_the_published_one(inception: Path) -> None:
    """Its size without the classifier is the published one (Keras: 21,802,784 numbers with 34,432
    of running means, and without the 17,216 scales of its norms)."""
    net = InceptionFeatures(inception)
    assert sum(p.numel() for p in net.parameters()) == 21_802_784 - 34_432 + 17_216
    x = torch.rand(2, 1, 12, 12) * 2 - 1
    features = net(x)
    assert features.shape == (2, net.num_features)
    torch.testing.assert_close(net(x.expand(-1, 3, -1, -1)), features)  # grey is RGB
    assert not torch.equal(features[0], features[1])
    torch.testing.assert_close(net(x.flip(0)), features.flip(0))  # rows do not touch each other
    ones = torch.ones(1, 1, 5, 5)
    assert torch.equal(inception_module.average(ones), ones)  # an average counts no padding
    with pytest.raises(UserError, match="expected images"):
        net(torch.zeros(2, 5))


def test_inception_says_what_is_wrong_with_its_weights(inception: Path, tmp_path: Path) -> None:
    weights, name = load_file(inception), "Mixed_7c.branch_pool.conv.weight"
    for changed, message in (
        ({**weights, name: weights[name].half() * math.nan}, f"NaN or infinite numbers in {name}"),
        ({**weights, name: weights[name][:5].clone()}, f"hold {name} of torch.float32"),
        ({key: weights[key] for key in weights if key != name}, f"lack {name}, expected"),
    ):
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=message):
            InceptionFeatures(tmp_path / "w.safetensors")


def test_inception_judges_and_the_protocol_names_it(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception_module, "SIZE", 75)  # the least; faster
    images = np.random.default_rng(0).integers(0, 256, (160, 6, 6)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    np.savez(tmp_path / "samples.npz", x=images[:20])
    out, words = tmp_path / "scores.json", ["--samples", str(tmp_path / "samples.npz")]
    words += ["--data", str(tmp_path / "images.npz"), "--extractor", f"inception:{inception}"]
    assert main(["evaluate", *words, "--out", str(out)]) == 0
    protocol = from_json(json.loads(out.read_text()), Scores, out).protocol
    assert protocol is not None
    assert (protocol.extractor, protocol.metric) == ("Inception", "FD-Inception")
    assert protocol.digest == InceptionFeatures(inception).digest


def test_dino_is_the_class_token_of_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    net = load_extractor(f"dino:{tmp_path / 'dino'}", labelled(side=8))
    assert isinstance(net, DinoFeatures)
    assert (net.name, net.num_features) == ("dinov2", 16)
    x = torch.rand(3, 3, 224, 224) * 2 - 1
    pixels = (x / 2 + 0.5 - net.mean) / net.std
    with torch.no_grad():
        wanted = model(pixel_values=pixels).pooler_output  # DINOv2's is its class token
    torch.testing.assert_close(net(x), wanted, atol=1e-4, rtol=1e-4)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 16)
    weights = load_file(tmp_path / "dino" / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "dino" / "model.safetensors")
    with pytest.raises(UserError, match="lacks weights"):
        DinoFeatures(tmp_path / "dino")
    (tmp_path / "dino" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "dino" / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no model that transformers reads"):
        DinoFeatures(tmp_path / "dino")  # a pickle is not read
    with pytest.raises(UserError, match=r"is no folder with config\.json"):
        DinoFeatures(tmp_path / "gone")


class Noisy(nn.Module):
    """A user's network: dropout and batch norm, one part of it frozen."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.part[1].eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.part(x)

    logits = forward


def test_an_extractor_is_used_in_evaluation_mode_and_left_as_it_was() -> None:
    data, module = far(), Noisy()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    x = data.real(60, 1, "train")
    evaluate = Evaluator(data, extractor=module)
    assert evaluate(x) == Evaluator(data, extractor=module)(x)  # no dropout
    evaluate.classes(x, torch.arange(60) % 3)
    assert frechet_distance(x, x, module) == pytest.approx(0, abs=1e-4)  # of features around 50
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == wanted
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key])
    with pytest.raises(RuntimeError):
        extract(torch.zeros(4, 5), module)
    assert module.training


def test_the_features_do_not_depend_on_the_batch() -> None:
    x, extractor = torch.randn(5000, 12), Projection()
    torch.testing.assert_close(extract(x, extractor), extractor(x).detach(), rtol=1e-9, atol=1e-9)


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BEZIERDISTILL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert classifier.cache_folder() == tmp_path / ".cache" / "bezierdistill"
    monkeypatch.delenv("HOME")

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert classifier.cache_folder().parent == tmp_path


def test_an_extractor_of_ones_own_from_a_file(tmp_path: Path) -> None:
    data, file = load_data("moons"), tmp_path / "mine.py"
    file.write_text(
        "import torch\ndef extractor(data):\n    net = torch.nn.Flatten()\n    net.num_features ="
        " data.shape[0]\n    return net\n"
    )
    x = data.real(200, 3, "train")
    result = Evaluator(data, extractor=load_extractor(str(file), data))(x)
    assert result.frechet.value == pytest.approx(
        frechet_distance(x, data.real(200, 0, "test"), nn.Identity()), rel=1e-6
    )
    assert result.protocol is not None
    assert result.protocol.extractor == "Flatten"
    for text, kind, message in (
        ("def extractor(data): return 1", UserError, "made a int"),
        ("x = 1", UserError, "no function extractor"),
        ("1 / 0", ZeroDivisionError, "division by zero"),
    ):
        file.write_text(text)
        with pytest.raises(kind, match=message):
            load_extractor(str(file), data)

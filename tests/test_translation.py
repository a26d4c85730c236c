"""Translation between two domains: Gaussians, whose flows have closed forms, and the commands on
small image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bezierdistill.cli import main
from bezierdistill.curves import CurveFit
from bezierdistill.metrics import relative_distance
from bezierdistill.models import Model, load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.reporting import write_report
from bezierdistill.sdedit import sdedit
from bezierdistill.simulation import Simulation
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.settings import LoopConfig
from conftest import Draw, close, gaussian

CPU = LoopConfig(accelerator="cpu", warmup=5)
NET = NetworkConfig(width=32, depth=2)
TINY = ["--batch", "16", "--loop.accelerator", "cpu"]


def images(path: Path, bright: int, seed: int, count: int = 120) -> str:
    """Grey 6 x 6 images: a bright square on a dark ground."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 40, (count, 6, 6))
    x[:, 2:4, 2:4] += bright
    np.savez(path, x=x.astype(np.uint8))
    return str(path)


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    folder = tmp_path_factory.mktemp("domains")
    return images(folder / "a.npz", 60, 0), images(folder / "b.npz", 200, 1), folder


@pytest.fixture(scope="module")
def direct(domains: tuple[str, str, Path]) -> Model:
    """A flow from A to B, and its student of two passes, by the pipeline."""
    a, b, folder = domains
    train(
        TrainConfig(
            b, folder / "flow", steps=150, batch=64, domain=a, coupling="ot", network=NET, loop=CPU
        )
    )
    simulate(
        SimulateConfig(
            (folder / "flow",), folder / "curves", domain=a, count=200, steps=4, accelerator="cpu"
        )
    )
    return distill(
        DistillConfig(
            folder / "curves", folder / "student", steps=60, batch=64, align=10, data=b, loop=CPU
        )
    )


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_path_through_noise_is_the_way_back_and_forth(draw: Draw) -> None:
    """Between two Gaussians through a standard normal: x -> (x - m_a) / s_a -> m_b + s_b z."""
    a, b = gaussian([2.0, -1.0], [0.5, 0.7]), gaussian([-3.0, 0.5], [0.8, 0.4])
    x = torch.tensor([2.0, -1.0]).double() + torch.tensor([0.5, 0.7]).double() * draw(40, 2)
    curve, passes = Simulation(b, degree=4, steps=60, method="rk4", through=a).curves(x)
    expected = b.means + b.stds * (x - a.means) / a.stds
    close(curve.source, x)
    close(curve.data, expected, 1e-4)
    assert passes == 2 * 60 * 4
    assert (
        float((curve.point(0.5) - (x - a.means) / a.stds).abs().mean()) < 0.2
    )  # the noise, up to the fit


def test_the_fit_sees_both_halves_as_one_path(draw: Draw) -> None:
    a, b, x, steps = gaussian([2.0], [0.5]), gaussian([-3.0], [0.8]), draw(7, 1) + 2, 5
    fit = CurveFit(3, time_grid(2 * steps))
    path: list[Tensor] = []
    middle = solve(a, x, time_grid(steps, 1.0, 0.0), observe=lambda k, y: path.append(y)).state
    solve(b, middle, time_grid(steps), observe=lambda k, y: path.append(y) if k else None)
    for k, state in enumerate(path):
        fit(k, state)
    curve, _ = Simulation(b, degree=3, steps=steps, through=a).curves(x)
    close(curve.points, fit.curve().points)


def test_a_path_through_noise_is_fitted_and_forwards() -> None:
    field: Any = gaussian([0.0], [1.0])
    for more in (dict[str, Any](backwards=True), dict[str, Any](guides="hermite")):
        with pytest.raises(ValueError, match="its guides are fitted"):
            Simulation(field, through=field, **more)


@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_sdedit_ends_on_the_targets_distribution_and_keeps_its_share(keep: float) -> None:
    """From N(m, s^2) data, x_t is carried to m + s (x_t - t m) / sqrt((1-t)^2 + t^2 s^2)."""
    field, generator = gaussian([1.0], [0.5]), torch.Generator().manual_seed(0)
    x = torch.randn(5000, 1, generator=generator, dtype=torch.float64)
    y = sdedit(field, x, keep, 50, torch.Generator().manual_seed(1), "rk4")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    start = keep * x + (1 - keep) * noise
    close(y.state, 1 + 0.5 * (start - keep) / ((1 - keep) ** 2 + keep**2 * 0.25) ** 0.5, 1e-4)
    assert y.passes == 200
    with pytest.raises(ValueError, match="expected a share of the input"):
        sdedit(field, x, 1.0, 5, generator)


def test_relative_distance_is_zero_for_copies_and_one_for_strangers(draw: Draw) -> None:
    x, other = draw(2000, 3), draw(2000, 3)
    assert relative_distance(x, x) == 0.0
    assert relative_distance(x, other) == pytest.approx(1.0, abs=0.03)
    assert relative_distance(x, x + 0.1 * other) == pytest.approx(
        0.1 / 1.0025**0.5 / 2**0.5, rel=0.05
    )
    assert relative_distance(7 * x, 7 * other) == pytest.approx(relative_distance(x, other))
    with pytest.raises(ValueError, match="expected equal ones"):
        relative_distance(x, other[:5])


def test_a_student_translates_in_the_units_of_both_domains(
    direct: Model, domains: tuple[str, str, Path]
) -> None:
    x = np.load(domains[0])["x"]
    for passes in (1, 2):
        y = direct.translate(x, passes)
        assert (y.dtype, y.shape) == (np.uint8, x.shape)
        assert y[:, 2:4, 2:4].mean() == pytest.approx(220, abs=15)
    again = load_model(str(direct.folder))
    assert again.domain == direct.domain
    assert np.array_equal(again.translate(x, 1), direct.translate(x, 1))
    with pytest.raises(ValueError, match="expected translate, not sample"):
        direct.sample(3)
    with pytest.raises(
        ValueError, match=r"shape \(5, 5\), the model translates states of shape \(1, 6, 6\)"
    ):
        direct.translate(np.zeros((2, 5, 5), np.uint8))


def test_the_path_through_noise_is_distilled(domains: tuple[str, str, Path]) -> None:
    a, b, folder = domains
    for name, data in (("flow-a", a), ("flow-b", b)):
        train(TrainConfig(data, folder / name, steps=150, batch=64, network=NET, loop=CPU))
    config = SimulateConfig(
        (folder / "flow-b",),
        folder / "both",
        domain=a,
        through=folder / "flow-a",
        count=100,
        steps=4,
        accelerator="cpu",
    )
    store = simulate(config)
    assert store.manifest.passes == 100 * 2 * 2 * 4
    assert store.recipe.teacher_passes == 2 * 150 * 64 * 3
    student = distill(
        DistillConfig(
            folder / "both", folder / "both-student", steps=40, batch=64, passes=1, loop=CPU
        )
    )
    assert student.translate(np.load(a)["x"])[:, 2:4, 2:4].mean() > 150


def test_files_in_files_out(direct: Model, domains: tuple[str, str, Path], tmp_path: Path) -> None:
    x = np.load(domains[0])["x"]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for k in range(3):
        Image.fromarray(x[k]).save(tmp_path / "in" / ("deep" if k else ".") / f"{k}.png")
    translate = ["translate", "--model", direct.folder]
    assert run(*translate, "--input", domains[0], "--out", tmp_path / "y.npz") == 0
    expected = np.load(tmp_path / "y.npz")["x"]
    assert np.array_equal(expected, direct.translate(x))
    assert run(*translate, "--input", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert run(*translate, "--input", tmp_path / "in" / "0.png", "--out", tmp_path / "one") == 0
    for file, row in (
        ("out/0.png", 0),
        ("out/deep/1.png", 1),
        ("out/deep/2.png", 2),
        ("one/0.png", 0),
    ):
        got = np.asarray(Image.open(tmp_path / file)).astype(int)
        assert np.abs(got - expected[row]).max() <= 1  # batches of other sizes round differently
    Image.fromarray(np.kron(x[0], np.ones((2, 2), np.uint8))).save(tmp_path / "large.png")
    assert (
        run(
            *translate,
            "--input",
            tmp_path / "large.png",
            "--out",
            tmp_path / "small",
            "--resize",
            "--passes",
            2,
        )
        == 0
    )
    assert Image.open(tmp_path / "small" / "large.png").size == (6, 6)


def test_mistakes(
    direct: Model,
    domains: tuple[str, str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b, folder = domains
    translate = ["translate", "--model", direct.folder, "--out", tmp_path / "out"]
    assert "expected a path ending in .npz" in fails(capsys, *translate, "--input", a)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "9.png")
    assert "resize" in fails(capsys, *translate, "--input", tmp_path / "9.png")
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / "colour.png")
    assert "are in colour" in fails(capsys, *translate, "--input", tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no image")
    assert "cannot be read as an image" in fails(
        capsys, *translate, "--input", tmp_path / "text.png"
    )
    np.savez(tmp_path / "colour.npz", x=np.zeros((3, 6, 6, 3), np.uint8))
    into = ["translate", "--model", direct.folder, "--out", tmp_path / "y.npz", "--input"]
    for more in ([], ["--resize"]):
        assert "convert or resize it" in fails(capsys, *into, tmp_path / "colour.npz", *more)
    (tmp_path / "own").mkdir()
    for name in ("a.png", "a.bmp"):
        Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "own" / name)
    own = ["translate", "--model", direct.folder, "--input", tmp_path / "own", "--out"]
    assert "exists already" in fails(capsys, *own, tmp_path / "own")  # inputs are never overwritten
    assert "differ only in the ending" in fails(capsys, *own, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plain = ["train", "--data", b, "--steps", 2, "--out", tmp_path / "plain", *TINY]
    assert run(*plain) == 0
    assert "starts from noise" in fails(
        capsys,
        "translate",
        "--model",
        tmp_path / "plain",
        "--input",
        a,
        "--out",
        tmp_path / "y.npz",
    )
    new = ["simulate", "--count", 8, "--out", tmp_path / "c", "--accelerator", "cpu", "--teachers"]
    assert "teachers start from noise" in fails(capsys, *new, tmp_path / "plain", "--domain", a)
    assert "teachers start from another domain" in fails(capsys, *new, folder / "flow")
    assert "expected one of them" in fails(
        capsys, *new, folder / "flow", "--domain", a, "--invert-from", b
    )
    assert "expected --domain" in fails(
        capsys, *new, tmp_path / "plain", "--through", tmp_path / "plain"
    )
    assert "expected teachers that start from noise" in fails(
        capsys, *new, folder / "flow", "--domain", a, "--through", tmp_path / "plain"
    )
    assert "is not the data that the first flow was trained on" in fails(
        capsys, *new, folder / "flow", "--domain", "moons"
    )
    other = [
        "train",
        "--data",
        b,
        "--domain",
        "moons",
        "--steps",
        2,
        "--out",
        tmp_path / "t",
        *TINY,
    ]
    assert "expected one, resize by" in fails(capsys, *other)
    assert not (tmp_path / "c").exists()


def test_the_report_shows_inputs_and_translations(direct: Model) -> None:
    assert direct.folder is not None
    page = write_report(direct.folder).read_text()
    assert "<h2>Translations</h2>" in page
    assert "<h2>Samples</h2>" not in page

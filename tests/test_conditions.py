"""Conditions from the data to the samples: a mixture whose classes are its components, so
everything has a closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bezierdistill.cli import main
from bezierdistill.curves import Time
from bezierdistill.data import load_data
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend, Guided
from bezierdistill.models import Model, load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, labels, uniform
from bezierdistill.objectives import Aligned, Alignment
from bezierdistill.objectives.distances import energy, mean_distance
from bezierdistill.records import ModelCard, Passes, to_json
from bezierdistill.simulation import Simulation
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig
from conftest import ConditionField, Draw, close

CPU = LoopConfig(accelerator="cpu", warmup=5)
NET = NetworkConfig(width=48, depth=2)
FREQUENCIES = (0.5, 0.3, 0.2)
MEANS = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three narrow Gaussians, one a class."""
    rng = np.random.default_rng(0)
    given = rng.choice(3, 4000, p=FREQUENCIES)
    x = MEANS[given] + 0.3 * rng.standard_normal((4000, 2))
    path = tmp_path_factory.mktemp("data") / "classes.npz"
    np.savez(path, x=x.astype(np.float32), labels=given)
    return str(path)


@pytest.fixture(scope="module")
def teacher(data: str, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("teacher")
    return train(
        TrainConfig(
            data, out / "t", steps=600, batch=128, conditional=True, drop=0.2, network=NET, loop=CPU
        )
    )


def simulated(teacher: Model, out: Path, count: int = 600, **more: Any) -> CurveStore:
    assert teacher.folder is not None
    return simulate(
        SimulateConfig((teacher.folder,), out, count=count, steps=6, accelerator="cpu", **more)
    )


def conditions(store: CurveStore) -> torch.Tensor:
    cond = store.conditions(torch.arange(len(store)))
    assert cond is not None
    return cond


class Halves:
    """The field whose velocity is the first number of its condition; without one it is -1."""

    passes = 1

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        return torch.full_like(x, -1.0) if cond is None else cond[:, :1].expand_as(x)


class Still(torch.nn.Module):
    """A network that goes nowhere."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def nearest(x: np.ndarray) -> np.ndarray:
    """The class whose mean is nearest to each sample."""
    return np.linalg.norm(x[:, None] - MEANS, axis=2).argmin(1)


def test_rows_keep_their_labels_through_the_splits(data: str) -> None:
    loaded = load_data(data)
    assert (loaded.classes, loaded.condition_size) == (3, 3)
    for split in ("train", "valid", "test"):
        count = loaded.count(split)
        assert count is not None
        cond = loaded.conditions(count, 5, split)
        assert cond is not None
        assert np.array_equal(
            nearest(loaded.scaling.decode(loaded.real(count, 5, split))), cond.argmax(1).numpy()
        )
        assert torch.equal(cond.sum(1), torch.ones(count))
    x, cond = loaded.batch(300, torch.Generator().manual_seed(0))
    assert cond is not None
    assert np.array_equal(nearest(loaded.scaling.decode(x)), cond.argmax(1).numpy())


def test_a_trained_teacher_follows_its_labels_and_knows_how_frequent_they_are(
    teacher: Model,
) -> None:
    assert teacher.condition_size == teacher.conditions.classes == 3
    assert teacher.conditions.frequencies == pytest.approx(FREQUENCIES, abs=0.03)
    x = teacher.sample(300, 40, seed=1, solver="heun", labels=[0, 1, 2])
    assert (nearest(x) == np.arange(300) % 3).mean() > 0.95
    drawn = teacher.sample(2000, 20, seed=1)
    assert np.bincount(nearest(drawn), minlength=3) / 2000 == pytest.approx(FREQUENCIES, abs=0.06)
    few, many = (teacher.condition(range(count), 1) for count in (50, 2000))
    assert few is not None
    assert many is not None
    assert torch.equal(few, many[:50])  # row i depends on the seed and i alone
    np.testing.assert_allclose(drawn[:50], teacher.sample(50, 20, seed=1), rtol=1e-5, atol=1e-5)
    parts = teacher.sample(2000, 20, seed=1, batch=300)
    np.testing.assert_allclose(drawn, parts, rtol=1e-5, atol=1e-5)


def test_tables_of_labels_and_numbers_depend_on_the_row_alone() -> None:
    stream = Stream.SAMPLE
    table = labels(3, stream, range(5000), FREQUENCIES)
    assert torch.equal(labels(3, stream, range(1700, 2600), FREQUENCIES), table[1700:2600])
    assert (torch.bincount(table) / 5000).tolist() == pytest.approx(FREQUENCIES, abs=0.03)
    numbers = uniform(3, stream, range(5000), 1.0, 3.0)
    assert torch.equal(uniform(3, stream, range(4000, 5000), 1.0, 3.0), numbers[4000:])
    assert 1.0 <= float(numbers.min()) < 1.01 < 2.99 < float(numbers.max()) < 3.0


@pytest.mark.parametrize("g", [-0.5, 1.0, 2.5])
def test_guidance_is_the_blend_of_a_teacher_with_and_without_its_condition(
    g: float, draw: Draw
) -> None:
    x, cond = draw(6, 3), draw(6, 2)

    def without(x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        return Halves()(x, t)

    blend = Blend([Halves(), without], [[g], [1 - g]])  # pyright: ignore[reportArgumentType]
    close(Guided(Halves(), g)(x, 0.3, cond), blend(x, 0.3, cond))
    rows = torch.cat([cond, torch.full((6, 1), g, dtype=torch.float64)], 1)
    close(Guided(Halves())(x, 0.3, rows), blend(x, 0.3, cond))
    assert Guided(Halves()).passes == 2


def test_every_row_has_its_own_strength(draw: Draw) -> None:
    x, cond = (
        draw(4, 2),
        torch.tensor([[2.0, 0.0], [2.0, 1.0], [2.0, 2.0], [-1.0, 7.0]], dtype=torch.float64),
    )
    close(
        Guided(Halves())(x, 0.5, cond)[:, 0],
        torch.tensor([-1.0, 2.0, 5.0, -1.0], dtype=torch.float64),
    )
    with pytest.raises(ValueError, match="got no condition"):
        Guided(Halves(), 2.0)(x, 0.5)


@pytest.mark.parametrize("guides", ["fit", "hermite", "endpoints"])
def test_every_guide_gets_the_condition(guides: Any, draw: Draw) -> None:
    x, cond = draw(5, 2), draw(5)
    curve, _ = Simulation(
        ConditionField(), 3, guides, (ConditionField(), ConditionField()), steps=3
    ).curves(x, cond)
    close(curve.data, x + cond[:, None])
    if guides == "endpoints":  # every guide is the end of the same path
        close(curve.point(0.4), x + (1 - 0.6**3) * cond[:, None])
    else:
        close(curve.point(0.4), x + 0.4 * cond[:, None])


def test_conditions_are_stored_with_their_curves_whatever_the_batch(
    teacher: Model, tmp_path: Path
) -> None:
    whole = simulated(teacher, tmp_path / "a")
    parts = simulated(teacher, tmp_path / "b", batch=70)
    assert torch.equal(conditions(whole), conditions(parts))
    rows = torch.arange(600)
    assert torch.equal(whole.curves(rows).source, parts.curves(rows).source)
    close(whole.curves(rows).points, parts.curves(rows).points, 1e-5)
    own = teacher.scaling.decode(whole.curves(torch.arange(600)).data)
    assert (nearest(own) == conditions(whole).argmax(1).numpy()).mean() > 0.9
    curve, cond = whole.batch(100, torch.Generator().manual_seed(2))
    rows = torch.randint(600, (100,), generator=torch.Generator().manual_seed(2))
    assert cond is not None
    assert torch.equal(cond, conditions(whole)[rows])
    assert torch.equal(curve.points, whole.curves(rows).points)


def test_a_student_follows_its_labels_in_one_pass(
    teacher: Model, data: str, tmp_path: Path
) -> None:
    simulated(teacher, tmp_path / "c")
    config = DistillConfig(
        tmp_path / "c", tmp_path / "s", steps=150, batch=128, align=30, data=data, loop=CPU
    )
    student = distill(config)
    assert student.condition_size == 3
    for passes in (1, 2):
        assert (
            nearest(student.sample(300, passes, labels=[2, 0, 1])) == np.array([2, 0, 1] * 100)
        ).mean() > 0.95


def test_a_range_of_guidance_becomes_an_input_that_starts_without_effect(
    teacher: Model, tmp_path: Path
) -> None:
    store = simulated(teacher, tmp_path / "c", guidance_scale=(1.0, 3.0))
    assert conditions(store).shape == (600, 4)
    assert (
        1
        <= float(conditions(store)[:, 3].min())
        < 1.1
        < 2.9
        < float(conditions(store)[:, 3].max())
        < 3
    )
    assert store.manifest.passes == 600 * 6 * 2 * 2
    common = {"steps": 1, "batch": 16, "passes": 1, "objective": "end"}
    still = distill(
        DistillConfig(tmp_path / "c", tmp_path / "s", loop=replace(CPU, lr=1e-30), **common)
    )
    x0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    cond = conditions(store)[:40]
    torch.testing.assert_close(
        still.generate(x0, 1, cond=cond), teacher.generate(x0, 1, cond=cond[:, :3])
    )
    student = distill(
        DistillConfig(
            tmp_path / "c",
            tmp_path / "t",
            steps=150,
            batch=128,
            objective="end",
            passes=1,
            loop=CPU,
        )
    )
    assert student.conditions.guidance_range == (1.0, 3.0)
    low, high = (student.sample(200, 1, labels=[0], guidance_scale=g) for g in (1.0, 3.0))
    assert np.abs(low - high).mean() > 0.02
    with pytest.raises(ValueError, match="scale is 4, the student was distilled for 1 to 3"):
        student.sample(8, labels=[0], guidance_scale=4.0)


def test_guided_curves_end_where_the_guided_flow_does(teacher: Model, tmp_path: Path) -> None:
    store = simulated(teacher, tmp_path / "c", count=50, guidance_scale=(2.0,))
    curve = store.curves(torch.arange(50))
    expected = teacher.generate(curve.source, 24, "heun", conditions(store), guidance_scale=2.0)
    torch.testing.assert_close(curve.data, expected, rtol=1e-4, atol=1e-4)


def test_vectors_are_conditions_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    angle = rng.uniform(0, 6, 2000)
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    np.savez(
        tmp_path / "v.npz",
        x=(5 * vectors + 0.1 * rng.standard_normal((2000, 2))).astype(np.float32),
        conditions=vectors,
    )
    teacher = train(
        TrainConfig(
            str(tmp_path / "v.npz"),
            tmp_path / "t",
            steps=500,
            batch=128,
            conditional=True,
            network=NET,
            loop=CPU,
        )
    )
    assert (teacher.condition_size, teacher.conditions.frequencies) == (2, None)
    x = teacher.sample(200, 20, solver="heun", conditions=vectors[:200])
    assert (np.linalg.norm(x - 5 * vectors[:200], axis=1) < 2).mean() > 0.9
    store = simulated(teacher, tmp_path / "c", count=100)
    assert {row.tobytes() for row in conditions(store).numpy()} <= {
        row.tobytes() for row in vectors
    }
    with pytest.raises(ValueError, match="needs condition vectors"):
        teacher.sample(4)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(4, 2\)"):
        teacher.sample(4, conditions=vectors[:3])


def test_the_joint_distribution_is_aligned(draw: Draw, generator: torch.Generator) -> None:
    """The same samples with their labels swapped are another joint distribution, although their
    own one is the same."""
    x = torch.cat([draw(64, 2) - 3, draw(64, 2) + 3])
    cond = torch.nn.functional.one_hot(torch.arange(128) // 64, 2).double()
    objective = Alignment(((0.0, 1.0),), anchor=0.0)

    def loss(cond: Tensor | None, real_cond: Tensor | None) -> Tensor:
        return objective.loss(Still(), Aligned(x, (x,), cond, real_cond), generator)

    unit = mean_distance(x)
    assert float(loss(cond.flip(1), cond) - loss(cond, cond)) * float(unit) > 1.0
    assert float(loss(None, None)) == pytest.approx(float(energy(x, x) / unit), rel=1e-3)
    with pytest.raises(ValueError, match="expected both or neither"):
        loss(cond, None)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_commands_and_their_mistakes(
    teacher: Model, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = [
        "sample",
        "--model",
        teacher.folder,
        "--count",
        7,
        "--passes",
        4,
        "--out",
        tmp_path / "s.npz",
    ]
    assert main([str(a) for a in [*sample, "--labels", "2,0"]]) == 0
    saved = np.load(tmp_path / "s.npz")
    assert saved["labels"].tolist() == [2, 0, 2, 0, 2, 0, 2]
    assert saved["x"].shape == (7, 2)
    assert "no class '3', expected 0, 1, 2" in fails(capsys, *sample, "--labels", "3")
    assert "no class 'a', expected 0, 1, 2" in fails(capsys, *sample, "--labels", "a,b")
    assert "neither labels nor conditions" in fails(
        capsys, "train", "--data", "moons", "--conditional", "--steps", 2, "--out", tmp_path / "t"
    )
    plain = [
        "train",
        "--data",
        data,
        "--steps",
        2,
        "--batch",
        8,
        "--loop.accelerator",
        "cpu",
        "--out",
        tmp_path / "plain",
    ]
    assert main([str(a) for a in plain]) == 0
    simulation = [
        "simulate",
        "--count",
        8,
        "--accelerator",
        "cpu",
        "--out",
        tmp_path / "c",
        "--teachers",
    ]
    assert "takes no condition and cannot be guided" in fails(
        capsys, *simulation, tmp_path / "plain", "--guidance-scale", 2
    )
    assert "teachers that take and start from the same" in fails(
        capsys, *simulation, teacher.folder, tmp_path / "plain", "--weights", "2,-1"
    )
    rising, numbers = "expected a strength such as 2, or a rising range", "are no numbers, expected"
    for text, message in (("x", numbers), ("inf", numbers), ("1,2,3", rising), ("3,1", rising)):
        assert message in fails(capsys, *simulation, teacher.folder, "--guidance-scale", text)
    assert "was trained without conditions" in fails(
        capsys, "sample", "--model", tmp_path / "plain", "--labels", 1, "--out", tmp_path / "x.npz"
    )
    assert main([str(a) for a in [*simulation, teacher.folder, "--guidance-scale", "1,2"]]) == 0
    distillation = [
        "distill",
        "--curves",
        tmp_path / "c",
        "--steps",
        2,
        "--batch",
        8,
        "--out",
        tmp_path / "d",
        "--align",
        1,
    ]
    assert "expected --align 0" in fails(capsys, *distillation, "--data", data)
    assert load_model(tmp_path / "plain").condition_size == 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(99)}, r"of shape \(99,\), expected one per sample"),
        ({"labels": np.arange(100) - 1}, "have -1 in row 0, expected 0 to"),
        ({"labels": np.full(100, 0.5)}, "0.5.* expected whole numbers"),
        ({"conditions": np.full((100, 2), np.nan)}, "nan.* in row 0, expected finite"),
        ({"conditions": np.zeros((100, 2), int)}, r"are int64 .* expected floats \(N, C\)"),
    ],
)
def test_bad_labels_are_refused_where_they_are_asked_for(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((100, 3), np.float32), **arrays)
    settings: dict[str, Any] = {"steps": 1, "batch": 8, "network": NET, "loop": CPU}
    config = TrainConfig(str(tmp_path / "x.npz"), tmp_path / "t", conditional=True, **settings)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "t").exists()
    assert train(replace(config, conditional=False)).condition_size == 0


def test_unconditional_guidance_means_nothing(tmp_path: Path) -> None:
    card = ModelCard(
        kind="teacher",
        network=to_json(NET),
        shape=(2,),
        scaling=load_data("moons").scaling,
        seed=0,
        steps=1,
        passes=Passes(training=0),
    )
    model = Model(NET.build((2,), 0), card)
    with pytest.raises(ValueError, match="was trained without conditions: expected none"):
        model.sample(3, 1, guidance_scale=2.0)


def test_samples_and_written_labels_are_the_same_whatever_is_given(
    teacher: Model, tmp_path: Path
) -> None:
    base = [
        "sample",
        "--model",
        teacher.folder,
        "--count",
        40,
        "--passes",
        20,
        "--solver",
        "heun",
        "--out",
        tmp_path / "s.npz",
    ]
    for more in ([], ["--labels", "1,2"], ["--guidance-scale", "1.5"]):
        assert main([str(a) for a in [*base, *more]]) == 0
        saved = np.load(tmp_path / "s.npz")
        assert (nearest(saved["x"]) == saved["labels"]).mean() > 0.9
    np.save(tmp_path / "c.npy", np.eye(3, dtype=np.float32)[np.zeros(40, int)])
    assert main([str(a) for a in [*base, "--conditions", tmp_path / "c.npy"]]) == 0
    saved = np.load(tmp_path / "s.npz")
    assert "labels" not in saved
    assert (nearest(saved["x"]) == 0).mean() > 0.9


def test_vectors_and_a_range_of_guidance_go_together(teacher: Model, tmp_path: Path) -> None:
    simulated(teacher, tmp_path / "c", guidance_scale=(1.0, 3.0))
    student = distill(
        DistillConfig(
            tmp_path / "c", tmp_path / "s", steps=20, batch=64, passes=1, objective="end", loop=CPU
        )
    )
    vectors = np.eye(3, dtype=np.float32)[np.arange(12) % 3]
    by_label, by_vector = (
        student.sample(12, labels=[0, 1, 2], guidance_scale=2.5),
        student.sample(12, conditions=vectors, guidance_scale=2.5),
    )
    assert np.array_equal(by_label, by_vector)
    assert not np.array_equal(by_vector, student.sample(12, conditions=vectors, guidance_scale=1.5))
    with pytest.raises(ValueError, match="distilled for 1 to 3"):
        student.sample(12, conditions=vectors, guidance_scale=99.0)
    with pytest.raises(ValueError, match="both given"):
        student.sample(12, conditions=vectors, labels=[0])


def test_guidance_that_a_model_cannot_follow_is_refused(
    teacher: Model, data: str, tmp_path: Path
) -> None:
    simulated(teacher, tmp_path / "baked", count=60, guidance_scale=(2.0,))
    student = distill(
        DistillConfig(tmp_path / "baked", tmp_path / "s", steps=4, batch=16, loop=CPU)
    )
    with pytest.raises(ValueError, match="distilled without a range"):
        student.sample(4, 2, guidance_scale=3.0)
    with pytest.raises(ValueError, match="alignment would undo it"):
        distill(
            DistillConfig(
                tmp_path / "baked", tmp_path / "t", steps=4, batch=16, align=2, data=data, loop=CPU
            )
        )
    always = train(
        TrainConfig(
            data,
            tmp_path / "always",
            steps=2,
            batch=8,
            conditional=True,
            drop=0.0,
            network=NET,
            loop=CPU,
        )
    )
    with pytest.raises(ValueError, match="never went without its condition"):
        simulated(always, tmp_path / "d", count=8, guidance_scale=(2.0,))
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_every_precision_distils_and_saves_single(
    precision: Any, teacher: Model, data: str, tmp_path: Path
) -> None:
    simulated(teacher, tmp_path / "c", count=60)
    loop = replace(CPU, precision=precision)
    if precision.endswith("true"):
        with pytest.raises(ValueError, match="expected 32-true or bf16-mixed"):
            DistillConfig(tmp_path / "c", tmp_path / "s", loop=loop)
        return
    student = distill(
        DistillConfig(
            tmp_path / "c", tmp_path / "s", steps=4, batch=16, align=2, data=data, loop=loop
        )
    )
    assert {parameter.dtype for parameter in student.net.parameters()} == {torch.float32}


def test_a_run_that_cannot_start_leaves_its_folder_free(teacher: Model, tmp_path: Path) -> None:
    simulated(teacher, tmp_path / "c", count=60)
    config = DistillConfig(
        tmp_path / "c", tmp_path / "s", steps=4, batch=16, loop=replace(CPU, checkpoint=True)
    )
    with pytest.raises(ValueError, match="keeps all activations"):
        distill(config)
    assert not (tmp_path / "s").exists()


def test_what_a_conditional_flow_cannot_be_is_refused(data: str, tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"domain": data}, "keeps no label"),
        ({"coupling": "ot"}, "depend on the condition"),
    ]
    for more, message in refused:
        with pytest.raises(ValueError, match=message):
            TrainConfig(data, tmp_path / "t", conditional=True, **more)
    with pytest.raises(ValueError, match=r"drop is 0\.2 and conditional is False"):
        TrainConfig(data, tmp_path / "t", drop=0.2)

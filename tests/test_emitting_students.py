"""Students that emit curves, as stages make them: which networks do, what is asked of teachers, and
what is refused."""

import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bezierdistill as bd
from bezierdistill.errors import UserError
from bezierdistill.networks.config import read_network
from bezierdistill.networks.curve import CurveNetwork
from bezierdistill.stages import students
from bezierdistill.stages.students import asked_field
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig
from conftest import Account

NET, LOOP = bd.NetworkConfig(width=16, depth=2), LoopConfig(accelerator="cpu", loggers=("none",))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with labels, a conditional teacher, and its curves: plain, guided, of a range."""
    at, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    np.savez(
        at / "data.npz",
        x=rng.standard_normal((300, 3)).astype(np.float32),
        y=np.arange(300) % 2,
    )
    config = bd.TrainConfig(
        str(at / "data.npz"), at / "t", 3, 16, network=NET, loop=LOOP, conditional=True, drop=0.1
    )
    bd.train(config)
    for name, scale in (("plain", ()), ("guided", (2.0,)), ("range", (1.0, 3.0))):
        curves(at, name, (at / "t",), guidance_scale=scale)
    return at


def curves(at: Path, name: str, teachers: tuple[Any, ...], **more: Any) -> CurveStore:
    return bd.simulate(
        bd.SimulateConfig(
            teachers, at / name, count=40, steps=4, degree=3, accelerator="cpu", **more
        )
    )


def distilled(at: Path, name: str, out: Path, **more: Any) -> bd.Model:
    settings = {"steps": 2, "batch": 10, "loop": LOOP}
    return bd.distill(bd.DistillConfig(at / name, out, **{**settings, **more}))


@pytest.mark.parametrize(("name", "teacher"), [("plain", 1), ("guided", 2), ("range", 2)])
def test_teachers_are_asked_as_they_were_and_every_pass_is_counted(
    name: str, teacher: int, made: Path, tmp_path: Path, account: Account
) -> None:
    student = distilled(made, name, tmp_path / "s")
    assert isinstance(student.net, CurveNetwork)
    assert student.network == replace(NET, control_points=4)
    assert student.card.passes.training == account.passes == 2 * (10 * 3 + 3 * teacher)
    with ExitStack() as left:
        field = asked_field(CurveStore.open(made / name), CPU, left)
        assert field is not None
        assert field.passes == teacher
        x, t = torch.randn(5, 3), torch.rand(5)
        cond = torch.eye(2)[torch.arange(5) % 2]
        own = bd.load_model(made / "t").field
        given = cond if name != "range" else torch.cat([cond, torch.linspace(1, 3, 5)[:, None]], 1)
        scale = {"plain": None, "guided": 2.0, "range": torch.linspace(1, 3, 5)[:, None]}[name]
        expected = own(x, t, cond)
        if scale is not None:
            expected = scale * expected + (1 - scale) * own(x, t, None)
        torch.testing.assert_close(field(x, t, given), expected)


@pytest.mark.parametrize("objective", ["knots", "end", "velocity"])
def test_other_objectives_learn_straight_jumps(
    objective: Any, made: Path, tmp_path: Path, account: Account
) -> None:
    student = distilled(made, "plain", tmp_path / "s", objective=objective)
    assert student.network == NET
    assert student.card.passes.training == account.passes == 2 * 10 * 3
    with pytest.raises(UserError, match="control-points is 3 and objective"):
        distilled(made, "plain", tmp_path / "x", objective=objective, control_points=3)


def test_a_student_may_teach_students_of_as_many_control_points(
    made: Path, tmp_path: Path, account: Account
) -> None:
    first = distilled(made, "plain", tmp_path / "first", control_points=3)
    curves(tmp_path, "own", (tmp_path / "first",))
    assert distilled(tmp_path, "own", tmp_path / "second").network == first.network
    for points in (1, 2, 6):
        with pytest.raises(UserError, match=rf"control-points is {points} .*a student of 3"):
            distilled(tmp_path, "own", tmp_path / "x", control_points=points)
        scratch = {"control_points": points, "init": "scratch"}
        other = distilled(tmp_path, "own", tmp_path / str(points), **scratch)
        assert other.network == replace(NET, control_points=points)
    account.passes = 0
    flow = distilled(tmp_path, "own", tmp_path / "flow", objective="velocity")
    assert flow.card.passes.training == account.passes == 2 * 10 * 3  # regression alone


def test_one_point_is_the_straight_jump_of_before(made: Path, tmp_path: Path) -> None:
    student = distilled(made, "plain", tmp_path / "s", control_points=1)
    assert student.network == NET
    assert student.card.passes.training == 2 * 10 * 3
    fields = asdict(NET)
    del fields["control_points"]  # as older folders have it
    assert read_network(fields) == NET
    card = tmp_path / "s" / "model.json"
    text = card.read_text()
    assert '"control_points"' in text
    assert bd.load_model(tmp_path / "s").network == NET


def test_flows_emit_no_curves(made: Path, tmp_path: Path) -> None:
    network, data = replace(NET, control_points=4), str(made / "data.npz")
    for config in (bd.TrainConfig, bd.RecipeConfig, bd.ReflowConfig):
        with pytest.raises(UserError, match="a flow has one velocity a pass"):
            config(data, tmp_path / "x", network=network)


def test_teachers_that_are_gone_are_missed_before_the_training(
    made: Path, tmp_path: Path, account: Account
) -> None:
    shutil.copytree(made / "plain", tmp_path / "alone" / "plain")
    settings = {"init": "scratch", "student": NET}
    for share in (0.3, 0.0):
        with pytest.raises(UserError, match="needs the teacher"):
            distilled(
                tmp_path / "alone", "plain", tmp_path / f"{share}", on_policy=share, **settings
            )
    assert account.passes == 0


def test_without_a_field_to_ask_stored_curves_alone_are_learned(
    made: Path,
    tmp_path: Path,
    account: Account,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(path: Any) -> None:  # as an object of another process is
        raise UserError("there is no such object")

    monkeypatch.setattr(students, "find_model", gone)
    student = distilled(made, "plain", tmp_path / "s")
    assert student.card.passes.training == account.passes == 2 * 10 * 3
    told = "no rows are on-policy, as a teacher cannot be asked: there is no such object"
    assert told in capsys.readouterr().err


def test_through_another_domain_no_rows_are_on_policy(tmp_path: Path, account: Account) -> None:
    for name in ("there", "here"):
        data = torch.randn(100, 3, generator=torch.Generator().manual_seed(len(name)))
        np.savez(tmp_path / f"{name}.npz", x=data.numpy())
        bd.train(
            bd.TrainConfig(
                str(tmp_path / f"{name}.npz"), tmp_path / name, 2, 16, network=NET, loop=LOOP
            )
        )
    more = {"domain": str(tmp_path / "there.npz"), "through": tmp_path / "there"}
    curves(tmp_path, "curves", (tmp_path / "here",), **more)
    account.passes = 0
    student = distilled(tmp_path, "curves", tmp_path / "s")
    assert isinstance(student.net, CurveNetwork)
    assert student.card.passes.training == account.passes == 2 * 10 * 3


def test_a_module_of_ones_own_keeps_its_one_velocity(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))

    def call(module: Any, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return module(torch.cat([x, t[:, None]], 1))

    teacher = bd.Teacher(net, "velocity", bd.LinearSchedule("up"), call, shape=(3,))
    curves(tmp_path, "own", (teacher,))
    student = teacher.student(time="0")
    made = distilled(tmp_path, "own", tmp_path / "s", student=student)
    assert made.card.passes.training == 2 * 10 * 3
    with pytest.raises(UserError, match="control-points is 4"):
        distilled(tmp_path, "own", tmp_path / "x", student=student, control_points=4)
    emitting = {"student": NET, "init": "scratch"}  # one of ours asks the module on its curves
    before = [part.clone() for part in net.parameters()]
    ours = distilled(tmp_path, "own", tmp_path / "ours", **emitting)
    assert ours.card.passes.training == 2 * (10 * 3 + 3)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_options_of_training_give_the_same_curves(made: Path, tmp_path: Path) -> None:
    plain = distilled(made, "plain", tmp_path / "plain")
    resumed = LoopConfig(accelerator="cpu", loggers=("none",), save_every=1)
    assert distilled(made, "plain", tmp_path / "saved", loop=resumed).digest == plain.digest
    laid = LoopConfig(accelerator="cpu", loggers=("none",), precision="bf16-mixed")
    other = distilled(made, "plain", tmp_path / "bf16", loop=laid)
    for a, b in zip(plain.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=0.1)


def test_a_student_of_images_is_exported_as_a_pipeline_with_its_curves(tmp_path: Path) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    unet = bd.NetworkConfig("unet", 8, 1)
    data = str(tmp_path / "images.npz")
    bd.train(bd.TrainConfig(data, tmp_path / "t", 2, 8, network=unet, loop=LOOP))
    curves(tmp_path, "c", (tmp_path / "t",))
    assert not isinstance(distilled(tmp_path, "c", tmp_path / "j").net, CurveNetwork)
    student = distilled(tmp_path, "c", tmp_path / "s", control_points=4)
    assert isinstance(student.net, CurveNetwork)
    bd.export_diffusers(student, tmp_path / "p")
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "p")
    x, s, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.2), torch.full((2,), 0.7)
    with torch.no_grad():
        made = pipeline.unet(x, torch.tensor([0.2, 0.7])).sample
        torch.testing.assert_close(made, student.net(x, s, t))
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape[0] == 2

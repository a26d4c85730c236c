"""Students of a pipeline whose weights are all trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bezierdistill.cli import main
from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors
from bezierdistill.interop import export_diffusers, export_lora
from bezierdistill.models import load_model, save_model
from bezierdistill.models.pipeline import PipelineModel, PipelineTeacher
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.training.settings import LoopConfig

pytest.importorskip("peft")
pytest.importorskip("transformers")
tiny: Any = pytest.importorskip("tiny_pipelines")
stock: Any = pytest.importorskip("test_pipeline_export")
stock_path: Any = pytest.importorskip("test_pipelines")

ROWS = torch.tensor([[0.0], [1.0]])
LOOP = LoopConfig(accelerator="cpu", lr=0.02, ema=0.5, warmup=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module", params=["sd3", "flux", "zimage"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def teacher(family: str, folder: Path) -> PipelineModel:
    """A teacher, of whose curves there is a store."""
    base, at = tiny.save(family, folder / family), folder / f"teacher-{family}"
    at.mkdir()
    save_model(at, PipelineTeacher(base, stock.TEXTS, 4.0, folder=at, **tiny.SIZES[family]))
    simulate(
        SimulateConfig(
            teachers=(at,),
            out=folder / f"curves-{family}",
            count=16,
            steps=2,
            degree=1,
            accelerator="cpu",
        )
    )
    return opened(at)


@pytest.fixture(scope="module")
def student(family: str, folder: Path, teacher: PipelineModel) -> PipelineModel:
    return trained(family, folder, 2)


def opened(folder: Path) -> PipelineModel:
    found = load_model(folder)
    assert isinstance(found, PipelineModel)
    return found


def trained(family: str, folder: Path, passes: int, **given: Any) -> PipelineModel:
    usual: dict[str, Any] = {"passes": passes, "steps": 2, "batch": 4, "loop": LOOP, "full": True}
    out = folder / f"student-{family}-{passes}"
    made = distill(DistillConfig(curves=folder / f"curves-{family}", out=out, **usual | given))
    assert isinstance(made, PipelineModel)
    return made


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that must fail with exit code 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_it_starts_as_the_pipeline_without_guidance(
    family: str, folder: Path, teacher: PipelineModel
) -> None:
    beside = teacher.student(2)  # an adapter in the weights that are copied
    with torch.no_grad():
        for parameter in beside.net.parameters():
            parameter += 0.1
    made, pipe = teacher.student(full=True), stock_path.recorded(folder / family)
    scale = {"sd3": 1.0, "flux": 4.0, "zimage": 0.0}[family]
    more = tiny.SIZES[family] | {"guidance_scale": scale}
    pipe(list(stock.TEXTS), num_inference_steps=2, output_type="latent", **more)
    for x, velocity, level in pipe.scheduler.path:
        times = torch.full((2,), 1 - level)
        assert apart(-made.net(x, times, times, ROWS), velocity.reshape(x.shape)) < 1e-4
    assert made.net.tensors().keys() == pipe.transformer.state_dict().keys()
    assert {id(p) for p in made.net.parameters()} == {id(p) for p in made.net.module.parameters()}


def test_training_leaves_the_teacher_as_it_is(
    family: str, folder: Path, teacher: PipelineModel
) -> None:
    x, times = stock.drawn(teacher), torch.tensor([0.2, 0.7])
    weights = {n: tensor.clone() for n, tensor in teacher.net.module.state_dict().items()}
    field = teacher.field(x, times, ROWS)
    student = trained(family, folder, 1)
    after = teacher.net.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert torch.equal(teacher.field(x, times, ROWS), field)
    assert (
        apart(student.net(x, times, times, ROWS), teacher.net.bare()(x, times, times, ROWS)) > 0.01
    )


def test_it_is_read_back_as_it_was_trained(student: PipelineModel) -> None:
    assert student.folder is not None
    x, back = stock.drawn(student), opened(student.folder)
    assert set(student.knots) == {2}
    assert student.card.settings["objective"] == "knots"
    assert back.digest == student.digest
    assert "weights of its own" in repr(back)
    tensors = read_tensors(student.folder / "model.safetensors")[0]
    assert tensors.keys() == student.net.tensors().keys()
    assert all(torch.equal(back.net.tensors()[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(back.generate(x, 2, cond=ROWS), student.generate(x, 2, cond=ROWS))
    with_others = back.with_prompts(stock.TEXTS)
    assert apart(with_others.generate(x, 2, cond=ROWS), student.generate(x, 2, cond=ROWS)) < 1e-4


@stock.NOISY
@pytest.mark.parametrize("passes", [1, 2])
def test_stock_diffusers_makes_what_the_student_makes(
    passes: int, family: str, folder: Path, teacher: PipelineModel, tmp_path: Path
) -> None:
    model, out = trained(family, folder, passes), tmp_path / "out"
    assert main(["export", "--model", str(model.folder), "--out", str(out)]) == 0
    assert sorted(part.name for part in out.iterdir()) == ["README.md", "scheduler", "transformer"]
    weights = out / "transformer" / "diffusion_pytorch_model.safetensors"
    assert read_tensors(weights)[0].keys() == model.net.tensors().keys()
    x = stock.drawn(model)
    runs = stock.Runs(out, x)
    expected = model.generate(x, passes, cond=ROWS)
    stock.same(runs.latents(runs.rest[0]), expected)
    plain = stock.with_knots(teacher.student(2), model.knots).generate(x, passes, cond=ROWS)
    assert apart(plain, expected) > 0.01
    said = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert said["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    text = (out / "README.md").read_text()
    assert f"# A transformer for {model.pipeline.name} in {passes} step" in text
    assert "LoRA" not in text


@pytest.mark.parametrize("family", ["sd3"], scope="module", indirect=True)
def test_half_precision_is_the_pipelines_and_the_student_has_more(
    family: str, folder: Path, tmp_path: Path
) -> None:
    base, sizes = tiny.save(family, folder / family), tiny.SIZES[family]
    at = tmp_path / "teacher"
    at.mkdir()
    save_model(at, PipelineTeacher(base, stock.TEXTS, 4.0, dtype="bfloat16", folder=at, **sizes))
    usual = {"count": 8, "steps": 2, "degree": 1, "accelerator": "cpu"}
    simulate(SimulateConfig(teachers=(at,), out=tmp_path / "curves", **usual))
    model = distill(
        DistillConfig(
            curves=tmp_path / "curves",
            out=tmp_path / "student",
            full=True,
            passes=2,
            steps=2,
            batch=4,
            loop=LOOP,
        )
    )
    net: Any = model.net
    assert {tensor.dtype for tensor in net.tensors().values()} == {torch.float32}
    export_diffusers(model, tmp_path / "out")
    weights = tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert {tensor.dtype for tensor in read_tensors(weights)[0].values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in net.tensors().values()} == {torch.float32}


@pytest.mark.parametrize("family", ["sd3"], scope="module", indirect=True)
def test_a_student_of_it_starts_as_it(
    family: str, student: PipelineModel, teacher: PipelineModel
) -> None:
    x, times = stock.drawn(student), torch.tensor([0.2, 0.7])
    made = student.student(full=True)
    assert torch.equal(made.net(x, times, times, ROWS), student.net(x, times, times, ROWS))
    with pytest.raises(UserError, match="all weights were trained: expected --full"):
        student.student(2)
    with pytest.raises(UserError, match="an adapter of rank 2: expected --lora"):
        teacher.student(2).student(full=True)


@pytest.mark.parametrize("family", ["sd3"], scope="module", indirect=True)
def test_damage_is_refused(student: PipelineModel, tmp_path: Path) -> None:
    assert student.folder is not None
    near = student.folder.with_name("damaged")
    near.mkdir()
    for name in ("model.json", "model.safetensors"):
        (near / name).write_bytes((student.folder / name).read_bytes())
    assert opened(near).digest == student.digest
    weights = bytearray((near / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (near / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="differs from the digest"):
        load_model(near)


@pytest.mark.parametrize("family", ["sd3"], scope="module", indirect=True)
def test_what_is_refused(
    family: str,
    folder: Path,
    student: PipelineModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ("distill", "--curves", folder / f"curves-{family}", "--out", tmp_path / "out")
    for words, told in {
        "--full --lora 2": "lora is 2 beside --full",
        "--full --targets to_q": "without --lora",
        "--full --init scratch": "expected --init teacher",
        "--full --loop.compile true": "asked to compile",
        "--full --objective end --passes 2": "expected --objective knots",
        "--loop.accelerator cpu": "or --full for all weights",
    }.items():
        assert told in fails(capsys, *start, *words.split())
    (tmp_path / "mine.py").write_text(
        "import bezierdistill as bd\nfrom bezierdistill.models import load_model\n"
        f"def lora(): return load_model({str(folder / f'teacher-{family}')!r}).student(2)\n"
        "def ours(): return bd.NetworkConfig('mlp', 8, 1)\n"
    )
    named = f"{tmp_path}/mine.py"
    for words, told in {
        f"--full --student {named}:lora": "the student has an adapter of rank 2",
        f"--full --student {named}:ours": "is a NetworkConfig, which is of no pipeline",
    }.items():
        assert told in fails(capsys, *start, *words.split())
    with pytest.raises(UserError, match="by --to diffusers"):
        export_lora(student, tmp_path / "out")
    with pytest.raises(UserError, match="has its guidance in the weights"):
        export_diffusers(student, tmp_path / "out", 2.0)
    assert not (tmp_path / "out").exists()

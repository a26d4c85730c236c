"""Pipelines of diffusers as teachers: eight families, none of which is listed anywhere."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.models import load_model, save_model
from bezierdistill.models.features import HiddenStates
from bezierdistill.models.pipeline import PipelineModel, PipelineTeacher
from bezierdistill.pipelines.latents import Latents
from bezierdistill.pipelines.parts import join
from bezierdistill.pipelines.prompts import read_prompts
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from tiny_pipelines import SIZES, save

EIGHT = ("sd3", "flux", "qwen", "zimage", "sana", "lumina2", "wan", "ltx")
TEXTS = ("boot", "a small blue bag with a green handle", "a red boot", "two large hats", "a bag")
# What a family's users write for guidance of 4, as in the pages of diffusers.
GUIDED = {name: {"guidance_scale": 4.0} for name in EIGHT} | {
    "qwen": {"true_cfg_scale": 4.0, "negative_prompt": " "}
}
EMBEDDED = ("flux",)


class Recorder(FlowMatchEulerDiscreteScheduler):
    """Keeps the states, velocities and noise levels of a pipeline's own loop."""

    path: list[tuple[Tensor, Tensor, float]]

    def step(self, model_output: Any, timestep: Any, sample: Any, *rest: Any, **more: Any) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        self.path.append(
            (sample, model_output, float(cast(Tensor, self.sigmas)[self.step_index or 0]))
        )
        return super().step(model_output, timestep, sample, *rest, **more)


@pytest.fixture(scope="module", params=EIGHT)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(family, tmp_path_factory.mktemp(family) / "pipeline")


@pytest.fixture(scope="module")
def teacher(family: str, base: Path) -> PipelineModel:
    folder = base.parent / "teacher"
    folder.mkdir()
    save_model(folder, PipelineTeacher(base, TEXTS, 4.0, folder=folder, **SIZES[family]))
    found = load_model(folder)
    assert isinstance(found, PipelineModel)
    return found


def recorded(base: Path) -> Any:
    """The stock pipeline, whose scheduler keeps its path."""
    pipe: Any = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = Recorder(shift=3.0)
    pipe.scheduler.path = []
    return pipe


def states(model: PipelineModel, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, *model.shape, generator=torch.Generator().manual_seed(seed))


def numbers(*rows: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def close(a: Tensor, b: Tensor, within: float = 1e-4) -> bool:
    return float((a - b).abs().max()) <= within * float(b.abs().max())


def test_the_field_is_what_the_pipeline_computes_from_the_texts(
    family: str, base: Path, teacher: PipelineModel
) -> None:
    pipe = recorded(base)
    more = SIZES[family] | GUIDED[family]
    pipe(list(TEXTS[:2]), num_inference_steps=3, output_type="latent", **more)
    assert len(pipe.scheduler.path) == 3
    for x, velocity, level in pipe.scheduler.path:
        found = teacher.field(x, 1 - level, numbers(0, 1))
        assert close(-found, velocity.reshape(x.shape))


def test_every_row_may_have_a_time_of_its_own(teacher: PipelineModel) -> None:
    x, times, rows = states(teacher, 3), torch.tensor([0.1, 0.5, 0.9]), numbers(0, 1, 4)
    together = teacher.field(x, times, rows)
    for k in range(3):
        alone = teacher.field(x[k : k + 1], float(times[k]), rows[k : k + 1])
        assert close(together[k : k + 1], alone, 1e-3)


def test_guidance_is_charged(family: str, teacher: PipelineModel) -> None:
    assert teacher.passes == teacher.field.passes == (1 if family in EMBEDDED else 2)


def test_a_student_starts_as_the_pipeline_without_guidance(
    family: str, base: Path, teacher: PipelineModel
) -> None:
    pipe = recorded(base)
    off = {"flux": {"guidance_scale": 4.0}, "zimage": {"guidance_scale": 0.0}, "qwen": {}}
    more = SIZES[family] | off.get(family, {"guidance_scale": 1.0})
    pipe(list(TEXTS[:2]), num_inference_steps=2, output_type="latent", **more)
    student = teacher.student(2)
    for x, velocity, level in pipe.scheduler.path:
        times = torch.full((2,), 1 - level)
        assert close(-student.net(x, times, times, numbers(0, 1)), velocity.reshape(x.shape))


def test_an_adapter_is_the_students_alone_and_the_weights_are_shared(
    teacher: PipelineModel,
) -> None:
    x, times, rows = states(teacher, 2), torch.tensor([0.2, 0.7]), numbers(2, 3)
    before, student = teacher.field(x, times, rows), teacher.student(2)
    started = student.net(x, times, times, rows)
    with torch.no_grad():
        for parameter in student.net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    moved = student.net(x, times, times, rows)
    assert not close(moved, started, 1e-2)
    assert close(teacher.field(x, times, rows), before, 1e-6)
    assert close(student.net(x, times, times, rows), moved, 1e-6)
    assert student.net.module is teacher.net.module


def test_gradients_reach_the_adapter_and_the_states_and_nothing_else(
    teacher: PipelineModel,
) -> None:
    student = teacher.student(2)
    student.net.requires_grad_(True)
    x, times = states(teacher, 2).requires_grad_(), torch.tensor([0.2, 0.7])
    student.net(x, times, times, numbers(0, 1)).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    grown = [p for n, p in student.net.named_parameters() if n.endswith("lora_B/weight")]
    assert sum(float(p.grad.abs().sum()) for p in grown if p.grad is not None) > 0
    others = {id(p) for p in student.net.parameters()}
    assert all(p.grad is None for p in student.net.module.parameters() if id(p) not in others)


def test_other_prompts_are_embedded_when_they_are_asked_for(
    family: str, base: Path, teacher: PipelineModel
) -> None:
    other = "a green hat"
    asked = teacher.with_prompts([other])
    known = PipelineTeacher(base, [other], 4.0, **SIZES[family])
    x = states(teacher, 1)
    assert close(asked.field(x, 0.4, numbers(0)), known.field(x, 0.4, numbers(0)))
    assert teacher.prompts.texts == TEXTS


def test_images_are_those_of_the_pipelines_own_decoder(
    family: str, base: Path, teacher: PipelineModel
) -> None:
    pipe = recorded(base)
    x0, off = states(teacher, 1), {"guidance_scale": 4.0 if family == "flux" else 1.0}
    off = {"guidance_scale": 0.0} if family == "zimage" else {} if family == "qwen" else off
    seen = pipe(
        TEXTS[0], num_inference_steps=1, latents=x0, output_type="np", **off, **SIZES[family]
    )
    x, velocity, level = pipe.scheduler.path[0]
    ends = x - level * velocity.reshape(x.shape)
    images = (seen.images if hasattr(seen, "images") else seen.frames)[0]
    found = teacher.images(ends)[0]
    assert found.shape == images.shape
    assert abs(found.astype(float) - 255 * images).max() < 1.1


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen", "zimage", "sana"], indirect=True)
def test_what_the_decoder_is_given_is_inverted(teacher: PipelineModel) -> None:
    loop, call = teacher.net.loop, teacher.pipeline.call
    texts = teacher.prompts.outputs(torch.tensor([0]), False, teacher.device)
    latents = Latents(loop, texts, call.state, teacher.shape)
    x = states(teacher, 3)
    many = teacher.prompts.outputs(torch.tensor([0, 0, 0]), False, teacher.device)
    assert close(latents.states(loop.decoder_input(x, many, call.state)), x)
    encoded = latents(teacher.images(x))
    assert encoded.shape == x.shape
    assert bool(encoded.isfinite().all())


def test_prompts_of_two_lengths_are_filled_up_with_zeros() -> None:
    short, long = {"part0": torch.ones(1, 2, 3)}, {"part0": torch.full((1, 4, 3), 2.0)}
    joined = join([short, long])["part0"]
    assert joined.shape == (2, 4, 3)
    assert joined.sum((1, 2)).tolist() == [6.0, 24.0]
    assert bool((joined[0, 2:] == 0).all())


def test_prompts_are_lines_or_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a boot\n\n  a bag \n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a boot"}\n{"text": "a bag"}\n"a hat"\n')
    assert read_prompts(tmp_path / "a.txt") == ("a boot", "a bag")
    assert read_prompts(tmp_path / "a.jsonl") == ("a boot", "a bag", "a hat")
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(UserError, match="is empty"):
        read_prompts(tmp_path / "b.txt")


def test_many_prompts_lie_in_several_shards_and_are_found(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = save("qwen", tmp_path_factory.mktemp("many") / "pipeline")
    texts = [f"a boot and {k} {'bags ' * (k % 3)}" for k in range(300)]
    folder = tmp_path / "teacher"
    folder.mkdir()
    kept = PipelineTeacher(base, texts, 4.0, folder=folder, **SIZES["qwen"])
    assert len(list((folder / "prompts").glob("rows-*"))) == 2
    few = PipelineTeacher(base, [texts[k] for k in (0, 299, 17)], 4.0, **SIZES["qwen"])
    x = states(few, 3)
    assert close(kept.field(x, 0.3, numbers(0, 299, 17)), few.field(x, 0.3, numbers(0, 1, 2)))


@pytest.mark.parametrize("family", ["sd3"], indirect=True)
def test_a_pipeline_given_in_python_is_distilled(base: Path, tmp_path: Path) -> None:
    pipe: Any = DiffusionPipeline.from_pretrained(base)
    teacher = PipelineTeacher(pipe, TEXTS, 4.0, **SIZES["sd3"])
    simulate(
        SimulateConfig(teachers=(teacher,), out=tmp_path / "curves", count=16, steps=2, degree=1)
    )
    usual = {"curves": tmp_path / "curves", "passes": 1, "steps": 2, "batch": 4}
    student = distill(DistillConfig(out=tmp_path / "a", lora=2, **usual))
    own = distill(
        DistillConfig(out=tmp_path / "b", student=teacher.student(2), objective="knots", **usual)
    )
    x = states(teacher, 2)
    for model in (student, own):
        assert model.generate(x, 1, cond=numbers(0, 1)).shape == x.shape
        assert model.net.module is teacher.net.module


@pytest.mark.parametrize("family", ["sd3", "zimage", "ltx"], indirect=True)
def test_hidden_states_are_those_of_the_transformer_without_adapters(
    teacher: PipelineModel,
) -> None:
    x = states(teacher, 2).requires_grad_()
    features = HiddenStates(teacher)
    before = features(x)
    student = teacher.student(2)
    student.net.requires_grad_(True)
    with torch.no_grad():
        for parameter in student.net.parameters():
            parameter += 0.1
    after = features(student.generate(states(teacher, 2, 3), 1, cond=numbers(0, 1)) * 0 + x)
    assert before
    assert all(close(a, b, 1e-5) for a, b in zip(after, before, strict=True))
    sum(group.square().sum() for group in before).backward()  # pyright: ignore
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in student.net.parameters())

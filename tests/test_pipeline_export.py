"""The LoRA of a pipeline's student: by its README's lines stock diffusers makes what we make."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from bezierdistill import cli
from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors
from bezierdistill.interop import export_diffusers, export_lora
from bezierdistill.interop.lora import PREFIXES, find_levels
from bezierdistill.models import Model, load_model, save_model
from bezierdistill.models.folder import refer
from bezierdistill.models.pipeline import PipelineModel, PipelineTeacher
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ModelCard, Passes, to_json

pytest.importorskip("peft")
pytest.importorskip("transformers")
tiny: Any = pytest.importorskip("tiny_pipelines")

FAMILIES = ("sd3", "flux", "qwen", "zimage", "sana", "lumina2", "wan", "ltx")
TEXTS = ("a red boot", "a small blue bag with a green handle")
EVEN, UNEVEN = (0.0, 0.2, 0.4, 0.6, 1.0), (0.0, 0.125, 0.375, 0.8125, 1.0)
KNOTS = {1: (0.0, 1.0), 2: (0.0, 0.635, 1.0), 4: UNEVEN}
NOISY = pytest.mark.filterwarnings("ignore::FutureWarning")  # of `torch_dtype`, by some versions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pipelines and teachers lie that several tests use."""
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def student_of(folder: Path) -> Any:
    """Students by their family, each in a folder, whose adapters change much."""

    @cache
    def make(family: str, guidance: float = 4.0) -> PipelineModel:
        base = tiny.save(family, folder / family)
        at = folder / f"teacher-{family}"
        sizes = tiny.SIZES[family]
        teacher = PipelineTeacher(base, TEXTS, guidance=guidance, folder=at, **sizes)
        student = save_model(at, teacher).student(4)  # pyright: ignore
        generator = torch.Generator().manual_seed(0)
        tensors = student.net.tensors()
        student.net.load(
            {
                name: 0.2 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in tensors.items()
            }
        )
        place = folder / f"student-{family}"
        card = msgspec.structs.replace(
            student.card,
            knots=KNOTS,
            teachers=(refer(save_model(at, teacher), place),),
        )
        return save_model(place, PipelineModel(student.net, card, None))  # pyright: ignore

    return make


def with_knots(model: PipelineModel, knots: Mapping[int, Any]) -> PipelineModel:
    card = msgspec.structs.replace(model.card, knots=dict(knots))
    return PipelineModel(model.net, card, model.folder)


def blocks(out: Path) -> list[str]:
    """The README's lines of Python, block by block."""
    parts = (out / "README.md").read_text().split("```python\n")[1:]
    return [part.split("```")[0].replace("THIS FOLDER", str(out)) for part in parts]


class Runs:
    """The README's lines, run with our noise and our prompts, up to the latents."""

    def __init__(self, out: Path, x: Tensor) -> None:
        self.x, self.names = x, {}
        first, *self.rest = blocks(out)
        exec(first, self.names)
        self.pipe = self.names["pipe"]
        self.pipe.set_progress_bar_config(disable=True)
        stock = type(self.pipe)

        def call(pipe: Any, prompt: str, **given: Any) -> Any:
            assert prompt == "YOUR PROMPT"
            more = {"latents": self.x.clone(), "output_type": "latent"}
            made = stock.__call__(pipe, prompt=list(TEXTS), **more, **given)[0]
            return SimpleNamespace(images=made, frames=made)

        self.pipe.__class__ = type(stock.__name__, (stock,), {"__call__": call})

    def latents(self, block: str) -> Tensor:
        """What a block makes."""
        exec(block, self.names)
        return self.names["frames" if "frames" in self.names else "images"]


def drawn(model: PipelineModel) -> Tensor:
    return torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(5))


def same(made: Tensor, expected: Tensor) -> None:
    """Whether two latents are the same to 1e-4 of their size."""
    assert float((made - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@NOISY
@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_makes_in_stock_diffusers_what_the_student_makes(
    family: str, student_of: Any, tmp_path: Path
) -> None:
    model, out = student_of(family), tmp_path / "lora"
    assert model.folder is not None
    flags = ["--model", str(model.folder), "--to", "lora", "--out", str(out)]
    assert cli.main(["export", *flags]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "pytorch_lora_weights.safetensors",
        "scheduler",
    ]
    x, rows = drawn(model), torch.tensor([[0.0], [1.0]])
    runs = Runs(out, x)
    layers = {name.rsplit(".lora_", 1)[0] for name in model.net.tensors()}
    base = with_knots(model.student(4, tuple(layers)), KNOTS)  # which changes nothing yet
    expected = {passes: model.generate(x, passes, cond=rows) for passes in KNOTS}
    assert len(runs.rest) == len(KNOTS)
    for passes, block in zip(sorted(KNOTS, reverse=True), runs.rest, strict=True):
        assert f"num_inference_steps={passes}," in block
        same(runs.latents(block), expected[passes])
        assert len(runs.pipe.scheduler.timesteps) == passes
    runs.pipe.disable_lora()
    plain = base.generate(x, 1, cond=rows)
    same(runs.latents(runs.rest[-1]), plain)
    assert float((plain - expected[1]).abs().max()) > 0.05 * float(plain.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pipeline_takes_even_levels_from_the_scheduler_alone(
    family: str, student_of: Any
) -> None:
    model = with_knots(student_of(family), {1: KNOTS[1], 2: KNOTS[2], 4: EVEN})
    assert [find_levels(model, passes).by for passes in (1, 2, 4)] == ["scheduler"] * 3
    other = find_levels(with_knots(model, {4: UNEVEN}), 4)
    assert other.by == ("class" if family in ("wan", "ltx") else "call")


def test_what_a_lora_says_of_itself(student_of: Any, tmp_path: Path) -> None:
    model = student_of("sd3")
    export_lora(model, tmp_path / "lora")
    tensors, said = read_tensors(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert tensors.keys() == {f"transformer.{name}" for name in model.net.tensors()}
    assert said["format"] == "pt"
    assert json.loads(said["sigmas"]) == {
        "1": [1.0, 0.0],
        "2": [1.0, 0.365, 0.0],
        "4": [1.0, 0.875, 0.625, 0.1875, 0.0],
    }
    assert json.loads(said["guidance"]) == {"guidance_scale": 4.0}
    assert [said[name] for name in ("rank", "alpha", "prompts")] == ["4", "4", "2"]
    assert (said["base"], said["base_digest"]) == (model.pipeline.source, model.pipeline.weights)
    assert said["student"] == model.digest != ""
    scheduler = json.loads((tmp_path / "lora" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert (scheduler["shift"], scheduler["shift_terminal"]) == (1.0, 0.365)
    assert not scheduler["use_dynamic_shifting"]
    text = (tmp_path / "lora" / "README.md").read_text()
    assert all(told in text for told in ("in 1, 2 and 4 steps", model.card.teachers[0].digest))
    assert "in the weights" in text
    assert "base_model" not in text


@NOISY
@pytest.mark.parametrize("family", ["flux", "qwen", "zimage", "ltx", "wan"])
def test_the_dialect_of_comfyui(family: str, student_of: Any, tmp_path: Path) -> None:
    model = student_of(family)
    export_lora(model, tmp_path / "lora", "comfyui")
    assert len(list((tmp_path / "lora").iterdir())) == 2
    tensors, said = read_tensors(tmp_path / "lora" / "comfyui_lora.safetensors")
    prefix = "transformer" if family == "flux" else "diffusion_model"
    layers = {name.rsplit(".lora_", 1)[0] for name in model.net.tensors()}
    assert all(tensors[f"{prefix}.{layer}.alpha"].item() == 4 for layer in layers)
    assert len(tensors) == 3 * len(layers)
    for name, tensor in model.net.tensors().items():
        assert torch.equal(tensors[f"{prefix}.{name}"], tensor)
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "- 2: `1, 0.365, 0`" in text
    assert (
        ("names of its own" in text) == (family == "wan") == (said["base_pipeline"] not in PREFIXES)
    )


def test_levels_are_digits_alone(student_of: Any, tmp_path: Path) -> None:
    """For ComfyUI reads 5e-05 as 5 and -5."""
    model = with_knots(student_of("sd3"), {2: (0.0, 0.99995, 1.0)})
    export_lora(model, tmp_path / "lora", "comfyui")
    assert "`1, 0.00005, 0`" in (tmp_path / "lora" / "README.md").read_text()


def test_what_is_no_lora(
    student_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = student_of("sd3")
    teacher = load_model(student.folder.with_name("teacher-sd3"))
    card = ModelCard(
        kind="student",
        network=to_json(NetworkConfig("mlp", 8, 1)),
        shape=(3,),
        scaling=Scaling(),
        seed=0,
        steps=0,
        passes=Passes(training=0),
    )
    own = Model(NetworkConfig("mlp", 8, 1).build((3,), 0).eval(), card)
    for model, message in (
        (own, "a network of ours, expected a student of a pipeline"),
        (teacher, "without an adapter"),
        (with_knots(student, {}), "has learnt no passes"),
    ):
        with pytest.raises(UserError, match=message):
            export_lora(model, tmp_path / "lora")
    with pytest.raises(UserError, match="--to lora"):
        export_diffusers(student, tmp_path / "lora")
    with pytest.raises(UserError, match="dialect is kohya, expected diffusers or comfyui"):
        export_lora(student, tmp_path / "lora", "kohya")
    assert not list(tmp_path.iterdir())
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_lora(student, tmp_path / "lora")
    start = ["export", "--model", "x", "--out", str(tmp_path / "y")]
    for flags, message in (
        (["--dialect", "comfyui"], "expected it with --to lora alone"),
        (["--to", "lora", "--guidance-scale", "2"], "expected it with --to diffusers alone"),
    ):
        assert cli.main([*start, *flags]) != 0
        assert message in " ".join(capsys.readouterr().err.split())

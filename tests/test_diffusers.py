"""diffusers in and out: teachers of every convention become curves, students, and pipelines that
make the same images."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bezierdistill import cli
from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend
from bezierdistill.interop import export_diffusers, import_diffusers
from bezierdistill.interop.scheduler import STEPPERS
from bezierdistill.models import Model, load_model, save_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.foreign import Foreign, ForeignConfig, make_schedule
from bezierdistill.records import Conditions, ModelCard, Passes, TeacherRef, to_json
from bezierdistill.schedules import ForeignField
from bezierdistill.settings import Prediction, ScheduleKind
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.settings import LoopConfig
from conftest import close

LOOP = LoopConfig(lr=1e-3, accelerator="cpu")
SHAPE = (3, 8, 8)
BYTES = Scaling((127.5,), (127.5,), "hwc", 0.0, 255.0, True)
CONVENTIONS: dict[str, tuple[Prediction, ScheduleKind, dict[str, float]]] = {
    "RectifiedFlow": ("velocity", "linear-up", {"scale": 999.0}),
    "flow_matching": ("velocity", "linear-up", {}),
    "rfpp": ("flow", "linear-down", {"low": 1e-5}),
    "diffusers FlowMatch": ("flow", "linear-down", {"scale": 1000.0}),
    "InstaFlow": ("velocity", "linear-down", {"scale": 1000.0}),
    "EDM": ("sample", "sigma", {}),
    "DDPM": ("epsilon", "steps", {}),
    "DDPM, data": ("sample", "steps", {}),
    "Stable Diffusion 2": ("v_prediction", "steps", {}),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny_unet(**settings: Any) -> Any:
    from diffusers.models.unets.unet_2d import UNet2DModel

    tiny = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3}
    return UNet2DModel(**{**sizes, **tiny, **blocks, **settings}).eval()


def tiny_dit(made: int = 3) -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    return DiTTransformer2DModel(
        2, 8, 3, made, num_layers=2, sample_size=8, num_embeds_ada_norm=3
    ).eval()


def save_pipeline(folder: Path, unet: Any, prediction: Any = "epsilon") -> Path:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    DDPMPipeline(unet, DDPMScheduler(prediction_type=prediction)).save_pretrained(folder)
    return folder


def model_of(config: NetworkConfig, shape: tuple[int, ...] = SHAPE, **more: Any) -> Model:
    """An untrained student."""
    card: dict[str, Any] = {
        "kind": "student",
        "network": to_json(config),
        "shape": shape,
        "scaling": BYTES,
        "seed": 0,
        "steps": 0,
        "passes": Passes(training=7),
        "knots": {1: (0.0, 1.0)},
    }
    card |= more
    size = card.get("conditions", Conditions()).size
    return Model(config.build(shape, 0, size).eval(), ModelCard(**card))


def field_of(inner: Any, model: Model, **more: Any) -> ForeignField:
    """The raw network of diffusers as a field, by the conversion that has tests of its own."""
    assert isinstance(model.network, ForeignConfig)
    schedule = make_schedule(model.network.schedule, model.network.numbers)
    return ForeignField(
        lambda y, time: inner(y, time, **more).sample[:, : y.shape[1]],
        model.network.prediction,
        schedule,
    )


def load_pipeline(folder: Path) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    import bezierdistill.interop.diffusers  # noqa: F401

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def same_images(
    model: Model, folder: Path, cond: Tensor | None = None, labels: list[int] | None = None
) -> None:
    """Whether the exported pipeline makes the images that the model makes from the same noise, with
    one, two and three passes."""
    pipeline = load_pipeline(folder)
    for passes in (1, 2, 3):
        generator, again = (torch.Generator().manual_seed(passes) for _ in range(2))
        made = pipeline(
            4,
            class_labels=labels,
            num_inference_steps=passes,
            generator=generator,
            output_type="pt",
        ).images
        own = model.generate(torch.randn(4, *model.shape, generator=again), passes, cond=cond)
        torch.testing.assert_close(made, (own / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
        assert float(made.std()) > 0.01


@pytest.mark.parametrize("name", CONVENTIONS)
def test_from_a_foreign_teacher_to_a_pipeline(name: str, tmp_path: Path) -> None:
    prediction, schedule, numbers = CONVENTIONS[name]
    unet = tiny_unet()
    folder = (
        save_pipeline(tmp_path / "pipeline", unet, prediction)
        if schedule == "steps"
        else tmp_path / "unet"
    )
    unet.save_pretrained(tmp_path / "unet")
    teacher = import_diffusers(folder, tmp_path / "teacher", prediction, schedule, **numbers)
    raw, x = field_of(unet, teacher), torch.randn(5, *SHAPE)
    low, high = raw.schedule.span
    s, t = torch.linspace(low, high, 5), torch.tensor([1.0, 0.8, 0.6, 0.9, 1.0])
    with torch.no_grad():
        torch.testing.assert_close(teacher.field(x, s), raw(x, s), rtol=1e-6, atol=1e-6)
        assert torch.equal(teacher.net(x, s, t), teacher.net(x, s, s))

    def curves(source: Path, out: str, degree: int) -> Path:
        simulate(
            SimulateConfig(
                (source,),
                tmp_path / out,
                degree=degree,
                count=16,
                steps=3,
                batch=16,
                accelerator="cpu",
            )
        )
        return tmp_path / out

    straight = curves(tmp_path / "teacher", "lines", 1)
    distill(
        DistillConfig(
            straight, tmp_path / "reflowed", objective="velocity", steps=4, batch=8, loop=LOOP
        )
    )
    cubic = curves(tmp_path / "reflowed", "cubics", 3)
    student = distill(
        DistillConfig(
            cubic, tmp_path / "student", objective="map", passes=2, steps=4, batch=8, loop=LOOP
        )
    )
    assert isinstance(student.net, Foreign)
    assert bool(torch.as_tensor(student.net.time.interval.weight).any())
    export_diffusers(student, tmp_path / "out")
    same_images(student, tmp_path / "out")


def test_teachers_of_two_conventions_are_blended(tmp_path: Path) -> None:
    fields = []
    for name, network in (
        ("diffusers FlowMatch", tiny_unet()),
        ("Stable Diffusion 2", tiny_unet(layers_per_block=2)),
    ):
        prediction, schedule, numbers = CONVENTIONS[name]
        folder = save_pipeline(tmp_path / name, network, prediction)
        network.save_pretrained(tmp_path / f"{name}-bare")
        source = folder if schedule == "steps" else tmp_path / f"{name}-bare"
        fields.append(
            field_of(
                network,
                import_diffusers(
                    source, tmp_path / f"teacher {name}", prediction, schedule, **numbers
                ),
            )
        )
    folders = tuple(
        tmp_path / f"teacher {name}" for name in ("diffusers FlowMatch", "Stable Diffusion 2")
    )
    store = simulate(
        SimulateConfig(
            folders,
            tmp_path / "curves",
            weights=((1.5,), (-0.5,)),
            count=8,
            steps=4,
            accelerator="cpu",
        )
    )
    with torch.no_grad():
        curve = store.curves(torch.arange(8))
        expected = solve(Blend(fields, [[1.5], [-0.5]]), curve.source, time_grid(4)).state
    torch.testing.assert_close(curve.data, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [lambda: tiny_unet(num_class_embeds=3), tiny_dit, lambda: tiny_dit(6)],
    ids=["unet", "dit", "dit, variances"],
)
def test_labels_of_a_foreign_teacher(make: Callable[[], Any], tmp_path: Path) -> None:
    inner = make()
    inner.save_pretrained(tmp_path / "net")
    teacher = import_diffusers(
        tmp_path / "net", tmp_path / "teacher", "flow", "linear-down", scale=1000.0
    )
    assert teacher.conditions == Conditions(size=3, frequencies=(1 / 3,) * 3)
    x, s, labels = torch.randn(4, *SHAPE), torch.linspace(0, 0.9, 4), torch.tensor([0, 2, 1, 2])
    teacher.net.train()  # diffusers' own embedding of labels would now drop some
    with torch.no_grad():
        own = teacher.field(x, s, torch.eye(3)[labels])
        torch.testing.assert_close(
            own, field_of(inner, teacher, class_labels=labels)(x, s), rtol=1e-6, atol=1e-6
        )
        if "Transformer" in type(inner).__name__:  # the last row of its table is that of no label
            none = field_of(inner, teacher, class_labels=torch.full((4,), 3))
            torch.testing.assert_close(teacher.field(x, s), none(x, s), rtol=1e-6, atol=1e-6)
        assert torch.equal(teacher.field(x, s), teacher.field(x, s, torch.zeros(4, 3)))
    with pytest.raises(
        ValueError, match=r"condition has shape \(4, 2\), the network expects \(B, 3\)"
    ):
        teacher.net(x, s, s, torch.zeros(4, 2))


@pytest.mark.parametrize("guidance", [(), (1.0, 3.0)])
def test_labels_from_teacher_to_pipeline(guidance: tuple[float, ...], tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path / "net")
    import_diffusers(tmp_path / "net", tmp_path / "teacher", "flow", "linear-down", scale=1000.0)
    teachers = (tmp_path / "teacher",)
    simulate(
        SimulateConfig(
            teachers,
            tmp_path / "curves",
            degree=3,
            count=16,
            steps=3,
            accelerator="cpu",
            guidance_scale=guidance,
        )
    )
    student = distill(
        DistillConfig(tmp_path / "curves", tmp_path / "student", steps=4, batch=8, loop=LOOP)
    )
    export_diffusers(student, tmp_path / "out")
    labels, eye = (
        [0, 1, 2, 3],
        torch.cat([torch.eye(3), torch.zeros(1, 3)]),
    )  # the fourth is no label
    cond = torch.cat([eye, torch.full((4, 1), 2.0)], 1) if guidance else eye
    same_images(student, tmp_path / "out", cond, labels)
    with pytest.raises(ValueError, match="class_labels run from 0 to 4, expected 0 to 2"):
        load_pipeline(tmp_path / "out")(2, class_labels=[0, 4])


@pytest.mark.parametrize("kind", ["mlp", "unet", "dit"])
def test_our_own_networks_as_pipelines(kind: Any, tmp_path: Path) -> None:
    model = model_of(
        NetworkConfig(kind, 32, 1),
        (1, 8, 8),
        scaling=dataclasses.replace(BYTES, layout="hw"),
        knots={1: (0.0, 1.0), 2: (0.0, 0.3, 1.0)},
        teachers=(TeacherRef(path="x", digest="c0ffee"),),
    )
    for parameter in model.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = save_model(tmp_path / "model", model)
    (tmp_path / "model" / "metrics.json").write_text('{"fid": 4.25}')
    assert (
        cli.main(
            [
                "export",
                "--model",
                str(tmp_path / "model"),
                "--to",
                "diffusers",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    same_images(model, tmp_path / "out")
    scheduler = load_pipeline(tmp_path / "out").scheduler
    scheduler.set_timesteps(2)
    close(scheduler.sigmas, torch.tensor([1.0, 0.7, 0.0]))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(
        text in readme
        for text in (
            '"total": 7',
            "c0ffee",
            "- 2: 0, 0.3, 1",
            '"fid": 4.25',
            "import bezierdistill.interop.diffusers",
        )
    )
    assert sorted(path.suffix for path in (tmp_path / "out" / "unet").iterdir()) == [
        ".json",
        ".safetensors",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    with pytest.raises(ValueError, match="is not empty"):
        export_diffusers(model, tmp_path / "out")


def test_the_readme_of_an_export_runs_and_its_import_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(NetworkConfig("mlp", 8, 1))
    export_diffusers(model, tmp_path / "out")
    code = (
        (tmp_path / "out" / "README.md")
        .read_text()
        .split("```python\n")[1]
        .split("```")[0]
        .replace("THIS FOLDER", str(tmp_path / "out"))
    )
    monkeypatch.delitem(sys.modules, "bezierdistill.interop.diffusers", raising=False)
    with pytest.raises(
        ValueError,
        match=r"bezierdistill\.interop\.diffusers is not one of .* and has not been imported",
    ):
        exec(code.replace("import bezierdistill.interop.diffusers\n", ""), {})
    names: dict[str, Any] = {}
    exec(code, names)
    assert [image.size for image in names["images"]] == [(8, 8)] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (192,), "scaling": Scaling()}, "makes square images"),
        ({"scaling": Scaling((0.1,), (0.3,), "chw")}, r"do not fill \[-1, 1\]"),
        ({"domain": BYTES}, "translates from another domain"),
        ({"conditions": Conditions(size=2)}, "class labels alone"),
    ],
)
def test_what_no_pipeline_can_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_diffusers(model_of(NetworkConfig("mlp", 8, 1), **change), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def guided(low_high: tuple[float, float] | None) -> Model:
    """A student of three classes, with a guidance scale as an input or none."""
    own = 3 + (low_high is not None)
    conditions = Conditions(size=own, frequencies=(1 / 3,) * 3, guidance_range=low_high)
    model = model_of(NetworkConfig("mlp", 32, 1), conditions=conditions)
    for parameter in model.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(("scale", "expected"), [(None, 2.0), (1.0, 1.0), (2.75, 2.75)])
def test_an_export_fixes_the_guidance_scale(
    scale: float | None, expected: float, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", guided((1.0, 3.0)))
    flags = [] if scale is None else ["--guidance-scale", str(scale)]
    out = tmp_path / "out"
    assert cli.main(["export", "--model", str(tmp_path / "model"), "--out", str(out), *flags]) == 0
    cond = torch.cat([torch.eye(3)[[0, 1, 2, 0]], torch.full((4, 1), expected)], 1)
    same_images(model, out, cond, [0, 1, 2, 0])
    assert f"input of the network: {expected:g} here" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("low_high", "scale", "message"),
    [
        ((1.0, 3.0), 3.5, "guidance scale is 3.5, the student was distilled for 1 to 3"),
        ((1.0, 3.0), float("nan"), "guidance scale is nan, the student was distilled for 1 to 3"),
        (None, 2.0, "guidance scale is 2, the model takes none as an input"),
    ],
)
def test_a_scale_that_a_student_does_not_take_is_refused(
    low_high: tuple[float, float] | None, scale: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export_diffusers(guided(low_high), tmp_path / "out", guidance_scale=scale)
    with pytest.raises(UserError, match="without conditions"):
        export_diffusers(model_of(NetworkConfig("mlp", 8, 1)), tmp_path / "out", 2.0)
    assert not list(tmp_path.iterdir())


def test_pipelines_and_models_of_other_versions_are_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", guided(None))
    out = export_diffusers(model, tmp_path / "out")
    config = out / "unet" / "config.json"
    assert '"version": 2' in config.read_text()
    config.write_text(config.read_text().replace('"version": 2', '"guidance": null'))
    with pytest.raises(UserError, match=r"version 1, expected 2: .* export it again"):
        load_pipeline(out)
    card = tmp_path / "model" / "model.json"
    card.write_text(card.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(UserError, match="written by another version of bezierdistill"):
        load_model(tmp_path / "model")


def test_scheduler_takes_no_steps_of_the_callers() -> None:
    from bezierdistill.interop.diffusers import VERSION, FlowMapScheduler, FlowMapUNet

    scheduler = FlowMapScheduler({"2": [0, 0.25, 1]})
    scheduler.set_timesteps(4)
    close(scheduler.timesteps, torch.tensor([[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]]))
    with pytest.raises(ValueError, match="knots of its own"):
        scheduler.set_timesteps(timesteps=[1])
    with pytest.raises(ValueError, match="expected 1 or more"):
        scheduler.set_timesteps(0)
    unet = FlowMapUNet(dataclasses.asdict(NetworkConfig("mlp", 8, 1)), 8, 3, version=VERSION)
    with pytest.raises(ValueError, match="do not swap the scheduler"):
        unet(torch.zeros(1, *SHAPE), torch.tensor(999))


def break_weights(folder: Path) -> None:
    tiny_unet(add_attention=False).save_pretrained(folder / "other")
    (folder / "other" / "diffusion_pytorch_model.safetensors").replace(
        folder / "net" / "diffusion_pytorch_model.safetensors"
    )


def only_bin(folder: Path) -> None:
    (folder / "net" / "diffusion_pytorch_model.safetensors").unlink()
    tiny_unet().save_pretrained(folder / "net", safe_serialization=False)


def rename_class(folder: Path) -> None:
    text = (folder / "net" / "config.json").read_text()
    (folder / "net" / "config.json").write_text(text.replace('"UNet2DModel"', '"AutoencoderKL"'))


@pytest.mark.parametrize(
    ("spoil", "told", "message"),
    [
        (lambda folder: None, ("eps", "linear-up", {"low": 0.1}), "prediction is 'eps'"),
        (lambda folder: None, ("epsilon", "linear-up", {}), "a span that ends before pure noise"),
        (lambda folder: None, ("flow", "up", {}), "schedule is 'up', expected one of linear-up"),
        (
            lambda folder: None,
            ("flow", "sigma", {"scale": 2.0}),
            "schedule sigma got scale, expected no more than least, most",
        ),
        (
            lambda folder: None,
            ("epsilon", "steps", {}),
            "schedule steps needs the scheduler of a pipeline",
        ),
        (
            lambda folder: (folder / "net" / "config.json").unlink(),
            ("flow", "linear-up", {}),
            "holds none, expected one network",
        ),
        (
            lambda folder: (folder / "net" / "vae").mkdir(),
            ("flow", "linear-up", {}),
            "its network makes latents",
        ),
        (
            rename_class,
            ("flow", "linear-up", {}),
            "is a AutoencoderKL, expected UNet2DModel or DiTTransformer2DModel",
        ),
        (only_bin, ("flow", "linear-up", {}), "cannot load .* from safetensors"),
        (break_weights, ("flow", "linear-up", {}), "are not those of its config.json"),
        (
            lambda folder: tiny_unet(class_embed_type="timestep").save_pretrained(folder / "net"),
            ("flow", "linear-up", {}),
            "is 'timestep'",
        ),
        (
            lambda folder: tiny_unet(
                time_embedding_type="learned", num_train_timesteps=9
            ).save_pretrained(folder / "net"),
            ("flow", "linear-up", {}),
            "knows whole steps alone",
        ),
    ],
)
def test_mistakes_of_imports(
    spoil: Callable[[Path], object],
    told: tuple[Any, Any, dict[str, float]],
    message: str,
    tmp_path: Path,
) -> None:
    tiny_unet().save_pretrained(tmp_path / "net")
    spoil(tmp_path)
    prediction, schedule, numbers = told
    with pytest.raises(ValueError, match=message):
        import_diffusers(tmp_path / "net", tmp_path / "out", prediction, schedule, **numbers)
    assert not (tmp_path / "out").exists()


def test_a_scheduler_that_says_otherwise_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet(), "v_prediction")
    flags = ["--folder", str(folder), "--out", str(tmp_path / "out")]
    assert cli.main(["import", *flags, "--schedule", "steps", "--prediction", "epsilon"]) == 2
    assert "the scheduler of" in capsys.readouterr().err
    assert cli.main(["import", *flags, "--schedule", "linear-up"]) == 2
    told = capsys.readouterr().err
    assert "schedule is 'linear-up'" in told
    assert str(folder / "scheduler" / "scheduler_config.json") in told
    assert len(told.splitlines()) == 1
    assert cli.main(["import", *flags]) == 0
    told = capsys.readouterr().out
    assert "teacher of images (3, 8, 8), 0 classes" in told
    assert "prediction v_prediction and schedule steps, as" in told
    model = load_model(tmp_path / "out")
    assert model.card.kind == "teacher"
    assert isinstance(model.network, ForeignConfig)
    assert (model.network.prediction, model.network.schedule) == ("v_prediction", "steps")
    agreed = import_diffusers(folder, tmp_path / "agreed", "v_prediction", "steps")
    assert agreed.network == model.network
    settings = folder / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace("DDPMScheduler", "EDMEulerScheduler"))
    with pytest.raises(ValueError, match="wraps the network in scales of its own"):
        import_diffusers(folder, tmp_path / "other", "v_prediction", "sigma")


def moved_to_the_root(folder: Path) -> None:
    """As google/ddpm-cifar10-32 lies."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()


def scheduler_to_the_root(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.rename(folder / file.name)


def network_to_the_root(folder: Path) -> None:
    for file in (folder / "unet").iterdir():
        file.rename(folder / file.name)
    (folder / "unet").rmdir()


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def as_a_checkpoint(folder: Path) -> None:
    """As training scripts keep averaged weights, in the folder of the pipeline to come."""
    (folder / "checkpoint-5").mkdir()
    (folder / "unet").rename(folder / "checkpoint-5" / "unet_ema")


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "subfolders": (lambda folder: None, "."),
    "the network's folder alone": (lambda folder: None, "unet"),
    "both in the root": (moved_to_the_root, "."),
    "network in the root": (network_to_the_root, "."),
    "scheduler in the root": (scheduler_to_the_root, "."),
    "no index": (no_index, "."),
    "transformer": (lambda folder: (folder / "unet").rename(folder / "transformer"), "."),
    "checkpoint": (as_a_checkpoint, "checkpoint-5"),
    "in a checkpoint": (as_a_checkpoint, "checkpoint-5/unet_ema"),
}


@pytest.mark.parametrize("name", PLACES)
def test_networks_and_schedulers_are_found_wherever_diffusers_puts_them(
    name: str, tmp_path: Path
) -> None:
    unet, (move, named) = tiny_unet(), PLACES[name]
    folder = save_pipeline(tmp_path / "pipeline", unet, "sample")
    move(folder)
    if name == "transformer":
        no_index(folder)  # it names unet/
    model = import_diffusers(folder / named, tmp_path / "out")
    assert isinstance(model.network, ForeignConfig)
    assert (model.network.prediction, model.network.schedule) == ("sample", "steps")
    x, s = torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        torch.testing.assert_close(
            model.field(x, s), field_of(unet, model)(x, s), rtol=1e-6, atol=1e-6
        )
    with pytest.raises(UserError, match="prediction is 'epsilon', the scheduler of"):
        import_diffusers(folder / named, tmp_path / "other", "epsilon")


def test_what_the_pipeline_of_diffusers_loads_is_imported(tmp_path: Path) -> None:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    folder = save_pipeline(tmp_path / "pipeline", tiny_unet())
    averaged = save_ema(folder / "unet_ema")
    pipeline = DDPMPipeline.from_pretrained(folder)
    model = import_diffusers(folder, tmp_path / "out")
    x, s = torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        exact = field_of(pipeline.unet, model)(x, s)
        torch.testing.assert_close(model.field(x, s), exact, rtol=1e-6, atol=1e-6)
        other = import_diffusers(folder / "unet_ema", tmp_path / "ema")
        exact = field_of(averaged, other)(x, s)
        torch.testing.assert_close(other.field(x, s), exact, rtol=1e-6, atol=1e-6)


def save_ema(folder: Path) -> Any:
    """As diffusers' training scripts save averaged weights; returns the network with these."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.training_utils import EMAModel

    unet = tiny_unet()
    average = EMAModel(
        unet.parameters(), 0.9, use_ema_warmup=True, model_cls=UNet2DModel, model_config=unet.config
    )
    average.step([parameter + 1 for parameter in unet.parameters()])
    average.save_pretrained(folder)
    average.copy_to(unet.parameters())
    return unet


def test_averaged_weights_of_training_scripts_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averaged = save_ema(tmp_path / "run" / "unet_ema")
    assert '"decay"' in (tmp_path / "run" / "unet_ema" / "config.json").read_text()
    folder, out = tmp_path / "run", tmp_path / "out"
    flags = ["--folder", str(folder), "--prediction", "flow", "--schedule", "linear-down"]
    assert cli.main(["import", *flags, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "settings that the network does not have: decay, inv_gamma, min_decay" in told
    model = load_model(out)
    x, s = torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        exact = field_of(averaged, model)(x, s)
        torch.testing.assert_close(model.field(x, s), exact, rtol=1e-6, atol=1e-6)
    tiny_unet().save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"holds unet and unet_ema: .* --folder .*unet_ema"):
        import_diffusers(folder, tmp_path / "other", "flow", "linear-down")


Spoil = Callable[[Path], object]


def renamed(folder: Path, change: Callable[[str], str], half: bool = False) -> None:
    """Weights under other names."""
    file = folder / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    save_file({change(key): t.half() if half else t for key, t in held.items()}, file)


def old_names(name: str) -> str:
    """Those of 2022, which google/ddpm-* still has."""
    for new, old in (
        *(("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value.")),
        ("to_out.0.", "proj_attn."),
    ):
        name = name.replace(new, old)
    return name


def only_variant(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    renamed(folder, str, half=True)
    file.rename(folder / "diffusion_pytorch_model.fp16.safetensors")


def resave(folder: Path, **how: Any) -> None:
    """As diffusers itself saves it."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    unet = UNet2DModel.from_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    unet.save_pretrained(folder, **how)
    if "max_shard_size" in how:
        assert len([*folder.glob("*-of-00002.safetensors")]) == 2


WEIGHTS: dict[str, tuple[Spoil, str]] = {
    "torch.compile": (
        lambda folder: renamed(folder, "_orig_mod.{}".format),
        "weights' names are taken without their prefix _orig_mod.",
    ),
    "DDP": (
        lambda folder: renamed(folder, "module.{}".format),
        "weights' names are taken without their prefix module.",
    ),
    "DDP, compiled, wrapped": (
        lambda folder: renamed(folder, "module._orig_mod.model.{}".format),
        "weights' names are taken without their prefix module._orig_mod.model.",
    ),
    "averaged": (lambda folder: renamed(folder, "ema.{}".format), "without their prefix ema."),
    "names of 2022": (lambda folder: renamed(folder, old_names), "teacher of images"),
    "names of 2022, DDP": (
        lambda folder: renamed(folder, lambda name: f"module.{old_names(name)}"),
        "without their prefix module.",
    ),
    "half precision alone": (
        only_variant,
        "weights from diffusion_pytorch_model.fp16.safetensors, in single precision",
    ),
    "a variant of diffusers": (
        lambda folder: resave(folder, variant="non_ema"),
        "weights from diffusion_pytorch_model.non_ema.safetensors",
    ),
    "shards": (lambda folder: resave(folder, max_shard_size="100KB"), " and 1 more, in single"),
    "shards of a variant": (
        lambda folder: resave(folder, max_shard_size="100KB", variant="fp16"),
        " and 1 more, in single",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_loaded_however_they_were_saved(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet, (spoil, line) = tiny_unet(), WEIGHTS[name]
    unet.save_pretrained(tmp_path / "net")
    spoil(tmp_path / "net")
    flags = ["--prediction", "flow", "--schedule", "linear-down"]
    folders = ["--folder", str(tmp_path / "net"), "--out", str(tmp_path / "out")]
    assert cli.main(["import", *flags, *folders]) == 0
    assert line in capsys.readouterr().out
    model = load_model(tmp_path / "out")
    if "half" in name:
        unet = unet.half().float()
    x, s = torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        exact = field_of(unet, model)(x, s)
        torch.testing.assert_close(model.field(x, s), exact, rtol=1e-6, atol=1e-6)
    assert all(tensor.dtype == torch.float32 for tensor in model.net.parameters())


def two_networks(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    save_file({f"{p}.{key}": t.clone() for key, t in held.items() for p in ("model", "ema")}, file)


def with_a_step(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    held = {f"module.{key}": tensor for key, tensor in load_file(file).items()}
    save_file(held | {"step": torch.zeros(1)}, file)


def without_a_shard(folder: Path) -> None:
    resave(folder, max_shard_size="100KB")
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def two_variants(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, folder / "diffusion_pytorch_model.fp16.safetensors")
    file.rename(folder / "diffusion_pytorch_model.bf16.safetensors")


def not_a_number(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    save_file(held | {"conv_in.bias": held["conv_in.bias"] / 0}, file)


def another_head(folder: Path) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    save_file(held | {"conv_out.bias": torch.zeros(7)}, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (two_networks, r"are of several networks \((model\.|ema\.), (model\.|ema\.)\)"),
        (with_a_step, "names without the prefix that others have"),
        (without_a_shard, r"00002-of-00002.safetensors is missing"),
        (two_variants, "or one variant of it"),
        (not_a_number, "hold NaN or infinite numbers"),
        (another_head, r"conv_out.bias is torch.float32 \(7,\), expected torch.float32 \(3,\)"),
        (
            lambda folder: renamed(folder, lambda name: name.replace("conv_in", "first")),
            r"2 tensors are missing \(conv_in.bias\); 2 tensors are unknown \(first.bias\)",
        ),
        (
            lambda folder: resave(folder, safe_serialization=False),
            "it holds diffusion_pytorch_model.bin, expected",
        ),
    ],
)
def test_weights_that_cannot_be_loaded_are_told_in_one_short_line(
    spoil: Spoil, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "net"
    tiny_unet().save_pretrained(folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        import_diffusers(folder, tmp_path / "out", "flow", "linear-down")
    told = str(caught.value)
    assert str(folder) in told
    assert ".tmp" not in told
    assert len(told.replace(str(folder), "")) < 200
    assert "\n" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(STEPPERS))
def test_every_stepper_of_diffusers_gives_its_own_noise_levels(name: str, tmp_path: Path) -> None:
    """Whatever the scheduler, step k adds noise as our schedule does at the time of step k."""
    import diffusers

    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", num_train_timesteps=50)
    model = imported(scheduler, tmp_path)
    assert isinstance(model.network, ForeignConfig)
    assert (model.network.prediction, model.network.schedule) == ("epsilon", "steps")
    a = scheduler.alphas_cumprod.double()
    t = a.sqrt() / (a.sqrt() + (1 - a).sqrt())
    alpha, sigma, step = make_schedule("steps", model.network.numbers).at(t)
    close(step, torch.arange(50).double(), 1e-6)
    close(torch.stack([alpha, sigma]), torch.stack([a.sqrt(), (1 - a).sqrt()]), 1e-9)


def imported(scheduler: Any, tmp_path: Path) -> Model:
    tiny_unet().save_pretrained(tmp_path / "net")
    scheduler.save_pretrained(tmp_path / "net")
    return import_diffusers(tmp_path / "net", tmp_path / "out")


FLOW_SCHEDULERS = [
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500, "shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
]


@pytest.mark.parametrize(("name", "settings"), FLOW_SCHEDULERS)
def test_flow_schedulers_say_prediction_schedule_and_scale(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """With the network that knows the one image, diffusers' own steps and ours end at the image."""
    import diffusers

    scheduler = getattr(diffusers, name)(**settings)
    model = imported(scheduler, tmp_path)
    assert isinstance(model.network, ForeignConfig)
    steps = float(settings.get("num_train_timesteps", 1000))
    assert (model.network.prediction, model.network.schedule) == ("flow", "linear-down")
    assert model.network.numbers == {"scale": steps}
    scheduler.set_timesteps(8)
    sigmas = scheduler.sigmas[scheduler.sigmas < 1]
    alpha, sigma, time = make_schedule("linear-down", model.network.numbers).at(1 - sigmas)
    close(torch.stack([alpha, sigma]), torch.stack([1 - sigmas, sigmas]), 1e-6)
    told = scheduler.timesteps.to(time)  # what diffusers hands the network beside these states
    assert all(float((time - one).abs().min()) <= 1 for one in told if one < steps)
    with pytest.raises(UserError, match=r"scale is 7, the scheduler of .* states"):
        import_diffusers(tmp_path / "net", tmp_path / "other", scale=7.0)
    import_diffusers(tmp_path / "net", tmp_path / "other", low=0.01, scale=steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps 1, expected 2 to 1,000,000"),
        ({"num_train_timesteps": "x"}, "num_train_timesteps x, expected"),
        ({"beta_schedule": "none"}, "cannot be built"),
        ({"prediction_type": "score"}, "prediction_type 'score', expected epsilon"),
        ({"prediction_type": "flow_prediction"}, "a flow without use_flow_sigmas"),
        ({"timestep_type": "continuous"}, "expected a scheduler whose times are steps"),
        ({"_class_name": "SomeScheduler"}, r"scheduler_config.json does not say it: .*--predict"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "wraps the network in scales of its own"),
    ],
)
def test_schedulers_that_cannot_be_believed(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet())
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        import_diffusers(folder, tmp_path / "out")
    assert str(folder) in str(caught.value)


def test_a_scheduler_of_2022(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "pipeline", tiny_unet())
    file = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text())
    del settings["prediction_type"]
    file.write_text(json.dumps(settings | {"predict_epsilon": False}))
    model = import_diffusers(folder, tmp_path / "old")
    assert isinstance(model.network, ForeignConfig)
    assert model.network.prediction == "sample"


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_scheduler_that_ends_in_pure_noise(name: str, tmp_path: Path) -> None:
    import diffusers

    scheduler = getattr(diffusers, name)(
        rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    model = imported(scheduler, tmp_path)
    assert isinstance(model.network, ForeignConfig)
    levels = model.network.numbers["alphas_cumprod"]
    assert levels[:-1] == scheduler.alphas_cumprod[:-1].double().tolist()
    assert 0 < levels[-1] < levels[-2] < 1e-8


def test_nothing_is_guessed_where_nothing_is_said(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "net")
    for told, message in (({}, "prediction is not"), ({"prediction": "flow"}, "schedule is not")):
        with pytest.raises(UserError, match=f"{message} given, and .* has no scheduler"):
            import_diffusers(tmp_path / "net", tmp_path / "out", **told)


def test_random_frequencies_of_a_foreign_network_are_not_trained() -> None:
    unet = tiny_unet(time_embedding_type="fourier")
    net = Foreign(unet, "sample", make_schedule("sigma", {"least": 0.1}), 0)
    assert "inner.time_proj.weight" in net.state_dict()
    assert "inner.time_proj.weight" not in dict(net.named_parameters())


def test_cards_that_name_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="expected UNet2DModel or DiTTransformer2DModel"):
        ForeignConfig("Pipeline", {}, "flow", "linear-up", {})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="diffusers cannot build a UNet2DModel"):
        ForeignConfig("UNet2DModel", {"size": 3}, "flow", "linear-up", {}).build(SHAPE, 0)
    config = {
        key: value for key, value in tiny_unet(num_class_embeds=3).config.items() if key[0] != "_"
    }
    whole = ForeignConfig("UNet2DModel", config, "flow", "linear-up", {})
    with pytest.raises(
        ValueError,
        match=r"states have shape \(1, 8, 8\), the settings of UNet2DModel name \(3, 8, 8\)",
    ):
        whole.build((1, 8, 8), 0, 3)
    with pytest.raises(ValueError, match="conditions have 2 numbers, the network has 3 classes"):
        whole.build(SHAPE, 0, 2)
    first, again = (whole.build(SHAPE, 4, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_mnist_from_training_to_a_pipeline(tmp_path: Path) -> None:
    folder = Path(
        os.environ.get("BEZIERDISTILL_DATA", Path(__file__).parents[2] / "shared" / "data")
    )
    if not (folder / "mnist.npz").exists():
        pytest.skip("no mnist.npz: set BEZIERDISTILL_DATA to its folder")
    np.savez(tmp_path / "digits.npz", x=np.load(folder / "mnist.npz")["train_images"][:4000])
    data, loop = str(tmp_path / "digits.npz"), LoopConfig(lr=1e-3, accelerator="cpu")
    train(
        TrainConfig(
            data, tmp_path / "teacher", 150, 32, network=NetworkConfig("unet", 16, 1), loop=loop
        )
    )
    simulate(
        SimulateConfig(
            (tmp_path / "teacher",),
            tmp_path / "curves",
            degree=3,
            count=256,
            steps=4,
            batch=64,
            accelerator="cpu",
        )
    )
    student = distill(
        DistillConfig(tmp_path / "curves", tmp_path / "student", steps=100, batch=32, loop=loop)
    )
    log = [
        float(line.split('"student": ')[1].split("}")[0])
        for line in (tmp_path / "student" / "log.jsonl").read_text().splitlines()
    ]
    assert log[-1] < log[0]
    export_diffusers(student, tmp_path / "out")
    same_images(student, tmp_path / "out")
    images = load_pipeline(tmp_path / "out")(
        2, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    ).images
    assert [image.size for image in images] == [(28, 28)] * 2

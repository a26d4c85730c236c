"""diffusers in and out: teachers of every convention become curves, students, and pipelines that
make the same images."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bezierdistill import cli
from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend
from bezierdistill.interop import export_diffusers, import_diffusers
from bezierdistill.models import Model, load_model, save_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.foreign import Foreign, ForeignConfig, make_schedule
from bezierdistill.records import Conditions, ModelCard, Passes, TeacherRef, to_json
from bezierdistill.settings import Prediction, ScheduleKind
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.settings import LoopConfig
from conftest import close
from tiny_diffusers import BYTES, SHAPE, field_of, save_pipeline, tiny_dit, tiny_unet

LOOP = LoopConfig(lr=1e-3, accelerator="cpu")


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
    low, high = raw.net.convention.schedule.span
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


def test_the_readme_of_an_export_runs_with_its_code_or_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(NetworkConfig("mlp", 8, 1))
    export_diffusers(model, tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    code = code.replace("THIS FOLDER", str(tmp_path / "out"))
    plain = code.replace(", custom_pipeline=folder, trust_remote_code=True", "")
    assert plain != code
    monkeypatch.delitem(sys.modules, "bezierdistill.interop.diffusers", raising=False)
    with pytest.raises(
        ValueError,
        match=r"bezierdistill\.interop\.diffusers is not one of .* and has not been imported",
    ):
        exec(plain, {})
    images = []
    for text in (f"import bezierdistill.interop.diffusers\n{plain}", code):
        names: dict[str, Any] = {}
        exec(text, names)
        images.append([np.asarray(image) for image in names["images"]])
    assert [image.shape[:2] for image in images[0]] == [(8, 8)] * 4
    assert np.array_equal(images[0], images[1])


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


ALONE = """
import sys
sys.modules["bezierdistill"] = None  # as if it were not installed
import numpy as np
import torch
from diffusers import DiffusionPipeline

for folder in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    labels = [0, 1, 2, 0] if pipe.unet.config.num_class_embeds else None
    for passes in (1, 2):
        made = pipe(
            4,
            class_labels=labels,
            num_inference_steps=passes,
            generator=torch.Generator().manual_seed(passes),
            output_type="np",
        ).images
        np.save(f"{folder}/{passes}.npy", made)
assert not any(name.startswith("bezierdistill.") for name in sys.modules if "interop" not in name)
"""


def test_diffusers_alone_runs_the_code_in_the_folder(tmp_path: Path) -> None:
    guided = Conditions(size=4, frequencies=(1 / 3,) * 3, guidance_range=(1.0, 3.0))
    labelled = Conditions(size=3, frequencies=(1 / 3,) * 3)
    unet = tiny_unet()
    unet.save_pretrained(tmp_path / "theirs")
    teacher = import_diffusers(tmp_path / "theirs", tmp_path / "t", "flow", "linear-down")
    knots = {1: (0.0, 1.0), 2: (0.0, 0.7, 1.0)}
    models = {
        "mlp": model_of(
            NetworkConfig("mlp", 16, 2, control_points=3), conditions=guided, knots=knots
        ),
        "unet": model_of(NetworkConfig("unet", 8, 1, 1), conditions=labelled, knots=knots),
        "dit": model_of(NetworkConfig("dit", 32, 1, 2), knots=knots),
        "foreign": teacher,
    }
    for name, model in models.items():
        for parameter in model.net.parameters():  # some layers start at zero
            parameter.data += 0.05 * torch.randn_like(parameter)
        export_diffusers(model, tmp_path / name)
    cache = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "code")}
    folders = [str(tmp_path / name) for name in models]
    subprocess.run([sys.executable, "-c", ALONE, *folders], check=True, env=cache)
    for name, model in models.items():
        cond = None
        if model.condition_size:
            cond = torch.eye(model.condition_size)[[0, 1, 2, 0]]
        if model.conditions.guidance_range is not None:
            assert cond is not None
            cond[:, 3] = 2.0  # the middle
        for passes in (1, 2):
            noise = torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(passes))
            own = (model.generate(noise, passes, cond=cond) / 2 + 0.5).clamp(0, 1)
            made = np.load(tmp_path / name / f"{passes}.npy")
            np.testing.assert_allclose(made, own.permute(0, 2, 3, 1), rtol=0, atol=1e-5)
            assert made.std() > 0.01

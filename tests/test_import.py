"""Folders of diffusers as teachers: found wherever diffusers puts the pieces, weights loaded
however they were saved, and schedulers believed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bezierdistill import cli
from bezierdistill.errors import UserError
from bezierdistill.interop import import_diffusers
from bezierdistill.interop.scheduler import STEPPERS
from bezierdistill.models import Model, load_model
from bezierdistill.networks.foreign import ForeignConfig, make_schedule
from conftest import close
from tiny_diffusers import SHAPE, field_of, save_pipeline, tiny_unet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
    flags = ["--source", str(folder), "--out", str(tmp_path / "out")]
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
    flags = ["--source", str(folder), "--prediction", "flow", "--schedule", "linear-down"]
    assert cli.main(["import", *flags, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "settings that the network does not have: decay, inv_gamma, min_decay" in told
    model = load_model(out)
    x, s = torch.randn(3, *SHAPE), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        exact = field_of(averaged, model)(x, s)
        torch.testing.assert_close(model.field(x, s), exact, rtol=1e-6, atol=1e-6)
    tiny_unet().save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"holds unet and unet_ema: .* such as .*unet_ema"):
        import_diffusers(folder, tmp_path / "other", "flow", "linear-down")


Spoil = Callable[[Path], object]
FILE = "diffusion_pytorch_model.safetensors"


def edited(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Spoil:
    """Weights that are changed."""
    return lambda folder: save_file(change(load_file(folder / FILE)), folder / FILE)


def renamed(change: Callable[[str], str]) -> Spoil:
    """Weights under other names."""
    return edited(lambda held: {change(name): tensor for name, tensor in held.items()})


def old_names(name: str) -> str:
    """Those of 2022, which google/ddpm-* still has."""
    news = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    for new, old in news.items():
        name = name.replace(new, old)
    return name


def only_variant(folder: Path) -> None:
    edited(lambda held: {name: tensor.half() for name, tensor in held.items()})(folder)
    (folder / FILE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")


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
        renamed("_orig_mod.{}".format),
        "weights' names are taken without their prefix _orig_mod.",
    ),
    "DDP": (
        renamed("module.{}".format),
        "weights' names are taken without their prefix module.",
    ),
    "DDP, compiled, wrapped": (
        renamed("module._orig_mod.model.{}".format),
        "weights' names are taken without their prefix module._orig_mod.model.",
    ),
    "averaged": (renamed("ema.{}".format), "without their prefix ema."),
    "names of 2022": (renamed(old_names), "teacher of images"),
    "names of 2022, DDP": (
        renamed(lambda name: f"module.{old_names(name)}"),
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
    folders = ["--source", str(tmp_path / "net"), "--out", str(tmp_path / "out")]
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


def without_a_shard(folder: Path) -> None:
    resave(folder, max_shard_size="100KB")
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def two_variants(folder: Path) -> None:
    shutil.copy(folder / FILE, folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / FILE).rename(folder / "diffusion_pytorch_model.bf16.safetensors")


def two_networks(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{p}.{name}": one.clone() for name, one in held.items() for p in ("model", "ema")}


def with_a_step(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": one for name, one in held.items()} | {"step": torch.zeros(1)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edited(two_networks), r"are of several networks \((model\.|ema\.), (model\.|ema\.)\)"),
        (edited(with_a_step), "names without the prefix that others have"),
        (without_a_shard, r"00002-of-00002.safetensors is missing"),
        (two_variants, "or one variant of it"),
        (
            edited(lambda held: held | {"conv_in.bias": held["conv_in.bias"] / 0}),
            "conv_in.bias holds NaN or infinite numbers",
        ),
        (
            edited(lambda held: held | {"conv_out.bias": torch.zeros(7)}),
            r"conv_out.bias is torch.float32 \(7,\), expected torch.float32 \(3,\)",
        ),
        (
            renamed(lambda name: name.replace("conv_in", "first")),
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
    with pytest.raises(UserError, match=r"scale is 7.0, the scheduler of .* states"):
        import_diffusers(tmp_path / "net", tmp_path / "other", scale=7.0)
    import_diffusers(tmp_path / "net", tmp_path / "other", low=0.01, scale=steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps 1, expected 2 to 1,000,000"),
        ({"num_train_timesteps": "x"}, "num_train_timesteps x, expected"),
        ({"beta_schedule": "none"}, "cannot be built"),
        ({"trained_betas": [0.1]}, "cannot be built"),
        ({"_class_name": ["DDPMScheduler"]}, "does not say it"),
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
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "prediction is not"),
        ({"prediction": "flow"}, "schedule is not"),
    ]
    for told, message in cases:
        with pytest.raises(UserError, match=f"{message} given, and .* has no scheduler"):
            import_diffusers(tmp_path / "net", tmp_path / "out", **told)

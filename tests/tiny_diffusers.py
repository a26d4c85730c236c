"""Tiny networks and pipelines of diffusers, and their exact fields."""

from pathlib import Path
from typing import Any

from bezierdistill.data import Scaling
from bezierdistill.models import Model
from bezierdistill.models.teacher import Teacher
from bezierdistill.networks.foreign import ForeignConfig, make_schedule

SHAPE = (3, 8, 8)


BYTES = Scaling((127.5,), (127.5,), "hwc", 0.0, 255.0, True)


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


def field_of(inner: Any, model: Model, **more: Any) -> Teacher:
    """The raw network of diffusers as a field, by the conversion that has tests of its own."""
    assert isinstance(model.network, ForeignConfig)
    schedule = make_schedule(model.network.schedule, model.network.numbers)
    return Teacher(
        lambda y, time: inner(y, time, **more).sample[:, : y.shape[1]],
        model.network.prediction,
        schedule,
    )

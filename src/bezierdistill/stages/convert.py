"""Models of other libraries in and out: the verbs ``import`` and ``export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bezierdistill.settings import Contents, Prediction, ScheduleKind, as_paths

CONTENTS = Contents(
    "a teacher, imported from diffusers",
    {
        "model.json": "the model's card: network, shape, units, which scheduler was believed",
        "model.safetensors": "its weights; bezierdistill sample --model {out} reads both",
    },
    continues=False,
)


@dataclass(frozen=True)
class ImportConfig:
    """Make a teacher of a pretrained network of diffusers.

    What the network predicts and its schedule are said by the pipeline's scheduler; where there is
    none they have to be named. They are never guessed.

    Example::

        bezierdistill import --folder ddpm --out runs/teacher
        bezierdistill import --folder net --prediction sample --schedule sigma --out runs/teacher
    """

    folder: Path
    """A local folder: a pipeline, a checkpoint of a training script with unet/, unet_ema/ or
    transformer/, or the network alone; only safetensors are read."""
    out: Path
    """Folder of the new model."""
    prediction: Prediction | None = None
    """Velocity (data minus noise), flow (noise minus data), epsilon (noise), sample (data),
    v_prediction; needed where no scheduler says it."""
    schedule: ScheduleKind | None = None
    """Linear-up (time 0 is noise), linear-down (time 0 is data), sigma, or steps (those of the
    pipeline's scheduler); needed where no scheduler says it."""
    scale: float | None = None
    """Linear: factor of the network's time input, such as 1000; 1 without it."""
    low: float | None = None
    """Linear: smallest time of ours that it was trained on; 0 without it."""
    high: float | None = None
    """Linear: greatest time of ours; 1 without it."""
    least: float | None = None
    """Sigma: smallest sigma that it was trained on; 0.002 without it."""
    most: float | None = None
    """Sigma: greatest sigma; 80 without it."""

    def __post_init__(self) -> None:
        as_paths(self, "folder", "out")


@dataclass(frozen=True)
class ExportConfig:
    """Write a student as a pipeline of diffusers, with a model card.

    Example::

        bezierdistill export --model runs/student --out runs/pipeline
        bezierdistill export --model runs/guided --guidance-scale 2 --out runs/pipeline
    """

    model: Path
    """Folder of a student or teacher of images."""
    out: Path
    """The new folder."""
    to: Literal["diffusers"] = "diffusers"
    """The library."""
    guidance_scale: float | None = None
    """Guidance scale of every image, for a student that takes it as an input; the middle of its
    range without it."""

    def __post_init__(self) -> None:
        as_paths(self, "model", "out")


def main_import(config: ImportConfig) -> dict[str, Any]:
    """The verb ``import``."""
    from bezierdistill.interop import import_diffusers
    from bezierdistill.run import made_whole

    given = {name: value for name, value in vars(config).items() if value is not None}
    with made_whole(config.out, "import", config, CONTENTS):
        model = import_diffusers(**given)
    said = model.card.settings
    images = f"images {model.shape}, {model.conditions.classes} classes"
    print(f"{config.out}: teacher of {images}, from {config.folder}")
    if said["scheduler"]:
        told = f"prediction {said['prediction']} and schedule {said['schedule']}"
        print(f"{told}, as {said['scheduler']} says")
    if said["weights"] != ["diffusion_pytorch_model.safetensors"]:
        more = f" and {len(said['weights']) - 1} more" if len(said["weights"]) > 1 else ""
        print(f"weights from {said['weights'][0]}{more}, in single precision")
    if said["prefix"]:
        print(f"weights' names are taken without their prefix {said['prefix']}")
    if said["passed_over"]:
        print(f"settings that the network does not have: {', '.join(said['passed_over'])}")
    return {**model.facts(), **said}


def main_export(config: ExportConfig) -> dict[str, Any]:
    """The verb ``export``."""
    from bezierdistill.interop import export_diffusers
    from bezierdistill.models import load_model

    folder = export_diffusers(load_model(config.model), config.out, config.guidance_scale)
    print(f"{folder}: pipeline of {config.to}; its README.md says how to load it")
    return {"out": folder, "to": config.to}

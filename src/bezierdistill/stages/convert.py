"""Models of other libraries in and out: the verbs ``import`` and ``export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bezierdistill.errors import UserError
from bezierdistill.settings import Contents, Prediction, ScheduleKind, as_paths, check_counts

CONTENTS = Contents(
    "a teacher, imported from diffusers",
    {
        "model.json": "the model's card: network, shape, units, which scheduler was believed",
        "model.safetensors": "its weights; bezierdistill sample --model {out} reads both",
    },
    continues=False,
)
PIPELINE_CONTENTS = Contents(
    "a teacher, a diffusers pipeline with prompts",
    {
        "model.json": "the model's card: which pipeline, how it is called, its digest",
        "prompts/": "the prompts, and what the text encoders made of them; bezierdistill simulate"
        " --teachers {out} reads both",
    },
    continues=False,
)


@dataclass(frozen=True)
class ImportConfig:
    """Make a teacher of a diffusers pipeline or network.

    What the network predicts and its schedule are said by its scheduler, and named where there is
    none; they are never guessed. A pipeline with prompts (--prompts) is asked by its own loop,
    guidance included, and how it calls its transformer is measured; the new folder names it and
    does not copy it.

    Example::

        bezierdistill import --source sd35 --prompts prompts.txt --guidance 4.5 --out runs/teacher
        bezierdistill import --source ddpm --out runs/teacher
    """

    source: str
    """A folder, or a name on the hub, OWNER/NAME, which is cached as usual; only safetensors are
    read. A pipeline of images without prompts, a checkpoint of a training script with unet/,
    unet_ema/ or transformer/, or the network alone; with --prompts a text-to-image or text-to-video
    flow pipeline."""
    out: Path
    """Folder of the new model."""
    prompts: Path | None = None
    """The prompts of a pipeline that takes some, a line each, or JSON lines; they are embedded once
    and kept."""
    guidance: float | None = None
    """Scale of the pipeline's guidance, which becomes part of the teacher; without it the
    pipeline's own, 1 is none."""
    negative: str | None = None
    """The negative prompt; without it the pipeline's own."""
    height: int | None = None
    """Height of images in pixels; without it the pipeline's own."""
    width: int | None = None
    """Width of images in pixels."""
    frames: int | None = None
    """Frames of a video."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type of the pipeline's networks."""
    call: str | None = None
    """Further arguments of the pipeline's call, as JSON: '{"max_sequence_length": 256}'."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric, on which the pipeline is tried: auto, cpu, cuda, mps."""
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
        as_paths(self, "out")
        if self.prompts is not None:
            as_paths(self, "prompts")
        others = PIPELINE if self.prompts is None else NETWORK
        if wrong := [name for name in others if _differs(self, name)]:
            has = "a pipeline's own loop says it" if self.prompts else "it is of one with --prompts"
            raise UserError(f"{wrong[0]} is given, expected none: {has}")
        sizes = {name: getattr(self, name) for name in ("height", "width", "frames")}
        check_counts(**{name: size for name, size in sizes.items() if size is not None})


PIPELINE = ("guidance", "negative", "height", "width", "frames", "dtype", "call", "accelerator")
NETWORK = ("prediction", "schedule", "scale", "low", "high", "least", "most")


def _differs(config: ImportConfig, name: str) -> bool:
    return getattr(config, name) != ImportConfig.__dataclass_fields__[name].default


@dataclass(frozen=True)
class ExportConfig:
    """Write a student as a pipeline of diffusers, or as a LoRA.

    There is a model card in either, which says how it is loaded.

    Example::

        bezierdistill export --model runs/student --out runs/pipeline
        bezierdistill export --model runs/guided --guidance-scale 2 --out runs/pipeline
        bezierdistill export --model runs/prompted --to lora --out runs/lora
    """

    model: Path
    """Folder of a student or teacher of images, or of a student of a pipeline."""
    out: Path
    """The new folder."""
    to: Literal["diffusers", "lora"] = "diffusers"
    """A pipeline of diffusers, or of a pipeline's student of --full its transformer; or, of one
    with an adapter, its LoRA alone. Both have a scheduler."""
    guidance_scale: float | None = None
    """Diffusers: guidance scale of every image, for a student that takes it as an input; the middle
    of its range without it."""
    dialect: Literal["diffusers", "comfyui"] | None = None
    """Lora: for whom the file is; diffusers without it."""

    def __post_init__(self) -> None:
        as_paths(self, "model", "out")
        if self.to == "diffusers" and self.dialect is not None:
            raise UserError(f"dialect is {self.dialect}, expected it with --to lora alone")
        if self.to == "lora" and self.guidance_scale is not None:
            raise UserError(
                f"guidance_scale is {self.guidance_scale:g}, expected it with --to diffusers alone:"
                " a pipeline's student has its guidance in the weights"
            )


def main_import(config: ImportConfig) -> dict[str, Any]:
    """The verb ``import``."""
    from bezierdistill.interop import import_diffusers
    from bezierdistill.run import made_whole

    if config.prompts is not None:
        return _import_pipeline(config)
    given = {n: getattr(config, n) for n in NETWORK if getattr(config, n) is not None}
    with made_whole(config.out, "import", config, CONTENTS):
        model = import_diffusers(config.source, config.out, **given)
    said = model.card.settings
    images = f"images {model.shape}, {model.conditions.classes} classes"
    print(f"{config.out}: teacher of {images}, from {config.source}")
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


def _import_pipeline(config: ImportConfig) -> dict[str, Any]:
    from bezierdistill.interop.pipeline import import_pipeline, read_arguments
    from bezierdistill.run import made_whole
    from bezierdistill.training.ranks import open_fabric

    assert config.prompts is not None
    sizes = {"height": config.height, "width": config.width, "num_frames": config.frames}
    given = {name: value for name, value in sizes.items() if value is not None}
    with made_whole(config.out, "import", config, PIPELINE_CONTENTS):
        model = import_pipeline(
            config.source,
            config.prompts,
            config.out,
            config.guidance,
            config.negative,
            config.dtype,
            given | read_arguments(config.call),
            str(open_fabric(config.accelerator).device),
        )
    made, call = model.pipeline, model.pipeline.call
    told = ", ".join(f"{name} {value:g}" for name, value in made.guidance.items())
    print(
        f"{config.out}: teacher of {made.name}, states {model.shape}, {len(model.prompts):,}"
        f" prompts, {told or 'no guidance'}, {made.passes} passes a velocity"
    )
    sign = "noise minus data" if call.sign > 0 else "data minus noise"
    print(
        f"measured: {call.state} is the state, {call.time} = {call.shift:g} + {call.scale:g} sigma,"
        f" predicts {sign}"
    )
    return {**model.facts(), "pipeline": made.name, "prompts": len(model.prompts), **vars(call)}


def main_export(config: ExportConfig) -> dict[str, Any]:
    """The verb ``export``."""
    from bezierdistill.interop import export_diffusers, export_lora
    from bezierdistill.models import load_model

    model = load_model(config.model)
    if config.to == "lora":
        folder = export_lora(model, config.out, config.dialect or "diffusers")
        made = f"LoRA for {config.dialect or 'diffusers'}"
    else:
        folder = export_diffusers(model, config.out, config.guidance_scale)
        whole = not model.card.is_pipeline
        made = "pipeline of diffusers" if whole else "transformer and scheduler of diffusers"
    print(f"{folder}: {made}; its README.md says how to load it")
    return {"out": folder, "to": config.to}

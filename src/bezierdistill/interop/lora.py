r"""A student of a pipeline as a LoRA that stock diffusers or ComfyUI loads, with a model card.

A student's pass from s to t is an Euler step between the noise levels :math:`1 - s` and
:math:`1 - t`, so a stock scheduler samples it, given these levels. Pipelines space theirs evenly
from 1, to ends of their own; the scheduler's ``shift_terminal`` stretches them to the end that is
asked for. Levels that are not evenly spaced are handed over in the call. What a pipeline makes of
either is tried here, and not listed.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bezierdistill import __version__
from bezierdistill.errors import UserError
from bezierdistill.files import whole_folder, write_tensors
from bezierdistill.interop.writing import json_block, metrics_block
from bezierdistill.models import Model
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.pipelines.opening import makes_films
from bezierdistill.progress import stage
from bezierdistill.records import to_json

FILES = {"diffusers": "pytorch_lora_weights.safetensors", "comfyui": "comfyui_lora.safetensors"}
# The pipelines whose layers ComfyUI knows by diffusers' names, and its prefix for these, after
# model_lora_keys_unet in comfy/lora.py of github.com/Comfy-Org/ComfyUI at 17358c8.
PREFIXES = {
    "StableDiffusion3Pipeline": "transformer",
    "FluxPipeline": "transformer",
    "QwenImagePipeline": "diffusion_model",
    "ZImagePipeline": "diffusion_model",
    "LTXPipeline": "diffusion_model",
}
CLOSE = 1e-6  # of a noise level, in single precision


@dataclass(frozen=True)
class Levels:
    """The noise levels of a sampler, and how a pipeline is brought to take them."""

    levels: tuple[float, ...]
    """From 1 to above 0."""
    by: Literal["scheduler", "call", "class"]
    """The scheduler's settings; ``sigmas`` in the call; a scheduler that takes no others."""

    @property
    def passes(self) -> int:
        """How many there are."""
        return len(self.levels)

    @property
    def terminal(self) -> float | None:
        """The scheduler's ``shift_terminal``, which divides 0 by 0 at one step."""
        return self.levels[-1] if self.by == "scheduler" and self.passes > 1 else None


@stage("exporting")
def export_lora(model: Model, out: str | Path, dialect: str = "diffusers") -> Path:
    """Write the adapter of a pipeline's student as a folder; it is whole or absent.

    Args:
        model: the student.
        out: the new folder: the LoRA and a README, and for diffusers a scheduler.
        dialect: for whom the file is: diffusers or comfyui.

    Returns:
        The folder.

    Raises:
        UserError: on a model that is no student of a pipeline, another dialect, or a folder that is
            not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")
    if dialect not in FILES:
        raise UserError(f"dialect is {dialect}, expected {' or '.join(FILES)}")
    config = _check(model)
    named = _tensors(model, config, dialect)
    with whole_folder(out) as folder:
        if dialect == "diffusers":
            write_stock(model, config, folder)
        else:
            text = _head(model, config) + _comfyui(model, config) + _facts(model, config)
            (folder / "README.md").write_text(text, encoding="utf-8")
        write_tensors(folder / FILES[dialect], named, _metadata(model, config))
    return out


def write_stock(model: Model, config: PipelineConfig, folder: Path) -> None:
    """Write a student's scheduler, and a README with the lines of stock diffusers that sample."""
    steps = [find_levels(model, passes) for passes in sorted(model.knots, reverse=True)]
    terminal = next((made.terminal for made in steps if made.by == "scheduler"), None)
    _scheduler(model, terminal).save_pretrained(folder / "scheduler")
    text = _head(model, config) + _use(model, config, steps, terminal) + _facts(model, config)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _check(model: Model) -> PipelineConfig:
    """The settings of a pipeline's student with an adapter; refuses any other model."""
    config = model.network
    if not isinstance(config, PipelineConfig):
        raise UserError(
            "the model is a network of ours, expected a student of a pipeline: leave --to lora out"
        )
    if config.full:
        raise UserError(
            "the model has all its weights trained, expected one with an adapter: write it by --to"
            " diffusers"
        )
    if not config.lora:
        raise UserError(
            f"the model is a {config.name} without an adapter, expected a student: distil one first"
        )
    check_distilled(model)
    return config


def check_distilled(model: Model) -> None:
    """Refuse a student that has not been trained."""
    if not model.knots:
        raise UserError("the student has learnt no passes yet, expected one that is distilled")


def _tensors(model: Model, config: PipelineConfig, dialect: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the dialect's names."""
    net: Any = model.net
    if dialect == "diffusers":
        return {f"transformer.{name}": tensor for name, tensor in net.tensors().items()}
    prefix = PREFIXES.get(config.name, "diffusion_model")
    named = {f"{prefix}.{name}": tensor for name, tensor in net.tensors().items()}
    layers = [name.removesuffix(".lora_A.weight") for name in named if ".lora_A." in name]
    return named | {f"{layer}.alpha": torch.tensor(float(net.rank)) for layer in layers}


def _metadata(model: Model, config: PipelineConfig) -> dict[str, str]:
    sigmas = {str(passes): [*levels_of(model, passes), 0.0] for passes in sorted(model.knots)}
    return {
        "format": "pt",
        "bezierdistill": __version__,
        "student": model.digest,
        "base": config.source,
        "base_pipeline": config.name,
        "base_digest": config.weights,
        "rank": str(config.lora),
        "alpha": str(config.lora),
        "sigmas": json.dumps(sigmas),
        "guidance": json.dumps(config.guidance | _negative(config)),
        "prompts": str(model.conditions.rows),
    }


def _negative(config: PipelineConfig) -> dict[str, Any]:
    return {} if config.negative is None else {"negative_prompt": config.negative}


def levels_of(model: Model, passes: int) -> tuple[float, ...]:
    """The noise levels at which a sampler's passes start."""
    return tuple(round(1.0 - time, 9) for time in model.knots_of(passes)[:-1])


def find_levels(model: Model, passes: int) -> Levels:
    """How the stock pipeline takes the levels of a number of passes, by trying its own loop."""
    levels = levels_of(model, passes)
    if _takes(model, Levels(levels, "scheduler")):
        return Levels(levels, "scheduler")
    net: Any = model.net
    known = inspect.signature(type(net.loop.pipe).__call__).parameters
    if "sigmas" in known and _takes(model, Levels(levels, "call"), sigmas=list(levels)):
        return Levels(levels, "call")
    return Levels(levels, "class")


def _takes(model: Model, tried: Levels, **more: Any) -> bool:
    """Whether the pipeline's steps, and the times that it tells its transformer, are these."""
    net: Any = model.net
    settings = dict(_scheduler(model, tried.terminal).config)
    trained = settings["num_train_timesteps"]
    texts = net.prompts.outputs(torch.zeros(1, dtype=torch.long), False, net.loop.device)
    levels, times = net.loop.steps(settings, tried.passes, texts, **more)
    expected = torch.tensor(tried.levels)
    return levels.shape == expected.shape and all(
        bool((found - expected).abs().max() <= CLOSE) for found in (levels, times / trained)
    )


def _scheduler(model: Model, terminal: float | None) -> Any:
    from diffusers.schedulers import scheduling_flow_match_euler_discrete as theirs

    net: Any = model.net
    trained = net.loop.pipe.scheduler.config["num_train_timesteps"]
    end: Any = terminal  # they say that it is a number, and take none as well
    return theirs.FlowMatchEulerDiscreteScheduler(trained, shift_terminal=end)


def _head(model: Model, config: PipelineConfig) -> str:
    passes = _listed([str(number) for number in sorted(model.knots)])
    steps = "1 step" if passes == "1" else f"{passes} steps"
    local = config.source.count("/") != 1 or Path(config.source).is_absolute()
    base = "" if local else f"base_model: {config.source}\n"
    kind, tag = ("transformer", "") if config.full else ("LoRA", "lora, ")
    return f"""---
library_name: diffusers
{base}tags: [bezierdistill, {tag}few-step]
---

# A {kind} for {config.name} in {steps}, distilled along Bezier curves

Made by bezierdistill {__version__}, which it does not need.
"""


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _use(model: Model, config: PipelineConfig, steps: list[Levels], terminal: float | None) -> str:
    """The lines of diffusers that sample."""
    blocks = "\n".join(_sampled(config, made, terminal) for made in steps)
    load = _loaded_whole(model, config) if config.full else _loaded(config)
    other = "" if config.full else " For ComfyUI, export it with\n`--dialect comfyui`."
    return f"""
```python
import torch
{load}
```

{blocks}
It has learnt these steps, from these noise levels, and no others: other numbers of steps, other
schedulers and guidance give something else than it was trained for.{other}
"""


def _loaded(config: PipelineConfig) -> str:
    """The lines that load the base, and the adapter into it."""
    load = 'load_lora_weights("THIS FOLDER")'
    if not hasattr(_pipeline(config), "load_lora_weights"):
        load = f'transformer.load_lora_adapter("THIS FOLDER", weight_name="{FILES["diffusers"]}")'
    return f"""from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

pipe = DiffusionPipeline.from_pretrained(
    {json.dumps(config.source)}, torch_dtype=torch.{config.dtype}
)
pipe.{load}"""


def _loaded_whole(model: Model, config: PipelineConfig) -> str:
    """The lines that load the base with the student in the place of its transformer."""
    net: Any = model.net
    kind = type(net.module).__name__
    return f"""from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, {kind}

transformer = {kind}.from_pretrained(
    "THIS FOLDER", subfolder="transformer", torch_dtype=torch.{config.dtype}
)
pipe = DiffusionPipeline.from_pretrained(
    {json.dumps(config.source)}, transformer=transformer, torch_dtype=torch.{config.dtype}
)"""


def _sampled(config: PipelineConfig, made: Levels, terminal: float | None) -> str:
    """The lines for one number of passes."""
    kind, settings, before = "FlowMatchEulerDiscreteScheduler", 'subfolder="scheduler"', ""
    if made.by == "class":
        kind, before = "Levels", _class(made)
    if made.terminal != terminal:
        settings += f", shift_terminal={made.terminal}"
    given = {"num_inference_steps": made.passes, **config.plain, **config.given}
    if made.by == "call":
        given["sigmas"] = list(made.levels)
    told = "".join(f"    {name}={value!r},\n" for name, value in given.items())
    result = "frames" if makes_films(_pipeline(config)) else "images"
    title = f"1 step, from the noise level {_numbers(made.levels)}"
    if made.passes > 1:
        title = f"{made.passes} steps, from the noise levels {_numbers(made.levels)}"
    return f"""## {title}

```python
{before}pipe.scheduler = {kind}.from_pretrained(
    "THIS FOLDER", {settings}
)
{result} = pipe(
    prompt="YOUR PROMPT",
{told}).{result}
```
"""


def _pipeline(config: PipelineConfig) -> Any:
    from bezierdistill.pipelines.opening import pipeline_class

    return pipeline_class(config.name)


def _class(made: Levels) -> str:
    """A scheduler whose levels are these, for pipelines that take none from their caller."""
    return f"""class Levels(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        super().set_timesteps(sigmas={list(made.levels)}, device=device)


"""


def _numbers(levels: tuple[float, ...]) -> str:
    """In digits alone, as ComfyUI does not read exponents."""
    return ", ".join(f"{level:.9f}".rstrip("0").rstrip(".") for level in levels)


def _comfyui(model: Model, config: PipelineConfig) -> str:
    rows = "\n".join(
        f"- {passes}: `{_numbers((*levels_of(model, passes), 0.0))}`"
        for passes in sorted(model.knots)
    )
    told = f"""ComfyUI's source says that it knows the layers of {config.name} by these names; the
file was not tried in it."""
    if config.name not in PREFIXES:
        told = f"""The layers have diffusers' names. ComfyUI has names of its own for those of many
models, probably for {config.name}'s: it then logs `lora key not loaded` and leaves them as they
are, so that the images are bad ones of the base. Have a look at its log; the file was not tried in
it."""
    return f"""
Put `{FILES["comfyui"]}` into ComfyUI's `models/loras`, load it with LoraLoaderModelOnly
at strength 1, and sample with SamplerCustomAdvanced: KSamplerSelect `euler`, CFGGuider with cfg 1,
and ManualSigmas by the number of steps:

{rows}

{told}

It has learnt these steps, from these noise levels, and no others.
"""


def _guided(config: PipelineConfig) -> str:
    """Where the guidance is."""
    if not config.guidance:
        return "The pipeline has no guidance."
    if config.guidance == config.plain:
        return "Guidance is an input of the network, and stays one: give it the scale below."
    return "Guidance is in the weights: a step is one pass, without a negative prompt."


def _facts(model: Model, config: PipelineConfig) -> str:
    """What was distilled."""
    teachers = "\n".join(f"- `{teacher.digest}`" for teacher in model.card.teachers) or "- none"
    facts = {
        "base": config.source,
        "pipeline": config.name,
        "transformer": config.weights,
        "dtype": config.dtype,
        "guidance": config.guidance | _negative(config),
        "prompts": model.conditions.rows,
        "trained": "all weights" if config.full else f"an adapter of rank {config.lora}",
        "student": model.digest,
    }
    spent = {**model.card.passes.parts, "total": model.spent}
    made_by = {"seed": model.card.seed, "steps": model.card.steps, **model.card.settings}
    return f"""
## What was distilled

{_guided(config)}

{json_block(facts)}
## Teachers, by their SHA-256

{teachers}

## Network passes spent

{json_block(spent)}
## Metrics

{metrics_block(model.folder)}
## Settings

{json_block(to_json(made_by))}"""

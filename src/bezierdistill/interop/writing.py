"""A student as a folder that ``DiffusionPipeline.from_pretrained`` reads, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bezierdistill import __version__
from bezierdistill.errors import UserError
from bezierdistill.files import read_text, whole_folder
from bezierdistill.interop.code import FILE, pipeline_code
from bezierdistill.models import Model
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.progress import stage
from bezierdistill.records import ModelCard, parse_json, to_json


@stage("exporting")
def export_diffusers(model: Model, out: str | Path, guidance_scale: float | None = None) -> Path:
    """Write a model as a folder of diffusers: safetensors, settings, the pipeline's code, and a
    README; it is whole or absent.

    Args:
        model: a student or teacher of square images that lie in [-1, 1] in model units; or a
            student of a pipeline whose weights were all trained, of which the transformer and the
            scheduler are written.
        out: the new folder.
        guidance_scale: the scale of every image of a student that takes it as an input; None: the
            middle of its range.

    Returns:
        The folder.

    Raises:
        UserError: on a model of something else, one that does not start from noise or takes
            vectors as conditions, a guidance scale that it cannot have, or a folder that is not
            empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")
    if isinstance(model.network, PipelineConfig):
        from bezierdistill.interop.whole import export_transformer  # it uses this file

        if guidance_scale is not None:
            raise UserError(
                f"guidance_scale is {guidance_scale:g}, expected none: a pipeline's student has its"
                " guidance in the weights"
            )
        return export_transformer(model, model.network, out)
    _check(model)
    model.condition(range(1), guidance_scale=guidance_scale)  # rejects another scale
    if model.conditions.guidance_range is not None:
        guidance_scale = model.teacher_scale(guidance_scale)
    pipeline = _pipeline(model, guidance_scale)
    with whole_folder(out) as folder:
        pipeline.save_pretrained(folder, safe_serialization=True)
        (folder / FILE).write_text(pipeline_code(), encoding="utf-8")
        (folder / "README.md").write_text(_readme(model, guidance_scale), encoding="utf-8")
    return out


def _check(model: Model) -> None:
    """Refuse a model that no pipeline can be."""
    if len(model.shape) != 3 or model.shape[1] != model.shape[2]:
        expected = "(C, N, N): diffusers makes square images"
        raise UserError(f"states have shape {model.shape}, expected {expected}")
    if model.scaling.is_clips:
        raise UserError("the model makes clips, expected one of images: sample --out a folder")
    if model.domain is not None:
        raise UserError(
            "the model translates from another domain, expected one that starts from noise"
        )
    scaling = model.scaling
    ends = [np.nan if bound is None else bound for bound in (scaling.low, scaling.high)]
    reached = [(end - np.asarray(scaling.shift)) / np.asarray(scaling.scale) for end in ends]
    if not (np.allclose(reached[0], -1) and np.allclose(reached[1], 1)):
        raise UserError("images do not fill [-1, 1] in model units: train on images of bytes")
    given = model.conditions
    if given.size != given.classes + (given.guidance_range is not None):
        raise UserError(
            f"the model takes vectors of {given.size} numbers, expected class labels alone"
        )


def _pipeline(model: Model, guidance_scale: float | None) -> Any:
    # Imported here: it takes seconds that only its users need.
    from diffusers.pipelines.consistency_models import pipeline_consistency_models as theirs

    from bezierdistill.interop.diffusers import VERSION, FlowMapScheduler, FlowMapUNet

    channels, side = model.shape[:2]
    classes = model.conditions.classes or None
    unet: Any = FlowMapUNet(model.card.network, side, channels, classes, guidance_scale, VERSION)
    unet.net.load_state_dict(model.net.state_dict())
    knots = {str(passes): list(times) for passes, times in model.knots.items()}
    scheduler: Any = FlowMapScheduler(knots)  # the pipeline wants no more of either than ours have
    return theirs.ConsistencyModelPipeline(unet.eval(), scheduler)


def _readme(model: Model, guidance_scale: float | None) -> str:
    passes, classes = max(model.knots, default=1), model.conditions.classes
    labels = f", class_labels=[{', '.join(str(i % classes) for i in range(4))}]" if classes else ""
    told = "It takes no labels."
    if classes:
        told = f"Classes: {classes}; label {classes} stands for none."
    if model.conditions.guidance_range is not None:
        low, high = model.conditions.guidance_range
        told += f"\nThe guidance scale is an input of the network: {guidance_scale:g} here"
        told += f" (`unet/config.json`), {low:g} to {high:g} was distilled."
    title = " x ".join(map(str, model.shape))
    return f"""---
library_name: diffusers
tags: [bezierdistill, flow-map, few-step, image-generation]
---

# A {model.card.kind} of {title} images, distilled along Bezier curves

Made by bezierdistill {__version__}. diffusers runs it by the code in `pipeline.py`, which you allow
it to run:

```python
import torch
from diffusers import DiffusionPipeline

folder = "THIS FOLDER"  # or its name on the hub
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
generator = torch.Generator().manual_seed(0)
images = pipe(
    batch_size=4{labels}, num_inference_steps={passes}, generator=generator
).images
```

Where bezierdistill is installed, `import bezierdistill.interop.diffusers` before
`DiffusionPipeline.from_pretrained(folder)` takes the code from there, none of the folder's.

{told}

{origin(model.card, model.folder)}"""


def origin(card: ModelCard, folder: Path | None) -> str:
    """Sections of a README: a model's knots, what it cost, its teachers, metrics and settings."""
    rows = {k: ", ".join(f"{time:g}" for time in knots) for k, knots in card.knots.items()}
    spaced = "\n".join(f"- {k}: {rows[k]}" for k in sorted(rows))
    teachers = "\n".join(f"- `{teacher.digest}`" for teacher in card.teachers) or "- none"
    spent = {**card.passes.parts, "total": card.passes.total}
    made_by = {"seed": card.seed, "steps": card.steps, **card.settings}
    return f"""## Knots by number of passes

Time runs from 0 (noise) to 1 (data); other numbers of passes are evenly spaced.

{spaced or "- all evenly spaced"}

## Network passes spent

{json_block(spent)}
## Teachers, by the SHA-256 of their weights

{teachers}

## Metrics

{metrics_block(folder)}
## Settings

{json_block(to_json(made_by))}"""


def metrics_block(folder: Path | None) -> str:
    """The metrics of the model in a folder, where it was evaluated."""
    if folder is None or not (file := folder / "metrics.json").exists():
        return "Not measured.\n"
    return json_block(parse_json(file, read_text(file, "metrics")))


def json_block(value: Any) -> str:
    """Readable JSON in Markdown."""
    return f"```json\n{json.dumps(value, indent=2)}\n```\n"

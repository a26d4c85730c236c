"""Samples of a pipeline with prompts, as images or films: part of the verb ``sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bezierdistill.errors import UserError
from bezierdistill.files import whole_folder, write_array, write_atomically, write_json
from bezierdistill.models.model import Model
from bezierdistill.models.pipeline import PipelineModel
from bezierdistill.pipelines.prompts import read_prompts
from bezierdistill.stages.sample import SampleConfig, told

FILES = {".png": 3, ".gif": 4, ".mp4": 4}  # dimensions of a sample in such a file
FPS = 16


def sample_prompts(config: SampleConfig, model: Model) -> dict[str, Any]:
    """Sample a pipeline with prompts, and write what its own decoder makes of them.

    Raises:
        UserError: on settings that it does not take, or an ``out`` that is no such file.
    """
    assert isinstance(model, PipelineModel)
    _check(config)
    if config.prompt is not None:
        model = model.with_prompts([config.prompt])
    elif config.prompts is not None:
        model = model.with_prompts(read_prompts(config.prompts))
    given = config.prompt is not None or config.prompts is not None
    count = config.count or (len(model.prompts) if given else 64)
    rows = np.arange(count) % len(model.prompts)
    numbers = rows if given else None
    states = model.sample(count, config.passes, config.seed, config.solver, conditions=numbers)
    if not given:
        rows = model.condition(range(count), config.seed)[:, 0].long().numpy()
    images = model.images(states)
    texts = [model.prompts.texts[row] for row in rows.tolist()]
    write_images(config.out, images, texts)
    if config.grid is not None:
        write_images(config.grid, grid(images[:64]), texts)
    return told(config, images.shape) | {"prompts": texts[:64]}


def write_images(out: Path, images: np.ndarray, texts: list[str]) -> None:
    """Write images ``(N, H, W, C)`` or films ``(N, F, H, W, C)`` of bytes: an ``.npz``, a file of
    one (of several images a grid), or a folder of files with ``prompts.json`` beside.
    """
    if out.suffix == ".npz":
        write_array(out, images)
    elif out.suffix:
        if FILES[out.suffix] != images.ndim - 1 or (len(images) > 1 and images.ndim == 5):
            kind = "an image" if images.ndim == 4 else "a film"
            raise UserError(
                f"out is {out} and {len(images)} samples are each {kind}: expected a folder, or"
                f" {'a .png' if images.ndim == 4 else 'a .gif or .mp4 of one'}"
            )
        one = images[0] if len(images) == 1 else grid(images)[0]
        write_atomically(out, lambda path: _write(path, one, out.suffix))
    else:
        ending = ".png" if images.ndim == 4 else ".gif"
        with whole_folder(out) as folder:
            for k, image in enumerate(images):
                _write(folder / f"{k:06d}{ending}", image, ending)
            named = {f"{k:06d}{ending}": text for k, text in enumerate(texts)}
            write_json(folder / "prompts.json", named)


def grid(images: np.ndarray) -> np.ndarray:
    """Images ``(N, H, W, C)`` side by side as one, ``(1, ...)``, or films likewise."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    blank = np.zeros((rows * columns - len(images), *images.shape[1:]), images.dtype)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    lines = [np.concatenate(list(line), axis=-2) for line in tiles]
    return np.concatenate(lines, axis=-3)[None]


def _write(path: Path, image: np.ndarray, kind: str) -> None:
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in (image if image.ndim == 4 else image[None])]
    if kind == ".mp4":
        from diffusers.utils.export_utils import export_to_video

        named = path.with_name(f"{path.name}{kind}")  # writers go by the ending
        export_to_video(frames, str(named), fps=FPS)
        named.replace(path)
    elif kind == ".gif":
        frames[0].save(
            path, "GIF", save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0
        )
    else:
        frames[0].save(path, "PNG")


def _check(config: SampleConfig) -> None:
    if config.out.suffix not in ("", ".npz", *FILES):
        raise UserError(
            f"out is {config.out}, expected a folder, or a .npz, .png, .gif or .mp4 file"
        )
    if config.out.suffix == "" and config.out.exists():
        raise UserError(f"{config.out} exists: choose another --out")
    wrong = {
        "labels": config.labels or None,
        "conditions": config.conditions,
        "guidance_scale": config.guidance_scale,
        "network": config.network,
    }
    for name, value in wrong.items():
        if value is not None:
            raise UserError(
                f"{name} is {value}, which a pipeline does not take: expected --prompt or --prompts"
            )

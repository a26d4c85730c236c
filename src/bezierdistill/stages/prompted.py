"""Samples of a pipeline with prompts, as images or films: part of the verb ``sample``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bezierdistill.errors import UserError
from bezierdistill.files import whole_folder, write_array, write_atomically, write_json
from bezierdistill.models.model import Model
from bezierdistill.models.pipeline import PipelineModel
from bezierdistill.pipelines.opening import makes_films
from bezierdistill.pipelines.prompts import read_prompts
from bezierdistill.stages.sample import SampleConfig, told
from bezierdistill.words import counted

FILES = {False: (".png",), True: (".gif", ".mp4")}  # of images, of films
FPS = 16
WRITERS = ("imageio", "imageio_ffmpeg")  # of .mp4 files


def sample_prompts(config: SampleConfig, model: Model) -> dict[str, Any]:
    """Sample a pipeline with prompts, and write what its own decoder makes of them.

    Raises:
        UserError: on settings that it does not take, or an ``out`` that is no such file.
    """
    assert isinstance(model, PipelineModel)
    texts = read_prompts(config.prompts) if config.prompts is not None else None
    texts = [config.prompt] if config.prompt is not None else texts
    given = texts is not None
    count = config.count or (64 if texts is None else len(texts))
    _check(config, makes_films(model.net.loop.pipe), count)
    model = model if texts is None else model.with_prompts(texts)
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


def _check(config: SampleConfig, films: bool, count: int) -> None:
    """Refuse what could not be written, before anything is sampled."""
    for name, file, more in (("out", config.out, ("", ".npz")), ("grid", config.grid, ())):
        if file is None or file.suffix in (*FILES[films], *more):
            continue
        kinds = " or ".join(FILES[films])
        raise UserError(
            f"{name} is {file}, for {counted(count, 'sample')} of a pipeline of"
            f" {'films' if films else 'images'}: expected {'a folder, a .npz or ' if more else ''}a"
            f" {kinds} file"
        )
    made = {file.suffix for file in (config.out, config.grid) if file is not None}
    if ".mp4" in made and not all(map(find_spec, WRITERS)):
        raise UserError(
            "a .mp4 file needs imageio and imageio-ffmpeg, which are not installed: expected a"
            " .gif, or pip install imageio imageio-ffmpeg"
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

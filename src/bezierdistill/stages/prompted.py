"""Samples of a pipeline with prompts, as images or films: part of the verb ``sample``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from bezierdistill.errors import UserError
from bezierdistill.models.model import Model
from bezierdistill.models.pipeline import PipelineModel
from bezierdistill.pipelines.opening import makes_films
from bezierdistill.pipelines.prompts import read_prompts
from bezierdistill.reporting.films import grid, write_images
from bezierdistill.stages.sample import SampleConfig, check_new, told
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
    write_images(config.out, images, texts, FPS)
    if config.grid is not None:
        write_images(config.grid, grid(images[:64]), fps=FPS)
    return told(config, images.shape) | {"prompts": texts[:64]}


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
    check_new(config.out)
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

"""What alignment compares a student's samples with: real data in the units of its states, or, where
there are none at hand, the ends of the stored curves, which are samples of the teachers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data import ArrayData, Data, Scaling, load_data, rescaled
from bezierdistill.errors import UserError
from bezierdistill.files import read_text
from bezierdistill.models.teacher import Teacher
from bezierdistill.noise import Stream
from bezierdistill.objects import fingerprint
from bezierdistill.progress import progress
from bezierdistill.stages.students import best_teacher
from bezierdistill.store import CurveStore
from bezierdistill.training.checkpoint import load_state, save_state
from bezierdistill.training.pool import MOST_BYTES

if TYPE_CHECKING:
    from bezierdistill.models.pipeline import PipelineModel
    from bezierdistill.pipelines.prompts import Prompts
    from bezierdistill.stages.distill import DistillConfig

IMAGES = 16_384  # of the user's that are encoded, at most
CAPTIONS, LATENTS = "metadata.jsonl", "latents"
VALID = 16  # one end of so many is kept apart, to choose settings by

Describe = Callable[[Tensor], Tensor]


def find_targets(config: DistillConfig, store: CurveStore, own: Teacher | None) -> Data | None:
    """What samples are aligned with; None without alignment.

    Raises:
        UserError: if images are none that the pipeline can encode.
    """
    if not config.align:
        return None
    if config.data is None:
        return ends_of(store, find_describe(store))
    if (model := _pipeline_of(store)) is not None:
        captions = read_captions(Path(str(config.data)))
        return encoded(model, captions or uncaptioned(load_data(config.data)))
    data = load_data(config.data)
    return data if own is None else rescaled(data, own.scaling)


def _pipeline_of(store: CurveStore) -> PipelineModel | None:
    """The best teacher of curves of prompts; None of others, which is not loaded."""
    if store.recipe.conditions.rows is None:
        return None
    best = best_teacher(store)
    return cast("PipelineModel", best) if best is not None and best.card.is_pipeline else None


def find_describe(store: CurveStore) -> Describe:
    """Vectors ``(B, C)`` of the conditions of rows, by which samples are told apart: the conditions
    themselves, or what stands for prompts, as far apart in the mean as two classes are. Numbers of
    rows of another table are no vectors, and there are none.
    """
    if store.recipe.conditions.rows is None:
        return lambda cond: cond
    if (model := _pipeline_of(store)) is None:
        return lambda cond: cond[:, :0]
    prompts, unit = model.prompts, unit_of(model.prompts)
    return lambda cond: unit * prompts.vectors(cond[:, 0].long().cpu()).float().to(cond.device)


def unit_of(prompts: Prompts) -> float:
    """What vectors of prompts are multiplied by, so that two are as far apart as two classes."""
    some = torch.arange(min(len(prompts), 1024))
    known = prompts.vectors(some).float()
    apart = torch.cdist(known, known).mean() * len(some) / max(1, len(some) - 1)
    return math.sqrt(2) / float(apart.clamp_min(1e-9))


def ends_of(store: CurveStore, describe: Describe) -> ArrayData:
    """The ends of stored curves as data, with vectors of their conditions."""
    recipe = store.recipe
    most = MOST_BYTES // (4 * math.prod(recipe.shape))
    rows = torch.linspace(0, len(store) - 1, min(len(store), max(2 * VALID, most))).long().unique()
    states, given = [], []
    for part in rows.split(256):
        curve, cond = store.take(part)
        states.append(curve.data)
        given += [] if cond is None else [describe(cond).float()]
    x = np.asarray(recipe.scaling.decode(torch.cat(states)))
    vectors = torch.cat(given).numpy() if given else None
    apart = np.arange(len(x)) % VALID == 0
    splits: dict[Any, np.ndarray] = {"train": ~apart, "valid": apart, "test": apart}
    train, valid, test = (x[own] for own in splits.values())
    known = {n: vectors[own] for n, own in splits.items()} if vectors is not None else {}
    return ArrayData(f"the ends of {store.folder}", train, valid, test, recipe.scaling, known)


@dataclass(frozen=True)
class Images:
    """Images of the user's.

    Args:
        name: what the user called them.
        count: how many there are.
        read: gives ``(B, H, W, 3)`` of bytes of some rows.
        stamp: what tells these images from others.
        texts: their captions, if there are any.
    """

    name: str
    count: int
    read: Callable[[range], np.ndarray]
    stamp: tuple[object, ...]
    texts: tuple[str, ...] = ()


def read_captions(folder: Path) -> Images | None:
    """The images of a folder with captions: a line ``{"file_name": ..., "text": ...}`` of its
    ``metadata.jsonl`` for each, as the library datasets has them; None if there is no such file.

    Raises:
        UserError: on a line that is none, or a file that is no image or has another size.
    """
    path = folder / CAPTIONS
    if not path.is_file():
        return None
    rows = []
    for number, line in enumerate(read_text(path, "captions").splitlines()[:IMAGES], 1):
        try:
            told = json.loads(line)
            file, text = Path(told["file_name"]), str(told["text"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f'line {number} of {path} is no {{"file_name": ..., "text": ...}}'
            ) from None
        if file.is_absolute() or ".." in file.parts:
            raise UserError(f"line {number} of {path} names {file}, expected a file below {folder}")
        rows.append((folder / file, text))
    if not rows:
        raise UserError(f"{path} is empty, expected a line for each image")

    def read(part: range) -> np.ndarray:
        images = [_pixels(rows[k][0]) for k in part]
        if len(sizes := {image.shape for image in images}) > 1:
            told = ", ".join(f"{width} x {height}" for height, width, _ in sorted(sizes))
            raise UserError(f"{folder} has images of {told} pixels, expected one size")
        return np.stack(images)

    stats = [file.stat() for file, _ in rows if file.exists()]
    stamp = tuple(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)
    return Images(str(folder), len(rows), read, stamp, tuple(text for _, text in rows))


def _pixels(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no image that can be read ({error})") from None


def uncaptioned(data: Data) -> Images:
    """Images of any data of images.

    Raises:
        UserError: if they are no colour or grey images of bytes.
    """
    if not data.scaling.integer or data.scaling.layout not in ("hw", "hwc"):
        raise UserError(f"data {data.name} are no images, expected a folder of some for --data")
    size = data.count("train")

    def read(part: range) -> np.ndarray:
        images = data.scaling.decode(data.take(part, 0, Stream.TRAIN)[0])
        images = images[..., None] if images.ndim == 3 else images
        return np.broadcast_to(images[..., :3], (*images.shape[:3], 3)).copy()

    count = IMAGES if size is None else min(size, IMAGES)
    own = getattr(data, "fingerprint", None)  # of data in memory: all of them
    some = read(range(min(count, 16)))
    return Images(data.name, count, read, (own, fingerprint(some)))


def encoded(pipeline: PipelineModel, images: Images) -> ArrayData:
    """Images as latents of a pipeline, and their captions as vectors, which are kept in its
    teacher's folder.

    Raises:
        UserError: if they are of another size than the pipeline's.
    """
    told = [images.name, images.count, list(images.stamp), list(images.texts)]
    decoder = dict(pipeline.net.loop.pipe.vae.state_dict())
    name = fingerprint([*told, decoder])[:16]
    path = None if pipeline.folder is None else pipeline.folder / LATENTS / f"{name}.safetensors"
    if path is not None and path.exists():
        return _latents(pipeline, images, load_state(path, images.count)[0])
    from bezierdistill.pipelines.latents import Latents

    row = torch.tensor([0])
    encode = Latents(
        pipeline.net.loop,
        pipeline.prompts.outputs(row, False, pipeline.device),
        pipeline.pipeline.call.state,
        pipeline.shape,
    )
    found = []
    with progress("encode", images.count) as tell:
        for start in range(0, images.count, pipeline.batch):
            part = range(start, min(start + pipeline.batch, images.count))
            found.append(encode(images.read(part)))
            tell(len(part))
    tensors = {"x": torch.cat(found)}
    if images.texts:
        told = pipeline.with_prompts(tuple(dict.fromkeys(images.texts))).prompts
        places = {text: k for k, text in enumerate(told.texts)}
        tensors["cond"] = told.vectors(torch.tensor([places[text] for text in images.texts]))
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        save_state(path, tensors, images.count)
    return _latents(pipeline, images, tensors)


def _latents(model: PipelineModel, images: Images, tensors: Mapping[str, Tensor]) -> ArrayData:
    few, x = slice(VALID), tensors["x"].numpy()
    given: dict[Any, np.ndarray] = {}
    if "cond" in tensors:
        vectors = (unit_of(model.prompts) * tensors["cond"].float()).numpy()
        given = {"train": vectors, "valid": vectors[few], "test": vectors[few]}
    return ArrayData(images.name, x, x[few], x[few], Scaling(layout="latent"), given)

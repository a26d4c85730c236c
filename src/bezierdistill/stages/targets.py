"""What alignment compares a student's samples with: real data in the units of its states, or, where
there are none at hand, the ends of the stored curves, which are samples of the teachers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data import ArrayData, Data, Scaling, load_data, rescaled
from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors, write_tensors
from bezierdistill.models.model import Model
from bezierdistill.models.teacher import Teacher
from bezierdistill.noise import Stream
from bezierdistill.objects import fingerprint
from bezierdistill.progress import progress
from bezierdistill.stages.students import best_teacher
from bezierdistill.store import CurveStore
from bezierdistill.training.pool import MOST_BYTES

if TYPE_CHECKING:
    from bezierdistill.models.pipeline import PipelineModel
    from bezierdistill.stages.distill import DistillConfig

IMAGES = 16_384  # of the user's that are encoded, at most
VALID = 16  # one end of so many is kept apart, to choose settings by

Describe = Callable[[Tensor], Tensor]


def find_targets(config: DistillConfig, store: CurveStore, own: Teacher | None) -> Data | None:
    """What samples are aligned with; None without alignment.

    Raises:
        UserError: if images are none that the pipeline can encode.
    """
    if not config.align:
        return None
    model = best_teacher(store)
    if config.data is None:
        return ends_of(store, find_describe(store, model))
    data = load_data(config.data)
    if model is not None and model.card.network.get("kind") == "pipeline":
        return encoded(model, data)
    return data if own is None else rescaled(data, own.scaling)


def find_describe(store: CurveStore, model: Model | None) -> Describe:
    """Vectors ``(B, C)`` of the conditions of rows, by which samples are told apart: the conditions
    themselves, or what stands for prompts, as far apart in the mean as two classes are.
    """
    if store.recipe.conditions.rows is None or model is None:
        return lambda cond: cond
    prompts = getattr(model, "prompts", None)
    if prompts is None:
        return lambda cond: cond[:, :0]
    some = torch.arange(min(len(prompts), 1024))
    known = prompts.vectors(some).float()
    apart = torch.cdist(known, known).mean() * len(some) / max(1, len(some) - 1)
    unit = math.sqrt(2) / float(apart.clamp_min(1e-9))
    return lambda cond: unit * prompts.vectors(cond[:, 0].long().cpu()).float().to(cond.device)


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
    kept = {name: x[own] for name, own in splits.items()}
    known = {n: vectors[own] for n, own in splits.items()} if vectors is not None else {}
    return ArrayData(f"the ends of {store.folder}", **kept, scaling=recipe.scaling, given=known)


def encoded(model: Any, data: Data) -> ArrayData:
    """Images as latents of a pipeline, which are kept in its teacher's folder.

    Raises:
        UserError: if they are no colour or grey images of bytes, or of another size.
    """
    from bezierdistill.pipelines.latents import Latents

    pipeline: PipelineModel = model
    if not data.scaling.integer or data.scaling.layout not in ("hw", "hwc"):
        raise UserError(f"data {data.name} are no images, expected a folder of some for --data")
    size = data.count("train")
    count = IMAGES if size is None else min(size, IMAGES)
    first = data.take(range(min(count, 16)), 0, Stream.TRAIN)[0]
    name = fingerprint([first, count, data.name])[:16]
    path = None if model.folder is None else model.folder / "latents" / f"{name}.safetensors"
    if path is not None and path.exists():
        return _latents(data, read_tensors(path)[0]["x"])
    row = torch.tensor([0])
    encode = Latents(
        pipeline.net.loop,
        pipeline.prompts.outputs(row, False, pipeline.device),
        pipeline.pipeline.call.state,
        pipeline.shape,
    )
    found = []
    with progress("encode", count) as tell:
        for start in range(0, count, pipeline.batch):
            part = range(start, min(start + pipeline.batch, count))
            images = data.scaling.decode(data.take(part, 0, Stream.TRAIN)[0])
            images = images[..., None] if images.ndim == 3 else images
            found.append(encode(np.broadcast_to(images[..., :3], (*images.shape[:3], 3)).copy()))
            tell(len(part))
    x = torch.cat(found)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, {"x": x})
    return _latents(data, x)


def _latents(data: Data, x: Tensor) -> ArrayData:
    array = x.numpy()
    few = array[:VALID]
    return ArrayData(data.name, array, few, few, Scaling(layout="latent"))

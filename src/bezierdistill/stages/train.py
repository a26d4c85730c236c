"""Data to a teacher, by flow matching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.couplings import Independent, MinibatchOT
from bezierdistill.data import ArrayData, Data, load_data
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.objectives import FlowMatching
from bezierdistill.stages.folders import card_of, held, saved
from bezierdistill.stages.train import TrainConfig
from bezierdistill.training.loop import Trainer


def train(config: TrainConfig) -> Model:
    """Train a teacher by flow matching.

    Raises:
        UserError: on bad data or settings, or a folder that holds another run.
    """
    data = load_data(config.data)
    source = None if config.source is None else load_data(config.source)
    if source is not None and source.shape != data.shape:
        raise UserError(
            f"source {config.source} has shape {source.shape}, data {config.data} {data.shape}:"
            " expected one, resize by @16x16"
        )
    conditions = conditions_of(data) if config.conditional else 0
    net = config.network.build(data.shape, config.seed, conditions)
    objective = FlowMatching(MinibatchOT() if config.coupling == "ot" else Independent())
    trainer = Trainer({"teacher": net}, config.loop, config.out, "teacher")
    rows = trainer.share(config.batch)

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        x1, cond = data.batch(rows, generator)
        x0 = (
            torch.randn(x1.shape, generator=generator)
            if source is None
            else source.batch(rows, generator)[0]
        )
        cond = _dropped(cond, config.drop, generator) if conditions else None
        batch = (
            x0.to(trainer.device),
            x1.to(trainer.device),
            cond if cond is None else cond.to(trainer.device),
        )
        yield "teacher", objective.loss(nets["teacher"], batch, generator)

    spent = config.steps * config.batch * objective.passes * config.loop.accumulate
    more = ({"classes": _frequencies(data)} if conditions else {}) | (
        {"source_data": config.source} if source else {}
    )
    card = card_of("teacher", config, {"training": spent, "total": spent}, data=config.data, **more)
    start = None if source is None else source.scaling
    with held("train", config, trainer.fabric) as finished:
        if finished is not None:
            return finished
        trained = trainer.fit(step, config.steps, config.seed)
        model = Model(
            trained,
            config.network,
            data.shape,
            data.scaling,
            card=card,
            conditions=conditions,
            source=start,
        )
        return saved(config.out, model, trainer.fabric)


def conditions_of(data: Data) -> int:
    """Numbers of a condition of the data.

    Raises:
        UserError: if it has none.
    """
    if not data.condition_size:
        raise UserError(
            f"{data.name} has neither labels nor conditions, expected some of them for"
            " --conditional"
        )
    return data.condition_size


def _dropped(cond: Tensor | None, drop: float, generator: torch.Generator) -> Tensor | None:
    """Conditions with a share of the rows set to zero, which is no condition."""
    return None if cond is None else cond * (torch.rand(len(cond), 1, generator=generator) >= drop)


def _frequencies(data: Data) -> list[float] | None:
    """How often each class occurs in the training side; None if conditions are vectors."""
    if not data.classes or not isinstance(data, ArrayData):
        return None
    counts = np.bincount(data.given["train"], minlength=data.classes)
    return (counts / counts.sum()).tolist()

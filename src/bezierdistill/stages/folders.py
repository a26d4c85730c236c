"""What stages share: a folder that belongs to a run, and what a model's card says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill import __version__
from bezierdistill.errors import UserError
from bezierdistill.files import claim, locked
from bezierdistill.models import CARD, Model, load_model, save_model
from bezierdistill.run import recorded
from bezierdistill.stages.distill import DistillConfig
from bezierdistill.stages.train import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RUN = "run.json"


@contextmanager
def held(verb: str, config: TrainConfig | DistillConfig, fabric: Fabric) -> Iterator[Model | None]:
    """Take a folder for a run, or check that it holds the same run, which is then continued; yields
    the model if that is finished.
    """
    lead = fabric.global_rank == 0
    with locked(config.out) if lead else nullcontext():
        if lead:
            claim(config.out / RUN, settings_of(config), "run")
        fabric.barrier()
        finished = fabric.broadcast((config.out / CARD).exists())  # as the first one sees it
        with recorded(config.out, verb, config):
            yield load_model(config.out) if finished else None


def saved(out: Path, model: Model, fabric: Fabric) -> Model:
    """The model, written by the first rank and read by all."""
    if fabric.global_rank == 0:
        save_model(out, model)
    fabric.barrier()
    return load_model(out)


def refuse_other(out: Path, *marks: str) -> None:
    """Raise ``UserError`` if a folder is a file, or holds a file that marks it as something
    else.
    """
    if (out.exists() and not out.is_dir()) or any((out / mark).exists() for mark in marks):
        raise UserError(f"{out} already holds a run of another kind: choose another --out")


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a run as JSON, without its folder."""
    plain = json.loads(json.dumps(asdict(config), default=str))
    return {key: value for key, value in plain.items() if key != "out"}


def card_of(
    kind: str, config: TrainConfig | DistillConfig, passes: dict[str, int], **more: Any
) -> dict[str, Any]:
    """What the card of a model says of its making: seed, steps, settings, network passes, and more
    by name.
    """
    return {
        "kind": kind,
        "package": __version__,
        "seed": config.seed,
        "step": config.steps,
        "passes": passes,
        "config": settings_of(config),
        **more,
    }

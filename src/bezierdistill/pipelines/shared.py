"""Pipelines that are open in this process: all teachers and students of one share its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from bezierdistill.errors import UserError
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.pipelines.opening import find_pipeline, open_pipeline, pipeline_digest
from bezierdistill.pipelines.weights import Weights

GIVEN = "python"  # the source of a pipeline that is given as it is


class Shared:
    """A pipeline that is open in this process."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.weights = pipe, Weights(pipe.transformer)


_open: WeakValueDictionary[str, Shared] = WeakValueDictionary()


def share(config: PipelineConfig, pipe: Any) -> Shared:
    """Have a pipeline found by whoever needs it, as long as somebody holds what is returned."""
    key = _key(config.source, config.dtype, config.weights)
    shared = _open.get(key)
    if shared is None or shared.pipe.transformer is not pipe.transformer:
        shared = _open[key] = Shared(pipe)
    return shared


def open_with_text(source: str | Path, dtype: str) -> tuple[Any, str]:
    """A pipeline with its text encoders, whose transformer is that which is open already, if one
    is; and what its weights are known by.
    """
    place = find_pipeline(source)
    weights = pipeline_digest(place)
    shared = _open.get(_key(source, dtype, weights))
    kept = {name: getattr(shared.pipe, name) for name in ("transformer", "vae")} if shared else {}
    return open_pipeline(place, dtype, text=True, **kept), weights


def opened(folder: Path, config: PipelineConfig) -> Shared:
    """The pipeline of a model folder, opened once in a process."""
    shared = _open.get(_key(config.source, config.dtype, config.weights))
    if shared is None and config.source == GIVEN:
        raise UserError(
            f"{folder} was made of a pipeline that was given in Python, which is not there: save it"
            " by save_pretrained, and import and distil it by its folder"
        )
    if shared is None:
        place = find_pipeline(config.source)
        if pipeline_digest(place) != config.weights:
            raise UserError(
                f"{config.source} is another pipeline than that of {folder} (digest"
                f" {config.weights[:8]}): restore it, or import and distil again"
            )
        shared = share(config, open_pipeline(place, config.dtype, text=False))
    return shared


def _key(source: str | Path, dtype: str, weights: str) -> str:
    """By what an open pipeline is found; text, as at exit paths are gone before it."""
    return f"{absolute(source)} {dtype} {weights}"


def absolute(pipe: str | Path) -> str:
    """The place of a local pipeline from anywhere; a name on the hub as it is."""
    return str(Path(pipe).resolve()) if Path(pipe).exists() else str(pipe)

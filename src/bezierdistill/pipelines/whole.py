"""A pipeline with a transformer of its own, whose weights are all trained."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor

from bezierdistill.pipelines.loop import Loop


def apart(loop: Loop) -> Loop:
    """The loop of a pipeline with copies of its own: of the transformer, in single precision and
    without adapters, and of the decoder, so that it may lie on another device. The rest is shared.
    """
    pipe = copy(loop.pipe)
    transformer = deepcopy(loop.transformer)
    if hasattr(transformer, "peft_config"):
        transformer.unload_lora()
    pipe.register_modules(transformer=transformer.float(), vae=deepcopy(loop.pipe.vae))
    made = Loop(pipe, loop.given, loop.guidance[True], loop.guidance[False], loop.negative)
    made.kind = loop.kind
    return made


def as_kind(value: Any, kind: torch.dtype) -> Any:
    """An argument of a call whose floating tensors, wherever they are, are of a number type."""
    if isinstance(value, Tensor):
        return value.to(kind) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: as_kind(part, kind) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_kind(part, kind) for part in value)
    return value

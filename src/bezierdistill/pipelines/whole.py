"""A pipeline with a transformer of its own, whose weights are all trained."""

from __future__ import annotations

from copy import copy, deepcopy

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

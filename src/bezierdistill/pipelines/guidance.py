"""The keyword arguments by which a pipeline is guided, and by which it is not.

Pipelines take guidance in two ways: as an input of the network (an embedded scale), which costs
nothing and which a student keeps, or by a second pass without the prompt, which a student is rid
of. Which of them a pipeline has is seen in its signature and its transformer's settings; that a
call without guidance is one pass a row is counted.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bezierdistill.errors import UserError
from bezierdistill.pipelines.loop import Loop

EMBEDDED, SECOND = "guidance_scale", "true_cfg_scale"
BLANK = " "  # a negative prompt, where there has to be one
OFF = (1.0, 0.0)  # scales that may be none


@dataclass(frozen=True)
class Guidance:
    """How a pipeline is called with guidance, and without."""

    guided: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    negative: str | None = None


def find_guidance(
    pipe: Any, given: Mapping[str, Any], scale: float | None, negative: str | None
) -> Guidance:
    """How a pipeline is guided.

    Args:
        pipe: the pipeline.
        given: keyword arguments of every call.
        scale: the scale; None is the pipeline's own.
        negative: the negative prompt; None is the pipeline's own.

    Raises:
        UserError: if it takes no scale and one is given, or one that is not finite, or none is its
            call of one pass a row.
    """
    if scale is not None and not math.isfinite(scale):
        raise UserError(f"guidance is {scale}, expected a finite number")
    known = inspect.signature(type(pipe).__call__).parameters
    embedded = bool(getattr(pipe.transformer.config, "guidance_embeds", False))
    second = SECOND in known and (negative is not None or not embedded)
    name = SECOND if second else EMBEDDED
    if name not in known:
        if scale is not None or negative is not None:
            raise UserError(
                f"a {type(pipe).__name__} takes no {EMBEDDED}: leave --guidance and --negative out"
            )
        return Guidance()
    value = float(known[name].default) if scale is None else scale
    if second and negative is None:
        negative = BLANK
    if embedded and not second:
        return Guidance({name: value}, {name: value})
    for off in OFF:
        plain = {name: off}
        loop = Loop(pipe, given, plain, plain)
        texts = loop.encoded([BLANK, BLANK], False)
        if loop.passes(texts, loop.drawn(texts, 2), False) == 1:
            return Guidance(plain if value == off else {name: value}, plain, negative)
    raise UserError(
        f"a {type(pipe).__name__} makes more than a pass a row without guidance ({name} of"
        f" {' or '.join(map(str, OFF))}): expected one that a student can be called by"
    )

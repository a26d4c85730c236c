r"""How a pipeline calls its transformer: which argument is the state, which the time, by which map
of the noise level :math:`\sigma`, and with which sign. Measured by probes, and not listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.networks.pipeline import Call
from bezierdistill.noise import Stream, noise
from bezierdistill.pipelines.loop import Loop

LEVELS = (0.125, 0.5, 0.25)  # of the probes: a thousand times they are exact in half precision
CLOSE = 1e-3  # of the size of what is compared
HALF = 2e-2  # likewise in half precision


def measure(loop: Loop, texts: Sequence[Any], shape: tuple[int, ...], half: bool) -> Call:
    """How a pipeline calls its transformer without guidance, by probes.

    Args:
        loop: the pipeline's loop.
        texts: what ``encode_prompt`` returned for two prompts.
        shape: shape of one state.
        half: whether the network is in half precision.

    Raises:
        UserError: if probes disagree, or the call is none that a student can be called by.
    """
    drawn = noise(0, Stream.SEARCH, range(4), shape).to(loop.device)
    x, other = drawn.to(loop.kind or torch.float32).float().split(2)
    low, high, middle = LEVELS
    first, second = loop.asked(x, low, texts, False), loop.asked(x, high, texts, False)
    third = loop.asked(other, middle, texts, False)
    kind = type(loop.transformer).__name__
    states = [n for n, v in first.items() if _is_state(v, x) and _is_state(third[n], other)]
    if len(states) != 1:
        raise UserError(
            f"the states are {_listed(states)} of the arguments of {kind}, expected one argument"
        )
    moved = [n for n in first if n not in states and not _same(first[n], second[n])]
    if len(moved) != 1 or not isinstance(first[moved[0]], Tensor):
        raise UserError(
            f"the time is {_listed(moved)} of the arguments of {kind}, expected one tensor"
        )
    state, time = states[0], moved[0]
    ends = [_number(asked[time], time, kind) for asked in (first, second, third)]
    scale = (ends[1] - ends[0]) / (high - low)
    shift = ends[0] - scale * low
    if abs(shift + scale * middle - ends[2]) > CLOSE * max(map(abs, ends)):
        raise UserError(
            f"{kind} is told the times {ends} at noise levels {LEVELS}, expected an affine map"
        )
    kept = str(loop.kind or torch.float32).removeprefix("torch.")
    told = (scale, shift, isinstance(first[state], list | tuple), kept)
    calls = [Call(state, time, *told, sign) for sign in (1, -1)]
    found = loop.velocity(x, low, texts, False)
    # The first probe's arguments, so that nothing but the sign is left open.
    made = as_state(loop.transformer(**first), x)
    size = float(found.float().abs().max())
    for call in calls:
        error = float((found.float() - call.sign * made.float()).abs().max())
        if error <= (HALF if half else CLOSE) * size:
            return call
    raise UserError(
        f"{type(loop.pipe).__name__} makes of what {kind} predicts another velocity without"
        " guidance, neither it nor its negative: such a student could not be called"
    )


def as_state(out: Any, x: Tensor) -> Tensor:
    """What a transformer returned, as states ``(B, ...)`` like ``x``.

    Raises:
        UserError: if it has another number of values.
    """
    out = out[0] if isinstance(out, list | tuple) else out.sample
    out = torch.stack(list(out)) if isinstance(out, list | tuple) else out
    if out.numel() != x.numel():
        raise UserError(
            f"the transformer returns shape {tuple(out.shape)} for states {tuple(x.shape)},"
            " expected as many values"
        )
    return out.reshape(x.shape)


def as_argument(x: Tensor, like: Any) -> Any:
    """States ``(B, ...)`` in the form of an argument that was seen."""
    if isinstance(like, list | tuple):
        return [row.to(own.dtype).reshape(own.shape) for row, own in zip(x, like, strict=True)]
    return x.to(like.dtype).reshape(like.shape)


def _is_state(value: Any, x: Tensor) -> bool:
    rows = value if isinstance(value, list | tuple) else None
    if rows is not None:
        fits = len(rows) == len(x) and all(isinstance(row, Tensor) for row in rows)
        return fits and all(_is_state(row[None], own[None]) for row, own in zip(rows, x))  # noqa: B905
    if not isinstance(value, Tensor) or value.numel() != x.numel() or len(value) != len(x):
        return False
    return bool(torch.equal(value.reshape(x.shape), x.to(value.dtype)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _number(value: Tensor, name: str, kind: str) -> float:
    """The one time that a tensor tells of all rows."""
    if value.ndim < 1 or len(value) != 2 or float(value.max()) != float(value.min()):
        raise UserError(
            f"{name} of {kind} has shape {tuple(value.shape)} for 2 rows, expected a time per row"
        )
    return float(value.flatten()[0])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"

"""Optimizers: AdamW, or what a function of the user's makes, and the state of any as tensors.

What is no tensor (rates and counts in groups, a step) stands as JSON in one tensor of bytes, so
nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bezierdistill.errors import UserError
from bezierdistill.objects import find_function
from bezierdistill.training import ranks

TEXT = "text"
PLAIN = (bool, int, float, str, type(None))
DOES = "takes parameters and returns a torch optimizer of them"


def make_optimizer(name: Any, parameters: Sequence[Tensor], lr: float) -> Optimizer:
    """AdamW with a peak rate, or what the function that a setting names makes of parameters.

    Raises:
        UserError: if that is no optimizer.
    """
    if name is None:
        return torch.optim.AdamW(parameters, lr, (0.9, 0.99), weight_decay=0.0, fused=True)
    made = find_function(name, "optimizer", DOES)(list(parameters))
    if not isinstance(made, Optimizer) or not all("lr" in group for group in made.param_groups):
        given = f"optimizer {name} made a {type(made).__name__}"
        raise UserError(f"{given}, expected a torch optimizer whose groups have an lr")
    return made


def pack(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of any optimizer as tensors by number, and all else of it, in ``text``.

    Raises:
        UserError: if it keeps something that is neither a tensor nor a plain value.
    """
    tensors, kind = dict[str, Tensor](), type(optimizer).__name__

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": len(tensors) - 1, "cpu": value.device.type == "cpu"}
        if isinstance(value, Mapping):
            return {"items": [[key, plain(part)] for key, part in value.items()]}
        if type(value) in (list, tuple):
            return {type(value).__name__: [plain(part) for part in value]}
        if type(value) in PLAIN:
            return value
        raise UserError(
            f"a {kind} keeps a {type(value).__name__} in its state, which cannot be saved: expected"
            " tensors, numbers, text, and lists and dictionaries of them"
        )

    text = json.dumps([kind, _device(optimizer).type == "cpu", plain(optimizer.state_dict())])
    return tensors | {TEXT: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def unpack(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``state_dict`` that :func:`pack` has made tensors of, for this optimizer.

    Raises:
        ValueError: if they are not, or those of another kind of optimizer.
    """

    def nested(plain: Any) -> Any:
        match plain:
            case {"tensor": number, "cpu": on_cpu}:
                value = tensors[str(number)]
                stays = on_cpu and not all_cpu
                return value.to("cpu" if stays else _device(optimizer), copy=True)
            case {"items": items}:
                return {key: nested(part) for key, part in items}
            case {"list": parts}:
                return list(map(nested, parts))
            case {"tuple": parts}:
                return tuple(map(nested, parts))
        return plain

    try:
        kind, all_cpu, plain = json.loads(bytes(tensors[TEXT].numpy()))
        found = nested(plain)
        groups = [set(group) for group in found["param_groups"]]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if kind != type(optimizer).__name__ or groups != [set(g) for g in optimizer.param_groups]:
        raise ValueError(f"it is of a {kind}, or of other groups")
    return found


@torch.no_grad()
def restore(optimizer: Optimizer, found: Mapping[str, Any]) -> None:
    """Put a ``state_dict`` into an optimizer, exactly: torch would round its tensors to the type
    of the parameters.

    Raises:
        ValueError: if it has other groups of parameters.
    """
    optimizer.load_state_dict(dict(found))
    parameters = [part for group in optimizer.param_groups for part in group["params"]]
    for index, parameter in enumerate(parameters):
        for key, value in found["state"].get(index, {}).items():
            optimizer.state[parameter][key] = _laid(value, parameter)


def _laid(value: Any, like: Tensor) -> Any:
    """A value of a parameter's state, in memory as the parameter lies."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    if hasattr(like, "full_tensor"):
        return ranks.part_of(value, like)
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def _device(optimizer: Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device

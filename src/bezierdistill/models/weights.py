"""Whether weights fill a network; and a student's first weights, which are its teacher's.

A card may come from anybody. Its network is first laid out on PyTorch's ``meta`` device, which
takes no memory for weights, and only one whose every tensor is among the weights is built. Numbers
that would make even the layout endless are compared with the weights before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.memory import check_memory
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.curve import CurveNetwork
from bezierdistill.networks.foreign import ForeignConfig
from bezierdistill.networks.own import OwnConfig

SMALL = 100_000  # sizes up to here are no reason to look at the weights
LAYERS = {"depth", "layers_per_block", "num_layers"}


def check_weights(
    network: NetworkConfig | ForeignConfig | OwnConfig,
    shape: tuple[int, ...],
    condition_size: int,
    weights: Mapping[str, Tensor],
    trial: bool,
) -> None:
    """Whether weights are those of a network, found out without building it.

    Args:
        network: its settings.
        shape: shape of one state.
        condition_size: numbers of a condition.
        weights: tensors by name.
        trial: whether to try a pass as well, for a network of many settings, some of which only a
            pass uses.

    Raises:
        UserError: if a tensor is missing, unknown, of another shape or kind, or not finite; or on
            sizes beyond what the weights hold.
    """
    numbers = sum(tensor.numel() for tensor in weights.values())
    check_sizes(vars(network), len(weights), numbers)
    if condition_size > numbers:
        raise UserError(f"conditions have {condition_size:,} numbers, the weights {numbers:,}")
    check_memory(16 * math.prod(shape), f"a state of shape {shape}")
    with torch.device("meta"), torch.no_grad():
        net = network.build(shape, 0, condition_size)
        if trial:
            cond = torch.zeros(1, condition_size) if condition_size else None
            net(torch.zeros(1, *shape), torch.zeros(1), torch.ones(1), cond)
    check_fit(net, weights)


def check_fit(layout: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights, by name, that are not those of a network, which may be on ``meta``.

    Raises:
        UserError: if a tensor is missing, unknown, of another shape or kind, or not finite.
    """
    check_memory(32 * sum(buffer.numel() for buffer in layout.buffers()), "the network's tables")
    wanted = layout.state_dict()
    lacking, unknown = (
        sorted(wanted.keys() - weights.keys()),
        sorted(weights.keys() - wanted.keys()),
    )
    parts = {"missing": lacking, "unknown": unknown}
    if told := [f"{len(n)} tensors are {what} ({n[0][:80]})" for what, n in parts.items() if n]:
        raise UserError("; ".join(told))
    for name, tensor in weights.items():
        other, floats = wanted[name], tensor.is_floating_point()
        if (
            tensor.shape != other.shape
            or floats != other.is_floating_point()
            or tensor.is_complex()
        ):
            got, expected = (f"{one.dtype} {tuple(one.shape)}" for one in (tensor, other))
            raise UserError(f"{name[:80]} is {got}, expected {expected}")
        same = not other.is_meta and torch.equal(tensor, other)  # such as a mask of -inf
        if not same and not bool(tensor.float().isfinite().all()):
            raise UserError(f"{name[:80]} holds NaN or infinite numbers")


def start_from(net: nn.Module, teacher: nn.Module) -> None:
    """Copy a teacher's weights into a student; conditions that only the student takes start
    without effect, and every velocity of a pass starts as the teacher's.

    Args:
        net: the student, of the teacher's network but for more numbers of a condition, which come
            last, and more velocities of a pass.
        teacher: the teacher.
    """
    net, teacher = (n.inner if isinstance(n, CurveNetwork) else n for n in (net, teacher))
    given = teacher.state_dict()
    blocks = getattr(net, "blocks", {})  # rows of a velocity that lie together, by layer
    for name, tensor in net.state_dict().items():
        value = given[name]
        if len(tensor) == len(value) and tensor.shape != value.shape:
            tensor.zero_()[:, : value.shape[1]] = value
        elif tensor.shape != value.shape:
            rows = value.unflatten(0, (-1, blocks.get(name, len(value))))
            tensor.copy_(torch.stack([rows] * (len(tensor) // len(value)), 1).flatten(0, 2))
        else:
            tensor.copy_(value)


def check_sizes(settings: Mapping[str, Any], tensors: int, numbers: int) -> None:
    """Refuse settings whose sizes no network of these weights can have.

    Raises:
        UserError: if there are more layers than tensors, or a size is beyond the numbers of the
            weights.
    """
    for name, value in _leaves(settings, ""):
        most = tensors if name in LAYERS else max(numbers, SMALL)
        if type(value) in (int, float) and not abs(value) <= most:
            held = f"{tensors:,} tensors of {numbers:,} numbers"
            raise UserError(f"{name} is {str(value)[:40]}, the weights have {held}")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part, name)
    else:
        yield name, value

"""The card of a model, judged before it is believed: its types and ranges, and whether its network
is the one that the weights fill.

A card may come from anybody. Its network is first laid out on PyTorch's ``meta`` device, which
takes no memory for weights, and only one whose every tensor is among the weights is built. Numbers
that would make even the layout endless are compared with the weights before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bezierdistill.data.arrays import check_memory
from bezierdistill.errors import UserError

MOST_STATE, SMALL = 2**28, 100_000


class Builder(Protocol):
    """Settings of a network."""

    def build(self, shape: tuple[int, ...], seed: int, conditions: int = 0) -> nn.Module:
        """A new network."""
        ...


def is_whole(value: object, least: int = 0) -> bool:
    """Whether a value of JSON is a whole number of ``least`` or more (true is none)."""
    return type(value) is int and value >= least


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number (true is none)."""
    return type(value) in (int, float) and abs(value) < 1e300  # pyright: ignore[reportArgumentType]


def are_numbers(value: object) -> bool:
    """Whether a value of JSON is a list of finite numbers, one or more."""
    return isinstance(value, list) and len(value) > 0 and all(map(is_number, value))


def check_card(card: Mapping[str, Any]) -> None:
    """Whether the card's entries are of their types and agree with each other.

    Raises:
        UserError: if one does not; it is named.
        KeyError: if one is missing.
    """
    shape, conditions, guidance, classes = (
        card["shape"],
        card.get("conditions", 0),
        card.get("guidance"),
        card.get("classes"),
    )
    fits = (
        isinstance(shape, list)
        and len(shape) in (1, 3)
        and all(is_whole(n, 1) for n in shape)
        and math.prod(shape) <= MOST_STATE
    )
    _expect(fits, "shape", shape, f"1 or 3 whole numbers whose product is {MOST_STATE:,} or less")
    _expect(is_whole(conditions), "conditions", conditions, "a whole number")
    _expect(isinstance(card["network"], dict), "network", card["network"], "settings by name")
    _expect(isinstance(card["knots"], dict), "knots", card["knots"], "times by number of passes")
    for passes, times in card["knots"].items():
        _expect(
            are_numbers(times) and passes == str(len(times) - 1),
            "knots",
            {passes: times},
            "one time more than passes",
        )
    rises = guidance is None or (
        are_numbers(guidance)
        and len(guidance) == 2
        and guidance[0] < guidance[1]
        and conditions > 0
    )
    _expect(rises, "guidance", guidance, "two rising numbers of a model with conditions")
    size = conditions - (guidance is not None)
    shares = classes is None or (
        are_numbers(classes)
        and len(classes) == size
        and min(classes) >= 0
        and 0 < sum(classes) < 1e6
    )
    _expect(shares, "classes", classes, f"{size} frequencies")
    _check_history(card)


def _check_history(card: Mapping[str, Any]) -> None:
    passes, config, teachers = (
        card.get("passes", {}),
        card.get("config", {}),
        card.get("teachers", []),
    )
    _expect(
        isinstance(passes, dict) and all(is_whole(n) for n in passes.values()),
        "passes",
        passes,
        "whole numbers by name",
    )
    _expect(isinstance(config, dict), "config", config, "settings by name")
    named = isinstance(teachers, list) and all(
        isinstance(one, dict) and isinstance(one.get("digest"), str) for one in teachers
    )
    _expect(named, "teachers", teachers, "a list of teachers with their digests")
    for name in ("kind", "source_data", "package"):
        _expect(card.get(name) is None or isinstance(card[name], str), name, card.get(name), "text")


def _expect(fits: bool, name: str, got: object, expected: str) -> None:
    if not fits:
        raise UserError(f"{name} is {str(got)[:100]!r}, expected {expected}")


def check_weights(
    network: Builder,
    shape: tuple[int, ...],
    conditions: int,
    weights: Mapping[str, Tensor],
    trial: bool,
) -> None:
    """Whether weights are those of a network, found out without building it.

    Args:
        network: its settings.
        shape: shape of one state.
        conditions: numbers of a condition.
        weights: tensors by name.
        trial: whether to try a pass as well, for a network of many settings, some of which only a
            pass uses.

    Raises:
        UserError: if a tensor is missing, unknown, of another shape or kind, or not finite; or on
            sizes beyond what the weights hold.
    """
    check_sizes(vars(network), len(weights), sum(tensor.numel() for tensor in weights.values()))
    numbers = sum(tensor.numel() for tensor in weights.values())
    if conditions > numbers:
        raise UserError(f"conditions have {conditions:,} numbers, the weights {numbers:,}")
    check_memory(16 * math.prod(shape), f"a state of shape {shape}")
    with torch.device("meta"), torch.no_grad():
        net = network.build(shape, 0, conditions)
        if trial:
            net(
                torch.zeros(1, *shape),
                torch.zeros(1),
                torch.ones(1),
                torch.zeros(1, conditions) if conditions else None,
            )
    check_memory(32 * sum(buffer.numel() for buffer in net.buffers()), "the network's tables")
    layout = net.state_dict()
    other = sorted(layout.keys() ^ weights.keys())
    if other:
        raise UserError(
            f"{other[0][:100]!r} is in the {'weights' if other[0] in weights else 'network'} alone"
        )
    for name, tensor in weights.items():
        if (
            tensor.shape != layout[name].shape
            or tensor.is_floating_point() != layout[name].is_floating_point()
            or tensor.is_complex()
        ):
            got, expected = (f"{one.dtype} {tuple(one.shape)}" for one in (tensor, layout[name]))
            raise UserError(f"weights hold {name[:100]} of {got}, expected {expected}")
        if not bool(tensor.float().isfinite().all()):
            raise UserError(f"weights hold NaN or infinite numbers in {name[:100]}")


def check_sizes(settings: Mapping[str, Any], tensors: int, numbers: int) -> None:
    """Refuse settings whose sizes no network of these weights can have.

    Raises:
        UserError: if there are more layers than tensors, or a size is beyond the numbers of the
            weights.
    """
    for name, value in _leaves(settings, ""):
        if type(value) not in (int, float):
            continue
        most = tensors if name in LAYERS else max(numbers, SMALL)
        if not abs(value) <= most:
            raise UserError(
                f"{name} is {value:.6g}, the weights have {tensors:,} tensors of {numbers:,}"
                " numbers"
            )


LAYERS = {"depth", "layers_per_block", "num_layers"}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part, name)
    else:
        yield name, value

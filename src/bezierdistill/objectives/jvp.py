"""The derivative of a network along a direction, in forward mode, that can be trained through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, func
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Affine = Tensor | None


def forward_derivative(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Value of a network function at a point and its derivative along a direction.

    Fused attention has no forward-mode derivative, the gradient of layer norm's is silently wrong
    (pytorch issue 196700), and group norm's fails where a derivative lies in memory otherwise than
    its value: inside, all three are made of plain operations.

    Args:
        function: of as many tensors as ``at`` has.
        at: where.
        along: the direction, tensors of the same shapes.
    """
    with sdpa_kernel(SDPBackend.MATH), _PlainNorms():
        pair = func.jvp(function, at, along)
    return pair[0], pair[1]


class _PlainNorms(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        plain = {functional.layer_norm: _layer_norm, functional.group_norm: _group_norm}
        return plain.get(function, function)(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Affine = None, bias: Affine = None, eps: float = 1e-5
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def _group_norm(
    x: Tensor, groups: int, weight: Affine = None, bias: Affine = None, eps: float = 1e-5
) -> Tensor:
    members = x.reshape(len(x), groups, -1)
    normal = _layer_norm(members, members.shape[-1:], eps=eps).reshape(x.shape)
    channels = (-1, *[1] * (x.ndim - 2))
    normal = normal if weight is None else normal * weight.reshape(channels)
    return normal if bias is None else normal + bias.reshape(channels)

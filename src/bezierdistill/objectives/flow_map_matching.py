r"""Flow map matching: the student's path :math:`t \mapsto X_{s,t}(x) = x + (t - s)\, u(x, s, t)`
must move with the velocity it meets.

.. math:: \big|\partial_t X_{s,t}(x_s) - v(X_{s,t}(x_s), t)\big|^2, \qquad \partial_t X_{s,t} = u + (t - s)\, \partial_t u

for :math:`s < t` uniform and :math:`x_s = (1-s) x_0 + s x_1`; the derivative is taken in forward
mode and trained through.

* :class:`LagrangianMap`: v is a teacher's. Boffi et al. 2024, *Flow map matching* (arXiv
  2406.07507), Lagrangian map distillation.
* :class:`LagrangianSelfDistillation`: v is the student's own diagonal, learned by flow matching on
  three quarters of the rows. Boffi et al. 2025, *How to build a consistency model* (arXiv
  2505.18825), LSD: the authors' best, which "uniformly outperforms" the Eulerian and progressive
  forms.

In both, v is a target: no gradient enters it, nor X through it. The 2024 paper let gradient pass;
that of 2025 stops it, to avoid the Jacobian of a network. The authors' learned weight of a pair (s,
t) is left out, as in their own two-dimensional runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, func, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from bezierdistill.curves import expand_time
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, NetworkField

Batch = tuple[Tensor, Tensor, Tensor | None]


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    members = x.reshape(len(x), groups, -1)
    normal = _layer_norm(members, members.shape[-1:], eps=eps).reshape(x.shape)
    channels = (-1, *[1] * (x.ndim - 2))
    normal = normal if weight is None else normal * weight.reshape(channels)
    return normal if bias is None else normal + bias.reshape(channels)


class _PlainNorms(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        plain = {functional.layer_norm: _layer_norm, functional.group_norm: _group_norm}
        return plain.get(function, function)(*args, **(kwargs or {}))


def forward_derivative(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Value of a network function at a point and its derivative along a direction; both can be
    trained through.

    Fused attention has no forward-mode derivative, the gradient of layer norm's is silently wrong
    (pytorch issue 196700), and group norm's fails where a derivative lies in memory otherwise than
    its value: inside, all three are made of plain operations.
    """
    with sdpa_kernel(SDPBackend.MATH), _PlainNorms():
        pair = func.jvp(function, at, along)
    return pair[0], pair[1]


def count_rows(total: int, share: float, generator: torch.Generator) -> int:
    """Rows that make up a ``share`` of ``total``, rounded up or down at random so that the share is
    right on average.
    """
    return int(
        share * total
        + torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
    )


def check_share(share: float) -> None:
    """Raise ``UserError`` unless ``share`` is in [0, 1]."""
    if not 0 <= share <= 1:
        raise UserError(f"share is {share}, expected 0 (no row) to 1 (every row)")


def split_batch(batch: Batch, count: int) -> tuple[Batch, Batch]:
    """The first ``count`` rows of a batch, and the others."""
    x0, x1, cond = batch
    head, tail = (None, None) if cond is None else (cond[:count], cond[count:])
    return (x0[:count], x1[:count], head), (x0[count:], x1[count:], tail)


def _lagrangian_error(
    net: nn.Module, field: Field, batch: Batch, generator: torch.Generator
) -> Tensor:
    x0, x1, cond = batch
    s, t = (
        torch.rand(2, len(x1), generator=generator, device=generator.device).to(x1).aminmax(dim=0)
    )
    x, gap = torch.lerp(x0, x1, expand_time(s, x1)), expand_time(t - s, x1)
    u, slope = forward_derivative(lambda time: net(x, s, time, cond), (t,), (torch.ones_like(t),))
    with torch.no_grad():
        velocity = field(x + gap * u, t, cond)
    return u + gap * slope - velocity


@dataclass(frozen=True)
class LagrangianMap:
    """Distil a teacher's field into its flow map.

    Args:
        teacher: the field: a teacher or a blend.
    """

    teacher: Field

    @property
    def passes(self) -> int:
        """Network passes a row and step: value and derivative, trained through, and the teacher."""
        return 6 + self.teacher.passes

    def loss(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of a batch ``(x0, x1, cond)`` of independent draws ``(B, ...)``, at uniform pairs of
        times.
        """
        return _lagrangian_error(net, self.teacher, batch, generator).square().mean()


@dataclass(frozen=True)
class LagrangianSelfDistillation:
    """Learn the field and its flow map together, without a teacher.

    Args:
        share: share of the rows that learn the map, in [0, 1]; the others learn the field.

    Raises:
        UserError: on a share outside its range.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        check_share(self.share)

    @property
    def passes(self) -> float:
        """Network passes a row and step: 7 where the map is learned (see :class:`LagrangianMap`), 3
        elsewhere.
        """
        return 3 + 4 * self.share

    def loss(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of a batch ``(x0, x1, cond)`` of independent draws ``(B, ...)``, at uniform
        times.
        """
        count = count_rows(len(batch[1]), self.share, generator)
        mapped, (x0, x1, cond) = split_batch(batch, count)
        errors = [_lagrangian_error(net, NetworkField(net), mapped, generator)] if count else []
        if len(x1):
            t = torch.rand(len(x1), generator=generator, device=generator.device).to(x1)
            errors.append(net(torch.lerp(x0, x1, expand_time(t, x1)), t, t, cond) - (x1 - x0))
        return torch.cat(errors).square().mean()

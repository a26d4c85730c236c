r"""How far a prediction is from its target: squared error, or the pseudo-Huber distance that
forgives outliers.

Source: Song & Dhariwal 2023, *Improved techniques for training consistency models*, arXiv
2310.14189, eq. 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bezierdistill.curves import expand_time
from bezierdistill.settings import check_not_negative


@dataclass(frozen=True)
class Loss:
    r"""Mean over a batch of :math:`(\sqrt{|e|^2 + c^2 D} - c\sqrt{D}) / \sqrt{D}`, or of
    :math:`|e|^2 / D` for ``c = 0``.

    Args:
        huber: the scale ``c`` per component, >= 0; zero means squared error.

    Raises:
        UserError: on a negative scale.
    """

    huber: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(huber=self.huber)

    def __call__(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scalar loss of states ``(B, ...)``, with an optional weight per row ``(B,)``."""
        error = prediction - target
        if not self.huber:
            error = error if weight is None else error * expand_time(weight.sqrt(), error)
            return error.square().mean()
        root = math.sqrt(error[0].numel())
        distance = torch.linalg.vector_norm(error.flatten(1), dim=1) / root
        row = torch.hypot(distance, distance.new_tensor(self.huber)) - self.huber
        return (row if weight is None else row * weight).mean()


def adaptive(error: Tensor, power: float, offset: float) -> Tensor:
    """Errors ``(B, ...)`` as ``|e|^2 / sg(|e|^2 + c)^p``, ``(B,)``: the adaptive weight of Geng et
    al. 2025 (arXiv 2505.13447).
    """
    square = error.flatten(1).square().sum(1)
    return square * (square.detach() + offset) ** -power


def pseudo_huber(x: Tensor, scale: float) -> Loss:
    """The distance with ``c = scale sqrt(D)`` for states like ``x`` ``(B, ...)`` of D components.

    Where papers write ``c = scale D`` for the norm of a row, it is their distance over ``sqrt(D)``.
    """
    return Loss(scale * math.sqrt(x[0].numel()))

"""What a translation keeps of its input: distances between input and output on a scale where 1
means unrelated, and agreement of labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bezierdistill.errors import UserError


def relative_distance(x: Tensor, y: Tensor, shuffles: int = 8) -> float:
    """Mean distance between rows of ``x`` and ``y``, ``(N, ...)`` each, over that between rows that
    do not belong together.

    0 is a copy, 1 is as far as chance. States, or features of an extractor, may be given.

    Args:
        x: inputs.
        y: their outputs, row by row.
        shuffles: how many shifted pairings the denominator averages over, fewer than N.

    Raises:
        UserError: on different shapes, or too few rows.
    """
    if x.shape != y.shape or len(x) <= shuffles:
        raise UserError(
            f"inputs have shape {tuple(x.shape)}, outputs {tuple(y.shape)}, expected equal ones of"
            f" more than {shuffles} rows"
        )
    a, b = x.flatten(1).double(), y.flatten(1).double()
    own = (a - b).norm(dim=1).mean()
    steps = torch.linspace(1, len(a) - 1, shuffles).round().long().tolist()
    others = torch.stack([(a - b.roll(step, 0)).norm(dim=1).mean() for step in steps]).mean()
    return float(own / others) if float(others) else 0.0

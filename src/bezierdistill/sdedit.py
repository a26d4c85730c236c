r"""SDEdit: translation without a flow between the domains.

It needs only the target's flow: the input is mixed with noise,
:math:`x_t = t\, x + (1 - t)\, \epsilon`, and carried to the end from there. A later t keeps more of
the input.

Source: Meng et al. 2021, *SDEdit* (arXiv 2108.01073).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.fields import Field
from bezierdistill.solvers import Solution, solve, time_grid


def sdedit(
    field: Field,
    x: Tensor,
    keep: float,
    steps: int,
    generator: torch.Generator,
    method: str = "heun",
) -> Solution:
    """Carry inputs mixed with noise to the end by the target's flow.

    Args:
        field: the target domain's flow from noise.
        x: inputs ``(B, ...)`` in model units.
        keep: the time t in (0, 1) at which the flow is entered: the share of the input.
        steps: solver steps.
        generator: of the noise.
        method: fixed-step solver.

    Raises:
        UserError: if ``keep`` is not in (0, 1).
    """
    if not 0 < keep < 1:
        raise UserError(f"keep is {keep}, expected a share of the input in (0, 1)")
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return solve(field, torch.lerp(noise, x, keep), time_grid(steps, keep, 1.0), method)

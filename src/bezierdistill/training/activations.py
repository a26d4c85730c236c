"""Activations that are computed again for the gradient instead of kept, in the way of a network's
library: what is called gradient checkpointing there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bezierdistill.errors import UserError

WAYS: dict[str, Callable[[Any], object]] = {
    "enable_gradient_checkpointing": lambda switch: switch(),
    # Reentrant, the first block would have no gradient where its inputs need none.
    "gradient_checkpointing_enable": lambda switch: switch(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    ),
    "set_grad_checkpointing": lambda switch: switch(True),
}


def keep_fewer(net: nn.Module) -> None:
    """Have a network, or what it wraps, keep fewer activations, in the way of its library.

    Raises:
        UserError: if it offers none.
    """
    inner = getattr(net, "inner", None)
    for module in (net, inner, getattr(inner, "inner", None), getattr(net, "module", None)):
        for name, turn_on in WAYS.items():
            if callable(switch := getattr(module, name, None)):
                turn_on(switch)
                return
    raise UserError(
        f"checkpoint is on and a {type(net).__name__} keeps all activations: expected a network"
        f" with {', '.join(WAYS)} (as those of diffusers, transformers and timm have), or off"
    )

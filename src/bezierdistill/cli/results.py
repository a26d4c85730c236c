"""What verbs have in common: each prints for people what it has made, and returns it for
``--json``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bezierdistill.models import Model

Verb = tuple[type, Callable[[Any], Any]]  # settings, and a function of them


def facts(model: Model) -> dict[str, Any]:
    """What a script may want to know of a model."""
    knots = {passes: list(times) for passes, times in model.knots.items()}
    named = {name: model.card.get(name) for name in ("kind", "digest", "passes")}
    return {
        "out": model.folder,
        **named,
        "shape": model.shape,
        "conditions": model.conditions,
        "knots": knots,
    }

"""Verbs that do nothing but return their settings, with a field of every kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bezierdistill.settings import NUMBERS, WEIGHTS, WORDS, check_seed, written


@dataclass(frozen=True)
class Inner:
    """Settings within settings."""

    lr: float = 1e-3
    """Rate."""
    save_every: int = 10
    """Steps between saves: 5% of them."""
    fast: bool = False
    """Whether to be fast."""


@dataclass(frozen=True)
class ToyConfig:
    """Play.

    A paragraph that is longer than eighty characters has to be filled, and words-with-dashes-in-it
    stay as they are.

    Example::

        bezierdistill toy --teachers a b --weights -0.5,1.5
        bezierdistill toy --teachers a --knots 0,0.5,1 --inner.save-every 7
    """

    teachers: tuple[Path, ...]
    """Folders."""
    weights: tuple[tuple[float, ...], ...] = written(((1.0,),), WEIGHTS)
    """Weights of a blend."""
    knots: tuple[float, ...] = written((), NUMBERS)
    """Times."""
    labels: tuple[str, ...] = written((), WORDS)
    """Names of classes."""
    shift: float = 0.0
    """A number of any sign."""
    many_steps: int | None = None
    """A number or none."""
    solver: Literal["euler", "heun"] = "euler"
    """A choice."""
    seed: int = 0
    """Seed."""
    keep_samples: bool = False
    """A switch."""
    inner: Inner = field(default_factory=lambda: Inner(lr=0.5))
    """What is inside."""

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class StoreToyConfig:
    """Play with stores.

    Example::

        bezierdistill store toy a b --depth -1
    """

    stores: tuple[Path, ...] = field(metadata={"positional": True})
    """Folders."""
    depth: int = 2
    """How deep."""


def main_toy(config: ToyConfig) -> dict[str, Any]:
    """Print and return."""
    print("played")
    return {"teachers": list(config.teachers), "seed": config.seed}


def main_store_toy(config: StoreToyConfig) -> dict[str, Any]:
    """Fail as a bug does."""
    raise TypeError("a mistake of ours")

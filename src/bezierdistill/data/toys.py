"""Synthetic distributions with endless fresh samples: 2-D pictures, and ``manifold`` and ``loops``,
the tasks that rank methods.

``manifold`` is a random smooth image of a low-dimensional latent with a class offset, ``x = sin(1.5
z A / sqrt(latent) + c_k) B + o_k``: thin curved sheets in a space of any dimension. ``loops`` are
eight closed curves with a little noise, ``x = o_k + sum_h (cos(h a) A_kh + sin(h a) B_kh) / h``:
data that are thinner than any blur of a student, which a coarse distance does not see. The matrices
are fixed by seeds of their own, so each distribution is the same for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.data.base import Data, Split, real_generator
from bezierdistill.data.scaling import Scaling
from bezierdistill.noise import Rows, Stream, generator

Draw = Callable[[int, torch.Generator], Tensor]
BLOCK = 256  # rows that are drawn together
TABLE = 1002  # what a generator of a stream is for


@dataclass(frozen=True)
class EndlessData:
    """A distribution with endless fresh samples and no conditions; all splits are fresh draws.

    Args:
        name: what the user called it.
        shape: shape of one state.
        scaling: the way to original units.
        draw: ``draw(count, generator)`` gives states in original units.
    """

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    draw: Draw
    class_names: tuple[str, ...] = ()
    classes: int = 0
    frequencies: tuple[float, ...] | None = None
    condition_size: int = 0

    @property
    def fingerprint(self) -> str:
        """For :class:`~bezierdistill.objects.Named`: data of a name are the same."""
        return f"{self.name} {self.shape} {self.scaling}"

    def count(self, split: Split) -> None:
        """None: there is no end of them."""

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        return self.scaling.encode(self.draw(count, generator)), None

    def take(self, rows: Rows, seed: int, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """See :class:`Data`."""
        index = np.asarray(rows, np.int64)
        blocks, places = np.unique(index // BLOCK, return_inverse=True)
        drawn = [self.draw(BLOCK, generator(seed, stream, TABLE, k)) for k in blocks.tolist()]
        chosen = torch.from_numpy(places * BLOCK + index % BLOCK)
        own = torch.cat(drawn)[chosen] if drawn else torch.empty(0, *self.shape)
        return self.scaling.encode(own), None

    def real(self, count: int, seed: int, split: Split) -> Tensor:
        """See :class:`Data`."""
        return self.batch(count, real_generator(seed, split))[0]

    def conditions(self, count: int, seed: int, split: Split) -> None:
        """None: there are none."""


def checkerboard(count: int, generator: torch.Generator) -> Tensor:
    """Uniform on the black squares of a 4x4 board over [-2, 2]^2, ``(count, 2)``."""
    square = torch.randint(0, 8, (count,), generator=generator)
    row, column = square // 2, 2 * (square % 2)
    corner = torch.stack([column + row % 2, row], 1).float() - 2
    return corner + torch.rand(count, 2, generator=generator)


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles with noise of std 0.08, ``(count, 2)``."""
    angle = math.pi * torch.rand(count, generator=generator)
    lower = torch.randint(0, 2, (count,), generator=generator).float()
    x = angle.cos() * (1 - 2 * lower) + lower
    y = angle.sin() * (1 - 2 * lower) + lower / 2
    return torch.stack([x, y], 1) + 0.08 * torch.randn(count, 2, generator=generator)


def gaussians(count: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians of std 0.15 on a circle of radius 2, ``(count, 2)``."""
    angle = torch.randint(0, 8, (count,), generator=generator) * math.pi / 4
    centre = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.15 * torch.randn(count, 2, generator=generator)


def spirals(count: int, generator: torch.Generator) -> Tensor:
    """Two spiral arms with noise of std 0.05, ``(count, 2)``."""
    radius = torch.rand(count, generator=generator).sqrt()
    arm = torch.randint(0, 2, (count,), generator=generator) * math.pi
    angle = 3 * math.pi * radius + arm
    x = 2 * radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return x + 0.05 * torch.randn(count, 2, generator=generator)


def manifold_sampler(dimension: int, latent: int = 3, classes: int = 12, waves: int = 32) -> Draw:
    """Sampler of the ``manifold`` distribution (module docstring) in ``dimension`` dimensions."""
    fixed = torch.Generator().manual_seed(20250316)
    phases = torch.randn(classes, waves, generator=fixed)
    into = 1.5 / math.sqrt(latent) * torch.randn(latent, waves, generator=fixed)
    out = 1.2 / math.sqrt(waves) * torch.randn(waves, dimension, generator=fixed)
    offsets = 0.7 * torch.randn(classes, dimension, generator=fixed)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        kind = torch.randint(classes, (count,), generator=generator)
        z = torch.randn(count, latent, generator=generator)
        return torch.sin(z @ into + phases[kind]) @ out + offsets[kind]

    return draw


def loops(
    dimension: int, curves: int = 8, harmonics: int = 3
) -> Callable[[Tensor, Tensor], Tensor]:
    """The curves of ``loops`` (module docstring): numbers ``(N,)`` of curves and angles ``(N,)`` to
    points ``(N, dimension)``.
    """
    fixed = torch.Generator().manual_seed(20261016)
    order = torch.arange(1, harmonics + 1)
    waves = torch.randn(curves, 2, harmonics, dimension, generator=fixed) / order[:, None]
    offsets = 0.5 * torch.randn(curves, dimension, generator=fixed)
    matrix = torch.cat([offsets[:, None], waves.flatten(1, 2)], 1).flatten(0, 1)

    def points(kind: Tensor, angle: Tensor) -> Tensor:
        turns = angle[:, None] * order
        basis = torch.cat([torch.ones_like(angle)[:, None], turns.cos(), turns.sin()], 1)
        own = functional.one_hot(kind, curves)[:, :, None] * basis[:, None]
        return own.flatten(1) @ matrix.to(angle)

    return points


def loops_sampler(dimension: int, curves: int = 8, noise: float = 0.02) -> Draw:
    """Sampler of ``loops`` in ``dimension`` dimensions: a curve and an angle are drawn uniformly,
    and noise of a standard deviation is added.
    """
    points = loops(dimension, curves)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        kind = torch.randint(curves, (count,), generator=generator)
        angle = 2 * math.pi * torch.rand(count, generator=generator)
        return points(kind, angle) + noise * torch.randn(count, dimension, generator=generator)

    return draw


TOYS: dict[str, Draw] = {draw.__name__: draw for draw in (checkerboard, moons, gaussians, spirals)}


def load_toy(name: str, draw: Draw) -> Data:
    """Endless standardised samples of a synthetic distribution."""
    probe = draw(20_000, torch.Generator().manual_seed(0))
    return EndlessData(name, tuple(probe.shape[1:]), Scaling.measure(probe.numpy()), draw)

r"""Embedding of the two times of a flow map, ``s`` (where the state is) and ``t`` (where it should
go), and of a condition c.

.. math:: e(s, t, c) = \mathrm{MLP}(\cos \omega s, \sin \omega s)
   + Z\,(t - s,\ \sin \omega (t - s)) + C c, \qquad Z = 0 \text{ at first.}

The interval enters only through functions that vanish at ``t = s``, and its matrix Z starts at zero
and has no bias. Two things follow exactly: training on the diagonal (a teacher) leaves Z at zero,
and a student that starts from a teacher's weights starts as ``F(x, s, t) = x + (t - s) v(x, s)``,
the teacher's own Euler step. Teachers and students can therefore be one class.

A condition is a vector per row; a class label is a one-hot vector. The zero vector adds nothing: it
is the absence of a condition, which classifier-free guidance needs (Ho & Salimans 2022, arXiv
2207.12598).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.errors import UserError

MOST_COLOURS = 4  # channels of an image


def log_spaced(count: int) -> Tensor:
    """Frequencies omega from pi/4 to 16 pi, ``(count,)``."""
    # The device is named as transformers 5, once it has loaded a model, may keep torch from giving
    # linspace the one that is set.
    return math.pi / 4 * 64 ** torch.linspace(0, 1, count, device=torch.get_default_device())


def interval_features(gap: Tensor, omega: Tensor) -> Tensor:
    """What is embedded of intervals ``t - s`` ``(B,)``, zero where they are: ``(B, 1 + count)``."""
    gap = gap[:, None]
    return torch.cat([gap, (gap * omega).sin()], 1)


def stacked(out: Tensor, x: Tensor) -> Tensor:
    """What a network puts out as one velocity like the states ``x`` ``(B, ...)``, or as several of
    each, ``(B, K, ...)``.
    """
    return out.reshape(x.shape if out.numel() == x.numel() else (len(x), -1, *x.shape[1:]))


class TimeEmbedding(nn.Module):
    """Embed ``s`` and ``t``, each ``(B,)``, and a condition ``(B, C)``, as ``(B, width)``.

    Args:
        width: size of the embedding.
        condition_size: numbers C of a condition; 0 if the network takes none.
        frequencies: number of frequencies, log-spaced from pi/4 to 16 pi.
        start: whether ``s`` itself is embedded; else another part of the network embeds it.
    """

    omega: Tensor

    def __init__(
        self, width: int, condition_size: int = 0, frequencies: int = 16, start: bool = True
    ) -> None:
        super().__init__()
        self.register_buffer("omega", log_spaced(frequencies))
        self.at = None
        if start:
            first, second = nn.Linear(2 * frequencies, width), nn.Linear(width, width)
            self.at = nn.Sequential(first, nn.SiLU(), second)
        self.interval = nn.Linear(1 + frequencies, width, bias=False)
        nn.init.zeros_(self.interval.weight)
        self.condition = nn.Linear(condition_size, width, bias=False) if condition_size else None

    def forward(self, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Embedding ``(B, width)``.

        Raises:
            UserError: if a condition has another size than the network was made for.
        """
        weight = self.interval.weight
        embedding = self.interval(interval_features(t - s, self.omega).to(weight))
        if self.at is not None:
            phase = s[:, None] * self.omega
            embedding = self.at(torch.cat([phase.cos(), phase.sin()], 1).to(weight)) + embedding
        if cond is None:
            return embedding
        if self.condition is None or cond.shape[1:] != (self.condition.in_features,):
            expected = "none" if self.condition is None else f"(B, {self.condition.in_features})"
            given = tuple(cond.shape)
            raise UserError(f"condition has shape {given}, the network expects {expected}")
        return embedding + self.condition(cond.to(embedding))


class Skip(nn.Module):
    """``a(s, t) x`` with learned numbers a, zero at first: the linear part of a velocity. It
    contains the whole noise, which fewer channels than a place has numbers cannot carry (the skip
    of Karras et al. 2022, arXiv 2206.00364).

    Args:
        outputs: velocities K of a pass.
        width: of the embedding of the times.
    """

    def __init__(self, outputs: int = 1, width: int = 64) -> None:
        super().__init__()
        self.time, self.leave = TimeEmbedding(width), nn.Linear(width, outputs)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """``(B, K, C, H, W)`` of states ``(B, C, H, W)``."""
        numbers = self.leave(functional.silu(self.time(s, t)))
        return numbers[:, :, None, None, None] * x[:, None]


def skip_of(channels: int, patch: int, width: int, outputs: int) -> Skip | None:
    """The skip of a network of states of more channels than images have, if a patch has as many
    numbers as the network has channels, or more.
    """
    return Skip(outputs) if channels > MOST_COLOURS and channels * patch**2 >= width else None

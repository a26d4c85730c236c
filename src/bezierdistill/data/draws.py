"""Random numbers of other people's code: what items of a data set draw, as augmentations do, is a
function of what they are read for, so that a training goes on with the same bits.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from numpy.random import (
    get_bit_generator,  # pyright: ignore[reportAttributeAccessIssue]
    set_bit_generator,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch import Tensor


class Draws:
    """A context in which what is drawn from the global generators of torch, numpy and Python, as
    augmentations do, goes on from a state of its own; outside nothing has changed.

    Args:
        start: the generator that it starts from.
    """

    def __init__(self, start: torch.Generator) -> None:
        self.start, self.bits = start, np.random.MT19937(0)
        self.inside: tuple[Tensor, Any] | None = None

    def __enter__(self) -> Draws:
        self.outside = torch.get_rng_state(), get_bit_generator(), random.getstate()
        set_bit_generator(self.bits)
        if self.inside is None:
            self.begin(self.start)
        else:
            torch.set_rng_state(self.inside[0])
            random.setstate(self.inside[1])
        return self

    def begin(self, start: torch.Generator) -> None:
        """Start again, within the context, from another generator."""
        torch.set_rng_state(start.get_state())
        np.random.seed(start.initial_seed() % 2**32)
        random.seed(start.initial_seed())

    def __exit__(self, *_: object) -> None:
        self.inside = torch.get_rng_state(), random.getstate()
        torch.set_rng_state(self.outside[0])
        set_bit_generator(self.outside[1])
        random.setstate(self.outside[2])

"""Where the rows of a simulation start, and with which condition: noise, or real data of the
teachers' own or of another domain.

Row i is a function of the seed and of i alone, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bezierdistill.data import Data, load_data
from bezierdistill.errors import UserError
from bezierdistill.models.model import Model
from bezierdistill.noise import Stream, noise, uniform

Draw = Callable[[int, int], tuple[Tensor, Tensor | None]]


class Starts:
    """The states that curves start from, and their conditions.

    Args:
        teacher: whose conditions are drawn: class labels as often as in its training data, or
            rows of its table, or vectors of its training data.
        seed: seed of everything.
        data: real data to start from, with their own conditions; without it states are noise.
        guidance_range: from which every row draws a guidance scale, the last number of its
            condition.

    Raises:
        UserError: if the teacher takes conditions and there is nothing to draw them from.
    """

    def __init__(
        self,
        teacher: Model,
        seed: int,
        data: Data | None = None,
        guidance_range: tuple[float, float] | None = None,
    ) -> None:
        self.teacher, self.seed, self.data, self.range = teacher, seed, data, guidance_range
        self.given = data
        asked = teacher.conditions
        size = 0 if asked.rows else asked.size  # rows of a table are drawn from the table
        if size and data is None and not asked.classes:
            self.given = _training_data(teacher)
        if size and self.given is not None and self.given.condition_size != size:
            raise UserError(
                f"{self.given.name} has conditions of {self.given.condition_size} numbers, the"
                f" teachers take {size}: expected their data"
            )

    def __call__(self, start: int, rows: int) -> tuple[Tensor, Tensor | None]:
        """States and conditions (or None) of rows ``start .. start + rows``."""
        where = range(start, start + rows)
        drawn = None if self.given is None else self.given.take(where, self.seed, Stream.SIMULATE)
        if self.data is not None and drawn is not None:
            states = drawn[0]
        else:
            states = noise(self.seed, Stream.SIMULATE, where, self.teacher.shape)
        if not self.teacher.condition_size:
            return states, None
        if drawn is None or self.teacher.conditions.rows:
            cond = self.teacher.condition(where, self.seed, Stream.SIMULATE)
        else:
            cond = drawn[1]
        assert cond is not None  # its size was checked
        if self.range is None:
            return states, cond
        scale = uniform(self.seed, Stream.SIMULATE, where, *self.range)
        return states, torch.cat([cond, scale.to(cond)[:, None]], 1)

    def on(self, device: torch.device) -> Draw:
        """The same on a device."""

        def draw(start: int, rows: int) -> tuple[Tensor, Tensor | None]:
            states, cond = self(start, rows)
            return states.to(device), None if cond is None else cond.to(device)

        return draw


def _training_data(teacher: Model) -> Data:
    if teacher.card.data is None:
        raise UserError(
            "the teachers take vectors as conditions and name no training data to draw them from:"
            " expected --invert-from"
        )
    return load_data(teacher.card.data)

"""Where the rows of a simulation start, and with which condition: noise, or real data of the
teachers' own or of another domain.

Row i is a function of the seed and of i alone, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data import Data, load_data
from bezierdistill.errors import UserError
from bezierdistill.models import Model
from bezierdistill.noise import BLOCK, block_generator, block_window, noise, row_noise, uniform

Draw = Callable[[int, int], tuple[Tensor, Tensor | None]]


def starts(
    teacher: Model,
    seed: int,
    data: Data | None = None,
    guidance: tuple[float, float] | None = None,
    regenerated: bool = False,
) -> Draw:
    """The draw ``(start, rows) -> (states, conditions or None)`` of a simulation.

    Args:
        teacher: whose conditions are drawn: class labels as often as in its training data, or
            vectors of its training data.
        seed: seed of everything.
        data: real data to start from, with their own conditions; without it states are noise.
        guidance: a range from which every row draws a strength of guidance, the last number of its
            condition.
        regenerated: take noise from the table that gives any row again at once, for stores that
            keep its seed instead.

    Raises:
        UserError: if the teacher takes conditions and there is nothing to draw them from.
    """
    given = data
    if data is None and teacher.conditions and teacher.frequencies is None:
        given = _training_data(teacher)
    if given is not None and teacher.conditions and given.condition_size != teacher.conditions:
        raise UserError(
            f"{given.name} has conditions of {given.condition_size} numbers, the teachers take"
            f" {teacher.conditions}: expected their data"
        )

    def draw(start: int, rows: int) -> tuple[Tensor, Tensor | None]:
        drawn = None if given is None else _rows(given, seed, start, rows)
        if data is not None and drawn is not None:
            states = drawn[0]
        elif regenerated:
            states = row_noise(seed, np.arange(start, start + rows), teacher.shape)
        else:
            states = noise(seed, start, rows, teacher.shape)
        if not teacher.conditions:
            return states, None
        cond = teacher.condition(range(start, start + rows), seed) if drawn is None else drawn[1]
        assert cond is not None  # its size was checked
        return states, (
            cond
            if guidance is None
            else torch.cat([cond, uniform(seed, start, rows, *guidance)[:, None]], 1)
        )

    return draw


def _rows(data: Data, seed: int, start: int, rows: int) -> tuple[Tensor, Tensor | None]:
    """Rows of an endless table of training states and their conditions."""
    blocks, window = block_window(start, rows)
    drawn = [data.batch(BLOCK, block_generator(seed, block)) for block in blocks]
    conditions = [cond for _, cond in drawn if cond is not None]
    return torch.cat([x for x, _ in drawn])[window], (
        torch.cat(conditions)[window] if conditions else None
    )


def _training_data(teacher: Model) -> Data:
    name = dict(teacher.card.get("config", {})).get("data")
    if name is None:
        raise UserError(
            "the teachers take vectors as conditions and name no training data to draw them from:"
            " expected --data"
        )
    return load_data(name)

"""Where the rows of a simulation start, and with which condition: noise, or real data of the teachers' own or of another domain.

Row i is a function of the seed and of i alone, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bezierdistill.data import Data, load_data
from bezierdistill.models import Model
from bezierdistill.sources import BLOCK, block_generator, in_blocks, noise, uniform

Draw = Callable[[int, int], tuple[Tensor, Tensor | None]]


def starts(teacher: Model, seed: int, data: Data | None = None, guidance: tuple[float, float] | None = None) -> Draw:
    """The draw ``(start, rows) -> (states, conditions or None)`` of a simulation.

    Args:
        teacher: whose conditions are drawn: class labels as often as in its training data, or vectors of its training data.
        seed: seed of everything.
        data: real data to start from, with their own conditions; without it states are noise.
        guidance: a range from which every row draws a strength of guidance, the last number of its condition.

    Raises:
        ValueError: if the teacher takes conditions and there is nothing to draw them from.
    """
    if not teacher.conditions:
        return lambda start, rows: (_states(teacher, seed, data, start, rows), None)
    given = data or (None if teacher.frequencies is not None else _training_data(teacher))
    if given is not None and given.condition_size != teacher.conditions:
        raise ValueError(
            f"{given.name} has conditions of {given.condition_size} numbers, the teachers take {teacher.conditions}: expected their data"
        )

    def draw(start: int, rows: int) -> tuple[Tensor, Tensor | None]:
        if given is None:
            cond = teacher.condition(None, range(start, start + rows), seed)
        else:
            cond = in_blocks(start, rows, partial(_data_block, given, seed, 1))
        if guidance is not None and cond is not None:
            cond = torch.cat([cond, uniform(seed, start, rows, *guidance)[:, None]], 1)
        return _states(teacher, seed, data, start, rows), cond

    return draw


def _states(teacher: Model, seed: int, data: Data | None, start: int, rows: int) -> Tensor:
    if data is None:
        return noise(seed, start, rows, teacher.shape)
    return in_blocks(start, rows, partial(_data_block, data, seed, 0))


def _data_block(data: Data, seed: int, part: int, block: int) -> Tensor:
    value = data.batch(BLOCK, block_generator(seed, block))[part]
    assert value is not None  # the size of conditions was checked
    return value


def _training_data(teacher: Model) -> Data:
    name = dict(teacher.card.get("config", {})).get("data")
    if name is None:
        raise ValueError("the teachers take vectors as conditions and name no training data to draw them from: expected --data")
    return load_data(name)

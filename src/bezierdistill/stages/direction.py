r"""Whether a teacher's field runs from noise to its data, and which convention would.

At t=0 the state is noise that knows nothing of the data, so the mean velocity is the mean of the
data minus that of the source, which is zero. A wrong sign or direction of time shows there, and at
the end of a short simulation, which then is no nearer to the data than the noise was. Where it is
not, other predictions and times are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

from bezierdistill.errors import UserError
from bezierdistill.settings import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from bezierdistill.data import Data
    from bezierdistill.models.teacher import Teacher
    from bezierdistill.networks.own import Convention

ROWS, STEPS = 256, 8
NEAR = 0.25  # share of the way from noise to data that is left, below which no other is tried
BETTER = 0.5  # share of that way that another convention may leave, to be the one that fits
LARGE = 1e6  # a state beyond which a simulation has gone astray


@dataclass(frozen=True)
class Direction:
    """What was found.

    Args:
        left: energy distance of simulated ends to the data, as a share of that of noise; near 0 if
            the field runs to the data, 1 if its ends are as far as the noise.
        mean_error: distance of the mean velocity at t=0 to the mean of the data, over the deviation
            of the data.
    """

    left: float
    mean_error: float


def check_direction(teacher: Teacher, data: Any) -> Direction:
    """Check that a teacher's field runs from noise to data.

    Args:
        teacher: the teacher.
        data: what it was trained on, in any form of :func:`~bezierdistill.load_data`.

    Returns:
        How near it comes; a teacher that is only weak is not refused.

    Raises:
        UserError: if another sign, direction or scale of time, or prediction comes much nearer, or
            the ends are farther from the data than the noise.
    """
    from bezierdistill.data import load_data
    from bezierdistill.fields import as_found

    found = load_data(data)
    if found.shape != teacher.shape:
        raise UserError(
            f"data {found.name} have shape {found.shape}, the teacher's states {teacher.shape}"
        )
    with as_found(teacher.net):
        return _checked(teacher, found)


def _checked(teacher: Teacher, data: Data) -> Direction:
    import torch

    from bezierdistill.data import rescaled
    from bezierdistill.metrics.distances import energy_distance
    from bezierdistill.noise import Stream, noise

    count = data.count("valid")
    rows = range(ROWS if count is None else min(ROWS, count))
    real = rescaled(data, teacher.scaling).real(len(rows), 0, "valid")
    x0 = noise(0, Stream.SEARCH, rows, teacher.shape)
    cond = teacher.condition(rows, 0, Stream.SEARCH)
    apart = energy_distance(x0, real)
    chance = 2 * (2 * x0[0].numel()) ** 0.5 / len(rows)  # of two draws of noise, at the most

    def left(end: Tensor | None) -> float:
        return energy_distance(end, real) / max(apart, 1e-6) if end is not None else float("inf")

    with torch.no_grad():
        mean = teacher(x0, 0.0, cond).mean(0)
        spread = float(real.std(0).square().mean().sqrt()) * mean.numel() ** 0.5
        end = _end(teacher, teacher.net.convention, x0, cond)
        direction = Direction(left(end), float((mean - real.mean(0)).norm()) / max(spread, 1e-6))
        if direction.left <= NEAR or apart < chance:
            return direction
        _check_units(teacher, data, x0, end, direction.left)
        others = {
            _told(other): left(_end(teacher, other, x0, cond))
            for other in _others(teacher.net.convention)
        }
    best = min(others, key=lambda name: others[name])
    given = _told(teacher.net.convention)
    if others[best] < BETTER * min(direction.left, 1.0):
        raise UserError(
            f"the teacher as {given} does not run to the data (its ends are {direction.left:.2f}"
            f" times as far as noise): {best} fits ({others[best]:.2f}), expected that"
        )
    if direction.left > 1 + BETTER:
        raise UserError(
            f"the teacher as {given} runs away from the data (its ends are {direction.left:.2f}"
            " times as far as noise), and so does every other convention: check its weights, units"
            " and call="
        )
    return direction


def _check_units(teacher: Teacher, data: Data, x0: Tensor, end: Tensor | None, left: float) -> None:
    """Whether the teacher's ends are the data, but in other units than were told."""
    from bezierdistill.data import Scaling, rescaled
    from bezierdistill.metrics.distances import energy_distance

    plain = Scaling(layout=data.scaling.layout, alphabet=data.scaling.alphabet)
    others = {
        f"the numbers as they are, Scaling(layout={plain.layout!r})": plain,
        "those of load_data": data.scaling,
    }
    for told, scaling in others.items():
        if end is None or scaling == teacher.scaling:
            continue
        real = rescaled(data, scaling).real(len(x0), 0, "valid")
        other = energy_distance(end, real) / max(energy_distance(x0, real), 1e-6)
        if other < BETTER * min(left, 1.0) and other <= NEAR:
            raise UserError(
                f"the teacher runs to the data in other units ({told} leaves {other:.2f} of the way"
                f" from noise, the units given {left:.2f}): give Teacher(..., scaling=)"
            )


def _end(teacher: Teacher, convention: Convention, x0: Tensor, cond: Any) -> Tensor | None:
    """Where a short simulation ends; None if it goes astray."""
    from bezierdistill.fields import NetworkField, evaluating
    from bezierdistill.networks.own import OwnNetwork
    from bezierdistill.solvers import solve, time_grid

    field = NetworkField(OwnNetwork(teacher.net.module, convention))
    with evaluating():
        end = solve(field, x0, time_grid(STEPS), "heun", cond).state
    return end if bool(end.isfinite().all()) and float(end.abs().max()) < LARGE else None


def _others(given: Convention) -> list[Convention]:
    """The other conventions that a module might have been meant in."""
    from dataclasses import replace

    from bezierdistill.schedules import LinearSchedule

    schedule, found = given.schedule, []
    schedules = [schedule]
    if isinstance(schedule, LinearSchedule):
        scales = dict.fromkeys([schedule.scale, 1.0, 999.0, 1000.0])
        schedules = [
            replace(schedule, time=time, scale=scale)
            for time, scale in product(("up", "down"), scales)
        ]
    for prediction, other in product(get_args(Prediction), schedules):
        try:
            convention = replace(given, prediction=prediction, schedule=other)
        except UserError:  # a prediction that says nothing at an end of this schedule
            continue
        if (prediction, other) != (given.prediction, given.schedule):
            found.append(convention)
    return found


def _told(convention: Convention) -> str:
    from bezierdistill.schedules import LinearSchedule

    schedule = convention.schedule
    if isinstance(schedule, LinearSchedule):
        scale = "" if schedule.scale == 1 else f", {schedule.scale:g}"
        return f'"{convention.prediction}" with LinearSchedule("{schedule.time}"{scale})'
    return f'"{convention.prediction}" with {type(schedule).__name__}'

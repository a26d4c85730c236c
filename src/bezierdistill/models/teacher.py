"""A user's own module as a teacher, and as the student that starts from it.

A :class:`Teacher` is a model like any other: it can be sampled, simulated and blended. Its module
is left as it is found. :meth:`Teacher.student` copies it into a :class:`Student`, which ``distill``
trains; the weights that come out have the module's own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.curves import Time
from bezierdistill.data import Data, Scaling, load_data, rescaled
from bezierdistill.errors import UserError
from bezierdistill.fields import NetworkField, as_found, evaluating
from bezierdistill.models.features import HiddenStates
from bezierdistill.models.folder import load_model, read_card
from bezierdistill.models.model import Model
from bezierdistill.networks.given import Classes, Table, as_given, map_tensors
from bezierdistill.networks.own import Call, Convention, OwnConfig, OwnNetwork, check_trainable
from bezierdistill.networks.second import Probe
from bezierdistill.noise import Stream, noise
from bezierdistill.objects import find_object, fingerprint, held, is_object
from bezierdistill.records import Conditions, ModelCard, Passes
from bezierdistill.schedules import Schedule
from bezierdistill.settings import Prediction, check_choice, check_not_negative
from bezierdistill.words import counted

Way = Literal["start-time", "second-time"]
ROWS = 4  # of the states that a teacher is tried on
TIMES = (0.1, 0.9, 0.4, 0.6)  # of these: where it is trained every row has a time of its own
WITHIN, HALF = 5e-3, 5e-2  # likewise: what another batch may change, and in half precision
NONDETERMINISM = 1e-3  # of the size of a velocity: what kernels of GPUs may differ by


class Teacher(Model):
    """A module, or any callable, that knows the velocity, the noise or the data in a noisy state.

    Modules are called in evaluation mode and are left as they were found: mode, device, number
    type, weights. What a module predicts and how it counts time is never guessed;
    :func:`~bezierdistill.check_direction` tells a wrong one.

    Args:
        module: called as ``module(y, time)``, its own state ``(B, ...)`` and its own time ``(B,)``;
            with a condition as ``module(y, time, cond)``, or ``module(y, time, **cond)`` of a
            dictionary; else by ``call``.
        prediction: ``velocity`` (data minus noise), ``flow`` (noise minus data: diffusers' flow
            matching), ``epsilon`` (the noise), ``sample`` (the data, a denoiser), ``v_prediction``
            (``alpha noise - sigma data``).
        schedule: its noise levels and times. Times between the steps of a ``StepSchedule`` are
            fractions: a module that takes whole steps alone rounds them (not down) in ``call``.
        call: ``call(module, y, time, cond)`` where its arguments are others (torchcfm: time first).
        data: what it was trained on, in any form of :func:`~bezierdistill.load_data`: gives shape,
            scaling and frequencies of labels, and its direction is checked by it.
        shape: shape of one state, ``(D,)`` or ``(C, H, W)``, where there are no data.
        scaling: the way from its states to original units, where it is another than this: bytes
            are [-1, 1]; other numbers of an object (arrays, tensors, a Dataset) are as they are;
            data by a name or path have the scaling of ``load_data``, mean 0 and deviation 1.
        conditions: of a conditional module: the number of classes or their names (it is given
            indices ``(B,)``), or conditions by row: an array or tensor ``(N, ...)``, a dictionary
            of these, or a :class:`~bezierdistill.Table`. Stores keep the number of the row.
        none: what it is given for no condition, for guidance: a class index, one row of such
            values; None is what it gets without conditions.
        passes: network passes of one call.

    Raises:
        UserError: if the prediction does not go with the schedule, or shapes do not fit.

    Example:
        >>> from bezierdistill.schedules import LinearSchedule
        >>> net = nn.Linear(2, 2)
        >>> teacher = Teacher(net, "velocity", LinearSchedule("up"), lambda net, y, time, cond:
        ...                   net(y), shape=(2,))
        >>> teacher(torch.zeros(3, 2), 0.5).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        module: Any,
        prediction: Prediction,
        schedule: Schedule,
        call: Call | None = None,
        *,
        data: Any = None,
        shape: tuple[int, ...] | None = None,
        scaling: Scaling | None = None,
        conditions: Any = None,
        none: Any = None,
        passes: int = 1,
    ) -> None:
        given = as_given(conditions, none)
        net = OwnNetwork(module, Convention(prediction, schedule, call, given))
        if any(part.is_meta for found in modules_in(net.module) for part in found.parameters()):
            raise UserError("the module is on the meta device, without weights: load them first")
        known: Data | None = None if data is None else load_data(data)
        if known is not None and shape not in (None, known.shape):
            raise UserError(f"shape is {shape}, the data's states have {known.shape}: leave it out")
        values = {
            "net": net,
            "folder": None,
            "data": known,
            "_shape": shape if known is None else known.shape,
            "_scaling": scaling or _units(data, known),
            "_names": tuple(map(str, conditions)) if isinstance(conditions, list | tuple) else (),
            "_passes": passes,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    data: Data | None
    net: OwnNetwork
    _shape: tuple[int, ...] | None
    _scaling: Scaling | None
    _names: tuple[str, ...]
    _passes: int

    def __repr__(self) -> str:
        made, kind = self.net.convention, type(self.net.module).__name__
        size = counted(self.size, "parameter")
        shape = "unknown" if self._shape is None else self._shape
        return f"Teacher({kind} of {size}, {made.prediction}, {made.schedule}, shape {shape})"

    @cached_property
    def card(self) -> ModelCard:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What it is; its weights are told by :attr:`digest`."""
        shape = self._shape
        if shape is None:
            raise UserError("the teacher's states have no shape: give data=, or shape=(D,)")
        texts = self._scaling is not None and self._scaling.layout == "tokens"
        if len(shape) not in ((2,) if texts else (1, 3)) or min(shape) < 1:
            raise UserError(f"shape is {shape}, expected (D,) or (C, H, W)")
        scaling = self._scaling or Scaling(layout="flat" if len(shape) == 1 else "chw")
        scaling.check(shape)
        return ModelCard(
            kind="teacher",
            network=asdict(self.own_config({}, 0)),
            shape=tuple(shape),
            scaling=scaling,
            seed=0,
            steps=0,
            passes=Passes(training=0),
            conditions=self._conditions(),
            data=None if self.data is None else self.data.name,
        )

    def own_config(self, widths: Mapping[str, int], rank: int) -> OwnConfig:
        """What a card says of its module."""
        made, kind = self.net.convention, type(self.net.module)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return OwnConfig(name, made.prediction, told_schedule(made.schedule), tuple(widths), rank)

    def called(self) -> dict[str, Any]:
        """How its module is called, which the card of a student must agree with."""
        made, given = self.own_config({}, 0), self._conditions()
        return {
            "prediction": made.prediction,
            "schedule": made.schedule,
            "shape": self._shape and tuple(self._shape),
            "numbers of a condition": given.size,
            "rows of a table": given.rows,
        }

    def _conditions(self) -> Conditions:
        given = self.net.convention.given
        if isinstance(given, Table):
            return Conditions(size=1, rows=given.count, table=given.fingerprint[:16])
        if not isinstance(given, Classes):
            return Conditions()
        names = self._names
        labelled = self.data is not None and self.data.classes == given.count
        shares = self.data.frequencies if self.data is not None and labelled else None
        if labelled and not names:
            names = self.data.class_names if self.data is not None else ()
        return Conditions(
            size=given.count,
            frequencies=shares or (1 / given.count,) * given.count,
            names=names,
        )

    @property
    def field(self) -> NetworkField:
        """Its velocity field ``v(x, t)``."""
        return NetworkField(self.net, self._passes)

    @property
    def passes(self) -> int:
        """Network passes of one evaluation of the field."""
        return self._passes

    def __call__(self, x: Tensor, t: Time, cond: Any = None) -> Tensor:
        """Velocity ``(B, ...)``; see :class:`~bezierdistill.fields.Field`."""
        return self.field(x, t, cond)

    @property
    def fingerprint(self) -> str:
        """A digest of its weights, as they are now, and of how it is called."""
        made, found = self.net.convention, self.net.module
        inside = [*modules_in(found), *modules_in(made.call)]
        weights = [dict(module.state_dict()) for module in inside]
        module = type(found).__qualname__ if isinstance(found, nn.Module) else found
        given = made.given if isinstance(made.given, Table) else str(made.given)
        told = [made.prediction, told_schedule(made.schedule), made.call, given, self._names]
        return fingerprint([weights, module, *told])

    @property
    def digest(self) -> str:
        """What it is known by."""
        return self.fingerprint

    def student(
        self,
        way: Way = "second-time",
        time: str | tuple[str, ...] | None = None,
        lora: int = 0,
        targets: tuple[str, ...] = (),
    ) -> Student:
        """The module as a student, which starts exactly as the teacher.

        Parameters that do not require gradients are not trained, unless none does.

        Args:
            way: ``start-time``: nothing is changed, and every pass is an Euler step of your own
                sampler; it learns one number of passes. ``second-time``: where a step ends is added
                to what embeds the time, from zero; it learns any number of passes.
            time: the submodules that embed the time, by path; found by a probe where one does.
            lora: rank of low-rank adapters that are trained in the place of all weights; 0 is none.
            targets: the layers that get adapters; without them all linear ones and convolutions.

        Raises:
            UserError: if the module is none that can be trained, or no part that embeds the time is
                found or named.
        """
        check_choice("way", way, Way)
        check_not_negative(lora=lora)
        paths = (time,) if isinstance(time, str) else tuple(time or ())
        if way == "start-time" and paths:
            raise UserError(f"time is {paths[0]!r} with the start time only, expected none")
        check_trainable(self.net.module)
        self.check(times=TIMES)
        widths = {}
        if way == "second-time":
            with as_found(self.net):
                probe = self._probe()
                widths = dict(probe.widths(paths) if paths else probe.find())
        return Student(self, widths, lora, tuple(targets))

    def real(self, count: int) -> Tensor:
        """Real states ``(count, *shape)`` of its data, in its own units, to choose settings by.

        Raises:
            UserError: if it was given no data.
        """
        if self.data is None:
            raise UserError("the teacher was given no data, expected Teacher(..., data=...)")
        return rescaled(self.data, self.scaling).real(count, 0, "valid")

    def features(self, names: Sequence[str] = ()) -> HiddenStates:
        """Its hidden states as features, such as alignment compares.

        Args:
            names: paths of submodules; without them they are found by their size.
        """
        return HiddenStates(self, names)

    def _tried(self, seed: int = 0) -> tuple[Tensor, Any]:
        """A few states and conditions to try it on; nothing else draws them."""
        rows = range(ROWS)
        x = noise(seed, Stream.SEARCH, rows, self.shape)
        return x, self.condition(rows, seed, Stream.SEARCH)

    def _probe(self) -> Probe:
        (first, cond), (second, _) = self._tried(), self._tried(1)
        low, high = self.net.convention.schedule.span
        times = [low + share * (high - low) for share in (0.3, 0.7)]
        moments = tuple(torch.full((ROWS,), t) for t in times)

        def ask(x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t, t, cond)

        return Probe(self.net.module, ask, (first, second), (moments[0], moments[1]))

    def check(self, guided: bool = False, times: Sequence[float] = (0.5,) * ROWS) -> None:
        """Try it on a few states.

        Args:
            guided: whether it is also asked without its condition.
            times: of these states.

        Raises:
            UserError: if it cannot be called so, returns another shape, several tensors, or numbers
                that are not finite, draws at random, or mixes rows.
        """
        x, cond = self._tried()
        with as_found(self.net):
            self._try(x, torch.tensor(times), cond)
            if guided:
                self._try(x, torch.tensor(times), None)

    def sample(self, *given: Any, **named: Any) -> np.ndarray:
        """See :meth:`Model.sample`."""
        with as_found(self.net):
            return super().sample(*given, **named)

    @torch.no_grad()
    def _try(self, x: Tensor, times: Tensor, cond: Any) -> None:
        told = "with a condition" if cond is not None else "without a condition"
        try:
            with evaluating():
                first, again = self(x, times, cond), self(x, times, cond)
                fewer = map_tensors(cond, lambda part: part[1:])
                alone = self(x[1:], times[1:], fewer)
        except UserError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            whole = (
                ", and whole steps as call=lambda module, x, t, cond: module(x, t.round().long())"
            )
            raise UserError(
                f"the module cannot be asked {told} at states of shape {self.shape}"
                f" ({type(error).__name__}: {why}): give call=, and conditions= if it needs one"
                f"{whole if 'Long' in why else ''}"
            ) from error
        if not bool(first.isfinite().all()):
            raise UserError(
                f"the module gives NaN or infinite numbers {told}: check its weights, prediction"
                " and schedule"
            )
        apart = float((first - again).abs().max())
        if apart > NONDETERMINISM * float(first.abs().max()):
            raise UserError(
                "the module gives different velocities for the same state, time and condition:"
                " expected nothing drawn inside the call, conditions= where it needs one"
            )
        parts = (part for module in modules_in(self.net.module) for part in module.parameters())
        most = HALF if any(part.element_size() == 2 for part in parts) else WITHIN
        if float((first[1:] - alone).abs().max()) > most * float(first.abs().max()):
            raise UserError(
                "the module gives a state another velocity beside other states or times: expected"
                " rows that do not mix, each with its own time: (B,), or (B, 1) by call="
            )


def _units(source: Any, data: Data | None) -> Scaling | None:
    """The units of a module that was trained on data, as far as they are not told."""
    if data is None:
        return None
    told = isinstance(source, str | Path) or source is data
    as_it_is = not told and not data.scaling.integer and data.scaling.layout != "tokens"
    return Scaling(layout=data.scaling.layout) if as_it_is else data.scaling


@dataclass(frozen=True)
class Student:
    """A user's module to be trained: see :meth:`Teacher.student`.

    Args:
        teacher: whose module it is.
        widths: the submodules to which the second time is added, and their widths.
        lora: rank of low-rank adapters; 0 is none.
        targets: the layers that get them.
    """

    teacher: Teacher
    widths: Mapping[str, int]
    lora: int = 0
    targets: tuple[str, ...] = ()

    @property
    def net(self) -> OwnNetwork:
        """The teacher's network."""
        return self.teacher.net

    @property
    def network(self) -> OwnConfig:
        """What the card of the trained model says of it."""
        return self.teacher.own_config(self.widths, self.lora)

    @property
    def fingerprint(self) -> str:
        """What it is known by."""
        return fingerprint([self.teacher, dict(self.widths), self.lora, list(self.targets)])

    def build(self, seed: int) -> OwnNetwork:
        """A network with a copy of the teacher's weights; ``seed`` is that of the adapters."""
        return self.teacher.net.copy(self.widths).add_lora(self.lora, self.targets, seed)


def told_schedule(schedule: Schedule) -> str:
    """A schedule with all its numbers; of tensors a digest."""
    names = [part.name for part in fields(schedule)] if is_dataclass(schedule) else vars(schedule)
    values = {name: getattr(schedule, name) for name in names if not name.startswith("_")}

    def told(value: Any) -> str:
        if isinstance(value, Tensor | np.ndarray):
            return fingerprint(value)[:16]
        return repr(float(value) if isinstance(value, int | float) else value)

    parts = ", ".join(f"{name}={told(value)}" for name, value in values.items())
    return f"{type(schedule).__name__}({parts})"


def modules_in(value: Any, deep: int = 3, seen: set[int] | None = None) -> list[nn.Module]:
    """A module, or those that a callable refers to, a few steps deep."""
    seen = set() if seen is None else seen
    if id(value) in seen or deep < 0 or isinstance(value, type | ModuleType | Tensor):
        return []
    seen.add(id(value))
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, list | tuple | Mapping):
        parts = list(value.values()) if isinstance(value, Mapping) else list(value)
    else:
        parts = held(value)
    return [found for part in parts for found in modules_in(part, deep - 1, seen)]


def find_model(name: Any) -> Model:
    """The model in a folder, or the one that ``FILE.py:function`` returns or that was given.

    Raises:
        UserError: if there is none, or it is no model.
    """
    if not is_object(name):
        if read_card(Path(name)).is_own:
            raise UserError(
                f"{name} holds weights of your own module: expected FILE.py:function that returns"
                f" load_model({str(name)!r}, teacher)"
            )
        return load_model(name)
    found = find_object(name, "teacher", "returns a bezierdistill.Teacher")
    if not isinstance(found, Model):
        raise UserError(
            f"{name} is a {type(found).__name__}, expected a model folder or a Teacher: wrap it, as"
            ' Teacher(module, "velocity", LinearSchedule("up"))'
        )
    return found


def find_network(name: Any) -> Teacher | Student | None:
    """The teacher, or student, of a user's own module that a setting names; None if it names none.

    Raises:
        UserError: if it is neither.
    """
    if name is None:
        return None
    found = find_object(str(name), "teacher", "returns a bezierdistill.Teacher")
    if not isinstance(found, Teacher | Student):
        raise UserError(f"{name} is a {type(found).__name__}, expected a Teacher or its student")
    return found

"""What the scheduler of a diffusers pipeline says of its network: what it predicts, its noise
levels and its times. It is believed; settings that contradict it are refused.

Source: ``schedulers`` of diffusers. Those of :data:`STEPPERS` share the noise levels of DDPM and
differ in how they step; those of flow matching have ``alpha = 1 - sigma`` and tell the network
``num_train_timesteps * sigma``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from bezierdistill.errors import UserError
from bezierdistill.files import read_text
from bezierdistill.networks.foreign import UNBUILDABLE
from bezierdistill.settings import Prediction, ScheduleKind

FILE, PIPELINE = "scheduler_config.json", "model_index.json"
STEPPERS = {
    *("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler"),
    *("LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler", "UniPCMultistepScheduler"),
}
FLOWS = {f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM")}
WRAPPERS = {
    *("CMStochasticIterativeScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
    *("KarrasVeScheduler", "ScoreSdeVeScheduler"),
}
THEIR_WORDS = {"flow_prediction": "flow", "original_sample": "sample"}
MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Convention:
    """What a network predicts, how it counts time, and which file says so; None is unsaid.

    ``numbers`` are those of the schedule; see
    :func:`~bezierdistill.networks.foreign.make_schedule`.
    """

    prediction: Prediction | None
    schedule: ScheduleKind | None
    numbers: Mapping[str, Any]
    said_by: Path | None = None


def agree(named: Convention, folder: Path, network: Path) -> Convention:
    """What the user and the scheduler say together.

    Args:
        named: what the user says.
        folder: the user's folder.
        network: that of the network, which is the same or within.

    Raises:
        UserError: if they contradict each other, or neither says what is needed.
    """
    said = _read_scheduler(folder, network)
    where = said.said_by
    ours = {"prediction": named.prediction, "schedule": named.schedule, **named.numbers}
    theirs = {"prediction": said.prediction, "schedule": said.schedule, **said.numbers}
    for name, own in ours.items():
        other = theirs.get(name)
        if own is None and other is None:
            silent = f"{where} does not say it" if where else f"{folder} has no scheduler"
            raise UserError(f"{name} is not given, and {silent}: expected --{name}")
        if None not in (own, other) and own != other:
            contrary = f"the scheduler of {folder} states {other!r:.80} ({where})"
            raise UserError(f"{name} is {own!r:.80}, {contrary}: leave --{name} out")
    if (said.schedule or named.schedule) == "steps" and "alphas_cumprod" not in said.numbers:
        told = f"schedule steps needs the scheduler of a pipeline, {folder} has none that is known"
        raise UserError(f"{told}: expected {', '.join(sorted(STEPPERS))}")
    return Convention(
        said.prediction or named.prediction,
        said.schedule or named.schedule,
        {**named.numbers, **said.numbers},
        said.said_by if said.schedule else None,
    )


def _read_scheduler(folder: Path, network: Path) -> Convention:
    """What the scheduler of a pipeline says; nothing if there is none or it is not known."""
    path = _find_scheduler(folder, network)
    if path is None:
        return Convention(None, None, {})
    settings = _read_json(path)
    name = str(settings.get("_class_name"))
    if name in WRAPPERS:
        raise UserError(
            f"{path} is a {name}, which wraps the network in scales of its own: expected none;"
            " copy the network out of the pipeline if its own output is the prediction"
        )
    steps = settings.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= MAX_STEPS:
        raise UserError(
            f"{path} has num_train_timesteps {steps!s:.80}, expected 2 to {MAX_STEPS:,}"
        )
    if settings.get("timestep_type") == "continuous" or settings.get("invert_sigmas"):
        odd = "a timestep_type of 'continuous', or inverted sigmas"
        raise UserError(f"{path} has {odd}, expected a scheduler whose times are steps")
    if name in FLOWS or settings.get("use_flow_sigmas"):
        stated = settings.get("prediction_type", "flow_prediction")
        return _said(stated, "linear-down", {"scale": float(steps)}, path)
    return _levels(settings, path) if name in STEPPERS else Convention(None, None, {}, path)


def _find_scheduler(folder: Path, network: Path) -> Path | None:
    """In ``scheduler/`` or beside it, of the folder or of a pipeline one or two folders above."""
    above = [up for up in network.absolute().parents[:2] if (up / PIPELINE).exists()]
    places = [root / part / FILE for root in (folder, *above) for part in ("scheduler", ".")]
    return next((path for path in places if path.exists()), None)


def _read_json(path: Path) -> dict[str, Any]:
    """Settings that may be infinite, as those of schedulers are."""
    text = read_text(path, "scheduler")
    try:
        return dict(json.loads(text).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} holds no settings ({error}): fetch it again") from None


def _levels(settings: Mapping[str, Any], path: Path) -> Convention:
    """The noise levels of DDPM, as diffusers makes them of the settings."""
    import diffusers

    try:
        with quiet():
            built = getattr(diffusers, settings["_class_name"]).from_config(dict(settings))
        levels = built.alphas_cumprod.double()
        if not 0 < levels[-1] < levels[-2]:  # ends in pure noise, whose logarithm is infinite
            levels[-1] = levels[-2] / 2
    except UNBUILDABLE as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"the scheduler {path} cannot be built ({told}): fix it") from None
    stated = built.config.prediction_type
    if settings.get("predict_epsilon") is False:  # the word for it in 2022, before there were more
        stated = "sample"
    if stated == "flow_prediction":
        raise UserError(f"{path} predicts a flow without use_flow_sigmas, expected both or neither")
    return _said(stated, "steps", {"alphas_cumprod": levels.tolist()}, path)


def _said(stated: object, kind: ScheduleKind, numbers: dict[str, Any], path: Path) -> Convention:
    prediction = THEIR_WORDS.get(str(stated), stated)
    if prediction not in get_args(Prediction):
        expected = "epsilon, sample, v_prediction or flow_prediction"
        raise UserError(f"{path} has prediction_type {str(stated)[:80]!r}, expected {expected}")
    return Convention(cast(Prediction, prediction), kind, numbers, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers from writing about what it does not know: here that is an error or none."""
    from diffusers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.set_verbosity(before)

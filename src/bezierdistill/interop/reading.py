"""Pretrained networks of diffusers as teachers: a local folder in, a model folder out, on which
every stage works.

What a network predicts and how it counts time is named by the user and never guessed. Where a
folder states the contrary, that is an error. Only safetensors are read.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError

from bezierdistill import __version__
from bezierdistill.data import Scaling
from bezierdistill.data.arrays import check_memory
from bezierdistill.data.scaling import Layout
from bezierdistill.errors import UserError
from bezierdistill.files import read_json, whole_folder
from bezierdistill.models import Model, load_model, save_model
from bezierdistill.models.weights import check_sizes, is_whole
from bezierdistill.networks.foreign import (
    UNBUILDABLE,
    ClassName,
    Foreign,
    ForeignConfig,
    ScheduleKind,
    count_classes,
    make_schedule,
    network_class,
    state_shape,
)
from bezierdistill.schedules import Prediction

STEPPERS = (
    *(
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
    ),
    *(
        "HeunDiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ),
)
WRAPPERS = ("CMStochasticIterativeScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
MOST_STEPS = 1_000_000
THEIR_WORDS = {"flow_prediction": "flow"}
LAYOUTS: dict[int, Layout] = {1: "hw", 3: "hwc", 4: "hwc"}


def import_diffusers(
    source: str | Path,
    out: str | Path,
    prediction: Prediction,
    schedule: ScheduleKind,
    **numbers: float,
) -> Model:
    """Make a teacher of a pretrained network of diffusers; its images are bytes, [-1, 1] in model
    units.

    Args:
        source: a local folder: a pipeline with ``unet/`` or ``transformer/`` (and ``scheduler/``),
            or the network alone.
        out: folder of the new model.
        prediction: what the network predicts: velocity, flow, epsilon, sample, v_prediction
            (see :class:`~bezierdistill.schedules.ForeignField`).
        schedule: ``linear-up`` or ``linear-down`` (its time is 0 at the noise, or at the data),
            ``sigma``, or ``steps`` (noise levels of the pipeline's scheduler).
        numbers: ``scale``, ``low``, ``high`` of a linear schedule; ``least``, ``most`` of sigma.

    Raises:
        UserError: on a folder that holds no such network, statements there that contradict what is
            named, weights that do not fit, or an ``out`` that is not empty.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")
    folder = _find_network(source)
    statement = _read_scheduler(source, prediction, schedule)
    if schedule == "steps":
        numbers = {**numbers, **_noise_levels(statement, source)}
    make_schedule(schedule, numbers)  # rejects them before seconds are spent on loading
    with quiet():
        inner = _load(folder)
    shape, classes = state_shape(inner), count_classes(inner)
    if shape[0] not in LAYOUTS:
        raise UserError(
            f"{folder} makes {shape[0]} channels, expected 1 (grey), 3 (RGB) or 4 (RGBA) of an"
            " image"
        )
    config = {key: value for key, value in inner.config.items() if not key.startswith("_")}
    network = ForeignConfig(
        cast(ClassName, type(inner).__name__),
        json.loads(json.dumps(config)),
        prediction,
        schedule,
        numbers,
    )
    net = Foreign(inner, prediction, make_schedule(schedule, numbers), classes).eval()
    scaling = Scaling((127.5,), (127.5,), LAYOUTS[shape[0]], 0.0, 255.0, True)
    card = {
        "kind": "teacher",
        "package": __version__,
        "passes": {"training": 0, "total": 0},
        "note": (
            "imported: the passes of the teacher's own training are not known and not counted, nor"
            " how often each class occurs"
        ),
        "config": {
            "data": None,
            "source": str(source.resolve()),
            "prediction": prediction,
            "schedule": schedule,
        },
        **({"classes": [1 / classes] * classes} if classes else {}),
    }
    with whole_folder(out) as made:
        save_model(
            made, Model(net, network, shape, scaling, card=card, conditions=classes)
        )  # and tries it
    return load_model(out)


def _find_network(source: Path) -> Path:
    """The folder of the one network that a folder holds."""
    coders = [name for name in ("vae", "vqvae") if (source / name).exists()]
    if coders:
        raise UserError(
            f"{source} has a {coders[0]}: its network makes latents, expected one that makes images"
        )
    found = [
        folder
        for folder in (source, source / "unet", source / "transformer")
        if (folder / "config.json").exists()
    ]
    if len(found) != 1:
        holds = " and ".join(str(folder) for folder in found) or "none"
        raise UserError(
            f"{source} holds {holds}, expected one network of diffusers: config.json, or unet/ or"
            " transformer/ with one"
        )
    name = read_json(found[0] / "config.json", "network").get("_class_name")
    if name not in get_args(ClassName):
        raise UserError(f"{found[0]} is a {name}, expected {' or '.join(get_args(ClassName))}")
    return found[0]


def _read_scheduler(source: Path, prediction: str, schedule: str) -> dict[str, Any] | None:
    """What the pipeline's scheduler says of itself, if there is one and it agrees with what the
    user says.
    """
    if not (source / "scheduler" / "scheduler_config.json").exists():
        return None
    statement = read_json(source / "scheduler" / "scheduler_config.json", "scheduler")
    if statement.get("_class_name") in WRAPPERS:
        raise UserError(
            f"{source} runs on {statement['_class_name']}, which wraps the network in scales of its"
            " own: expected a network whose own output is the prediction; give its folder alone if"
            " it is"
        )
    name = statement.get("_class_name")
    if name in STEPPERS and schedule != "steps":
        raise UserError(
            f"schedule is {schedule}, {source} runs on {name}, which has steps: name that, or give"
            " the network's folder alone"
        )
    stated = statement.get("prediction_type")
    if stated is not None and THEIR_WORDS.get(str(stated), stated) != prediction:
        raise UserError(
            f"prediction is {prediction!r}, the scheduler of {source} states {stated!r}: name that,"
            " or give the network's folder alone"
        )
    return statement


def _noise_levels(statement: Mapping[str, Any] | None, source: Path) -> dict[str, Any]:
    name = None if statement is None else statement.get("_class_name")
    if statement is None or name not in STEPPERS:
        raise UserError(
            f"schedule steps needs the scheduler of a pipeline, {source} has {name or 'none'}:"
            f" expected {', '.join(STEPPERS)}"
        )
    steps = statement.get("num_train_timesteps", 1000)
    if not is_whole(steps, 2) or steps > MOST_STEPS:
        raise UserError(
            f"the scheduler of {source} has num_train_timesteps {str(steps)[:80]}, expected 2 to"
            f" {MOST_STEPS:,}"
        )
    import diffusers

    try:
        with quiet():
            return {
                "alphas_cumprod": (
                    getattr(diffusers, name)
                    .from_config(dict(statement))
                    .alphas_cumprod.double()
                    .tolist()
                )
            }
    except UNBUILDABLE as error:
        raise UserError(
            f"the scheduler of {source} cannot be built ({' '.join(str(error).split())[:200]}):"
            " mend its config"
        ) from None


def _load(folder: Path) -> Any:
    """The network, every weight of which is in its safetensors."""
    settings = read_json(folder / "config.json", "network")
    _check_size(folder, settings)
    try:
        inner, report = network_class(settings["_class_name"]).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (*UNBUILDABLE, OSError, SafetensorError) as error:
        raise UserError(
            f"diffusers cannot load {folder} from safetensors: {' '.join(str(error).split())[:500]}"
        ) from None
    wrong = {
        key: report[key]
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if report.get(key)
    }
    if wrong:
        raise UserError(
            f"the weights in {folder} are not those of its config.json:"
            f" {json.dumps(wrong, default=str)[:300]}"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in inner.state_dict().values()):
        raise UserError(f"the weights in {folder} hold NaN or infinite numbers: fetch them again")
    return inner


def _check_size(folder: Path, settings: Mapping[str, Any]) -> None:
    """Whether the network of the settings has no more numbers than the files have bytes: laid out
    where that takes no memory.
    """
    files = sorted(folder.glob("*.safetensors"))
    held = sum(file.stat().st_size for file in files)
    if not files:
        raise UserError(
            f"diffusers cannot load {folder} from safetensors: it holds none, expected weights in"
            " that format alone"
        )
    check_sizes(settings, held, held)
    named = {key: value for key, value in settings.items() if not key.startswith("_")}
    if "quantization_config" in named or "auto_map" in named:
        raise UserError(
            f"{folder} is quantized or has code of its own, expected weights of a plain network"
        )
    network = network_class(settings["_class_name"])
    try:
        with torch.device("meta"):
            inner = network.from_config(named)
            shape = state_shape(inner)
    except UNBUILDABLE as error:
        raise UserError(
            f"diffusers cannot load {folder}: {' '.join(str(error).split())[:300]}"
        ) from None
    numbers = sum(tensor.numel() for tensor in inner.state_dict().values())
    if numbers > held:
        raise UserError(
            f"{folder} names a network of {numbers:,} numbers, its weights have {held:,} bytes:"
            " they are of another network"
        )
    check_memory(16 * math.prod(shape), f"an image of shape {shape}")
    check_memory(32 * sum(buffer.numel() for buffer in inner.buffers()), "the network's tables")


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

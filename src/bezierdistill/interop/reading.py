"""Pretrained networks of diffusers as teachers: a local folder in, a model folder out, on which
every stage works.

What a network predicts and how it counts time is said by its pipeline's scheduler or named by the
user, and never guessed. Only safetensors are read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from bezierdistill import __version__
from bezierdistill.data.scaling import Layout, Scaling
from bezierdistill.errors import UserError
from bezierdistill.files import whole_folder
from bezierdistill.hub import SETTINGS, WEIGHTS, is_name, local_folder
from bezierdistill.interop.network import find_network, load_network
from bezierdistill.interop.scheduler import Convention, agree
from bezierdistill.models import Model, save_model
from bezierdistill.models.weights import check_weights
from bezierdistill.networks import foreign
from bezierdistill.progress import notice, stage
from bezierdistill.records import Conditions, ModelCard, Passes, to_json
from bezierdistill.schedules import check_prediction
from bezierdistill.settings import Prediction, ScheduleKind

LAYOUTS: dict[int, Layout] = {1: "hw", 3: "hwc", 4: "hwc"}
NOTE = "imported: passes of the teacher's own training are not counted, class frequencies not known"


@stage("importing")
def import_diffusers(
    folder: str | Path,
    out: str | Path,
    prediction: Prediction | None = None,
    schedule: ScheduleKind | None = None,
    **numbers: float,
) -> Model:
    """Make a teacher of a pretrained network of diffusers; its images are bytes, [-1, 1] in model
    units.

    The network is changed; it is the model's. What the card's ``settings`` say of the import:
    ``folder``, ``scheduler`` (the file that was believed), ``weights`` (files), ``prefix`` (of the
    tensors' names), ``passed_over`` (settings that the network does not have).

    Args:
        folder: a folder, or its name on the hub (``OWNER/NAME``): a pipeline, a checkpoint of a
            training script, or the network alone.
        out: folder of the new model.
        prediction: what the network predicts: velocity, flow, epsilon, sample, v_prediction
            (see :class:`~bezierdistill.Teacher`); needed where no scheduler says it.
        schedule: ``linear-up`` or ``linear-down`` (its time is 0 at the noise, or at the data),
            ``sigma``, or ``steps`` (noise levels of the pipeline's scheduler); likewise.
        numbers: ``scale``, ``low``, ``high`` of a linear schedule; ``least``, ``most`` of sigma.

    Raises:
        UserError: on a folder that holds no such network, a scheduler there that contradicts what
            is named, weights that do not fit, or an ``out`` that is not empty.
    """
    source, out = folder, Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")
    folder = local_folder(source, SETTINGS)
    place = find_network(folder)
    told = agree(Convention(prediction, schedule, numbers), folder, place)
    local_folder(source, WEIGHTS)  # of a hub's, once its settings are known to be of use
    where = str(source) if is_name(source) else str(folder.resolve())
    teacher = _teacher(where, place, told)
    with whole_folder(out) as made:
        saved = save_model(made, teacher)
    if told.prediction == "epsilon":
        notice(
            f"{source} predicts epsilon: its velocity divides by alpha, which is almost 0 at the"
            " noise end, so one pass of a student is hard to learn; compare with two"
        )
    return replace(saved, folder=out)


def _teacher(folder: str, place: Path, told: Convention) -> Model:
    """The model around the network in ``place``, which is tried."""
    prediction, schedule = told.prediction, told.schedule
    assert prediction is not None
    assert schedule is not None
    levels = foreign.make_schedule(schedule, told.numbers)
    check_prediction(prediction, levels)  # before seconds go into loading
    inner, loading = load_network(place)
    shape, classes = foreign.state_shape(inner), foreign.count_classes(inner)
    if shape[0] not in LAYOUTS:
        expected = "1 (grey), 3 (RGB) or 4 (RGBA) of an image"
        raise UserError(f"{place} makes {shape[0]} channels, expected {expected}")
    config = {key: value for key, value in inner.config.items() if not key.startswith("_")}
    name = cast(foreign.ClassName, type(inner).__name__)
    network = foreign.ForeignConfig(name, to_json(config), prediction, schedule, told.numbers)
    net = foreign.Foreign(inner, prediction, levels, classes).eval().requires_grad_(False)
    try:
        check_weights(network, shape, classes, net.state_dict(), trial=True)
    except foreign.UNBUILDABLE as error:
        raise UserError(f"{place} cannot be used: {' '.join(str(error).split())[:300]}") from None
    frequencies = (1 / classes,) * classes if classes else None
    settings = {
        "folder": folder,
        "prediction": prediction,
        "schedule": schedule,
        "scheduler": told.said_by and str(told.said_by),
        **loading,
        "note": NOTE,
    }
    card = ModelCard(
        kind="teacher",
        network=to_json(network),
        shape=shape,
        scaling=Scaling.of_bytes(LAYOUTS[shape[0]]),
        seed=0,
        steps=0,
        passes=Passes(training=0),
        conditions=Conditions(size=classes, frequencies=frequencies),
        settings=settings,
        package=__version__,
    )
    return Model(net, card)

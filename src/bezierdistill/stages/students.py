"""What ``distill`` trains: the network of the best teacher, one of ours from scratch, or a user's
own module.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from bezierdistill.errors import UserError
from bezierdistill.fields import Blend, Field, Guided, as_found
from bezierdistill.models.folder import find_folder, load_model, read_card
from bezierdistill.models.model import Model
from bezierdistill.models.teacher import Student, Teacher, find_model
from bezierdistill.models.weights import start_from
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.foreign import ForeignConfig
from bezierdistill.networks.own import OwnConfig
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.objects import find_object, is_object
from bezierdistill.progress import notice
from bezierdistill.records import CurveRecipe
from bezierdistill.settings import Contents
from bezierdistill.store import CurveStore

if TYPE_CHECKING:
    from bezierdistill.stages.distill import DistillConfig, StudentSettings


Network = NetworkConfig | ForeignConfig | OwnConfig | PipelineConfig
POINTS = {
    "mlp": 4,
    "unet": 1,
    "dit": 1,
    "transformer": 4,
}  # control points of a student, by its kind


class Chosen(NamedTuple):
    """The network that is trained, its settings, and the teacher whose module it is, if any."""

    net: nn.Module
    network: Network
    own: Teacher | None


def choose_student(config: DistillConfig, store: CurveStore) -> Chosen:
    """What is trained on a store: the network of the best teacher, or what the settings name.

    Raises:
        UserError: if there is no such network, or it cannot learn these curves.
    """
    recipe = store.recipe
    if config.student is not None:
        does = "returns teacher.student(...) or a NetworkConfig"
        chosen = find_object(str(config.student), "student", does)
        if config.full:
            _check_full(chosen)
        if isinstance(chosen, Student):
            _check_own(config, store, chosen)
            _emitting(config, chosen.network)  # which it cannot: refuses control points
            return Chosen(chosen.build(config.seed), chosen.network, chosen.teacher)
        if isinstance(chosen, Model) and isinstance(chosen.network, PipelineConfig):
            _check_prompted(config, chosen.network)
            return Chosen(chosen.net, chosen.network, None)
        if not isinstance(chosen, NetworkConfig):
            raise UserError(
                f"student is a {type(chosen).__name__}, expected teacher.student(...), or a"
                " NetworkConfig for one of our networks"
            )
        if config.init == "teacher":
            raise UserError(
                f"student is a {chosen.kind} of ours with its own weights: expected --init scratch"
            )
        chosen = _emitting(config, chosen)
        net = chosen.build(recipe.shape, config.seed, _sizes(recipe))
        return Chosen(net, chosen, None)
    best = best_teacher(store)
    if best is not None and isinstance(best.network, PipelineConfig):
        return _prompted(config, best)
    _check_bare(config, store, best)
    assert best is not None
    network = _emitting(config, best.network)
    if config.init == "teacher":
        _check_points(network, best.network)
    net = network.build(recipe.shape, config.seed, recipe.conditions.size)
    if config.init == "teacher":
        start_from(net, best.net)
    return Chosen(net, network, None)


def _check_bare(config: DistillConfig, store: CurveStore, best: Model | None) -> None:
    """Whether there is a teacher's network of ours to start from."""
    if config.lora:
        raise UserError(
            f"lora is {config.lora} and the best teacher is no pipeline with prompts: expected"
            " --student FILE.py:function that returns teacher.student(lora=...), or no --lora"
        )
    if config.full:
        raise UserError(
            "full is given and the best teacher is no pipeline with prompts, of others all weights"
            " are trained anyway: expected no --full"
        )
    if best is None:
        raise UserError(
            f"the curves of {store.folder} were made by a module of your own, which has no network"
            " of ours: expected student=teacher.student(...), or a NetworkConfig with --init"
            " scratch"
        )


def _check_full(student: object) -> None:
    """Whether all weights are trained of what settings name."""
    network = student.network if isinstance(student, Model) else None
    if not isinstance(network, PipelineConfig):
        raise UserError(
            f"full is given and the student is a {type(student).__name__}, which is of no pipeline"
            " with prompts: expected no --full"
        )
    if not network.full:
        raise UserError(
            f"full is given and the student has an adapter of rank {network.lora}: expected one"
            " that teacher.student(full=True) returns, or no --full"
        )


def _prompted(config: DistillConfig, best: Model) -> Chosen:
    """A low-rank adapter in the transformer of a pipeline, or a copy of all its weights."""
    from bezierdistill.models.pipeline import PipelineModel  # it takes diffusers

    assert isinstance(best, PipelineModel)
    network = replace(best.pipeline, lora=config.lora, full=config.full)
    _check_prompted(config, network)
    if config.full:
        return Chosen(best.net.whole(), network, None)
    net = best.net.add_lora(config.lora, config.targets, config.seed)
    if best.net.rank:  # a student's student starts as it
        before = best.net.tensors()
        shapes = [{k: v.shape for k, v in own.items()} for own in (before, net.tensors())]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"lora is {config.lora} and the teacher a student with an adapter of rank"
                f" {best.net.rank}, from which this one starts: expected the same rank and targets"
            )
        net.load(before)
    return Chosen(net, network, None)


def _check_prompted(config: DistillConfig, network: PipelineConfig) -> None:
    """Whether a pipeline's transformer can learn what is asked for."""
    if network.lora < 1 and not network.full:
        raise UserError(
            f"lora is {network.lora} and the teacher is a pipeline, whose transformer is trained by"
            " a low-rank adapter: expected its rank, such as --lora 16, or --full for all weights"
        )
    if (config.control_points or 1) > 1 or config.init == "scratch":
        raise UserError(
            "the student is a pipeline's transformer: expected --init teacher and no"
            " --control-points"
        )
    one = config.objective == "end" and config.most_passes == 1
    if config.objective not in ("knots", "velocity") and not one:
        raise UserError(
            f"objective is {config.objective} with {config.most_passes} passes, a pipeline knows"
            " the start time only and learns one grid of knots: expected --objective knots"
        )
    if config.loop.compile or (config.loop.strategy == "fsdp" and not network.full):
        raise UserError(
            "loop is asked to compile or for fsdp, and a pipeline's transformer is called as it is,"
            " and held whole by every rank that trains an adapter of it: expected neither"
        )


def _emitting(config: DistillConfig, network: Network) -> Network:
    """The network of a student, which emits curves if it can and is to."""
    points = config.control_points
    if isinstance(network, NetworkConfig) and config.objective == "map":
        return replace(network, control_points=points_of(config, network))
    if (points or 1) > 1:
        raise UserError(
            f"control-points is {points} and the student is no network of ours, which could emit"
            " so many: expected 1, or student=NetworkConfig(...) with --init scratch"
        )
    return network


def points_of(settings: StudentSettings, network: object) -> int:
    """Control points of a student of a network: 1, a jump, unless it is one of ours and learns a
    map; then what settings name, else its teacher's, if that emits curves, else :data:`POINTS`.
    """
    if settings.objective != "map" or not isinstance(network, NetworkConfig):
        return 1
    usual = 1 if network.file is not None else POINTS[network.kind]
    usual = network.control_points if network.control_points > 1 else usual
    return settings.control_points or usual


def _check_points(network: Network, teacher: Network) -> None:
    """Whether a student's control points can start as its teacher's."""
    if not isinstance(network, NetworkConfig) or not isinstance(teacher, NetworkConfig):
        return
    points, given = network.control_points, teacher.control_points
    if given not in (1, points):
        raise UserError(
            f"control-points is {points} and the teacher is a student of {given}, whose weights"
            f" make no other curves: expected {given}, or --init scratch"
        )


def asked_field(store: CurveStore, device: torch.device, left: ExitStack) -> Field | None:
    """The field that made stored curves, to be asked again; None, and it is told, where there is
    none from sources to data, or it cannot be loaded.

    Args:
        store: the curves.
        device: where networks of ours are put; a user's own module stays where it is.
        left: gives the teachers their buffers back at its end.
    """
    recipe = store.recipe
    if not recipe.teachers or recipe.through is not None:
        return None
    try:
        models = [
            find_model(ref.path if is_object(ref.path) else find_folder(ref, store.folder))
            for ref in recipe.teachers
        ]
    except UserError as error:
        notice(f"no rows are on-policy, as a teacher cannot be asked: {error}")
        return None
    for model in models:
        model.net.to(device)
        left.enter_context(as_found(model.net))
    fields: list[Field] = [model.field for model in models]
    if scale := recipe.conditions.guided:
        fields = [Guided(field, scale[0] if len(scale) == 1 else None) for field in fields]
    return Blend(fields, recipe.weights)


def best_teacher(store: CurveStore) -> Model | None:
    """The teacher of the most weight; None if it is a module of the user's own."""
    recipe = store.recipe
    if not recipe.teachers:
        return None
    means = [sum(row) / len(row) for row in recipe.weights]
    best = recipe.teachers[means.index(max(means))]
    if is_object(best.path):
        found = find_object(best.path, "teacher", "returns a bezierdistill.PipelineTeacher")
        return None if isinstance(found, Teacher) or not isinstance(found, Model) else found
    folder = find_folder(best, store.folder)
    return None if read_card(folder).is_own else load_model(folder)


def _sizes(recipe: CurveRecipe) -> int:
    """Numbers of a condition that one of our networks takes."""
    if recipe.conditions.rows is not None:
        raise UserError(
            "the curves' conditions are rows of a table, which only your own module can read:"
            " expected student=teacher.student(...)"
        )
    return recipe.conditions.size


def _check_own(config: DistillConfig, store: CurveStore, student: Student) -> None:
    """Whether a user's own module can learn what is asked for."""
    recipe, given = store.recipe, student.teacher.conditions
    taken = (recipe.conditions.size, recipe.conditions.rows)
    if recipe.conditions.guidance_range is not None:
        raise UserError(
            "the curves have a range of guidance scales, which your own module takes no input for:"
            " expected curves of one --guidance-scale"
        )
    if (recipe.shape, taken) != (student.teacher.shape, (given.size, given.rows)):
        raise UserError(
            f"the student's states have shape {student.teacher.shape} and conditions"
            f" {given.size}, the curves {recipe.shape} and {recipe.conditions.size}: expected the"
            " teacher that made them"
        )
    if recipe.scaling != student.teacher.scaling:
        raise UserError(
            "the student's states are in other units than the curves: expected one scaling= or"
            " data= of both teachers"
        )
    if recipe.conditions.table != given.table:
        raise UserError(
            "the curves' conditions are rows of another table than the student's: expected the"
            " same rows in the same order"
        )
    if config.init == "scratch":
        raise UserError("init is scratch, a student of your own starts from its teacher's weights")
    one = config.objective == "end" and config.most_passes == 1
    if not student.widths and config.objective not in ("knots", "velocity") and not one:
        raise UserError(
            f"objective is {config.objective} with {config.most_passes} passes, a student that"
            " knows the start time only learns one grid of knots: expected --objective knots, or"
            " student('second-time')"
        )


def contents_of(usual: Contents, network: object) -> Contents:
    """What a folder holds; of a user's own module more, and how it is sampled without us."""
    if not isinstance(network, OwnConfig):
        return usual
    files = {
        "model.safetensors": "its averaged weights, by the module's own names; commands that read"
        " them take --network FILE.py:function as well, which returns the teacher",
        "sampler.py": "samples it with torch and safetensors alone (below)",
    }
    if network.times:
        files["second-time.safetensors"] = "what was added to its weights, the second time"
    if network.lora:
        files["lora/"] = "the adapters alone, in peft's format; model.safetensors has them too"
    return replace(usual, files={**usual.files, **files}, shown=("sampler.py",))

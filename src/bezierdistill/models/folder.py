"""A model folder: weights, and a JSON card.

    model.json               :class:`~bezierdistill.records.ModelCard`
    model.safetensors        the averaged weights, whose digest the card holds
    second-time.safetensors  of a user's own module: what was added to it
    sampler.py               of one: samples it with torch alone
    lora/                    of one with adapters: these alone, in peft's format

Of a pipeline's student the weights are its adapter, or all those of its transformer.

A card may come from anybody: everything in it is checked, and no network is built that the weights
do not fill.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.files import (
    digest,
    discard,
    read_tensors,
    read_text,
    write_tensors,
    write_text,
)
from bezierdistill.hub import local_folder
from bezierdistill.models.model import Model
from bezierdistill.models.standalone import standalone
from bezierdistill.models.weights import check_fit, check_weights
from bezierdistill.networks.config import NetworkConfig, read_network
from bezierdistill.networks.lora import save_lora
from bezierdistill.networks.own import OwnConfig, OwnNetwork
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.progress import stage
from bezierdistill.records import (
    ModelCard,
    TeacherRef,
    check_version,
    from_json,
    parse_json,
    to_json,
    write_record,
)

if TYPE_CHECKING:
    from bezierdistill.models.teacher import Student, Teacher

CARD, WEIGHTS, SECOND, LORA = "model.json", "model.safetensors", "second-time.safetensors", "lora"
SAMPLER = "sampler.py"
# What building or trying a network of somebody's settings may raise.
UNBUILDABLE = (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, ValueError)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return (folder / CARD).exists()


@stage("saving")
def save_model(folder: Path, model: Model) -> Model:
    """Write a model folder; returns the model with its folder and digest.

    Raises:
        UserError: if what its card says does not agree with itself; nothing is written then.
    """
    from_json(to_json(model.card), ModelCard, folder / CARD)  # as it is read back
    if isinstance(model.network, PipelineConfig):
        return _save_pipeline(folder, model)
    if isinstance(model.net, OwnNetwork):
        _save_own(folder, model.net)
        write_text(folder / SAMPLER, standalone(model))
    else:
        write_tensors(folder / WEIGHTS, dict(model.net.state_dict()))
    card = msgspec.structs.replace(model.card, digest=_digest(folder))
    write_record(folder / CARD, card)
    return Model(model.net, card, folder)


def _save_pipeline(folder: Path, model: Model) -> Model:
    """What was trained of a student; a teacher is known by its pipeline and its prompts."""
    # They take diffusers.
    from bezierdistill.models.pipeline import PipelineModel, PipelineNetwork, card_digest

    assert isinstance(model.net, PipelineNetwork)
    weights = ""
    if model.net.is_student:
        write_tensors(folder / WEIGHTS, model.net.tensors())
        weights = digest(folder / WEIGHTS)
    card = msgspec.structs.replace(model.card, digest=card_digest(model.card, weights))
    write_record(folder / CARD, card)
    return PipelineModel(model.net, card, folder)


def _save_own(folder: Path, net: OwnNetwork) -> None:
    """Weights by the module's own names, tied ones too; what was added to them lies beside."""
    write_tensors(folder / WEIGHTS, net.weights())
    if net.second is not None:
        write_tensors(folder / SECOND, net.second.tensors())
    if net.rank:
        discard(folder / LORA)
        save_lora(net.inner, folder / LORA)


def _digest(folder: Path) -> str:
    """What the weights in a folder are known by."""
    first = digest(folder / WEIGHTS)
    if not (folder / SECOND).exists():
        return first
    return hashlib.sha256(f"{first} {digest(folder / SECOND)}".encode()).hexdigest()


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder.

    Raises:
        UserError: if it is missing, damaged, or of another format.
    """
    path = folder / CARD
    value = parse_json(path, read_text(path, "model"))
    check_version(path, value, ModelCard)
    return from_json(value, ModelCard, path)


@stage("loading the model")
def load_model(folder: str | Path, teacher: Teacher | Student | None = None) -> Model:
    """Read a model folder.

    Args:
        folder: the folder, or the name of one on the hub, ``OWNER/NAME``, of which safetensors and
            JSON are fetched.
        teacher: of a student that is a user's own module: the teacher that it was distilled from
            (or its student), which gives the module's class and how it is called; its weights do
            not matter.

    Raises:
        UserError: if it is missing, of another format, or its weights are cut off, damaged or of
            another network.
    """
    folder = local_folder(folder)
    card = read_card(folder)
    if card.is_pipeline:
        return _load_pipeline(folder, card)
    weights = read_tensors(folder / WEIGHTS)[0]
    if _digest(folder) != card.digest:
        raise UserError(
            f"{folder / WEIGHTS} differs from the digest in {CARD}: the file was changed or damaged"
        )
    if card.is_own or teacher is not None:
        return Model(_own_network(folder, card, teacher, weights), card, folder)
    try:
        network, size = read_network(card.network), card.conditions.size
        assert not isinstance(network, PipelineConfig)
        trial = not isinstance(network, NetworkConfig)
        if not card.is_of_file:  # whose function may not build on a device without numbers
            check_weights(network, card.shape, size, weights, trial)
        net = network.build(card.shape, 0, size)
        check_fit(net, weights)
        net.load_state_dict(weights)
    except UNBUILDABLE as error:
        told = " ".join(str(error).split())[:500]
        raise UserError(f"{folder} does not describe the network of its weights: {told}") from None
    return Model(net.eval().requires_grad_(False), card, folder)


def _load_pipeline(folder: Path, card: ModelCard) -> Model:
    from bezierdistill.models.pipeline_folder import load_pipeline  # it takes diffusers

    network = read_network(card.network)
    assert isinstance(network, PipelineConfig)
    return load_pipeline(folder, card, network)


def _own_network(
    folder: Path, card: ModelCard, teacher: Teacher | Student | None, weights: Mapping[str, Tensor]
) -> OwnNetwork:
    """The user's module with the weights in a folder, adapters among them."""
    network = read_network(card.network)
    if not isinstance(network, OwnConfig):
        raise UserError(f"{folder} holds a network of ours, expected load_model(folder) alone")
    if teacher is None:
        raise UserError(
            f"{folder} holds weights of your own module {network.name}: give it, as"
            " load_model(folder, teacher), or by --network FILE.py:function"
        )
    _check_called(folder, card, network, teacher)
    second = read_tensors(folder / SECOND)[0] if network.times else {}
    if lacking := sorted({n for n in network.times if second.get(n, torch.empty(0)).ndim != 2}):
        raise UserError(
            f"{folder / SECOND} has no matrix {lacking[0][:80]}: restore it or make it again"
        )
    net = teacher.net.copy({name: len(second[name]) for name in network.times})
    module: nn.Module = net.inner
    check_fit(module, weights)
    module.load_state_dict(dict(weights))
    if net.second is not None:
        net.second.load(second)
    return net.eval().requires_grad_(False)


def _check_called(
    folder: Path, card: ModelCard, network: OwnConfig, given: Teacher | Student
) -> None:
    """Whether a teacher calls its module as that of a student was: else samples would be wrong."""
    from bezierdistill.models.teacher import Student, Teacher  # they use this file

    teacher = given.teacher if isinstance(given, Student) else given
    if not isinstance(teacher, Teacher):
        raise UserError(
            f"{folder} is to be read with a {type(given).__name__}, expected the Teacher that wraps"
            " your module, or its student"
        )
    its = {
        "prediction": network.prediction,
        "schedule": network.schedule,
        "shape": card.shape,
        "numbers of a condition": card.conditions.size,
        "rows of a table": card.conditions.rows,
    }
    for name, other in teacher.called().items():
        if its[name] != other and (name != "shape" or other is not None):
            raise UserError(
                f"{folder} was distilled from a teacher with {name} {str(its[name])[:100]}, the one"
                f" given has {str(other)[:100]}: expected the same"
            )


def refer(model: Model, near: Path, name: str = "") -> TeacherRef:
    """How a record in the folder ``near`` names a model: by digest, and by its path from there, or
    by a name if it has no folder.
    """
    if model.folder is None:
        return TeacherRef(path=name, digest=model.digest)
    return TeacherRef(path=_relative(model.folder, near), digest=model.digest)


def refer_again(ref: TeacherRef, near: Path, other: Path) -> TeacherRef:
    """How a record in the folder ``other`` names the model that one in ``near`` does.

    Raises:
        UserError: if it is not there any more.
    """
    return TeacherRef(path=_relative(find_folder(ref, near), other), digest=ref.digest)


def _relative(folder: Path, near: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), near.resolve())).as_posix()


def find_teacher(ref: TeacherRef, near: Path) -> Model:
    """The teacher that a record in the folder ``near`` names, wherever it lies now.

    It is known by its digest. Looked at are the path that was recorded, from ``near`` and as it
    is, and the folders beside ``near`` and beside its parent.

    Raises:
        UserError: if it is not there any more, or another is in its place.
    """
    return load_model(find_folder(ref, near))


def find_folder(ref: TeacherRef, near: Path) -> Path:
    """The folder of :func:`find_teacher`, which may hold weights of a user's own module.

    Raises:
        UserError: if it is not there any more, or another is in its place.
    """
    for folder in _places(ref, near):
        with suppress(UserError, OSError):
            if read_card(folder).digest == ref.digest:
                return folder
    raise UserError(
        f"{near} needs the teacher {ref.path} (digest {ref.digest[:8]}), which is not there, nor"
        f" beside {near}: move it there, or name its folder by --teachers where the command has it"
    )


def _places(ref: TeacherRef, near: Path) -> Iterator[Path]:
    yield near / ref.path
    yield Path(ref.path)
    for parent in near.resolve().parents[:2]:
        if parent != Path(parent.anchor):
            yield parent / Path(ref.path).name
            yield from (card.parent for card in sorted(parent.glob(f"*/{CARD}")))

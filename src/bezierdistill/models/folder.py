"""A model folder: weights, and a JSON card.

    model.json          :class:`~bezierdistill.records.ModelCard`
    model.safetensors   the averaged weights, whose digest the card holds

A card may come from anybody: everything in it is checked, and no network is built that the weights
do not fill.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from bezierdistill.errors import UserError
from bezierdistill.files import digest, read_tensors, read_text, write_tensors
from bezierdistill.models.model import Model
from bezierdistill.models.weights import check_weights
from bezierdistill.networks.config import NetworkConfig, read_network
from bezierdistill.records import (
    ModelCard,
    TeacherRef,
    check_version,
    from_json,
    parse_json,
    to_json,
    write_record,
)

CARD, WEIGHTS = "model.json", "model.safetensors"
# What building or trying a network of somebody's settings may raise.
UNBUILDABLE = (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, ValueError)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model."""
    return (folder / CARD).exists()


def save_model(folder: Path, model: Model) -> Model:
    """Write a model folder; returns the model with its folder and digest.

    Raises:
        UserError: if what its card says does not agree with itself; nothing is written then.
    """
    from_json(to_json(model.card), ModelCard, folder / CARD)  # as it is read back
    write_tensors(folder / WEIGHTS, dict(model.net.state_dict()))
    card = msgspec.structs.replace(model.card, digest=digest(folder / WEIGHTS))
    write_record(folder / CARD, card)
    return Model(model.net, card, folder)


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder.

    Raises:
        UserError: if it is missing, damaged, or of another format.
    """
    path = folder / CARD
    value = parse_json(path, read_text(path, "model"))
    check_version(path, value, ModelCard)
    return from_json(value, ModelCard, path)


def load_model(folder: str | Path) -> Model:
    """Read a model folder.

    Raises:
        UserError: if it is missing, of another format, or its weights are cut off, damaged or of
            another network.
    """
    folder = Path(folder)
    card = read_card(folder)
    weights = read_tensors(folder / WEIGHTS)[0]
    if digest(folder / WEIGHTS) != card.digest:
        raise UserError(
            f"{folder / WEIGHTS} differs from the digest in {CARD}: the file was changed or damaged"
        )
    try:
        network, size = read_network(card.network), card.conditions.size
        trial = not isinstance(network, NetworkConfig)
        check_weights(network, card.shape, size, weights, trial)
        net = network.build(card.shape, 0, size)
        net.load_state_dict(weights)
    except UNBUILDABLE as error:
        told = " ".join(str(error).split())[:500]
        raise UserError(f"{folder} does not describe the network of its weights: {told}") from None
    return Model(net.eval().requires_grad_(False), card, folder)


def refer(model: Model, near: Path) -> TeacherRef:
    """How a record in the folder ``near`` names a model: by digest, and by its path from there."""
    where = "" if model.folder is None else os.path.relpath(model.folder.resolve(), near.resolve())
    return TeacherRef(path=Path(where).as_posix(), digest=model.card.digest)


def find_teacher(ref: TeacherRef, near: Path) -> Model:
    """The teacher that a record in the folder ``near`` names, wherever it lies now.

    It is known by its digest. Looked at are the path that was recorded, from ``near`` and as it
    is, and the folders beside ``near`` and beside its parent.

    Raises:
        UserError: if it is not there any more, or another is in its place.
    """
    for folder in _places(ref, near):
        with suppress(UserError, OSError):
            if read_card(folder).digest == ref.digest:
                return load_model(folder)
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

"""The folder of a pipeline as a teacher, or of its student: what is read of it, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.files import digest, read_tensors
from bezierdistill.models.pipeline import PROMPTS, PipelineModel, card_digest
from bezierdistill.models.weights import check_fit
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.objects import find_object, is_object
from bezierdistill.pipelines.loop import Loop
from bezierdistill.pipelines.network import PipelineNetwork
from bezierdistill.pipelines.prompts import Prompts, load_prompts
from bezierdistill.pipelines.shared import opened
from bezierdistill.records import ModelCard, TeacherRef

CARD, WEIGHTS = "model.json", "model.safetensors"


def load_pipeline(folder: Path, card: ModelCard, config: PipelineConfig) -> PipelineModel:
    """The teacher or student in a model folder. All that come from one pipeline share its weights,
    but for students with weights of their own.

    Raises:
        UserError: if the pipeline is not there any more, or is another.
    """
    _check_card(folder, card, config)
    shared = opened(folder, config)
    loop = Loop(shared.pipe, config.given, config.guidance, config.plain, config.negative)
    loop.kind = getattr(torch, config.call.kind)
    prompts = find_prompts(folder, card)
    if prompts.fingerprint[:16] != card.conditions.table:
        raise UserError(f"{folder / PROMPTS} holds other prompts than the card says: import again")
    net = PipelineNetwork(loop, config.call, prompts, shared.weights)
    if config.lora or config.full:
        tensors = read_tensors(folder / WEIGHTS)[0]
        layers = tuple({name.rsplit(".lora_", 1)[0] for name in tensors})
        net = net.whole() if config.full else net.add_lora(config.lora, layers, seed=0)
        check_fit(_Bare(net.tensors()), tensors)
        net.load(tensors)
        net.requires_grad_(False)
    if not config.full:
        object.__setattr__(net, "shared", shared)  # as long as the network lives
    return PipelineModel(net.eval(), card, folder)


def _check_card(folder: Path, card: ModelCard, config: PipelineConfig) -> None:
    trained = bool(config.lora) or config.full
    if card.digest != card_digest(card, digest(folder / WEIGHTS) if trained else ""):
        kept = f"{folder / WEIGHTS} or {CARD}" if trained else f"{folder / CARD}"
        raise UserError(
            f"{kept} differs from the digest of the model: the file was changed or damaged"
        )


class _Bare(torch.nn.Module):
    """Tensors by name, to compare others with."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.tensors = dict(tensors)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # pyright: ignore
        return self.tensors


def find_prompts(folder: Path, card: ModelCard) -> Prompts:
    """A model's prompts: its own, or those of the teacher that it was distilled from.

    Raises:
        UserError: if there is none.
    """
    from bezierdistill.models.folder import find_folder

    if (folder / PROMPTS).exists():
        return load_prompts(folder / PROMPTS)
    refs: tuple[TeacherRef, ...] = card.teachers
    for ref in refs:
        if is_object(ref.path):
            found = find_object(ref.path, "teacher", "returns a bezierdistill.PipelineTeacher")
            if isinstance(found, PipelineModel):
                return found.prompts
        elif (kept := find_folder(ref, folder) / PROMPTS).exists():
            return load_prompts(kept)
    raise UserError(f"{folder} has no prompts, nor has a teacher of it: import the pipeline again")

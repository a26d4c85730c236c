"""A student of a pipeline whose weights were all trained, as a transformer of stock diffusers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from bezierdistill.errors import UserError
from bezierdistill.files import whole_folder
from bezierdistill.interop.lora import check_distilled, write_stock
from bezierdistill.models import Model
from bezierdistill.networks.pipeline import PipelineConfig


def export_transformer(model: Model, config: PipelineConfig, out: Path) -> Path:
    """Write a student as a transformer in the pipeline's number type, with a scheduler and a
    README; the folder is whole or absent.

    Raises:
        UserError: if there is no such student.
    """
    if not config.full:
        told = f"an adapter of rank {config.lora}" if config.lora else "the pipeline's own weights"
        raise UserError(
            f"the model is a {config.name} with {told}, expected a network of ours or a student"
            " of --full: write one with an adapter by --to lora"
        )
    check_distilled(model)
    net: Any = model.net
    kind = getattr(torch, config.dtype)
    made = deepcopy(net.module).cpu()
    kept = set(getattr(made, "_keep_in_fp32_modules", None) or ())  # by diffusers too as it loads
    for name, tensor in made.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not kept & {*name.split(".")}:
            tensor.data = tensor.data.to(kind)
    with whole_folder(out) as folder:
        made.save_pretrained(folder / "transformer", safe_serialization=True)
        write_stock(model, config, folder)
    return out

"""Samples of pipelines by prompts, in rows: a column is a prompt."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from bezierdistill.errors import UserError
from bezierdistill.metrics import motion_ratio
from bezierdistill.models.model import Model
from bezierdistill.models.pipeline import PipelineModel
from bezierdistill.reporting.page import Note, Part
from bezierdistill.reporting.samples import COLUMNS, Panel, strips
from bezierdistill.words import counted

STEPS = (28, 4, 2, 1)  # of a teacher: about its own, and cut to as few as a student's


def prompt_rows(models: Mapping[str, Model]) -> list[Part]:
    """Rows of the teacher at its own steps and at as few as the students make, and of the students,
    from the same noise; and the prompts of the columns.
    """
    found = {name: model for name, model in models.items() if isinstance(model, PipelineModel)}
    ranked = sorted(found.items(), key=lambda item: item[1].card.kind == "student")
    panels, told, texts = list[Panel](), list[str](), ()
    for name, model in ranked:
        student = model.card.kind == "student"
        texts = texts or model.prompts.texts[:COLUMNS]
        if model.prompts.texts[:COLUMNS] != texts:
            told.append(f"{name} has other prompts: no samples of it are shown.")
            continue
        for steps in sorted(model.knots) if student else STEPS:
            passes = steps * model.passes
            try:
                x = _drawn(model, passes, len(texts))
            except UserError as error:
                told.append(f"{name} at {counted(passes, 'pass')}: {error}")
            else:
                moved = _motion(x, panels[0].x) if panels else ""
                panels.append(Panel(name, x, counted(passes, "pass") + moved, student))
    if not panels:
        return [Note(line) for line in told]
    columns = "; ".join(f"{k}: {text}" for k, text in enumerate(texts, 1))
    told.insert(0, f"A column is a prompt, its samples start from the same noise. {columns}.")
    return [*map(Note, told), strips(panels)]


def _drawn(model: PipelineModel, passes: int, count: int) -> torch.Tensor:
    """Images or films of the first prompts."""
    return as_pixels(model.images(model.sample(count, passes, conditions=np.arange(count))))


def _motion(x: torch.Tensor, first: torch.Tensor) -> str:
    """How much films ``(N, F, ...)`` move beside those of the first row, in words."""
    if x.ndim != 5 or x.shape != first.shape:
        return ""
    try:
        return f", {motion_ratio(x, first).ratio:.3f} times the motion of the first row"
    except UserError:
        return ", beside a first row that stands still"


def as_pixels(images: np.ndarray) -> torch.Tensor:
    """Images ``(N, H, W, C)`` of bytes as they are drawn, ``(N, C, H, W)`` in [-1, 1]; films
    ``(N, F, ...)`` likewise.
    """
    return torch.from_numpy(images).movedim(-1, -3).float() / 127.5 - 1

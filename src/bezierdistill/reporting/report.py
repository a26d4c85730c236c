"""The report of a run: which of the kinds it is, and what stands on its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bezierdistill.files import write_text
from bezierdistill.progress import stage
from bezierdistill.records import to_json
from bezierdistill.reporting import arenas, models, rounds, stores
from bezierdistill.reporting.making import what_was_run
from bezierdistill.reporting.page import Code, Gallery, Opening, Picture, Section, render
from bezierdistill.reporting.places import without_places
from bezierdistill.reporting.plots import loss_figure
from bezierdistill.reporting.runs import Findings
from bezierdistill.words import counted

MAX_LINES = 8  # of loss curves in a chart
UNFINISHED = "It has not come to its end: the same command continues it."


@stage("report")
def write_report(folder: Path, network: object = None) -> Path:
    """Write ``report.html`` for the folder of a demo, an arena, a recipe, a reflow, a model or a
    curve store.

    Args:
        folder: the folder.
        network: of students that are a user's own module, their teacher.

    Returns:
        The page's path.

    Raises:
        UserError: if the folder holds none of these, or a file in it is damaged.
    """
    found = Findings.open(folder, network)
    parts = arenas.sections(found) if found.is_arena else rounds.sections(found)
    if found.models and not found.is_arena and not found.rounds:
        parts += models.sections(found)
    parts += stores.sections(found, every=not found.models)
    opening = _opening(found)
    parts += [*_losses(found), what_was_run(found, opening.facts), _settings(found)]
    if found.made is not None and not found.made.finished:
        opening = replace(opening, lead=f"{opening.lead} {UNFINISHED}".strip())
    parts = sorted(parts, key=lambda section: section.folded)
    kind = f"bezierdistill {found.verb or 'report'}, folder {found.name}"
    text = render(kind, opening, parts, without_places(folder, found.told))
    write_text(folder / "report.html", text)
    return folder / "report.html"


def _opening(found: Findings) -> Opening:
    if found.is_arena:
        return arenas.opening(found)
    if found.verb == "reflow":
        return rounds.opening(found)
    if found.verb == "recipe" or (len(found.models) == 1 and not found.stores):
        return models.opening(found)
    if len(found.stores) == 1 and not found.models:
        return stores.opening(found)
    held = f"{counted(len(found.models), 'model')} and {counted(len(found.stores), 'curve store')}"
    return Opening(held, f"A folder of several runs. {models.UNJUDGED}")


def _losses(found: Findings) -> list[Section]:
    """A chart for every stage of training, of not too many lines."""
    pictures = []
    for name, every in found.logs().items():
        for k in range(0, len(every), MAX_LINES):
            lines = dict(list(every.items())[k : k + MAX_LINES])
            alt = f"loss against optimizer step, {name}: {', '.join(lines)}"
            pictures.append(Picture(loss_figure(name, lines), alt))
    return [Section("Loss curves", [Gallery("charts", pictures)], True)] if pictures else []


def _settings(found: Findings) -> Section:
    """Those of the whole run, or of every model and store where there is none."""
    described = {found.name: found.held.settings}
    if not found.held.settings:
        cards = {name: model.card for name, model in found.models.items()}
        described = {
            name: card.settings | {"network": card.network} for name, card in cards.items()
        }
        for name, store in found.stores.items():
            described[name] = {k: v for k, v in to_json(store.recipe).items() if k != "scaling"}
    several = len(described) > 1
    codes = [Code("\n".join(_lines(told)), name, several) for name, told in described.items()]
    return Section("Settings", codes, True)


def _lines(values: Mapping[str, Any], group: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{group}{name}.")
        else:
            yield f"{group}{name}: {json.dumps(value, ensure_ascii=False)}"

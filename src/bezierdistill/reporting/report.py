"""The report of a run: which of the kinds it is, and what stands on its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bezierdistill.files import write_atomically
from bezierdistill.reporting import arenas, models, rounds, stores
from bezierdistill.reporting.making import brief, what_was_run
from bezierdistill.reporting.page import Section, code, facts, folded, gallery, page, picture
from bezierdistill.reporting.plots import loss_figure
from bezierdistill.reporting.runs import Run, counted


def write_report(run: Path) -> Path:
    """Write ``report.html`` for the folder of a demo, an arena, a recipe, a reflow, a model or a
    curve store.

    Returns:
        The page's path.

    Raises:
        UserError: if the folder holds none of these, or a file in it is damaged.
    """
    found = Run.open(run)
    kind, lead, first = _opening(found)
    parts = arenas.sections(found) if found.is_arena else []
    parts += rounds.sections(found)
    if found.models and not found.is_arena and not found.rounds:
        parts += models.sections(found)
    parts += stores.sections(found, every=not found.models)
    parts += [*_losses(found), what_was_run(found), *_settings(found)]
    text = page(found.name, kind, lead, facts(first) + brief(found), parts)
    write_atomically(run / "report.html", lambda path: path.write_text(text, encoding="utf-8"))
    return run / "report.html"


def _opening(run: Run) -> tuple[str, str, dict[str, object]]:
    """Kind of run, one sentence that says what it is, and what one sees first."""
    if run.is_arena:
        return arenas.opening(run)
    if run.rounds:
        return rounds.opening(run)
    if run.is_recipe or (len(run.models) == 1 and not run.stores):
        return models.opening(run)
    if len(run.stores) == 1 and not run.models:
        return stores.opening(run)
    held = f"{counted(len(run.models), 'model')} and {counted(len(run.stores), 'curve store')}"
    return (
        "several runs",
        f"A folder with {held}.",
        {"Models": len(run.models), "Curve stores": len(run.stores)},
    )


def _losses(run: Run) -> list[Section]:
    pictures = [
        picture(
            loss_figure(stage, lines), f"loss against optimizer step in {stage}: {', '.join(lines)}"
        )
        for stage, lines in run.logs().items()
    ]
    return [Section("Losses", gallery("charts", pictures))] if pictures else []


def _settings(run: Run) -> list[Section]:
    """Those of the whole run, or of every model and store where there is none."""
    settings = {
        key: value for key, value in run.settings.items() if key != "machine"
    }  # which stands above
    described: dict[str, Any] = {run.name: settings} if settings else {}
    if not described:
        described |= {
            name: {**model.card.get("config", {}), "network": model.card["network"]}
            for name, model in run.models.items()
        }
        described |= {
            name: {key: value for key, value in store.recipe.items() if key != "scaling"}
            for name, store in run.stores.items()
        }
    return [
        Section(
            "Settings",
            "".join(
                folded(name, code("\n".join(_lines(values)))) for name, values in described.items()
            ),
        )
    ]


def _lines(values: Mapping[str, Any], group: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{group}{name}.")
        else:
            yield f"{group}{name}: {json.dumps(value)}"

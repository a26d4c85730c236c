"""The report of models and of a recipe: samples beside real data and the teachers', translations,
knots, the account of passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from bezierdistill.data import Data, load_data
from bezierdistill.models import Model, NetworkConfig, find_teacher, finite
from bezierdistill.noise import noise
from bezierdistill.reporting.page import Section, explained, paragraph, table
from bezierdistill.reporting.runs import Run, counted, number
from bezierdistill.reporting.samples import COLUMNS, IMAGES, Panel, sheets, strips

VECTORS, TEACHER_PASSES, TRANSLATION_PASSES = 1024, 40, 50
ACCOUNT = ("training", "search", "curves", "teachers", "total")


def opening(run: Run) -> tuple[str, str, dict[str, object]]:
    """Kind of run, one sentence, and what one sees first: of the student that a recipe ends with,
    or of a single model.
    """
    model = run.models.get("student") or next(iter(run.models.values()))
    config, kind = model.card.get("config", {}), str(model.card.get("kind", "model"))
    data = run.settings.get("data") or config.get("data")
    target = f" of {data}" if data else ""
    if kind == "student":
        teachers = (
            counted(len(model.card["teachers"]), "teacher")
            if model.card.get("teachers")
            else "a field of one's own"
        )
        jumps = " or ".join(map(str, sorted(model.knots))) or "few"
        does = (
            "A generator"
            if model.source is None
            else f"A translator from {model.card.get('source_data')} to samples"
        )
        lead = (
            f"{does}{target} in {jumps} network passes a sample, distilled along Bezier curves from"
            f" {teachers}."
        )
    else:
        lead = f"A flow to samples{target}: a teacher, from which curves are simulated."
    parameters = sum(parameter.numel() for parameter in model.net.parameters())
    facts = {
        "Data": data,
        "Seed": model.card.get("seed"),
        "Network": _network(model),
        "Parameters": f"{parameters:,}",
    }
    facts |= {
        "Passes a sample": ", ".join(map(str, sorted(model.knots))),
        "Network passes spent": f"{model.spent:,}",
    }
    if run.is_recipe:
        facts["Budget of passes"] = number(run.settings["budget"])
    return (
        "recipe" if run.is_recipe else kind,
        lead,
        {name: value for name, value in facts.items() if value not in (None, "")},
    )


def _network(model: Model) -> str:
    network = model.network
    return (
        f"{network.kind}, {network.width} x {network.depth}"
        if isinstance(network, NetworkConfig)
        else "of diffusers"
    )


def sections(run: Run) -> list[Section]:
    """Samples or translations, and the account."""
    vectors = [
        name for name, model in run.models.items() if model.conditions and model.frequencies is None
    ]
    notes = [
        paragraph(f"{name} takes vectors as conditions: no samples are shown.") for name in vectors
    ]
    starts = {
        name: model
        for name, model in run.models.items()
        if model.source is None and name not in vectors
    }
    others = {name: model for name, model in run.models.items() if model.source is not None}
    parts = (
        [Section("Samples", "".join(notes) + (_samples(starts) if starts else ""))]
        if starts or notes
        else []
    )
    parts += [Section("Translations", _translations(others))] if others else []
    return [*parts, *account(run)]


def account(run: Run) -> list[Section]:
    """Network passes of every model by what they were spent on, and the knots of students."""
    head = [
        part
        for part in ACCOUNT
        if any(part in model.card.get("passes", {}) for model in run.models.values())
    ]
    rows = [
        [name, *(_share(model.card.get("passes", {}), part) for part in head)]
        for name, model in run.models.items()
    ]
    spent = table(
        "Network passes by what they were spent on, and their share of the total.",
        ["model", *head],
        rows,
    )
    knots = [
        [name, counted(passes, "pass"), "  ".join(f"{t:.4g}" for t in times)]
        for name, model in run.models.items()
        for passes, times in sorted(model.knots.items())
    ]
    jumps = (
        table(
            "Knots of the samplers that students were trained for.",
            ["model", "sampler", "knots"],
            knots,
        )
        if knots
        else ""
    )
    words = explained("pass", *(["knots"] if knots else []))
    return [Section("Account of passes", spent + jumps + words)] if head else []


def _share(passes: Mapping[str, int], part: str) -> str:
    if part not in passes:
        return ""
    total = passes.get("total", 0)
    return (
        f"{passes[part]:,}"
        if part == "total" or not total
        else f"{passes[part]:,} ({100 * passes[part] / total:.0f} %)"
    )


def _samples(models: Mapping[str, Model]) -> str:
    """Real data where they are at hand, students at one and two passes, and teachers, those from
    elsewhere among them.
    """
    known = {model.card.get("digest") for model in models.values()}
    everyone = dict(
        sorted(
            {**models, **_teachers(models, known)}.items(),
            key=lambda item: item[1].card.get("kind") != "student",
        )
    )
    first = next(iter(models.values()))
    count = VECTORS if len(first.shape) == 1 else IMAGES
    panels, notes = _real(everyone, first, count), []
    strengths = {
        entry["digest"]: model.strength()
        for model in models.values()
        for entry in model.card.get("teachers", [])
    }
    for name, model in everyone.items():
        student = model.card.get("kind") == "student"
        labels = (
            [k // 6 for k in range(IMAGES)]
            if model.frequencies and len(model.frequencies) >= 6
            else None
        )  # a class a row
        cond = model.condition(range(count), 0, labels)
        strength = (
            strengths.get(model.card.get("digest")) if cond is not None and not student else None
        )
        said = f", guidance {strength:g}" if strength is not None else ""
        for passes in (1, 2) if student else (2, TEACHER_PASSES):
            x = model.generate(
                noise(0, 0, count, model.shape), passes, cond=cond, guidance=strength
            )
            if bool(x.isfinite().all()):
                panels.append(Panel(name, x, counted(passes, "pass") + said, student))
            else:
                notes.append(
                    paragraph(
                        f"{name} makes NaN or infinite numbers at {counted(passes, 'pass')}: no"
                        " samples are shown."
                    )
                )
    note = (
        f"All from the same noise (seed 0): {count:,} samples each. Students make jumps, teachers"
        " Euler steps."
    )
    return "".join([paragraph(note), *notes]) + "".join(sheets(group) for group in _alike(panels))


def _alike(panels: list[Panel]) -> list[list[Panel]]:
    """Panels by the shape of their states, which differ only where a folder holds several runs."""
    groups: dict[tuple[int, ...], list[Panel]] = {}
    for panel in panels:
        groups.setdefault(tuple(panel.x.shape[1:]), []).append(panel)
    return list(groups.values())


def _teachers(models: Mapping[str, Model], known: Collection[object]) -> dict[str, Model]:
    """The teachers of students that lie elsewhere and are still the same."""
    found = {}
    for entry in (entry for model in models.values() for entry in model.card.get("teachers", [])):
        teacher = None if entry["digest"] in known else find_teacher(entry)
        if (
            teacher is not None
            and teacher.source is None
            and not (teacher.conditions and teacher.frequencies is None)
        ):
            found[f"{Path(str(entry['path'])).name} (teacher)"] = teacher
    return found


def _real(models: Mapping[str, Model], first: Model, count: int) -> list[Panel]:
    """Held-out data of the first model that names any which are at hand."""
    for model in models.values():
        with suppress(ValueError, OSError):
            data = load_data(str(model.card.get("config", {}).get("data")))
            if data.shape == first.shape and data.scaling == first.scaling:
                x = _held_out(data, count)
                return [Panel("real data, held out", x, f"{len(x):,} of {Path(data.name).name}")]
    return []


def _held_out(data: Data, most: int) -> Tensor:
    return data.real(min(most, data.count("test") or most), 0, "test")


def _translations(models: Mapping[str, Model]) -> str:
    """Held-out inputs and what each model makes of them, in rows; where the inputs' data are not at
    hand, a line that says so.
    """
    sources: dict[str, dict[str, Model]] = {}
    for name, model in models.items():
        sources.setdefault(str(model.card.get("source_data")), {})[name] = model
    parts: list[str] = []
    for source, own in sources.items():
        count = COLUMNS if len(next(iter(own.values())).shape) == 3 else VECTORS
        try:
            x = _held_out(load_data(source), count)
        except ValueError as error:
            parts.append(paragraph(f"No translations are shown: {error}"))
            continue
        panels = [Panel("input", x, Path(source).name)]
        for name, model in sorted(
            own.items(), key=lambda item: item[1].card.get("kind") != "student"
        ):
            student = model.card.get("kind") == "student"
            counts = (1, 2) if student else (TRANSLATION_PASSES,)
            panels += [
                Panel(name, _translated(model, x, passes), counted(passes, "pass"), student)
                for passes in counts
            ]
        parts += [
            paragraph(
                f"The first held-out inputs of {source}, a column each, and what becomes of them."
            ),
            strips(panels),
        ]
    return "".join(parts)


@torch.no_grad()
def _translated(model: Model, x: Tensor, passes: int) -> Tensor:
    return finite(model.generate(x, passes, "heun" if passes == TRANSLATION_PASSES else "euler"))

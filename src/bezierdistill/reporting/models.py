"""The report of models and of a recipe: samples beside real data and the teachers', translations,
knots, the account of passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from bezierdistill.data import Data, load_data
from bezierdistill.errors import UserError
from bezierdistill.models.folder import find_teacher
from bezierdistill.models.model import Model, finite
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.noise import Stream, noise
from bezierdistill.reporting.page import Note, Opening, Part, Section, Table, Words
from bezierdistill.reporting.runs import Findings, generates
from bezierdistill.reporting.samples import COLUMNS, IMAGES, Panel, sheets, shown_texts, strips
from bezierdistill.words import counted, spelled

VECTORS, TEACHER_PASSES, TRANSLATION_PASSES, ROW = 1024, 40, 50, 6
UNJUDGED = "Nothing here measures quality: look at the samples, or run bezierdistill evaluate."
Models = Mapping[str, Model]


def opening(found: Findings) -> Opening:
    """What the page begins with: of the student that a recipe ends with, or of a single model."""
    model = found.models.get("student") or next(iter(found.models.values()), None)
    asked = found.asked
    if model is None:
        title = f"A generator of {Path(asked.data or 'data').name}"
        return Opening(title, "Nothing is finished yet.", facts={"data": asked.data})
    card, network, data = model.card, model.network, asked.data or model.card.data
    built = "of diffusers"
    if isinstance(network, NetworkConfig):
        built = f"{network.kind}, {network.width} x {network.depth}"
    facts = {
        "data": data,
        "seed": card.seed,
        "network": built,
        "parameters": f"{model.size:,}",
        "passes per sample": ", ".join(map(str, sorted(model.knots))),
        "classes": model.conditions.classes or None,
        "network passes spent": f"{model.spent:,}",
        "budget of passes": asked.budget and f"{asked.budget:,}",
    }
    return Opening(_title(model, data), _verdict(model, asked.budget), UNJUDGED, facts)


def _title(model: Model, data: str | None) -> str:
    card, network = model.card, model.network
    of = Path(data).name if data else "data without a name"
    does = f"A generator of {of}"
    if isinstance(network, PipelineConfig):
        of = f"{Path(network.name).name}, a pipeline with prompts"
        does = f"A student of {of},"
    elif card.domain:
        does = f"A translator from {Path(card.domain_data or 'other data').name} to {of}"
    if card.kind != "student":
        trained = f", trained for {counted(card.steps, 'step')}" if card.steps else ""
        return f"A teacher: {of if card.is_pipeline else f'a flow to {of}'}{trained}"
    teachers = spelled(len(card.teachers), "teacher") if card.teachers else "a field"
    return f"{does} in {_jumps(model)}, distilled from {teachers}"


def _verdict(model: Model, budget: int | None) -> str:
    cost = f"{model.spent:,} network passes"
    if model.card.kind != "student":
        took = f"; its training took {cost}" if model.spent else ""
        return f"It is to be distilled: a sample takes many passes{took}."
    within = f" of a budget of {budget:,}" if budget else ""
    return f"A sample takes {_jumps(model)}; the student and what led to it took {cost}{within}."


def _jumps(student: Model) -> str:
    """``one or two passes``, ``one to four passes``."""
    known = sorted(student.knots)
    if not known:
        return "few passes"
    numbers, last = [spelled(passes, "pass").split()[0] for passes in known], known[-1]
    joint = " to " if len(known) > 2 and last - known[0] == len(known) - 1 else " or "
    few = [numbers[0], numbers[-1]] if joint == " to " else numbers
    return f"{joint.join(few)} {spelled(last, 'pass').split()[1]}"


def sections(found: Findings) -> list[Section]:
    """Samples or translations, and the account."""
    generators, translators = found.generators, found.translators
    prompted = found.prompted
    parts: list[Part] = [
        Note(f"{name} takes vectors as conditions: no samples are shown.")
        for name in found.models
        if name not in generators and name not in translators and name not in prompted
    ]
    parts += _samples(generators) if generators else []
    parts += _prompted(prompted) if prompted else []
    shown = [Section("Samples", parts)] if parts else []
    if translators:
        shown.append(Section("Translations", _translations(translators)))
    return [*shown, *_account(found)]


def _account(found: Findings) -> list[Section]:
    """Network passes of every model by what they were spent on, and the knots of students."""
    spent = {name: model.card.passes.parts for name, model in found.models.items()}
    head = [part for part in next(iter(spent.values())) if any(own[part] for own in spent.values())]
    rows = [
        [name, *(_share(own[part], sum(own.values())) for part in head), f"{sum(own.values()):,}"]
        for name, own in spent.items()
    ]
    knots = [
        [name, counted(passes, "pass"), ", ".join(f"{t:.4g}" for t in times)]
        for name, model in found.models.items()
        for passes, times in sorted(model.knots.items())
    ]
    caption = "Network passes by what they were spent on, and their share of the total."
    parts: list[Part] = [Table(caption, ["model", *head, "total"], rows)] if head else []
    if knots:
        caption = "Knots of the samplers that students were trained for."
        parts.append(Table(caption, ["model", "sampler", "knots"], knots, left=(0, 1, 2)))
    words = Words(["pass", *(["knots"] if knots else [])])
    return [Section("Account of passes", [*parts, words], True)] if parts else []


def _share(passes: int, total: int) -> str:
    return f"{passes:,} ({100 * passes / total:.0f} %)" if passes else ""


def _samples(models: Models) -> list[Part]:
    """Real data where they are at hand, students at one and two passes, and teachers, those from
    elsewhere among them.
    """
    everyone = {**models, **_teachers(models)}
    scales = {ref.digest: m.teacher_scale() for m in models.values() for ref in m.card.teachers}
    told = ["All from the same noise (seed 0). Students make jumps, teachers Euler steps."]
    classes = dict.fromkeys(", ".join(_classes(model)) for model in everyone.values())
    told += [f"Where a model has classes, a row is a class: {own}." for own in classes if own]
    panels = _real(everyone, next(iter(models.values())))
    for name, model in sorted(everyone.items(), key=lambda item: item[1].card.kind != "student"):
        student = model.card.kind == "student"
        for passes in _few(model) if student else (2, TEACHER_PASSES):
            scale = None if student else scales.get(model.card.digest)
            try:
                panels.append(_drawn(name, model, passes, scale))
            except UserError as error:
                told.append(f"{name} at {counted(passes, 'pass')}: {error}")
    groups: dict[tuple[int, ...], list[Panel]] = {}  # a folder of several runs has several shapes
    for panel in panels:
        groups.setdefault(tuple(panel.x.shape[1:]), []).append(panel)
    return [*map(Note, told), *(sheets(group) for group in groups.values())]


def _prompted(models: Models) -> list[Part]:
    from bezierdistill.reporting.prompted import prompt_rows  # it takes diffusers

    return prompt_rows({**_teachers(models, lambda model: model.card.is_pipeline), **models})


def _few(student: Model) -> list[int]:
    """One and two passes, as far as a student has learnt them; else the most that it has."""
    known = student.knots or (1, 2)
    return [passes for passes in (1, 2) if passes in known] or [max(known)]


@torch.no_grad()
def _drawn(name: str, model: Model, passes: int, scale: float | None) -> Panel:
    """Samples of a model; images have a class per row."""
    rows, classes = range(IMAGES if len(model.shape) == 3 else VECTORS), _classes(model)
    labels = [classes[row // ROW % len(classes)] for row in rows] if classes else None
    cond = model.condition(rows, 0, Stream.SAMPLE, labels)
    scale = None if cond is None else scale
    x0 = noise(0, Stream.SAMPLE, rows, model.shape)
    x = finite(model.generate(x0, passes, cond=cond, guidance_scale=scale))
    guided = "" if scale is None else f", guidance scale {scale:g}"
    texts, student = shown_texts(model.scaling, x), model.card.kind == "student"
    x = model.scaling.frames(x)
    return Panel(name, x, counted(passes, "pass") + guided, student, texts)


def _classes(model: Model) -> tuple[str, ...]:
    """The classes on a sheet of a model's images, a name per row; none of vectors."""
    if len(model.shape) != 3:
        return ()
    classes = model.conditions.classes
    return (model.conditions.names or tuple(map(str, range(classes))))[:ROW]


def _teachers(models: Models, wanted: Callable[[Model], bool] = generates) -> dict[str, Model]:
    """The teachers of students that lie elsewhere and are still the same."""
    known, teachers = {model.card.digest for model in models.values()}, {}
    for model in models.values():
        for ref in model.card.teachers:
            if ref.digest not in known:
                with suppress(UserError):
                    teacher = find_teacher(ref, model.folder or Path())
                    if wanted(teacher):
                        teachers[f"{Path(ref.path).name} (teacher)"] = teacher
    return teachers


def _real(models: Models, first: Model) -> list[Panel]:
    """Held-out data of the first model that names any which are at hand."""
    for name in filter(None, (model.card.data for model in models.values())):
        with suppress(UserError, OSError):
            data = load_data(name)
            if data.shape == first.shape and data.scaling == first.scaling:
                return [_held_out("real data, held out", data, first)]
    return []


def _held_out(title: str, data: Data, model: Model, images: int = IMAGES) -> Panel:
    """Held-out states, as many as are shown of a model."""
    count = images if len(model.shape) == 3 else VECTORS
    x = data.real(min(count, data.count("test") or count), 0, "test")
    shown, texts = data.scaling.frames(x), shown_texts(data.scaling, x)
    return Panel(title, shown, f"{len(x):,} of {Path(data.name).name}", texts=texts)


def _translations(models: Models) -> list[Part]:
    """Held-out inputs and what each model makes of them, in rows; where the inputs' data are not at
    hand, a line that says so.
    """
    domains: dict[str, dict[str, Model]] = {}
    for name, model in models.items():
        domains.setdefault(model.card.domain_data or "data without a name", {})[name] = model
    parts: list[Part] = []
    for domain, own in domains.items():
        try:
            data, first = load_data(domain), next(iter(own.values()))
            inputs = _held_out("input", data, first, COLUMNS)
            asked = any(model.condition_size for model in own.values())
            given = data.conditions(len(inputs.x), 0, "test") if asked else None
            panels = [inputs, *_translated(own, inputs, given)]
        except UserError as error:
            parts.append(Note(f"No translations are shown: {error}"))
            continue
        note = f"The first held-out inputs of {domain}, a column each, and what becomes of them."
        parts += [Note(note), strips(panels)]
    return parts


@torch.no_grad()
def _translated(models: Models, inputs: Panel, given: Tensor | None) -> Iterator[Panel]:
    for name, model in sorted(models.items(), key=lambda item: item[1].card.kind != "student"):
        student = model.card.kind == "student"
        for passes in (1, 2) if student else (TRANSLATION_PASSES,):
            cond = given if model.condition_size else None
            sources = inputs.x.reshape(-1, *model.shape)
            x = finite(model.generate(sources, passes, "euler" if student else "heun", cond))
            yield Panel(name, model.scaling.frames(x), counted(passes, "pass"), student)

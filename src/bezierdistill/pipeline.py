"""The stages as functions of their settings, each from folders to a folder: train, simulate, distill.

    data -> train -> teachers -> simulate -> curve store -> distill -> student

Every function checks its input before it writes, and returns what it made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill import __version__
from bezierdistill.couplings import Independent, MinibatchOT
from bezierdistill.curves import BezierCurve
from bezierdistill.data import ArrayData, Data, Scaling, load_data
from bezierdistill.fields import Blend, Field, Guided, NetworkField, parse_weights
from bezierdistill.files import check_entries, claim, locked
from bezierdistill.models import CARD, Model, load_model, save_model
from bezierdistill.objectives import Alignment, CurveRegression, FlowMatching, Loss
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.objectives.curves import CurveBatch, Draw, EitherDraw, EndDraw, KnotsDraw, MapDraw, VelocityDraw
from bezierdistill.progress import progress
from bezierdistill.simulate import Simulation, simulate_rows
from bezierdistill.solvers import time_grid
from bezierdistill.starts import starts
from bezierdistill.store import CurveStore, CurveWriter, repair
from bezierdistill.students import cheapest_knots, check_knots, interval_errors
from bezierdistill.training.config import DistillConfig, SimulateConfig, TrainConfig
from bezierdistill.training.loop import Trainer
from bezierdistill.training.ranks import open_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RUN = "run.json"
DISTILLED = {"weights": list, "teachers": list, "teacher_passes": int, "scaling": dict}  # what a store must say of itself
KNOT_GRID = time_grid(10)
KNOT_CURVES, KNOT_SHARE = 512, 8  # at most so many, and at most one in eight: finding the knots must not cost more than making curves


def train(config: TrainConfig) -> Model:
    """Train a teacher by flow matching.

    Raises:
        ValueError: on bad data or settings, or a folder that holds another run.
    """
    data = load_data(config.data)
    source = None if config.source is None else load_data(config.source)
    if source is not None and source.shape != data.shape:
        raise ValueError(
            f"source {config.source} has shape {source.shape}, data {config.data} {data.shape}: expected one, resize by @16x16"
        )
    conditions = conditions_of(data) if config.conditional else 0
    net = config.network.build(data.shape, config.seed, conditions)
    objective = FlowMatching(MinibatchOT() if config.coupling == "ot" else Independent())
    trainer = Trainer({"teacher": net}, config.loop, config.out, "teacher")
    rows = trainer.share(config.batch)

    def step(nets: Mapping[str, nn.Module], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        x1, cond = data.batch(rows, generator)
        x0 = torch.randn(x1.shape, generator=generator) if source is None else source.batch(rows, generator)[0]
        cond = _dropped(cond, config.drop, generator) if conditions else None
        batch = (x0.to(trainer.device), x1.to(trainer.device), cond if cond is None else cond.to(trainer.device))
        yield "teacher", objective.loss(nets["teacher"], batch, generator)

    spent = config.steps * config.batch * objective.passes * config.loop.accumulate
    more = ({"classes": _frequencies(data)} if conditions else {}) | ({"source_data": config.source} if source else {})
    card = _card("teacher", config, {"training": spent, "total": spent}, data=config.data, **more)
    start = None if source is None else source.scaling
    with _held(config, trainer.fabric) as finished:
        if finished is not None:
            return finished
        trained = trainer.fit(step, config.steps, config.seed)
        model = Model(trained, config.network, data.shape, data.scaling, card=card, conditions=conditions, source=start)
        return _saved(config.out, model, trainer.fabric)


def conditions_of(data: Data) -> int:
    """Numbers of a condition of the data.

    Raises:
        ValueError: if it has none.
    """
    if not data.condition_size:
        raise ValueError(f"{data.name} has neither labels nor conditions, expected some of them for --conditional")
    return data.condition_size


def _dropped(cond: Tensor | None, drop: float, generator: torch.Generator) -> Tensor | None:
    """Conditions with a share of the rows set to zero, which is no condition."""
    return None if cond is None else cond * (torch.rand(len(cond), 1, generator=generator) >= drop)


def _frequencies(data: Data) -> list[float] | None:
    """How often each class occurs in the training side; None if conditions are vectors."""
    if not data.classes or not isinstance(data, ArrayData):
        return None
    counts = np.bincount(data.given["train"], minlength=data.classes)
    return (counts / counts.sum()).tolist()


def simulate(config: SimulateConfig) -> CurveStore:
    """Simulate a blend of teachers and store the paths as curves.

    Raises:
        ValueError: on teachers that do not fit together, weights that do not sum to one, a degree that the guides cannot have, or a
            folder that holds another store.
    """
    teachers = [load_model(folder) for folder in config.teachers]
    through = None if config.through is None else load_model(config.through)
    data, source = (None if name is None else load_data(name) for name in (config.data, config.source))
    _check_alike(config, teachers, data)
    _check_source(config, teachers[0], through, source)
    fabric = open_fabric(config.accelerator)
    device, lead = fabric.device, fabric.global_rank == 0
    strengths = config.strengths()
    fields = [_field(teacher, device, strengths) for teacher in teachers]
    blend = Blend(fields, parse_weights(config.weights))
    back = None if through is None else NetworkField(through.net.to(device))
    simulation = Simulation(blend, config.degree, config.guides, fields, config.steps, config.solver, data is not None, back)
    draw = starts(teachers[0], config.seed, data or source, strengths if len(strengths) == 2 else None, config.noise == "seed")
    recipe = _recipe(config, teachers, through, source, blend)
    _refuse_other(config.out, RUN, CARD)

    def on_device(start: int, rows: int) -> tuple[Tensor, Tensor | None]:
        states, cond = draw(start, rows)
        return states.to(device), None if cond is None else cond.to(device)

    with locked(config.out) if lead else nullcontext(), progress("simulate", config.count) as advance:
        if config.repair and lead:
            repair(config.out, recipe)
        writer = CurveWriter(config.out, recipe, lead)
        fabric.barrier()
        share = slice(fabric.global_rank, None, fabric.world_size)
        plans = simulate_rows(simulation, on_device, config.count, writer, config.batch, advance, config.seed, share)
        fabric.barrier()
        if lead:
            writer.close(plans)
        fabric.barrier()
    return CurveStore.open(config.out)


def _field(teacher: Model, device: torch.device, strengths: tuple[float, ...]) -> Field:
    field = NetworkField(teacher.net.to(device))
    if not strengths:
        return field
    if not teacher.conditions:
        raise ValueError(f"teacher {teacher.folder} takes no condition and cannot be guided: train it with --conditional, or no --guidance")
    if dict(teacher.card.get("config", {})).get("drop") == 0:
        raise ValueError(f"teacher {teacher.folder} never went without its condition and cannot be guided: train it with --drop above 0")
    return Guided(field, strengths[0] if len(strengths) == 1 else None)


def _check_source(config: SimulateConfig, first: Model, through: Model | None, source: Data | None) -> None:
    """Whether the curves start where the first flow on them does."""
    if through is not None and first.source is not None:
        raise ValueError(
            f"teachers translate from a domain of their own, expected teachers that start from noise with --through {config.through}"
        )
    if source is not None and first.conditions:
        raise ValueError(f"teachers take conditions and source is {config.source}: a path from another domain has none, expected others")
    start = first.source if through is None else through.scaling
    if through is not None and (through.source is not None or through.conditions or through.shape != first.shape):
        raise ValueError(f"through {config.through} is no unconditional flow from noise to states of shape {first.shape} as the teachers'")
    if (source is None) != (start is None):
        raise ValueError(
            f"source is {config.source} and teachers start from {'noise' if start is None else 'another domain'}: "
            "give --source for a flow that translates or a pair of flows with --through, and for no other"
        )
    if source is not None and (source.shape != first.shape or source.scaling != start):
        raise ValueError(f"source {config.source} of shape {source.shape} is not the data that the first flow was trained on")


def _check_alike(config: SimulateConfig, teachers: list[Model], data: Data | None) -> None:
    first = teachers[0]
    for folder, teacher in zip(config.teachers, teachers, strict=True):
        if teacher.conditions != first.conditions or teacher.source != first.source:
            raise ValueError(
                f"teacher {folder} takes {teacher.conditions} numbers as condition and {config.teachers[0]} {first.conditions}, "
                "or they start from different domains: expected teachers that take and start from the same"
            )
        if teacher.shape != first.shape:
            raise ValueError(
                f"teacher {folder} makes states of shape {teacher.shape}, {config.teachers[0]} of {first.shape}: expected one shape"
            )
        if teacher.scaling != first.scaling:
            raise ValueError(f"teacher {folder} was trained in other units than {config.teachers[0]}: train both on the same data")
    _check_data(config.data, data, first)


def _check_data(name: str | None, data: Data | None, teacher: Model) -> None:
    if data is not None and (data.shape != teacher.shape or data.scaling != teacher.scaling):
        raise ValueError(f"data {name} of shape {data.shape} is not what the teachers (shape {teacher.shape}) were trained on")


def _recipe(config: SimulateConfig, teachers: list[Model], through: Model | None, source: Data | None, blend: Blend) -> dict[str, Any]:
    first, strengths = teachers[0], config.strengths()
    spent = {teacher.card["digest"]: teacher.spent for teacher in [*teachers, *([] if through is None else [through])]}
    more: dict[str, Any] = {}  # keys that only some stores have: others stay as they were
    if first.conditions:
        ranged = len(strengths) == 2
        more |= {"conditions": first.conditions + ranged, "classes": first.frequencies, "guidance": list(strengths) if ranged else None}
        more |= {"guided": list(strengths)}
    if source is not None:
        more |= {"source": config.source, "source_scaling": asdict(source.scaling)}
    if through is not None:
        more |= {"through": {"path": str(through.folder and through.folder.resolve()), "digest": through.card["digest"]}}
    return {
        **more,
        "degree": config.degree,
        "shape": list(teachers[0].shape),
        "guides": config.guides,
        "weights": blend.weights.tolist(),
        "teachers": [
            {"path": str(folder.resolve()), "digest": teacher.card["digest"]}
            for folder, teacher in zip(config.teachers, teachers, strict=True)
        ],
        "teacher_passes": sum(spent.values()),
        "count": config.count,
        "data": config.data,
        "seed": config.seed,
        "steps": config.steps,
        "solver": config.solver,
        "scaling": asdict(teachers[0].scaling),
        "batch": config.batch,
        "points": config.points,
        "noise": config.noise,
    }


def distill(config: DistillConfig) -> Model:
    """Distil stored curves into a student: regression along the curves, then law alignment with real data if asked for.

    Raises:
        ValueError: on a bad store, teachers other than those that made it, or a folder that holds another run.
    """
    store = CurveStore.open(config.curves)
    check_entries(store.recipe, DISTILLED, str(store.folder))
    teachers = _teachers(store)
    best = teachers[int(torch.tensor(store.recipe["weights"], dtype=torch.float64).mean(1).argmax())]
    conditions = store.recipe.get("conditions", 0)
    net = best.network.build(best.shape, config.seed, conditions)
    if config.init == "teacher":
        _start_from(net, best.net)
    data = None if config.data is None else load_data(config.data)
    _check_data(config.data, data, best)
    _check_conditions(config, store, data)
    given = None if config.knots is None else _parse_knots(config.knots, config.passes)
    trainer = Trainer({"student": net}, config.loop, config.out, "curves")
    _check_whole(store, trainer)
    with _held(config, trainer.fabric) as finished:
        return finished or _saved(config.out, _distilled(config, store, trainer, best, data, given), trainer.fabric)


def _distilled(
    config: DistillConfig, store: CurveStore, trainer: Trainer, best: Model, data: Data | None, given: tuple[float, ...] | None
) -> Model:
    """Train the student; ``given`` are its knots, if they are not to be found."""
    spent = config.steps * config.batch * CurveRegression.passes * config.loop.accumulate
    schedules = {} if config.objective == "velocity" else _schedules(config.passes, given)
    trained = _regress(config, store, trainer, schedules)
    if config.objective == "map" and given is None and config.passes > 1:
        schedules, searched = _best_schedules(trained, store, config.passes, trainer.device)
        spent += searched
    if data is not None:
        trained, more = _align(config, store, data, trained, schedules)
        spent += more
    passes = {"training": spent, "curves": store.manifest["passes"], "teachers": store.recipe["teacher_passes"]}
    card = _card(
        "student", config, passes | {"total": sum(passes.values())}, teachers=store.recipe["teachers"], weights=store.recipe["weights"]
    )
    kept = {key: store.recipe[key] for key in ("classes", "guidance", "guided") if key in store.recipe}
    kept |= {"source_data": store.recipe["source"]} if "source" in store.recipe else {}
    scaling, source = Scaling.from_json(store.recipe["scaling"]), store.recipe.get("source_scaling")
    start = None if source is None else Scaling.from_json(source)
    conditions = store.recipe.get("conditions", 0)
    return Model(trained, best.network, best.shape, scaling, schedules, {**card, **kept}, conditions=conditions, source=start)


def _start_from(net: nn.Module, teacher: nn.Module) -> None:
    """Copy a teacher's weights; conditions that only the student takes start without effect."""
    own, given = net.state_dict(), teacher.state_dict()
    for key, tensor in own.items():
        if tensor.shape == given[key].shape:
            tensor.copy_(given[key])
        else:
            tensor.zero_()[:, : given[key].shape[1]] = given[key]


def _check_conditions(config: DistillConfig, store: CurveStore, data: Data | None) -> None:
    if data is None:
        return
    if any(strength != 1 for strength in store.recipe.get("guided", [])):
        raise ValueError("the curves are guided, their law is not that of the data, and alignment would undo it: expected --align 0")
    size = store.recipe.get("conditions", 0)
    if size and size != data.condition_size:
        raise ValueError(
            f"curves have conditions of {size} numbers, data {config.data} of {data.condition_size}: expected the teachers' data"
        )


def _check_whole(store: CurveStore, trainer: Trainer) -> None:
    """Refuse to train on a damaged store; of several ranks each reads its part."""
    for problem in store.verify(slice(trainer.rank, None, trainer.ranks)):
        raise ValueError(f"{problem}: the simulate that made it makes it again with --repair")


def _teachers(store: CurveStore) -> list[Model]:
    teachers = []
    given, weights = len(store.recipe["teachers"]), len(store.recipe["weights"])
    if given != weights or not given:
        raise ValueError(f"{store.folder} names {given} teachers and has weights of {weights}: expected as many, simulate again")
    for entry in store.recipe["teachers"]:
        check_entries(entry, {"path": str, "digest": str}, f"a teacher of {store.folder}")
        teacher = load_model(entry["path"])
        if teacher.card["digest"] != entry["digest"]:
            raise ValueError(f"{store.folder} was made by another teacher than the one now at {entry['path']}: simulate again")
        teachers.append(teacher)
    return teachers


def _parse_knots(text: str, passes: int) -> tuple[float, ...]:
    try:
        inner = [float(number) for number in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"knots are {text!r}, expected {passes - 1} numbers between 0 and 1, separated by commas") from None
    if len(inner) != passes - 1:
        raise ValueError(f"{len(inner)} knots for {passes} passes, expected {passes - 1} between 0 and 1")
    return check_knots((0.0, *inner, 1.0))


def _schedules(passes: int, given: tuple[float, ...] | None) -> dict[int, tuple[float, ...]]:
    schedules = {k: time_grid(k) for k in range(1, passes + 1)}
    return schedules if given is None else schedules | {passes: given}


def _best_schedules(net: nn.Module, store: CurveStore, passes: int, device: torch.device) -> tuple[dict[int, tuple[float, ...]], int]:
    """Knots for every number of passes by dynamic programming, and the network passes that measuring the errors cost."""
    rows = torch.arange(_knot_curves(store))
    curve, cond = store.take(rows)
    curve = BezierCurve(curve.points.to(device))
    costs = interval_errors(net.to(device), curve, KNOT_GRID, None if cond is None else cond.to(device))
    return {k: cheapest_knots(costs, KNOT_GRID, k) for k in range(1, passes + 1)}, knots_cost(store)


def knots_cost(store: CurveStore) -> int:
    """Network passes that finding the knots costs: every interval of the grid on some of the curves."""
    return len(KNOT_GRID) * (len(KNOT_GRID) - 1) // 2 * _knot_curves(store)


def _knot_curves(store: CurveStore) -> int:
    return min(KNOT_CURVES, max(1, len(store) // KNOT_SHARE))


def _regress(config: DistillConfig, store: CurveStore, trainer: Trainer, schedules: Mapping[int, tuple[float, ...]]) -> nn.Module:
    knots = KnotsDraw(tuple(schedules.values()))
    draws: dict[str, Draw] = {
        "end": EndDraw() if config.passes == 1 else EitherDraw(EndDraw(), knots),
        "map": MapDraw(),
        "knots": knots,
        "velocity": VelocityDraw(),
    }
    objective = CurveRegression(draws[config.objective], Loss(config.huber), config.power)
    batches = _batches(store, trainer, config.batch, config.seed if config.epochs else None)

    def step(nets: Mapping[str, nn.Module], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        yield "student", objective.loss(nets["student"], batches(generator), generator)

    return trainer.fit(step, config.steps, config.seed)


def _align(
    config: DistillConfig, store: CurveStore, data: Data, net: nn.Module, schedules: Mapping[int, tuple[float, ...]]
) -> tuple[nn.Module, int]:
    """Align the law of every sampler with real data; returns the network and the passes that this cost."""
    size = config.align_batch or config.batch
    trainer = Trainer({"student": net}, config.loop, config.out, "alignment", {"student": config.align_lr})
    rows = trainer.share(size, 2)
    batches = _batches(store, trainer, size, config.seed + 1 if config.epochs else None)
    objective = Alignment(tuple(schedules.values()), Loss(config.huber), config.anchor, data.scaling.clamp)

    def step(nets: Mapping[str, nn.Module], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        batch = batches(generator)
        real, cond = data.batch(REAL_ROWS * rows, generator)
        cond = None if cond is None or not store.condition_size else cond.to(trainer.device)
        yield "student", objective.loss(nets["student"], batch, real.to(trainer.device), cond)

    spent = config.align * size * objective.passes * config.loop.accumulate
    return trainer.fit(step, config.align, config.seed + 1), spent


def _batches(store: CurveStore, trainer: Trainer, batch: int, seed: int | None) -> Callable[[torch.Generator], CurveBatch]:
    """What gives this rank's share of batch after batch: drawn with the generator, or with a seed the next one of an epoch."""
    rows = trainer.share(batch)
    if seed is None:
        return lambda generator: _to(trainer, store.batch(rows, generator))

    @cache
    def ahead() -> Iterator[CurveBatch]:  # opened at the first batch, when the trainer knows where it goes on
        first, part = trainer.done * trainer.config.accumulate, slice(trainer.rank * rows, (trainer.rank + 1) * rows)
        return store.epochs(batch, seed, first, part)

    return lambda _: _to(trainer, next(ahead()))


def _to(trainer: Trainer, batch: CurveBatch) -> CurveBatch:
    curve, cond = batch
    return BezierCurve(curve.points.to(trainer.device)), None if cond is None else cond.to(trainer.device)


@contextmanager
def _held(config: TrainConfig | DistillConfig, fabric: Fabric) -> Iterator[Model | None]:
    """Take a folder for a run, or check that it holds the same run, which is then continued; yields the model if that is finished."""
    lead = fabric.global_rank == 0
    with locked(config.out) if lead else nullcontext():
        if lead:
            claim(config.out / RUN, _settings(config), "run")
        fabric.barrier()
        yield load_model(config.out) if (config.out / CARD).exists() else None


def _saved(out: Path, model: Model, fabric: Fabric) -> Model:
    """The model, written by the first rank and read by all."""
    if fabric.global_rank == 0:
        save_model(out, model)
    fabric.barrier()
    return load_model(out)


def _refuse_other(out: Path, *marks: str) -> None:
    if (out.exists() and not out.is_dir()) or any((out / mark).exists() for mark in marks):
        raise ValueError(f"{out} already holds a run of another kind: choose another --out")


def _settings(config: Any) -> dict[str, Any]:
    plain = json.loads(json.dumps(asdict(config), default=str))
    return {key: value for key, value in plain.items() if key != "out"}


def _card(kind: str, config: TrainConfig | DistillConfig, passes: dict[str, int], **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "package": __version__,
        "seed": config.seed,
        "step": config.steps,
        "passes": passes,
        "config": _settings(config),
        **more,
    }

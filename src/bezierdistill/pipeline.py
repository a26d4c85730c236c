"""The stages as functions of their settings, each from folders to a folder: train, simulate, distill.

    data -> train -> teachers -> simulate -> curve store -> distill -> student

Every function checks its input before it writes, and returns what it made.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill import __version__
from bezierdistill.couplings import Independent, MinibatchOT
from bezierdistill.curves import BezierCurve
from bezierdistill.data import Data, Scaling, load_data
from bezierdistill.fields import Blend, NetworkField, parse_weights
from bezierdistill.files import claim
from bezierdistill.models import CARD, Model, load_model, save_model
from bezierdistill.objectives import Alignment, CurveRegression, FlowMatching, Loss
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.objectives.curves import Draw, EitherDraw, EndDraw, KnotsDraw, MapDraw, VelocityDraw
from bezierdistill.progress import progress
from bezierdistill.simulate import Simulation, simulate_rows
from bezierdistill.solvers import time_grid
from bezierdistill.sources import BLOCK, block_generator, in_blocks, noise
from bezierdistill.store import CurveStore, CurveWriter
from bezierdistill.students import cheapest_knots, check_knots, interval_errors
from bezierdistill.training.config import DistillConfig, SimulateConfig, TrainConfig
from bezierdistill.training.loop import Trainer, open_fabric

RUN = "run.json"
KNOT_GRID = time_grid(10)
KNOT_CURVES, KNOT_SHARE = 512, 8  # at most so many, and at most one in eight: finding the knots must not cost more than making curves


def train(config: TrainConfig) -> Model:
    """Train a teacher by flow matching.

    Raises:
        ValueError: on bad data or settings, or a folder that holds another run.
    """
    data = load_data(config.data)
    net = config.network.build(data.shape, config.seed)
    objective = FlowMatching(MinibatchOT() if config.coupling == "ot" else Independent())
    trainer = Trainer({"teacher": net}, config.loop, config.out, "teacher")
    _claim(config.out, config)

    def step(nets: Mapping[str, nn.Module], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        x1 = data.batch(config.batch, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        batch = (x0.to(trainer.device), x1.to(trainer.device), None)
        yield "teacher", objective.loss(nets["teacher"], batch, generator)

    trained = trainer.fit(step, config.steps, config.seed, config.resume)
    spent = config.steps * config.batch * objective.passes
    card = _card("teacher", config, {"training": spent, "total": spent}, data=config.data)
    return save_model(config.out, Model(trained, config.network, data.shape, data.scaling, card=card))


def simulate(config: SimulateConfig) -> CurveStore:
    """Simulate a blend of teachers and store the paths as curves.

    Raises:
        ValueError: on teachers that do not fit together, weights that do not sum to one, a degree that the guides cannot have, or a
            folder that holds another store.
    """
    teachers = [load_model(folder) for folder in config.teachers]
    data = None if config.data is None else load_data(config.data)
    _check_alike(config, teachers, data)
    device = open_fabric(config.accelerator).device
    fields = [NetworkField(teacher.net.to(device)) for teacher in teachers]
    blend = Blend(fields, parse_weights(config.weights))
    simulation = Simulation(blend, config.degree, config.guides, fields, config.steps, config.solver, data is not None)
    _refuse_other(config.out, RUN, CARD)
    writer = CurveWriter(config.out, _recipe(config, teachers, blend), config.resume)

    def draw(start: int, rows: int) -> Tensor:
        if data is None:
            return noise(config.seed, start, rows, teachers[0].shape).to(device)
        return in_blocks(start, rows, partial(_data_block, data, config.seed)).to(device)

    with progress("simulate", config.count) as advance:
        simulate_rows(simulation, draw, config.count, writer, config.batch, advance)
    return CurveStore.open(config.out)


def _data_block(data: Data, seed: int, block: int) -> Tensor:
    return data.batch(BLOCK, block_generator(seed, block))


def _check_alike(config: SimulateConfig, teachers: list[Model], data: Data | None) -> None:
    first = teachers[0]
    for folder, teacher in zip(config.teachers, teachers, strict=True):
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


def _recipe(config: SimulateConfig, teachers: list[Model], blend: Blend) -> dict[str, Any]:
    return {
        "degree": config.degree,
        "shape": list(teachers[0].shape),
        "guides": config.guides,
        "weights": blend.weights.tolist(),
        "teachers": [
            {"path": str(folder.resolve()), "digest": teacher.card["digest"]}
            for folder, teacher in zip(config.teachers, teachers, strict=True)
        ],
        "teacher_passes": sum({teacher.card["digest"]: teacher.spent for teacher in teachers}.values()),
        "count": config.count,
        "data": config.data,
        "seed": config.seed,
        "steps": config.steps,
        "solver": config.solver,
        "scaling": asdict(teachers[0].scaling),
    }


def distill(config: DistillConfig) -> Model:
    """Distil stored curves into a student: regression along the curves, then law alignment with real data if asked for.

    Raises:
        ValueError: on a bad store, teachers other than those that made it, or a folder that holds another run.
    """
    store = CurveStore.open(config.curves)
    teachers = _teachers(store)
    best = teachers[int(torch.tensor(store.recipe["weights"]).mean(1).argmax())]
    net = copy.deepcopy(best.net) if config.init == "teacher" else best.network.build(best.shape, config.seed)
    data = None if config.data is None else load_data(config.data)
    _check_data(config.data, data, best)
    given = None if config.knots is None else _parse_knots(config.knots, config.passes)
    open_fabric(config.loop.accelerator, config.loop.precision)
    _claim(config.out, config)

    spent = config.steps * config.batch * CurveRegression.passes
    schedules = {} if config.objective == "velocity" else _schedules(config.passes, given)
    trained = _regress(config, store, net, schedules)
    if config.objective == "map" and given is None and config.passes > 1:
        schedules, searched = _best_schedules(trained, store, config.passes)
        spent += searched
    if data is not None:
        trained, more = _align(config, store, data, trained, schedules)
        spent += more
    passes = {"training": spent, "curves": store.manifest["passes"], "teachers": store.recipe["teacher_passes"]}
    card = _card(
        "student", config, passes | {"total": sum(passes.values())}, teachers=store.recipe["teachers"], weights=store.recipe["weights"]
    )
    scaling = Scaling.from_json(store.recipe["scaling"])
    return save_model(config.out, Model(trained, best.network, best.shape, scaling, schedules, card))


def _teachers(store: CurveStore) -> list[Model]:
    teachers = []
    for entry in store.recipe["teachers"]:
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


def _best_schedules(net: nn.Module, store: CurveStore, passes: int) -> tuple[dict[int, tuple[float, ...]], int]:
    """Knots for every number of passes by dynamic programming, and the network passes that measuring the errors cost."""
    curve = store.curves(torch.arange(_knot_curves(store)))
    costs = interval_errors(net, curve, KNOT_GRID)
    return {k: cheapest_knots(costs, KNOT_GRID, k) for k in range(1, passes + 1)}, knots_cost(store)


def knots_cost(store: CurveStore) -> int:
    """Network passes that finding the knots costs: every interval of the grid on some of the curves."""
    return len(KNOT_GRID) * (len(KNOT_GRID) - 1) // 2 * _knot_curves(store)


def _knot_curves(store: CurveStore) -> int:
    return min(KNOT_CURVES, max(1, len(store) // KNOT_SHARE))


def _regress(config: DistillConfig, store: CurveStore, net: nn.Module, schedules: Mapping[int, tuple[float, ...]]) -> nn.Module:
    knots = KnotsDraw(tuple(schedules.values()))
    draws: dict[str, Draw] = {
        "end": EndDraw() if config.passes == 1 else EitherDraw(EndDraw(), knots),
        "map": MapDraw(),
        "knots": knots,
        "velocity": VelocityDraw(),
    }
    objective = CurveRegression(draws[config.objective], Loss(config.huber), config.power)
    trainer = Trainer({"student": net}, config.loop, config.out, "curves")

    def step(nets: Mapping[str, nn.Module], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        batch = _to(trainer, store.batch(config.batch, generator))
        yield "student", objective.loss(nets["student"], (batch, None), generator)

    return trainer.fit(step, config.steps, config.seed, config.resume)


def _align(
    config: DistillConfig, store: CurveStore, data: Data, net: nn.Module, schedules: Mapping[int, tuple[float, ...]]
) -> tuple[nn.Module, int]:
    """Align the law of every sampler with real data; returns the network and the passes that this cost."""
    trainer = Trainer({"student": net}, config.loop, config.out, "alignment", {"student": config.align_lr})
    objective = Alignment(tuple(schedules.values()), Loss(config.huber), config.anchor, data.scaling.clamp)

    def step(nets: Mapping[str, nn.Module], generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        curve = _to(trainer, store.batch(config.batch, generator))
        real = data.batch(REAL_ROWS * config.batch, generator).to(trainer.device)
        yield "student", objective.loss(nets["student"], (curve, None), real)

    return trainer.fit(step, config.align, config.seed + 1, config.resume), config.align * config.batch * objective.passes


def _to(trainer: Trainer, curve: BezierCurve) -> BezierCurve:
    return BezierCurve(curve.points.to(trainer.device))


def _claim(out: Path, config: TrainConfig | DistillConfig) -> None:
    """Take a folder for a run, or check that it holds the same run and may be continued."""
    if not config.resume and any((out / mark).exists() for mark in (RUN, CARD)):
        raise ValueError(f"{out} already holds a run: choose another --out, or --resume to continue it")
    claim(out / RUN, _settings(config), "run")


def _refuse_other(out: Path, *marks: str) -> None:
    if (out.exists() and not out.is_dir()) or any((out / mark).exists() for mark in marks):
        raise ValueError(f"{out} already holds a run of another kind: choose another --out")


def _settings(config: Any) -> dict[str, Any]:
    plain = json.loads(json.dumps(asdict(config), default=str))
    return {key: value for key, value in plain.items() if key not in ("resume", "out")}


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

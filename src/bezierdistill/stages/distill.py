"""Stored curves to a student: regression along them, then law alignment with real data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve
from bezierdistill.data import Data, Scaling, load_data
from bezierdistill.errors import UserError
from bezierdistill.files import check_entries
from bezierdistill.knots import best_schedules, even_schedules, parse_knots
from bezierdistill.models import CARD, Model, NetworkConfig, load_model
from bezierdistill.objectives import Alignment, CurveRegression, Loss
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.objectives.curve_regression import (
    CurveBatch,
    Draw,
    EitherDraw,
    EndDraw,
    KnotsDraw,
    MapDraw,
    VelocityDraw,
)
from bezierdistill.stages.distill import DistillConfig
from bezierdistill.stages.folders import card_of, held, saved
from bezierdistill.stages.simulate import check_data
from bezierdistill.store import CurveStore
from bezierdistill.store.manifest import MEND
from bezierdistill.training.loop import Trainer

NETWORK = {"kind": str, "width": int, "depth": int, "patch": int}
MOST_WIDTH, MOST_DEPTH = 4096, 256  # of a network that a store names, which may come from anybody
DISTILLED = {
    "weights": list,
    "teachers": list,
    "teacher_passes": int,
    "scaling": dict,
}  # what a store must say of itself


def distill(config: DistillConfig) -> Model:
    """Distil stored curves into a student: regression along the curves, then law alignment with
    real data if asked for.

    Raises:
        UserError: on a bad store, teachers other than those that made it, or a folder that holds
            another run.
    """
    store = CurveStore.open(config.curves)
    check_entries(store.recipe, DISTILLED, str(store.folder))
    best = _best(config, store)
    net = best.network.build(best.shape, config.seed, store.condition_size)
    if config.init == "teacher":
        _start_from(net, best.net)
    data = None if config.data is None else load_data(config.data)
    check_data(config.data, data, best)
    _check_conditions(config, store, data)
    given = None if config.knots is None else parse_knots(config.knots, config.passes)
    trainer = Trainer({"student": net}, config.loop, config.out, "curves")
    trainer.share(config.batch)  # checks, before the folder is taken and hours are spent
    if config.align:
        trainer.share(config.align_batch or config.batch, 2)
    if not (config.out / CARD).exists():  # else there is nothing left to train
        _check_whole(store, trainer)
    with held("distill", config, trainer.fabric) as finished:
        return finished or saved(
            config.out, _distilled(config, store, trainer, best, data, given), trainer.fabric
        )


def _distilled(
    config: DistillConfig,
    store: CurveStore,
    trainer: Trainer,
    best: Model,
    data: Data | None,
    given: tuple[float, ...] | None,
) -> Model:
    """Train the student; ``given`` are its knots, if they are not to be found."""
    spent = config.steps * config.batch * CurveRegression.passes * config.loop.accumulate
    schedules = {} if config.objective == "velocity" else even_schedules(config.passes, given)
    trained = _regress(config, store, trainer, schedules)
    if config.objective == "map" and given is None and config.passes > 1:
        schedules, searched = best_schedules(trained, store, config.passes, trainer.device)
        spent += searched
    if data is not None:
        trained, more = _align(config, store, data, trained, schedules)
        spent += more
    passes = {
        "training": spent,
        "curves": store.manifest["passes"],
        "teachers": store.recipe["teacher_passes"],
    }
    card = card_of(
        "student",
        config,
        passes | {"total": sum(passes.values())},
        teachers=store.recipe["teachers"],
        weights=store.recipe["weights"],
    )
    kept = {
        key: store.recipe[key] for key in ("classes", "guidance", "guided") if key in store.recipe
    }
    kept |= {"source_data": store.recipe["source"]} if "source" in store.recipe else {}
    scaling, source = Scaling.from_json(store.recipe["scaling"]), store.recipe.get("source_scaling")
    start = None if source is None else Scaling.from_json(source)
    return Model(
        trained,
        best.network,
        best.shape,
        scaling,
        schedules,
        {**card, **kept},
        conditions=store.condition_size,
        source=start,
    )


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
        raise UserError(
            "the curves are guided, their law is not that of the data, and alignment would undo it:"
            " expected --align 0"
        )
    size = store.condition_size
    if size and size != data.condition_size:
        raise UserError(
            f"curves have conditions of {size} numbers, data {config.data} of"
            f" {data.condition_size}: expected the teachers' data"
        )


def _check_whole(store: CurveStore, trainer: Trainer) -> None:
    """Refuse to train on a damaged store; of several ranks each reads its part."""
    for problem in store.verify(slice(trainer.rank, None, trainer.ranks)):
        raise UserError(f"{problem}: {MEND}")


def _best(config: DistillConfig, store: CurveStore) -> Model:
    """The teacher whose network the student has; of a field that is no model of ours, what the
    store says of it, without weights.
    """
    if "network" not in store.recipe:
        teachers = _teachers(store)
        return teachers[
            int(torch.tensor(store.recipe["weights"], dtype=torch.float64).mean(1).argmax())
        ]
    if config.init == "teacher":
        raise UserError(
            f"{store.folder} was made by a field that is no model of ours and has no weights to"
            " start from: expected --init scratch"
        )
    fields = check_entries(store.recipe["network"], NETWORK, f"the network of {store.folder}")
    network = NetworkConfig(**{name: fields[name] for name in NETWORK})
    if max(network.width, network.patch) > MOST_WIDTH or network.depth > MOST_DEPTH:
        raise UserError(
            f"{store.folder} names a network of {network.width} x {network.depth}, expected"
            f" {MOST_WIDTH} x {MOST_DEPTH} or less"
        )
    shape = tuple(store.recipe["shape"])
    return Model(nn.Identity(), network, shape, Scaling.from_json(store.recipe["scaling"], shape))


def _teachers(store: CurveStore) -> list[Model]:
    teachers = []
    given, weights = len(store.recipe["teachers"]), len(store.recipe["weights"])
    if given != weights or not given:
        raise UserError(
            f"{store.folder} names {given} teachers and has weights of {weights}: expected as many,"
            " simulate again"
        )
    for entry in store.recipe["teachers"]:
        check_entries(entry, {"path": str, "digest": str}, f"a teacher of {store.folder}")
        teacher = load_model(entry["path"])
        if teacher.card["digest"] != entry["digest"]:
            raise UserError(
                f"{store.folder} was made by another teacher than the one now at {entry['path']}:"
                " simulate again"
            )
        teachers.append(teacher)
    return teachers


def _regress(
    config: DistillConfig,
    store: CurveStore,
    trainer: Trainer,
    schedules: Mapping[int, tuple[float, ...]],
) -> nn.Module:
    knots = KnotsDraw(tuple(schedules.values()))
    draws: dict[str, Draw] = {
        "end": EndDraw() if config.passes == 1 else EitherDraw(EndDraw(), knots),
        "map": MapDraw(),
        "knots": knots,
        "velocity": VelocityDraw(),
    }
    objective = CurveRegression(draws[config.objective], Loss(config.huber), config.power)
    batches = _batches(store, trainer, config.batch, config.seed if config.epochs else None)

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        yield "student", objective.loss(nets["student"], batches(generator), generator)

    return trainer.fit(step, config.steps, config.seed)


def _align(
    config: DistillConfig,
    store: CurveStore,
    data: Data,
    net: nn.Module,
    schedules: Mapping[int, tuple[float, ...]],
) -> tuple[nn.Module, int]:
    """Align the law of every sampler with real data; returns the network and the passes that this
    cost.
    """
    size = config.align_batch or config.batch
    trainer = Trainer(
        {"student": net}, config.loop, config.out, "alignment", {"student": config.align_lr}
    )
    rows = trainer.share(size, 2)
    batches = _batches(store, trainer, size, config.seed + 1 if config.epochs else None)
    objective = Alignment(
        tuple(schedules.values()), Loss(config.huber), config.anchor, data.scaling.clamp
    )

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        batch = batches(generator)
        real, cond = data.batch(REAL_ROWS * rows, generator)
        cond = None if cond is None or not store.condition_size else cond.to(trainer.device)
        yield "student", objective.loss(nets["student"], batch, real.to(trainer.device), cond)

    spent = config.align * size * objective.passes * config.loop.accumulate
    return trainer.fit(step, config.align, config.seed + 1), spent


def _batches(
    store: CurveStore, trainer: Trainer, batch: int, seed: int | None
) -> Callable[[torch.Generator], CurveBatch]:
    """What gives this rank's share of batch after batch: drawn with the generator, or with a seed
    the next one of an epoch.
    """
    rows = trainer.share(batch)
    if seed is None:
        return lambda generator: _to(trainer, store.batch(rows, generator))

    @cache
    def ahead() -> Iterator[
        CurveBatch
    ]:  # opened at the first batch, when the trainer knows where it goes on
        first, part = (
            trainer.done * trainer.config.accumulate,
            slice(trainer.rank * rows, (trainer.rank + 1) * rows),
        )
        return store.epochs(batch, seed, first, part)

    return lambda _: _to(trainer, next(ahead()))


def _to(trainer: Trainer, batch: CurveBatch) -> CurveBatch:
    curve, cond = batch
    return BezierCurve(curve.points.to(trainer.device)), (
        None if cond is None else cond.to(trainer.device)
    )

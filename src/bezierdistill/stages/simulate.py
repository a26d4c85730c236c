"""Teachers to stored curves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bezierdistill.data import Data, Scaling, load_data
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend, Field, Guided, NetworkField, parse_weights
from bezierdistill.files import locked
from bezierdistill.models import CARD, Model, NetworkConfig, load_model
from bezierdistill.progress import progress
from bezierdistill.run import recorded
from bezierdistill.simulation import Simulation, simulate_shards
from bezierdistill.stages.folders import RUN, refuse_other
from bezierdistill.stages.simulate import SimulateConfig
from bezierdistill.stages.starts import starts
from bezierdistill.store import CurveStore, CurveWriter, repair
from bezierdistill.training.ranks import open_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Draw = Callable[[int, int], tuple[Tensor, Tensor | None]]
FOR_TEACHERS = ("teachers", "weights", "data", "source", "through", "guidance")


def simulate(config: SimulateConfig) -> CurveStore:
    """Simulate a blend of teachers and store the paths as curves.

    Raises:
        UserError: on teachers that do not fit together, weights that do not sum to one, a degree
            that the guides cannot have, or a folder that holds another store.
    """
    if not config.teachers:
        raise UserError("teachers is empty, expected one or more model folders")
    teachers = [load_model(folder) for folder in config.teachers]
    through = None if config.through is None else load_model(config.through)
    data, source = (
        None if name is None else load_data(name) for name in (config.data, config.source)
    )
    _check_alike(config, teachers, data)
    _check_source(config, teachers[0], through, source)
    fabric = open_fabric(config.accelerator)
    strengths = config.strengths()
    fields = [_field(teacher, fabric.device, strengths) for teacher in teachers]
    blend = Blend(fields, parse_weights(config.weights))
    back = None if through is None else NetworkField(through.net.to(fabric.device))
    simulation = Simulation(
        blend,
        config.degree,
        config.guides,
        fields,
        config.steps,
        config.solver,
        data is not None,
        back,
    )
    draw = starts(
        teachers[0],
        config.seed,
        data or source,
        strengths if len(strengths) == 2 else None,
        config.noise == "seed",
    )
    return _stored(
        config, simulation, draw, _recipe(config, teachers, through, source, blend), fabric
    )


def simulate_field(
    field: Field,
    shape: tuple[int, ...],
    config: SimulateConfig,
    scaling: Scaling | None = None,
    network: NetworkConfig | None = None,
) -> CurveStore:
    """Simulate any velocity field and store its paths as curves, for a student that starts from
    scratch (``DistillConfig.init``).

    The field starts from standard normal noise and takes no condition; a torch module becomes one
    by :class:`~bezierdistill.schedules.ForeignField`, several by
    :class:`~bezierdistill.fields.Blend`. It has to be on the device that ``config.accelerator``
    chooses. That a store is continued with the same field is not checked.

    Args:
        field: the field.
        shape: shape of a state, ``(D,)`` or ``(C, H, W)``.
        config: with no teachers; weights, data, source, through and guidance, which are for
            teachers, are left as they are.
        scaling: the way from the field's states to own units, ``load_data(...).scaling`` of the
            data it was trained on; else none.
        network: the network of the student to come.

    Raises:
        UserError: on settings for teachers, or of guides or steps that do not fit, or a folder
            that holds another store.
    """
    usual = SimulateConfig((), config.out)
    other = [name for name in FOR_TEACHERS if getattr(config, name) != getattr(usual, name)]
    if other:
        raise UserError(
            f"a field is simulated and {', '.join(other)} given, expected teachers=() and what is"
            " for teachers left as it is"
        )
    fabric = open_fabric(config.accelerator)
    origin = Model(
        nn.Identity(),
        network or NetworkConfig(),
        tuple(shape),
        scaling or Scaling(layout="flat" if len(shape) == 1 else "chw"),
    )
    _check_field(field, origin, fabric.device)
    simulation = Simulation(
        field, config.degree, config.guides, [field], config.steps, config.solver
    )
    recipe = _recipe(config, [origin], None, None, Blend([field], [[1.0]])) | {
        "teachers": [],
        "network": asdict(origin.network),
    }
    return _stored(
        config,
        simulation,
        starts(origin, config.seed, regenerated=config.noise == "seed"),
        recipe,
        fabric,
    )


def _check_field(field: Field, origin: Model, device: torch.device) -> None:
    """Whether a field, and the student to come, fit the states, before anything is written."""
    if not isinstance(field, Field):
        raise UserError(
            f"field is a {type(field).__name__} without passes, expected a velocity field:"
            " ForeignField makes one of a module"
        )
    if len(origin.shape) not in (1, 3) or min(origin.shape) < 1:
        raise UserError(f"shape is {origin.shape}, expected (D,) or (C, H, W)")
    origin.scaling.check_shape(origin.shape)
    with torch.device("meta"):
        origin.network.build(origin.shape, 0)
    x = torch.randn(2, *origin.shape, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.no_grad():
            v = field(x, 0.5)
    except RuntimeError as error:
        raise UserError(
            f"the field cannot be asked at states of shape {origin.shape}: {error}"
        ) from None
    if v.shape != x.shape or not bool(v.isfinite().all()):
        raise UserError(
            f"the field gives {tuple(v.shape)} for states {tuple(x.shape)}, or NaN: expected finite"
            " velocities of their shape"
        )


def _stored(
    config: SimulateConfig,
    simulation: Simulation,
    draw: Draw,
    recipe: dict[str, Any],
    fabric: Fabric,
) -> CurveStore:
    """The store, of which every rank makes its share of the shards."""
    device, lead = fabric.device, fabric.global_rank == 0
    refuse_other(config.out, RUN, CARD)

    def on_device(start: int, rows: int) -> tuple[Tensor, Tensor | None]:
        states, cond = draw(start, rows)
        return states.to(device), None if cond is None else cond.to(device)

    with locked(config.out) if lead else nullcontext():
        if config.repair and lead:
            repair(config.out, recipe)
        if lead:
            CurveWriter(config.out, recipe)
        fabric.barrier()
        with (
            recorded(config.out, "simulate", replace(config, repair=False))
            if config.teachers
            else nullcontext()
        ):
            writer = CurveWriter(config.out, recipe)
            plans = writer.plan(config.count, config.batch)
            share = plans[fabric.global_rank :: fabric.world_size]
            with progress("simulate", sum(plan.rows for plan in share)) as advance:
                simulate_shards(
                    simulation, on_device, share, writer, config.batch, advance, config.seed
                )
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
        raise UserError(
            f"teacher {teacher.folder} takes no condition and cannot be guided: train it with"
            " --conditional, or no --guidance"
        )
    if dict(teacher.card.get("config", {})).get("drop") == 0:
        raise UserError(
            f"teacher {teacher.folder} never went without its condition and cannot be guided: train"
            " it with --drop above 0"
        )
    return Guided(field, strengths[0] if len(strengths) == 1 else None)


def _check_source(
    config: SimulateConfig, first: Model, through: Model | None, source: Data | None
) -> None:
    """Whether the curves start where the first flow on them does."""
    if through is not None and first.source is not None:
        raise UserError(
            "teachers translate from a domain of their own, expected teachers that start from"
            f" noise with --through {config.through}"
        )
    if source is not None and first.conditions:
        raise UserError(
            f"teachers take conditions and source is {config.source}: a path from another domain"
            " has none, expected others"
        )
    start = first.source if through is None else through.scaling
    if through is not None and (
        through.source is not None or through.conditions or through.shape != first.shape
    ):
        raise UserError(
            f"through {config.through} is no unconditional flow from noise to states of shape"
            f" {first.shape} as the teachers'"
        )
    if (source is None) != (start is None):
        raise UserError(
            f"source is {config.source} and teachers start from"
            f" {'noise' if start is None else 'another domain'}: give --source for a flow that"
            " translates or a pair of flows with --through, and for no other"
        )
    if source is not None and (source.shape != first.shape or source.scaling != start):
        raise UserError(
            f"source {config.source} of shape {source.shape} is not the data that the first flow"
            " was trained on"
        )


def _check_alike(config: SimulateConfig, teachers: list[Model], data: Data | None) -> None:
    first = teachers[0]
    for folder, teacher in zip(config.teachers, teachers, strict=True):
        if teacher.conditions != first.conditions or teacher.source != first.source:
            raise UserError(
                f"teacher {folder} takes {teacher.conditions} numbers as condition and"
                f" {config.teachers[0]} {first.conditions}, or they start from different domains:"
                " expected teachers that take and start from the same"
            )
        if teacher.shape != first.shape:
            raise UserError(
                f"teacher {folder} makes states of shape {teacher.shape}, {config.teachers[0]} of"
                f" {first.shape}: expected one shape"
            )
        if teacher.scaling != first.scaling:
            raise UserError(
                f"teacher {folder} was trained in other units than {config.teachers[0]}: train both"
                " on the same data"
            )
    check_data(config.data, data, first)


def check_data(name: str | None, data: Data | None, teacher: Model) -> None:
    """Raise ``UserError`` if data (of a name) are there and not what a teacher was trained on."""
    if data is not None and (data.shape != teacher.shape or data.scaling != teacher.scaling):
        raise UserError(
            f"data {name} of shape {data.shape} is not what the teachers (shape {teacher.shape})"
            " were trained on"
        )


def _recipe(
    config: SimulateConfig,
    teachers: list[Model],
    through: Model | None,
    source: Data | None,
    blend: Blend,
) -> dict[str, Any]:
    first, strengths = teachers[0], config.strengths()
    spent = {
        teacher.card.get("digest"): teacher.spent
        for teacher in [*teachers, *([] if through is None else [through])]
    }
    more: dict[str, Any] = {}  # keys that only some stores have: others stay as they were
    if first.conditions:
        ranged = len(strengths) == 2
        more |= {
            "conditions": first.conditions + ranged,
            "classes": first.frequencies,
            "guidance": list(strengths) if ranged else None,
        }
        more |= {"guided": list(strengths)}
    if source is not None:
        more |= {"source": config.source, "source_scaling": asdict(source.scaling)}
    if through is not None:
        more |= {
            "through": {
                "path": str(through.folder and through.folder.resolve()),
                "digest": through.card["digest"],
            }
        }
    return {
        **more,
        "degree": config.degree,
        "shape": list(teachers[0].shape),
        "guides": config.guides,
        "weights": blend.weights.tolist(),
        "teachers": [
            {"path": str(folder.resolve()), "digest": teacher.card["digest"]}
            for folder, teacher in zip(config.teachers, teachers, strict=False)
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

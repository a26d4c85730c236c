"""Teachers to stored Bezier curves: ``bezierdistill simulate``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named, is_object
from bezierdistill.settings import (
    NUMBERS,
    TOLERANCE,
    WEIGHTS,
    Contents,
    Guides,
    Noise,
    Points,
    Solver,
    as_paths,
    check_choice,
    check_counts,
    check_degree,
    check_scale,
    check_seed,
    check_tolerance,
    written,
)
from bezierdistill.stages.sources import as_data
from bezierdistill.words import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric

    from bezierdistill.data import Data, Scaling
    from bezierdistill.fields import Field
    from bezierdistill.models.model import Model
    from bezierdistill.records import ChosenSteps, Conditions, CurveRecipe
    from bezierdistill.simulation import Simulation
    from bezierdistill.stages.starts import Draw, Starts
    from bezierdistill.store import CurveStore


@dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """How curves are made and kept."""

    degree: int = 4
    """Degree of the curves; 1 is the straight line of rectified flow."""
    guides: Guides = "fit"
    """Where inner control points come from: fit (along the path), hermite (cubic from end
    velocities), endpoints (where each teacher alone ends)."""
    steps: int | None = None
    """Solver steps; without it as few as the tolerance allows, found on a sample."""
    tolerance: float = TOLERANCE
    """Error of the curves' ends that is allowed where steps are chosen, in distances between
    neighbours."""
    solver: Solver = "heun"
    """Fixed-step solver."""
    points: Points = "float32"
    """How control points are kept: float32, bfloat16, or uint8 (a byte per number with a scale for
    every point)."""
    noise: Noise = "stored"
    """Whether the noise that curves start from is stored, or given again from the seed when it is
    read."""

    def __post_init__(self) -> None:
        check_degree(self.degree)
        check_counts(steps=1 if self.steps is None else self.steps)
        check_tolerance(self.tolerance)
        if self.steps is not None and self.tolerance != TOLERANCE:
            raise UserError(
                f"steps is {self.steps} and tolerance {self.tolerance}, which chooses them: leave"
                " one of them out"
            )
        check_choice("guides", self.guides, Guides)
        check_choice("solver", self.solver, Solver)
        check_choice("points", self.points, Points)
        check_choice("noise", self.noise, Noise)


@dataclass(frozen=True)
class SimulateConfig(CurveSettings):
    """Simulate teachers and store their paths as Bezier curves.

    Example::

        bezierdistill simulate --teachers strong weak --weights 1.5,-0.5 --out curves
        bezierdistill simulate --teachers strong --points uint8 --out small
    """

    teachers: tuple[Path | object, ...]
    """One or more model folders, or FILE.py:function that returns a Teacher (your own module); the
    best one first."""
    out: Path
    """Folder of the new curve store."""
    weights: tuple[tuple[float, ...], ...] = written(((1.0,),), WEIGHTS)
    """A number per teacher, or Bernstein coefficients over time: 1.25,-0.25 or 1.0:1.5,0.0:-0.5.
    Columns sum to one."""
    count: int = 60_000
    """Number of curves."""
    budget: int | None = None
    """Network passes to spend: fewer curves, if they do not pay for so many."""
    invert_from: str | object | None = None
    """Real data to start from, backwards; without it sources are noise."""
    domain: str | object | None = None
    """Data of another domain to start from, forwards: curves that translate."""
    through: Path | None = None
    """A model of that domain that carries its data back to noise first; without it the teachers
    start at the domain itself."""
    guidance_scale: tuple[float, ...] = written((), NUMBERS)
    """Scale of classifier-free guidance of conditional teachers, or a range such as 1,3 that the
    student takes as an input."""
    seed: int = 0
    """Seed of the noise, or of the order of the data."""
    batch: int | None = None
    """Curves simulated at once; without it what suits the states and the device, which a continued
    run keeps."""
    repair: bool = False
    """Make damaged shards of a finished store again."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_paths(self, "out")
        as_named(self, "teachers")
        as_data(self, "invert_from", "domain")
        teachers = (t if is_object(t) else Path(str(t)) for t in self.teachers)
        object.__setattr__(self, "teachers", tuple(teachers))
        rows = (row if isinstance(row, tuple | list) else (row,) for row in self.weights)
        object.__setattr__(self, "weights", tuple(tuple(map(float, row)) for row in rows))
        check_seed(self.seed)
        check_counts(count=self.count, batch=self.batch or 1)
        check_counts(budget=1 if self.budget is None else self.budget)
        check_scale(self.guidance_scale)
        start = self.invert_from or self.domain
        if self.noise == "seed" and start:
            raise UserError(
                f"noise is 'seed' and curves start from {start}: expected --noise stored"
            )
        if self.through is not None:
            as_paths(self, "through")
            if self.domain is None:
                raise UserError(
                    f"through is {self.through} and domain None: expected --domain, the data of"
                    " that model's domain"
                )
        if self.domain is not None and self.invert_from is not None:
            raise UserError(
                f"invert-from is {self.invert_from} and domain {self.domain}, expected one of"
                " them: curves start from one or the other"
            )


CONTENTS = Contents(
    "a store of Bezier curves, simulated by teachers",
    {
        "manifest.json": "what made the curves, and the checksums of the shards",
        "manifest.copy.json": "its copy",
        "shard-*.safetensors": "control points and conditions; bezierdistill distill --curves {out}"
        " reads them",
    },
)


def simulate(config: SimulateConfig) -> CurveStore:
    """Simulate a blend of teachers and store the paths as curves.

    A user's own modules (:class:`~bezierdistill.Teacher`) are tried first, and where their data are
    known their direction is checked (:func:`~bezierdistill.check_direction`); that costs 4,096
    passes or so, which are not counted.

    Without a number of solver steps they are chosen (:func:`~bezierdistill.choose_steps`) when the
    store is begun; its recipe keeps their number, their error, and the passes of the choice.

    Raises:
        UserError: on teachers that do not fit together, weights that do not sum to one, a degree
            that the guides cannot have, or a folder that holds another store.
    """
    from bezierdistill.data import load_data
    from bezierdistill.fields import Blend, NetworkField, as_found
    from bezierdistill.models.folder import load_model
    from bezierdistill.models.teacher import find_model
    from bezierdistill.simulation import Simulation, least_steps
    from bezierdistill.stages.starts import Starts
    from bezierdistill.training.ranks import open_fabric

    if not config.teachers:
        raise UserError("teachers is empty, expected one or more model folders")
    teachers = [find_model(teacher) for teacher in config.teachers]
    first = teachers[0]
    through = None if config.through is None else load_model(config.through)
    inverted, domain = (
        None if name is None else load_data(name) for name in (config.invert_from, config.domain)
    )
    _check_alike(config, teachers)
    if inverted is not None:
        check_data(inverted, first.shape, first.scaling)
    _check_domain(config, first, through, domain)
    fabric = open_fabric(config.accelerator)
    fields = [_field(teacher, fabric.device, config.guidance_scale) for teacher in teachers]
    blend = Blend(fields, config.weights)
    back = None if through is None else NetworkField(through.net.to(fabric.device))
    simulation = Simulation(
        blend,
        config.degree,
        config.guides,
        fields,
        config.steps or least_steps(config.degree),
        config.solver,
        inverted is not None,
        back,
    )
    recipe = _recipe(config, teachers, through, domain)
    _try_own(config, teachers)
    starts = Starts(first, config.seed, inverted or domain, recipe.conditions.guidance_range)
    batch = min(teacher.batch for teacher in teachers)
    with ExitStack() as left:
        for teacher in teachers:
            left.enter_context(as_found(teacher.net))
        return _stored(config, simulation, starts, recipe, fabric, batch)


def _try_own(config: SimulateConfig, teachers: list[Model]) -> None:
    """Try modules of the user's own, before the first simulation."""
    from bezierdistill.models.teacher import Teacher
    from bezierdistill.stages.direction import check_direction
    from bezierdistill.store import held_recipe

    if held_recipe(config.out) is not None:
        return
    for teacher in teachers:
        if isinstance(teacher, Teacher):
            teacher.check(guided=bool(config.guidance_scale))
            if teacher.data is not None:
                check_direction(teacher, teacher.data)


def _stored(
    config: SimulateConfig,
    simulation: Simulation,
    starts: Starts,
    recipe: CurveRecipe,
    fabric: Fabric,
    batch: int,
) -> CurveStore:
    """The store, of which every rank makes its share of the shards; ``batch`` is used where neither
    the settings nor an earlier session say one.
    """
    import msgspec

    from bezierdistill.progress import progress
    from bezierdistill.run import Run
    from bezierdistill.store import CurveStore, CurveWriter, held_recipe, repair
    from bezierdistill.store.writer import simulate_shards

    before = held_recipe(config.out) if config.batch is None else None
    batch = config.batch or (before and before.batch) or batch
    recipe = msgspec.structs.replace(recipe, batch=batch)
    identity: dict[str, Any] = {"batch": batch, "teachers": [t.digest for t in recipe.teachers]}
    identity |= {} if recipe.through is None else {"through": recipe.through.digest}
    run = Run(
        config.out,
        "simulate",
        replace(config, repair=False),
        CONTENTS,
        identity=identity,
        barrier=fabric.barrier,
    )
    on_device = starts.on(fabric.device)
    with run:
        if fabric.global_rank == 0:
            _, begun = _planned(config, simulation, recipe, on_device)
            if config.repair:
                repair(config.out, begun)
            CurveWriter(config.out, begun)
        fabric.barrier()
        simulation, recipe = _planned(config, simulation, recipe, on_device)
        writer = CurveWriter(config.out, recipe)
        plans = writer.plan(recipe.count or 0, batch)
        share = plans[fabric.global_rank :: fabric.world_size]
        with progress("simulate", sum(plan.rows for plan in share)) as advance:
            simulate_shards(simulation, on_device, share, writer, batch, advance, config.seed)
        fabric.barrier()
        if fabric.global_rank == 0:
            writer.close(plans)
        fabric.barrier()
    return CurveStore.open(config.out)


def _planned(
    config: SimulateConfig, simulation: Simulation, recipe: CurveRecipe, draw: Draw
) -> tuple[Simulation, CurveRecipe]:
    """The simulation and its recipe with the steps, which whoever began the store has chosen, and
    the count that the budget pays for.
    """
    import msgspec

    from bezierdistill.store import held_recipe

    held = held_recipe(config.out) if config.steps is None else None
    chosen, count = None, config.count
    if held is not None and held.steps and held.chosen:
        simulation, chosen = replace(simulation, steps=held.steps), held.chosen
    elif config.steps is None:
        simulation, chosen = _chosen(config, simulation, draw, recipe.batch or 1)
    if config.budget is not None:
        left = config.budget - (0 if chosen is None else chosen.passes)
        count = min(count, max(1, left // simulation.cost))
    more = {"steps": simulation.steps, "chosen": chosen, "count": count}
    return simulation, msgspec.structs.replace(recipe, **more)


def _chosen(
    config: SimulateConfig, simulation: Simulation, draw: Draw, batch: int
) -> tuple[Simulation, ChosenSteps]:
    """Choose the steps on a sample that suits the count, by a quarter of a budget at most."""
    from bezierdistill.progress import announce, notice, stage
    from bezierdistill.simulation import FEW, choose_steps

    most = None if config.budget is None else config.budget // 4
    rows = min(config.count, max(FEW, config.count // 16))
    with stage("solver steps"):
        simulation, chosen = choose_steps(simulation, draw, config.tolerance, rows, batch, most)
    told = (
        f"{config.out}: {simulation.steps} {config.solver} steps, their ends err by"
        f" {chosen.error:.2g}, neighbours are {chosen.neighbours:.2g} apart"
    )
    if chosen.reached:
        announce(told)
    else:
        notice(
            f"{told}: more than the tolerance of {config.tolerance:g} allows, more were not tried"
        )
    return simulation, chosen


def _field(teacher: Model, device: Any, scale: Sequence[float]) -> Field:
    from bezierdistill.fields import Guided

    teacher.net.to(device)  # a user's own module stays where it is
    field = teacher.field
    if not scale:
        return field
    if teacher.card.is_pipeline:
        raise UserError(
            f"guidance scale is {scale[0]:g} and the teacher a pipeline with its own: expected"
            " import --guidance"
        )
    if not teacher.condition_size:
        raise UserError(
            f"teacher {teacher.folder or 'given'} takes no condition and cannot be guided: train it"
            " with --conditional, or give no --guidance-scale"
        )
    if teacher.card.drop == 0:
        raise UserError(
            f"teacher {teacher.folder} never went without its condition and cannot be guided:"
            " train it with --drop above 0"
        )
    return Guided(field, scale[0] if len(scale) == 1 else None)


def _check_domain(
    config: SimulateConfig, first: Model, through: Model | None, domain: Data | None
) -> None:
    """Whether the curves start where the first flow on them does."""
    if through is not None and first.domain is not None:
        raise UserError(
            "teachers translate from a domain of their own, expected teachers that start from"
            f" noise with --through {config.through}"
        )
    if through is not None and first.condition_size:
        raise UserError(
            f"teachers take conditions and through is {config.through}: a path through noise has"
            " none, expected others"
        )
    if domain is not None and first.condition_size and domain.class_names != first.conditions.names:
        raise UserError(
            f"teachers take the labels {listed(first.conditions.names)} and domain {config.domain}"
            f" has {listed(domain.class_names) or 'none'}: expected the domain they were trained on"
        )
    start = first.domain if through is None else through.scaling
    if through is not None and (
        through.domain is not None or through.condition_size or through.shape != first.shape
    ):
        raise UserError(
            f"through {config.through} is no unconditional flow from noise to states of shape"
            f" {first.shape} as the teachers'"
        )
    if (domain is None) != (start is None):
        raise UserError(
            f"domain is {config.domain} and teachers start from"
            f" {'noise' if start is None else 'another domain'}: give --domain for a flow that"
            " translates or a pair of flows with --through, and for no other"
        )
    if domain is not None and (domain.shape != first.shape or domain.scaling != start):
        raise UserError(
            f"domain {config.domain} of shape {domain.shape} is not the data that the first flow"
            " was trained on"
        )


def _check_alike(config: SimulateConfig, teachers: list[Model]) -> None:
    """Whether all teachers are flows of the same states."""
    first = teachers[0]
    for folder, teacher in zip(config.teachers, teachers, strict=True):
        pair = f"teachers {folder} and {config.teachers[0]}"
        if teacher.condition_size != first.condition_size or teacher.domain != first.domain:
            raise UserError(
                f"{pair} take conditions of {teacher.condition_size} and {first.condition_size}"
                " numbers, or start from different domains: expected teachers that take and start"
                " from the same"
            )
        names, others = teacher.conditions.names, first.conditions.names
        table = (teacher.conditions.rows, teacher.conditions.table)
        if table != (first.conditions.rows, first.conditions.table) or (
            names and others and names != others
        ):
            raise UserError(
                f"{pair} take {_told(teacher)} and {_told(first)}: expected conditions of one"
                " meaning, in one order"
            )
        if teacher.shape != first.shape or teacher.scaling != first.scaling:
            raise UserError(
                f"{pair} make states of shapes {teacher.shape} and {first.shape}, or in other"
                " units: expected one shape, and training on the same data"
            )


def _told(teacher: Model) -> str:
    given = teacher.conditions
    if given.rows is not None:
        return f"rows of a table of {given.rows:,}"
    return f"classes {', '.join(given.names)[:80]}" if given.names else "numbers"


def check_data(data: Data, shape: tuple[int, ...], scaling: Scaling) -> None:
    """Raise ``UserError`` if data are not what teachers of such states were trained on."""
    if data.shape != shape or data.scaling != scaling:
        raise UserError(
            f"data {data.name} of shape {data.shape} is not what the teachers (shape {shape}) were"
            " trained on"
        )


def _kept(config: SimulateConfig) -> dict[str, Any]:
    """What a store's recipe says of its settings."""
    names = ("degree", "guides", "weights", "count", "seed", "steps", "solver", "points", "noise")
    return {name: getattr(config, name) for name in (*names, "invert_from", "domain")}


def _recipe(
    config: SimulateConfig, teachers: list[Model], through: Model | None, domain: Data | None
) -> CurveRecipe:
    from bezierdistill.models.folder import refer
    from bezierdistill.records import CurveRecipe

    everyone = [*teachers, *([] if through is None else [through])]
    spent = {model.digest: model.spent for model in everyone}
    return CurveRecipe(
        shape=teachers[0].shape,
        scaling=teachers[0].scaling,
        conditions=_conditions(teachers[0].conditions, config.guidance_scale),
        teachers=tuple(
            refer(teacher, config.out, str(name))
            for teacher, name in zip(teachers, config.teachers, strict=True)
        ),
        teacher_passes=sum(spent.values()),
        through=None if through is None else refer(through, config.out),
        domain_scaling=None if domain is None else domain.scaling,
        **_kept(config),
    )


def _conditions(given: Conditions, scale: tuple[float, ...]) -> Conditions:
    """The conditions of the curves: a range of guidance scales is one number more."""
    import msgspec

    if not given.size:
        return given
    ranged = (scale[0], scale[1]) if len(scale) == 2 else None
    size = given.size + (ranged is not None)
    return msgspec.structs.replace(given, size=size, guidance_range=ranged, guided=scale)


def main_simulate(config: SimulateConfig) -> dict[str, Any]:
    """The verb ``simulate``."""
    store = simulate(config)
    passes, recipe = store.manifest.passes, store.recipe
    print(
        f"{config.out}: {len(store):,} curves of degree {config.degree} in {recipe.steps}"
        f" {recipe.solver} steps, {passes:,} network passes spent"
    )
    return {
        "out": config.out,
        "rows": len(store),
        "skipped": store.skipped,
        "degree": config.degree,
        "steps": recipe.steps,
        "error": recipe.chosen and recipe.chosen.error,
        "neighbours": recipe.chosen and recipe.chosen.neighbours,
        "passes": passes,
    }

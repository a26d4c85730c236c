"""The default recipe: from data and a budget of network passes to a student of one and two passes:
``bezierdistill recipe``.

    two teachers -> blend -> curves -> student: regression along the curves, then alignment

The budget holds everything: both teachers, the curves, the student, and the search of the blend if
there is one. Every stage gets a share of it, the same shares for all data. Taking one ingredient
away is a change of one setting (``shares.weak``, ``simulate.degree``, ``distill.huber``,
``shares.align``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.settings import (
    Contents,
    as_paths,
    check_counts,
    check_coupling,
    check_seed,
    check_whole_batches,
)
from bezierdistill.stages.distill import DistillConfig, StudentSettings, distill
from bezierdistill.stages.simulate import CurveSettings, SimulateConfig, simulate
from bezierdistill.stages.sources import as_data
from bezierdistill.stages.train import FlowSettings, TrainConfig, check_flow, train
from bezierdistill.training.settings import LoopConfig

if TYPE_CHECKING:
    from bezierdistill.budget import Budget
    from bezierdistill.data import Data
    from bezierdistill.models.model import Model
    from bezierdistill.records import Search
    from bezierdistill.store import CurveStore

SHOWN = "translations.png"
SEARCH, SEARCH_STEPS = "search.json", 6  # Heun steps where those of curves are chosen later
WEIGHTS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25)  # of the strong teacher that a search tries
FINER = (-0.1, 0.1)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the budget; what is left trains the student along the curves."""

    strong: float = 0.58
    """For the strong teacher's training."""
    weak: float = 0.04
    """For the weak teacher's training; 0 is a single teacher and no blend."""
    curves: float = 0.09
    """For simulating the curves."""
    align: float = 0.14
    """For alignment with real data; 0 is none."""
    search: float = 0.0
    """For choosing the blend's weight on validation data; 0 is no search."""

    def __post_init__(self) -> None:
        shares = list(asdict(self).values())
        if min(shares) < 0 or sum(shares) >= 1:
            raise UserError(
                f"shares of the budget are {shares}, expected none below 0 and a sum below 1: the"
                " rest trains the student"
            )
        if self.search and not self.weak:
            raise UserError(
                f"shares.search is {self.search} and shares.weak is 0: there is no blend to"
                " search, leave one of them out"
            )


@dataclass(frozen=True)
class RecipeConfig:
    """Make a student from data, within a budget of network passes.

    Two teachers, their curves, and a student of one and two passes, each in a folder of its own.

    Example::

        bezierdistill recipe --data digits --out runs/recipe
        bezierdistill recipe --data photos --network.kind unet --out runs/photos
    """

    data: str | object
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function; in Python an object as well."""
    out: Path
    """Folder of the run."""
    budget: int = 4_000_000
    """Network passes in all, but for teachers that are given: a forward counts 1, forward and
    backward 3, per row."""
    seed: int = 0
    """Seed of everything."""
    batch: int = 256
    """Rows per step of every training."""
    strong: Path | None = None
    """A trained strong teacher to use, whose share goes to the others; without it one is
    trained."""
    weak: Path | None = None
    """A trained weak teacher to use, likewise; without it one is trained."""
    blend_weight: float = 1.15
    """Weight g of the strong teacher in the blend, the weak one has 1 - g; 1 is the strong teacher
    alone."""
    domain: str | object | None = None
    """Data of another domain to start from instead of noise: the student translates."""
    through: Path | None = None
    """A model of that domain; the curves go back to noise by it and forwards by teachers that start
    from noise."""
    shares: Shares = field(default_factory=Shares)
    """Shares of the budget."""
    train: FlowSettings = field(default_factory=FlowSettings)
    """How teachers are trained."""
    simulate: CurveSettings = field(default_factory=lambda: CurveSettings(steps=8))
    """How curves are made."""
    distill: StudentSettings = field(default_factory=StudentSettings)
    """How the student learns."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network of every teacher and student."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        as_paths(self, "out")
        as_data(self, "data", "domain")
        check_flow(self.network)
        check_seed(self.seed)
        check_counts(budget=self.budget, batch=self.batch)
        check_coupling(self.train.conditional, self.domain, self.train.coupling)
        if self.through is not None:  # its flows start from noise
            check_coupling(False, None, self.train.coupling)
        check_whole_batches(self.loop.accumulate)
        for name in ("strong", "weak", "through"):
            if getattr(self, name) is not None:
                as_paths(self, name)
        if self.weak is not None and not self.shares.weak:
            raise UserError(
                f"weak is {self.weak} and shares.weak is 0, which is a single teacher: leave one"
                " of them out"
            )
        if self.shares.search and (self.train.conditional or self.domain is not None):
            raise UserError(
                "shares.search is for flows from noise without conditions: expected 0 with"
                " --train.conditional or --domain"
            )
        if not math.isfinite(self.blend_weight):
            raise UserError(f"blend-weight is {self.blend_weight}, expected a number")
        if self.through is not None and self.domain is None:
            raise UserError(
                f"through is {self.through} and domain None: expected --domain, the data of that"
                " model's domain"
            )
        # The stages' own checks, before a teacher is trained.
        self.student(Path(), 1, int(self.shares.align > 0))

    def share(self, budget: Budget, name: str) -> int:
        """Passes of a share; those of teachers that are given are spread over the others."""
        given = sum(
            getattr(self.shares, teacher)
            for teacher in ("strong", "weak")
            if getattr(self, teacher) is not None
        )
        return int(budget.total * getattr(self.shares, name) / (1 - given))

    def curves(self, budget: Budget, teachers: int) -> tuple[int, int]:
        """Number of curves that their share pays for, of as few solver steps as there may be, and
        the passes of each.
        """
        from bezierdistill.simulation import least_steps
        from bezierdistill.solvers import evaluations

        settings = self.simulate
        steps = settings.steps or least_steps(settings.degree)
        cost = evaluations(settings.solver) * steps * (teachers + (self.through is not None))
        return max(1, self.share(budget, "curves") // cost), cost

    def student(self, curves: Path, steps: int, align: int) -> DistillConfig:
        """Settings of the student, of so many steps of regression and of alignment."""
        return DistillConfig(
            curves,
            self.out / "student",
            align=align,
            data=self.data if align else None,
            steps=steps,
            batch=self.batch,
            seed=self.seed,
            loop=self.loop,
            **asdict(self.distill),
        )


CONTENTS = Contents(
    "a student and all that it was made of, within a budget of network passes",
    {
        "strong/, weak/": "the teachers",
        "curves/": "their curves",
        "student/": "the student: bezierdistill sample --model {out}/student --passes 1 --out"
        " samples.npz",
        "search.json": "the search of the blend, where there was one",
        SHOWN: "where it translates images: held-out inputs above what becomes of them",
    },
)


def run_recipe(config: RecipeConfig) -> Model:
    """Run the recipe, stage after stage; a stage whose folder is finished is not run again.

    Returns:
        The student, in ``OUT/student``; its card counts every pass, the search among them.

    Raises:
        UserError: on bad data or settings, a budget too small for the stages, or a folder that
            holds something else.
    """
    from bezierdistill.curves import fit_weights
    from bezierdistill.data import load_data
    from bezierdistill.models.folder import read_card
    from bezierdistill.run import Run
    from bezierdistill.solvers import time_grid

    data = load_data(config.data)
    if config.simulate.guides == "fit" and config.simulate.steps is not None:
        fit_weights(config.simulate.degree, time_grid(config.simulate.steps))
    _check_budget(config, data)
    given = {name: getattr(config, name) for name in ("strong", "weak", "through")}
    identity = {name: read_card(path).digest for name, path in given.items() if path is not None}
    with Run(config.out, "recipe", config, CONTENTS, identity=identity):
        return _stages(config, data)


def _stages(config: RecipeConfig, data: Data) -> Model:
    import msgspec

    from bezierdistill.budget import Budget
    from bezierdistill.models.folder import is_model, load_model, save_model
    from bezierdistill.models.model import Model
    from bezierdistill.progress import announce

    out, budget, shares = config.out, Budget(config.budget, config.batch), config.shares
    done = is_model(out / "student") and load_model(out / "student")
    if done and (done.card.passes.search or not shares.search):
        return done
    if config.through is not None:
        _check_through(config, data)
    teachers = [_teacher(config, budget, "strong", config.seed)]
    _show(config, teachers[0])
    search = None
    if shares.weak:
        teachers.append(_teacher(config, budget, "weak", config.seed + 1))
        search = _search(config, budget, teachers, data) if shares.search else None
    g = config.blend_weight if search is None else search.best
    weights = ((1.0,),) if len(teachers) == 1 else ((g,), (round(1 - g, 12),))
    announce(f"{out}: its curves")
    curves = simulate(_simulation(config, budget, teachers, weights))
    announce(f"{out}: the student")
    spent = 0 if search is None else search.passes
    student = distill(_distillation(config, budget, curves, spent, data, teachers))
    if spent:
        passes = msgspec.structs.replace(student.card.passes, search=spent)
        card = msgspec.structs.replace(student.card, passes=passes)
        student = save_model(out / "student", Model(student.net, card))
    _show(config, teachers[0], student)
    return student


def _check_budget(config: RecipeConfig, data: Data) -> None:
    """Whether the budget holds a step of every stage, before the first of them.

    Raises:
        UserError: if it does not; the stage is told.
    """
    from bezierdistill.budget import Budget
    from bezierdistill.models.folder import load_model
    from bezierdistill.objectives import FlowMatching

    budget, spent = Budget(config.budget, config.batch), 0
    names = ("strong", "weak") if config.shares.weak else ("strong",)
    for name in names:
        if getattr(config, name) is None:
            passes = config.share(budget, name)
            steps = budget.steps(FlowMatching.cost, passes, f"the {name} teacher")
            spent += int(steps * FlowMatching.cost * config.batch)
    spent += config.share(budget, "search")
    count, cost = config.curves(budget, len(names))
    budget.charge(spent + count * cost)
    network = config.network if config.strong is None else load_model(config.strong).network
    _student_steps(config, budget, network, data, len(names), count)


def _show(config: RecipeConfig, teacher: Model, student: Model | None = None) -> None:
    """Write held-out inputs of a domain of images, and what the teacher and the student make of
    them.
    """
    import torch

    from bezierdistill.data import load_data
    from bezierdistill.models.model import finite
    from bezierdistill.stages.translate import COLUMNS, save_translations
    from bezierdistill.words import counted

    if config.domain is None or len(teacher.shape) != 3 or teacher.scaling.is_clips:
        return
    domain = load_data(config.domain)
    rows = min(2 * COLUMNS, domain.count("test") or 2 * COLUMNS)
    x = domain.real(rows, config.seed, "test")
    cond = domain.conditions(rows, config.seed, "test") if teacher.condition_size else None
    with torch.no_grad():
        made = {} if teacher.domain is None else {"flow": teacher.generate(x, 20, "heun", cond)}
        if student is not None:
            made |= {counted(k, "pass"): student.generate(x, k, cond=cond) for k in (1, 2)}
    if made:
        save_translations(config.out / SHOWN, x, {name: finite(y) for name, y in made.items()})


def _check_through(config: RecipeConfig, data: Data) -> None:
    from bezierdistill.data import load_data
    from bezierdistill.models.folder import load_model

    through, domain = load_model(str(config.through)), load_data(config.domain)
    alike = domain.shape == through.shape == data.shape and through.scaling == domain.scaling
    if not alike or through.condition_size:
        raise UserError(
            f"through {config.through} is no flow of {config.domain} to states of the shape"
            f" {data.shape} of {config.data}"
        )


def _teacher(config: RecipeConfig, budget: Budget, name: str, seed: int) -> Model:
    from bezierdistill.models.folder import is_model, load_model
    from bezierdistill.objectives import FlowMatching
    from bezierdistill.progress import announce

    announce(f"{config.out}: the {name} teacher")
    given = getattr(config, name)
    folder = given or config.out / name
    if given or is_model(folder):
        teacher = load_model(folder)
        if bool(teacher.condition_size) != config.train.conditional:
            raise UserError(
                f"the {name} teacher {folder} takes {teacher.condition_size or 'no'} numbers as"
                f" condition and train.conditional is {config.train.conditional}: expected both"
                " or neither"
            )
        return teacher
    passes = config.share(budget, name)
    return train(
        TrainConfig(
            config.data,
            folder,
            budget.steps(FlowMatching.cost, passes, f"the {name} teacher"),
            config.batch,
            seed,
            None if config.through else config.domain,
            config.network,
            config.loop,
            **asdict(config.train),
        )
    )


def _search(config: RecipeConfig, budget: Budget, teachers: list[Model], data: Data) -> Search:
    from bezierdistill.records import Search, read_record, write_record

    file = config.out / SEARCH
    if not file.exists():
        passes = config.share(budget, "search")
        steps, (strong, weak) = config.simulate.steps or SEARCH_STEPS, teachers
        write_record(file, choose_blend(strong, weak, data, config.seed, passes, steps))
    return read_record(file, Search, "search of the blend")


def choose_blend(
    strong: Model, weak: Model, data: Data, seed: int, passes: int, steps: int = SEARCH_STEPS
) -> Search:
    """Choose the weight g of the strong teacher (the weak one has 1 - g) by the Frechet distance to
    validation data.

    Args:
        strong: the better teacher.
        weak: the same kind of network, trained for a shorter time.
        data: where validation samples come from.
        seed: seed of the noise and of the validation samples.
        passes: network passes that the search may spend; it sets the samples per trial.
        steps: Heun steps per sample.
    """
    import torch

    from bezierdistill.fields import Blend
    from bezierdistill.metrics import frechet_distance
    from bezierdistill.noise import Stream, noise
    from bezierdistill.records import Search
    from bezierdistill.solvers import solve, time_grid

    samples = max(8, passes // ((len(WEIGHTS) + len(FINER)) * 4 * steps))
    real = data.real(min(data.count("valid") or 20_000, 20_000), seed, "valid")
    x0 = noise(seed, Stream.SEARCH, range(samples), data.shape)
    scores: dict[float, float] = {}

    @torch.no_grad()
    def tried(g: float) -> float:
        blend = Blend([strong.field, weak.field], [[g], [1 - g]])
        return frechet_distance(solve(blend, x0, time_grid(steps)).state, real)

    for g in WEIGHTS:
        scores[g] = tried(g)
    middle = min(scores, key=lambda g: scores[g])
    for g in (round(middle + step, 2) for step in FINER):
        scores[g] = tried(g)
    return Search(
        metric="frechet on validation data",
        samples=samples,
        scores={str(g): scores[g] for g in sorted(scores)},
        best=min(scores, key=lambda g: scores[g]),
        passes=len(scores) * samples * 4 * steps,
    )


def _simulation(
    config: RecipeConfig,
    budget: Budget,
    teachers: list[Model],
    weights: tuple[tuple[float, ...], ...],
) -> SimulateConfig:
    share, given = config.share(budget, "curves"), config.simulate.steps
    return SimulateConfig(
        tuple(teacher.folder for teacher in teachers if teacher.folder),
        config.out / "curves",
        weights,
        count=config.curves(budget, len(teachers))[0],
        budget=None if given else max(1, share),  # of more steps fewer curves
        domain=config.domain,
        through=config.through,
        seed=config.seed,
        accelerator=config.loop.accelerator,
        **asdict(config.simulate),
    )


def _distillation(
    config: RecipeConfig,
    budget: Budget,
    curves: CurveStore,
    searched: int,
    data: Data,
    teachers: list[Model],
) -> DistillConfig:
    """Settings of the student: its regression gets what everything else leaves of the budget."""
    free = {
        teacher.digest: teacher.spent
        for teacher, given in zip(teachers, (config.strong, config.weak), strict=False)
        if given is not None
    }
    teaching = curves.recipe.teacher_passes - sum(free.values())
    budget.charge(teaching + curves.manifest.passes + searched)
    network = teachers[0].network
    steps, align = _student_steps(config, budget, network, data, len(teachers), len(curves))
    return config.student(curves.folder, steps, align)


def _student_steps(
    config: RecipeConfig, budget: Budget, network: object, data: Data, teachers: int, curves: int
) -> tuple[int, int]:
    """Steps of the student's regression and of its alignment."""
    from bezierdistill.knots import even_knots
    from bezierdistill.objectives import CurveRegression
    from bezierdistill.objectives.emitted_curves import emitted_cost, whole_share
    from bezierdistill.stages.align import align_steps, aligned_samplers, knots_cost, tried_rows
    from bezierdistill.stages.students import points_of

    settings = config.distill
    knots = tuple(aligned_samplers(even_knots(settings.most_passes)).values())
    passes, count = config.share(budget, "align"), data.count("train")
    align, cost = align_steps(settings, network, data.shape, knots, passes, config.batch, count)
    if align and settings.chooses_knots:
        cost += knots_cost(tried_rows(curves, data.count("valid")))
    budget.charge(cost)
    asked = 0.0 if config.through else whole_share(settings.on_policy, config.batch)
    emits = points_of(settings, network) > 1
    each = emitted_cost(teachers, asked) if emits else CurveRegression.cost
    return budget.steps(each, what="the student"), align


def main_recipe(config: RecipeConfig) -> dict[str, Any]:
    """The verb ``recipe``."""
    model = run_recipe(config)
    print(
        f"{config.out / 'student'}: student of one and two passes, {model.spent:,} network passes"
        " spent in all"
    )
    return model.facts()

"""The default recipe: from data and a budget of network passes to a student of one and two passes.

    two teachers -> blend -> curves -> student: regression along the curves, then alignment of its
    samples' law with real data

The budget holds everything: both teachers, the curves, the student, and the search of the blend if
there is one. Every stage gets a share of it, the same shares for all data. Taking one ingredient
away is a change of one setting (``weak_share``, ``degree``, ``huber``, ``align_share``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bezierdistill.curves import fit_weights
from bezierdistill.data import Data, load_data
from bezierdistill.errors import UserError
from bezierdistill.fields import Blend
from bezierdistill.files import claim, locked, read_json, write_json
from bezierdistill.knots import knots_cost
from bezierdistill.metrics import frechet_distance
from bezierdistill.models import CARD, Model, NetworkConfig, load_model, save_model
from bezierdistill.noise import noise
from bezierdistill.objectives import Alignment, CurveRegression, FlowMatching
from bezierdistill.progress import announce
from bezierdistill.run import recorded
from bezierdistill.settings import (
    Coupling,
    as_paths,
    check_conditional,
    check_counts,
    check_seed,
    check_whole_batches,
)
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig

SEARCH, SETTINGS = "search.json", "recipe.json"
GUIDANCE = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
FINER = (-0.1, 0.1)
SEARCH_SEED = 2_000_003


@dataclass(frozen=True)
class RecipeConfig:
    """Make a student from data, within a budget of network passes.

    Two teachers, their curves, and a student of one and two passes, each in a folder of its own.

    Example::

        bezierdistill recipe --data digits --out runs/recipe
        bezierdistill recipe --data photos --network.kind unet --out runs/photos
    """

    data: str
    """Built-in name or path."""
    out: Path
    """Folder of the run."""
    budget: int = 4_000_000
    """Network passes in all: a forward counts 1, forward and backward 3, a row."""
    seed: int = 0
    """Seed of everything."""
    batch: int = 256
    """Rows a step."""
    strong: Path | None = None
    """A trained strong teacher to use; without it one is trained."""
    weak: Path | None = None
    """A trained weak teacher to use; without it one is trained."""
    strong_share: float = 0.5
    """Share of the budget that the strong teacher's training gets."""
    weak_share: float = 0.04
    """The same for the weak teacher; 0 is a single teacher and no blend."""
    curves_share: float = 0.09
    """Share for simulating the curves."""
    align_share: float = 0.14
    """Share for law alignment with real data; 0 is none. What is left trains the student along the
    curves."""
    align_batch: int | None = None
    """Samples of a sampler a step of alignment; without it as many as rows a step."""
    guidance: float = 1.25
    """Weight g of the strong teacher in the blend, the weak one has 1 - g; 1 is the strong teacher
    alone."""
    search_share: float = 0.0
    """Share for choosing g on validation data instead; 0 is no search."""
    degree: int = 4
    """Degree of the curves; 1 is a straight line."""
    solver_steps: int = 4
    """Heun steps a curve."""
    huber: float = 0.03
    """Scale of the pseudo-Huber loss; 0 is the squared error."""
    power: float = 1.0
    """P of the weight (t - s)^-p of an interval."""
    align_lr: float = 2e-4
    """Peak learning rate of the student during alignment."""
    anchor: float = 0.03
    """Weight of the ends of the curves during alignment."""
    conditional: bool = False
    """Condition on the data's class labels or condition vectors."""
    source: str | None = None
    """Data of another domain to start from instead of noise: the student translates."""
    through: Path | None = None
    """A model of that domain; the curves go back to noise by it and forwards by teachers that start
    from noise."""
    coupling: Coupling = "independent"
    """How source and data are joined when teachers are trained: independent, or optimal transport
    within the batch."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network of every teacher and student."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        as_paths(self, "out")
        check_seed(self.seed)
        check_counts(budget=self.budget, batch=self.batch, solver_steps=self.solver_steps)
        shares = [
            self.strong_share,
            self.weak_share,
            self.curves_share,
            self.align_share,
            self.search_share,
        ]
        if min(shares) < 0 or sum(shares) >= 1:
            raise UserError(
                f"shares of the budget are {shares}, expected none below 0 and a sum below 1: the"
                " rest trains the student"
            )
        if self.weak is not None and not self.weak_share:
            raise UserError(
                f"weak is {self.weak} and weak_share is 0, which is a single teacher: leave one of"
                " them out"
            )
        if self.search_share and not self.weak_share:
            raise UserError(
                f"search_share is {self.search_share} and weak_share is 0: there is no blend to"
                " search, leave one of them out"
            )
        if self.search_share and (self.conditional or self.source is not None):
            raise UserError(
                "search_share is for flows from noise without conditions: expected 0 with"
                " --conditional or --source"
            )
        check_conditional(self.conditional, self.source, self.coupling)
        check_whole_batches(self.loop)
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance is {self.guidance}, expected a number")
        if self.through is not None:
            as_paths(self, "through")
            if self.source is None:
                raise UserError(
                    f"through is {self.through} and source None: expected --source, the data of"
                    " that model's domain"
                )
        # The stages' own checks, before a teacher is trained.
        fit_weights(self.degree, time_grid(self.solver_steps))
        self.student(Path(), steps=1, align=int(self.align_share > 0))

    def student(self, curves: Path, steps: int, align: int) -> DistillConfig:
        """Settings of the student, of so many steps of regression and of alignment."""
        return DistillConfig(
            curves,
            self.out / "student",
            passes=2,
            align=align,
            align_batch=self.align_batch,
            data=self.data if align else None,
            steps=steps,
            batch=self.batch,
            seed=self.seed,
            huber=self.huber,
            power=self.power,
            align_lr=self.align_lr,
            anchor=self.anchor,
            loop=self.loop,
        )

    def part(self, share: float) -> int:
        """Network passes of a share."""
        return int(share * self.budget)


def run_recipe(config: RecipeConfig) -> Model:
    """Run the recipe, stage after stage; a stage whose folder is finished is not run again.

    Returns:
        The student, in ``OUT/student``; its card counts every pass, the search among them.

    Raises:
        UserError: on bad data or settings, a budget too small for the stages, or a folder that
            holds something else.
    """
    data, out = load_data(config.data), config.out
    with locked(out):
        claim(
            out / SETTINGS,
            {key: value for key, value in asdict(config).items() if key != "out"},
            "recipe",
        )
        with recorded(out, "recipe", config):
            return _stages(config, data)


def _stages(config: RecipeConfig, data: Data) -> Model:
    out = config.out
    if (out / "student" / CARD).exists() and "search" in (
        finished := load_model(out / "student")
    ).card["passes"]:
        return finished
    if config.through is not None:
        through, source = load_model(config.through), load_data(str(config.source))
        if (
            source.shape != data.shape
            or through.shape != data.shape
            or through.scaling != source.scaling
            or through.conditions
        ):
            raise UserError(
                f"through {config.through} is no flow of {config.source} to states of the shape"
                f" {data.shape} of {config.data}"
            )
    teachers = [_teacher(config, config.strong, "strong", config.strong_share, config.seed)]
    searched: dict[str, Any] = {"best": 1.0, "passes": 0}
    if config.weak_share:
        teachers.append(_teacher(config, config.weak, "weak", config.weak_share, config.seed + 1))
        searched = (
            _search(config, teachers, data)
            if config.search_share
            else {"best": config.guidance, "passes": 0}
        )
    g = searched["best"]
    weights = [g, 1 - g][: len(teachers)]
    announce(f"{out}: its curves")
    curves = simulate(_simulation(config, teachers, weights))
    announce(f"{out}: the student")
    student = distill(_distillation(config, curves, searched["passes"]))
    passes = {**student.card["passes"], "search": searched["passes"]}
    passes["total"] += searched["passes"]
    return save_model(out / "student", replace(student, card={**student.card, "passes": passes}))


def _teacher(config: RecipeConfig, given: Path | None, name: str, share: float, seed: int) -> Model:
    announce(f"{config.out}: the {name} teacher")
    folder = given or config.out / name
    if given or (folder / CARD).exists():
        teacher = load_model(folder)
        if bool(teacher.conditions) != config.conditional:
            takes = f"takes {teacher.conditions or 'no'} numbers as condition"
            raise UserError(
                f"the {name} teacher {folder} {takes} and conditional is {config.conditional}:"
                " expected both or neither"
            )
        return teacher
    steps = _steps(config, config.part(share), FlowMatching.passes, f"the {name} teacher")
    return train(
        TrainConfig(
            config.data,
            folder,
            steps,
            config.batch,
            seed,
            coupling=config.coupling,
            source=None if config.through else config.source,
            conditional=config.conditional,
            network=config.network,
            loop=config.loop,
        )
    )


def _steps(config: RecipeConfig, passes: int, cost: int, what: str) -> int:
    steps = passes // (cost * config.batch)
    if steps < 1:
        raise UserError(
            f"budget is {config.budget} passes, which leaves {passes} for {what}: expected"
            f" {cost * config.batch} or more"
        )
    return steps


def _search(config: RecipeConfig, teachers: list[Model], data: Data) -> dict[str, Any]:
    file = config.out / SEARCH
    if not file.exists():
        strong, weak = teachers
        write_json(
            file,
            choose_blend(
                strong,
                weak,
                data,
                config.seed,
                config.part(config.search_share),
                config.solver_steps,
            ),
        )
    return read_json(file, "search of the blend")


@torch.no_grad()
def choose_blend(
    strong: Model, weak: Model, data: Data, seed: int, passes: int, steps: int = 6
) -> dict[str, Any]:
    """Choose the weight g of the strong teacher (the weak one has 1 - g) by the Frechet distance to
    validation data.

    Args:
        strong: the better teacher.
        weak: the same kind of network, trained for a shorter time.
        data: where validation samples come from.
        seed: seed of the noise and of the validation samples.
        passes: network passes that the search may spend; it sets the samples a trial.
        steps: Heun steps a sample.

    Returns:
        The record of the search: metric, number of trials, samples a trial, scores, the best g,
            passes spent.
    """
    trials = len(GUIDANCE) + len(FINER)
    samples = max(8, passes // (trials * 4 * steps))
    real = data.real(min(data.count("valid") or 20_000, 20_000), seed, "valid")
    x0 = noise(seed + SEARCH_SEED, 0, samples, data.shape)
    scores: dict[float, float] = {}

    def best() -> float:
        return min(scores, key=lambda g: scores[g])

    def score(candidates: Iterable[float]) -> None:
        for g in candidates:
            blend = Blend([strong.field, weak.field], [[g], [1 - g]])
            scores[g] = frechet_distance(solve(blend, x0, time_grid(steps)).state, real)

    score(GUIDANCE)
    score([round(best() + step, 2) for step in FINER])
    return {
        "metric": "frechet on validation data",
        "trials": len(scores),
        "samples": samples,
        "scores": {str(g): scores[g] for g in sorted(scores)},
        "best": best(),
        "passes": len(scores) * samples * 4 * steps,
    }


def _simulation(
    config: RecipeConfig, teachers: list[Model], weights: list[float]
) -> SimulateConfig:
    folders = tuple(teacher.folder for teacher in teachers if teacher.folder)
    networks = len(teachers) + (config.through is not None)
    return SimulateConfig(
        folders,
        config.out / "curves",
        ",".join(f"{weight:g}" for weight in weights),
        config.degree,
        count=max(1, config.part(config.curves_share) // (2 * config.solver_steps * networks)),
        source=config.source,
        through=config.through,
        seed=config.seed,
        steps=config.solver_steps,
        accelerator=config.loop.accelerator,
    )


def _distillation(config: RecipeConfig, curves: CurveStore, searched: int) -> DistillConfig:
    """Settings of the student: its regression gets what everything else leaves of the budget."""
    cost = (config.align_batch or config.batch) * Alignment(((0.0, 1.0), (0.0, 0.5, 1.0))).passes
    align = config.part(config.align_share) // cost
    fixed = (
        curves.recipe["teacher_passes"] + curves.manifest["passes"] + searched + knots_cost(curves)
    )
    steps = _steps(
        config, config.budget - fixed - align * cost, CurveRegression.passes, "the student"
    )
    return config.student(curves.folder, steps, align)

"""Stored curves to a student, by regression along them, then alignment with real data:
``bezierdistill distill``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named, fingerprint, is_object
from bezierdistill.settings import (
    MAX_PASSES,
    NUMBERS,
    WORDS,
    Contents,
    ObjectiveName,
    as_paths,
    check_choice,
    check_counts,
    check_not_negative,
    check_seed,
    check_shares,
    parse_distance,
    written,
)
from bezierdistill.stages.align import align_curves, check_features
from bezierdistill.stages.simulate import check_data
from bezierdistill.stages.sources import as_data
from bezierdistill.stages.train import CONTENTS as TRAINED
from bezierdistill.stages.train import is_trained
from bezierdistill.training.settings import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from bezierdistill.data import Data
    from bezierdistill.knots import Knots
    from bezierdistill.models.model import Model
    from bezierdistill.models.teacher import Teacher
    from bezierdistill.objectives.intervals import Intervals
    from bezierdistill.records import TeacherRef
    from bezierdistill.stages.students import Network
    from bezierdistill.store import CurveStore
    from bezierdistill.training.loop import Trainer

Init = Literal["teacher", "scratch"]


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """How a student learns."""

    objective: ObjectiveName = "map"
    """Which intervals are learned: end (to t=1 from anywhere, and the sampler's), map (any), knots
    (only the sampler's), velocity (a straighter flow)."""
    passes: int | None = None
    """The most passes of its samplers, without it 4 of a map, else 2; with alignment those of 1, 2,
    4, ... passes are aligned as well."""
    knots: tuple[float, ...] = written((), NUMBERS)
    """Times between 0 and 1 of that sampler; without them they are even, or with --align those
    whose samples are closest to validation data (map)."""
    control_points: int | None = None
    """Control points of the curve that a pass emits, 1 is a straight jump; without it 4 for an MLP
    of ours (map), else 1."""
    on_policy: float = 0.3
    """Share of rows that learn from the teachers along the student's own curve, where it emits one;
    0 is stored curves alone."""
    init: Init = "teacher"
    """Start from the best teacher's weights, or from scratch."""
    epochs: bool = False
    """Read every curve once per epoch, in a seeded order, ahead of the training; without it curves
    are drawn independently."""
    huber: float = 0.03
    """Scale of the pseudo-Huber loss; 0 is the squared error."""
    power: float = 1.0
    """Exponent p of the weight (t - s)^-p of an interval."""
    align_batch: int | None = None
    """Samples per step of alignment, which trains one sampler after the other; without it twice the
    rows per step of the regression, 256 at most."""
    align_lr: float = 3e-4
    """Peak learning rate of the student during alignment."""
    anchor: float = 0.03
    """Weight of the ends of the curves during alignment."""
    align_features: tuple[str, ...] = written(("auto",), WORDS)
    """What is aligned: states, patches (of images, by fixed filters), teacher (the best teacher's
    hidden states), several of these, parts of your own module by path, or auto, the best for this
    kind of states."""
    align_distance: str = "energy+0.3*drifting"
    """Distance of samples to real data: energy, drifting, laplace, sinkhorn, or a weighted sum of
    these."""
    align_times: tuple[float, ...] = written((), NUMBERS)
    """Times at which that teacher takes states to be, a pass each; without them 0.95 for images and
    0.99 for vectors."""

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, ObjectiveName)
        check_choice("init", self.init, Init)
        check_counts(
            passes=self.most_passes,
            align_batch=self.align_batch or 1,
            control_points=self.control_points or 1,
        )
        check_shares(on_policy=self.on_policy)
        if (self.control_points or 1) > 1 and self.objective != "map":
            raise UserError(
                f"control-points is {self.control_points} and objective {self.objective}, which"
                " learns straight jumps: expected --objective map, or 1"
            )
        if self.most_passes > MAX_PASSES:
            raise UserError(
                f"passes is {self.passes}, expected 1 to {MAX_PASSES}: more passes are what a"
                " student is to save"
            )
        check_not_negative(huber=self.huber, anchor=self.anchor, power=self.power)
        if self.align_batch == 1:
            raise UserError(
                "align-batch is 1, expected 2 or more: the distance between distributions needs"
                " pairs of samples"
            )
        if self.align_lr <= 0:
            raise UserError(f"align-lr is {self.align_lr}, expected a positive number")
        parse_distance(self.align_distance)
        check_features(self.align_features, self.align_times)
        inner = (0.0, *self.knots, 1.0)
        most = self.most_passes
        if self.knots and (len(self.knots) != most - 1 or list(inner) != sorted(set(inner))):
            raise UserError(
                f"knots are {self.knots}, expected {most - 1} for {most} passes,"
                " rising between 0 and 1"
            )
        usual = StudentSettings if self.objective == "velocity" else None
        set_ = [name for name in ("knots", "passes", "power") if usual and self._differs(name)]
        if set_:
            raise UserError(
                f"objective is velocity, which trains a flow, and {', '.join(set_)} given: leave"
                " them out, or choose --objective end, map or knots"
            )

    def align_rows(self, batch: int) -> int:
        """Samples per step of alignment, where a step of the regression has so many rows."""
        return self.align_batch or min(2 * batch, 256)

    @property
    def most_passes(self) -> int:
        """The most passes of its samplers."""
        usual = len(self.knots) + 1 if self.knots else 4 if self.objective == "map" else 2
        return usual if self.passes is None else self.passes

    @property
    def chooses_knots(self) -> bool:
        """Whether alignment chooses the knots of its samplers."""
        return self.objective == "map" and not self.knots and self.most_passes > 1

    def _differs(self, name: str) -> bool:
        return getattr(self, name) != StudentSettings.__dataclass_fields__[name].default


@dataclass(frozen=True)
class DistillConfig(StudentSettings):
    """Distil stored curves into a student.

    Example::

        bezierdistill distill --curves curves --out student
        bezierdistill distill --curves curves --align 600 --data digits --out aligned
    """

    curves: Path
    """Folder of a curve store."""
    out: Path
    """Folder of the new model."""
    align: int = 0
    """Steps of alignment after the regression; 0 is none."""
    data: str | object | None = None
    """Built-in name or path of the real data that samples are aligned with (of a pipeline a folder
    of images); without it the ends of the curves, which are the teachers' samples."""
    student: str | object | None = None
    """What is trained, where it is not the network of the best teacher: FILE.py:function that
    returns teacher.student(...), your own module, or a NetworkConfig, one of ours from scratch."""
    lora: int = 0
    """Rank of a low-rank adapter of a pipeline's transformer, which is what is trained of one (with
    --objective knots)."""
    targets: tuple[str, ...] = written((), WORDS)
    """The layers that get one, such as to_q,to_k,to_v,to_out.0; without them all linear layers of
    the transformer's blocks."""
    full: bool = False
    """Train all weights of a copy of a pipeline's transformer, in single precision, in the place of
    an adapter (with --objective knots)."""
    steps: int = 6000
    """Optimizer steps of the regression."""
    batch: int | None = None
    """Rows per step; without it 512, or 16 of a pipeline."""
    seed: int = 0
    """Seed of the draws (and of the weights, with --init scratch)."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        if (self.lora or self.full) and self.objective == "map":  # which a pipeline cannot learn
            object.__setattr__(self, "objective", "knots")
        super().__post_init__()
        as_paths(self, "curves", "out")
        check_not_negative(lora=self.lora)
        if self.lora and self.full:
            raise UserError(f"lora is {self.lora} beside --full, all weights: expected one of them")
        if self.targets and not self.lora:
            raise UserError(f"targets are {self.targets} without --lora, the adapter's rank")
        as_named(self, "student")
        as_data(self, "data")
        check_seed(self.seed)
        check_counts(steps=self.steps, batch=self.rows)
        check_not_negative(align=self.align)
        if self.loop.precision not in ("32-true", "bf16-mixed"):
            raise UserError(
                f"precision is {self.loop.precision}, expected 32-true or bf16-mixed: curves are"
                " stored in single precision"
            )
        if self.objective == "velocity" and self.align:
            raise UserError(
                "objective velocity trains a flow, not jumps: expected --align 0, or --objective"
                " end, map or knots"
            )
        if not self.align and self.data is not None:
            raise UserError(
                f"data is {self.data} without --align, the steps of alignment with it: expected"
                " both, or neither"
            )

    @property
    def rows(self) -> int:
        """Rows per step."""
        return self.batch or (16 if self.lora or self.full else 512)


CONTENTS = Contents(
    "a student, distilled from stored curves",
    TRAINED.files,
    grows={"steps": "state-curves.safetensors", "align": "state-alignment.safetensors"},
)


def distill(config: DistillConfig) -> Model:
    """Distil stored curves into a student: regression along the curves, then alignment with real
    data if asked for.

    Raises:
        UserError: on a bad store, teachers other than those that made it, or a folder that holds
            another run.
    """
    from bezierdistill.models.folder import is_model, load_model
    from bezierdistill.run import Run
    from bezierdistill.stages.students import choose_student, contents_of
    from bezierdistill.stages.targets import find_targets
    from bezierdistill.store import CurveStore
    from bezierdistill.training.loop import Trainer

    store = CurveStore.open(config.curves)
    net, network, own = choose_student(config, store)
    data = find_targets(config, store, own)
    _check_data(config, store, data)
    trainer = Trainer({"student": net}, config.loop, config.out, "curves")
    trainer.share(config.rows)  # checks, before the folder is taken and hours are spent
    if config.align:
        trainer.share(config.align_rows(config.rows), 2)
    if not is_model(config.out):  # else there is nothing left to train
        _check_whole(store, trainer)
    identity = {"curves": store.digest}
    if own is not None:
        # a state may hold its adapters alone
        identity["student"] = fingerprint([own, asdict(network)])
    barrier = trainer.fabric.barrier
    contents = contents_of(CONTENTS, network)
    with Run(config.out, "distill", config, contents, identity=identity, barrier=barrier):
        trained = is_trained(config.out, config.steps)
        trained = trained and is_trained(config.out, config.align, "align")
        if trainer.fabric.broadcast(trained):
            return load_model(config.out, own)
        return _distilled(config, store, trainer, network, data, own)


def _distilled(
    config: DistillConfig,
    store: CurveStore,
    trainer: Trainer,
    network: Network,
    data: Data | None,
    own: Teacher | None,
) -> Model:
    from bezierdistill.knots import even_knots, inner_knots
    from bezierdistill.models.model import Model
    from bezierdistill.networks.own import OwnConfig
    from bezierdistill.networks.pipeline import PipelineConfig
    from bezierdistill.records import Passes
    from bezierdistill.stages.train import card_of, saved

    recipe, each = store.recipe, 1 if own is None else own.passes  # of one call of its module
    teachers = tuple(_moved(ref, store.folder, config.out) for ref in recipe.teachers)
    given = inner_knots(config.knots, config.most_passes) if config.knots else None
    knots = {} if config.objective == "velocity" else even_knots(config.most_passes, given)
    if isinstance(network, PipelineConfig) or (
        isinstance(network, OwnConfig) and not network.times
    ):
        knots = {k: times for k, times in knots.items() if k == config.most_passes}
    aligned = config.out / "state-alignment.safetensors"
    if trainer.rank == 0 and aligned.exists() and trainer.left(config.steps):
        aligned.unlink()  # of an older regression: before this one, so that no kill falls between
    net, spent = _regress(config, store, trainer, network, knots)
    if data is not None:
        net, knots, more = align_curves(
            config, store, data, net, network, knots, own, trainer.device
        )
        spent += more
    passes = Passes(
        training=spent * each, curves=store.manifest.passes, teachers=recipe.teacher_passes
    )
    card = card_of(
        config,
        "student",
        network=asdict(network),
        shape=recipe.shape,
        scaling=recipe.scaling,
        passes=passes,
        conditions=recipe.conditions,
        domain=recipe.domain_scaling,
        domain_data=recipe.domain,
        data=config.data or _data_of(store),
        knots=knots,
        teachers=teachers,
        weights=recipe.weights,
    )
    return saved(config.out, Model(net, card), trainer, own)


def _moved(ref: TeacherRef, near: Path, out: Path) -> TeacherRef:
    """A reference to a teacher from another folder; one of the user's own has a name instead."""
    from bezierdistill.models.folder import refer_again

    return ref if is_object(ref.path) else refer_again(ref, near, out)


def _data_of(store: CurveStore) -> str | None:
    """The data of the first teacher that lies in a folder."""
    from bezierdistill.models.folder import find_folder, read_card

    folders = (ref for ref in store.recipe.teachers if not is_object(ref.path))
    return next((read_card(find_folder(ref, store.folder)).data for ref in folders), None)


def _check_data(config: DistillConfig, store: CurveStore, data: Data | None) -> None:
    """Whether real data are what the curves end on."""
    if data is None or config.data is None:
        return
    recipe = store.recipe
    check_data(data, recipe.shape, recipe.scaling)
    if any(scale != 1 for scale in recipe.conditions.guided):
        raise UserError(
            "the curves are guided, their distribution is not that of the data, and alignment"
            " would undo it: expected --align 0"
        )
    size = 0 if recipe.conditions.rows else recipe.conditions.size
    if size and size != data.condition_size:
        raise UserError(
            f"curves have conditions of {size} numbers, data {config.data} of"
            f" {data.condition_size}: expected the teachers' data"
        )


def _check_whole(store: CurveStore, trainer: Trainer) -> None:
    """Refuse to train on a damaged store; of several ranks each reads its part."""
    from bezierdistill.store.manifest import REPAIR

    for problem in store.verify(slice(trainer.rank, None, trainer.ranks)):
        raise UserError(f"{problem}: {REPAIR}")


def _intervals(config: DistillConfig, knots: Mapping[int, Knots], images: bool) -> Intervals:
    from bezierdistill.objectives import intervals

    own = intervals.KnotIntervals(tuple(knots.values()))
    if config.objective == "velocity":
        return intervals.Instants()
    if config.objective == "map":
        return intervals.MapIntervals() if images else intervals.EarlyIntervals()
    if config.objective == "knots":
        return own
    ends = intervals.EndIntervals()
    return ends if config.most_passes == 1 else intervals.EitherIntervals(ends, own)


def _regress(
    config: DistillConfig,
    store: CurveStore,
    trainer: Trainer,
    network: Network,
    knots: Mapping[int, Knots],
) -> tuple[nn.Module, int]:
    """Regression along the curves; the network and the passes that this cost."""
    from bezierdistill.networks.config import sees_images
    from bezierdistill.networks.curve import CurveNetwork
    from bezierdistill.objectives import CurveRegression, EmittedCurves, Loss
    from bezierdistill.objectives.emitted_curves import whole_share
    from bezierdistill.stages.students import asked_field
    from bezierdistill.training.batches import CurveBatches

    metric = Loss(config.huber)
    batches = CurveBatches(store, trainer, config.rows, config.seed if config.epochs else None)
    with ExitStack() as left:
        if config.objective == "map" and isinstance(trainer.plain["student"], CurveNetwork):
            share = whole_share(config.on_policy, trainer.share(config.rows))
            field = asked_field(store, trainer.device, left) if share else None
            share = share if field else 0.0
            objective = EmittedCurves(metric, power=config.power, teacher=field, on_policy=share)
        else:
            images = sees_images(network, store.recipe.shape)
            power = 0.0 if config.objective == "velocity" else config.power
            objective = CurveRegression(_intervals(config, knots, images), metric, power)
        net = trainer.fit(objective, batches, config.steps, config.seed)
    return net, trainer.cost(objective, config.steps, config.rows)


def main_distill(config: DistillConfig) -> dict[str, Any]:
    """The verb ``distill``."""
    model = distill(config)
    knots = "; ".join(
        f"{k}: {', '.join(f'{t:g}' for t in times)}" for k, times in model.knots.items()
    )
    print(
        f"{config.out}: student with knots {knots or 'evenly spaced'}, {model.spent:,} network"
        " passes spent in all"
    )
    return model.facts()

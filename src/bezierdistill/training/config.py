"""Settings of every stage as frozen dataclasses: the same for Python, YAML recipes and the command
line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bezierdistill.curves import check_degree
from bezierdistill.errors import UserError
from bezierdistill.models import NetworkConfig
from bezierdistill.simulate import Guides
from bezierdistill.store.codec import Kept, check_kept
from bezierdistill.training.ranks import Precision, Strategy

Coupling = Literal["independent", "ot"]
ObjectiveName = Literal["end", "map", "knots", "velocity"]
MOST_PASSES = 10
Solver = Literal["euler", "midpoint", "heun", "rk4"]


@dataclass(frozen=True)
class LoopConfig:
    """How weights are updated.

    Args:
        lr: peak learning rate of AdamW.
        warmup: steps over which the rate rises from zero.
        decay: last share of the steps over which the rate falls to zero.
        ema: limit of the decay of the averaged weights a step.
        clip: gradient norm above which gradients are scaled down; 0 is off.
        log_every: steps between two lines of the log.
        save_every: steps between two saved states.
        accelerator: device kind for Lightning Fabric: auto, cpu, cuda, mps.
        precision: number format for Lightning Fabric, such as 32-true or bf16-mixed.
        strategy: with torchrun: ddp (every rank has the whole network) or fsdp (every rank keeps a
            part of it).
        accumulate: batches whose gradients are added up before a step; memory is that of one batch.
        compile: compile networks with torch.compile; pays on GPUs after a minute of compilation.
        channels_last: keep images channels-last in memory; pays for convolutions on GPUs, in mixed
            precision above all.
        checkpoint: keep fewer activations and compute them again for the gradient; networks of
            diffusers only.
    """

    lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.4
    ema: float = 0.999
    clip: float = 0.0
    log_every: int = 50
    save_every: int = 2000
    accelerator: str = "auto"
    precision: Precision = "32-true"
    strategy: Strategy = "ddp"
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"lr is {self.lr}, expected a positive number")
        if not 0 <= self.decay <= 1:
            raise UserError(f"decay is {self.decay}, expected a share of the steps in [0, 1]")
        _check_not_negative(warmup=self.warmup, clip=self.clip)
        check_counts(
            log_every=self.log_every, save_every=self.save_every, accumulate=self.accumulate
        )


def as_paths(config: object, *names: str) -> None:
    """Let Python users give paths as text."""
    for name in names:
        value = getattr(config, name)
        object.__setattr__(
            config,
            name,
            Path(value) if isinstance(value, str | Path) else tuple(Path(v) for v in value),
        )


def check_conditional(conditional: bool, source: str | None, coupling: Coupling) -> None:
    """Refuse what a conditional flow cannot be.

    Raises:
        UserError: with a source domain, whose samples have no condition of the target's; or with
            optimal transport within the batch, which makes the noise depend on the condition, while
            sampling draws it independently.
    """
    if conditional and source is not None:
        raise UserError(
            f"conditional is on and source is {source}: a flow that translates takes no condition,"
            " leave one of them out"
        )
    if conditional and coupling == "ot":
        raise UserError(
            "coupling ot with conditional would make the noise depend on the condition: expected"
            " --coupling independent"
        )


def check_whole_batches(loop: LoopConfig) -> None:
    """Raise ``UserError`` if gradients of several batches are added up, where a budget or rounds
    are counted in batches.
    """
    if loop.accumulate > 1:
        raise UserError(
            f"loop.accumulate is {loop.accumulate}, expected 1: passes are counted in whole batches"
        )


def check_counts(**counts: int) -> None:
    """Raise ``UserError`` unless every number is 1 or more."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more")


def check_seed(seed: int) -> None:
    """Raise ``UserError`` unless a seed is one that every table of draws takes."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}, expected a whole number from 0 up to 2^63 - 1")


def _check_not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"{name} is {value}, expected 0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """Train a teacher by flow matching.

    Example::

        bezierdistill train --data digits --out runs/strong --steps 3000
        bezierdistill train --data photos --network.kind unet --out runs/photos

    Args:
        data: built-in name or path.
        out: folder of the new model.
        steps: optimizer steps.
        batch: rows a step.
        seed: seed of weights and draws.
        coupling: how noise and data are joined: independent, or optimal transport within the batch.
        source: data of another domain to start from instead of noise, by name or path: a flow that
            translates.
        conditional: condition on the data's class labels or condition vectors.
        drop: share of rows that are trained without their condition, which guidance needs.
        network: the network.
        loop: how weights are updated.
    """

    data: str
    out: Path
    steps: int = 6000
    batch: int = 512
    seed: int = 0
    coupling: Coupling = "independent"
    source: str | None = None
    conditional: bool = False
    drop: float = 0.1
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        as_paths(self, "out")
        check_seed(self.seed)
        check_counts(steps=self.steps, batch=self.batch)
        if not 0 <= self.drop < 1:
            raise UserError(f"drop is {self.drop}, expected a share of the rows in [0, 1)")
        check_conditional(self.conditional, self.source, self.coupling)


@dataclass(frozen=True)
class SimulateConfig:
    """Simulate teachers and store their paths as Bezier curves.

    Example::

        bezierdistill simulate --teachers strong weak --weights 1.5,-0.5 --out curves
        bezierdistill simulate --teachers strong --points uint8 --out small

    Args:
        teachers: one or more model folders; the best one first.
        out: folder of the new curve store.
        weights: a number a teacher, or Bernstein coefficients over time: "1.25,-0.25" or
            "1.0:1.5,0.0:-0.5". Columns sum to one.
        degree: degree of the curves; 1 is the straight line of rectified flow.
        guides: fit (along the path), hermite (cubic from end velocities), endpoints (where each
            teacher alone ends).
        count: number of curves.
        data: real data to start from, backwards; without it sources are noise.
        source: data of another domain to start from, forwards: curves that translate.
        through: a model of that domain that carries its data back to noise first; without it the
            teachers start at the source itself.
        guidance: strength of classifier-free guidance of conditional teachers, or a range such as
            1,3 that the student takes as an input.
        seed: seed of the noise, or of the order of the data.
        steps: solver steps.
        solver: fixed-step solver.
        batch: curves simulated at once.
        points: how control points are kept: float32, bfloat16, or uint8 (a byte a number with a
            scale for every point).
        noise: whether the noise that curves start from is stored, or given again from the seed when
            it is read.
        repair: make damaged shards of a finished store again.
        accelerator: device kind for Lightning Fabric: auto, cpu, cuda, mps.
    """

    teachers: tuple[Path, ...]
    out: Path
    weights: str = "1"
    degree: int = 4
    guides: Guides = "fit"
    count: int = 60_000
    data: str | None = None
    source: str | None = None
    through: Path | None = None
    guidance: str | None = None
    seed: int = 0
    steps: int = 8
    solver: Solver = "heun"
    batch: int = 4096
    points: Kept = "float32"
    noise: Literal["stored", "seed"] = "stored"
    repair: bool = False
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        as_paths(self, "teachers", "out")
        check_seed(self.seed)
        check_degree(self.degree)
        check_kept(self.points)
        if self.noise not in ("stored", "seed"):
            raise UserError(f"noise is {self.noise!r}, expected stored or seed")
        if self.noise == "seed" and (self.data or self.source):
            raise UserError(
                f"noise is 'seed' and curves start from {self.data or self.source}: expected"
                " --noise stored"
            )
        check_counts(count=self.count, steps=self.steps, batch=self.batch)
        if self.through is not None:
            as_paths(self, "through")
            if self.source is None:
                raise UserError(
                    f"through is {self.through} and source None: expected --source, the data of"
                    " that model's domain"
                )
        if self.source is not None and self.data is not None:
            raise UserError(
                f"data is {self.data} and source {self.source}, expected one of them: curves start"
                " from one or the other"
            )
        self.strengths()  # its check, before anything is made

    def strengths(self) -> tuple[float, ...]:
        """The strength of guidance, or both ends of its range; empty without guidance.

        Raises:
            UserError: if it is neither.
        """
        try:
            numbers = (
                tuple(float(part) for part in self.guidance.split(","))
                if self.guidance is not None
                else ()
            )
        except ValueError:
            numbers = (math.nan,)
        if (
            len(numbers) > 2
            or not all(map(math.isfinite, numbers))
            or (len(numbers) == 2 and numbers[0] >= numbers[1])
        ):
            raise UserError(
                f"guidance is {self.guidance!r}, expected a strength such as 2, or a rising range"
                " such as 1,3"
            )
        return numbers


@dataclass(frozen=True)
class DistillConfig:
    """Distil stored curves into a student.

    Example::

        bezierdistill distill --curves curves --out student
        bezierdistill distill --curves curves --align 600 --data digits --out aligned

    Args:
        curves: folder of a curve store.
        out: folder of the new model.
        objective: end (to t=1 from anywhere, and the sampler's intervals), map (any interval),
            knots (only the sampler's intervals), velocity (a straighter flow).
        passes: the most passes of the sampler; a two-pass student is also a one-pass student.
        knots: times between 0 and 1 of that sampler, separated by commas; without them they are
            found by dynamic programming.
        align: steps of law alignment with real data after the regression; 0 is none.
        align_batch: samples of a sampler a step of alignment; without it as many as rows a step of
            the regression.
        data: built-in name or path of that real data.
        steps: optimizer steps of the regression.
        batch: rows a step.
        epochs: read every curve once an epoch, in the order of a seeded permutation, ahead of the
            training; without it curves are drawn independently.
        seed: seed of the draws (and of the weights, with --init scratch).
        init: start from the best teacher's weights, or from scratch.
        huber: scale of the pseudo-Huber loss; 0 is the squared error.
        power: p of the weight (t - s)^-p of an interval.
        align_lr: peak learning rate of the student during alignment.
        anchor: weight of the ends of the curves during alignment.
        loop: how weights are updated.
    """

    curves: Path
    out: Path
    objective: ObjectiveName = "map"
    passes: int = 2
    knots: str | None = None
    align: int = 0
    align_batch: int | None = None
    data: str | None = None
    steps: int = 6000
    batch: int = 512
    epochs: bool = False
    seed: int = 0
    init: Literal["teacher", "scratch"] = "teacher"
    huber: float = 0.03
    power: float = 1.0
    align_lr: float = 2e-4
    anchor: float = 0.03
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        as_paths(self, "curves", "out")
        check_seed(self.seed)
        check_counts(
            passes=self.passes,
            steps=self.steps,
            batch=self.batch,
            align_batch=self.align_batch or 1,
        )
        if self.passes > MOST_PASSES:
            raise UserError(
                f"passes is {self.passes}, expected 1 to {MOST_PASSES}: more passes are what a"
                " student is to save"
            )
        _check_not_negative(
            align=self.align, huber=self.huber, anchor=self.anchor, power=self.power
        )
        if self.align_lr <= 0:
            raise UserError(f"align_lr is {self.align_lr}, expected a positive number")
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
        if bool(self.align) != (self.data is not None):
            raise UserError(
                f"align is {self.align} and data {self.data}, expected both or neither: alignment"
                " needs real data"
            )
        if self.align and (self.align_batch or self.batch) < 2:
            raise UserError(
                "batch is 1, expected 2 or more in alignment: the distance between laws needs pairs"
                " of samples"
            )

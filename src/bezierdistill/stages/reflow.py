r"""Reflow rounds and their errors: how distributions drift while paths get straighter, with ours
at the same passes.

Round 1 is flow matching. Round k trains the next flow on pairs :math:`(x_0, \phi_{k-1}(x_0))` of
the flow before it (objective ``velocity`` on degree-1 curves), and every round's pairs are also
distilled into one pass (objective ``knots`` on the interval 0 to 1).

Each round's figures go to ``rounds.json``. *Drift* is :math:`E|\phi_k(x_0) - \phi_1(x_0)|^2`.
*Reconstruction* is :math:`E|x - \phi_k(\phi_1^{-1}(x))|^2` of held-out real x and of generated
:math:`x = \phi_1(x_0)`, both per component: a flow that has learned from generated data alone loses
the real ones (Balanced Conic Rectified Flow, arXiv 2510.25229).

Source: Liu et al. 2022, *Flow straight and fast*, arXiv 2209.03003, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.networks.config import NetworkConfig
from bezierdistill.settings import (
    Contents,
    as_paths,
    check_counts,
    check_seed,
    check_whole_batches,
)
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.sources import as_data
from bezierdistill.stages.train import TrainConfig, check_flow, train
from bezierdistill.training.settings import LoopConfig

if TYPE_CHECKING:
    from torch import Tensor

    from bezierdistill.data import Data
    from bezierdistill.metrics import Evaluator
    from bezierdistill.models.model import Model
    from bezierdistill.records import RoundRow, Sampled

TEACHER_PASSES, JUDGED = 40, 4096


@dataclass(frozen=True)
class ReflowConfig:
    """Train k-rectified flows, and measure what every round loses.

    Each flow is distilled into one pass as well.

    Example::

        bezierdistill reflow --data digits --rounds 2 --report --out runs/reflow
    """

    data: str | object
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function; in Python an object as well."""
    out: Path
    """Folder of the rounds."""
    rounds: int = 2
    """Number of rounds, 1 or more; round 1 is plain flow matching."""
    report: bool = False
    """Also run our recipe from round 1's flow, for every round at the passes that its student has
    cost, and write report.html."""
    steps: int = 6000
    """Optimizer steps of every flow and every distillation."""
    batch: int = 512
    """Rows per step."""
    seed: int = 0
    """Seed of weights and draws."""
    count: int = 60_000
    """Pairs simulated per round."""
    solver_steps: int = 8
    """Heun steps per pair (two passes each)."""
    huber: float = 0.0
    """Scale of the pseudo-Huber loss of the distillations; 0 is the squared error of the paper."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        as_paths(self, "out")
        as_data(self, "data")
        check_flow(self.network)
        check_seed(self.seed)
        check_counts(
            rounds=self.rounds,
            steps=self.steps,
            batch=self.batch,
            count=self.count,
            solver_steps=self.solver_steps,
        )
        check_whole_batches(self.loop.accumulate)


CONTENTS = Contents(
    "k-rectified flows and what each round loses",
    {
        "rounds.json": "the result: the figures of every round",
        "round-1/, ...": "a round's flow, its pairs, the one-pass student; ours, with --report",
    },
)
FREE = ("rounds", "report")  # rounds may be added, and our curves beside them


def reflow(config: ReflowConfig) -> tuple[RoundRow, ...]:
    """Run the rounds, from where a run of the same settings stopped, and write their figures to
    ``rounds.json``.

    Returns:
        A row per round; its samplers are the flow at 40 (Heun), 1 and 2 (Euler) passes, its
        one-pass student, and with ``report`` ours at 1 and 2 passes.

    Raises:
        UserError: on bad data or settings, or a folder that holds something else.
    """
    from bezierdistill.data import load_data
    from bezierdistill.run import Run

    data = load_data(config.data)
    with Run(config.out, "reflow", config, CONTENTS, FREE):
        return _rounds(config, data)


def _rounds(config: ReflowConfig, data: Data) -> tuple[RoundRow, ...]:
    from bezierdistill.metrics import Evaluator, straightness
    from bezierdistill.noise import Stream, noise
    from bezierdistill.progress import announce
    from bezierdistill.records import ROUNDS, RoundRow, Rounds, write_record

    evaluate = Evaluator(data)
    x0 = noise(config.seed, Stream.JUDGE, range(JUDGED), data.shape)
    real = data.real(evaluate.size(JUDGED), config.seed, "test")
    rows: list[RoundRow] = []
    first = flow = None
    for k in range(1, config.rounds + 1):
        announce(f"round {k} of {config.rounds}")
        folder = config.out / f"round-{k}"
        pairs = config.out / f"round-{k - 1}" / "pairs"
        flow = _first_flow(config, folder) if first is None else _flow(config, pairs, folder)
        first = first or flow
        student = _student(config, folder, flow)
        samplers = _sampled(flow, student, x0, evaluate)
        ours = None
        if config.report:
            ours = _ours(config, folder, first, student.spent - first.spent)
            samplers += [_judged("ours", ours, x0, passes, evaluate) for passes in (1, 2)]
        row = RoundRow(
            round=k,
            flow_passes=flow.spent,
            student_passes=student.spent,
            ours_passes=None if ours is None else ours.spent,
            straightness=straightness(flow.field, x0[:1024]),
            samplers=tuple(samplers),
            **_losses(first, flow, x0, real),
        )
        rows.append(row)
        figures = Rounds(data=str(config.data), seed=config.seed, rounds=tuple(rows))
        write_record(config.out / ROUNDS, figures)
    return tuple(rows)


def _first_flow(config: ReflowConfig, folder: Path) -> Model:
    return train(
        TrainConfig(config.data, folder / "flow", network=config.network, **_training(config))
    )


def _training(config: ReflowConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("steps", "batch", "seed", "loop")}


def _flow(config: ReflowConfig, pairs: Path, folder: Path) -> Model:
    """The next flow, trained on the pairs of the one before."""
    settings = {"objective": "velocity", "huber": config.huber, **_training(config)}
    return distill(DistillConfig(pairs, folder / "flow", **settings))


def _student(config: ReflowConfig, folder: Path, flow: Model) -> Model:
    """Rectified-flow distillation: pairs of this flow, then one pass from source to end."""
    assert flow.folder is not None
    pairs = SimulateConfig(
        (flow.folder,),
        folder / "pairs",
        degree=1,
        count=config.count,
        seed=config.seed,
        steps=config.solver_steps,
        accelerator=config.loop.accelerator,
    )
    simulate(pairs)
    settings = {"objective": "knots", "passes": 1, "power": 0.0, "huber": config.huber}
    return distill(DistillConfig(pairs.out, folder / "student", **settings, **_training(config)))


def _sampled(flow: Model, student: Model, x0: Tensor, evaluate: Evaluator) -> list[Sampled]:
    return [
        _judged("flow", flow, x0, TEACHER_PASSES, evaluate, "heun"),
        _judged("flow", flow, x0, 1, evaluate, "euler"),
        _judged("flow", flow, x0, 2, evaluate, "euler"),
        _judged("distilled", student, x0, 1, evaluate),
    ]


def _judged(
    who: Literal["flow", "distilled", "ours"],
    model: Model,
    x0: Tensor,
    passes: int,
    evaluate: Evaluator,
    solver: Literal["heun", "euler", "jumps"] = "jumps",
) -> Sampled:
    """Metrics of samples as they would be saved: in original units, clamped to their range."""
    from bezierdistill.records import Sampled

    x = model.generate(x0, passes, "heun" if solver == "heun" else "euler")
    scores = evaluate(model.scaling.encode(model.scaling.decode(x)))
    return Sampled(who=who, solver=solver, passes=passes, scores=scores)


def _losses(first: Model, flow: Model, x0: Tensor, real: Tensor) -> dict[str, float]:
    """Drift of the end points from the first round's, and errors of reconstructing real and
    generated states.
    """
    from bezierdistill.solvers import solve, time_grid

    generated = first.generate(x0, TEACHER_PASSES, "heun")
    backwards = time_grid(TEACHER_PASSES // 2, 1.0, 0.0)

    def error(x0: Tensor, x: Tensor) -> float:
        return float((flow.generate(x0, TEACHER_PASSES, "heun") - x).square().mean())

    def reconstruction(x: Tensor) -> float:
        return error(solve(first.field, x, backwards).state, x)

    return {
        "drift": error(x0, generated),
        "reconstruction_real": reconstruction(real),
        "reconstruction_generated": reconstruction(generated[: len(real)]),
    }


def _ours(config: ReflowConfig, folder: Path, first: Model, budget: int) -> Model:
    """Our recipe from the first round's flow, at the passes that this round's student has cost
    beside that flow.
    """
    settings = {name: getattr(config, name) for name in ("seed", "batch", "network", "loop")}
    return run_recipe(
        RecipeConfig(config.data, folder / "ours", budget, strong=first.folder, **settings)
    )


def main_reflow(config: ReflowConfig) -> dict[str, Any]:
    """The verb ``reflow``."""
    from bezierdistill.records import ERRORS, to_json
    from bezierdistill.reporting.summary import sampler_label
    from bezierdistill.reporting.tables import print_rows

    rounds = reflow(config)
    for row in rounds:
        figures = ", ".join(f"{name} {getattr(row, name):.4g}" for name in ERRORS)
        print(f"round {row.round}: {figures}")
        print_rows({sampler_label(sampled): sampled.scores for sampled in row.samplers})
    result = {"out": config.out, "rounds": [to_json(row) for row in rounds]}
    if config.report:
        from bezierdistill.reporting import write_report

        result["report"] = write_report(config.out)
        print(result["report"])
    return result

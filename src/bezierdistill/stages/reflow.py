r"""Reflow rounds and their errors: how the law drifts while paths get straighter, beside our curves
at the same passes.

Round 1 is flow matching. Round k trains the next flow on pairs :math:`(x_0, \phi_{k-1}(x_0))` of
the flow before it (objective ``velocity`` on degree-1 curves), and every round's pairs are also
distilled into one pass (objective ``knots`` on the interval 0 to 1).

Each round's figures go to ``rounds.json``. *Drift* is :math:`E|\phi_k(x_0) - \phi_1(x_0)|^2`.
*Reconstruction* is :math:`E|x - \phi_k(\phi_1^{-1}(x))|^2` of held-out real x and of generated
:math:`x = \phi_1(x_0)`, both a component: a flow that has learned from generated data alone loses
the real ones (Balanced Conic Rectified Flow, arXiv 2510.25229).

Source: Liu et al. 2022, *Flow straight and fast*, arXiv 2209.03003, algorithm 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bezierdistill.data import Data, load_data
from bezierdistill.files import claim, locked, write_json
from bezierdistill.metrics import Evaluator, straightness
from bezierdistill.models import Model, NetworkConfig
from bezierdistill.noise import noise
from bezierdistill.progress import announce
from bezierdistill.run import recorded
from bezierdistill.settings import as_paths, check_counts, check_seed, check_whole_batches
from bezierdistill.solvers import solve, time_grid
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.settings import LoopConfig

ROUNDS, SETTINGS = "rounds.json", "reflow.json"
TEACHER_PASSES = 40
JUDGED = 4096
JUDGE_SEED = 1_000_003


@dataclass(frozen=True)
class ReflowConfig:
    """Train k-rectified flows, and measure what every round loses.

    Each flow is distilled into one pass as well.

    Example::

        bezierdistill reflow --data digits --rounds 2 --report --out runs/reflow
    """

    data: str
    """Built-in name or path."""
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
    """Rows a step."""
    seed: int = 0
    """Seed of weights and draws."""
    count: int = 60_000
    """Pairs simulated a round."""
    solver_steps: int = 8
    """Heun steps a pair (two passes each)."""
    huber: float = 0.0
    """Scale of the pseudo-Huber loss of the distillations; 0 is the squared error of the paper."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """How weights are updated."""

    def __post_init__(self) -> None:
        as_paths(self, "out")
        check_seed(self.seed)
        check_counts(
            rounds=self.rounds,
            steps=self.steps,
            batch=self.batch,
            count=self.count,
            solver_steps=self.solver_steps,
        )
        check_whole_batches(self.loop)


def reflow(config: ReflowConfig) -> list[dict[str, Any]]:
    """Run the rounds, from where a run of the same settings stopped, and write their figures to
    ``rounds.json``.

    Returns:
        A row a round: ``round``; ``flow_passes`` and ``student_passes`` spent; ``straightness``,
        ``drift``, ``reconstruction_real`` and ``reconstruction_generated`` of the flow; the metrics
        of ``samplers``: the flow at 40 (Heun), 1 and 2 (Euler) passes and its one-pass student; and
        with ``report`` those of ``ours`` at 1 and 2 passes with ``ours_passes`` spent.

    Raises:
        UserError: on bad data or settings, or a folder that holds something else.
    """
    data = load_data(config.data)
    free = ("out", "rounds", "report")  # rounds may be added, and our curves beside them
    with locked(config.out):
        claim(
            config.out / SETTINGS,
            {key: value for key, value in asdict(config).items() if key not in free},
            "reflow",
        )
        with recorded(config.out, "reflow", config):
            return _rounds(config, data)


def _rounds(config: ReflowConfig, data: Data) -> list[dict[str, Any]]:
    evaluate, x0 = Evaluator(data), noise(config.seed + JUDGE_SEED, 0, JUDGED, data.shape)
    real = data.real(evaluate.size(JUDGED), config.seed, "test")
    flows: list[Model] = []
    rows: list[dict[str, Any]] = []
    for k in range(1, config.rounds + 1):
        announce(f"round {k} of {config.rounds}")
        folder = config.out / f"round-{k}"
        flows.append(_next_flow(config, folder) if flows else _first_flow(config, folder))
        first, flow = flows[0], flows[-1]
        student = _student(config, folder, flow)
        row = {
            "round": k,
            **_figures(flow, student, x0, evaluate),
            **_losses(first, flow, x0, real),
        }
        rows.append(
            row
            | (_ours(config, folder, first, student.spent, x0, evaluate) if config.report else {})
        )
        write_json(config.out / ROUNDS, {"data": config.data, "seed": config.seed, "rounds": rows})
    return rows


def _first_flow(config: ReflowConfig, folder: Path) -> Model:
    settings = TrainConfig(
        config.data,
        folder / "flow",
        config.steps,
        config.batch,
        config.seed,
        network=config.network,
        loop=config.loop,
    )
    return train(settings)


def _next_flow(config: ReflowConfig, folder: Path) -> Model:
    pairs = folder.parent / f"round-{int(folder.name.split('-')[1]) - 1}" / "pairs"
    return distill(replace(_regression(config, pairs, folder / "flow"), objective="velocity"))


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
    )
    simulate(pairs)
    return distill(_regression(config, pairs.out, folder / "student"))


def _regression(config: ReflowConfig, pairs: Path, out: Path) -> DistillConfig:
    settings = DistillConfig(
        pairs, out, "knots", passes=1, steps=config.steps, batch=config.batch, seed=config.seed
    )
    return replace(settings, huber=config.huber, power=0.0, loop=config.loop)


def _figures(flow: Model, student: Model, x0: Tensor, evaluate: Evaluator) -> dict[str, Any]:
    samplers = {
        f"flow, Heun, {TEACHER_PASSES} passes": flow.generate(x0, TEACHER_PASSES, "heun"),
        "flow, Euler, 1 pass": flow.generate(x0, 1),
        "flow, Euler, 2 passes": flow.generate(x0, 2),
        "distilled, 1 pass": student.generate(x0, 1),
    }
    return {
        "flow_passes": flow.spent,
        "student_passes": student.spent,
        "straightness": straightness(flow.field, x0[:1024]),
        "samplers": {name: _judged(flow, x, evaluate) for name, x in samplers.items()},
    }


def _judged(model: Model, x: Tensor, evaluate: Evaluator) -> dict[str, float]:
    """Metrics of samples as they would be saved: in own units, clamped to their range."""
    return evaluate(model.scaling.encode(model.scaling.decode(x)))


@torch.no_grad()
def _losses(first: Model, flow: Model, x0: Tensor, real: Tensor) -> dict[str, float]:
    """Drift of the end points from the first round's, and errors of reconstructing real and
    generated states.
    """
    generated = first.generate(x0, TEACHER_PASSES, "heun")

    def reconstructed(x: Tensor) -> float:
        source = solve(first.field, x, time_grid(TEACHER_PASSES // 2, 1.0, 0.0)).state
        return float((flow.generate(source, TEACHER_PASSES, "heun") - x).square().mean())

    return {
        "drift": float((flow.generate(x0, TEACHER_PASSES, "heun") - generated).square().mean()),
        "reconstruction_real": reconstructed(real),
        "reconstruction_generated": reconstructed(generated[: len(real)]),
    }


def _ours(
    config: ReflowConfig, folder: Path, first: Model, budget: int, x0: Tensor, evaluate: Evaluator
) -> dict[str, Any]:
    """Our recipe from the first round's flow, at the passes that this round's student has cost."""
    settings = RecipeConfig(
        config.data, folder / "ours", budget, config.seed, config.batch, strong=first.folder
    )
    student = run_recipe(replace(settings, network=config.network, loop=config.loop))
    samplers = {f"ours, {k} pass{'es' if k > 1 else ''}": student.generate(x0, k) for k in (1, 2)}
    return {
        "ours_passes": student.spent,
        "ours": {name: _judged(student, x, evaluate) for name, x in samplers.items()},
    }

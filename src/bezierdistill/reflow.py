r"""k-rectified flows and their one-pass distillations: the rivals, by the same code as ours at degree 1.

Round 1 is flow matching. Round k trains the next flow on pairs :math:`(x_0, \phi_{k-1}(x_0))` of the flow before it (objective
``velocity`` on degree-1 curves), and every round's pairs are also distilled into one pass (objective ``knots`` on the interval 0 to 1).
Each round's figures (method of measuring error accumulation: Balanced Conic Rectified Flow, arXiv 2510.25229) go to ``rounds.json``.

Source: Liu et al. 2022, *Flow straight and fast*, arXiv 2209.03003, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bezierdistill.data import load_data
from bezierdistill.files import write_json
from bezierdistill.metrics import Evaluator, straightness
from bezierdistill.models import Model, NetworkConfig, load_model
from bezierdistill.objectives import CurveRegression
from bezierdistill.pipeline import distill, simulate, train
from bezierdistill.sources import noise
from bezierdistill.training.config import DistillConfig, LoopConfig, SimulateConfig, TrainConfig, as_paths, check_counts

ROUNDS = "rounds.json"
TEACHER_PASSES = 40
JUDGED = 4096
JUDGE_SEED = 1_000_003


@dataclass(frozen=True)
class ReflowConfig:
    """Train k-rectified flows and distil each into one pass.

    Args:
        data: built-in name or path.
        out: folder of the rounds.
        rounds: number of rounds, 1 or more; round 1 is plain flow matching.
        teacher: a trained teacher to use as the first flow; without it one is trained.
        steps: optimizer steps of every flow and every distillation.
        batch: rows a step.
        seed: seed of weights and draws.
        count: pairs simulated a round.
        solver_steps: Heun steps a pair (two passes each).
        budget: network passes in all for each round's one-pass student, flows and pairs before it included; it then sets the steps.
        huber: scale of the pseudo-Huber loss of the distillations; 0 is the squared error of the paper.
        network: the network.
        loop: how weights are updated.
    """

    data: str
    out: Path
    rounds: int = 2
    teacher: Path | None = None
    steps: int = 6000
    batch: int = 512
    seed: int = 0
    count: int = 60_000
    solver_steps: int = 20
    budget: int | None = None
    huber: float = 0.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        as_paths(self, "out")
        check_counts(rounds=self.rounds, steps=self.steps, batch=self.batch, count=self.count, solver_steps=self.solver_steps)


def reflow(config: ReflowConfig) -> list[dict[str, Any]]:
    """Run the rounds and write their figures to ``rounds.json``.

    Returns:
        A row a round: ``round``, ``flow_passes`` and ``student_passes`` spent, ``straightness`` and ``drift`` of the flow, and the metrics
        of ``samplers``: the flow at 40 (Heun), 1 and 2 (Euler) passes and its one-pass student.

    Raises:
        ValueError: on bad data or settings, a folder that holds other runs, or a budget that the flows and pairs alone exceed.
    """
    data = load_data(config.data)
    if (config.out / ROUNDS).exists():
        raise ValueError(f"{config.out} already holds reflow rounds: choose another --out")
    evaluate, x0 = Evaluator(data), noise(config.seed + JUDGE_SEED, 0, JUDGED, data.shape)
    flow, first_ends = None, None
    rows: list[dict[str, Any]] = []
    for k in range(1, config.rounds + 1):
        folder = config.out / f"round-{k}"
        flow = _first_flow(config, folder) if flow is None else _next_flow(config, folder, flow)
        student = _student(config, folder, flow)
        ends = flow.generate(x0, TEACHER_PASSES, "heun")
        first_ends = ends if first_ends is None else first_ends
        rows.append({"round": k, **_figures(flow, student, x0, evaluate), "drift": float((ends - first_ends).square().mean())})
        write_json(config.out / ROUNDS, {"data": config.data, "seed": config.seed, "rounds": rows})
    return rows


def _first_flow(config: ReflowConfig, folder: Path) -> Model:
    if config.teacher is not None:
        return load_model(config.teacher)
    settings = TrainConfig(config.data, folder / "flow", config.steps, config.batch, config.seed, network=config.network, loop=config.loop)
    return train(settings)


def _next_flow(config: ReflowConfig, folder: Path, before: Model) -> Model:
    """Reflow: train the next flow on the pairs of the one before, with half of what the budget leaves."""
    assert before.folder is not None
    left = _left(config, before, pairs=2)
    pairs = folder.parent / f"round-{int(folder.name.split('-')[1]) - 1}" / "pairs"
    return distill(replace(_regression(config, pairs, folder / "flow", left // 2), objective="velocity"))


def _student(config: ReflowConfig, folder: Path, flow: Model) -> Model:
    """Rectified-flow distillation: pairs of this flow, then one pass from source to end."""
    assert flow.folder is not None
    left = _left(config, flow, pairs=1)
    pairs = SimulateConfig((flow.folder,), folder / "pairs", degree=1, count=config.count, seed=config.seed, steps=config.solver_steps)
    simulate(pairs)
    return distill(_regression(config, pairs.out, folder / "student", left))


def _left(config: ReflowConfig, flow: Model, pairs: int) -> int:
    """Passes that the budget leaves for training after a flow and ``pairs`` further stores of pairs."""
    if config.budget is None:
        return config.steps * config.batch * CurveRegression.passes * pairs
    left = config.budget - flow.spent - pairs * config.count * 2 * config.solver_steps
    if left < config.batch * CurveRegression.passes * pairs:
        raise ValueError(
            f"budget is {config.budget} passes, flow and pairs alone cost {config.budget - left}: raise --budget or lower --count"
        )
    return left


def _regression(config: ReflowConfig, pairs: Path, out: Path, passes: int) -> DistillConfig:
    return DistillConfig(
        pairs,
        out,
        "knots",
        passes=1,
        steps=passes // (config.batch * CurveRegression.passes),
        batch=config.batch,
        seed=config.seed,
        huber=config.huber,
        power=0.0,
        loop=config.loop,
    )


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
        "samplers": {name: evaluate(flow.scaling.encode(flow.scaling.decode(x))) for name, x in samplers.items()},
    }

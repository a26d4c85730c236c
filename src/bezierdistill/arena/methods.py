"""Every method of the arena by name: how its budget is spent, and how it is sampled. The objectives
are in ``objectives/``, one a file; newer rivals' functions in :mod:`bezierdistill.arena.rivals`.

Settings are keyword arguments; their defaults came out of a search of four trials or more for every
method (``benchmarks/search.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bezierdistill.arena import rivals
from bezierdistill.arena.bench import PAIR_STEPS, Bench, Method, Sampler
from bezierdistill.arena.samplers import MIDDLE, TEACHER, even_jumps, renoised, renoising
from bezierdistill.flow_map import sample
from bezierdistill.knots import cheapest_knots, interval_errors
from bezierdistill.models import Model
from bezierdistill.models.weights import start_from
from bezierdistill.noise import Stream, noise
from bezierdistill.objectives import (
    Aligned,
    Alignment,
    Balanced,
    Conic,
    ConsistencyDistillation,
    ConsistencyTraining,
    ConstantAcceleration,
    DistributionMatching,
    InitialVelocity,
    LagrangianMap,
    LagrangianSelfDistillation,
    Loss,
    MeanFlow,
    OnPolicy,
    Piecewise,
    Progressive,
    RectifiedFlowPP,
    Shortcut,
)
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.objectives.consistency import karras_times
from bezierdistill.objectives.constant_acceleration import sample as acceleration_sample
from bezierdistill.objectives.progressive import halvings
from bezierdistill.simulation import Simulation
from bezierdistill.solvers import time_grid
from bezierdistill.stages.recipe import RecipeConfig, Shares, run_recipe
from bezierdistill.stages.train import FlowSettings

OURS = "bezier"
LINES, ONE_TEACHER = {"degree": 1}, {"weak": 0.0}


def bezier(bench: Bench, total: float = 1.0, **changes: Any) -> Mapping[int, Sampler]:
    """Ours: the default recipe (:mod:`bezierdistill.stages.recipe`), or the same with a share of
    the budget or with some settings changed.
    """
    bench.budget.total = bench.budget.share(total)
    config = RecipeConfig(
        bench.data.name,
        bench.folder,
        bench.budget.total,
        bench.seed,
        bench.batch,
        train=FlowSettings(conditional=bench.conditional),
        network=bench.network,
        loop=bench.loop,
    )
    for group, settings in changes.items():
        config = replace(config, **{group: replace(getattr(config, group), **settings)})
    strong = bench.teacher(config.shares.strong).folder
    weak = bench.teacher(config.shares.weak, weak=True).folder if config.shares.weak else None
    config = replace(config, strong=strong, weak=weak, budget=bench.budget.left)
    student = run_recipe(config)
    bench.budget.charge(student.spent - student.card.passes.teachers)
    return _jumps(bench.placed(student), 1, 2, 4)


def on_policy_curves(
    bench: Bench, share: float = TEACHER, points: int = 4, asked: int = 1, whole: float = 0.15
) -> Mapping[int, Sampler]:
    """Emitted curves by a teacher alone, asked along the student's own: nothing is stored."""
    model = bench.teacher(share)
    network = replace(bench.network, control_points=points)
    size = bench.data.condition_size if bench.conditional else 0
    net = network.build(bench.data.shape, bench.seed, size)
    start_from(net, model.net)
    return even_jumps(bench.fit(net, OnPolicy(model.field, asked, whole)), 1, 2, 4)


def teacher(
    bench: Bench, share: float = 1.0, solver: str = "euler", passes: tuple[int, ...] = (1, 2, 4)
) -> Mapping[int, Sampler]:
    """A teacher trained with a share of the budget, sampled by an ODE solver."""
    model = bench.teacher(share)
    return {k: partial(model.generate, passes=k, solver=solver) for k in passes}


def teacher_knots(bench: Bench, share: float = 0.95) -> Mapping[int, Sampler]:
    """A teacher's Euler steps between the knots that dynamic programming finds on its own paths,
    with what the teacher has left.
    """
    model, grid = bench.teacher(share), time_grid(20)
    cost = 2 * PAIR_STEPS + len(grid) * (len(grid) - 1) // 2
    curves = min(bench.budget.left // cost, 2048)
    rows = range(curves)
    cond = model.condition(rows, bench.seed, Stream.SIMULATE)
    cond = None if cond is None else cond.to(bench.device)
    x0 = noise(bench.seed, Stream.SIMULATE, rows, bench.data.shape).to(bench.device)
    line, _ = Simulation(model.field, steps=PAIR_STEPS).curves(x0, cond)
    costs = interval_errors(model.net, line, grid, cond)
    bench.budget.charge(curves * cost)
    return {k: partial(sample, model.net, knots=cheapest_knots(costs, grid, k)) for k in (2, 4)}


def rectified_flow(
    bench: Bench, rounds: int, share: float = TEACHER, **settings: Any
) -> Mapping[int, Sampler]:
    """k-rectified flow (Liu et al. 2022): a teacher, then ``rounds - 1`` flows on the pairs of the
    one before.
    """
    flow = _reflow(bench, bench.teacher(share), rounds - 1, rounds - 1, **settings)
    return _jumps(flow, 1, 2, 4)


def rectified_flow_distillation(
    bench: Bench, rounds: int, share: float = TEACHER, passes: int = 1, huber: float = 0.0
) -> Mapping[int, Sampler]:
    """The same, and the last flow's pairs distilled into one pass (or two even ones)."""
    flow = _reflow(bench, bench.teacher(share), rounds - 1, rounds)
    knots = tuple(k / passes for k in range(1, passes))
    student = bench.distill(
        bench.pairs(flow),
        "student",
        objective="knots",
        passes=passes,
        knots=knots,
        huber=huber,
        power=0.0,
    )
    return _jumps(student, passes)


def _reflow(bench: Bench, flow: Model, rounds: int, trainings: int, huber: float = 0.0) -> Model:
    """Reflow some rounds; what is left of the budget is shared evenly among all trainings to
    come.
    """
    for k in range(rounds):
        before = bench.budget.left
        store = bench.pairs(flow)
        pairs, still = before - bench.budget.left, trainings - k
        spend = (bench.budget.left - (still - 1) * pairs) // still
        flow = bench.distill(store, f"flow-{k + 2}", spend, objective="velocity", huber=huber)
    return flow


def rectified_flow_pp(
    bench: Bench, share: float = TEACHER, huber: float = 0.0, **settings: float
) -> Mapping[int, Sampler]:
    """2-rectified flow++ (Lee et al. 2024): reflow with U-shaped times and the pseudo-Huber
    distance.
    """
    model = bench.teacher(share)
    store, objective = bench.pairs(model), RectifiedFlowPP(huber=huber, **settings)
    return even_jumps(bench.fit(copy.deepcopy(model.net), objective, bench.lines(store)), 1, 2, 4)


def conic(
    bench: Bench, share: float = TEACHER, zeta: float = 0.05, real: float = 0.5
) -> Mapping[int, Sampler]:
    """Balanced conic rectified flow (Kim et al. 2025): real pairs take part in the first half of
    the training, as the authors do.
    """
    model = bench.teacher(share)
    generated = bench.lines(bench.pairs(model, 0.05))
    inverted = bench.lines(bench.pairs(model, 0.05, backwards=True))

    def batches(draws: torch.Generator) -> Balanced:
        return Balanced(generated(draws), inverted(draws))

    net = copy.deepcopy(model.net)
    for half, weight in enumerate((real, 0.0)):
        spend = bench.budget.left // (2 - half)
        net = bench.fit(net, Conic(weight, zeta), batches, f"half-{half + 1}", spend)
    return even_jumps(net, 1, 2, 4)


def progressive(bench: Bench, share: float = TEACHER, steps: int = 64) -> Mapping[int, Sampler]:
    """Progressive distillation (Salimans & Ho 2022) from ``steps`` teacher steps down to one, each
    round with an equal part.
    """
    net, samplers = bench.teacher(share).net, {}
    rounds = halvings(steps)
    for k, number in enumerate(rounds):
        objective, spend = (
            Progressive(copy.deepcopy(net), number),
            bench.budget.left // (len(rounds) - k),
        )
        net = bench.fit(copy.deepcopy(net), objective, name=f"steps-{number}", spend=spend)
        samplers |= even_jumps(net, number)
    return {k: samplers[k] for k in (1, 2)}


def consistency_distillation(
    bench: Bench,
    share: float = TEACHER,
    even: bool = True,
    huber: float = 0.03,
    middle: float = MIDDLE,
) -> Mapping[int, Sampler]:
    """Consistency distillation (Song et al. 2023) with Heun steps of the teacher, between the
    authors' 18 times or as many even ones.
    """
    model = bench.teacher(share)
    times = time_grid(17) if even else karras_times()
    objective = ConsistencyDistillation(model.field, times, metric=Loss(huber))
    return renoised(bench, bench.fit(copy.deepcopy(model.net), objective), middle)


def consistency_training(
    bench: Bench,
    share: float = TEACHER,
    huber: float = 0.001,
    middle: float = MIDDLE,
    lr: float | None = None,
    **settings: float,
) -> Mapping[int, Sampler]:
    """Easy consistency tuning (Geng et al. 2024) of a teacher; with ``share=0`` consistency
    training from scratch (iCT).
    """
    net = copy.deepcopy(bench.teacher(share).net) if share else bench.build()
    objective = ConsistencyTraining(metric=Loss(huber), **settings)  # pyright: ignore[reportArgumentType]
    net = bench.fit(net, objective, rates={"student": lr or bench.loop.lr})
    return renoised(bench, net, middle)


def piecewise(
    bench: Bench, share: float = TEACHER, windows: int = 2, steps: int = 4, solver: str = "heun"
) -> Mapping[int, Sampler]:
    """Piecewise rectified flow (Yan et al. 2024): one Euler step per window."""
    model = bench.teacher(share)
    objective = Piecewise(model.field, windows, steps, solver)
    return even_jumps(bench.fit(copy.deepcopy(model.net), objective), windows)


def constant_acceleration(
    bench: Bench, share: float = TEACHER, h: float = 1.0, velocity: float = 0.5
) -> Mapping[int, Sampler]:
    """Constant acceleration flow (Park et al. 2024): one step of its two networks is two passes."""
    model = bench.teacher(share)
    lines = bench.lines(bench.pairs(model))
    spend, start = int(velocity * bench.budget.left), copy.deepcopy(model.net)
    net_v = bench.fit(start, InitialVelocity(h), lines, "velocity", spend)
    net_a = bench.build((2 * bench.data.shape[0], *bench.data.shape[1:]))
    net_a = bench.fit(net_a, ConstantAcceleration(net_v), lines, "acceleration")
    return {2: partial(acceleration_sample, net_v, net_a)}


def moment_matching(
    bench: Bench, share: float = 0.0, lr: float | None = None
) -> Mapping[int, Sampler]:
    """Generative moment matching (Li et al. 2015) by the energy distance, from scratch or a
    teacher: our alignment without curves.
    """
    net = copy.deepcopy(bench.teacher(share).net) if share else bench.build()
    objective = Alignment(((0.0, 1.0),), anchor=0.0, clamp=bench.data.scaling.clamp)

    def batches(draws: torch.Generator) -> Aligned:
        drawn = bench.draws(draws)
        x0, cond = drawn.x0, drawn.cond
        real, real_cond = bench.data.batch(REAL_ROWS * bench.batch, draws)
        real_cond = real_cond if bench.conditional else None
        real_cond = None if real_cond is None else real_cond.to(bench.device)
        return Aligned(x0, (real.flatten(1).to(bench.device),), cond, real_cond)

    return even_jumps(bench.fit(net, objective, batches, rates={"student": lr or bench.loop.lr}), 1)


def distribution_matching(
    bench: Bench,
    share: float = TEACHER,
    knots: tuple[float, ...] = (0.0, 1.0),
    times: tuple[float, float] = (0.02, 0.98),
    lr: float = 1e-4,
    critic_steps: int = 2,
) -> Mapping[int, Sampler]:
    """DMD2's recipe without a GAN (Yin et al. 2024) from one teacher."""
    model = bench.teacher(share)
    objective = DistributionMatching(model.field, knots, times, critic_steps)
    nets = {"student": copy.deepcopy(model.net), "critic": copy.deepcopy(model.net)}
    net = bench.fit(nets, objective, rates={"student": lr})
    return {len(knots) - 1: renoising(bench, net, *knots[1:-1])}


def shortcut(bench: Bench, share: float = 0.75) -> Mapping[int, Sampler]:
    """Shortcut model (Frans et al. 2024), from scratch."""
    return even_jumps(bench.fit(bench.build(), Shortcut(share)), 1, 2, 4)


def mean_flow(
    bench: Bench,
    share: float = 0.5,
    power: float = 0.5,
    logit_mean: float = -0.4,
    logit_std: float = 2.0,
) -> Mapping[int, Sampler]:
    """Mean flow (Geng et al. 2025), from scratch."""
    objective = MeanFlow(share, power, logit_mean, logit_std)
    return even_jumps(bench.fit(bench.build(), objective), 1, 2, 4)


def flow_map_matching(bench: Bench, share: float = TEACHER) -> Mapping[int, Sampler]:
    """Lagrangian map distillation of a teacher (Boffi et al. 2024)."""
    model = bench.teacher(share)
    return even_jumps(bench.fit(copy.deepcopy(model.net), LagrangianMap(model.field)), 1, 2, 4)


def flow_map_self_distillation(bench: Bench, share: float = 0.5) -> Mapping[int, Sampler]:
    """Lagrangian self-distillation (Boffi et al. 2025), from scratch; ``share`` is that of the rows
    that learn the map.
    """
    return even_jumps(bench.fit(bench.build(), LagrangianSelfDistillation(share)), 1, 2, 4)


def _jumps(model: Model, *passes: int) -> dict[int, Sampler]:
    """Samplers of a student or flow that jump from knot to knot."""
    return {k: partial(model.generate, passes=k) for k in passes}


# Ours is bezier alone; bezier-half has half of the budget, bezier-teacher is its strong teacher
# undistilled. The others lack an ingredient: curves (straight lines instead), the second teacher,
# both of these, the pseudo-Huber loss, alignment, drifting beside the energy distance, rows that
# are on-policy, curves that the student emits (it jumps); or they have another: alignment in the
# teacher's hidden states, curves of another degree.
METHODS: dict[str, Method] = {
    OURS: bezier,
    "bezier-half": partial(bezier, total=0.5),
    "bezier-lines": partial(bezier, simulate=LINES),
    "bezier-one-teacher": partial(bezier, shares=ONE_TEACHER),
    "bezier-plain": partial(bezier, simulate=LINES, shares=ONE_TEACHER),
    "bezier-squared": partial(bezier, distill={"huber": 0.0}),
    "bezier-unaligned": partial(bezier, shares={"align": 0.0}),
    "bezier-energy": partial(bezier, distill={"align_distance": "energy"}),
    "bezier-hidden": partial(bezier, distill={"align_features": ("teacher",)}),
    "bezier-stored": partial(bezier, distill={"on_policy": 0.0}),
    "bezier-jumps": partial(bezier, distill={"control_points": 1}),
    **{f"bezier-degree-{n}": partial(bezier, simulate={"degree": n}) for n in (2, 3, 5, 6)},
    "on-policy": on_policy_curves,
    "bezier-teacher": partial(teacher, share=Shares.strong, solver="heun", passes=(20,)),
    "teacher-euler": teacher,
    "teacher-heun": partial(teacher, solver="heun", passes=(2, 4)),
    "teacher-20": partial(teacher, solver="heun", passes=(20,)),
    "teacher-knots": teacher_knots,
    "rf-2": partial(rectified_flow, rounds=2),
    "rf-3": partial(rectified_flow, rounds=3),
    "rfd-1": partial(rectified_flow_distillation, rounds=1, share=0.55),
    "rfd-2": partial(rectified_flow_distillation, rounds=2),
    "rfd-3": partial(rectified_flow_distillation, rounds=3),
    "rfd-1-two": partial(rectified_flow_distillation, rounds=1, passes=2, share=0.55),
    "rf-2++": rectified_flow_pp,
    "conic": conic,
    "progressive": progressive,
    "consistency-distillation": consistency_distillation,
    "consistency-tuning": consistency_training,
    "consistency-tuning-slow": partial(consistency_training, lr=3e-4),
    "consistency-tuning-two": partial(consistency_training, huber=0.03),
    "consistency-training": partial(consistency_training, share=0.0),
    "consistency-training-two": partial(consistency_training, share=0.0, huber=0.1),
    "shortcut": shortcut,
    "mean-flow": mean_flow,
    "flow-map": flow_map_matching,
    "flow-map-self": flow_map_self_distillation,
    "piecewise": piecewise,
    "piecewise-one": partial(piecewise, windows=1),
    "acceleration": constant_acceleration,
    "moments": moment_matching,
    "dmd": distribution_matching,
    "dmd-two": partial(distribution_matching, knots=(0.0, MIDDLE, 1.0), lr=5e-4, critic_steps=5),
    "dmd-gan": rivals.adversarial_matching,
    "fsf": rivals.fake_score_free,
    "drifting": rivals.drifting,
    "drifting-teacher": rivals.teacher_drifting,
    "pi-flow": rivals.policy_flow,
    "freeflow": rivals.free_flow,
    "cmt": rivals.mid_training,
    "ayf": rivals.align_your_flow,
    "soflow": rivals.solution_flow,
    "terminal-velocity": rivals.terminal_velocity,
    "re-meanflow": rivals.rectified_mean_flow,
}

# Those that have no teacher.
SCRATCH: frozenset[str] = frozenset(
    {"consistency-training", "consistency-training-two", "shortcut", "mean-flow", "flow-map-self"}
    | {"moments", "drifting", "soflow", "terminal-velocity"}
)
# By method the metrics of a table that it trains on, which judge nothing there.
TRAINED_ON: dict[str, frozenset[str]] = dict.fromkeys(
    (
        name
        for name in METHODS
        if name.startswith(OURS) and name not in (f"{OURS}-unaligned", f"{OURS}-teacher")
    ),
    frozenset({"energy"}),
) | {"moments": frozenset({"energy"})}

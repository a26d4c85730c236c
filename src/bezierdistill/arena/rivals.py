"""Methods of the years 2025 and 2026, which :mod:`bezierdistill.arena.methods` enters by name; each
names its paper, its objective says what is left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bezierdistill.arena.bench import Bench, Sampler
from bezierdistill.arena.samplers import MIDDLE, TEACHER, even_jumps, renoised
from bezierdistill.fields import Blend
from bezierdistill.flow_map import sample
from bezierdistill.models.features import HiddenStates
from bezierdistill.models.weights import start_from
from bezierdistill.networks.mlp import MLP
from bezierdistill.networks.unet import UNet
from bezierdistill.objectives import (
    AdversarialMatching,
    ConsistencyTraining,
    Curves,
    Discriminating,
    Drifted,
    Drifting,
    EulerianMap,
    FakeScoreFree,
    FreeFlow,
    KnotIntervals,
    LagrangianMap,
    Loss,
    MapIntervals,
    MidTraining,
    Pairs,
    PolicyFlow,
    RectifiedMeanFlow,
    SolutionFlow,
    TerminalVelocity,
    policy_sample,
)
from bezierdistill.objectives.drifting import WIDTHS
from bezierdistill.objectives.rectified_mean_flow import nearest
from bezierdistill.solvers import time_grid


def drifting(
    bench: Bench,
    share: float = 0.0,
    widths: Sequence[float] = WIDTHS,
    normalised: bool = True,
    real_rows: int = 4,
    lr: float | None = None,
) -> Mapping[int, Sampler]:
    """Drifting of states (Deng et al. 2026), from scratch or a teacher's weights."""
    net = copy.deepcopy(bench.teacher(share).net) if share else bench.build()
    clamp = bench.data.scaling.clamp
    return _drift(bench, net, Drifting(widths, None, normalised, clamp, real_rows), lr)


def teacher_drifting(
    bench: Bench,
    share: float = TEACHER,
    widths: Sequence[float] = WIDTHS,
    normalised: bool = True,
    real_rows: int = 1,
    time: float | None = 0.9,
    lr: float | None = None,
) -> Mapping[int, Sampler]:
    """Drifting in a teacher's hidden states (Zhang et al. 2026), from its weights."""
    model = bench.teacher(share)
    features, clamp = HiddenStates(model, times=(time,) if time else ()), bench.data.scaling.clamp
    objective = Drifting(widths, features, normalised, clamp, real_rows)
    return _drift(bench, copy.deepcopy(model.net), objective, lr)


def _drift(
    bench: Bench, net: nn.Module, objective: Drifting, lr: float | None
) -> Mapping[int, Sampler]:
    rates = {"student": lr or bench.loop.lr}
    batches = beside_real(bench, objective.real_rows)
    return even_jumps(bench.fit(net, objective, batches, rates=rates), 1)


def policy_flow(
    bench: Bench,
    share: float = TEACHER,
    outputs: int = 4,
    points: int = 2,
    passes: Sequence[int] = (1, 2),
    huber: float = 0.0,
) -> Mapping[int, Sampler]:
    """pi-Flow (Chen et al. 2025) with its DX policy, for all numbers of passes together."""
    model = bench.teacher(share)
    size = bench.data.condition_size if bench.conditional else 0
    net = bench.network.build(bench.data.shape, bench.seed, size, outputs=outputs)
    start_from(net, model.net)
    intervals = KnotIntervals([time_grid(k) for k in passes])
    objective = PolicyFlow(model.field, intervals, points, metric=Loss(huber))
    net = bench.fit(net, objective)
    return {k: partial(policy_sample, net, knots=time_grid(k)) for k in passes}


def free_flow(
    bench: Bench,
    share: float = TEACHER,
    corrected: float = 0.75,
    weight: float = 1.0,
    huber: float = 0.0,
    lr: float = 5e-4,
) -> Mapping[int, Sampler]:
    """FreeFlow (Tong et al. 2025): predictor and corrector, from noise alone."""
    model = bench.teacher(share)
    nets = {name: copy.deepcopy(model.net) for name in ("student", "critic")}
    objective = FreeFlow(model.field, corrected, weight, Loss(huber))
    return even_jumps(bench.fit(nets, objective, rates={"student": lr}), 1)


def mid_training(
    bench: Bench,
    share: float = TEACHER,
    mid: float = 0.25,
    huber: float = 0.001,
    middle: float = MIDDLE,
    stages: int = 1,
    decay: float = 64.0,
    lr: float | None = None,
) -> Mapping[int, Sampler]:
    """CMT (Hu et al. 2025): mid-training with a part of what the teacher leaves, then easy
    consistency tuning, whose levels are close to each other from the first step on.
    """
    model = bench.teacher(share)
    spend = int(mid * bench.budget.left)
    net = copy.deepcopy(model.net)
    net = bench.fit(net, MidTraining(model.field, metric=Loss(huber)), name="mid", spend=spend)
    rates = {"student": lr or bench.loop.lr}
    tuning = ConsistencyTraining(stages, decay, metric=Loss(huber))
    net = bench.fit(net, tuning, rates=rates)
    return renoised(bench, net, middle)


def align_your_flow(
    bench: Bench,
    share: float = TEACHER,
    weak: float = 0.05,
    strength: float = 1.25,
    whole: float = 0.0,
    offset: float | None = 0.1,
    lagrangian: bool = True,
    lr: float = 2e-3,
) -> Mapping[int, Sampler]:
    """Align your flow (Sabour et al. 2025) without its adversarial end: map distillation of a
    strong teacher guided away from a weak one.
    """
    strong = bench.teacher(share)
    fields = [strong.field, bench.teacher(weak, weak=True).field]
    field = Blend(fields, torch.tensor([strength, 1 - strength]))
    eulerian = EulerianMap(field, MapIntervals(whole), offset=offset)
    objective = LagrangianMap(field) if lagrangian else eulerian
    net = bench.fit(copy.deepcopy(strong.net), objective, rates={"student": lr})
    return even_jumps(net, 1, 2, 4)


def adversarial_matching(
    bench: Bench,
    share: float = TEACHER,
    times: tuple[float, float] = (0.02, 0.98),
    lr: float = 5e-4,
    critic_steps: int = 2,
    generator_weight: float = 3e-3,
    critic_weight: float = 1e-2,
) -> Mapping[int, Sampler]:
    """DMD2 with its GAN (Yin et al. 2024) from one teacher."""
    model = bench.teacher(share)
    critic = Discriminating(copy.deepcopy(model.net), *middle_part(model.net))
    objective = AdversarialMatching(
        model.field,
        times=times,
        critic_steps=critic_steps,
        generator_weight=generator_weight,
        critic_weight=critic_weight,
    )
    nets = {"student": copy.deepcopy(model.net), "critic": critic}
    net = bench.fit(nets, objective, rates={"student": lr})
    return even_jumps(net, 1)


def solution_flow(
    bench: Bench,
    share: float = 0.5,
    power: float = 0.5,
    logit_std: float = 2.0,
    first: float = 0.1,
    last: float = 0.002,
) -> Mapping[int, Sampler]:
    """SoFlow (Luo et al. 2025), with other shares alpha-Flow (Zhang et al. 2025), from scratch."""
    objective = SolutionFlow(share, first, last, power, logit_std=logit_std)
    return even_jumps(bench.fit(bench.build(), objective), 1, 2, 4)


def terminal_velocity(bench: Bench, **settings: float) -> Mapping[int, Sampler]:
    """Terminal velocity matching (Zhou et al. 2025), from scratch."""
    return even_jumps(bench.fit(bench.build(), TerminalVelocity(**settings)), 1, 2, 4)


def rectified_mean_flow(
    bench: Bench,
    share: float = TEACHER,
    dropped: float = 0.1,
    power: float = 0.5,
    **settings: float,
) -> Mapping[int, Sampler]:
    """Re-MeanFlow (Zhang et al. 2025): mean flow on the nearer pairs of a teacher, from its
    weights.
    """
    model = bench.teacher(share)
    store, rows = bench.pairs(model), math.ceil(bench.batch / (1 - dropped))

    def batches(draws: torch.Generator) -> Pairs:
        pairs = nearest(Curves(*store.batch(rows, draws)), bench.batch)
        parts = (None if part is None else part.to(bench.draws.device) for part in pairs)
        return Pairs(*parts)  # pyright: ignore[reportArgumentType]

    objective = RectifiedMeanFlow(power=power, **settings)
    return even_jumps(bench.fit(copy.deepcopy(model.net), objective, batches), 1, 2, 4)


def fake_score_free(
    bench: Bench,
    share: float = TEACHER,
    mapped: float = 0.6,
    knots: tuple[float, ...] = (0.0, 0.5, 1.0),
    lr: float = 1e-4,
    track: float = 1.0,
) -> Mapping[int, Sampler]:
    """FSF-DMD (Kim et al. 2026): distribution matching whose critic is the student's diagonal, from
    a flow map that is distilled with a part of what the teacher leaves.
    """
    model = bench.teacher(share)
    net = copy.deepcopy(model.net)
    if mapped:
        spend = int(mapped * bench.budget.left)
        net = bench.fit(net, LagrangianMap(model.field), name="map", spend=spend)
    objective = FakeScoreFree(model.field, knots, track=track)
    net = bench.fit(net, objective, rates={"student": lr})
    return {k: partial(sample, net, knots=(*knots[:k], 1.0)) for k in range(1, len(knots))}


def middle_part(net: Any) -> tuple[str, int]:
    """The part in the middle of one of our networks, by its path, and the width of its output."""
    if isinstance(net, MLP):
        place = (len(net.hidden) - 1) // 2
        return f"hidden.{place}" if net.hidden else "enter", net.enter.out_features
    config = net.inner.config
    if isinstance(net, UNet):
        return "inner.mid_block", config.block_out_channels[-1]
    place = len(net.inner.transformer_blocks) // 2
    width = config.num_attention_heads * config.attention_head_dim
    return f"inner.transformer_blocks.{place}", width


def beside_real(bench: Bench, real_rows: int) -> Callable[[torch.Generator], Drifted]:
    """Batches of noise beside ``real_rows`` real states for each."""

    def batches(draws: torch.Generator) -> Drifted:
        drawn = bench.draws(draws)
        x0, cond = drawn.x0, drawn.cond
        real, real_cond = bench.data.batch(real_rows * bench.batch, draws)
        real_cond = real_cond.to(x0.device) if real_cond is not None and bench.conditional else None
        return Drifted(x0, real.to(x0.device), cond, real_cond)

    return batches

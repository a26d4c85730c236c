"""Alignment as a stage: which features and which distance, the pool of real states, the training,
and what all of it costs in network passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bezierdistill.errors import UserError
from bezierdistill.progress import stage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bezierdistill.data import Data
    from bezierdistill.knots import Knots
    from bezierdistill.models.features import Features, HiddenStates
    from bezierdistill.models.model import Model
    from bezierdistill.models.teacher import Teacher
    from bezierdistill.stages.distill import DistillConfig, StudentSettings
    from bezierdistill.store import CurveStore
    from bezierdistill.training.batches import Starts
    from bezierdistill.training.loop import Trainer

AUTO = {"images": ("patches",), "vectors": ("states",)}  # what align-features auto is
NAMED = ("auto", "states", "patches", "teacher")  # others are parts of a user's own module
POOL, FREE_POOL = 16_384, 65_536  # the most real states; where features cost no pass
POWERS = (0.7, 1.0, 1.4, 2.0, 2.8)  # of knots that are tried
TRIED, TOLD = 1024, 4  # samples by which knots are chosen; the most passes that they are told for


def check_features(names: Sequence[str], times: Sequence[float]) -> None:
    """Raise ``UserError`` unless the settings of features go together."""
    if not names or (len(names) > 1 and "auto" in names) or len(set(names)) < len(names):
        raise UserError(
            f"align-features are {','.join(names) or 'none'}, expected auto alone, or some of"
            " states, patches, teacher, and parts of your own module by path, once each"
        )
    if not all(0 < time < 1 for time in times):
        raise UserError(f"align-times are {times}, expected some between 0 and 1, such as 0.95")


def align_curves(
    config: DistillConfig,
    store: CurveStore,
    data: Data,
    net: nn.Module,
    network: object,
    knots: Mapping[int, Knots],
    own: Teacher | None,
    device: torch.device,
) -> tuple[nn.Module, Mapping[int, Knots], int]:
    """Align every sampler with real data, from the sources of stored curves, anchored at their
    ends; the network, the knots and the passes that this cost.
    """
    from bezierdistill.stages.students import best_teacher
    from bezierdistill.stages.targets import find_describe
    from bezierdistill.training.batches import CurveBatches

    kept = store.recipe.conditions
    conditional, seed = kept.size > 0 and data.condition_size > 0, config.seed + 1
    describe = find_describe(store)

    def starts(trainer: Trainer, batch: int) -> Starts:
        return CurveBatches(store, trainer, batch, seed if config.epochs else None).starts

    features = find_features(
        config, network, store.recipe.shape, lambda: own or best_teacher(store), conditional
    )
    chosen, spent = knots, 0
    if config.chooses_knots:
        chosen, spent = choose_knots(net, store, data, config.most_passes, device)
        knots = {k: chosen[k] for k in knots}
    aligned = aligned_samplers(knots)
    net, cost = align(config, data, net, aligned, starts, features, conditional, describe)
    return net, chosen, spent + cost


def aligned_samplers(knots: Mapping[int, Knots]) -> dict[int, Knots]:
    """Those of a student's samplers, by their passes, that are aligned: 1, 2, 4, ..., the most."""
    most = max(knots, default=0)
    return {k: times for k, times in knots.items() if k == most or k & (k - 1) == 0}


@stage("knots")
def choose_knots(
    net: nn.Module, store: CurveStore, data: Data, passes: int, device: torch.device
) -> tuple[Mapping[int, Knots], int]:
    """Knots whose samples of two passes are closest, by the energy distance, to validation data;
    those of more passes have the same power. And the network passes that this cost.
    """
    import torch

    from bezierdistill.flow_map import sample
    from bezierdistill.knots import powered_knots
    from bezierdistill.memory import batch_size
    from bezierdistill.objectives.distances import energy

    rows = tried_rows(len(store), data.count("valid"))
    curve, cond = store.to(device, rows)
    sources = curve.source.split(batch_size(store.recipe.shape, device.type))
    conds = [None] * len(sources) if cond is None else cond.split(len(sources[0]))
    real, found = data.real(rows, 0, "valid").flatten(1).to(device), {}
    net.to(device)
    with torch.no_grad():
        for power in POWERS:
            times = powered_knots(2, power)
            parts = zip(sources, conds, strict=True)
            x = torch.cat([sample(net, x0, times, part) for x0, part in parts])
            found[power] = float(energy(data.scaling.clamp(x).flatten(1), real))
    best = min(POWERS, key=lambda power: found[power])
    knots = {k: powered_knots(k, best) for k in range(1, max(passes, TOLD) + 1)}
    return knots, knots_cost(rows)


def tried_rows(curves: int, valid: int | None) -> int:
    """Samples by which knots are chosen."""
    return min(TRIED, curves, TRIED if valid is None else valid)


def knots_cost(rows: int) -> int:
    """Network passes that choosing knots costs."""
    return 2 * len(POWERS) * rows


def align(
    config: DistillConfig,
    data: Data,
    net: nn.Module,
    knots: Mapping[int, Knots],
    starts: Callable[[Trainer, int], Starts],
    features: Features,
    conditional: bool,
    describe: Callable[[torch.Tensor], torch.Tensor] = lambda cond: cond,
) -> tuple[nn.Module, int]:
    """Align every sampler with real data; the network and the passes that this cost.

    Args:
        config: settings.
        data: the real data.
        net: the student.
        knots: of its samplers.
        starts: what samples start from, of a trainer and rows on all ranks.
        features: what is compared.
        conditional: whether samples have conditions such as those of the data.
        describe: gives those of samples as vectors such as the data's.
    """
    from bezierdistill.objectives import Alignment, Loss
    from bezierdistill.objectives.alignment import REAL_ROWS, turns_cost
    from bezierdistill.objectives.distances import find_distance
    from bezierdistill.training.batches import AlignedBatches
    from bezierdistill.training.loop import Trainer
    from bezierdistill.training.pool import make_pool

    size, seed = config.align_rows(config.rows), config.seed + 1
    rates = {"student": config.align_lr}
    trainer = Trainer({"student": net}, config.loop, config.out, "alignment", rates)
    objective = Alignment(
        tuple(knots.values()),
        Loss(config.huber),
        config.anchor,
        data.scaling.clamp,
        conditional,
        features,
        find_distance(config.align_distance),
        describe,
    )
    drawn = REAL_ROWS * size * config.loop.accumulate
    rows = pool_rows(features.calls, config.align * drawn, data.count("train"))
    with _as_found(features, trainer):
        pool = make_pool(data, features, rows, seed, trainer, conditional)
        real = REAL_ROWS * trainer.share(size)
        batches = AlignedBatches(starts(trainer, size), pool, real, trainer)
        net = trainer.fit(objective, batches, config.align, seed)
    turns = turns_cost(objective.knots, features.calls, config.align * config.loop.accumulate)
    return net, size * turns + pool.rows * features.calls


def find_features(
    config: StudentSettings,
    network: object,
    shape: tuple[int, ...],
    teacher: Callable[[], Model | None],
    conditional: bool = False,
) -> Features:
    """The features that settings name.

    Args:
        config: the settings.
        network: the student.
        shape: shape of a state.
        teacher: gives the teacher that is asked, or None.
        conditional: whether states have conditions that it can be given.

    Raises:
        UserError: if there are none such.
    """
    from bezierdistill.models.features import Several, States
    from bezierdistill.models.patches import Patches

    names = _named(config.align_features, network, shape)
    found: list[Features] = [States()] if "states" in names else []
    found += [Patches(shape)] if "patches" in names else []
    paths = tuple(name for name in names if name not in NAMED)
    for parts in ([()] if "teacher" in names else []) + ([paths] if paths else []):
        found.append(_hidden(teacher(), parts, config.align_times, conditional))
    return found[0] if len(found) == 1 else Several(found)


def _hidden(
    teacher: Model | None, parts: Sequence[str], times: Sequence[float], conditional: bool
) -> HiddenStates:
    from bezierdistill.models.features import HiddenStates
    from bezierdistill.models.teacher import Teacher

    if teacher is None:
        raise UserError(
            "the teacher is a module of your own, which a student of another network does not hold:"
            " expected --align-features states or patches"
        )
    if parts and not isinstance(teacher, Teacher):
        raise UserError(
            f"align-features names {parts[0][:80]!r} and the student is no module of your own:"
            " expected some of states, patches, teacher"
        )
    hidden = HiddenStates(teacher, parts, times)
    if hidden.conditional and not conditional:
        raise UserError(
            "the teacher cannot be asked without its condition, and the data have none that it"
            " takes: expected none= of the Teacher, or --align-features states"
        )
    return hidden


def _as_found(features: Features, trainer: Trainer) -> ExitStack:
    """Puts the teachers among features on the trainer's device; a user's own module stays where it
    is, and has its buffers back at the end of the block.
    """
    from bezierdistill.fields import as_found
    from bezierdistill.models.features import HiddenStates, Several
    from bezierdistill.models.teacher import Teacher

    stack = ExitStack()
    for part in features.parts if isinstance(features, Several) else (features,):
        if isinstance(part, HiddenStates) and isinstance(part.model, Teacher):
            stack.enter_context(as_found(part.model.net))
        elif isinstance(part, HiddenStates):
            part.model.net.to(trainer.device)
    return stack


def _named(names: tuple[str, ...], network: object, shape: tuple[int, ...]) -> tuple[str, ...]:
    from bezierdistill.networks.config import sees_images

    kind = "images" if sees_images(network, shape) else "vectors"
    return AUTO[kind] if names == ("auto",) else names


def pool_rows(calls: int, drawn: int, count: int | None) -> int:
    """Real states whose features are computed: no more than are drawn, than there are (None:
    without an end), or than are kept.
    """
    most = POOL if calls else FREE_POOL
    return min(most, drawn, most if count is None else count)


def align_steps(
    config: StudentSettings,
    network: object,
    shape: tuple[int, ...],
    knots: Sequence[Knots],
    passes: float,
    batch: int,
    count: int | None,
) -> tuple[int, int]:
    """Steps of alignment that ``passes`` pay for, the pool of real states among them, and what they
    cost: at most, as a pool of large states has fewer rows.

    Args:
        config: settings of the student.
        network: what it is.
        shape: shape of a state.
        knots: of its samplers.
        passes: what may be spent.
        batch: rows of a step of the regression.
        count: rows of the training data; None without an end.
    """
    from bezierdistill.objectives.alignment import REAL_ROWS, turns_cost

    size, names = config.align_rows(batch), _named(config.align_features, network, shape)
    asked = ("teacher" in names) + any(name not in NAMED for name in names)
    calls = asked * max(1, len(config.align_times))
    step, drawn = size * turns_cost(knots, calls, len(knots)) / len(knots), REAL_ROWS * size
    most = pool_rows(calls, POOL * drawn, count)
    # What n steps cost, n * step + calls * min(n * drawn, most), is the less of two lines.
    steps = int(max(passes // (step + calls * drawn), (passes - calls * most) // step, 0))
    cost = size * turns_cost(knots, calls, steps)
    return steps, cost + calls * pool_rows(calls, steps * drawn, count)

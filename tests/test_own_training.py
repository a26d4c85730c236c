"""A student that is somebody else's module does in training all that our own networks do: number
formats, accumulation, compilation, memory formats, recomputation, more steps, hooks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bezierdistill as bd
from bezierdistill import objectives
from bezierdistill.data import rescaled
from bezierdistill.files import read_tensors
from bezierdistill.networks.own import OwnNetwork
from bezierdistill.objectives.alignment import REAL_ROWS
from bezierdistill.stages.align import choose_knots, pool_rows
from bezierdistill.training import loop as loop_module
from bezierdistill.training.batches import AlignedBatches, CurveBatches
from bezierdistill.training.checkpoint import load_state
from bezierdistill.training.pool import make_pool
from foreign_networks import MANNERS, mixtures, trained

LOOP = bd.LoopConfig(accelerator="cpu", ema=0.9, lr=5e-3, warmup=0, save_every=4)
REAL = mixtures()[1].sample(500, torch.Generator().manual_seed(5)).float()
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "start-time": ({"way": "start-time"}, {"objective": "knots", "passes": 2}),
    "second-time": ({}, {}),
    "lora": ({"lora": 2}, {}),
}
CURVES, ALIGNED = "state-curves.safetensors", "state-alignment.safetensors"


def states(rows: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teacher() -> bd.Teacher:
    manner = MANNERS["EDM"]
    return manner.teacher(trained(manner, 40), data=REAL, scaling=bd.Scaling())


@pytest.fixture(scope="module")
def curves(teacher: bd.Teacher, tmp_path_factory: pytest.TempPathFactory) -> bd.CurveStore:
    return curves_of(teacher, tmp_path_factory.mktemp("curves") / "curves")


def curves_of(teacher: bd.Teacher, out: Path) -> bd.CurveStore:
    return bd.simulate(
        bd.SimulateConfig((teacher,), out, count=100, batch=50, steps=4, accelerator="cpu")
    )


def distilled(curves: bd.CurveStore, out: Path, student: Any, **more: Any) -> bd.Model:
    loop = {name: more.pop(name) for name in [*more] if name in LOOP.__dataclass_fields__}
    settings: dict[str, Any] = {"steps": 8, "batch": 32, "loop": replace(LOOP, **loop)} | more
    return bd.distill(bd.DistillConfig(curves.folder, out, student=student, **settings))


def assert_near(a: bd.Model, b: bd.Model, tolerance: float) -> None:
    """The weights of two models, to a part of how far they have come from another's."""
    theirs = b.net.state_dict()
    for name, tensor in a.net.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_mixed_precision_has_the_gradients_of_single_to_its_digits(
    way: str, teacher: bd.Teacher, curves: bd.CurveStore, tmp_path: Path
) -> None:
    asked, settings = WAYS[way]
    models = {}
    for precision in ("32-true", "bf16-mixed"):
        student, out = teacher.student(**asked), tmp_path / precision
        more = settings | {"align": 3, "data": REAL, "precision": precision}
        models[precision] = distilled(curves, out, student, steps=1, **more)
        assert {part.dtype for part in models[precision].net.parameters()} == {torch.float32}
    gradients = []
    for precision in models:
        state = load_state(tmp_path / precision / CURVES, 1)[0]
        moments = [state[key].flatten() for key in sorted(state) if key.endswith("/exp_avg")]
        gradients.append(torch.cat(moments))
    apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    assert 0 < apart < 0.05
    samples = [torch.from_numpy(model.sample(200, 2)) for model in models.values()]
    assert 0 < float((samples[0] - samples[1]).abs().mean()) < 0.1


class Halves:
    """A step's rows in one batch, or in two one after the other."""

    def __init__(self, parts: int) -> None:
        self.parts, self.calls = parts, 0

    def __call__(self, generator: torch.Generator) -> objectives.Curves:
        step, part = divmod(self.calls, self.parts)
        self.calls += 1
        points = states(2, 32, 2, seed=step)
        return objectives.Curves(bd.BezierCurve(points.chunk(self.parts, 1)[part]))


class Ends(objectives.SingleObjective):
    """The whole step of every row, without draws."""

    cost = 3

    def loss(
        self, net: nn.Module, batch: Any, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        x0, x1 = batch.curve.points
        rows = len(x0)
        return (net(x0, torch.zeros(rows), torch.ones(rows)) - (x1 - x0)).square().mean()


@pytest.mark.parametrize("way", WAYS)
def test_accumulated_gradients_are_those_of_the_whole_batch(
    way: str, teacher: bd.Teacher, tmp_path: Path
) -> None:
    nets = []
    for parts in (1, 2):
        net = teacher.student(**WAYS[way][0]).build(0)
        settings = replace(LOOP, accumulate=parts)
        trainer = bd.Trainer({"student": net}, settings, tmp_path / f"{parts}", "ends")
        nets.append(trainer.fit(Ends(), Halves(parts), 6, 0))
    before = teacher.student(**WAYS[way][0]).build(0)
    pairs = [(a, b, c) for a, b, c in zip(*(n.parameters() for n in (*nets, before)), strict=True)]
    for whole, summed, _ in pairs:
        torch.testing.assert_close(whole, summed, rtol=1e-5, atol=1e-6)
    assert any(float((whole - first).abs().max()) > 1e-3 for whole, _, first in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_student_learns_what_it_learns_without(
    way: str, teacher: bd.Teacher, curves: bd.CurveStore, tmp_path: Path
) -> None:
    asked, settings = WAYS[way]
    plain, compiled = (
        distilled(curves, tmp_path / f"{on}", teacher.student(**asked), compile=on, **settings)
        for on in (False, True)
    )
    assert_near(plain, compiled, 1e-4)
    names = [read_tensors(tmp_path / f"{on}" / CURVES)[0].keys() for on in (False, True)]
    assert names[0] == names[1]


class Broken(nn.Module):
    """A module that no compiler takes as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.state = nn.Linear(1, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.run(x, t)

    def run(self, x: Tensor, t: Tensor) -> Tensor:
        return self.state(x) * self.time(t[:, None])


@pytest.mark.slow
def test_compiled_students_of_one_class_keep_what_was_added_to_each(tmp_path: Path) -> None:
    """Also where their owner has compiled the class before, and where it is compiled in parts."""
    module = Broken()
    x, s, t = states(4, 2), torch.full((4,), 0.3), torch.full((4,), 0.9)
    torch.compile(module.run)(x, s)
    torch.compile(module)(x, s)
    teacher = bd.Teacher(module, "velocity", bd.LinearSchedule("up"), shape=(2,))
    for seed, way in enumerate(("start-time", "second-time", "second-time", "start-time")):
        net = teacher.student(way).build(0)  # pyright: ignore[reportArgumentType]
        for weight in () if net.second is None else net.second.weights:
            nn.init.normal_(weight, generator=torch.Generator().manual_seed(seed))
        trainer = bd.Trainer({"student": net}, replace(LOOP, compile=True), tmp_path, "stage")
        with torch.no_grad():
            torch.testing.assert_close(trainer.nets["student"](x, s, t), net(x, s, t))
            moved = not torch.allclose(net(x, s, t), net(x, s, s))
        assert moved == (way == "second-time")


class Block(nn.Module):
    """A convolution with the time added to what it makes."""

    def __init__(self, width: int, embeds: bool = False) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(1, width) if embeds else nn.Linear(8, width)
        self.calls = 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        return x + self.conv(nn.functional.silu(self.norm(x)) + self.time(time)[:, :, None, None])


class UNet(nn.Module):
    """A small U-Net, as people write them; every block embeds the time by itself, or takes what
    was embedded once."""

    def __init__(self, embeds: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.embed = nn.Identity() if embeds else nn.Sequential(nn.Linear(1, 8), nn.SiLU())
        self.enter, self.leave = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.down, self.middle = nn.Conv2d(8, 8, 2, 2), Block(8, embeds)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2), Block(8, embeds)
        self.recomputes, self.reentrant = False, reentrant

    def enable_gradient_checkpointing(self) -> None:
        self.recomputes = True

    def run(self, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        if self.recomputes:
            return checkpoint(block, x, time, use_reentrant=self.reentrant)  # pyright: ignore
        return block(x, time)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.embed(t[:, None])
        x = self.enter(x)
        middle = self.up(self.run(self.middle, self.down(x), time))
        return self.leave(self.run(self.last, x + middle, time))


def unet(embeds: bool = False, reentrant: bool = False) -> bd.Teacher:
    torch.manual_seed(0)
    levels = bd.LinearSchedule("up")
    return bd.Teacher(UNet(embeds, reentrant), "velocity", levels, shape=(1, 8, 8))


def test_a_unet_of_ones_own_is_kept_channels_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps, the weights laid otherwise; stopped and gone on with the same bits."""
    teacher = unet()
    curves = curves_of(teacher, tmp_path / "curves")
    laid: list[tuple[bool, bool]] = []

    class Looks:
        def after_step(self, trainer: bd.Trainer, step: int, losses: Mapping[str, Tensor]) -> None:
            weight = trainer.plain["student"].get_parameter("inner.middle.conv.weight")
            moment = trainer.optimizers["student"].state[weight]["exp_avg"]
            laid.append((weight.stride() == stride, moment.stride() == stride))

    stride = torch.empty(8, 8, 3, 3).to(memory_format=torch.channels_last).stride()
    plain = distilled(curves, tmp_path / "plain", teacher.student())
    more: dict[str, Any] = {"channels_last": True, "callbacks": (Looks(),)}
    kept = distilled(curves, tmp_path / "kept", teacher.student(), **more)
    assert laid == [(True, True)] * 8
    assert_near(plain, kept, 1e-4)
    stopped(monkeypatch, 7, lambda: distilled(curves, tmp_path / "s", teacher.student(), **more))
    again = distilled(curves, tmp_path / "s", teacher.student(), **more)
    assert again.card.digest == kept.card.digest
    plain_module = UNet()
    plain_module.load_state_dict(read_tensors(tmp_path / "kept" / "model.safetensors")[0])


def stopped(patch: pytest.MonkeyPatch, update: int, run: Callable[[], object]) -> None:
    """Run something that is killed in its n-th update."""
    true, calls = bd.Trainer._update, iter(range(1, 1000))

    def kill(self: Any, *given: Any) -> None:
        if next(calls) == update:
            raise KilledError
        true(self, *given)

    with patch.context() as context:
        context.setattr(bd.Trainer, "_update", kill)
        with pytest.raises(KilledError):
            run()


class KilledError(Exception):
    """What ends a run in a test."""


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_recomputed_students_have_the_gradients_of_kept_ones(way: str, reentrant: bool) -> None:
    """Also of two passes with different intervals before one gradient."""
    x = states(4, 1, 8, 8)
    s, t, later = torch.zeros(4), torch.full((4,), 0.4), torch.ones(4)
    found = []
    for recomputes in (False, True):
        net = unet(reentrant=reentrant).student(**WAYS[way][0]).build(0)
        if net.second is not None:
            for weight in net.second.weights:
                nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
        if recomputes:
            loop_module.keep_fewer(net)
        calls = net.module.middle.calls
        (net(net(x, s, t), t, later) - x).square().mean().backward()
        assert net.module.middle.calls - calls == (4 if recomputes else 2)
        found.append({name: part.grad for name, part in net.named_parameters()})
    kept, again = found
    assert sum(grad is not None for grad in kept.values()) > 4
    for name, grad in kept.items():
        assert (grad is None) == (again[name] is None)
        if grad is not None:
            torch.testing.assert_close(grad, again[name], rtol=1e-5, atol=1e-7)


def test_a_run_that_recomputes_learns_what_one_learns_that_keeps(tmp_path: Path) -> None:
    teacher = unet()
    curves = curves_of(teacher, tmp_path / "curves")
    more = {"align": 2, "data": states(64, 1, 8, 8).numpy()}
    kept, again = (
        distilled(curves, tmp_path / f"{on}", teacher.student(), checkpoint=on, **more)
        for on in (False, True)
    )
    assert_near(kept, again, 1e-5)


def test_a_second_time_inside_of_what_is_recomputed_is_refused(tmp_path: Path) -> None:
    """There its gradient would be that of no pass; told in one line, before anything is learnt."""
    teacher = unet(embeds=True)
    curves = curves_of(teacher, tmp_path / "curves")
    inside = teacher.student(time=("middle.time", "last.time"))
    distilled(curves, tmp_path / "kept", inside)
    with pytest.raises(ValueError, match=r"(middle|last)\.time runs outside of a pass") as error:
        distilled(curves, tmp_path / "again", inside, checkpoint=True)
    assert "expected --loop.checkpoint false" in str(error.value)
    manner = MANNERS["Meta"]
    net = manner.teacher(trained(manner, 1)).student().build(0)
    with pytest.raises(ValueError, match="checkpoint is on and a OwnNetwork keeps all activations"):
        bd.Trainer({"student": net}, replace(LOOP, checkpoint=True), tmp_path, "stage")


@pytest.mark.parametrize("way", ["start-time", "second-time", "lora"])
def test_diffusers_own_unet_recomputes_as_a_module_of_somebodys(way: str) -> None:
    from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(0)
    module = UNet2DModel(
        8,
        1,
        1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    teacher = bd.Teacher(module, "flow", bd.LinearSchedule("down", 1000), shape=(1, 8, 8))
    found = []
    for recomputes in (False, True):
        net = teacher.student(**WAYS[way][0]).build(0)
        if net.second is not None:
            assert net.second.times == ("time_embedding",)
            for weight in net.second.weights:
                nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
        if recomputes:
            loop_module.keep_fewer(net)
        run = Mock(return_value=None)
        net.module.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_, run=run: run())
        x, s = states(2, 1, 8, 8), torch.full((2,), 0.3)
        net(x, s, torch.full((2,), 0.8)).square().mean().backward()
        assert run.call_count == (2 if recomputes else 1)
        found.append([part.grad for part in net.parameters() if part.grad is not None])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-7)


def by_hand(
    teacher: bd.Teacher, curves: bd.CurveStore, folder: Path, stages: list[tuple[str, int]]
) -> nn.Module:
    """What trainers make of a student one after the other; an alignment begins with the network of
    the regression before it, or goes on from the state that is there."""
    net: nn.Module = teacher.student().build(0)
    knots: dict[int, Any] = {}
    for stage, steps in stages:
        rates = {"student": 3e-4} if stage == "alignment" else None
        trainer = bd.Trainer({"student": net}, LOOP, folder, stage, rates)
        batches = CurveBatches(curves, trainer, 32)
        if stage == "curves":
            intervals = objectives.EarlyIntervals()
            regression = objectives.CurveRegression(intervals, objectives.Loss(0.03), 1.0)
            net = trainer.fit(regression, batches, steps, 0)
            real = rescaled(bd.load_data(REAL), bd.Scaling())
            chosen, _ = choose_knots(net, curves, real, 2, trainer.device)
            knots = {k: chosen[k] for k in (1, 2)}
        else:
            features, real = teacher.features(), rescaled(bd.load_data(REAL), bd.Scaling())
            aligning = objectives.Alignment(
                tuple(knots.values()), objectives.Loss(0.03), 0.03, joint=False, features=features
            )
            rows = pool_rows(features.calls, steps * REAL_ROWS * 32, real.count("train"))
            pool = make_pool(real, features, rows, 1, trainer)
            aligned = AlignedBatches(batches.starts, pool, REAL_ROWS * 32, trainer)
            net = trainer.fit(aligning, aligned, steps, 1)
    return net


# What is aligned by hand.
BY_HAND: dict[str, Any] = {
    "data": REAL,
    "passes": 2,
    "align_batch": 32,
    "align_features": ("teacher",),
    "align_distance": "energy",
}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_finished_distillation_goes_on_for_more_steps(
    teacher: bd.Teacher, curves: bd.CurveStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = distilled(curves, out, teacher.student(), steps=6)
    assert_same(first.net, by_hand(teacher, curves, tmp_path / "hand", [("curves", 6)]))
    more = distilled(curves, out, teacher.student(), steps=12)
    assert_same(more.net, by_hand(teacher, curves, tmp_path / "hand", [("curves", 12)]))
    assert (more.card.steps, more.card.passes.training > first.card.passes.training) == (12, True)
    assert distilled(curves, out, teacher.student(), steps=12).card == more.card  # left alone
    with pytest.raises(ValueError, match="holds a run of 12 steps, expected as many or more"):
        distilled(curves, out, teacher.student(), steps=6)
    with pytest.raises(ValueError, match="another run of distill, with other student"):
        distilled(curves, out, teacher.student(lora=1), steps=18)


@pytest.fixture(scope="module")
def aligned(
    teacher: bd.Teacher, curves: bd.CurveStore, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished distillation of six steps and four of alignment."""
    out = tmp_path_factory.mktemp("aligned") / "run"
    distilled(curves, out, teacher.student(), steps=6, align=4, **BY_HAND)
    return out


STAGES = {
    "more of both": (12, 6, [("curves", 6), ("curves", 12), ("alignment", 6)]),
    "more regression": (12, 4, [("curves", 6), ("curves", 12), ("alignment", 4)]),
    "more alignment": (6, 9, [("curves", 6), ("alignment", 4), ("curves", 6), ("alignment", 9)]),
}


KILLS = {"more of both": (1, 6, 7, 9), "more regression": (1, 6, 7, 9), "more alignment": (1, 4)}


@pytest.mark.parametrize(
    ("name", "kill"), [(name, kill) for name in STAGES for kill in (None, *KILLS[name])]
)
def test_an_alignment_of_before_never_counts_for_a_newer_regression(
    name: str,
    kill: int | None,
    teacher: bd.Teacher,
    curves: bd.CurveStore,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed at any update: in the first of the regression, its last, the first of the alignment,
    later; update 7 comes after the regression's last state was saved."""
    steps, align, stages = STAGES[name]
    out = tmp_path / "run"
    shutil.copytree(aligned, out)

    def more() -> bd.Model:
        settings = BY_HAND | {"steps": steps, "align": align}
        return distilled(curves, out, teacher.student(), **settings)

    if kill is not None:
        stopped(monkeypatch, kill, more)
        assert bd.load_model(out, teacher).card.steps == 6  # usable meanwhile
    model = more()
    hand = by_hand(teacher, curves, tmp_path / "hand", stages)
    assert_same(model.net, hand)


def test_a_kill_between_a_regression_and_its_alignment(
    teacher: bd.Teacher,
    curves: bd.CurveStore,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As soon as the newer regression is saved, nothing is left of an older alignment."""
    out = tmp_path / "run"
    shutil.copytree(aligned, out)
    true, seen = bd.Trainer._save, []

    def save(self: bd.Trainer) -> None:
        true(self)
        seen.append((self.stage, self.done, (out / ALIGNED).exists()))
        if self.done == 12:
            raise KilledError

    settings = BY_HAND | {"steps": 12, "align": 4}
    with monkeypatch.context() as context:
        context.setattr(bd.Trainer, "_save", save)
        with pytest.raises(KilledError):
            distilled(curves, out, teacher.student(), **settings)
    assert seen == [("curves", 8, False), ("curves", 12, False)]
    model = distilled(curves, out, teacher.student(), **settings)
    assert_same(
        model.net, by_hand(teacher, curves, tmp_path / "hand", STAGES["more regression"][2])
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("way", WAYS)
def test_a_given_optimizer_and_callbacks_see_what_is_trained_of_a_student(
    way: str,
    teacher: bd.Teacher,
    curves: bd.CurveStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, settings = WAYS[way]
    told: list[Any] = []

    class Tells(bd.Callback):
        def after_step(self, trainer: bd.Trainer, step: int, losses: Mapping[str, Tensor]) -> None:
            net = trainer.plain["student"]
            assert isinstance(net, OwnNetwork)
            optimizer = trainer.optimizers["student"]
            assert isinstance(optimizer, torch.optim.SGD)
            given = {id(part) for group in optimizer.param_groups for part in group["params"]}
            frozen = {id(part) for part in net.frozen}
            assert given == {id(part) for part in net.parameters()} - frozen
            assert bool(frozen) == (way == "lora")
            told.append((trainer.stage, step))

        def at_end(self, trainer: bd.Trainer, net: nn.Module) -> None:
            told.append((trainer.stage, "end"))
            assert not any(part.requires_grad for part in net.parameters())

    def run(name: str, *callbacks: Any) -> bd.Model:
        more: dict[str, Any] = {"align": 3, "data": REAL, "optimizer": sgd} | settings
        student = teacher.student(**asked)
        return distilled(curves, tmp_path / name, student, callbacks=callbacks, **more)

    whole = run("whole", Tells())
    expected = [("curves", step) for step in range(1, 9)] + [("curves", "end")]
    expected += [("alignment", step) for step in range(1, 4)] + [("alignment", "end")]
    assert told == expected
    for update in (6, 10):
        stopped(monkeypatch, update, lambda at=update: run(f"{at}"))
        assert run(f"{update}").card.digest == whole.card.digest
    changed = [not torch.equal(a, b) for a, b in _pairs(whole.net, teacher)]
    assert any(changed)


def _pairs(net: nn.Module, teacher: bd.Teacher) -> list[tuple[Tensor, Tensor]]:
    assert isinstance(net, OwnNetwork)
    after, before = net.weights(), teacher.net.weights()
    return [(after[name], before[name]) for name in before]


def test_adapters_do_not_go_on_upon_other_weights(
    teacher: bd.Teacher, curves: bd.CurveStore, tmp_path: Path
) -> None:
    """A state holds the adapters alone, so a file that returns another teacher is another run."""
    file, weights = tmp_path / "mine.py", tmp_path / "weights.npy"
    file.write_text(f"""import numpy as np, torch
import bezierdistill as bd
from foreign_networks import MANNERS, trained

def student():
    module = trained(MANNERS["EDM"], 2)
    torch.nn.init.constant_(module.enter.bias, float(np.load({str(weights)!r})))
    return MANNERS["EDM"].teacher(module, scaling=bd.Scaling()).student(lora=2)
""")
    np.save(weights, np.array(0.5))
    distilled(curves, tmp_path / "run", f"{file}:student", steps=2)
    again = distilled(curves, tmp_path / "run", f"{file}:student", steps=4)
    assert again.card.steps == 4
    np.save(weights, np.array(0.75))
    with pytest.raises(ValueError, match="another run of distill, with other student"):
        distilled(curves, tmp_path / "run", f"{file}:student", steps=6)

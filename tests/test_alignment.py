"""Alignment's parts: distances at rest where distributions are equal, in closed form and in their
limits; features as groups; the pool of real states; what steps cost."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bezierdistill as bd
from bezierdistill.data import Data, load_data
from bezierdistill.data.base import ArrayData
from bezierdistill.flow_map import sample
from bezierdistill.models import features as features_module
from bezierdistill.models.features import HiddenStates, Several, States
from bezierdistill.models.model import Model
from bezierdistill.models.patches import Patches
from bezierdistill.networks.foreign import Foreign
from bezierdistill.noise import Stream
from bezierdistill.objectives import distances
from bezierdistill.objectives.alignment import Alignment
from bezierdistill.objectives.base import Aligned
from bezierdistill.objectives.distances import DISTANCES, energy, find_distance, mean_distance
from bezierdistill.records import Conditions, CurveRecipe, ModelCard, Passes
from bezierdistill.stages.align import POOL, align_steps, find_features, pool_rows
from bezierdistill.stages.distill import StudentSettings
from bezierdistill.stages.targets import find_describe
from bezierdistill.store import CurveStore
from bezierdistill.training import pool as pool_module
from bezierdistill.training.batches import AlignedBatches
from bezierdistill.training.pool import Pool, make_pool
from conftest import Draw

F64 = torch.float64
NET = {"mlp": 16, "unet": 8, "dit": 32}


def gradient(name: str, x: Tensor, real: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(find_distance(name)(x, real), x)[0]


@pytest.mark.parametrize("name", DISTANCES)
def test_it_rests_where_distributions_are_equal(name: str, draw: Draw) -> None:
    """The mean gradient in shift and scale, over fresh batches, has no sign; that of a student that
    is shifted and too narrow has the right one."""
    for shift, scale in ((0.0, 1.0), (0.4, 0.7)):
        found = []
        for _ in range(80):
            noise, real = draw(40, 3), draw(120, 3)
            pull = gradient(name, shift + scale * noise, real)
            found.append(torch.stack([pull.sum(), (pull * noise).sum()]))
        mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(80)
        if shift:
            assert float(mean[0]) > 5 * float(error[0])
            assert float(mean[1]) < -5 * float(error[1])
        else:
            assert (mean.abs() < 4 * error).all()
            assert error.max() < 0.05


@pytest.mark.parametrize("name", [*DISTANCES, "energy+0.5*drifting"])
def test_descent_brings_samples_to_the_data(name: str, draw: Draw) -> None:
    """Two far clusters of unequal weight; the judge is the energy distance, unbiased. Kernels of
    small widths hardly see them from afar."""
    x, order = 0.3 * draw(60, 2), table()
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [2.0, 0.0]], dtype=F64)
    real = torch.cat([centre + 0.2 * draw(80, 2) for centre in centres])
    real = real[torch.randperm(240, generator=order)]
    first = float(energy(x, real))
    for _ in range(150):
        x = x[torch.randperm(60, generator=order)]
        x = x - 2.0 * gradient(name, x, real[torch.randperm(240, generator=order)[:200]])
    left = (float(energy(x, real)) - float(energy(real[::2], real))) / first
    assert left < (0.5 if name == "laplace" else 0.05)
    assert name == "laplace" or 14 <= int((x[:, 0] < 0).sum()) <= 26  # a third of 60 is 20


def table() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", DISTANCES)
def test_it_does_not_depend_on_order_place_or_direction(name: str, draw: Draw) -> None:
    x, real = draw(12, 3), draw(36, 3) + 0.5
    value, pull = DISTANCES[name](x, real), gradient(name, x, real)
    turn = torch.linalg.qr(draw(3, 3))[0]
    moved = DISTANCES[name]((x + 70) @ turn, (real + 70) @ turn)
    torch.testing.assert_close(moved, value, rtol=1e-8, atol=1e-10)
    turned = gradient(name, x @ turn, real @ turn)
    torch.testing.assert_close(turned, pull @ turn, rtol=1e-7, atol=1e-10)
    order = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])  # within halves, of real in chunks
    swapped = DISTANCES[name](x[order], torch.cat([part.flip(0) for part in real.split(6)]))
    # Scales are measured on pairs of halves: of real states alone the order moves them.
    near = 0.2 if name in ("laplace", "sinkhorn", "drifting") else 1e-9
    torch.testing.assert_close(swapped, value, rtol=near, atol=1e-9)
    # In other units the pull on a sample is the same, as that of the energy distance is.
    torch.testing.assert_close(gradient(name, 7 * x, 7 * real), pull, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", DISTANCES)
def test_the_pull_is_of_the_size_of_energy(name: str, draw: Draw) -> None:
    """So that weights mean something: far from the data and near it."""
    for shift in (2.0, 0.5):
        x, real = draw(60, 4) + shift, draw(240, 4)
        size = gradient(name, x, real).norm() / gradient("energy", x, real).norm()
        assert 0.3 < float(size) < 3


def test_two_samples_and_one_real_state_in_closed_form() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=F64)
    y = torch.tensor([[0.0, 1.0]], dtype=F64)
    a, b, between = 1.0, math.hypot(3, 3), 5.0
    whole = a + b - between
    assert float(energy(x, y)) == pytest.approx(whole)
    assert float(energy(x, x)) == pytest.approx(-between, abs=0.01)  # 2 (5 / 2) - 5 - 5
    assert float(distances.sinkhorn(x, y)) == pytest.approx(whole)
    terms = [
        tau * (math.exp(-between / tau) - math.exp(-a / tau) - math.exp(-b / tau))
        for tau in distances.WIDTHS
    ]
    assert float(distances.laplace(x, y)) == pytest.approx(sum(terms) / 3)
    # V_i = sqrt(p_i q_i (1 - p_i)) (y - x_other): p among what stands beside a sample, q among the
    # samples beside y.
    force = (y - x) / torch.tensor([[a], [b]], dtype=F64) - (x.flip(0) - x) / between
    expected = torch.zeros(2, 2, dtype=F64)
    for tau in distances.WIDTHS:
        k = [math.exp(-r / tau) for r in (a, b, between)]
        size = [math.sqrt(u / (u + k[2]) * u / (k[0] + k[1]) * k[2] / (u + k[2])) for u in k[:2]]
        own = torch.tensor(size, dtype=F64)[:, None] * (y - x.flip(0))
        expected += own * force.norm() / own.norm().clamp_min(1e-12) / 3
    torch.testing.assert_close(gradient("drifting", x, y), -expected, rtol=1e-5, atol=1e-9)


def test_wide_kernels_and_much_entropy_are_the_energy_distance(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real = draw(20, 3), draw(60, 3) + 0.4
    monkeypatch.setattr(distances, "WIDTHS", (1e5,))
    torch.testing.assert_close(
        gradient("laplace", x, real), gradient("energy", x, real), rtol=1e-3, atol=1e-6
    )
    monkeypatch.setattr(distances, "ENTROPY", 1e6)
    cross = torch.cdist(x[:10], x[10:]).mean()
    expected = 2 * torch.cdist(x, real).mean() - cross
    torch.testing.assert_close(distances.sinkhorn(x, real), expected, rtol=1e-4, atol=1e-6)


def test_with_little_entropy_states_on_a_line_are_sorted(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimal transport on a line pairs them in order."""
    monkeypatch.setattr(distances, "ENTROPY", 2e-3)
    monkeypatch.setattr(distances, "ROUNDS", 3000)
    x, real = draw(12, 1), draw(6, 1)

    def sorted_apart(a: Tensor, b: Tensor) -> Tensor:
        return (a.sort(0).values - b.sort(0).values).abs().mean()

    parts = x[:6], x[6:]
    expected = sum(sorted_apart(part, real) for part in parts) - sorted_apart(*parts)
    assert float(distances.sinkhorn(x, real)) == pytest.approx(float(expected), abs=0.02)


def test_a_weighted_sum_is_named(draw: Draw) -> None:
    x, real = draw(8, 2), draw(16, 2)
    both = find_distance("energy + 0.3*laplace")(x, real)
    torch.testing.assert_close(both, energy(x, real) + 0.3 * distances.laplace(x, real))
    for text in ("", "enery", "energy+", "-1*energy", "nan*energy", "x*energy", "0*energy"):
        with pytest.raises(ValueError, match="align-distance is"):
            StudentSettings(align_distance=text)
    for name in DISTANCES:
        with pytest.raises(ValueError, match="got 1 sample, expected 2 or more"):
            DISTANCES[name](x[:1], real)


class Pair:
    """Two groups of very different size."""

    name, calls = "pair", 2

    def __call__(self, x: Tensor, cond: Any = None) -> tuple[Tensor, ...]:
        return x[:, :1], 1000 * x[:, 1:]


class Shrinking(nn.Module):
    """Jumps shrink a state, and the more the longer they are."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return -(t - s)[:, None] * x / 2


class Still(nn.Module):
    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return torch.zeros_like(x)


def test_groups_weigh_alike_and_an_anchor_needs_an_end(draw: Draw) -> None:
    x, real, pair = draw(20, 3), draw(60, 3) + 1, Pair()
    objective = Alignment(((0.0, 1.0),), anchor=0.5, features=pair)
    groups = pair(real)
    loss = objective.loss(Still(), Aligned(x, groups), table())
    alone = [
        energy(a / mean_distance(b), b / mean_distance(b))
        for a, b in zip(pair(x), groups, strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    assert objective.cost == 1 + 2 + 3 * 2
    end = draw(20, 3)
    held = objective.loss(Still(), Aligned(x, groups, end=end), table())
    expected = 0.5 * (x - end).square().mean() / mean_distance(end)
    torch.testing.assert_close(held - loss, expected)


def model(kind: Any, shape: tuple[int, ...], size: int = 0, depth: int = 2) -> Model:
    config = bd.NetworkConfig(kind, NET[kind], depth)
    net = config.build(shape, 0, size)
    layout: Any = "flat" if len(shape) == 1 else "chw"
    card = ModelCard(
        kind="teacher",
        network=asdict(config),
        shape=shape,
        scaling=bd.Scaling(layout=layout),
        seed=0,
        steps=0,
        passes=Passes(training=0),
    )
    for part in net.parameters():
        part.data += 0.01 * torch.randn(part.shape, generator=table())
    return Model(net.eval().requires_grad_(False), card)


def test_hidden_layers_of_an_mlp_are_those_before_every_layer(draw: Draw) -> None:
    """By hand, at both times; the velocity is linear in the last."""
    teacher = model("mlp", (3,), depth=3)
    hidden, net, x = HiddenStates(teacher, times=(0.9, 0.5)), teacher.net, draw(5, 3).float()
    assert (hidden.calls, len(hidden.names)) == (2, 3)
    groups = hidden(x)
    assert [tuple(group.shape) for group in groups] == [(5, 16)] * 6
    made: Any = net
    for k, time in enumerate((0.9, 0.5)):
        t = torch.full((5,), time)
        embedded = nn.functional.silu(made.time(t, t, None))
        shifts = made.shifts(embedded).chunk(3, 1)
        h = nn.functional.silu(made.enter(x) + shifts[0])
        torch.testing.assert_close(groups[3 * k], h)
        for j, layer in enumerate(made.hidden):
            h = h + nn.functional.silu(layer(h) + shifts[j + 1])
            torch.testing.assert_close(groups[3 * k + j + 1], h)
        velocity = made.leave(h) + made.skip(embedded) * x
        torch.testing.assert_close(net(x, t, t), velocity)
    assert HiddenStates(teacher).times == (0.99,)
    assert len(HiddenStates(model("mlp", (3,), depth=7)).names) == 4
    assert HiddenStates(teacher, ("hidden.0",)).names == ("hidden.0",)
    with pytest.raises(ValueError, match="expected some between 0 and 1"):
        HiddenStates(teacher, times=(1.0,))
    with pytest.raises(ValueError, match="do not depend on the state"):
        HiddenStates(teacher, ("time",))


def foreign() -> Foreign:
    from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(0)
    unet = UNet2DModel(
        16,
        1,
        1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return Foreign(unet, "flow", bd.LinearSchedule("down", 1000), 0)


@pytest.mark.parametrize(("kind", "parts"), [("unet", 3), ("dit", 4), ("foreign", 3)])
def test_maps_and_tokens_are_pooled_and_summed_up(kind: str, parts: int, draw: Draw) -> None:
    teacher = model(
        "dit" if kind == "dit" else "unet", (1, 16, 16), depth=5 if kind == "dit" else 1
    )
    if kind == "foreign":
        teacher = Model(foreign().eval().requires_grad_(False), teacher.card)
    hidden = HiddenStates(teacher)
    assert (len(hidden.parts), hidden.times) == (parts, (0.95,))
    x = draw(3, 1, 16, 16).float().requires_grad_(True)
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: Any, out: Any) -> None:
            kept[name] = out[0] if isinstance(out, tuple) else out

        return hook

    for name in hidden.names:
        teacher.net.get_submodule(name).register_forward_hook(keep(name))
    groups = hidden(x)
    assert len(groups) == 2 * parts
    for k, name in enumerate(hidden.names):
        out = kept[name]
        out = out.mT.unflatten(2, (8, 8)) if kind == "dit" else out
        flat = out.flatten(2)
        statistics = torch.cat([flat.mean(2), (flat.var(2, correction=0) + 1e-6).sqrt()], 1)
        torch.testing.assert_close(groups[2 * k + 1], statistics)
        side = out.shape[2] // 4
        pooled = out.unflatten(3, (4, side)).unflatten(2, (4, side)).mean((3, 5))
        torch.testing.assert_close(groups[2 * k], pooled.flatten(1))
    torch.stack([group.sum() for group in groups]).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().min(0).values.max()) > 0
    assert all(part.grad is None for part in teacher.net.parameters())


def test_a_teacher_that_needs_its_condition_is_given_it(draw: Draw) -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid, self.out = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            one_hot = nn.functional.one_hot(cond, 3).to(x)
            return self.out(self.mid(torch.cat([x, one_hot], 1)).tanh())

    module = Conditional()
    teacher = bd.Teacher(module, "velocity", bd.LinearSchedule("up"), shape=(2,), conditions=3)
    hidden = teacher.features(("mid",))
    x, cond = draw(6, 2).float(), nn.functional.one_hot(torch.arange(6) % 3, 3).float()
    assert hidden.conditional
    expected = module.mid(torch.cat([x, cond], 1))
    torch.testing.assert_close(hidden(x, cond)[0], expected.detach())
    settings = StudentSettings(align_features=("mid",))
    with pytest.raises(ValueError, match="cannot be asked without its condition"):
        find_features(settings, None, (2,), lambda: teacher, conditional=False)
    assert find_features(settings, None, (2,), lambda: teacher, conditional=True).calls == 1


def test_patches_see_what_is_no_constant(draw: Draw) -> None:
    """Filters of zero mean and unit norm; rectified twice, so that the sum is the mean modulus."""
    patches, x = Patches((2, 12, 12)), draw(3, 2, 12, 12)
    pixels, *seen = patches(x)
    assert torch.equal(pixels, x.flatten(1))
    assert [group.shape[1] for group in seen] == [2 * 48 * 16] * 3
    for group, raised, larger in zip(seen, patches(x + 5)[1:], patches(3 * x)[1:], strict=True):
        torch.testing.assert_close(raised, group, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(larger, 3 * group)
        assert float(group.min()) >= 0
    for own, filters in zip(seen, patches.filters, strict=True):
        torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(48))
        assert float(filters.flatten(1).mean(1).abs().max()) < 1e-6
        both = own.unflatten(1, (2, 48, 16)).sum(1)
        modulus = nn.functional.conv2d(x, filters.double()).abs()
        expected = nn.functional.adaptive_avg_pool2d(modulus, 4).flatten(2)
        torch.testing.assert_close(both, expected)
    assert all(map(torch.equal, patches.filters, Patches((2, 12, 12)).filters))
    assert len(Patches((1, 4, 4)).filters) == 1
    assert Patches((1, 64, 64))(draw(1, 1, 64, 64))[1].shape == (1, 2 * 48 * 16)
    with pytest.raises(ValueError, match="patches expect images"):
        Patches((5,))


def test_features_by_name(draw: Draw) -> None:
    def found(
        *names: str, shape: tuple[int, ...] = (3,), teacher: Any = None, network: Any = None
    ) -> Any:
        settings = StudentSettings(align_features=names)
        return find_features(settings, network, shape, lambda: teacher)

    vectors, images = model("mlp", (3,)), model("unet", (1, 16, 16), depth=1)
    size = (1, 16, 16)
    assert isinstance(found("auto", teacher=vectors), States)
    assert isinstance(found("auto", shape=size), Patches)
    kinds: dict[Any, type] = {"mlp": States, "unet": Patches, "dit": Patches}
    for kind, features in kinds.items():
        assert isinstance(found("auto", shape=size, network=bd.NetworkConfig(kind)), features)
    assert isinstance(found("states"), States)
    several = found("teacher", "patches", shape=(1, 16, 16), teacher=images)
    assert isinstance(several, Several)
    assert (several.calls, several.name) == (1, "patches,teacher")
    assert len(several(draw(2, 1, 16, 16).float())) == 4 + 6
    with pytest.raises(ValueError, match="a module of your own, which a student of another"):
        found("teacher")
    with pytest.raises(ValueError, match="names 'mid' and the student is no module of your own"):
        found("mid", teacher=vectors)
    for names in ((), ("auto", "states"), ("states", "states")):
        with pytest.raises(ValueError, match="align-features are"):
            StudentSettings(align_features=names)
    with pytest.raises(ValueError, match="align-times are"):
        StudentSettings(align_times=(0.5, 1.0))


def numbered(count: int, labels: bool = False) -> Data:
    """Row i of the training split is i, and its label i modulo 3."""
    x = np.arange(count, dtype=np.float32)[:, None]
    given: Any = {s: np.arange(count) % 3 for s in ("train", "valid", "test")} if labels else {}
    return ArrayData("numbered", x, x, x, bd.Scaling(layout="flat"), given)


class Counted(States):
    """States, that count rows."""

    def __init__(self) -> None:
        object.__setattr__(self, "rows", [])

    def __call__(self, x: Tensor, cond: Any = None) -> tuple[Tensor, ...]:
        self.rows.append(len(x))  # pyright: ignore[reportAttributeAccessIssue]
        return super().__call__(x, cond)


def made(data: Data, rows: int, rank: int = 0, ranks: int = 1, **more: Any) -> Pool:
    trainer: Any = SimpleNamespace(rank=rank, ranks=ranks, device=torch.device("cpu"))
    return make_pool(data, more.pop("features", States()), rows, 3, trainer, **more)


def test_a_pool_has_every_row_of_a_small_split_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "batch_size", lambda shape: 7)
    features: Any = Counted()
    whole = made(numbered(50, labels=True), 60, features=features)
    rows = whole.groups[0][:, 0]
    assert torch.equal(rows.sort().values, torch.arange(50.0))
    assert whole.rows == sum(features.rows) == 50
    assert whole.cond is not None
    assert torch.equal(whole.cond.argmax(1), rows.long() % 3)
    assert made(numbered(50, labels=True), 60, conditional=False).cond is None
    parts = [made(numbered(51), 60, rank, 2).groups[0][:, 0] for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 25
    assert len(torch.cat(parts).unique()) == 50
    drawn, cond = whole.draw(400, table())
    assert cond is not None
    assert torch.equal(cond.argmax(1), drawn[0][:, 0].long() % 3)
    assert len(drawn[0].unique()) > 45


def test_a_pool_of_many_rows_is_drawn_by_seed_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "batch_size", lambda shape: 7)
    data = numbered(1000)
    expected, _ = data.take(range(40), 3, Stream.TRAIN)
    one = made(data, 40)
    torch.testing.assert_close(one.groups[0], expected)
    two = [made(data, 40, rank, 2).groups[0] for rank in (0, 1)]
    torch.testing.assert_close(torch.stack(two, 1).flatten(0, 1), expected)
    endless = load_data("moons")
    torch.testing.assert_close(
        made(endless, 40).groups[0], endless.take(range(40), 3, Stream.TRAIN)[0]
    )
    monkeypatch.setattr(pool_module, "MOST_BYTES", 4 * 2 * 20)
    assert made(endless, 40).rows == 20
    double = Several([States(), States()])
    few = made(endless, 40, features=double)
    assert (few.rows, len(few.groups)) == (10, 2)


def test_a_pool_of_data_that_come_one_by_one_has_the_first() -> None:
    class Arriving:
        shape, scaling, name = (1,), bd.Scaling(layout="flat"), "stream"

        def count(self, split: str) -> int:
            return 10

        def epochs(self, batch: int, first: int, part: slice) -> Any:
            while True:
                rows = torch.arange(first * batch, (first + 1) * batch)
                yield rows[part, None].float(), None
                first += 1

    stream: Any = Arriving()
    assert made(stream, 5000).groups[0][:, 0].tolist() == list(range(5000))
    two = [made(stream, 6, rank, 2).groups[0][:, 0].tolist() for rank in (0, 1)]
    assert two == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("count", [None, 70, 100_000])
def test_steps_are_the_most_that_passes_pay_for(calls: int, count: int | None) -> None:
    names = ("teacher",) if calls else ("states",)
    times = (0.9, 0.95)[:calls]
    config = StudentSettings(align_features=names, align_times=times, align_batch=8)
    knots = ((0.0, 1.0), (0.0, 0.5, 1.0))
    step = 8 * (3 + 4 + 2 * 3 * calls) / 2

    def cost(steps: int) -> float:
        return steps * step + calls * pool_rows(calls, steps * 32, count)

    for passes in (0, step - 1, step, 1000, 5000.5, 30_000, 10**6):
        steps, spent = align_steps(config, None, (3,), knots, passes, 256, count)
        assert spent == cost(steps) - 4 * (steps % 2) <= passes  # the first sampler is cheaper
        assert cost(steps + 1) > passes
    assert pool_rows(1, 10**9, None) == POOL


@pytest.mark.parametrize(("done", "accumulate"), [(0, 1), (5, 1), (4, 3)])
def test_samplers_take_turns_and_go_on_where_a_run_stopped(
    done: int, accumulate: int, draw: Draw
) -> None:
    trainer: Any = SimpleNamespace(done=done, config=SimpleNamespace(accumulate=accumulate))
    pool, ends = Pool((draw(6, 2),), None, 6), draw(3, 2)
    batches = AlignedBatches(lambda _: (ends, None, None), pool, 4, trainer)
    turns = [batches(table()).turn for _ in range(4)]
    assert turns == [done * accumulate + k for k in range(4)]


@pytest.mark.parametrize("turn", range(5))
def test_a_step_is_of_the_sampler_whose_turn_it_is(turn: int, draw: Draw) -> None:
    x0, real, knots = draw(9, 2), draw(12, 2), ((0.0, 1.0), (0.0, 0.3, 1.0), (0.0, 0.2, 0.6, 1.0))
    student = Shrinking()
    loss = Alignment(knots, anchor=0.0).loss(student, Aligned(x0, (real,), turn=turn), table())
    end = sample(student, x0, knots[turn % 3])
    torch.testing.assert_close(loss, energy(end, real) / mean_distance(real))


def test_a_distillation_charges_the_pool_and_leaves_the_teacher(tmp_path: Any) -> None:
    data = torch.randn(300, 2, generator=table())
    loop = bd.LoopConfig(accelerator="cpu")
    net = bd.NetworkConfig(width=8, depth=2)
    teacher = bd.train(
        bd.TrainConfig(data, tmp_path / "t", steps=3, batch=8, network=net, loop=loop)
    )
    curves = tmp_path / "c"
    bd.simulate(bd.SimulateConfig((tmp_path / "t",), curves, count=64, accelerator="cpu"))

    def spent(name: str, **more: Any) -> int:
        settings: Any = {"steps": 2, "batch": 8, "passes": 1, "objective": "end", "loop": loop}
        settings |= {"align_batch": 8, "align_features": ("teacher",)}
        more = {"align": 3, "data": data} | more
        student = bd.distill(bd.DistillConfig(curves, tmp_path / name, **settings | more))
        return student.card.passes.training

    plain = spent("states", align_features=("states",))
    assert plain == 2 * 8 * 3 + 3 * 8 * 3
    assert spent("teacher") == plain + 3 * 8 * 3 + 3 * 8 * 4  # fewer are drawn than there are
    held = load_data(data).count("train")
    assert held is not None
    assert spent("long", align=30) == 2 * 8 * 3 + 30 * 8 * 6 + held
    assert spent("two", align_times=(0.9, 0.99)) == plain + 2 * (3 * 8 * 3 + 3 * 8 * 4)
    before = copy.deepcopy(teacher.net.state_dict())
    after = bd.load_model(tmp_path / "t").net.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert features_module.TIMES["vectors"] == 0.99


def test_conditions_are_their_own_vectors_and_rows_of_a_users_table_have_none() -> None:
    def described(conditions: Conditions) -> Tensor:
        recipe = CurveRecipe(degree=1, shape=(2,), conditions=conditions)
        store = cast(CurveStore, SimpleNamespace(recipe=recipe))
        return find_describe(store)(torch.tensor([[2.0], [0.0]]))

    assert described(Conditions(size=1)).tolist() == [[2.0], [0.0]]
    assert described(Conditions(size=1, rows=3)).shape == (2, 0)

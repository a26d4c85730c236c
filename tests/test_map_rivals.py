"""Maps by their start, without a derivative, by their end, on straight pairs: exact maps,
identities between gradients, the distributions of times, and the count of passes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import BezierCurve, expand_time
from bezierdistill.fields import Blend, NetworkField
from bezierdistill.objectives import (
    Curves,
    EulerianMap,
    GapIntervals,
    LogitNormalIntervals,
    MapIntervals,
    MeanFlow,
    Objective,
    Pairs,
    RectifiedIntervals,
    RectifiedMeanFlow,
    SolutionFlow,
    TerminalVelocity,
)
from bezierdistill.objectives.base import count_rows
from bezierdistill.objectives.rectified_mean_flow import nearest
from conftest import ConditionField, Draw, close
from gaussian_map import GaussianMap
from test_flow_map_matching import (
    ConditionNet,
    conditioned,
    mean_pairs,
    measured_passes,
    random_net,
)
from test_mean_flow import Shift

F64 = torch.float64


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wavy(theta: float) -> GaussianMap:
    """An exact map that is perturbed by what depends on state and both times."""
    net = GaussianMap(perturb=lambda x, s, t: x * expand_time(1 + 2 * t - s, x))
    net.theta.data.fill_(theta)
    return net


def gradient(loss: Tensor, net: GaussianMap) -> Tensor:
    return torch.autograd.grad(loss, net.theta)[0]


@pytest.mark.parametrize("offset", [None, 0.1])
def test_an_eulerian_map_is_zero_at_the_exact_map_alone(
    offset: float | None, shape: tuple[int, ...], draw: Draw
) -> None:
    net, batch = GaussianMap(), Pairs(draw(*shape), draw(*shape))
    objective = EulerianMap(NetworkField(GaussianMap()), offset=offset)
    assert float(objective.loss(net, batch, seeded())) < 1e-20
    net.theta.data.fill_(0.1)
    assert float(objective.loss(net, batch, seeded())) > 1e-4


def test_an_eulerian_map_is_a_mean_flow_with_the_teachers_velocity(draw: Draw) -> None:
    exact, times = GaussianMap(), LogitNormalIntervals()
    again = seeded()
    count_rows(50, 1.0, again)
    s, _ = times.rows(draw(50), again)
    batch = Pairs(*mean_pairs(draw(50, 2), s, exact))  # lines with the teacher's velocity at x_s
    flow, own = wavy(0.3), seeded()
    count_rows(50, 1.0, own)
    mean = MeanFlow(1.0, 0.0, -0.4, 1.0).loss(flow, batch, seeded())
    euler = EulerianMap(NetworkField(exact), times, offset=None).loss(flow, batch, own)
    close(euler * 2, mean, 1e-9)  # a mean over both components and a sum
    close(gradient(euler, flow) * 2, gradient(mean, flow), 1e-9)


def test_tangents_are_warmed_up_and_normalised(draw: Draw) -> None:
    teacher, net, batch = NetworkField(GaussianMap()), wavy(0.3), Pairs(draw(40, 2), draw(40, 2))
    s, t = MapIntervals(0.0).rows(batch.x1, seeded())
    x = batch.point(s)
    start = teacher(x, s) - net(x, s, t)
    cold = EulerianMap(teacher, warmup=0.5, offset=None)
    close(cold.loss(net, batch, seeded(), 0.0), start.square().mean())
    whole = EulerianMap(teacher, warmup=0.0, offset=None)
    close(cold.loss(net, batch, seeded(), 0.5), whole.loss(net, batch, seeded(), 0.0))
    size = start.square().mean(1).sqrt()
    normal = EulerianMap(teacher, warmup=0.5, offset=0.1).loss(net, batch, seeded(), 0.0)
    close(normal, (size / (size + 0.1)).square().mean())
    assert float(cold.loss(net, batch, seeded(), 0.25)) != float(normal)


def test_a_guided_teacher_is_charged_twice() -> None:
    teacher = Blend([ConditionField(), ConditionField()], torch.tensor([2.0, -1.0]))
    assert EulerianMap(teacher).cost == 6
    teacher, _ = random_net("mlp")
    net, x = random_net("mlp")
    objective = EulerianMap(NetworkField(teacher.requires_grad_(False)))
    assert measured_passes(objective.loss, net, x) == pytest.approx(5, rel=0.06)


def test_a_whole_first_part_is_the_lines_own_velocity(draw: Draw) -> None:
    net, batch = wavy(0.3), Pairs(draw(30, 2), draw(30, 2))
    objective, again = SolutionFlow(1.0, 1.0, 1.0, power=0.0), seeded()
    count_rows(30, 1.0, again)
    s, t = objective.intervals.rows(batch.x1, again)
    error = net(batch.point(s), s, t) - (batch.x1 - batch.x0)
    close(objective.loss(net, batch, seeded()), error.square().sum(1).mean())


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_vanishing_first_part_has_the_gradient_of_mean_flow(power: float, draw: Draw) -> None:
    net, batch, gaps = wavy(0.3), Pairs(draw(60, 2), draw(60, 2)), []
    mean = gradient(MeanFlow(1.0, power, -0.4, 1.0).loss(net, batch, seeded()), net)
    for part in (1e-3, 1e-4):
        objective = SolutionFlow(1.0, part, part, power)
        gaps.append(abs(float(gradient(objective.loss(net, batch, seeded()), net) - mean)))
    assert gaps[0] < 2e-2 * abs(float(mean))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.2)


def test_a_solution_errs_by_its_first_part_at_the_exact_map(draw: Draw) -> None:
    net, errors = GaussianMap(), []
    for part in (0.1, 0.05, 0.025):
        objective, again = SolutionFlow(1.0, part, part, power=0.0), seeded()
        count_rows(400, 1.0, again)
        s, _ = objective.intervals.rows(draw(400), again)
        batch = Pairs(*mean_pairs(draw(400, 1), s, net))
        errors.append(math.sqrt(float(objective.loss(net, batch, seeded())) * part))
    # The line leaves the path by the square of a step, and (1 - part) of it is seen.
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.25)


def test_first_parts_fall_exponentially_and_the_others_learn_velocities(draw: Draw) -> None:
    objective = SolutionFlow(first=0.1, last=0.001)
    assert [objective.part(p) for p in (0, 0.5, 1)] == pytest.approx([0.1, 0.01, 0.001])
    net, batch = Shift(), Pairs(draw(20, 2), draw(20, 2))
    losses = [float(x) for _, x in objective.losses({"student": net}, batch, seeded(), 0.5)]
    assert losses[0] > 0
    error = (0.2 - (batch.x1 - batch.x0)).square().sum(1)
    for power in (0.0, 0.5):
        loss = SolutionFlow(0.0, power=power).loss(net, batch, seeded())
        close(loss, (error * (error + 1e-3) ** -power).mean())


def test_terminal_velocities_are_the_two_terms_of_every_row(draw: Draw) -> None:
    net, batch, objective = wavy(0.3), Pairs(draw(40, 2), draw(40, 2)), TerminalVelocity()
    again = seeded()
    s, t = objective.intervals.rows(batch.x1, again)
    r = torch.sigmoid(0.4 - torch.randn(40, generator=again)).double()
    x, gap = batch.point(s), (t - s)[:, None]
    start = net.theta.detach().clone()

    def jump(theta: Tensor | float) -> Tensor:
        """Its derivative by the end less the velocity there, of fixed weights."""
        net.theta.data.fill_(float(theta))
        step = 1e-5
        ahead, behind = (x + (gap + h) * net(x, s, t + h) for h in (step, -step))
        speed = (ahead - behind) / (2 * step)
        net.theta.data.copy_(start)
        return speed - NetworkField(net)(x + gap * net(x, s, t), t)

    def flow() -> Tensor:
        return net(batch.point(r), r, r) - (batch.x1 - batch.x0)

    loss = objective.loss(net, batch, seeded())
    close(loss, jump(0.3).square().mean() + flow().square().mean(), 1e-7)
    slope = (jump(0.3 + 1e-4) - jump(0.3 - 1e-4)) / 2e-4
    own = torch.autograd.grad(flow().square().mean(), net.theta)[0]
    expected = (2 * jump(0.3) * slope).mean() + own
    close(torch.autograd.grad(loss, net.theta)[0], expected, 1e-5)


def test_an_exact_map_is_stationary_for_terminal_velocities(generator: torch.Generator) -> None:
    net, gradients = wavy(0.0), []
    for _ in range(80):
        x0, noise = torch.randn(2, 500, 2, generator=generator, dtype=F64)
        batch = Pairs(x0, net.mean + net.std * noise)
        gradients.append(gradient(TerminalVelocity().loss(net, batch, generator), net))
    found = torch.stack(gradients)
    error = float(found.std()) / math.sqrt(80)
    assert abs(float(found.mean())) < 4 * error < 0.1


def test_gaps_are_logit_normal_and_their_ends_cut_off(generator: torch.Generator) -> None:
    n, law = 20_000, GapIntervals(-0.8, 1.0, -0.4, 1.0)
    s, t = law(n, generator)
    assert (s >= 0).all()
    assert (s < t).all()
    assert (t <= 1).all()
    gap = t - s
    logits = torch.logit(gap)
    assert float(logits.mean()) == pytest.approx(-0.8, abs=4 / math.sqrt(n))
    assert float(logits.std()) == pytest.approx(1.0, rel=0.03)
    share, most = (torch.special.ndtr(torch.logit(part) + 0.4) for part in (1 - t, 1 - gap))
    place = share / most  # of a distribution that is cut off at its place `most`
    assert float(place.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * n))
    assert float(torch.corrcoef(torch.stack([place, gap]))[0, 1]) == pytest.approx(0, abs=0.03)


def test_the_nearest_pairs_are_kept_with_their_conditions(draw: Draw) -> None:
    x0, cond, far = draw(10, 2, 2), draw(10, 1), torch.randperm(10, generator=seeded()).double()
    x1 = x0 + expand_time(far, x0)
    kept = nearest(Curves(BezierCurve.line(x0, x1), cond), 7)
    assert kept.cond is not None
    distance = (kept.x1 - kept.x0).flatten(1)[:, 0]
    assert distance.sort().values.tolist() == pytest.approx(list(range(7)))
    for a, c, d in zip(kept.x0, kept.cond, distance, strict=True):
        row = int((far - d).abs().argmin())
        close(a, x0[row])
        close(c, cond[row])
    with pytest.raises(ValueError, match="11 nearest curves of 10"):
        nearest(Curves(BezierCurve.line(x0, x1)), 11)


def test_starts_are_u_shaped_and_long_jumps_whole(generator: torch.Generator) -> None:
    n = 20_000
    s, t = RectifiedIntervals()(n, generator)
    assert (s <= t).all()
    assert (t <= 1).all()
    a = 4.0  # the second moment about the middle of a density cosh(a (s - 1/2))
    moment = 0.25 + 2 / a**2 - 1 / (a * math.tanh(a / 2))
    assert float((s - 0.5).square().mean()) == pytest.approx(moment, abs=0.003)
    assert not ((s < 0.2) & (t > 0.6) & (t < 1)).any()
    assert ((s < 0.2) & (t == 1)).any()
    logits = torch.logit((t - s)[(s > 0.2) & (s < 0.21)].double())
    cut = (torch.logit(torch.tensor(0.79)) + 0.4).item()  # where lengths end: their median is not
    assert float(logits[logits < cut].median()) == pytest.approx(-0.4, abs=0.2)


def test_straight_pairs_of_one_velocity_are_learnt_at_once(draw: Draw) -> None:
    x0 = draw(30, 2)
    assert RectifiedMeanFlow().cost == 3.25
    for share in (0.0, 0.5, 1.0):
        objective = RectifiedMeanFlow(share)
        near = objective.loss(Shift(), Pairs(x0, x0 + 0.2), seeded())
        assert float(near) < 1e-24
        assert float(objective.loss(Shift(), Pairs(x0, x0 + 0.3), seeded())) > 1e-3


@pytest.mark.parametrize("kind", ["mlp", "dit"])
def test_costs_are_measured_multiplications(kind: str) -> None:
    net, x = random_net(kind)
    assert measured_passes(TerminalVelocity().loss, net, x) == pytest.approx(10, rel=0.06)
    for share in (0.0, 0.5, 1.0):
        objective = SolutionFlow(share)
        assert objective.cost == 3 + share
        assert measured_passes(objective.loss, net, x) == pytest.approx(3 + share, rel=0.05)


@pytest.mark.parametrize("rows", [(1, 3), (7, 3), (5, 1, 4, 4)])
def test_every_row_keeps_its_condition(rows: tuple[int, ...]) -> None:
    batch = conditioned(*rows)
    objectives: list[Objective] = [
        EulerianMap(NetworkField(ConditionNet())),
        SolutionFlow(0.4, power=0.0),
        TerminalVelocity(),
        RectifiedMeanFlow(0.4, 0.0),
    ]
    for objective in objectives:
        for seed in range(3):
            found = objective.losses({"student": ConditionNet()}, batch, seeded(seed), 0.5)
            assert [float(loss) for _, loss in found] == pytest.approx([0.0], abs=1e-8)


def test_bad_settings_are_refused() -> None:
    field: nn.Module = GaussianMap()
    for made, told in (
        (lambda: EulerianMap(NetworkField(field), warmup=2.0), "warmup is 2.0"),
        (lambda: EulerianMap(NetworkField(field), offset=-1.0), "offset is -1"),
        (lambda: SolutionFlow(share=-0.1), "share is -0.1"),
        (lambda: SolutionFlow(last=0.0), "first and last are 0.1 and 0.0"),
        (lambda: TerminalVelocity(gap_std=0.0), "gap_std is 0.0"),
        (lambda: RectifiedIntervals(steepness=0.0), "steepness is 0.0"),
        (lambda: RectifiedMeanFlow(share=1.5), "share is 1.5"),
    ):
        with pytest.raises(ValueError, match=told):
            made()

"""Consistency models: the authors' losses in their own terms, exact maps as fixed points, orders,
schedules and passes."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.flow_map import flow_map
from bezierdistill.objectives import ConsistencyDistillation, ConsistencyTraining, Loss, Pairs
from bezierdistill.objectives.consistency import karras_times, noise_time
from bezierdistill.solvers import time_grid
from conftest import CountedField, CountedNet, Draw, close, gaussian
from gaussian_map import GaussianMap

F64 = torch.float64
MEAN, STD = 0.7, 0.5
FIELD = gaussian(MEAN, STD)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(draw: Draw, count: int) -> Pairs:
    return Pairs(draw(count, 1), MEAN + STD * draw(count, 1))


class Straight(nn.Module):
    """The map of the teacher ``dx/dt = cond``, plus ``theta``; also the teacher itself."""

    passes = 1

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(shift, dtype=F64))

    def forward(
        self, x: Tensor, s: Tensor, t: Tensor | None = None, cond: Tensor | None = None
    ) -> Tensor:
        cond = cond if isinstance(cond, Tensor) else t
        assert cond is not None
        return expand_time(cond, x).expand_as(x) + self.theta.to(x)


def test_noise_levels_and_the_authors_grid_in_flow_time() -> None:
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=F64)
    for std in (0.5, 1.0, 2.0):
        t = noise_time(sigma, std)
        close(t * std / (1 - t), 0.5 / sigma)  # signal over noise
        assert noise_time(0.0, std) == 1.0
    times = karras_times(18, 0.5)
    assert times[0] == 0.0
    assert times[-1] == 1.0
    levels = [1 / t - 1 for t in times[1:-1]]  # at deviation 0.5 the level is (1-t)/t
    roots = [level ** (1 / 7) for level in (80.0, *levels, 0.002)]
    gaps = [a - b for a, b in pairwise(roots)]
    assert len(gaps) == 17
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-9)


@pytest.mark.parametrize(("method", "order"), [("euler", 2), ("heun", 3)])
def test_distillation_of_the_exact_map_errs_by_the_solvers_local_order(
    method: str, order: int, draw: Draw
) -> None:
    errors = []
    for count in (20, 40):
        objective = ConsistencyDistillation(FIELD, time_grid(count), method, Loss())
        errors.append(
            math.sqrt(float(objective.loss(GaussianMap(MEAN, STD), data(draw, 4000), seeded())))
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25), errors


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_distillation_stops_the_gradient_of_its_target(
    dtype: torch.dtype, shape: tuple[int, ...], draw: Draw
) -> None:
    times, shift, cond = (0.0, 0.1, 0.4, 1.0), 0.3, draw(shape[0]).to(dtype)
    batch = Pairs(draw(*shape).to(dtype), draw(*shape).to(dtype), cond)
    pick = torch.randint(3, (shape[0],), generator=seeded())
    s, t = torch.tensor(times, dtype=F64)[pick], torch.tensor(times, dtype=F64)[pick + 1]
    net, objective = Straight(shift), ConsistencyDistillation(Straight(), times, metric=Loss())
    loss = objective.loss(net, batch, seeded())
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(float((shift * (t - s)).square().mean()), rel=1e-4)
    gradient = torch.autograd.grad(loss, net.theta)[0]
    assert float(gradient) == pytest.approx(float((2 * shift * (t - s) * (1 - s)).mean()), rel=1e-4)


@pytest.mark.parametrize(("method", "passes"), [("euler", 2 + 4), ("heun", 2 * 2 + 4)])
def test_cost_of_distillation(method: str, passes: int, draw: Draw) -> None:
    teacher, net = CountedField(lambda x, t: x, passes=2), CountedNet(GaussianMap())
    objective = ConsistencyDistillation(teacher, method=method)
    objective.loss(net, data(draw, 1), seeded()).backward()
    assert teacher.calls * teacher.passes + net.passes == objective.cost == passes


def test_distillation_draws_every_interval_equally_often_on_noised_data(draw: Draw) -> None:
    times, seen, (x0, x1, *_) = (0.0, 0.1, 0.4, 1.0), [], data(draw, 3000)
    teacher = CountedField(lambda x, t: (seen.append((x, t)), torch.zeros_like(x))[1])
    ConsistencyDistillation(teacher, times).loss(GaussianMap(), Pairs(x0, x1), seeded())
    (x, s), (again, t) = seen
    close(x, (1 - s)[:, None] * x0 + s[:, None] * x1)
    close(again, x)
    shares = [((s == a) & (t == b)).double().mean() for a, b in pairwise(times)]
    assert sum(shares) == 1
    assert all(abs(float(share) - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000) for share in shares)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("std", [0.5, 1.0])
def test_training_is_the_authors_loss_in_their_noise_levels(
    progress: float, std: float, shape: tuple[int, ...], draw: Draw
) -> None:
    """In EDM's terms the denoiser D(y + sigma e, sigma) is the end point, with data y scaled to
    deviation 0.5."""
    x0, x1, net, huber = draw(*shape), std * draw(*shape), GaussianMap(), 0.01
    sigma = (-1.1 + 2.0 * torch.randn(shape[0], generator=seeded()).double()).exp()
    stage = min(int(8 * progress), 7)
    lower = (sigma * (1 - (1 + 8 / (1 + sigma.exp())) / 2 ** (stage + 1))).clamp_min(0)
    scale = std / 0.5

    def denoise(level: Tensor) -> Tensor:
        noisy = x1 / scale + expand_time(level, x1) * x0  # y + sigma e
        t = 1 / (1 + level * scale)
        return flow_map(net, expand_time(t, x1) * scale * noisy, t, 1.0)

    distance = (denoise(sigma) - denoise(lower)).flatten(1).norm(dim=1)
    root = math.sqrt(x1[0].numel())
    expected = (
        ((distance**2 + (huber * root) ** 2).sqrt() - huber * root) / root / (sigma - lower)
    ).mean()
    loss = ConsistencyTraining(data_std=std, metric=Loss(huber)).loss(
        net, Pairs(x0, x1), seeded(), progress
    )
    close(loss, expected, 1e-6)


def test_the_gap_halves_from_stage_to_stage_and_the_first_stage_denoises() -> None:
    objective, sigma = ConsistencyTraining(), torch.tensor([0.01, 0.5, 3.0, 50.0], dtype=F64)
    factor = 1 + 8 * torch.sigmoid(-sigma)
    for stage in range(8):
        for progress in (stage / 8, (stage + 0.99) / 8):
            gap = 1 - objective.lower_level(sigma, progress) / sigma
            close(gap, (factor / 2 ** (stage + 1)).clamp_max(1))
    close(objective.lower_level(sigma, 1.0), objective.lower_level(sigma, 0.99))
    close(
        ConsistencyTraining(stages=2, decay=4.0).lower_level(sigma[3:], 0.5),
        sigma[3:] * (1 - factor[3:] / 16),
    )
    assert objective.lower_level(sigma, 0.0)[:2].tolist() == [0.0, 0.0]
    for progress in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"progress is {progress}, expected 0"):
            objective.lower_level(sigma, progress)


def test_noise_levels_are_log_normal_and_the_target_shares_noise_and_datum(draw: Draw) -> None:
    calls, batch = [], Pairs(draw(20_000, 1), draw(20_000, 1), draw(20_000))
    x0, x1, cond, _ = batch

    class Recorder(nn.Module):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            calls.append((x, s, t, cond, torch.is_grad_enabled()))
            return torch.zeros_like(x)

    ConsistencyTraining(log_mean=-0.4, log_std=1.5, data_std=0.5).loss(
        Recorder(), batch, seeded(), 0.9
    )
    (target, r, *_), (state, s, end, _, _) = calls
    assert [call[4] for call in calls] == [False, True]
    assert all(call[3] is cond for call in calls)
    close(end, torch.ones_like(end))
    for x, time in ((target, r), (state, s)):
        close(x, (1 - time)[:, None] * x0 + time[:, None] * x1)
    log_sigma = (1 / s - 1).log()
    assert abs(float(log_sigma.mean()) + 0.4) < 4 * 1.5 / math.sqrt(20_000)
    assert abs(float(log_sigma.std()) - 1.5) < 4 * 1.5 / math.sqrt(40_000)
    assert (s < r).all()


def test_the_exact_map_becomes_stationary_as_the_gap_closes(draw: Draw) -> None:
    """A gap makes the expected gradient of the squared loss at the exact map of its own order; it
    is large in the first stage."""
    gradients = []
    for progress in (0.0, 0.5, 1.0):
        net = GaussianMap(MEAN, STD, lambda x, s, t: x - MEAN * expand_time(s, x))
        objective = ConsistencyTraining(data_std=STD, metric=Loss())
        rows = [
            torch.autograd.grad(
                objective.loss(net, data(draw, 20_000), seeded(k), progress), net.theta
            )[0]
            for k in range(12)
        ]
        gradients.append(
            (float(torch.stack(rows).mean()), float(torch.stack(rows).std()) / math.sqrt(12))
        )
    (first, _), (middle, _), (last, noise) = gradients
    assert noise < abs(first) / 100, gradients
    assert abs(middle) < abs(first) / 8, gradients
    assert abs(last) < 5 * noise, gradients


def test_training_finds_the_data_from_scratch(draw: Draw) -> None:
    net = GaussianMap(0.0, 1.0)
    for name, value in (("mean", 0.0), ("std", 1.0)):
        setattr(net, name, nn.Parameter(torch.tensor(value, dtype=F64)))
    optimiser, objective, generator, steps = (
        torch.optim.Adam(net.parameters(), 0.02),
        ConsistencyTraining(data_std=STD),
        seeded(),
        600,
    )
    net.theta.requires_grad_(False)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for k in range(steps):
        optimiser.zero_grad()
        objective.loss(net, data(draw, 512), generator, k / steps).backward()
        optimiser.step()
        schedule.step()
    assert float(net.mean) == pytest.approx(MEAN, abs=0.05)
    assert abs(float(net.std)) == pytest.approx(STD, abs=0.05)


def test_cost_of_training(draw: Draw) -> None:
    net = CountedNet(GaussianMap())
    ConsistencyTraining().loss(net, data(draw, 1), seeded(), 0.0).backward()
    assert net.passes == ConsistencyTraining.cost == 4


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected them to rise strictly from 0 to 1"):
        ConsistencyDistillation(FIELD, (0.0, 0.5))
    with pytest.raises(ValueError, match=r"solver is 'dopri5', expected one with fixed steps"):
        ConsistencyDistillation(FIELD, method="dopri5")
    bad: dict[str, tuple[float, str]] = {
        "stages": (0, "1 or more"),
        "decay": (1.0, "more than 1"),
        "log_std": (0.0, "a positive number"),
        "data_std": (-1.0, "a positive number"),
    }
    for name, (value, expected) in bad.items():
        with pytest.raises(ValueError, match=rf"{name} is {value}, expected {expected}"):
            ConsistencyTraining(**{name: value})  # pyright: ignore[reportArgumentType]

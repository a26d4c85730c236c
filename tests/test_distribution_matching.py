"""Distribution matching: its gradient in closed form, the two-jump simulation, a trained Gaussian,
and the count of passes."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.curves import expand_time
from bezierdistill.fields import NetworkField
from bezierdistill.flow_map import renoised_sample
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import DistributionMatching, Pairs
from conftest import CountedField, CountedNet, Draw, FieldNet, close, gaussian
from gaussian_map import GaussianMap

F64 = torch.float64


class Affine(nn.Module):
    """The generator ``F(x, s, 1) = mean + std x`` for every s: ``(1 - s) u = mean + (std - 1)
    x``."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor(p, dtype=F64)) for p in (mean, std))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return (self.mean + (self.std - 1) * x) / expand_time(t - s, x)


class GaussianCritic(nn.Module):
    """The exact field of N(mean, std^2) with both as parameters."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.log_std = (
            nn.Parameter(torch.tensor(p, dtype=F64)) for p in (mean, math.log(std))
        )

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        time, variance = expand_time(t, x), (2 * self.log_std).exp()
        q = (1 - time) ** 2 + time**2 * variance
        return self.mean + (time * variance - (1 - time)) / q * (x - time * self.mean)


def test_gradient_vanishes_at_equal_distributions_and_has_the_closed_form(
    draw: Draw,
) -> None:
    x0, shift, std, t = draw(50, 1), 0.7, 2.0, 0.3
    objective = DistributionMatching(gaussian(0.0, std), times=(t, t))
    equal, moved = Affine(0.0, std), Affine(shift, std)
    draws = torch.Generator()
    x = objective.generate(equal, x0, None, draws)
    loss = objective.student_loss(x, FieldNet(gaussian(0.0, std)), None, draws)
    assert all(
        not gradient.any() for gradient in torch.autograd.grad(loss, [equal.mean, equal.std])
    )
    draws = torch.Generator().manual_seed(2)
    x = objective.generate(moved, x0, None, draws)
    loss = objective.student_loss(x, FieldNet(gaussian(shift, std)), None, draws)
    close(x, shift + std * x0)
    again = torch.Generator().manual_seed(2)
    torch.randint(1, (), generator=again)
    torch.rand(50, generator=again)
    q = (1 - t) ** 2 + t**2 * std**2
    noisy = (1 - t) * torch.randn(50, 1, generator=again).double() + t * x
    g = (1 - t) ** 2 / q * shift  # end point of the critic minus the teacher's
    scale = (x - noisy * t * std**2 / q).abs().clamp_min(1e-3)
    torch.testing.assert_close(
        torch.autograd.grad(loss, moved.mean)[0], (g / scale).mean(), rtol=1e-9, atol=0
    )


def test_backward_simulation_trains_every_jump_equally_often_and_only_the_last_one(
    draw: Draw,
) -> None:
    class Jumps(GaussianMap):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            calls.append((float(s[0]), float(t[0]), torch.is_grad_enabled()))
            assert cond is condition
            return super().forward(x, s, t)

    objective, generator, chosen = (
        DistributionMatching(gaussian(0.0, 1.0), (0.0, 0.25, 0.5, 1.0)),
        torch.Generator().manual_seed(0),
        [],
    )
    net, condition = Jumps(), draw(2)
    for _ in range(300):
        calls: list[tuple[float, float, bool]] = []
        x = objective.generate(net, draw(2, 1), condition, generator)
        assert x.requires_grad
        assert [s for s, _, _ in calls] == [0.0, 0.25, 0.5][: len(calls)]
        assert [grad for _, _, grad in calls] == [False] * (len(calls) - 1) + [True]
        assert {t for _, t, _ in calls} == {1.0}
        chosen.append(len(calls))
    for count in (1, 2, 3):
        assert abs(chosen.count(count) - 100) < 4 * math.sqrt(300 * 2 / 9)


def test_critic_learns_the_distribution_of_the_samples(generator: torch.Generator) -> None:
    """The flow-matching gradient vanishes at the samples' own mean and spread."""
    critic, gradients = GaussianCritic(1.2, 0.4), []
    for _ in range(40):
        x = 1.2 + 0.4 * torch.randn(2000, 1, generator=generator, dtype=F64).requires_grad_()
        loss = DistributionMatching(gaussian(0.0, 1.0)).critic_loss(critic, x, None, generator)
        gradients.append(torch.stack(torch.autograd.grad(loss, [critic.mean, critic.log_std])))
        assert x.grad is None
    gradient = torch.stack(gradients)
    assert (gradient.mean(0).abs() < 4 * gradient.std(0) / math.sqrt(40)).all()
    assert gradient.std(0).max() / math.sqrt(40) < 0.02


@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.5, 1.0)])
def test_rounds_move_the_student_onto_the_teacher(knots: tuple[float, ...]) -> None:
    class TwoJumps(nn.Module):
        """An affine generator for each of the times 0 and 0.5."""

        def __init__(self) -> None:
            super().__init__()
            self.jumps = nn.ModuleList([Affine(-0.5, 1.2), Affine(-0.5, 1.2)])

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return self.jumps[int(s[0] > 0)](x, s, t)

    generator, mean, std = torch.Generator().manual_seed(0), 0.8, 0.5
    student, critic = TwoJumps(), GaussianCritic(-0.5, 1.2)
    adams = {
        "student": torch.optim.Adam(student.parameters(), 2e-2),
        "critic": torch.optim.Adam(critic.parameters(), 3e-2),
    }
    objective = DistributionMatching(gaussian(mean, std), knots)
    nets = {"student": student, "critic": critic}
    for _ in range(200 * (len(knots) - 1)):
        x0 = torch.randn(256, 1, generator=generator, dtype=F64)
        for name, loss in objective.losses(nets, Pairs(x0, x0), generator):
            adams[name].zero_grad()
            loss.backward()
            adams[name].step()
    x0 = torch.randn(20_000, 1, generator=generator, dtype=F64)
    x = renoised_sample(student, x0, knots[1:-1], generator).detach()
    assert float(x.mean()) == pytest.approx(mean, abs=0.06)
    assert float(x.std()) == pytest.approx(std, abs=0.06)


@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.5, 1.0)])
@pytest.mark.parametrize("critic_steps", [1, 5])
def test_the_cost_is_what_a_round_spends_on_average(
    knots: tuple[float, ...], critic_steps: int, draw: Draw
) -> None:
    student, critic = (CountedNet(MLP((2,), width=4, depth=1).double()) for _ in range(2))
    teacher = CountedField(lambda x, t: x, passes=2)
    objective, generator, rounds = (
        DistributionMatching(teacher, knots, critic_steps=critic_steps),
        torch.Generator().manual_seed(0),
        80,
    )
    for _ in range(rounds):
        names = []
        batch, nets = Pairs(draw(1, 2), draw(1, 2)), {"student": student, "critic": critic}
        for name, loss in objective.losses(nets, batch, generator):
            loss.backward()
            names.append(name)
        assert names == ["student", *["critic"] * critic_steps]
    spent = (student.passes + critic.passes + 2 * teacher.calls) / rounds
    if len(knots) == 2:
        assert spent == objective.cost == 3 + 2 + 1 + 3 * critic_steps + critic_steps - 1
    else:
        assert abs(spent - objective.cost) < 4 * 0.5 * math.sqrt(critic_steps / rounds)
        assert (
            objective.cost
            == DistributionMatching(teacher, critic_steps=critic_steps).cost + 0.5 * critic_steps
        )


def test_student_loss_leaves_critic_and_teacher_alone_and_critic_loss_the_student(
    draw: Draw, generator: torch.Generator
) -> None:
    student, critic, teacher = (MLP((2,), width=4, depth=1).double() for _ in range(3))
    objective = DistributionMatching(NetworkField(teacher))
    x = objective.generate(student, draw(5, 2), None, generator)
    objective.student_loss(x, critic, None, generator).backward()
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in student.parameters()
    )
    assert all(
        parameter.grad is None for net in (critic, teacher) for parameter in net.parameters()
    )
    student.zero_grad()
    objective.critic_loss(critic, x, None, generator).backward()
    assert all(parameter.grad is None for parameter in student.parameters())
    nets = {"student": student, "critic": critic}
    fresh = list(objective.losses(nets, Pairs(draw(5, 2), draw(5, 2)), generator))
    fresh[-1][1].backward()
    assert all(parameter.grad is None for parameter in student.parameters())


def test_conditions_reach_every_network(draw: Draw, generator: torch.Generator) -> None:
    class Seeing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.seen = nn.Parameter(torch.ones((), dtype=F64)), 0

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            assert cond is condition
            self.seen += 1
            return self.one * x

    condition, (net, critic, teacher) = draw(4), (Seeing() for _ in range(3))
    objective = DistributionMatching(NetworkField(teacher), critic_steps=2)
    batch = Pairs(draw(4, 2), draw(4, 2), condition)
    list(objective.losses({"student": net, "critic": critic}, batch, generator))
    renoised_sample(net, draw(4, 2), (0.5,), generator, condition)
    assert (net.seen, critic.seen, teacher.seen) == (1 + 1 + 2, 1 + 2, 1)


def test_bad_settings_are_refused() -> None:
    teacher = gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match=r"knots are \[0.0, 0.5\]"):
        DistributionMatching(teacher, (0.0, 0.5))
    with pytest.raises(ValueError, match=r"times are \(0.5, 1.0\)"):
        DistributionMatching(teacher, times=(0.5, 1.0))
    with pytest.raises(ValueError, match=r"critic_steps is 0"):
        DistributionMatching(teacher, critic_steps=0)

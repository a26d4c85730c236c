"""Distribution matching without a critic and with a GAN: gradients in closed form, whose parameters
get one, trained Gaussians, and the count of passes."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.flow_map import flow_map
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import (
    AdversarialMatching,
    Discriminating,
    DistributionMatching,
    FakeScoreFree,
    Pairs,
)
from conftest import CountedField, CountedNet, Draw, close, gaussian
from gaussian_map import GaussianMap
from test_distribution_matching import Affine, GaussianCritic

F64 = torch.float64


class OwnDiagonal(nn.Module):
    """An affine generator whose diagonal is the field of a Gaussian of its own."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.generator, self.diagonal = Affine(mean, std), GaussianCritic(mean, std)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        net = self.diagonal if bool((s == t).all()) else self.generator
        return net(x, s, t, cond)


def test_the_diagonal_stands_for_the_critic(draw: Draw) -> None:
    teacher, x0 = gaussian(0.0, 2.0), draw(50, 1)
    batch = Pairs(x0, x0 * math.nan)
    equal = OwnDiagonal(0.0, 2.0)
    loss = FakeScoreFree(teacher, track=0.0).loss(equal, batch, torch.Generator())
    found = torch.autograd.grad(loss, [equal.generator.mean, equal.generator.std])
    assert all(abs(float(part)) < 1e-12 for part in found)
    net = OwnDiagonal(0.7, 2.0)
    loss = FakeScoreFree(teacher, track=0.0).loss(net, batch, torch.Generator())
    x, critic = flow_map(net, x0, 0.0, 1.0), GaussianCritic(0.7, 2.0)
    other = DistributionMatching(teacher).student_loss(x, critic, None, torch.Generator())
    close(loss, other)
    own, others = (torch.autograd.grad(part, net.generator.mean)[0] for part in (loss, other))
    close(own, others)
    loss = FakeScoreFree(teacher, track=0.0).loss(net, batch, torch.Generator())
    assert float(torch.autograd.grad(loss, net.generator.mean)[0]) > 0.01  # down to the teacher's
    tracked = FakeScoreFree(teacher, track=2.0).loss(net, batch, torch.Generator())
    grads = torch.autograd.grad(tracked, [net.diagonal.mean, net.diagonal.log_std])
    assert all(float(part.abs()) > 0 for part in grads)


def test_later_jumps_start_where_the_map_leads(draw: Draw) -> None:
    net, x0, cond = GaussianMap(), draw(9, 2), draw(9, 1)
    objective = FakeScoreFree(gaussian(0.7, 0.5), (0.0, 0.3, 0.6, 1.0))
    close(objective.generate(net, x0, cond), net.exact(x0, 0.0, 1.0))
    net.theta.data.fill_(0.1)
    found = objective.generate(net, x0, cond)
    for k, s in enumerate((0.0, 0.3, 0.6)):
        rows = slice(3 * k, 3 * k + 3)
        close(found[rows], flow_map(net, flow_map(net, x0[rows], 0.0, s), s, 1.0))
    slope = torch.autograd.grad(found.sum(), net.theta)[0]
    close(slope, torch.tensor(2 * 3 * (1 + 0.7 + 0.4), dtype=F64))  # of the last jump alone


@pytest.mark.parametrize("free", [True, False])
def test_rounds_move_the_student_onto_the_teacher(free: bool) -> None:
    class Judging(GaussianCritic):
        """A critic with a logit that no weight makes larger than a little."""

        def logits(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return x[:, 0] * 0 + 0 * self.mean

    generator = torch.Generator().manual_seed(0)
    student = OwnDiagonal(-0.5, 1.2) if free else Affine(-0.5, 1.2)
    nets: dict[str, nn.Module] = {"student": student}
    teacher = gaussian(0.8, 0.5)
    objective = FakeScoreFree(teacher) if free else AdversarialMatching(teacher)
    if not free:
        nets["critic"] = Judging(-0.5, 1.2)
    adams = {name: torch.optim.Adam(net.parameters(), 2.5e-2) for name, net in nets.items()}
    for _ in range(250 if free else 150):
        x0 = torch.randn(256, 1, generator=generator, dtype=F64)
        for name, loss in objective.losses(nets, Pairs(x0, x0), generator, 0.0):
            adams[name].zero_grad()
            loss.backward()
            adams[name].step()
    found = student.generator if isinstance(student, OwnDiagonal) else student
    assert float(found.mean) == pytest.approx(0.8, abs=0.08)
    assert float(found.std) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.5, 1.0)])
@pytest.mark.parametrize("track", [0.0, 1.0])
def test_the_cost_without_a_critic_is_what_a_step_spends(
    knots: tuple[float, ...], track: float, draw: Draw
) -> None:
    rows: list[float] = []

    class Net(GaussianMap):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            u = super().forward(x, s, t)
            rows.append(len(x) * (3 if u.requires_grad else 1))
            return u

    teacher = CountedField(lambda x, t: x, passes=2)
    objective = FakeScoreFree(teacher, knots, track=track)
    objective.loss(Net(), Pairs(draw(8, 2), draw(8, 2)), torch.Generator()).backward()
    assert sum(rows) / 8 + 2 * teacher.calls == objective.cost


def judged(width: int = 4) -> tuple[MLP, Discriminating]:
    torch.manual_seed(0)
    inner = MLP((2,), width, 2).double()
    return inner, Discriminating(inner, "hidden.0", width)


def test_a_head_leaves_its_critic_as_it_is_and_starts_undecided(draw: Draw) -> None:
    inner, critic = judged()
    x, t = draw(5, 2), torch.rand(5, dtype=F64)
    assert torch.equal(critic(x, t, t), inner(x, t, t))
    assert not critic.logits(x, t).any()
    teacher, batch = gaussian([0.7, 0.7], [0.5, 0.5]), Pairs(draw(6, 2), draw(6, 2))
    objective = AdversarialMatching(teacher, critic_steps=1, generator_weight=2, critic_weight=3)
    nets = {"student": GaussianMap(), "critic": critic}
    (_, own), (_, judging) = objective.losses(nets, batch, torch.Generator().manual_seed(1))
    bare = AdversarialMatching(teacher, critic_steps=1, generator_weight=0, critic_weight=0)
    (_, other), (_, learning) = bare.losses(nets, batch, torch.Generator().manual_seed(1))
    close(own, other + 2 * math.log(2))
    close(judging, learning + 3 * 2 * math.log(2))


def test_the_generators_part_is_the_slope_of_its_logit(draw: Draw) -> None:
    _, critic = judged()
    nn.init.normal_(critic.head.weight)
    teacher, weight = gaussian([0.7, 0.7], [0.5, 0.5]), 5.0
    net = GaussianMap()  # exact: with a critic like the teacher nothing else moves it
    batch = Pairs(draw(6, 2), draw(6, 2))
    losses = []
    for own in (weight, 0.0):
        objective = AdversarialMatching(teacher, times=(0.5, 0.5), generator_weight=own)
        draws = torch.Generator().manual_seed(1)
        rounds = objective.losses({"student": net, "critic": critic}, batch, draws)
        losses.append(next(rounds)[1])
    again = torch.Generator().manual_seed(1)
    torch.randint(1, (), generator=again)
    torch.rand(6, generator=again)
    noise = torch.randn(6, 2, generator=again).double()
    x = flow_map(net, batch.x0, 0.0, 1.0).detach()
    noisy = ((x + noise) / 2).requires_grad_()
    logits = critic.logits(noisy, torch.full((6,), 0.5, dtype=F64))
    (slope,) = torch.autograd.grad(logits.sum(), noisy)
    pull = -torch.sigmoid(-logits.detach())[:, None] * slope / 2 / 6  # x_t is half of x
    found = torch.autograd.grad(losses[0] - losses[1], net.theta)[0]
    close(found, weight * pull.sum())


def test_only_the_one_that_is_asked_gets_a_gradient_and_the_head_learns_to_tell(
    draw: Draw,
) -> None:
    _, critic = judged(16)
    student = Affine(0.0, 1.0)
    objective = AdversarialMatching(gaussian([0.0, 0.0], [1.0, 1.0]), critic_weight=1.0)
    adam, told = torch.optim.Adam(critic.parameters(), 1e-2), []
    for _ in range(60):
        batch = Pairs(draw(64, 2), 3 + 0.3 * draw(64, 2))
        for name, loss in objective.losses(
            {"student": student, "critic": critic}, batch, torch.Generator()
        ):
            student.zero_grad()
            critic.zero_grad()
            loss.backward()
            if name == "student":
                assert all(part.grad is None for part in critic.parameters())
                assert student.mean.grad is not None
            else:
                assert student.mean.grad is None
                assert critic.head.weight.grad is not None
                assert all(part.requires_grad for part in critic.parameters())
                adam.step()
        late = torch.full((64,), 0.9, dtype=F64)
        told.append(
            float((critic.logits(batch.x1, late) - critic.logits(draw(64, 2), late)).mean())
        )
    assert told[0] < 1 < 2 < told[-1]


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_the_cost_with_a_head_is_what_a_round_spends(critic_steps: int, draw: Draw) -> None:
    inner, _ = judged()
    counted, teacher = CountedNet(inner), CountedField(lambda x, t: x, passes=2)
    critic, student = Discriminating(counted, "net.hidden.0", 4), CountedNet(Affine(0.0, 1.0))
    objective = AdversarialMatching(teacher, critic_steps=critic_steps)
    for _, loss in objective.losses(
        {"student": student, "critic": critic}, Pairs(draw(4, 2), draw(4, 2)), torch.Generator()
    ):
        loss.backward()
    assert student.passes + counted.passes + 2 * teacher.calls == objective.cost


def test_images_and_tokens_are_averaged_before_the_head(draw: Draw) -> None:
    class Net(nn.Module):
        def __init__(self, tokens: bool) -> None:
            super().__init__()
            self.part, self.tokens = nn.Identity(), tokens
            self.weight = nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return self.part(x.flatten(2).mT if self.tokens else x)

    x, t = draw(3, 2, 4, 4).abs(), torch.zeros(3, dtype=F64)
    mean = nn.functional.silu(x.mean((2, 3)))
    for net in (Net(True), Net(False)):
        critic = Discriminating(net, "part", 2)
        nn.init.ones_(critic.head.weight)
        close(critic.logits(x, t), mean.sum(1))


def test_bad_settings_are_refused(draw: Draw) -> None:
    teacher = gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match="track is -1"):
        FakeScoreFree(teacher, track=-1)
    with pytest.raises(ValueError, match=r"knots are"):
        FakeScoreFree(teacher, (0.0, 0.5))
    with pytest.raises(ValueError, match="critic_weight is -1"):
        AdversarialMatching(teacher, critic_weight=-1)
    nets = {"student": Affine(0.0, 1.0), "critic": GaussianCritic(0.0, 1.0)}
    with pytest.raises(ValueError, match="the critic has no head"):
        next(
            AdversarialMatching(teacher).losses(
                nets, Pairs(draw(4, 1), draw(4, 1)), torch.Generator()
            )
        )

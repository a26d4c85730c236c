"""Flow maps from noise alone: the predictor at the exact map, the corrector in closed form, trained
Gaussians; and mid-training on solver paths: its order, its rows."""

import math

import pytest
import torch
from torch import Tensor

from bezierdistill.fields import NetworkField
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import FreeFlow, MidTraining, Pairs
from conftest import ConditionField, CountedField, CountedNet, Draw, FieldNet, close, gaussian
from gaussian_map import GaussianMap
from test_distribution_matching import Affine, GaussianCritic
from test_flow_map_matching import ConditionNet, conditioned

F64 = torch.float64


def test_the_predictor_is_zero_at_the_exact_map_alone(shape: tuple[int, ...], draw: Draw) -> None:
    net, objective = GaussianMap(), FreeFlow(NetworkField(GaussianMap()))
    batch = Pairs(draw(*shape), draw(*shape))
    assert float(objective.predictor(net, batch, torch.Generator())) < 1e-24
    net.theta.data.fill_(0.1)
    assert float(objective.predictor(net, batch, torch.Generator())) > 1e-3


def test_no_gradient_enters_what_is_predicted(draw: Draw) -> None:
    net, teacher = GaussianMap(perturb=lambda x, s, t: t[:, None] * x), GaussianMap()
    net.theta.data.fill_(0.3)
    z = draw(50, 2)
    loss = FreeFlow(NetworkField(teacher)).predictor(net, Pairs(z, z), torch.Generator())
    t = torch.rand(50, generator=torch.Generator()).double()[:, None]
    # The generating velocity errs by d(0.3 t^2 z)/dt and by what the teacher says 0.3 t^2 z away.
    exact = torch.stack([teacher.exact(row, 0.0, float(r)) for row, r in zip(z, t, strict=True)])
    field = NetworkField(teacher)
    moved = field(exact + 0.3 * t**2 * z, t[:, 0]) - field(exact, t[:, 0])
    error = 2 * 0.3 * t * z - moved
    close(loss, error.square().mean())
    close(torch.autograd.grad(loss, net.theta)[0], (2 * error * t * z).mean())


def test_the_corrector_is_the_difference_of_velocities(draw: Draw) -> None:
    real, own = gaussian(0.0, 2.0), gaussian(0.7, 2.0)
    x = (0.7 + 2 * draw(50, 1)).requires_grad_()
    objective, seed = FreeFlow(real), torch.Generator
    equal = objective.corrector(x, FieldNet(real), None, seed())
    assert not torch.autograd.grad(equal, x)[0].any()
    loss = objective.corrector(x, FieldNet(own), None, seed())
    again = seed()
    r = torch.rand(50, generator=again).double()[:, None]
    variance = (1 - r) ** 2 + 4 * r**2
    expected = 0.7 * (1 - r * (4 * r - (1 - r)) / variance)  # two Gaussians, 0.7 apart
    close(torch.autograd.grad(loss, x)[0], 2 * expected / 50)


def test_rounds_correct_the_distribution_without_data() -> None:
    generator = torch.Generator().manual_seed(0)
    student, critic = Affine(-0.5, 1.2), GaussianCritic(-0.5, 1.2)
    nets = {"student": student, "critic": critic}
    adams = {
        "student": torch.optim.Adam(student.parameters(), 2e-2),
        "critic": torch.optim.Adam(critic.parameters(), 3e-2),
    }
    objective = FreeFlow(gaussian(0.8, 0.5), share=1.0)
    for _ in range(250):
        x0 = torch.randn(256, 1, generator=generator, dtype=F64)
        for name, loss in objective.losses(nets, Pairs(x0, x0 * math.nan), generator):
            adams[name].zero_grad()
            loss.backward()
            adams[name].step()
    assert float(student.mean) == pytest.approx(0.8, abs=0.06)
    assert float(student.std) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_cost_is_what_a_round_spends(share: float, draw: Draw) -> None:
    nets = {name: CountedNet(MLP((2,), 4, 1).double()) for name in ("student", "critic")}
    teacher = CountedField(lambda x, t: x, passes=2)
    objective = FreeFlow(teacher, share)
    names = []
    for name, loss in objective.losses(nets, Pairs(draw(8, 2), draw(8, 2)), torch.Generator()):
        loss.backward()
        names.append(name)
    predicts, corrects = share < 1, share > 0
    assert names == ["student", "critic"][: 1 + corrects]
    assert teacher.calls == predicts + corrects
    # Inside a derivative the counter sees a value; test_account.py measures that it costs 4.
    assert nets["student"].passes == predicts + 3 * corrects
    assert nets["critic"].passes == 4 * corrects
    assert objective.cost == (1 - share) * (3 + 1 + 2) + share * (3 + 2 + 4)


def test_every_row_keeps_its_condition() -> None:
    batch = conditioned(6, 3)
    objective = FreeFlow(ConditionField(), share=0.0)
    nets = {"student": ConditionNet()}
    losses = [float(x) for _, x in objective.losses(nets, batch, torch.Generator())]
    assert losses == pytest.approx([0.0], abs=1e-10)
    assert (
        float(MidTraining(ConditionField(), 3).loss(ConditionNet(), batch, torch.Generator()))
        < 1e-10
    )


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_ends_of_solver_paths_are_the_exact_maps_up_to_its_order(
    method: str, order: int, draw: Draw
) -> None:
    flow, x = gaussian(0.7, 0.5), draw(4000, 1)
    errors = []
    for steps in (20, 40):
        objective = MidTraining(flow, steps, method)
        errors.append(
            math.sqrt(float(objective.loss(GaussianMap(), Pairs(x, x), torch.Generator())))
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_all_states_of_few_paths_are_trained_and_the_ends_are_not(draw: Draw) -> None:
    class Seeing(GaussianMap):
        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            seen.append((x.detach(), s, t))
            return super().forward(x, s, t)

    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    x0, teacher = draw(12, 2), CountedField(lambda x, t: x, passes=2)
    objective = MidTraining(teacher, 4, "euler")
    loss = objective.loss(Seeing(), Pairs(x0, x0 * math.nan), torch.Generator())
    ((x, s, t),) = seen
    growth = torch.tensor([1.25**k for k in range(4)], dtype=F64).repeat_interleave(3)
    close(x, growth[:, None] * x0[:3].repeat(4, 1))
    close(s, torch.arange(4).double().repeat_interleave(3) / 4)
    assert (t == 1).all()
    error = GaussianMap()(x, s, t) * (1 - s[:, None]) + x - 1.25**4 * x0[:3].repeat(4, 1)
    close(loss, error.square().mean())
    assert 3 + teacher.calls * 2 * 3 / 12 == 3 + 2 == objective.cost


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share is 1.5"):
        FreeFlow(gaussian(0.0, 1.0), 1.5)
    with pytest.raises(ValueError, match="weight is -1"):
        FreeFlow(gaussian(0.0, 1.0), weight=-1)
    with pytest.raises(ValueError, match="steps is 0"):
        MidTraining(gaussian(0.0, 1.0), 0)
    with pytest.raises(ValueError, match="solver is 'dopri5'"):
        MidTraining(gaussian(0.0, 1.0), method="dopri5")

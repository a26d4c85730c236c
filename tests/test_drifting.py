"""Drifting: antisymmetry, closed forms of wide and narrow kernels, the gradient of the loss,
trained Gaussians with and without conditions, and the count of passes."""

import math

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.objectives import Drifted, Drifting
from bezierdistill.objectives.drifting import drift
from conftest import CountedNet, Draw, close

F64 = torch.float64


class Free(nn.Module):
    """A generator whose samples are parameters, from sources of zero."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x.clone())

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.x


class Scaled:
    """Two groups of features, each of two passes."""

    calls = 2

    def __call__(self, x: Tensor, cond: Tensor | None) -> tuple[Tensor, ...]:
        return 2 * x, x[:, :1] ** 3


def test_the_field_is_antisymmetric_and_moves_with_everything(draw: Draw) -> None:
    x, a, b = draw(7, 3), draw(5, 3) + 1, draw(6, 3)
    for width in (0.1, 1.0, 10.0):
        v = drift(x, a, b, width)
        assert float(v.abs().max()) > 1e-3
        close(drift(x, b, a, width), -v)
        close(drift(x + 5, a + 5, b + 5, width), v, 1e-9)
        assert float(drift(x, a, a.flip(0), width).abs().max()) < 1e-12


def test_a_wide_kernel_pulls_from_the_mean_of_the_others_to_that_of_the_data(draw: Draw) -> None:
    n, p = 4, 6
    x, real = draw(n, 2), draw(p, 2) + 1
    others = (x.sum(0) - x) / (n - 1)
    pull, push = 1 / math.sqrt((p + n - 1) * n), 1 / math.sqrt((p + n - 1) * (n - 1))
    expected = pull * push * p * (n - 1) * (real.mean(0) - others)
    close(drift(x, real, x, 1e9, others=True), expected, 1e-7)


def test_a_narrow_kernel_does_not_see_what_is_far(draw: Draw) -> None:
    near, far = 0.1 * draw(6, 2), 0.1 * draw(6, 2) + 100
    real, x = torch.cat([near[:3], far[:3]]), torch.cat([near[3:], far[3:]])
    v = drift(x, real, x, 0.1, others=True)
    close(v[:3], drift(near[3:], near[:3], near[3:], 0.1, others=True))
    assert float(v.abs().max()) < 1


def test_the_loss_moves_samples_along_the_field(draw: Draw) -> None:
    x, real, width = draw(5, 3), draw(9, 3) + 1, 0.7
    scale = torch.cdist(x, torch.cat([x, real])).mean()
    v = drift(x / scale, real / scale, x / scale, width, others=True)
    for normalised in (False, True):
        net = Free(x)
        objective = Drifting((width,), normalised=normalised)
        loss = objective.loss(net, Drifted(torch.zeros_like(x), real), torch.Generator())
        moved = v / v.square().mean().sqrt() if normalised else v * math.sqrt(3)
        close(loss, moved.square().mean(), 1e-9)
        expected = -2 * moved / x.numel() * (math.sqrt(3) / scale)
        close(torch.autograd.grad(loss, net.x)[0], expected, 1e-9)


def test_groups_and_widths_are_summed(draw: Draw) -> None:
    x, real, features = draw(5, 3), draw(20, 3), Scaled()
    batch = Drifted(torch.zeros_like(x), real)

    def loss(features: Scaled | None, *widths: float) -> Tensor:
        return Drifting(widths, features, normalised=False).loss(Free(x), batch, torch.Generator())

    cubes = Drifted(torch.zeros(5, 1, dtype=F64), real[:, :1] ** 3)
    alone = Drifting((0.2,), normalised=False).loss(Free(x[:, :1] ** 3), cubes, torch.Generator())
    close(loss(features, 0.2), loss(None, 0.2) + alone)  # a factor of features has no effect
    net = Free(x)
    root = [g.sqrt() for g in (loss(None, 0.2), loss(None, 5.0), loss(None, 0.2, 5.0))]
    assert abs(root[0] - root[1]) < root[2] <= root[0] + root[1]
    assert net.x.grad is None


@pytest.mark.parametrize("conditional", [False, True])
def test_a_generator_drifts_onto_the_data(conditional: bool, generator: torch.Generator) -> None:
    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.std = (nn.Parameter(torch.full((2,), p)) for p in (0.0, 1.0))

        def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            k = torch.zeros(len(x)).long() if cond is None else cond.argmax(1)
            return self.mean[k][:, None] + (self.std[k][:, None] - 1) * x

    net, objective = Affine(), Drifting()
    means = torch.tensor([2.0, -1.0]) if conditional else torch.tensor([2.0, 2.0])
    adam = torch.optim.Adam(net.parameters(), 3e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, 250)

    def conds(rows: int) -> tuple[Tensor, Tensor | None]:
        k = torch.randint(2, (rows,), generator=generator)
        return k, nn.functional.one_hot(k, 2).float() if conditional else None

    for _ in range(250):
        (_, cond), (k, real_cond) = conds(96), conds(192)
        real = means[k][:, None] + 0.5 * torch.randn(192, 1, generator=generator)
        batch = Drifted(torch.randn(96, 1, generator=generator), real, cond, real_cond)
        adam.zero_grad()
        objective.loss(net, batch, generator).backward()
        adam.step()
        schedule.step()
    used = slice(0, 2 if conditional else 1)
    assert net.mean[used].tolist() == pytest.approx(means[used].tolist(), abs=0.15)
    assert net.std[used].abs().tolist() == pytest.approx([0.5] * (1 + conditional), abs=0.15)


def test_the_cost_is_what_a_step_spends(draw: Draw) -> None:
    net = CountedNet(Free(draw(5, 3)))
    batch = Drifted(torch.zeros(5, 3, dtype=F64), draw(20, 3))
    Drifting().loss(net, batch, torch.Generator()).backward()
    assert net.passes == Drifting().cost == 3
    assert Drifting(features=Scaled(), real_rows=3).cost == 3 + 2 * (3 + 3)
    assert Drifting(features=lambda x, cond: (x,), real_rows=1).cost == 3 + 4


def test_bad_settings_and_batches_are_refused(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"width is 0.0, expected a positive number"):
        Drifting((0.1, 0.0))
    with pytest.raises(ValueError, match="widths is 0"):
        Drifting(())
    one = Drifted(torch.zeros(1, 3, dtype=F64), draw(4, 3))
    with pytest.raises(ValueError, match="drifting got 1 sample, expected 2 or more"):
        Drifting().loss(Free(draw(1, 3)), one, torch.Generator())
    half = Drifted(torch.zeros(2, 3, dtype=F64), draw(4, 3), draw(2, 1))
    with pytest.raises(ValueError, match="expected both or neither"):
        Drifting().loss(Free(draw(2, 3)), half, torch.Generator())

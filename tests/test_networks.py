"""Networks: what the zero interval weight promises, and that rows do not see each other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.networks import MLP, TimeEmbedding, Transformer
from conftest import Draw, close

Make = Callable[[], nn.Module]
IMAGE = (3, 4, 6)
NETWORKS = [
    pytest.param((4,), lambda: MLP((4,), width=32, depth=3), id="mlp"),
    pytest.param(IMAGE, lambda: MLP(IMAGE, width=32, depth=1), id="mlp image"),
    pytest.param(IMAGE, lambda: Transformer(IMAGE, width=32, depth=2), id="transformer"),
]


def train(net: nn.Module, steps: int, size: tuple[int, ...], draw: Draw, diagonal: bool) -> None:
    """Regress noise: whatever the target, the diagonal must not move the interval weight."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        x, target = draw(8, *size), draw(8, *size)
        s, t = torch.rand(8).double(), torch.rand(8).double()
        optimizer.zero_grad()
        (net(x, s, s if diagonal else t) - target).square().mean().backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("size", "make"), NETWORKS)
def test_the_interval_has_no_effect_until_training_leaves_the_diagonal(size: tuple[int, ...], make: Make, draw: Draw) -> None:
    net, x = make().double(), draw(5, *size)
    interval = net.get_submodule("time.interval").weight
    s, t = torch.linspace(0, 0.6, 5).double(), torch.linspace(1, 0.7, 5).double()
    for steps in (0, 4):
        train(net, steps, size, draw, diagonal=True)
        assert not torch.as_tensor(interval).any()
        assert torch.equal(net(x, s, t), net(x, s, s))
    assert (net(x, s, s) - net(x, t, t)).abs().amax(dim=tuple(range(1, x.ndim))).min() > 1e-4  # the start matters, in every row
    train(net, 1, size, draw, diagonal=False)
    moved = (net(x, s, t) - net(x, s, s)).abs().amax(dim=tuple(range(1, x.ndim)))
    assert moved.min() > 1e-4


@pytest.mark.parametrize(("size", "make"), NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_see_each_other(size: tuple[int, ...], make: Make, dtype: torch.dtype, draw: Draw) -> None:
    net = make().double()
    train(net, 3, size, draw, diagonal=False)
    net, x = net.to(dtype), draw(6, *size).to(dtype)
    s, t = torch.rand(2, 6).to(dtype)
    batch = net(x, s, t)
    one_by_one = torch.cat([net(x[i : i + 1], s[i : i + 1], t[i : i + 1]) for i in range(6)])
    assert batch.dtype == dtype
    tolerance = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(batch, one_by_one, rtol=tolerance, atol=tolerance)


def test_embedding_is_the_formula_and_its_interval_part_vanishes_on_the_diagonal() -> None:
    embedding = TimeEmbedding(6, frequencies=3).double()
    nn.init.normal_(embedding.interval.weight)
    s, t = torch.rand(2, 5).double()

    def reference(s: Tensor, t: Tensor) -> Tensor:
        omega = torch.pi / 4 * torch.tensor([1.0, 8.0, 64.0]).double()
        at = torch.cat([torch.cos(torch.outer(s, omega)), torch.sin(torch.outer(s, omega))], 1)
        gap = torch.cat([(t - s)[:, None], torch.sin(torch.outer(t - s, omega))], 1)
        return embedding.at(at) + gap @ embedding.interval.weight.T

    torch.testing.assert_close(embedding(s, t), reference(s, t), rtol=1e-6, atol=1e-6)  # omega is made in float32
    assert torch.equal(
        embedding(s, s), embedding.at(torch.cat([(s[:, None] * embedding.omega).cos(), (s[:, None] * embedding.omega).sin()], 1))
    )
    assert (embedding(s, t) - embedding(s, s)).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("size", [(4,), IMAGE], ids=str)
def test_mlp_skip_scales_the_state(size: tuple[int, ...], draw: Draw) -> None:
    net, x, s = MLP(size, width=32, depth=2).double(), draw(5, *size), torch.rand(5).double()
    for layer, value in ((net.leave, 0.0), (net.skip, 1.5)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)
    close(net(x, s, s), 1.5 * x)


def test_transformer_starts_at_zero_and_its_patches_talk(draw: Draw) -> None:
    net, x = Transformer(IMAGE, width=32, depth=2).double(), draw(1, *IMAGE)
    s = torch.full((1,), 0.3).double()
    assert not net(x, s, s).any()
    train(net, 4, IMAGE, draw, diagonal=True)
    far = x.clone()
    far[..., -1, -1] += 1
    difference = (net(far, s, s) - net(x, s, s)).abs()
    assert difference[..., :2, :2].max() > 1e-8  # attention carries one corner's change to the other


@pytest.mark.parametrize("size", [(4,), (4, 4), (1, 5, 4), (1, 4, 5)], ids=str)
def test_transformer_rejects_shapes_that_patches_do_not_tile(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects \(C, H, W\) with H, W divisible"):
        Transformer(size, patch=2)


def test_transformer_rejects_widths_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="width is 48, expected a multiple of 32"):
        Transformer(IMAGE, width=48)

"""Networks: what the zero interval weight promises, that rows do not see each other, and what a
condition does."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.fields import NetworkField
from bezierdistill.networks.config import NetworkConfig, read_network
from bezierdistill.networks.dit import DiT
from bezierdistill.networks.embeddings import TimeEmbedding
from bezierdistill.networks.mlp import MLP
from bezierdistill.networks.unet import UNet, count_levels
from bezierdistill.objectives.jvp import forward_derivative
from conftest import Draw, close

Make = Callable[..., nn.Module]
IMAGE, SQUARE, CLIP = (3, 8, 12), (3, 8, 8), (8, 4, 4)
NETWORKS = [
    pytest.param((4,), partial(MLP, (4,), width=32, depth=3), id="mlp"),
    pytest.param(IMAGE, partial(MLP, IMAGE, width=32, depth=1), id="mlp image"),
    pytest.param(IMAGE, partial(UNet, IMAGE, width=16, depth=1), id="unet"),
    pytest.param(SQUARE, partial(DiT, SQUARE, width=32, depth=2), id="dit"),
    pytest.param(CLIP, partial(UNet, CLIP, width=8, depth=1), id="unet of clips"),
]


def train(
    net: nn.Module,
    steps: int,
    size: tuple[int, ...],
    draw: Draw,
    diagonal: bool,
    condition_size: int = 0,
) -> None:
    """Regress noise: whatever the target, the diagonal must not move the interval weight."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        x, target = draw(8, *size), draw(8, *size)
        s, t = torch.rand(8).double(), torch.rand(8).double()
        optimizer.zero_grad()
        cond = (
            torch.eye(condition_size)[torch.arange(8) % condition_size] if condition_size else None
        )
        (net(x, s, s if diagonal else t, cond) - target).square().mean().backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("size", "make"), NETWORKS)
def test_the_interval_has_no_effect_until_training_leaves_the_diagonal(
    size: tuple[int, ...], make: Make, draw: Draw
) -> None:
    net, x = make().double(), draw(5, *size)
    interval = net.get_submodule("time.interval").weight
    s, t = torch.linspace(0, 0.6, 5).double(), torch.linspace(1, 0.7, 5).double()
    for steps in (0, 4):
        train(net, steps, size, draw, diagonal=True)
        assert not torch.as_tensor(interval).any()
        assert torch.equal(net(x, s, t), net(x, s, s))
    assert (net(x, s, s) - net(x, t, t)).abs().amax(
        dim=tuple(range(1, x.ndim))
    ).min() > 1e-4  # the start matters, in every row
    train(net, 1, size, draw, diagonal=False)
    moved = (net(x, s, t) - net(x, s, s)).abs().amax(dim=tuple(range(1, x.ndim)))
    assert moved.min() > 1e-4


@pytest.mark.parametrize(("size", "make"), NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_see_each_other(
    size: tuple[int, ...], make: Make, dtype: torch.dtype, draw: Draw
) -> None:
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
    start = embedding.at
    assert start is not None

    def reference(s: Tensor, t: Tensor) -> Tensor:
        omega = torch.pi / 4 * torch.tensor([1.0, 8.0, 64.0]).double()
        at = torch.cat([torch.cos(torch.outer(s, omega)), torch.sin(torch.outer(s, omega))], 1)
        gap = torch.cat([(t - s)[:, None], torch.sin(torch.outer(t - s, omega))], 1)
        return start(at) + gap @ embedding.interval.weight.T

    torch.testing.assert_close(
        embedding(s, t), reference(s, t), rtol=1e-6, atol=1e-6
    )  # omega is made in float32
    assert torch.equal(
        embedding(s, s),
        start(
            torch.cat(
                [(s[:, None] * embedding.omega).cos(), (s[:, None] * embedding.omega).sin()], 1
            )
        ),
    )
    assert (embedding(s, t) - embedding(s, s)).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("size", [(4,), IMAGE], ids=str)
def test_mlp_skip_scales_the_state(size: tuple[int, ...], draw: Draw) -> None:
    net, x, s = MLP(size, width=32, depth=2).double(), draw(5, *size), torch.rand(5).double()
    for layer, value in ((net.leave, 0.0), (net.skip, 1.5)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)
    close(net(x, s, s), 1.5 * x)


@pytest.mark.parametrize("kind", [UNet, DiT])
def test_what_channels_cannot_carry_is_skipped(kind: Callable[..., nn.Module], draw: Draw) -> None:
    """A velocity holds all the noise: of 8 frames, patches of 2 have 32 numbers a place."""
    shape, s = (8, 8, 8), torch.rand(3).double()
    for channels in (1, 3, 4):  # images have none, whatever their patches
        assert kind((channels, 8, 8), width=32, depth=1, patch=4).skip is None
    for outputs in (1, 2):
        net = kind(shape, width=32, depth=1, patch=2, outputs=outputs).double()
        nn.init.constant_(net.get_submodule("skip.leave").get_parameter("bias"), -0.5)
        x = draw(3, *shape)
        own = -0.5 * x if outputs == 1 else (-0.5 * x)[:, None].expand(-1, 2, -1, -1, -1)
        close(net(x, s, s), own)


@pytest.mark.parametrize(("size", "make"), NETWORKS)
def test_a_condition_of_zeros_is_none_and_labels_differ_once_trained(
    size: tuple[int, ...], make: Make, draw: Draw
) -> None:
    net, x = make(condition_size=3).double(), draw(4, *size)
    s, t = torch.rand(2, 4).double()
    train(net, 2, size, draw, diagonal=False, condition_size=3)
    assert torch.equal(net(x, s, t, torch.zeros(4, 3)), net(x, s, t))
    first, second = (net(x, s, t, torch.eye(3)[[label] * 4]) for label in (0, 1))
    assert (first - second).abs().amax(dim=tuple(range(1, x.ndim))).min() > 1e-4
    with pytest.raises(
        ValueError, match=r"condition has shape \(4, 2\), the network expects \(B, 3\)"
    ):
        net(x, s, t, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="the network expects none"):
        make().double()(x, s, t, torch.zeros(4, 3))


@pytest.mark.parametrize(("kind", "width"), [("mlp", 16), ("unet", 8), ("dit", 32)])
def test_a_seed_makes_the_same_weights_and_leaves_the_global_draws_alone(
    kind: Literal["mlp", "unet", "dit"], width: int
) -> None:
    config, state = NetworkConfig(kind, width, 1), torch.get_rng_state()
    first, again, other = (config.build(SQUARE, seed, 2).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert first["time.condition.weight"].shape[1] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 3}, "kind"),
        ({"width": "wide"}, "width"),
        ({"width": True}, "width"),
        ({"size": 3}, "'size' is missing or unknown"),
        ({"depth": None}, "depth"),
    ],
)
def test_settings_of_no_network_are_refused(change: dict[str, object], message: str) -> None:
    fields = dataclasses.asdict(NetworkConfig("unet", 16, 1))
    assert read_network(fields) == NetworkConfig("unet", 16, 1)
    with pytest.raises(UserError, match=message):
        read_network(fields | change)
    with pytest.raises(UserError, match="'depth' is missing or unknown"):
        read_network({"kind": "mlp", "patch": 1, "width": 8})


@pytest.mark.parametrize(("size", "make"), NETWORKS[2:])
def test_checkpointing_changes_no_gradient(size: tuple[int, ...], make: Make, draw: Draw) -> None:
    net, x = make().double(), draw(2, *size)
    train(net, 2, size, draw, diagonal=False)
    s, t = torch.rand(2, 2).double()
    grads = []
    for _ in range(2):
        net.zero_grad()
        net(x, s, t).square().sum().backward()
        grads.append(
            [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
        )
        cast(UNet | DiT, net).inner.enable_gradient_checkpointing()
    assert len(grads[0]) == len(list(net.parameters()))
    for plain, again in zip(*grads, strict=True):
        close(again, plain)


@pytest.mark.parametrize(("size", "make"), NETWORKS[2:])
def test_the_derivative_along_the_path_exists(
    size: tuple[int, ...], make: Make, draw: Draw
) -> None:
    net, x = make().double(), draw(2, *size)
    train(net, 2, size, draw, diagonal=False)
    s, t, v, h = (
        torch.tensor([0.1, 0.3]).double(),
        torch.tensor([0.7, 0.9]).double(),
        draw(2, *size),
        1e-5,
    )
    u, slope = forward_derivative(lambda x, t: net(x, s, t), (x, t), (v, torch.ones_like(t)))
    close(u, net(x, s, t))
    close(slope, (net(x + h * v, s, t + h) - net(x - h * v, s, t - h)) / (2 * h), 1e-6)


def test_dit_starts_at_zero_and_its_patches_talk(draw: Draw) -> None:
    net, x = DiT(SQUARE, width=32, depth=2).double(), draw(1, *SQUARE)
    s = torch.full((1,), 0.3).double()
    assert not net(x, s, s).any()
    train(net, 4, SQUARE, draw, diagonal=True)
    far = x.clone()
    far[..., -1, -1] += 1
    difference = (net(far, s, s) - net(x, s, s)).abs()
    assert (
        difference[..., :2, :2].max() > 1e-8
    )  # attention carries one corner's change to the other


def test_unet_sees_the_whole_image(draw: Draw) -> None:
    net, x, s = (
        UNet((1, 16, 16), width=8).double(),
        draw(1, 1, 16, 16),
        torch.full((1,), 0.3).double(),
    )
    train(net, 2, (1, 16, 16), draw, diagonal=True)
    far = x.clone()
    far[..., -1, -1] += 1
    assert (net(far, s, s) - net(x, s, s)).abs()[..., 0, 0].min() > 1e-12


@pytest.mark.parametrize(
    ("side", "levels"), [(28, 3), (8, 2), (7, 1), (16, 3), (32, 4), (64, 5), (4, 1)]
)
def test_unet_levels(side: int, levels: int) -> None:
    assert count_levels(side, side) == levels


@pytest.mark.parametrize("size", [(4,), (4, 4), (1, 5, 5), (1, 4, 6)], ids=str)
def test_dit_rejects_shapes_that_patches_do_not_tile(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects square images \(C, N, N\), N divisible"):
        DiT(size, patch=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT(SQUARE, width=48), "width is 48, expected a multiple of 32"),
        (lambda: UNet(SQUARE, width=12), "width is 12, expected a multiple of 8"),
        (lambda: UNet((4,)), r"shape \(4,\), a U-Net expects images"),
        (
            lambda: UNet((3, 50, 50)),
            "images are 50x50, a U-Net expects sides that halve down to 16 or less",
        ),
    ],
)
def test_mistakes(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("size", "make"), NETWORKS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_halves_are_fields_too(
    size: tuple[int, ...], make: Callable[[], nn.Module], kind: torch.dtype, draw: Draw
) -> None:
    """Close to the field in single precision, whether states or weights are halves."""
    net = make()
    for part in net.parameters():
        nn.init.normal_(part, std=0.1)
    x = draw(3, *size).float()
    with torch.no_grad():
        exact = NetworkField(net)(x, 0.123)
        halved = NetworkField(copy.deepcopy(net).to(kind))
        for field, given in ((NetworkField(net), x.to(kind)), (halved, x), (halved, x.to(kind))):
            made = field(given, 0.123)
            assert made.dtype == given.dtype
            assert (made.float() - exact).norm() < 0.05 * exact.norm()

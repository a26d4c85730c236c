"""What the tests share: state shapes, seeded draws, a field with an exact distribution, and
wrappers that
count network passes."""

import os
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from bezierdistill import progress
from bezierdistill.curves import Time
from bezierdistill.fields import Field, GaussianMixture
from bezierdistill.networks.mlp import MLP
from bezierdistill.objectives import eulerian_map, flow_map_matching, free_flow, jvp, mean_flow
from bezierdistill.store import CurveWriter

progress.EVERY = 1e6  # a test says nothing because the machine is slow
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

SHAPES = [(5, 3), (1, 4), (2, 3, 4, 4)]
Draw = Callable[..., Tensor]
RATE = -1.3


class CountedField:
    """A field that counts its evaluations and claims to cost ``passes`` each."""

    def __init__(self, field: Callable[[Tensor, Time], Tensor], passes: int = 1) -> None:
        self.field, self.passes, self.calls = field, passes, 0

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.field(x, t)


class ConditionField:
    """The field whose velocity is the condition, a number per row."""

    passes = 1

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        assert cond is not None
        return cond[:, None].expand_as(x)


class CountedNet(nn.Module):
    """A network that counts passes: 1 a forward, 3 where a gradient will follow."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        u = self.net(x, s, t, cond)
        self.passes += 3 if u.requires_grad else 1
        return u


class Account:
    """The passes that MLPs really make while it is open, in rows: 1 a forward, 2 more when a
    gradient comes back to its first layer, from its output or from a hidden one.

    A value with its derivative is two forwards, and a gradient comes back to each of the two by
    itself."""

    def __init__(self) -> None:
        self.passes, self.inside = 0, False
        self.first: WeakSet[nn.Module] = WeakSet()

    def add(self, out: Tensor) -> None:
        """Count an output, and its gradient if one comes."""
        self.passes += len(out)
        self.follow(out)

    def follow(self, out: Tensor) -> None:
        """Count the gradient of a tensor, if one comes."""
        rows = len(out)
        if out.requires_grad:
            out.register_hook(lambda _: self._back(rows))

    def _back(self, rows: int) -> None:
        self.passes += 2 * rows

    def forward(self, module: nn.Module, arguments: Any, out: Any) -> None:
        """Hook of every module."""
        if isinstance(module, MLP) and not self.inside:
            self.passes += len(out)
        elif module in self.first and not self.inside:
            self.follow(out)

    def before(self, module: nn.Module, arguments: Any) -> None:
        """Hook of every module, before it runs."""
        if isinstance(module, MLP):
            self.first.add(module.enter)

    def derivative(
        self, true: Callable[..., tuple[Tensor, Tensor]], *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        """Stands for the ``true`` ``forward_derivative``, inside of which nothing can be hooked."""
        self.inside = True
        try:
            pair = true(*arguments)
        finally:
            self.inside = False
        for out in pair:
            self.add(out)
        return pair


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Counts from here to the end of the test."""
    own, true = Account(), jvp.forward_derivative
    handles = [
        register_module_forward_hook(own.forward),
        register_module_forward_pre_hook(own.before),
    ]

    def derivative(*arguments: Any) -> tuple[Tensor, Tensor]:
        return own.derivative(true, *arguments)

    for module in (flow_map_matching, mean_flow, free_flow, eulerian_map):
        monkeypatch.setattr(module, "forward_derivative", derivative)
    yield own
    for handle in handles:
        handle.remove()


class FieldNet(nn.Module):
    """A field as a network ``net(x, s, t, cond)``, read on the diagonal, plus ``sum_j theta_j
    phi_j`` for perturbations ``phi``."""

    def __init__(self, field: Field, *phi: Field) -> None:
        super().__init__()
        self.field, self.phi = field, phi
        self.theta = nn.Parameter(torch.zeros(len(phi), dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.field(x, t) + sum(
            theta * phi(x, t) for theta, phi in zip(self.theta, self.phi, strict=True)
        )


class ExactMap(nn.Module):
    """Average velocity of ``dx/dt = RATE x``: ``x (exp(RATE (t - s)) - 1) / (t - s)``, its limit at
    s = t."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        gap = (t - s).reshape(-1, *[1] * (x.ndim - 1))
        return x * torch.where(gap == 0, RATE, torch.expm1(RATE * gap) / gap)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    """Assert equality up to a relative and absolute tolerance."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def draw(generator: torch.Generator) -> Draw:
    """``draw(*shape)``: standard normal numbers in float64."""
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.5], [0.5, 1.5]], dtype=torch.float64)
    stds = torch.tensor([[0.4, 0.6], [0.5, 0.3], [0.8, 0.5]], dtype=torch.float64)
    return GaussianMixture(means, stds, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def gaussian(mean: float | list[float], std: float | list[float]) -> GaussianMixture:
    """A single Gaussian as the data's distribution, in float64."""
    means, stds = (
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([std], dtype=torch.float64),
    )
    return GaussianMixture(
        means.reshape(1, -1), stds.reshape(1, -1), torch.ones(1, dtype=torch.float64)
    )


@pytest.fixture(scope="module")
def small_shards() -> Iterator[None]:
    """A batch per shard, so that a simulation that is half done has kept half."""
    plan = CurveWriter.plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CurveWriter, "plan", lambda self, count, batch: plan(self, count, batch, 1))
        yield

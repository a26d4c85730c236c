"""The account of network passes is true: what a method is charged is what all its networks really
make, to the row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bezierdistill.arena.bench import Bench
from bezierdistill.arena.methods import METHODS
from bezierdistill.budget import Budget
from bezierdistill.data import load_data
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.mlp import MLP
from bezierdistill.noise import Stream, noise
from bezierdistill.objectives import flow_map_matching, mean_flow
from bezierdistill.stages.recipe import Shares
from bezierdistill.training.settings import LoopConfig
from conftest import Account

SMALL, OURS = (
    (12_000, 32),
    (240_000, 128),
)  # budget and batch; ours has more stages, each with costs of its own
SIZES = {name: OURS for name in METHODS if name.startswith("bezier-")} | {
    "bezier": OURS,
    "bezier-teacher": SMALL,
}
SIZES["bezier-half"] = (2 * OURS[0], 2 * OURS[1])


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    np.savez(
        tmp_path / "data.npz",
        x=np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32),
    )
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize("name", METHODS)
def test_every_pass_is_charged_and_nothing_else(
    name: str, tiny: str, tmp_path: Path, account: Account
) -> None:
    budget, batch = SIZES.get(name, SMALL)
    network, loop = NetworkConfig(width=16, depth=2), LoopConfig(accelerator="cpu")
    own = Budget(budget, batch)
    bench = Bench(load_data(tiny), own, 0, tmp_path / "own", tmp_path / "shared", network, loop)
    samplers = METHODS[name](bench)
    slack = (
        32 * 27 if name == "dmd-two" else 0
    )  # one step: it simulates its first jump in half of the steps, by chance
    assert abs(account.passes - bench.budget.spent) <= slack
    share = {"bezier-half": 0.5, "bezier-teacher": Shares.strong}.get(name, 1.0)
    total = budget * (share if name == "bezier-half" else 1)
    assert 0.9 * share * budget <= bench.budget.spent <= bench.budget.total == total
    for passes, sampler in samplers.items():
        account.passes = 0
        x = sampler(noise(1, Stream.JUDGE, range(9), bench.data.shape))
        assert account.passes == 9 * passes
        assert x.shape == (9, 3)
        assert bool(x.isfinite().all())


def test_the_counter_counts_gradients_where_they_come_back(account: Account) -> None:
    net, x, t = MLP((3,), 16, 2), torch.randn(5, 3), torch.rand(5)
    net(x, t, t)
    assert account.passes == 5
    loss = net(x, t, t).square().mean()
    assert account.passes == 10  # no gradient yet
    loss.backward()
    assert account.passes == 20
    seen = list[torch.Tensor]()
    handle = net.hidden[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(x, t, t)
    handle.remove()
    seen[0].sum().backward()  # from a hidden layer alone
    assert account.passes == 35
    with torch.no_grad():
        nn.Sequential(net)[0](x, t, t)
    assert account.passes == 40


@pytest.mark.parametrize(("module", "passes"), [(mean_flow, 2 + 2), (flow_map_matching, 2 + 4)])
def test_a_derivative_counts_as_a_second_value(module: Any, passes: int, account: Account) -> None:
    net, x, t = MLP((3,), 16, 2), torch.randn(5, 3), torch.rand(5)
    value, slope = module.forward_derivative(
        lambda time: net(x, t, time, None), (t,), (torch.ones_like(t),)
    )
    (value + (slope.detach() if module is mean_flow else slope)).square().mean().backward()
    assert account.passes == 5 * passes

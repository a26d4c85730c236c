"""Which methods have a teacher and which train on a judge; hidden features of our networks."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bezierdistill.arena.bench import Bench
from bezierdistill.arena.methods import METHODS, SCRATCH, TRAINED_ON, bezier, moment_matching
from bezierdistill.arena.rivals import Hidden
from bezierdistill.budget import Budget
from bezierdistill.data import load_data
from bezierdistill.models import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.training.settings import LoopConfig


class AskedError(Exception):
    """A method has asked for a teacher."""


def a_bench(folder: Path, shape: tuple[int, ...] = (3,), **network: Any) -> Bench:
    x = np.random.default_rng(0).standard_normal((200, *shape)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    config = NetworkConfig(**{"width": 16, "depth": 2, **network})
    data, loop = load_data(str(folder / "data.npz")), LoopConfig(accelerator="cpu")
    return Bench(data, Budget(2_000, 16), 0, folder / "own", folder / "shared", config, loop)


@pytest.mark.parametrize("name", METHODS)
def test_those_from_scratch_are_those_that_ask_for_no_teacher(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def teacher(*arguments: Any, **settings: Any) -> Model:
        raise AskedError

    monkeypatch.setattr(Bench, "teacher", teacher)
    bench = a_bench(tmp_path)
    if name in SCRATCH:
        assert METHODS[name](bench)
    else:
        with pytest.raises(AskedError):
            METHODS[name](bench)


def test_those_that_align_train_on_the_energy_distance() -> None:
    aligned = set()
    for name, method in METHODS.items():
        plain, settings = (
            (method.func, method.keywords) if isinstance(method, partial) else (method, {})
        )
        shares = settings.get("shares", {})
        if plain is moment_matching or (plain is bezier and shares.get("align", 1)):
            aligned.add(name)
    assert aligned == TRAINED_ON.keys()
    assert set().union(*TRAINED_ON.values()) == {"energy"}


@pytest.mark.parametrize(
    ("kind", "width", "names"),
    [
        ("mlp", 16, ["hidden.0"]),
        ("unet", 16, ["down_blocks.0", "down_blocks.1", "mid_block"]),
        ("dit", 32, ["transformer_blocks.0", "transformer_blocks.1"]),
    ],
)
def test_hidden_features_depend_on_the_state_and_cost_what_they_say(
    kind: str, width: int, names: list[str], tmp_path: Path
) -> None:
    bench = a_bench(tmp_path, (3,) if kind == "mlp" else (8, 8, 1), kind=kind, width=width, patch=1)
    net = bench.build()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    hidden = Hidden(bench, net)
    assert bench.budget.spent == hidden.calls == 1
    assert [name.removeprefix("inner.") for name in hidden.names] == names
    assert hidden.middle.endswith(names[-1])
    x = torch.randn(5, *bench.data.shape, requires_grad=True)
    groups = hidden(x)
    assert len(groups) == len(hidden.names)
    for group in groups:
        assert group.shape[0] == 5
        (gradient,) = torch.autograd.grad(group[0].square().sum(), x, retain_graph=True)
        assert gradient[0].any()
        assert not gradient[1:].any()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())

"""Which methods have a teacher and which train on a judge; the middles of our networks."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bezierdistill.arena.bench import Bench
from bezierdistill.arena.methods import METHODS, SCRATCH, TRAINED_ON, bezier, moment_matching
from bezierdistill.arena.rivals import middle_part
from bezierdistill.budget import Budget
from bezierdistill.data import load_data
from bezierdistill.models import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import Discriminating
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
    ("kind", "width", "depth"), [("mlp", 16, 1), ("mlp", 16, 4), ("unet", 16, 1), ("dit", 32, 3)]
)
def test_the_middle_of_a_network_is_as_wide_as_it_says(
    kind: str, width: int, depth: int, tmp_path: Path
) -> None:
    shape = (3,) if kind == "mlp" else (8, 8, 1)
    bench = a_bench(tmp_path, shape, kind=kind, width=width, depth=depth, patch=1)
    net = bench.build()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    critic = Discriminating(net, *middle_part(net))
    nn.init.normal_(critic.head.weight)
    x = torch.randn(5, *bench.data.shape, requires_grad=True)
    logits = critic.logits(x, torch.full((5,), 0.7))
    assert logits.shape == (5,)
    (gradient,) = torch.autograd.grad(logits[0], x)
    assert gradient[0].any()
    assert not gradient[1:].any()

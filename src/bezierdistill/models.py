"""A model folder: weights, and a JSON card that says how to build the network, how to use it, and where it comes from.

    model.json          kind, network, shape, scaling, knots, passes spent, config, seed, step, package version, weights' digest
    model.safetensors   the averaged weights

Teachers and students are the same thing here: a network ``u(x, s, t)``. A teacher's knots are evenly spaced, which makes sampling with K
passes K Euler steps of its velocity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.data import Scaling
from bezierdistill.fields import NetworkField
from bezierdistill.files import digest, read_json, read_tensors, write_json, write_tensors
from bezierdistill.networks import MLP, Transformer
from bezierdistill.solvers import solve, time_grid
from bezierdistill.sources import noise
from bezierdistill.students import check_knots, sample

FORMAT, VERSION = "bezierdistill-model", 1
CARD, WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and how large.

    Args:
        kind: ``mlp`` (vectors and small images) or ``transformer`` (images).
        width: hidden width, or token width (a multiple of 32).
        depth: hidden layers, or blocks.
        patch: side of the transformer's patches in pixels; the MLP has none.
    """

    kind: Literal["mlp", "transformer"] = "mlp"
    width: int = 256
    depth: int = 5
    patch: int = 2

    def build(self, shape: tuple[int, ...], seed: int) -> nn.Module:
        """A new network for states of ``shape``, its weights a function of the seed.

        Raises:
            ValueError: on sizes below 1, or what the network itself rejects.
        """
        if min(self.width, self.depth, self.patch) < 1:
            raise ValueError(f"network has width {self.width}, depth {self.depth}, patch {self.patch}, expected 1 or more of each")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind == "mlp":
                return MLP(shape, self.width, self.depth)
            return Transformer(shape, self.width, self.depth, self.patch)


@dataclass(frozen=True)
class Model:
    """A trained teacher or student.

    Args:
        net: the network ``u(x, s, t, cond)``, averaged weights, in evaluation mode.
        network: how to build it.
        shape: shape of one state.
        scaling: the way to the data's own units.
        knots: the knots of the samplers it was trained for, by their number of passes.
        card: the rest of ``model.json``.
        folder: where it lies; None if not saved.
    """

    net: nn.Module
    network: NetworkConfig
    shape: tuple[int, ...]
    scaling: Scaling
    knots: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def field(self) -> NetworkField:
        """The velocity field ``v(x, t) = u(x, t, t)``."""
        return NetworkField(self.net)

    @property
    def spent(self) -> int:
        """Network passes spent to make this model, its teachers and curves included."""
        return int(self.card.get("passes", {}).get("total", 0))

    def schedule(self, passes: int) -> tuple[float, ...]:
        """Knots of a sampler with a number of passes: those trained for, or evenly spaced.

        Raises:
            ValueError: if ``passes < 1``.
        """
        if passes < 1:
            raise ValueError(f"passes is {passes}, expected 1 or more")
        return self.knots.get(passes) or time_grid(passes)

    @torch.no_grad()
    def generate(self, x0: Tensor, passes: int, solver: str = "euler") -> Tensor:
        """Model states ``(B, *shape)`` from sources ``x0``, by jumps (``euler``) or by an ODE solver on the velocity.

        Args:
            x0: sources.
            passes: network passes a row; a multiple of the solver's stages.
            solver: ``euler`` jumps from knot to knot; ``midpoint``, ``heun`` and ``rk4`` integrate ``v(x, t)``.

        Raises:
            ValueError: on passes that the solver cannot spend evenly, or an adaptive solver.
        """
        if solver == "euler":
            return sample(self.net, x0, self.schedule(passes))
        stages = {"midpoint": 2, "heun": 2, "rk4": 4}.get(solver)
        if stages is None or passes < 1 or passes % stages:
            raise ValueError(f"{passes} passes with solver {solver!r}, expected euler, or midpoint/heun with a multiple of 2, rk4 of 4")
        return solve(self.field, x0, time_grid(passes // stages), solver).state

    def sample(self, count: int, passes: int = 1, seed: int = 0, solver: str = "euler", batch: int = 4096) -> np.ndarray:
        """Draw samples in the data's own units and layout, ``(count, ...)``; row i depends on the seed and i alone.

        Raises:
            ValueError: if ``count < 1``; else see :meth:`generate`.
        """
        if count < 1:
            raise ValueError(f"count is {count}, expected 1 or more")
        device = next(self.net.parameters()).device
        parts = [
            self.scaling.decode(self.generate(noise(seed, start, min(batch, count - start), self.shape).to(device), passes, solver))
            for start in range(0, count, batch)
        ]
        return np.concatenate(parts)


def save_model(folder: Path, model: Model) -> Model:
    """Write a model folder; returns the model with its folder and digest."""
    write_tensors(folder / WEIGHTS, dict(model.net.state_dict()))
    card = {
        "format": FORMAT,
        "version": VERSION,
        "network": asdict(model.network),
        "shape": list(model.shape),
        "scaling": asdict(model.scaling),
        "knots": {str(passes): list(knots) for passes, knots in model.knots.items()},
        **model.card,
        "digest": digest(folder / WEIGHTS),
    }
    write_json(folder / CARD, card)
    return load_model(folder)


def load_model(folder: str | Path) -> Model:
    """Read a model folder.

    Raises:
        ValueError: if it is missing, of another format, or its weights are cut off, damaged or of another network.
    """
    folder = Path(folder)
    card = read_json(folder / CARD, "model")
    if card.get("format") != FORMAT or card.get("version") != VERSION:
        got = f"{card.get('format')!r} version {card.get('version')!r}"
        raise ValueError(f"{folder / CARD} is {got}, expected {FORMAT!r} version {VERSION}")
    weights = read_tensors(folder / WEIGHTS)[0]
    if digest(folder / WEIGHTS) != card.get("digest"):
        raise ValueError(f"{folder / WEIGHTS} differs from the digest in {CARD}: the file was changed or damaged")
    try:
        network = NetworkConfig(**card["network"])
        shape, scaling = tuple(card["shape"]), Scaling.from_json(card["scaling"])
        knots = {int(passes): check_knots(times) for passes, times in card["knots"].items()}
        net = network.build(shape, 0)
        net.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} does not describe the network of its weights: {' '.join(str(error).split())}") from None
    return Model(net.eval().requires_grad_(False), network, shape, scaling, knots, card, folder)

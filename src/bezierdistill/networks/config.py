"""Which network, and how large: settings that build it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named, find_function, is_object
from bezierdistill.settings import check_choice

if TYPE_CHECKING:
    from torch import nn

    from bezierdistill.networks.foreign import ForeignConfig
    from bezierdistill.networks.own import OwnConfig
    from bezierdistill.networks.pipeline import PipelineConfig

NetworkKind = Literal["mlp", "unet", "dit", "transformer"]
LATER = {"control_points", "file"}  # settings that records of older versions lack
MAKES = "takes the shape of a state and the numbers of a condition, and returns a module"
# Functions that settings have named here: none that a record names alone is run.
_asked = set[str]()
MAX_WIDTH, MAX_DEPTH = 4096, 256  # of a network that a file names, which may come from anybody


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and how large."""

    kind: NetworkKind = "mlp"
    """``mlp`` (vectors, small images, short texts), ``unet`` (images), ``dit`` (square images, a
    diffusion transformer) or ``transformer`` (texts)."""
    width: int = 256
    """Hidden width; channels of a U-Net at full resolution (a multiple of 8); token width (a
    multiple of 32)."""
    depth: int = 5
    """Hidden layers; residual layers of a U-Net's blocks; blocks of a transformer."""
    patch: int = 2
    """Side of a U-Net's or DiT's square patches in pixels; 1 is none. The others have none."""
    control_points: int = 1
    """Control points of the curve's velocity that a pass emits (distill --control-points); 1
    is a straight jump."""
    file: str | None = None
    """In an arena, in the place of all these: FILE.py:function of your own, network(shape,
    condition_size), which returns a module net(x, s, t, cond)."""

    def build(
        self, shape: tuple[int, ...], seed: int, condition_size: int = 0, outputs: int = 1
    ) -> nn.Module:
        """A new network for states of ``shape`` and conditions of ``condition_size`` numbers, its
        weights a function of the seed; one of several ``outputs`` K gives ``(B, K, *shape)``.

        Raises:
            UserError: on another kind, sizes below 1, or what the network itself rejects; or if it
                is one of the user's own that no settings have asked for.
        """
        if self.file is not None:
            return self._from_file(shape, seed, condition_size, outputs)
        check_choice("network", self.kind, NetworkKind)
        sizes = dataclasses.asdict(self)
        del sizes["kind"], sizes["file"]
        if not all(type(n) is int and n > 0 for n in sizes.values()):
            given = ", ".join(f"{k} {v!r}" for k, v in sizes.items())
            raise UserError(f"network has {given}, expected whole numbers, 1 or more")
        import torch  # imported here: settings take no torch

        from bezierdistill.networks.curve import CurveNetwork
        from bezierdistill.networks.dit import DiT
        from bezierdistill.networks.mlp import MLP
        from bezierdistill.networks.transformer import Transformer
        from bezierdistill.networks.unet import UNet

        if self.control_points > 1:
            inner = dataclasses.replace(self, control_points=1)
            made = inner.build(shape, seed, condition_size, self.control_points)
            return CurveNetwork(made, self.control_points)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind == "mlp":
                return MLP(shape, self.width, self.depth, condition_size, outputs)
            if self.kind == "transformer":
                return Transformer(shape, self.width, self.depth, condition_size, outputs)
            kind = UNet if self.kind == "unet" else DiT
            return kind(shape, self.width, self.depth, self.patch, condition_size, outputs)

    def _from_file(
        self, shape: tuple[int, ...], seed: int, condition_size: int, outputs: int
    ) -> nn.Module:
        import torch

        name = str(self.file)
        if name not in _asked:
            raise UserError(
                f"network.file is {name}, which only an arena with the same --network.file runs"
            )
        if outputs * self.control_points > 1:
            raise UserError(f"{name} gives one velocity, expected --network.control-points 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = find_function(name, "network", MAKES)(shape, condition_size)
        if not isinstance(made, torch.nn.Module):
            raise UserError(f"{name} made a {type(made).__name__}, expected a torch module")
        return made


def ask_for(network: NetworkConfig) -> None:
    """Let a network of the user's own be built, as settings have named its file.

    Raises:
        UserError: if it is not named as ``FILE.py:function``.
    """
    as_named(network, "file")
    if network.file is not None and not is_object(network.file):
        raise UserError(f"network.file is {network.file!r}, expected FILE.py:function")
    _asked.add(str(network.file))


def sees_images(network: object, shape: tuple[int, ...]) -> bool:
    """Whether states of a shape are images to a network: not to our MLP, which takes vectors."""
    mlp = isinstance(network, NetworkConfig) and network.file is None and network.kind == "mlp"
    return len(shape) == 3 and not mlp


def read_network(
    fields: Mapping[str, Any],
) -> NetworkConfig | ForeignConfig | OwnConfig | PipelineConfig:
    """The settings of a network, as a record holds them.

    Raises:
        UserError: if they are none, or if some are missing or unknown.
    """
    from bezierdistill.networks.foreign import ForeignConfig  # here: they take torch
    from bezierdistill.networks.own import OwnConfig
    from bezierdistill.networks.pipeline import PipelineConfig
    from bezierdistill.records import from_json

    kinds = {"diffusers": ForeignConfig, "own": OwnConfig, "pipeline": PipelineConfig}
    kind = kinds.get(str(fields.get("kind")), NetworkConfig)
    known = {field.name for field in dataclasses.fields(kind)}
    other = sorted((fields.keys() ^ known) - (LATER & known))
    if other:
        raise UserError(f"network cannot be used: {other[0][:80]!r} is missing or unknown")
    return from_json(fields, kind, "network")

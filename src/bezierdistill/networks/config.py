"""Which network, and how large: settings that build it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.errors import UserError
from bezierdistill.settings import check_choice

if TYPE_CHECKING:
    from torch import nn

    from bezierdistill.networks.foreign import ForeignConfig
    from bezierdistill.networks.own import OwnConfig
    from bezierdistill.networks.pipeline import PipelineConfig

NetworkKind = Literal["mlp", "unet", "dit"]
LATER = {"control_points"}  # settings that records of older versions lack
MAX_WIDTH, MAX_DEPTH = 4096, 256  # of a network that a file names, which may come from anybody


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and how large."""

    kind: NetworkKind = "mlp"
    """``mlp`` (vectors and small images), ``unet`` (images) or ``dit`` (square images, a diffusion
    transformer)."""
    width: int = 256
    """Hidden width; channels of a U-Net at full resolution (a multiple of 8); token width (a
    multiple of 32)."""
    depth: int = 5
    """Hidden layers; residual layers of a U-Net's blocks; blocks of a transformer."""
    patch: int = 2
    """Side of a U-Net's or transformer's square patches in pixels; 1 is none. The MLP has none."""
    control_points: int = 1
    """Control points of the curve's velocity that a pass emits (distill --control-points); 1
    is a straight jump."""

    def build(
        self, shape: tuple[int, ...], seed: int, condition_size: int = 0, outputs: int = 1
    ) -> nn.Module:
        """A new network for states of ``shape`` and conditions of ``condition_size`` numbers, its
        weights a function of the seed; one of several ``outputs`` K gives ``(B, K, *shape)``.

        Raises:
            UserError: on another kind, sizes below 1, or what the network itself rejects.
        """
        check_choice("network", self.kind, NetworkKind)
        if not all(type(n) is int and n > 0 for n in dataclasses.astuple(self)[1:]):
            sizes = {k: v for k, v in dataclasses.asdict(self).items() if k != "kind"}
            given = ", ".join(f"{k} {v!r}" for k, v in sizes.items())
            raise UserError(f"network has {given}, expected whole numbers, 1 or more")
        import torch  # imported here: settings take no torch

        from bezierdistill.networks.curve import CurveNetwork
        from bezierdistill.networks.dit import DiT
        from bezierdistill.networks.mlp import MLP
        from bezierdistill.networks.unet import UNet

        if self.control_points > 1:
            inner = dataclasses.replace(self, control_points=1)
            made = inner.build(shape, seed, condition_size, self.control_points)
            return CurveNetwork(made, self.control_points)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.kind == "mlp":
                return MLP(shape, self.width, self.depth, condition_size, outputs)
            kind = UNet if self.kind == "unet" else DiT
            return kind(shape, self.width, self.depth, self.patch, condition_size, outputs)


def sees_images(network: object, shape: tuple[int, ...]) -> bool:
    """Whether states of a shape are images to a network: not to our MLP, which takes vectors."""
    return len(shape) == 3 and not (isinstance(network, NetworkConfig) and network.kind == "mlp")


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

"""Processes that work together, the *ranks*: torchrun starts them, Lightning Fabric joins them;
without torchrun there is one.

With ``ddp`` every rank has the whole network and gradients are averaged; with ``fsdp`` (PyTorch's
``fully_shard``) every rank keeps a part of each tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.noise import block_generator

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE = timedelta(days=2)  # ranks of a simulation meet only at its end
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "64-true"]
Strategy = Literal["ddp", "fsdp"]


def open_fabric(
    accelerator: str, precision: Precision = "32-true", strategy: Strategy = "ddp"
) -> Fabric:
    """Lightning Fabric on one device, or on one device a rank under torchrun.

    Raises:
        UserError: if there is no such accelerator on this machine.
    """
    from lightning_fabric import (
        Fabric,
    )  # imported here: it loads the compiler, seconds that only training needs

    ranks, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    try:
        if ranks == 1:
            return Fabric(accelerator=accelerator, devices=1, precision=precision)
        way = _sharding(ranks) if strategy == "fsdp" else _copying()
        fabric = Fabric(
            accelerator=accelerator,
            devices=here,
            num_nodes=ranks // here,
            strategy=way,
            precision=precision,
        )
        fabric.launch()
        return fabric
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"accelerator {accelerator!r} with precision {precision!r} cannot be used here: {error}"
        ) from None


def _copying() -> Any:
    from lightning_fabric.strategies.ddp import DDPStrategy

    return DDPStrategy(timeout=PATIENCE)


def _sharding(ranks: int) -> Any:
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    def shard(net: nn.Module, mesh: Any) -> nn.Module:
        for block in _blocks(net):
            fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(net, mesh=mesh["data_parallel"])
        return net

    return ModelParallelStrategy(
        shard, data_parallel_size=ranks, tensor_parallel_size=1, timeout=PATIENCE
    )


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The blocks that are put together one at a time: those of the outermost lists, without each
    list's first.

    The first ones stay together with the rest of the network: diffusers' transformer asks its first
    block again at the end.
    """
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            yield from list(child)[1:]
        else:
            yield from _blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts that other ranks keep; all ranks must ask for the same ones in the
    same order.
    """
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """What this rank keeps of a whole tensor, as it does of ``like``."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed = cast(Any, like)
    return distribute_tensor(value.to(like.device), placed.device_mesh, placed.placements)


def of_all(tensor: Tensor, ranks: int, device: torch.device) -> Tensor:
    """The tensors ``(...)`` that ranks have, as one ``(ranks, ...)``, by way of the device that
    they exchange data on.
    """
    if ranks == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor, device=device) for _ in range(ranks)]
    torch.distributed.all_gather(parts, tensor.to(device))
    return torch.stack(parts)


def rank_generator(seed: int, rank: int, ranks: int, step: int = 0) -> torch.Generator:
    """The CPU generator of a rank's draws: its own stream for each of several ranks, and anew where
    their number has changed at a step.
    """
    if ranks == 1 and not step:
        return torch.Generator().manual_seed(seed)
    return block_generator(seed % 2**64, rank, ranks, step)

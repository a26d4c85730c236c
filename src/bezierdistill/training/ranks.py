"""Processes that work together, the *ranks*: torchrun starts them, Lightning Fabric joins them.

With ``ddp`` every rank has the whole network and gradients are averaged; with ``fsdp`` (PyTorch's
``fully_shard``) every rank keeps a part of each tensor.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.noise import Stream, generator
from bezierdistill.settings import Precision, Strategy

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE = timedelta(days=2)  # ranks of a simulation meet only at its end
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def open_fabric(
    accelerator: str,
    precision: Precision = "32-true",
    strategy: Strategy = "ddp",
    skips: bool = False,
) -> Fabric:
    """Lightning Fabric on one device, or on one device per rank under torchrun.

    Args:
        accelerator: the kind of device.
        precision: the format of numbers.
        strategy: how ranks share the work.
        skips: whether parameters may have no gradient; DDP must look for them in every step.

    Raises:
        UserError: if there is no such accelerator on this machine, or the ranks cannot meet.
    """
    # Imported here: it loads the compiler, seconds that only training needs.
    with warnings.catch_warnings(action="ignore"):  # tqdm's, in a notebook without ipywidgets
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

    ranks, here = _world()
    try:
        if ranks == 1:
            return Fabric(accelerator=accelerator, devices=1, precision=precision)
        fabric = Fabric(
            accelerator=accelerator,
            devices=here,
            num_nodes=ranks // here,
            strategy=_sharding(ranks)
            if strategy == "fsdp"
            else DDPStrategy(timeout=PATIENCE, find_unused_parameters=skips),
            precision=precision,
        )
        fabric.launch()
        return fabric
    except (RuntimeError, ValueError) as error:
        given = f"accelerator {accelerator!r} with precision {precision!r}"
        raise UserError(f"{given} cannot be used here: {error}") from None


def _world() -> tuple[int, int]:
    """Number of ranks, and of those on this machine.

    Without a variable by which they meet, ranks would wait for each other without end.
    """
    given = {name: os.environ.get(name, "") for name in TORCHRUN}
    if given["WORLD_SIZE"] in ("", "1"):
        return 1, 1
    for name, value in given.items():
        if not value or (name != "MASTER_ADDR" and not value.isdigit()):
            raise UserError(
                f"WORLD_SIZE is {given['WORLD_SIZE']} and {name} is {value or 'not set'}: start"
                " with torchrun, which sets both, or unset WORLD_SIZE"
            )
    return int(given["WORLD_SIZE"]), int(given["LOCAL_WORLD_SIZE"])


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
    list's first, which diffusers' transformer reads again at the end.
    """
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            yield from list(child)[1:]
        else:
            yield from _blocks(child)


def gather_full(tensor: Tensor) -> Tensor:
    """A tensor with the parts of other ranks, which must ask for them in the same order."""
    return cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """What this rank keeps of a full tensor, as it does of ``like``."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    placed = cast(Any, like)
    return distribute_tensor(value.to(like.device), placed.device_mesh, placed.placements)


def all_gather(tensor: Tensor, ranks: int, device: torch.device) -> Tensor:
    """The tensors ``(...)`` of all ranks as one ``(ranks, ...)``, exchanged by way of a device."""
    if ranks == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor, device=device) for _ in range(ranks)]
    torch.distributed.all_gather(parts, tensor.to(device))
    return torch.stack(parts)


def rank_generator(seed: int, rank: int, ranks: int, step: int = 0) -> torch.Generator:
    """The CPU generator of a rank's draws; another one once their number has changed at a step."""
    return generator(seed, Stream.TRAIN, rank, ranks, step)

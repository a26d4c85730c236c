"""What every rank of tests/test_ranks.py runs under torchrun: small trainings whose weights the
first rank writes to a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bezierdistill.files import write_tensors
from bezierdistill.models import NetworkConfig
from bezierdistill.networks.foreign import ForeignConfig
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import writer
from bezierdistill.training.loop import Step, Trainer
from bezierdistill.training.ranks import Strategy
from bezierdistill.training.settings import LoopConfig

ROWS, STEPS = 16, 12
IMAGE = (3, 8, 8)
UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 3,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 4,
}
NETWORKS: dict[str, tuple[NetworkConfig | ForeignConfig, tuple[int, ...], int]] = {
    "mlp": (NetworkConfig(width=9, depth=3), (4,), 0),
    "unet": (NetworkConfig("unet", 8, 2, 1), IMAGE, 0),
    "dit": (NetworkConfig("dit", 32, 3, 2), IMAGE, 0),
    "foreign-unet": (ForeignConfig("UNet2DModel", UNET, "velocity", "linear-up", {}), IMAGE, 0),
    "foreign-dit": (
        ForeignConfig("DiTTransformer2DModel", DIT, "velocity", "linear-up", {}),
        IMAGE,
        5,
    ),
}
SMALL: dict[str, Any] = {"steps": 8, "batch": 32}


def loop(**settings: Any) -> LoopConfig:
    """Frequent states."""
    return LoopConfig(
        **{
            "accelerator": "cpu",
            "lr": 0.01,
            "warmup": 0,
            "decay": 0.0,
            "ema": 0.5,
            "save_every": 4,
            "log_every": 4,
            **settings,
        }
    )


def table(k: int, shape: tuple[int, ...]) -> Tensor:
    """Rows of step k, of which every rank takes its part."""
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(k))


def stepper(trainer: Trainer, shape: tuple[int, ...], conditions: int) -> Step:
    """Two passes of the network in one loss, a mean over rows that the ranks share."""

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        rows = trainer.share(ROWS)
        own = slice(trainer.rank * rows, (trainer.rank + 1) * rows)
        x, cond = (
            table(trainer.done, shape)[own],
            torch.eye(conditions)[torch.arange(ROWS)[own] % conditions] if conditions else None,
        )
        net, times = nets["net"], (torch.zeros(rows), torch.ones(rows))
        yield "net", (net(net(x, *times, cond), *times, cond) - x.flip(-1)).square().mean()

    return step


def noisy(trainer: Trainer) -> Step:
    """The same with draws of the rank's own."""

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        x, t = (
            torch.randn(trainer.share(ROWS), 4, generator=generator),
            torch.zeros(trainer.share(ROWS)),
        )
        yield "net", (nets["net"](x, t, t) - x.flip(1)).square().mean()

    return step


def fitted(
    folder: Path,
    name: str,
    stop: int | None = None,
    own: bool = False,
    network: str = "mlp",
    steps: int = STEPS,
    **settings: Any,
) -> None:
    """Train a small network, perhaps killed by an interrupt before a step, and write its
    weights."""
    config, shape, conditions = NETWORKS[network]
    trainer = Trainer(
        {"net": config.build(shape, 0, conditions)}, loop(**settings), folder / name, "stage"
    )
    step = noisy(trainer) if own else stepper(trainer, shape, conditions)

    def stopping(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        if trainer.done == stop:
            raise KeyboardInterrupt
        yield from step(nets, generator)

    try:
        weights = trainer.fit(stopping, steps, 3).state_dict()
    except KeyboardInterrupt:
        return
    if trainer.rank == 0:
        write_tensors(folder / f"{name}.safetensors", dict(weights))


def diverged(folder: Path, strategy: Strategy) -> None:
    """Train on a loss that is not finite on the second rank alone, from step 6 on; every rank
    writes why it stopped."""
    config, shape, conditions = NETWORKS["mlp"]
    trainer = Trainer(
        {"net": config.build(shape, 0, conditions)},
        loop(strategy=strategy),
        folder / f"{strategy}-nan",
        "stage",
    )
    inner = stepper(trainer, shape, conditions)

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        for name, loss in inner(nets, generator):
            yield name, loss + (float("nan") if trainer.rank == 1 and trainer.done >= 5 else 0.0)

    try:
        trainer.fit(step, STEPS, 3)
    except ValueError as error:
        (folder / f"{strategy}-nan-{trainer.rank}.txt").write_text(str(error))


def losses(folder: Path) -> None:
    """Regression and a few restarts, each way of sharing the work."""
    for strategy in get_args(Strategy):
        fitted(folder, strategy, strategy=strategy)
        fitted(folder, f"{strategy}-clip", strategy=strategy, clip=0.01)
        fitted(folder, f"{strategy}-sums", strategy=strategy, accumulate=2)
        fitted(folder, f"{strategy}-own", own=True, strategy=strategy)
        fitted(folder, f"{strategy}-parts", stop=7, own=True, strategy=strategy)
        fitted(folder, f"{strategy}-parts", own=True, strategy=strategy)
        for network in NETWORKS:
            fitted(folder, f"{strategy}-{network}", network=network, steps=2, strategy=strategy)
        diverged(folder, strategy)
    fitted(folder, "switched", stop=7, strategy="ddp")
    fitted(folder, "switched", strategy="fsdp")
    fitted(folder, "fewer", stop=7, strategy="fsdp")


def chain(folder: Path) -> None:
    """Data to a student; curves in shards of one batch."""
    writer.SHARD_BYTES = 1
    network = NetworkConfig(width=16, depth=2)
    train(TrainConfig("manifold", folder / "teacher", network=network, loop=loop(), **SMALL))
    simulate(
        SimulateConfig(
            (folder / "teacher",),
            folder / "curves",
            count=700,
            steps=4,
            batch=100,
            accelerator="cpu",
        )
    )
    distill(
        DistillConfig(
            folder / "curves",
            folder / "student",
            align=4,
            data="manifold",
            loop=loop(strategy="fsdp"),
            **SMALL,
        )
    )
    distill(DistillConfig(folder / "curves", folder / "epochs", epochs=True, loop=loop(), **SMALL))


if __name__ == "__main__":
    {"losses": losses, "chain": chain}[sys.argv[1]](Path(sys.argv[2]))

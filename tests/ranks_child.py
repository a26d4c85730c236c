"""What every rank of tests/test_ranks.py runs under torchrun: small trainings whose weights the
first rank writes to a folder."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bezierdistill.data import Scaling
from bezierdistill.files import write_tensors
from bezierdistill.models.teacher import Student
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.networks.foreign import ForeignConfig
from bezierdistill.objectives import SingleObjective
from bezierdistill.settings import Strategy
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveWriter
from bezierdistill.training.loop import Trainer
from bezierdistill.training.settings import LoopConfig
from foreign_networks import CLASSES, MANNERS, mixtures, trained

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


@dataclass(frozen=True)
class Own:
    """A student that is a module of somebody else's, in one of three ways; in ``manner``."""

    way: Any
    lora: int = 0
    manner: str = "Meta"

    def student(self, conditions: int = 0) -> Student:
        """It, of a teacher that was trained for a few steps."""
        manner = MANNERS[self.manner]
        module = trained(manner, 3, conditions > 0)
        teacher = manner.teacher(module, conditions > 0, scaling=Scaling())
        return teacher.student(self.way, lora=self.lora)

    def build(self, shape: tuple[int, ...], seed: int, conditions: int = 0) -> nn.Module:
        """Its network; the second time is not zero, so that it has a gradient in every part."""
        net = self.student(conditions).build(seed)
        if net.second is not None:
            for weight in net.second.weights:
                nn.init.normal_(weight, std=0.1, generator=table(0))
        return net


Networks = dict[str, tuple[NetworkConfig | ForeignConfig | Own, tuple[int, ...], int]]
# Without conditions the embedding of its labels gets no gradient.
OWN: Networks = {"student": (Own("second-time", manner="EDM"), (2,), 0)}
NETWORKS: Networks = OWN | {
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
OWN |= {
    "student-start": (Own("start-time"), (2,), 0),
    "student-classes": (Own("second-time", manner="lucidrains"), (2,), CLASSES),
    "student-lora": (Own("second-time", lora=2), (2,), 0),
}
SMALL: dict[str, Any] = {"steps": 8, "batch": 32}
plan = partialmethod(CurveWriter.plan, shard_bytes=1)  # shards of one batch


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


class Mirror(SingleObjective):
    """Two passes of the network in one loss, a mean over rows that the ranks share."""

    cost = 6

    def __init__(self, trainer: Trainer, spoilt: bool = False) -> None:
        self.trainer, self.spoilt = trainer, spoilt

    def loss(
        self, net: nn.Module, batch: Any, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        x, cond = batch
        times = (torch.zeros(len(x)), torch.ones(len(x)))
        loss = (net(net(x, *times, cond), *times, cond) - x.flip(-1)).square().mean()
        late = self.spoilt and self.trainer.rank == 1 and self.trainer.done >= 5
        return loss + (float("nan") if late else 0.0)


class Rows:
    """This rank's part of a step's table, or rows drawn by itself; perhaps an interrupt instead."""

    def __init__(
        self,
        trainer: Trainer,
        shape: tuple[int, ...],
        conditions: int,
        own: bool = False,
        stop: int | None = None,
    ) -> None:
        self.trainer, self.shape, self.conditions = trainer, shape, conditions
        self.own, self.stop = own, stop

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        if self.trainer.done == self.stop:
            raise KeyboardInterrupt
        rows = self.trainer.share(ROWS)
        part = slice(self.trainer.rank * rows, (self.trainer.rank + 1) * rows)
        x = torch.randn(ROWS, *self.shape, generator=table(self.trainer.done))[part]
        if self.own:
            x = torch.randn(rows, *self.shape, generator=generator)
        labels = torch.arange(ROWS)[part] % max(1, self.conditions)
        return x, torch.eye(self.conditions)[labels] if self.conditions else None


def table(step: int) -> torch.Generator:
    """Of the rows of a step, of which every rank takes its part."""
    return torch.Generator().manual_seed(step)


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
    config, shape, conditions = (NETWORKS | OWN)[network]
    trainer = Trainer(
        {"net": config.build(shape, 0, conditions)}, loop(**settings), folder / name, "stage"
    )
    rows = Rows(trainer, shape, conditions, own, stop)
    try:
        weights = trainer.fit(Mirror(trainer), rows, steps, 3).state_dict()
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
    try:
        trainer.fit(Mirror(trainer, spoilt=True), Rows(trainer, shape, conditions), STEPS, 3)
    except ValueError as error:
        (folder / f"{strategy}-nan-{trainer.rank}.txt").write_text(str(error))


def ended(folder: Path, strategy: Strategy) -> None:
    """Train, and be sent a signal on the second rank alone during step 4; then go on."""
    config, shape, conditions = NETWORKS["mlp"]

    class Ending(Mirror):
        def loss(
            self, net: nn.Module, batch: Any, generator: torch.Generator, progress: float = 0.0
        ) -> Tensor:
            if self.trainer.rank == 1 and self.trainer.done == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(net, batch, generator)

    name = f"{strategy}-ended"
    net = config.build(shape, 0, conditions)
    settings = loop(strategy=strategy, save_every=100)
    trainer = Trainer({"net": net}, settings, folder / name, "stage")
    try:
        trainer.fit(Ending(trainer), Rows(trainer, shape, conditions, own=True), STEPS, 3)
    except SystemExit as end:
        (folder / f"{name}-{trainer.rank}.txt").write_text(f"{end.code} {trainer.done}")
    fitted(folder, name, own=True, strategy=strategy)


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
        ended(folder, strategy)
    fitted(folder, "switched", stop=7, strategy="ddp")
    fitted(folder, "switched", strategy="fsdp")
    fitted(folder, "fewer", stop=7, strategy="fsdp")


def students(folder: Path) -> None:
    """Students that are modules of somebody else's: together, stopped, in mixed precision."""
    half: Any = {"steps": 2, "precision": "bf16-mixed", "accumulate": 2}
    for strategy in get_args(Strategy):
        for network in OWN:
            name = f"{strategy}-{network}"
            fitted(folder, name, network=network, steps=2, strategy=strategy)
            fitted(folder, f"{name}-half", network=network, strategy=strategy, **half)
            fitted(folder, f"{name}-own", own=True, network=network, strategy=strategy)
            fitted(folder, f"{name}-parts", 7, own=True, network=network, strategy=strategy)
            fitted(folder, f"{name}-parts", own=True, network=network, strategy=strategy)
            fitted(folder, f"{name}-fewer", 7, network=network, strategy=strategy)


def chain(folder: Path) -> None:
    """Data to a student; curves in shards of one batch."""
    CurveWriter.plan = plan  # pyright: ignore[reportAttributeAccessIssue]
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
    student = Own("second-time", lora=2).student()
    made = simulate(
        SimulateConfig(
            (student.teacher,),
            folder / "own-curves",
            count=100,
            batch=25,
            steps=4,
            accelerator="cpu",
        )
    )
    for strategy in get_args(Strategy):
        settings = loop(strategy=strategy)
        out = folder / f"own-{strategy}"
        real = mixtures()[1].sample(200, table(0)).float()
        distill(DistillConfig(made.folder, out, 4, real, student=student, loop=settings, **SMALL))


if __name__ == "__main__":
    {"losses": losses, "students": students, "chain": chain}[sys.argv[1]](Path(sys.argv[2]))

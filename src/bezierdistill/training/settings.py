"""How weights are updated: the settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named, is_object
from bezierdistill.settings import (
    WORDS,
    Precision,
    Strategy,
    check_counts,
    check_not_negative,
    written,
)

LOGGERS = ("tensorboard", "wandb", "none")


@dataclass(frozen=True)
class LoopConfig:
    """How weights are updated."""

    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps over which the rate rises from zero, at most a tenth of all."""
    decay: float = 0.4
    """Last share of the steps over which the rate falls to zero."""
    ema: float = 0.999
    """Limit of the decay of the averaged weights a step."""
    clip: float = 0.0
    """Gradient norm above which gradients are scaled down; 0 is off."""
    optimizer: str | object | None = None
    """A function that makes a torch optimizer of parameters, as FILE.py:function; its own rates are
    scheduled, in the place of lr. Without it AdamW."""
    callbacks: tuple[str | object, ...] = written((), WORDS)
    """Objects that are called after a step, after a state is saved and at the end, as
    FILE.py:function, which returns one."""
    loggers: tuple[str, ...] = written(("tensorboard",), WORDS)
    """Where losses are shown besides log.jsonl: tensorboard, wandb (if it is installed), or
    none."""
    log_every: int = 50
    """Steps between two lines of the log."""
    save_every: int = 2000
    """Steps between two saved states."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""
    precision: Precision = "32-true"
    """Number format for Lightning Fabric, such as 32-true or bf16-mixed."""
    strategy: Strategy = "ddp"
    """With torchrun: ddp (every rank has the whole network) or fsdp (every rank keeps a part of
    it)."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step; memory is that of one batch."""
    compile: bool = False
    """Compile networks with torch.compile; pays on GPUs after a minute of compilation."""
    channels_last: bool = False
    """Keep images channels-last in memory; pays for convolutions on GPUs, in mixed precision above
    all."""
    checkpoint: bool = False
    """Keep fewer activations and compute them again for the gradient; networks that offer it, such
    as those of diffusers."""

    def __post_init__(self) -> None:
        as_named(self, "optimizer", "callbacks", "loggers")
        for role, names in (("optimizer", (self.optimizer,)), ("callback", self.callbacks)):
            for name in names:
                if name is not None and not is_object(name):
                    raise UserError(f"{role} is {name!r}, expected FILE.py:function")
        wrong = [name for name in self.loggers if name not in LOGGERS]
        if wrong or ("none" in self.loggers and len(self.loggers) > 1):
            raise UserError(
                f"loggers are {', '.join(self.loggers)}, expected some of"
                f" {', '.join(LOGGERS[:-1])}, or none"
            )
        if self.lr <= 0:
            raise UserError(f"lr is {self.lr}, expected a positive number")
        if not 0 <= self.decay <= 1:
            raise UserError(f"decay is {self.decay}, expected a share of the steps in [0, 1]")
        check_not_negative(warmup=self.warmup, clip=self.clip)
        check_counts(
            log_every=self.log_every, save_every=self.save_every, accumulate=self.accumulate
        )

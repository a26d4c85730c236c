"""How weights are updated: the settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from bezierdistill.errors import UserError
from bezierdistill.settings import Precision, Strategy, check_counts, check_not_negative


@dataclass(frozen=True)
class LoopConfig:
    """How weights are updated."""

    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps over which the rate rises from zero."""
    decay: float = 0.4
    """Last share of the steps over which the rate falls to zero."""
    ema: float = 0.999
    """Limit of the decay of the averaged weights a step."""
    clip: float = 0.0
    """Gradient norm above which gradients are scaled down; 0 is off."""
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
    """Keep fewer activations and compute them again for the gradient; networks of diffusers
    only."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"lr is {self.lr}, expected a positive number")
        if not 0 <= self.decay <= 1:
            raise UserError(f"decay is {self.decay}, expected a share of the steps in [0, 1]")
        check_not_negative(warmup=self.warmup, clip=self.clip)
        check_counts(
            log_every=self.log_every, save_every=self.save_every, accumulate=self.accumulate
        )

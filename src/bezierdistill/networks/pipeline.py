"""What a card says of a diffusers pipeline's transformer: where it is, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bezierdistill.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Call:
    """How a pipeline calls its transformer, as probes have measured it."""

    state: str
    """The argument that is the states."""
    time: str
    """The argument that is the time."""
    scale: float
    """The time is ``shift + scale * sigma`` of a noise level."""
    shift: float
    """See ``scale``."""
    listed: bool
    """Whether the states are a list of rows."""
    kind: str
    """Number type of the states that the pipeline draws and keeps."""
    sign: int
    """1 if the transformer predicts noise minus data, -1 if data minus noise."""


@dataclass(frozen=True)
class PipelineConfig:
    """The transformer of a pipeline, which lies in its own folder."""

    source: str
    """Folder, or name on the hub, of the pipeline."""
    weights: str
    """What its transformer is known by."""
    name: str
    """The pipeline's class."""
    dtype: str
    """Number type of its networks."""
    given: dict[str, Any]
    """Keyword arguments of every call, such as height and width."""
    guidance: dict[str, Any]
    """Those of its guidance, which is part of the teacher."""
    plain: dict[str, Any]
    """Those of a call without, which is a student's."""
    negative: str | None
    """The negative prompt."""
    call: Call
    """How the transformer is called."""
    passes: int
    """Network passes of a guided velocity."""
    lora: int = 0
    """Rank of the low-rank adapters that were trained; 0 is none."""
    full: bool = False
    """Whether all weights were trained, which the model's folder holds."""
    kind: Literal["pipeline"] = "pipeline"
    """What tells it from our networks."""

    def build(self, shape: tuple[int, ...], seed: int, condition_size: int = 0) -> nn.Module:
        """Refused: its weights are the pipeline's.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.source} is a pipeline, whose transformer is not built but loaded")

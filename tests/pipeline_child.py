"""What every rank of tests/test_pipeline_chain.py runs under torchrun."""

from __future__ import annotations

import os
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

from torch import Tensor

from bezierdistill.files import write_tensors
from bezierdistill.store import CurveWriter
from bezierdistill.training.loop import Trainer
from test_pipeline_chain import CURVES, run

plan: Any = partialmethod(CurveWriter.plan, shard_bytes=1)  # shards of one batch


def ranks(chain: Path, out: Path, learn: str) -> None:
    """Curves and a student; every rank writes the weights that it ends with."""
    CurveWriter.plan = plan
    fit = Trainer.fit

    def fitted(self: Trainer, *given: Any) -> Any:
        net: Any = fit(self, *given)
        tensors: dict[str, Tensor] = net.tensors()
        write_tensors(out / f"rank-{os.environ['RANK']}.safetensors", tensors)
        return net

    Trainer.fit = fitted  # pyright: ignore[reportAttributeAccessIssue]
    run(f"simulate --teachers {chain}/t --out {out}/c {CURVES}")
    run(f"distill --curves {out}/c --out {out}/s {learn}")


if __name__ == "__main__":
    ranks(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

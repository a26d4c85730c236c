"""How much of its inputs a translation keeps; how near its outputs are to the target's data is
measured as of any samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.metrics.features import extract, in_batches
from bezierdistill.metrics.paths import relative_distance
from bezierdistill.records import TranslationScores


def translation_scores(
    x: Tensor,
    y: Tensor,
    extractor: nn.Module,
    labels: Tensor | np.ndarray | None = None,
    back: Tensor | None = None,
) -> TranslationScores:
    """How much of its input each output keeps.

    Args:
        x: inputs ``(N, ...)`` in model units of their domain.
        y: what they became, in model units of the target.
        extractor: features of states; a classifier of the target's classes (with ``logits``) gives
            the agreement as well.
        labels: classes ``(N,)`` of the inputs.
        back: what the outputs become when they are translated back to the inputs' domain.
    """
    module: Any = extractor  # a module of torchmetrics' convention need not have logits
    agreement = None
    if labels is not None and hasattr(module, "logits"):
        seen = in_batches(module.logits, y, module).argmax(1)
        agreement = float((seen == torch.as_tensor(labels).to(seen)).double().mean())
    return TranslationScores(
        pixel=relative_distance(x, y),
        feature=relative_distance(extract(x, extractor), extract(y, extractor)),
        agreement=agreement,
        cycle=None if back is None else relative_distance(x, back),
    )

"""Figures of every class by itself: whether samples are of the class they were asked to be, and
whether they cover it.

Coverage of a class is the recall of Kynkaanniemi et al. 2019 (arXiv 1904.06991, eq. 2) within it:
the share of its real samples inside the manifold of as many generated ones. A model that ignores
its condition has low accuracy; one that collapses a class has low coverage there.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.metrics.distances import inside

Labelled = tuple[Tensor, Tensor]
K = 3


def class_labels(labels: Tensor | np.ndarray, count: int, classes: int) -> Tensor:
    """Labels of ``count`` samples as int64 ``(count,)``.

    Raises:
        UserError: if they are no whole numbers in ``0 .. classes - 1``, one a sample.
    """
    given = np.asarray(labels)
    if given.shape != (count,) or given.dtype.kind not in "ui":
        raise UserError(
            f"labels are {given.dtype} of shape {given.shape}, expected integers of shape"
            f" {(count,)}: one a sample"
        )
    if count and not 0 <= int(given.min()) <= int(given.max()) < classes:
        raise UserError(
            f"labels run from {given.min()} to {given.max()}, expected 0 to {classes - 1}"
        )
    return torch.from_numpy(given.astype(np.int64))


def class_figures(
    made: Labelled, test: Labelled, train: Labelled, right: Tensor, classes: int
) -> dict[str, Any]:
    """Accuracy and coverage, over all and by class.

    Args:
        made: features ``(N, d)`` and labels ``(N,)`` of generated samples.
        test: the same of held-out real samples.
        train: the same of training samples, which stand for the best that can be reached.
        right: ``(N,)``, whether a classifier finds the generated samples to be of their class.
        classes: number of classes.

    Returns:
        ``accuracy``, ``coverage`` and ``coverage_real``, and ``by_class``: see
        :meth:`~bezierdistill.metrics.evaluation.Evaluator.classes`.
    """
    rows = []
    for label in range(classes):
        own, real, other = (features[labels == label] for features, labels in (made, test, train))
        hits, most = right[made[1] == label].double(), min(len(own), len(real))
        cover = {
            "coverage": _coverage(real, own[:most]),
            "coverage_real": _coverage(real, other[:most]),
        }
        rows.append(
            {"count": len(own), "accuracy": float(hits.mean()) if len(own) else None, **cover}
        )
    means = {name: _mean([row[name] for row in rows]) for name in ("coverage", "coverage_real")}
    return {"accuracy": float(right.double().mean()), **means, "by_class": rows}


def _coverage(real: Tensor, made: Tensor) -> float | None:
    """Share of real features inside the manifold of generated ones; 3 of these or fewer have
    none.
    """
    if not len(real):
        return None
    return inside(real, made, K) if len(made) > K else 0.0


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None

"""Figures of every class by itself: whether samples are of the class they were asked to be, and
whether they cover it.

Coverage of a class is the recall of Kynkaanniemi et al. 2019 (arXiv 1904.06991, eq. 2) within it:
the share of its real samples inside the manifold of as many generated ones. A model that ignores
its condition has low accuracy; one that collapses a class has low coverage there.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.metrics.distances import inside
from bezierdistill.records import ClassScore, ClassScores

Labelled = tuple[Tensor, Tensor]
K = 3


def class_labels(labels: Tensor | np.ndarray, count: int, classes: int) -> Tensor:
    """Labels of ``count`` samples as int64 ``(count,)``.

    Raises:
        UserError: if they are no whole numbers in ``0 .. classes - 1``, one per sample.
    """
    given = np.asarray(labels)
    if given.shape != (count,) or given.dtype.kind not in "ui":
        told = f"labels are {given.dtype} of shape {given.shape}"
        raise UserError(f"{told}, expected integers of shape {(count,)}: one per sample")
    if count and not 0 <= int(given.min()) <= int(given.max()) < classes:
        told = f"labels run from {given.min()} to {given.max()}"
        raise UserError(f"{told}, expected 0 to {classes - 1}")
    return torch.from_numpy(given.astype(np.int64))


def class_scores(
    made: Labelled,
    test: Labelled,
    train: Labelled,
    right: tuple[Tensor, Tensor] | None,
    names: Sequence[str],
) -> ClassScores:
    """Accuracy and coverage, over all and by class.

    Args:
        made: features ``(N, d)`` and labels ``(N,)`` of generated samples.
        test: the same of held-out real samples.
        train: the same of training samples, which stand for the best that can be reached.
        right: ``(N,)``, whether a classifier finds the generated samples, and the held-out ones, to
            be of their class; None without a classifier.
        names: of the classes.
    """
    rows: list[ClassScore] = []
    for label, name in enumerate(names):
        own, real, other = (features[labels == label] for features, labels in (made, test, train))
        most, accuracy = min(len(own), len(real)), None
        if right is not None and len(own):
            accuracy = float(right[0][made[1] == label].double().mean())
        covers, best = (_coverage(real, features[:most]) for features in (own, other))
        row = ClassScore(
            name=name, count=len(own), accuracy=accuracy, coverage=covers, coverage_real=best
        )
        rows.append(row)
    shares = (None, None) if right is None else (float(own.double().mean()) for own in right)
    accuracy, accuracy_real = shares
    return ClassScores(
        accuracy=accuracy,
        accuracy_real=accuracy_real,
        coverage=_mean([row.coverage for row in rows]),
        coverage_real=_mean([row.coverage_real for row in rows]),
        by_class=tuple(rows),
    )


def _coverage(real: Tensor, made: Tensor) -> float | None:
    """Share of real features in the manifold of generated ones; 3 of these or fewer have none."""
    if not len(real):
        return None
    return inside(real, made, K) if len(made) > K else 0.0


def _mean(values: list[float | None]) -> float:
    return statistics.mean(value for value in values if value is not None)

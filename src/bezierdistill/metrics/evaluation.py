"""All metrics of a set of samples at once, each with its floor, and with the protocol they were
measured by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.metrics import distances
from bezierdistill.metrics.classes import class_labels, class_scores
from bezierdistill.metrics.classifier import labels_of
from bezierdistill.metrics.features import RandomFeatures, describe, extract, in_batches
from bezierdistill.records import ClassScores, Protocol, Score, Scores

MAX_ROWS, MIN_ROWS, REPEATS = 5_000, 8, 4
MIN_FLOOR = 1e-12


class _Set(NamedTuple):
    """States and their features."""

    states: Tensor
    features: Tensor


class Evaluator:
    """Compares samples with the held-out real samples of one data set.

    Samples, held-out samples and training samples are cut to the same size; if there are more of
    the first and last, up to four disjoint parts are compared with the same held-out samples and
    averaged. The floor is real training data measured the same way; for the unbiased estimates
    (energy, MMD, kernel), whose mean is zero there, it is the mean size of that estimate. What was
    measured on real data once is kept for the next samples.

    Args:
        data: the data set.
        seed: which real samples are drawn.
        extractor: features on which the Frechet and kernel distance, precision and recall are
            measured (see :func:`~bezierdistill.metrics.extractors.load_extractor`), in evaluation
            mode. By default the Frechet distance is on fixed random features, precision and recall
            are on the states, and there is no kernel distance.
    """

    def __init__(self, data: Data, seed: int = 0, extractor: nn.Module | None = None) -> None:
        self.data, self.seed, self.extractor = data, seed, extractor
        self._used = RandomFeatures(math.prod(data.shape)) if extractor is None else extractor
        self._test = cache(lambda size: self._set(data.real(size, seed, "test")))
        self._floors = cache(self._measure_real)

    def size(self, samples: int) -> int:
        """Samples of each set that can be compared when there are ``samples`` generated ones."""
        counts = (self.data.count("train"), self.data.count("test"))
        return min([samples, MAX_ROWS, *(n for n in counts if n is not None)])

    def __call__(self, x: Tensor) -> Scores:
        """Metrics of samples ``(N, ...)`` in model units, and the protocol they were measured by.

        Raises:
            UserError: on another shape than the data's, too few samples, or numbers that are not
                finite.
        """
        size = self._size(x)
        floors, values = self._floors(size), _mean(self._rows(x, self._test(size)))
        scores: dict[str, Any] = {k: Score(value=v, floor=floors[k]) for k, v in values.items()}
        return Scores(**scores, protocol=self._protocol(len(x), size))

    def measure(self, x: Tensor, metric: Callable[[Tensor, Tensor], Any]) -> Score:
        """A metric of your own: a function of two sets of states that gives a number, of samples
        ``(N, ...)`` against held-out samples, and its floor, measured like the others.

        Raises:
            UserError: as above, or if the metric gives no finite number.
        """
        size = self._size(x)
        test = self._test(size).states

        own, real = (
            [_number(metric, part, test) for part in _parts(rows, size)]
            for rows in (x, self._training(size))
        )
        floor = sum(map(abs, real)) / len(real)
        return Score(value=sum(own) / len(own), floor=max(floor, MIN_FLOOR))

    def _size(self, x: Tensor) -> int:
        """The size of sets by which samples are compared, once they are checked."""
        self._check(x)
        size = self.size(len(x))
        if size < MIN_ROWS:
            told = f"{len(x)} samples can be compared {size} at a time"
            raise UserError(f"{told}, expected {MIN_ROWS} or more")
        return size

    def _protocol(self, samples: int, size: int) -> Protocol:
        what = describe(self._used)
        return Protocol(
            **what,
            metric=f"FD-{what['extractor']}",
            manifold="states" if self.extractor is None else "features",
            samples=samples,
            count=size,
            parts=min(REPEATS, samples // size),
            split="test",
            floor="train",
            seed=self.seed,
            quantised=self.data.scaling.integer,
        )

    def classes(self, x: Tensor, labels: Tensor | np.ndarray) -> ClassScores:
        """Whether samples ``(N, ...)`` in model units are of the classes ``(N,)`` that they were
        asked to be, and cover them.

        Returns:
            ``accuracy`` of the extractor's classifier on the samples against their labels, and
            ``accuracy_real`` on held-out samples; ``coverage``, the mean over classes of the share
            of held-out samples of a class within the manifold of as many generated ones (recall
            within the class), and ``coverage_real`` of training samples in their place;
            ``by_class``, a row per class: its ``name``, ``count`` of the samples, ``accuracy``,
            ``coverage`` and ``coverage_real``, None where there are no samples to measure it.

        Raises:
            UserError: if the extractor is no classifier, the data has no labels, or the samples or
                labels do not suit it.
        """
        if self.extractor is None or not hasattr(self.extractor, "logits"):
            told = f"figures of classes got the extractor {describe(self._used)['extractor']}"
            raise UserError(f"{told}, expected a classifier")
        self._check(x)
        size = self.size(MAX_ROWS)
        test_labels, train_labels = (
            labels_of(self.data, size, self.seed, split) for split in ("test", "train")
        )
        known = class_labels(labels, len(x), self.data.classes)
        train, test = self.data.real(size, self.seed, "train"), self._test(size)
        return class_scores(
            (extract(x, self.extractor), known),
            (test.features, test_labels),
            (extract(train, self.extractor), train_labels),
            (self._predicted(x) == known, self._predicted(test.states) == test_labels),
            self.data.class_names,
        )

    def _predicted(self, x: Tensor) -> Tensor:
        module: Any = self.extractor  # a module of torchmetrics' convention need not have logits
        return in_batches(module.logits, x, module).argmax(1)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.data.shape:
            told = f"samples have shape {tuple(x.shape[1:])}, expected {self.data.shape}"
            raise UserError(f"{told} as in {self.data.name}")
        if not bool(x.isfinite().all()):
            raise UserError("samples hold NaN or infinite numbers: their model has diverged")

    def _set(self, x: Tensor) -> _Set:
        return _Set(x, extract(x, self._used))

    def _training(self, size: int) -> Tensor:
        """The training samples that the floors are measured on."""
        most = self.data.count("train")
        parts = min(REPEATS, most // size if most else REPEATS)
        return self.data.real(size * parts, self.seed, "train")

    def _measure_real(self, size: int) -> dict[str, float]:
        """The floors that training samples reach against held-out samples of a size."""
        rows = self._rows(self._training(size), self._test(size))
        floors = _mean([{name: abs(value) for name, value in row.items()} for row in rows])
        return {name: max(floor, MIN_FLOOR) for name, floor in floors.items()}

    def _rows(self, x: Tensor, test: _Set) -> list[dict[str, float]]:
        return [self._measure(self._set(part), test) for part in _parts(x, len(test.states))]

    def _measure(self, x: _Set, test: _Set) -> dict[str, float]:
        (a, fa), (b, fb), same = x, test, nn.Identity()
        places, found = (a, b), {"frechet": distances.frechet_distance(fa, fb, same)}
        if self.extractor is not None:
            places, found["kernel"] = (fa, fb), distances.kernel_distance(fa, fb, same)
        precision, recall = distances.precision_recall(*places)
        return found | {
            "sliced_wasserstein": distances.sliced_wasserstein(a, b),
            "energy": distances.energy_distance(a, b),
            "mmd": distances.mmd(a, b),
            "precision": precision,
            "recall": recall,
        }


def _parts(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Disjoint sets of one size."""
    return x[: size * min(REPEATS, len(x) // size)].split(size)


def _number(metric: Callable[[Tensor, Tensor], Any], a: Tensor, b: Tensor) -> float:
    given = metric(a, b)
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        name = getattr(metric, "__name__", type(metric).__name__)
        raise UserError(f"metric {name} gave {str(given)[:80]}, expected a finite number")
    return value


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

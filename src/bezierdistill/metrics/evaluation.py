"""All metrics of a set of samples at once, each with its floor, and with the protocol they were
measured by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.data import Data, Inputs
from bezierdistill.errors import UserError
from bezierdistill.metrics import distances
from bezierdistill.metrics.classes import class_labels, class_scores
from bezierdistill.metrics.classifier import labels_of
from bezierdistill.metrics.features import describe, extract, in_batches
from bezierdistill.metrics.scales import describe_scales, scale_features
from bezierdistill.metrics.text import TextJudge, text_judge
from bezierdistill.metrics.translation import translation_scores
from bezierdistill.noise import Stream, generator
from bezierdistill.progress import stage
from bezierdistill.records import (
    SCALES,
    ClassScores,
    Protocol,
    Score,
    Scores,
    TextScores,
    TranslationScores,
)

MAX_ROWS, MIN_ROWS, REPEATS = 5_000, 8, 4
MIN_REFERENCE = 1_000  # half of a test split is judged against, if it has so many rows
FLOOR_ROWS, MAX_DRAWS, FLOOR = 8_000, 8, 1003  # the last one is what a generator is for
MIN_FLOOR = 1e-12


class _Set(NamedTuple):
    """States, their features, and their features at each scale."""

    states: Tensor
    features: Tensor
    scales: tuple[Tensor, ...]

    def at(self, rows: Tensor) -> _Set:
        """Some of them."""
        return _Set(
            self.states[rows], self.features[rows], tuple(part[rows] for part in self.scales)
        )


class Evaluator:
    """Compares samples with the held-out real samples of one data set.

    Samples, held-out samples and training samples are cut to the same size, 5,000 at most; if there
    are more samples, up to four disjoint parts of them are compared with the same held-out samples
    and averaged. Each seed has held-out samples of its own, so that a standard error over seeds
    holds their noise too: endless data are drawn anew, and of a finite test split one half at most
    is drawn. A test split of fewer than 2,000 rows is used as a whole, by every seed; the protocol
    says so.

    The floor is real training data measured the same way, a mean over 4 to 8 draws: disjoint ones,
    or, where the split has too few, the parts of several orders of it. For the unbiased estimates
    (energy, MMD, kernel), whose mean is zero there, it is the mean size of that estimate. What was
    measured on real data once is kept for the next samples.

    Args:
        data: the data set.
        seed: which real samples are drawn.
        extractor: features on which the Frechet and kernel distance, precision, recall and fidelity
            are measured (see :func:`~bezierdistill.metrics.extractors.load_extractor`), in
            evaluation mode. By default the Frechet distance is on fixed random features, the coarse
            ones; precision, recall and fidelity are on the states, and there is no kernel distance.
            The distances at three scales (:mod:`~bezierdistill.metrics.scales`) are always of
            states.
    """

    def __init__(self, data: Data, seed: int = 0, extractor: nn.Module | None = None) -> None:
        self.data, self.seed, self.extractor = data, seed, extractor
        self._test = cache(lambda size: self._set(data.real(size, seed, "test")))
        self._floors = cache(self._measure_real)

    @cached_property
    def _scales(self) -> nn.ModuleDict:
        return scale_features(self.data)

    @cached_property
    def _judge(self) -> TextJudge | None:
        return text_judge(self.data)

    def _judged(self, x: Tensor) -> TextScores | None:
        """The scores of texts, with floors by as many training texts."""
        if self._judge is None:
            return None
        count = min(len(x), self.data.count("train") or len(x))
        return self._judge(x, self.data.real(count, self.seed, "train"))

    @property
    def _used(self) -> nn.Module:
        return self._scales[SCALES[0]] if self.extractor is None else self.extractor

    def size(self, samples: int) -> int:
        """Samples of each set that can be compared when there are ``samples`` generated ones."""
        train, test = self.data.count("train"), self.data.count("test")
        if test is not None and test // 2 >= MIN_REFERENCE:
            test //= 2
        return min([samples, MAX_ROWS, *(n for n in (train, test) if n is not None)])

    @stage("evaluating")
    def __call__(self, x: Tensor) -> Scores:
        """Metrics of samples ``(N, ...)`` in model units, and the protocol they were measured by.

        Raises:
            UserError: on another shape than the data's, too few samples, or numbers that are not
                finite.
        """
        size = self._size(x)
        floors, values = self._floors(size), _mean(self._rows(x, self._test(size)))
        scores: dict[str, Any] = {k: Score(value=v, floor=floors[k]) for k, v in values.items()}
        return Scores(**scores, text=self._judged(x), protocol=self._protocol(len(x), size))

    @stage("evaluating")
    def measure(self, x: Tensor, metric: Callable[[Tensor, Tensor], Any]) -> Score:
        """A metric of your own: a function of two sets of states that gives a number, of samples
        ``(N, ...)`` against held-out samples, and its floor, measured like the others.

        Raises:
            UserError: as above, or if the metric gives no finite number.
        """
        size = self._size(x)
        test, draws = self._test(size).states, self._draws(size)
        train = self._training(draws)
        parts = _parts(x, size), [train[rows] for rows in draws]
        own, real = ([_number(metric, part, test) for part in group] for group in parts)
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
            **describe_scales(self._scales),
            metric=f"FD-{what['extractor']}",
            manifold="states" if self.extractor is None else "features",
            samples=samples,
            count=size,
            parts=min(REPEATS, samples // size),
            split="test",
            reference="whole" if size == self.data.count("test") else "draw",
            floor="train",
            draws=len(self._draws(size)),
            seed=self.seed,
            quantised=self.data.scaling.integer,
        )

    def classes(self, x: Tensor, labels: Tensor | np.ndarray) -> ClassScores:
        """Whether samples ``(N, ...)`` in model units are of the classes ``(N,)`` that they were
        asked to be, and cover them.

        Returns:
            ``accuracy`` of the extractor's classifier on the samples against their labels, and
            ``accuracy_real`` on held-out samples, None if the extractor is no classifier;
            ``coverage``, the mean over classes of the share of held-out samples of a class within
            the manifold of as many generated ones (recall within the class), and ``coverage_real``
            of training samples in their place; ``by_class``, a row per class: its ``name``,
            ``count`` of the samples, ``accuracy``, ``coverage`` and ``coverage_real``, None where
            there is nothing to measure it by.

        Raises:
            UserError: if the data has no labels, or the samples or labels do not suit it.
        """
        self._check(x)
        size = self.size(MAX_ROWS)
        test_labels, train_labels = (
            labels_of(self.data, size, self.seed, split) for split in ("test", "train")
        )
        known = class_labels(labels, len(x), self.data.classes)
        train, test = self.data.real(size, self.seed, "train"), self._test(size)
        right = None
        if hasattr(self.extractor, "logits"):
            right = (self._predicted(x) == known, self._predicted(test.states) == test_labels)
        return class_scores(
            (self._places(x), known),
            (test.states.flatten(1) if self.extractor is None else test.features, test_labels),
            (self._places(train), train_labels),
            right,
            self.data.class_names,
        )

    def translation(self, y: Tensor, inputs: Inputs) -> TranslationScores:
        """How much samples ``(N, ...)`` keep of what they were translated from, by the features of
        this evaluator.
        """
        self._check(y)
        return translation_scores(inputs.x, y, self._used, inputs.labels, inputs.back)

    def _places(self, x: Tensor) -> Tensor:
        """Where coverage is measured: in features of an extractor, or else in states."""
        return x.flatten(1) if self.extractor is None else extract(x, self.extractor)

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
        scales = tuple(extract(x, module) for module in self._scales.children())
        own = scales[0] if self.extractor is None else extract(x, self.extractor)
        return _Set(x, own, scales)

    def _draws(self, size: int) -> list[Tensor]:
        """The rows of each draw of training samples that the floors are measured on."""
        count = min(MAX_DRAWS, max(REPEATS, FLOOR_ROWS // size))
        rows = min(count * size, self.data.count("train") or count * size)
        orders, order = generator(self.seed, Stream.JUDGE, FLOOR), torch.arange(rows)
        draws: list[Tensor] = []
        while len(draws) < (count if rows > size else 1):
            draws += order[: rows // size * size].split(size)
            order = torch.randperm(rows, generator=orders)
        return draws[:count]

    def _training(self, draws: list[Tensor]) -> Tensor:
        return self.data.real(1 + max(int(draw.max()) for draw in draws), self.seed, "train")

    def _measure_real(self, size: int) -> dict[str, float]:
        """The floors that training samples reach against held-out samples of a size."""
        draws, test = self._draws(size), self._test(size)
        x = self._set(self._training(draws))
        rows = [self._measure(x.at(draw), test) for draw in draws]
        floors = _mean([{name: abs(value) for name, value in row.items()} for row in rows])
        return {name: max(floor, MIN_FLOOR) for name, floor in floors.items()}

    def _rows(self, x: Tensor, test: _Set) -> list[dict[str, float]]:
        return [self._measure(self._set(part), test) for part in _parts(x, len(test.states))]

    def _measure(self, x: _Set, test: _Set) -> dict[str, float]:
        (a, fa, own), (b, fb, real), same = x, test, nn.Identity()
        found = {
            name: distances.frechet_distance(p, q, same)
            for name, p, q in zip(SCALES, own, real, strict=True)
        }
        places, found["frechet"] = (a, b), found[SCALES[0]]
        if self.extractor is not None:
            places, found["frechet"] = (fa, fb), distances.frechet_distance(fa, fb, same)
            found["kernel"] = distances.kernel_distance(fa, fb, same)
        precision, recall = distances.precision_recall(*places)
        return found | {
            "sliced_wasserstein": distances.sliced_wasserstein(a, b),
            "energy": distances.energy_distance(a, b),
            "mmd": distances.mmd(a, b),
            "precision": precision,
            "recall": recall,
            "fidelity": distances.fidelity(*places),
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

"""All metrics of a set of samples at once, each with its floor and the ratio of the two, and with
the protocol they were measured by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.metrics.classes import class_figures, class_labels
from bezierdistill.metrics.classifier import labels_of
from bezierdistill.metrics.distances import (
    energy_distance,
    frechet_distance,
    kernel_distance,
    mmd,
    precision_recall,
    sliced_wasserstein,
)
from bezierdistill.metrics.features import RandomFeatures, describe, extract

MOST, REPEATS = 5_000, 4


class _Set(NamedTuple):
    """States and their features."""

    states: Tensor
    features: Tensor


@dataclass(frozen=True)
class Evaluator:
    """Judge samples of one data set against its held-out real samples.

    Samples, held-out samples and training samples are cut to the same size; if there are more of
    the first and last, up to four disjoint parts are judged against the same held-out samples and
    averaged. The floor is real training data judged the same way; for the unbiased estimates
    (energy, MMD, kernel), whose mean is zero there, it is the mean size of that estimate.

    Args:
        data: the data set.
        seed: which real samples are drawn.
        extractor: features on which the Frechet and kernel distance, precision and recall are
            measured (see :func:`~bezierdistill.metrics.extractors.load_extractor`). By default the
            Frechet distance is on fixed random features, precision and recall are on the states,
            and there is no kernel distance.
    """

    data: Data
    seed: int = 0
    extractor: nn.Module | None = None
    _used: nn.Module = field(init=False, repr=False, compare=False)
    _tests: dict[int, _Set] = field(default_factory=dict, init=False, repr=False, compare=False)
    _floors: dict[int, dict[str, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "_used",
            (
                RandomFeatures(math.prod(self.data.shape))
                if self.extractor is None
                else self.extractor
            ),
        )

    def size(self, samples: int) -> int:
        """Samples a side that can be compared when there are ``samples`` generated ones."""
        sides = [n for n in (self.data.count("train"), self.data.count("test")) if n is not None]
        return min([samples, MOST, *sides])

    def __call__(self, x: Tensor) -> dict[str, Any]:
        """Metrics of samples ``(N, ...)`` in model units.

        Returns:
            For every name: the value, ``NAME_floor`` and ``NAME_ratio``; ``count``, the samples a
                side; and ``protocol``, what figures
            depend on besides the samples: they compare only where it is equal. It holds
            ``extractor`` and its ``digest``; ``metric``, the name of the Frechet distance;
            ``manifold``, where precision and recall are measured; ``samples`` generated, and
            ``count`` a side in each of ``parts`` comparisons; ``split``, the side judged against,
            and ``floor``, the side of the floor; ``seed``; ``quantised``, whether states are whole
            numbers in own units.

        Raises:
            UserError: on another shape than the data's, too few samples, or numbers that are not
                finite.
        """
        self._check(x)
        size = self.size(len(x))
        if size < 8:
            raise UserError(f"{len(x)} samples can be compared {size} a side, expected 8 or more")
        test = self._test(size)
        if size not in self._floors:
            self._floors[size] = self._judged_real(size)
        floors, result = self._floors[size], {"count": size}
        for name, value in _mean(self._rows(x, test)).items():
            result |= {
                name: value,
                f"{name}_floor": floors[name],
                f"{name}_ratio": value / floors[name],
            }
        return {**result, "protocol": self._protocol(len(x))}

    def _protocol(self, samples: int) -> dict[str, Any]:
        size, what = self.size(samples), describe(self._used)
        return {
            **what,
            "metric": f"FD-{what['extractor']}",
            "manifold": "states" if self.extractor is None else "features",
            "samples": samples,
            "count": size,
            "parts": min(REPEATS, samples // size),
            "split": "test",
            "floor": "train",
            "seed": self.seed,
            "quantised": self.data.scaling.integer,
        }

    @torch.no_grad()
    def classes(self, x: Tensor, labels: Tensor | np.ndarray) -> dict[str, Any]:
        """Whether samples ``(N, ...)`` in model units are of the classes ``(N,)`` that they were
        asked to be, and cover them.

        Returns:
            ``accuracy`` of the extractor's classifier on the samples against their labels, and
            ``accuracy_real`` on held-out samples; ``coverage``, the mean over classes of the share
            of held-out samples of a class within the manifold of as many generated ones (recall
            within the class), and ``coverage_real`` of training samples in their place;
            ``by_class``, a row a class: ``count`` of the samples, ``accuracy``, ``coverage`` and
            ``coverage_real``, None where there are no samples to measure it.

        Raises:
            UserError: if the extractor is no classifier, the data has no labels, or the samples or
                labels do not suit it.
        """
        if self.extractor is None or not hasattr(self.extractor, "logits"):
            raise UserError(
                f"figures of classes got the extractor {describe(self._used)['extractor']},"
                " expected a classifier"
            )
        self._check(x)
        size = self.size(MOST)
        test_labels, train_labels = (
            labels_of(self.data, size, self.seed, split) for split in ("test", "train")
        )
        known = class_labels(labels, len(x), self.data.classes)
        train = self.data.real(size, self.seed, "train")
        test = self._test(size)
        figures = class_figures(
            (extract(x, self.extractor), known),
            (test.features, test_labels),
            (extract(train, self.extractor), train_labels),
            self._predicted(x) == known,
            self.data.classes,
        )
        return {
            **figures,
            "accuracy_real": float((self._predicted(test.states) == test_labels).double().mean()),
        }

    def _predicted(self, x: Tensor) -> Tensor:
        logits: Any = getattr(self.extractor, "logits")  # noqa: B009 (a torchmetrics-like module need not have it)
        return logits(x).argmax(1)

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.data.shape:
            raise UserError(
                f"samples have shape {tuple(x.shape[1:])}, expected {self.data.shape} as in"
                f" {self.data.name}"
            )
        if not bool(x.isfinite().all()):
            raise UserError(
                "samples hold NaN or infinite numbers: the model that made them has diverged"
            )

    def _test(self, size: int) -> _Set:
        """The held-out samples of a size."""
        if size not in self._tests:
            self._tests[size] = self._set(self.data.real(size, self.seed, "test"))
        return self._tests[size]

    def _set(self, x: Tensor) -> _Set:
        return _Set(x, extract(x, self._used))

    def _judged_real(self, size: int) -> dict[str, float]:
        """The floors that training samples reach against held-out samples of a size."""
        most = self.data.count("train")
        train = self.data.real(
            size * min(REPEATS, most // size if most else REPEATS), self.seed, "train"
        )
        floors = _mean(
            [
                {name: abs(value) for name, value in row.items()}
                for row in self._rows(train, self._test(size))
            ]
        )
        return {name: max(floor, 1e-12) for name, floor in floors.items()}

    def _rows(self, x: Tensor, test: _Set) -> list[dict[str, float]]:
        size = len(test.states)
        parts = x[: size * min(REPEATS, len(x) // size)].split(size)
        return [self._measure(self._set(part), test) for part in parts]

    def _measure(self, x: _Set, test: _Set) -> dict[str, float]:
        same = nn.Identity()
        precision, recall = precision_recall(
            *((x.states, test.states) if self.extractor is None else (x.features, test.features))
        )
        return {
            "frechet": frechet_distance(x.features, test.features, same),
            **(
                {}
                if self.extractor is None
                else {"kernel": kernel_distance(x.features, test.features, same)}
            ),
            "sliced_wasserstein": sliced_wasserstein(x.states, test.states),
            "energy": energy_distance(x.states, test.states),
            "mmd": mmd(x.states, test.states),
            "precision": precision,
            "recall": recall,
        }


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

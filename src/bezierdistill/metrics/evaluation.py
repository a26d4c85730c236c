"""All metrics of a set of samples at once, each with its floor and the ratio of the two."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from bezierdistill.data import Data
from bezierdistill.metrics.distances import energy_distance, frechet_distance, mmd, precision_recall, sliced_wasserstein

MOST, REPEATS = 5_000, 4


@dataclass(frozen=True)
class Evaluator:
    """Judge samples of one data set against its held-out real samples.

    Samples, held-out samples and training samples are cut to the same size; if there are more of the first and last, up to four
    disjoint parts are judged against the same held-out samples and averaged. The floor is real training data judged the same way; for the
    unbiased estimates (energy, MMD), whose mean is zero there, it is the mean size of that estimate.

    Args:
        data: the data set.
        seed: which real samples are drawn.
    """

    data: Data
    seed: int = 0
    _real: dict[int, tuple[Tensor, dict[str, float]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def size(self, samples: int) -> int:
        """Samples a side that can be compared when there are ``samples`` generated ones."""
        sides = [n for n in (self.data.count("train"), self.data.count("test")) if n is not None]
        return min([samples, MOST, *sides])

    def __call__(self, x: Tensor) -> dict[str, float]:
        """Metrics of samples ``(N, ...)`` in model units.

        Returns:
            For every name: the value, ``NAME_floor`` and ``NAME_ratio``; and ``count``, the samples a side.

        Raises:
            ValueError: on another shape than the data's, too few samples, or numbers that are not finite.
        """
        if tuple(x.shape[1:]) != self.data.shape:
            raise ValueError(f"samples have shape {tuple(x.shape[1:])}, expected {self.data.shape} as in {self.data.name}")
        if not bool(x.isfinite().all()):
            raise ValueError("samples hold NaN or infinite numbers: the model that made them has diverged")
        size = self.size(len(x))
        if size < 8:
            raise ValueError(f"{len(x)} samples can be compared {size} a side, expected 8 or more")
        if size not in self._real:
            self._real[size] = self._judged_real(size)
        test, floors = self._real[size]
        result: dict[str, float] = {"count": size}
        for name, value in _mean(_rows(x, test)).items():
            result |= {name: value, f"{name}_floor": floors[name], f"{name}_ratio": value / floors[name]}
        return result

    def _judged_real(self, size: int) -> tuple[Tensor, dict[str, float]]:
        """The held-out samples of a size, and the floors that training samples reach against them."""
        test, most = self.data.real(size, self.seed, "test"), self.data.count("train")
        train = self.data.real(size * min(REPEATS, most // size if most else REPEATS), self.seed, "train")
        floors = _mean([{name: abs(value) for name, value in row.items()} for row in _rows(train, test)])
        return test, {name: max(floor, 1e-12) for name, floor in floors.items()}


def _rows(x: Tensor, test: Tensor) -> list[dict[str, float]]:
    parts = x[: len(test) * min(REPEATS, len(x) // len(test))].split(len(test))
    return [_measure(part, test) for part in parts]


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _measure(x: Tensor, test: Tensor) -> dict[str, float]:
    precision, recall = precision_recall(x, test)
    return {
        "frechet": frechet_distance(x, test),
        "sliced_wasserstein": sliced_wasserstein(x, test),
        "energy": energy_distance(x, test),
        "mmd": mmd(x, test),
        "precision": precision,
        "recall": recall,
    }

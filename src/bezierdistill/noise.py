"""Random numbers by seed, stream and row: tables of normal, uniform and label rows, and generators.

Every draw belongs to a :class:`Stream`, and streams never overlap: what judges a student never
meets the noise that it was trained on, whatever the seeds. Row i of a table is a function of the
seed, the stream and i alone, whatever the batch, device or number of workers, and any row is there
at once. Philox4x32-10 counts through the numbers of a row, and Box and Muller's transform, in
double precision, makes them normal: a table is fixed by this description, not by a version of a
library.

Source: Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3* (Philox); Box & Muller
1958.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

WORD, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
CHUNK = 2**16  # counters at once, which stay in the cache
NORMAL, UNIFORM, LABEL, INDEX, SEQUENCE = range(5)  # the tables of a stream
Rows = range | np.ndarray


class Stream(IntEnum):
    """What random numbers are drawn for."""

    TRAIN = 1
    SIMULATE = 2
    SAMPLE = 3
    JUDGE = 4
    SEARCH = 5


def generator(seed: int, stream: Stream, *more: int) -> torch.Generator:
    """A CPU generator of a stream: a function of the seed, the stream and further numbers alone."""
    entropy = (seed & 0xFFFFFFFF, seed >> 32, int(_place(stream, SEQUENCE)), len(more), *more)
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def noise(seed: int, stream: Stream, rows: Rows, shape: Sequence[int]) -> Tensor:
    """Standard normal rows ``(len(rows), *shape)`` of an endless table, in any order."""
    numbers, index = math.prod(shape), _indices(rows)
    chunk = max(1, CHUNK * 4 // numbers)
    parts = [
        _normal(seed, stream, index[start : start + chunk], numbers)
        for start in range(0, len(index), chunk)
    ]
    return torch.cat(parts).reshape(len(index), *shape) if parts else torch.empty(0, *shape)


def uniform(
    seed: int, stream: Stream, rows: Rows, low: float = 0.0, high: float = 1.0, table: int = UNIFORM
) -> Tensor:
    """Uniform numbers ``(len(rows),)`` in ``[low, high)``, in double precision."""
    index = _indices(rows)
    words = philox((np.uint64(0), index & LOW, index >> WORD, _place(stream, table)), seed)
    bits = (words[0] << WORD | words[1]) >> np.uint64(11)
    return torch.from_numpy(low + (high - low) * (bits * 2.0**-53))


def labels(seed: int, stream: Stream, rows: Rows, frequencies: Sequence[float]) -> Tensor:
    """Class labels ``(len(rows),)``, int64, drawn with the given frequencies."""
    ends = np.cumsum(np.asarray(frequencies, np.float64))
    drawn = uniform(seed, stream, rows, 0.0, float(ends[-1]), LABEL).numpy()
    place = np.searchsorted(ends, drawn, side="right")
    return torch.from_numpy(np.minimum(place, int(np.flatnonzero(frequencies)[-1])))


def indices(seed: int, stream: Stream, rows: Rows, count: int) -> np.ndarray:
    """Whole numbers ``(len(rows),)``, int64, from 0 up to ``count - 1``, drawn independently."""
    drawn = uniform(seed, stream, rows, 0.0, count, INDEX).numpy()
    return np.minimum(drawn.astype(np.int64), count - 1)


def _indices(rows: Rows) -> np.ndarray:
    return np.asarray(rows, np.int64).astype(np.uint64)


def _place(stream: Stream, table: int) -> np.uint64:
    """Where everything that is drawn says what it is drawn for."""
    return np.uint64(8 * stream + table)


def _normal(seed: int, stream: Stream, index: np.ndarray, numbers: int) -> Tensor:
    counters = np.arange(-(-numbers // 4), dtype=np.uint64)[None]
    rows = index[:, None]
    words = philox((counters, rows & LOW, rows >> WORD, _place(stream, NORMAL)), seed)
    u = [torch.from_numpy((word + 0.5) * 2.0**-32) for word in words]
    pairs = []
    for first, second in ((u[0], u[1]), (u[2], u[3])):
        radius, angle = first.log().mul(-2).sqrt(), second * (2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, -1).flatten(1)[:, :numbers].float()


def philox(counter: Sequence[np.ndarray | np.uint64], seed: int) -> list[np.ndarray]:
    """Philox4x32-10: four words of 32 random bits for every counter of four words, all as uint64,
    under a key of 64 bits.
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    for k in range(10):
        key0, key1 = (
            (seed >> shift) + k * step & 0xFFFFFFFF
            for shift, step in ((0, 0x9E3779B9), (32, 0xBB67AE85))
        )
        even, odd = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (odd >> WORD) ^ c1 ^ np.uint64(key0), odd & LOW
        c2, c3 = (even >> WORD) ^ c3 ^ np.uint64(key1), even & LOW
    return [c0, c1, c2, c3]

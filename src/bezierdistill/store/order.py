r"""A seeded permutation of any number of rows that is never laid out in memory: the row of any
position, at once.

A position is a pair of digits :math:`(l, r)` with :math:`l < a`, :math:`r < b`, and :math:`ab` just
above the number of rows. Rounds of a Feistel network, :math:`l \leftarrow l + F(r) \bmod a` and
:math:`r \leftarrow r + F(l) \bmod b`, permute the pairs; one that falls outside goes through them
again. F is Philox, so two seeds or epochs have nothing in common.

Source: Black & Rogaway 2002, *Ciphers with arbitrary finite domains* (generalised Feistel, cycle
walking).
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from bezierdistill.noise import LOW, WORD, philox

ROUNDS = 6


def shuffled(positions: np.ndarray, count: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Where the permutation of ``0 .. count - 1`` of a seed and an epoch (one, or one a position)
    sends positions (int64, same range).
    """
    a = isqrt(count - 1) + 1
    b = -(-count // a)
    rows, epochs = (
        positions.astype(np.uint64),
        np.broadcast_to(np.asarray(epoch, np.uint64), positions.shape),
    )
    out = np.arange(len(rows))
    while len(out):
        rows[out] = _rounds(rows[out], np.uint64(a), np.uint64(b), seed, epochs[out])
        out = out[rows[out] >= count]
    return rows.astype(np.int64)


def _rounds(x: np.ndarray, a: np.uint64, b: np.uint64, seed: int, epoch: np.ndarray) -> np.ndarray:
    left, right = x // b, x % b
    for k in range(0, ROUNDS, 2):
        left = (left + _word(right, k, seed, epoch)) % a
        right = (right + _word(left, k + 1, seed, epoch)) % b
    return left * b + right


def _word(x: np.ndarray, k: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """64 random bits a number."""
    words = philox((x & LOW, x >> WORD, epoch, np.uint64(k)), seed)
    return (words[0] << WORD | words[1]) >> np.uint64(
        1
    )  # one less, so that a sum does not overflow

"""A seeded permutation of any number of rows that is never laid out in memory: row of a position, for any position, at once.

Four rounds of a Feistel network over the next even number of bits, walked along its cycles until it falls into the range. The round
function is Philox, so two seeds or epochs have nothing in common.

Source: Black & Rogaway 2002, *Ciphers with arbitrary finite domains* (cycle walking); Luby & Rackoff 1988 (four rounds).
"""

from __future__ import annotations

import numpy as np

from bezierdistill.sources import philox

ROUNDS = 4


def shuffled(positions: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where the permutation of ``0 .. count - 1`` of a seed and an epoch sends positions (int64, of the same range)."""
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    rows = positions.astype(np.uint64)
    out = np.arange(len(rows))
    while len(out):
        rows[out] = _rounds(rows[out], half, seed, epoch)
        out = out[rows[out] >= count]
    return rows.astype(np.int64)


def _rounds(x: np.ndarray, half: np.uint64, seed: int, epoch: int) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for k in range(ROUNDS):
        low = right & np.uint64(0xFFFFFFFF)
        word = philox((low, right >> np.uint64(32), np.uint64(epoch), np.uint64(k)), seed)[0]
        left, right = right, left ^ (word & mask)
    return (left << half) | right

"""Where flows start: an endless table of standard normal rows, fixed by its seed; and tables of
class labels and of uniform numbers.

Rows are drawn in blocks of 1,024, each from a generator of its own on the CPU, so row i is the same
whatever the batch, device or number of workers. That is fastest for rows in a row.
:func:`row_noise` is a second table for rows in any order, to be regenerated instead of stored:
Philox4x32-10 counts through the numbers of a row, and Box and Muller's transform, in double
precision, makes them normal. It is fixed by this description, not by a version of a library.

Source: Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3* (Philox); Box & Muller
1958.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024
WORD, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
CHUNK = 2**16  # counters at once, which stay in the cache


def block_generator(seed: int, block: int, *table: int) -> torch.Generator:
    """The CPU generator of one block of rows: a function of the seed, the block and the table (a
    number of its own) alone.
    """
    state = np.random.SeedSequence((seed, block, *table)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def noise(seed: int, start: int, count: int, shape: Sequence[int]) -> Tensor:
    """Standard normal rows ``start .. start + count`` of an endless table, ``(count, *shape)``."""
    return in_blocks(
        start,
        count,
        lambda block: torch.randn(BLOCK, *shape, generator=block_generator(seed, block)),
    )


def row_noise(seed: int, rows: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Standard normal rows ``(len(rows), *shape)`` of an endless table, given by their indices
    (int64) in any order.
    """
    numbers = math.prod(shape)
    chunk = max(1, CHUNK * 4 // numbers)
    parts = [
        _normal(seed, rows[start : start + chunk], numbers) for start in range(0, len(rows), chunk)
    ]
    return torch.cat(parts).reshape(len(rows), *shape) if parts else torch.empty(0, *shape)


def _normal(seed: int, rows: np.ndarray, numbers: int) -> Tensor:
    index = rows.astype(np.uint64)[:, None]
    counters = np.arange(-(-numbers // 4), dtype=np.uint64)[None]
    words = philox((counters, index & LOW, index >> WORD, np.uint64(0)), seed)
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
        c0, c1, c2, c3 = (
            (odd >> WORD) ^ c1 ^ np.uint64(key0),
            odd & LOW,
            (even >> WORD) ^ c3 ^ np.uint64(key1),
            even & LOW,
        )
    return [c0, c1, c2, c3]


def labels(seed: int, start: int, count: int, frequencies: Sequence[float]) -> Tensor:
    """Class labels of rows ``start .. start + count``, ``(count,)`` integers drawn with the given
    frequencies.
    """
    weights = torch.tensor(frequencies, dtype=torch.float64)
    return in_blocks(
        start,
        count,
        lambda block: torch.multinomial(
            weights, BLOCK, True, generator=block_generator(seed, block, 1)
        ),
    )


def uniform(seed: int, start: int, count: int, low: float, high: float) -> Tensor:
    """Uniform numbers in ``[low, high)`` of rows ``start .. start + count``, ``(count,)``."""
    return low + (high - low) * in_blocks(
        start, count, lambda block: torch.rand(BLOCK, generator=block_generator(seed, block, 2))
    )


def in_blocks(start: int, count: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Rows ``start .. start + count`` of a table whose blocks of 1,024 rows are ``draw(block)``."""
    blocks, window = block_window(start, count)
    return torch.cat([draw(block) for block in blocks])[window]


def block_window(start: int, count: int, block: int = BLOCK) -> tuple[range, slice]:
    """The blocks that hold rows ``start .. start + count``, and where these rows lie in the blocks
    end to end.
    """
    first, last = start // block, (start + count - 1) // block
    return range(first, last + 1), slice(start - first * block, start - first * block + count)

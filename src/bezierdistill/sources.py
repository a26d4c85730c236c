"""Where flows start: an endless table of standard normal rows, fixed by its seed; and tables of class labels and of uniform numbers.

Rows are drawn in blocks of 1,024, each from a generator of its own on the CPU, so row i is the same whatever the batch, device or number of
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024


def block_generator(seed: int, block: int, *table: int) -> torch.Generator:
    """The CPU generator of one block of rows: a function of the seed, the block and the table (a number of its own) alone."""
    state = np.random.SeedSequence((seed, block, *table)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def noise(seed: int, start: int, count: int, shape: Sequence[int]) -> Tensor:
    """Standard normal rows ``start .. start + count`` of an endless table, ``(count, *shape)``."""
    return in_blocks(start, count, lambda block: torch.randn(BLOCK, *shape, generator=block_generator(seed, block)))


def labels(seed: int, start: int, count: int, frequencies: Sequence[float]) -> Tensor:
    """Class labels of rows ``start .. start + count``, ``(count,)`` integers drawn with the given frequencies."""
    weights = torch.tensor(frequencies, dtype=torch.float64)
    return in_blocks(start, count, lambda block: torch.multinomial(weights, BLOCK, True, generator=block_generator(seed, block, 1)))


def uniform(seed: int, start: int, count: int, low: float, high: float) -> Tensor:
    """Uniform numbers in ``[low, high)`` of rows ``start .. start + count``, ``(count,)``."""
    return low + (high - low) * in_blocks(start, count, lambda block: torch.rand(BLOCK, generator=block_generator(seed, block, 2)))


def in_blocks(start: int, count: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Rows ``start .. start + count`` of a table whose blocks of 1,024 rows are ``draw(block)``."""
    blocks, window = block_window(start, count)
    return torch.cat([draw(block) for block in blocks])[window]


def block_window(start: int, count: int) -> tuple[range, slice]:
    """The blocks that hold rows ``start .. start + count``, and where these rows lie in the blocks end to end."""
    first, last = start // BLOCK, (start + count - 1) // BLOCK
    return range(first, last + 1), slice(start - first * BLOCK, start - first * BLOCK + count)

"""How much memory there is, and how many rows of a network go through it at once.

A forward pass of many images is slower than several of a few, because activations leave the
processor's cache. On one core of a CPU the rule's batch is within 6 % of the fastest for the MLP of
width 256 on vectors of 2 to 64 numbers, for U-Nets of width 32 and 64 on images of 8 to 64 pixels
per side, and for a transformer of width 128 on 28 and 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from bezierdistill.errors import UserError

MEMORY_SHARE = 0.8
MIN_BATCH, MAX_BATCH = 2, 4096
CPU_PLACES, GPU_PLACES = 20_000, 2**22  # pixels, or numbers of vectors, that go through at once
MLP_NUMBERS = 40  # numbers of a vector beyond which an MLP's hidden layers are what counts


def memory() -> int:
    """Bytes of memory that this process may have: the machine's, its container's, or what its
    address space may still grow by.
    """
    limits = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource  # imported here: there is none on Windows

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            limits.append(most - psutil.Process().memory_info().vms)
    return min(limits)


def check_memory(size: int, what: str) -> None:
    """Refuse what would not fit in memory, before any is taken.

    Args:
        size: its bytes.
        what: what it is, the subject of the message: ``"50 samples of shape (3,)"``.

    Raises:
        UserError: if it has more than four fifths of the memory that this process may have.
    """
    most = int(MEMORY_SHARE * memory())
    if size > most:
        raise UserError(
            f"{what} would take {size / 2**30:,.1f} GiB of memory, expected"
            f" {most / 2**30:,.1f} or less: ask for fewer"
        )


def batch_size(shape: Sequence[int], device: str = "cpu", whole: bool = False) -> int:
    """Rows of states ``shape`` that go through a network at once: a power of two from 2 to 4096,
    the fewer, the more pixels an image or numbers a vector has.

    Args:
        shape: shape of one state, ``(D,)`` or ``(C, H, W)``.
        device: type of device, such as ``cpu`` or ``cuda``.
        whole: whether a network takes an image as one vector (an MLP), and not pixel by pixel.
    """
    places = CPU_PLACES if device == "cpu" else GPU_PLACES
    count = min(math.prod(shape), MLP_NUMBERS) if whole else math.prod(shape[1:] or shape)
    rows = 2 ** round(math.log2(places / count))
    return int(min(MAX_BATCH, max(MIN_BATCH, rows)))

"""What methods of the arena share: samplers of their networks, and the settings that go with
them.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from bezierdistill.arena.bench import Bench, Sampler
from bezierdistill.flow_map import renoised_sample, sample
from bezierdistill.noise import Stream, generator
from bezierdistill.objectives.consistency import noise_time
from bezierdistill.solvers import time_grid

# Where the second pass of a consistency model starts (Geng et al. 2024; EDM's scale).
MIDDLE = noise_time(0.821)
TEACHER = 0.4  # share of the budget that a rival's teacher gets, unless its search said otherwise


def even_jumps(net: nn.Module, *passes: int) -> dict[int, Sampler]:
    """Samplers of a network that jump over even knots."""
    return {k: partial(sample, net, knots=time_grid(k)) for k in passes}


def renoised(bench: Bench, net: nn.Module, middle: float) -> dict[int, Sampler]:
    """Samplers of a consistency model: the second pass starts from the first one's end, noised
    again to the time ``middle``.
    """
    return {1: renoising(bench, net), 2: renoising(bench, net, middle)}


def renoising(bench: Bench, net: nn.Module, *times: float) -> Sampler:
    """A sampler that draws noise beyond its source."""
    fresh = generator(bench.seed, Stream.JUDGE)
    return partial(renoised_sample, net, times=times, generator=fresh)

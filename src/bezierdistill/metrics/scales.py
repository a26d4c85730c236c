"""Features of one scale each: a coarse, a middle and a fine judge of the same samples.

Random ReLU features see the whole of a distribution, and nothing of a blur that is small beside it.
Kernels ``(1 + |x - a|^2 / h^2)^(-1/2)`` around fixed real samples ``a`` see what is ``h`` away
from the data: features that tell any two distributions apart almost surely, whatever the places
(Chwialkowski et al. 2015, arXiv 1506.04725; Jitkrittum et al. 2016, arXiv 1605.06796). They are
inverse multiquadrics (as in Gorham & Mackey 2017, arXiv 1703.01717), because a Gaussian forgets how
far away what is far away is: bad samples would all be alike. The fine width is the median distance
of a real sample to its nearest neighbour, the middle one the geometric mean of that and the median
distance of two samples.

Places and widths are a function of the validation split (of the training split, if that has fewer
than 32 rows), against which nothing is judged: neither the seed of an evaluation nor its number of
samples changes them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.data.base import Data, Split
from bezierdistill.metrics.distances import nearest
from bezierdistill.metrics.features import RandomFeatures, weights_digest
from bezierdistill.records import SCALES

SEED, ROWS, FEW, PLACES = 0, 1000, 32, 128
LEAST = 1e-3  # a width over the median distance of two samples, of data with many equal rows


class KernelFeatures(nn.Module):
    """``features(x)``: states ``(B, ...)`` to inverse multiquadrics around places, ``(B, N)``.

    Args:
        places: states ``(N, ...)``.
        width: of a kernel, in model units.
    """

    places: Tensor
    width: Tensor

    def __init__(self, places: Tensor, width: float) -> None:
        super().__init__()
        self.register_buffer("places", places.flatten(1))
        self.register_buffer("width", torch.tensor(width))
        self.num_features = len(places)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, N)`` between 0 and 1."""
        return (1 + (torch.cdist(x.flatten(1), self.places) / self.width).square()).rsqrt()


def median_distances(x: Tensor) -> tuple[float, float]:
    """The median distance of two samples of ``(N, ...)``, and of one to its nearest neighbour."""
    median = float(torch.pdist(x.flatten(1)).median()) or 1.0
    return median, max(float(nearest(x, x, itself=False).median()), LEAST * median)


def scale_features(data: Data) -> nn.ModuleDict:
    """Features by scale, ``coarse`` (:class:`~bezierdistill.metrics.features.RandomFeatures`),
    ``middle`` and ``fine``.
    """
    counts: dict[Split, int] = {s: min(data.count(s) or ROWS, ROWS) for s in ("valid", "train")}
    split: Split = "valid" if counts["valid"] >= FEW else "train"
    x = data.real(counts[split], SEED, split)
    median, neighbour = median_distances(x)
    widths = (math.sqrt(median * neighbour), neighbour)
    own = [KernelFeatures(x[:PLACES], width) for width in widths]
    modules = (RandomFeatures(math.prod(data.shape)), *own)
    return nn.ModuleDict(dict(zip(SCALES, modules, strict=True)))


def describe_scales(features: nn.ModuleDict) -> dict[str, Any]:
    """The digest of all, and the widths of the kernels, for a protocol."""
    widths = tuple(float(m.width) for m in features.values() if isinstance(m, KernelFeatures))
    return {"scales": weights_digest(features), "widths": widths}

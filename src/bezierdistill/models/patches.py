"""Features of images by fixed random filters: what a convolution sees without a network.

The pixels are one group. Random filters of zero mean and unit norm of each of a few sizes, both
signs rectified, averaged over 4×4 places, are a group a size: local texture, at no network pass.

Source: random features of patches: Coates & Ng 2012, *Learning feature representations with
k-means*; here they are not learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.models.features import PLACES, Groups
from bezierdistill.noise import Stream, generator

FILTERS, SIZES = 48, (3, 5, 7)
SIDE = 32  # places along a side up to which every one is seen; of larger images every other, ...


class Patches:
    """Features of images ``(B, C, H, W)``; the filters are the same in every run.

    Args:
        shape: shape of one state, ``(C, H, W)``; filters larger than it are left out.

    Raises:
        UserError: if states are no images.
    """

    name, calls = "patches", 0

    def __init__(self, shape: Sequence[int]) -> None:
        if len(shape) != 3:
            raise UserError(
                f"states have shape {tuple(shape)}, patches expect images (C, H, W): leave them out"
            )
        self.stride = max(1, min(shape[1:]) // SIDE)
        self.filters = [_filters(shape[0], k) for k in SIZES if k <= min(shape[1:])]

    def __call__(self, x: Tensor, cond: Any = None) -> Groups:
        """See :class:`~bezierdistill.models.features.Features`."""
        return (x.flatten(1), *(self._seen(x, filters) for filters in self.filters))

    def _seen(self, x: Tensor, filters: Tensor) -> Tensor:
        out = functional.conv2d(x, filters.to(x), stride=self.stride)
        places = (min(PLACES, out.shape[2]), min(PLACES, out.shape[3]))
        rectified = torch.cat([out.relu(), (-out).relu()], 1)
        return functional.adaptive_avg_pool2d(rectified, places).flatten(1)


def _filters(channels: int, size: int) -> Tensor:
    """``(48, channels, size, size)``."""
    draws = generator(0, Stream.TRAIN, FILTERS, channels, size)
    filters = torch.randn(FILTERS, channels, size, size, generator=draws)
    filters = filters - filters.mean((1, 2, 3), keepdim=True)
    return filters / filters.flatten(1).norm(dim=1)[:, None, None, None]

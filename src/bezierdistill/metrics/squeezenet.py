"""SqueezeNet 1.0 as a feature extractor, from a file of weights that the user has: no download.

Fire modules squeeze to few channels, then expand by 1x1 and by 3x3 kernels (Iandola et al. 2016,
arXiv 1602.07360, table 1). The features are the output of fire9 averaged over space, 512
numbers. A Frechet distance on them is called FD-SqueezeNet: it is not FID.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.data.arrays import Archive, read_arrays
from bezierdistill.errors import UserError
from bezierdistill.metrics.features import ImageFeatures

SIZE = 227  # pixels, of the images that it was trained on
MEAN = (104.0, 117.0, 123.0)  # of blue, green, red
SQUEEZED = {f"fire{k + 2}": size for k, size in enumerate((16, 16, 32, 32, 48, 48, 64, 64))}


class SqueezeNetFeatures(ImageFeatures):
    """``features(x)``: images ``(B, C, H, W)`` in [-1, 1], grey or RGB, to ``(B, 512)``.

    Args:
        path: a .npz with ``conv1`` and ``fire2`` to ``fire9`` (each ``.squeeze``, ``.expand1x1``,
            ``.expand3x3``), each with ``.weight`` ``[O, I, k, k]`` and ``.bias``. Other arrays are
            not read.

    Raises:
        UserError: if the file cannot be read, or an array is missing, of another shape or not
            finite.
    """

    name = "SqueezeNet"
    num_features = 512
    pixels = SIZE
    mean: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        width = 96
        for name, squeezed in SQUEEZED.items():
            self.add_module(name, _Fire(width, squeezed))
            width = 8 * squeezed
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        shapes = {key: tuple(tensor.shape) for key, tensor in self.state_dict().items()}
        self.load_state_dict(_read_weights(path, shapes))
        self.freeze(self)

    def _features(self, x: Tensor) -> Tensor:
        x = ((x + 1) * 127.5).expand(-1, 3, -1, -1).flip(1) - self.mean
        x = functional.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = _pool(self.conv1(x).relu())
        for name in SQUEEZED:
            x = self.get_submodule(name)(x)
            x = _pool(x) if name in ("fire4", "fire8") else x
        return x.mean((2, 3))


class _Fire(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, 4 * squeezed, 1)
        self.expand3x3 = nn.Conv2d(squeezed, 4 * squeezed, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


def _pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    file = f"SqueezeNet weights {path}"
    try:
        loaded = read_arrays(path)
        with loaded if isinstance(loaded, Archive) else nullcontext({}) as found:
            arrays = {key: found[key] for key in shapes if key in found}
    except UserError as error:
        raise UserError(f"{file} cannot be read as .npz of numbers: {error}") from None
    for key, shape in shapes.items():
        if key not in arrays:
            told = f"{file} lack {key}, expected conv1 and fire2 to fire9"
            raise UserError(f"{told} with .weight and .bias")
        if arrays[key].shape != shape or arrays[key].dtype.kind != "f":
            got = f"{arrays[key].dtype} {arrays[key].shape}"
            raise UserError(f"{file} hold {key} of {got}, expected floats of shape {shape}")
        if not np.isfinite(arrays[key]).all():
            raise UserError(f"{file} hold NaN or infinite numbers in {key}: fetch them again")
    return {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}

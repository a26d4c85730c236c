"""Inception v3 as a feature extractor, from a file of weights that the user has: no download.

The network of Szegedy et al. 2016 (arXiv 1512.00567) as the Frechet Inception distance has it
(Heusel et al. 2017, arXiv 1706.08500): averages over a window count no padding, and the last block
takes a maximum. The features are the 2,048 means over space of the last block. Images are resized
to 299 pixels as pytorch-fid does, bilinearly and without antialiasing, so distances compare with
its distances of the same samples, and with no other tool's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors
from bezierdistill.metrics.features import ImageFeatures

SIZE = 299  # pixels, of the images that it was trained on
ROW, COLUMN = (1, 7), (7, 1)
Step = tuple[str, int, Any, int]  # a convolution: name, outputs, kernel, stride
average = partial(
    functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
)
widest = partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)
halved = partial(functional.max_pool2d, kernel_size=3, stride=2)


class InceptionFeatures(ImageFeatures):
    """``features(x)``: images ``(B, C, H, W)`` in [-1, 1], grey or RGB, to ``(B, 2048)``.

    Args:
        path: a .safetensors of the weights, by the names that torchvision, pytorch-fid and
            torch-fidelity share (``Conv2d_1a_3x3.conv.weight``). Other tensors are not read.

    Raises:
        UserError: if the file cannot be read, or a tensor is missing, of another shape or not
            finite.
    """

    name = "Inception"
    num_features = 2048
    pixels = SIZE

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padding=0)
        width = 192
        for name, block in _blocks():
            self.add_module(name, block(width))
            width = self.get_submodule(name).outputs  # pyright: ignore[reportAttributeAccessIssue]
        self.load_state_dict(_read_weights(path, self.state_dict()))
        self.freeze(self)

    def _features(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        x = functional.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, _ in _blocks():
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


class _Conv(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: Any, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = [0 if stride > 1 else side // 2 for side in sides] if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, around, bias=False)  # pyright: ignore[reportArgumentType]
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class _Block(nn.Module):
    """Branches side by side, each of convolutions one after the other (a list of them: side by side
    again), and one that pools, with a convolution behind it if it has a width.
    """

    def __init__(
        self, width: int, branches: Sequence[Sequence[Step | list[Step]]], pool: Any, pooled: int
    ) -> None:
        super().__init__()
        self.branches: list[list[list[str]]] = []
        self.pool, self.pooled, self.outputs = pool, pooled, pooled or width
        for branch in branches:
            size, names = width, []
            for step in branch:
                several = step if isinstance(step, list) else [step]
                for name, outputs, kernel, stride in several:
                    self.add_module(name, _Conv(size, outputs, kernel, stride))
                size = sum(outputs for _, outputs, *_ in several)
                names.append([name for name, *_ in several])
            self.branches.append(names)
            self.outputs += size
        if pooled:
            self.branch_pool = _Conv(width, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = x
            for names in branch:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            found.append(y)
        y = self.pool(x)
        return torch.cat([*found, self.branch_pool(y) if self.pooled else y], 1)


def _a(width: int, pooled: int) -> _Block:
    double = [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1)]
    branches = [
        [("branch1x1", 64, 1, 1)],
        [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
        [*double, ("branch3x3dbl_3", 96, 3, 1)],
    ]
    return _Block(width, branches, average, pooled)


def _b(width: int) -> _Block:
    double = [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1)]
    branches = [[("branch3x3", 384, 3, 2)], [*double, ("branch3x3dbl_3", 96, 3, 2)]]
    return _Block(width, branches, halved, 0)


def _c(width: int, inner: int) -> _Block:
    kernels = ((1, inner), (COLUMN, inner), (ROW, inner), (COLUMN, inner), (ROW, 192))
    seven = [("branch7x7_1", inner, 1, 1), ("branch7x7_2", inner, ROW, 1)]
    double = [(f"branch7x7dbl_{k}", size, kernel, 1) for k, (kernel, size) in enumerate(kernels, 1)]
    branches = [[("branch1x1", 192, 1, 1)], [*seven, ("branch7x7_3", 192, COLUMN, 1)], double]
    return _Block(width, branches, average, 192)


def _d(width: int) -> _Block:
    kernels = ((1, 1), (ROW, 1), (COLUMN, 1), (3, 2))
    branches = [
        [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
        [(f"branch7x7x3_{k}", 192, *kernel) for k, kernel in enumerate(kernels, 1)],
    ]
    return _Block(width, branches, halved, 0)


def _e(width: int, pool: Any) -> _Block:
    def split(name: str) -> list[Step]:
        return [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]

    double = [("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1)]
    branches = [
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), split("branch3x3_2")],
        [*double, split("branch3x3dbl_3")],
    ]
    return _Block(width, branches, pool, 192)


def _blocks() -> list[tuple[str, Any]]:
    first = [(f"Mixed_5{k}", partial(_a, pooled=n)) for k, n in zip("bcd", (32, 64, 64))]  # noqa: B905
    middle = [(f"Mixed_6{k}", partial(_c, inner=n)) for k, n in zip("bcde", (128, 160, 160, 192))]  # noqa: B905
    last = [("Mixed_7b", partial(_e, pool=average)), ("Mixed_7c", partial(_e, pool=widest))]
    return [*first, ("Mixed_6a", _b), *middle, ("Mixed_7a", _d), *last]


def _read_weights(path: Path, known: dict[str, Tensor]) -> dict[str, Tensor]:
    file, found = f"Inception weights {path}", read_tensors(path)[0]
    for name, own in known.items():
        if name.endswith("num_batches_tracked"):
            found[name] = own
        elif name not in found:
            told = f"{file} lack {name}, expected the names of torchvision's Inception v3"
            raise UserError(f"{told}, as pytorch-fid has them")
        elif found[name].shape != own.shape or not found[name].is_floating_point():
            got = f"{found[name].dtype} {tuple(found[name].shape)}"
            raise UserError(f"{file} hold {name} of {got}, expected floats of {tuple(own.shape)}")
        elif not bool(found[name].isfinite().all()):
            raise UserError(f"{file} hold NaN or infinite numbers in {name}: fetch them again")
    return {name: found[name].to(own) for name, own in known.items()}

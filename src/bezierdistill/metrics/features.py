"""Features to compare samples by: what an extractor is, and a fixed random one that needs no
weights and suits any shape.

An extractor is any module that maps model states ``(B, ...)`` (images in [-1, 1]) to features ``(B,
num_features)``: the convention of torchmetrics' ``FrechetInceptionDistance(feature=module)``, so
the same module can be given to either. ``name`` and ``digest`` are optional.

Random two-layer ReLU features separate distributions well enough for a Frechet distance (Ulyanov et
al. 2018 on random features; Naeem et al. 2020, arXiv 2002.09797, on random embeddings for
evaluation). The matrices are a function of the input size and the seed alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.fields import evaluating
from bezierdistill.memory import batch_size


def extract(x: Tensor, extractor: nn.Module) -> Tensor:
    """Features ``(N, num_features)`` of samples ``(N, ...)`` in model units: :func:`in_batches`."""
    return in_batches(extractor, x, extractor)


def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> Tensor:
    """What a function of a module makes of samples ``(N, ...)``, without a gradient and in
    evaluation mode, in batches that suit the device of the module.
    """
    tensors = itertools.chain(module.parameters(), module.buffers())
    device = next((tensor.device for tensor in tensors), x.device)
    rows = batch_size(x.shape[1:], device.type)
    with evaluating(), torch.no_grad():
        return torch.cat([function(part.to(device)) for part in x.split(rows)]).to(x.device)


def weights_digest(module: nn.Module) -> str:
    """SHA-256, in hex, of the names, shapes and numbers of a module's weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def describe(extractor: nn.Module) -> dict[str, str]:
    """An extractor's ``name`` (or its class), the ``digest`` of its weights, and the split that it
    was ``trained`` on if it tells, for a protocol.
    """
    name = getattr(extractor, "name", None) or type(extractor).__name__
    digest = getattr(extractor, "digest", None) or weights_digest(extractor)
    split = getattr(extractor, "split", None)
    trained = {"trained": split} if isinstance(split, str) else {}
    return {"extractor": str(name), "digest": str(digest), **trained}


class ImageFeatures(nn.Module):
    """``features(x)``: images ``(B, C, H, W)`` in [-1, 1], grey or RGB, by a network that is not
    trained any more and sees them at ``pixels`` rows and columns. A subclass loads it, calls
    :meth:`freeze`, and has ``_features``, which resizes.
    """

    name: str
    num_features: int
    pixels: int

    def freeze(self, weights: nn.Module) -> None:
        """Train nothing, and keep the digest of a module's weights."""
        self.requires_grad_(False).eval()
        self.digest = weights_digest(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, num_features)``.

        Raises:
            UserError: if ``x`` holds no images of 1 or 3 channels.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            told = f"{self.name} got states of shape {tuple(x.shape[1:])}"
            raise UserError(f"{told}, expected images (C, H, W) of 1 or 3 channels")
        weight = next(self.parameters())
        rows = batch_size((3, self.pixels, self.pixels), weight.device.type)
        return torch.cat([self._features(part) for part in x.to(weight).split(rows)])

    def _features(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class RandomFeatures(nn.Module):
    """``features(x)``: states ``(B, ...)`` of ``size`` numbers to ``(B, outputs)``.

    Args:
        size: numbers of a state.
        hidden: hidden ReLU units.
        outputs: number of features.
        seed: seed of the matrices.
    """

    name = "random"
    enter: Tensor
    bias: Tensor
    leave: Tensor

    def __init__(self, size: int, hidden: int = 256, outputs: int = 64, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        enter = 2 / math.sqrt(size) * torch.randn(size, hidden, generator=generator)
        self.register_buffer("enter", enter)
        self.register_buffer("bias", torch.randn(hidden, generator=generator))
        leave = math.sqrt(2 / hidden) * torch.randn(hidden, outputs, generator=generator)
        self.register_buffer("leave", leave)
        self.num_features = outputs

    @property
    def digest(self) -> str:
        """See :func:`weights_digest`."""
        return weights_digest(self)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, outputs)``."""
        return torch.relu(x.flatten(1).to(self.enter) @ self.enter + self.bias) @ self.leave

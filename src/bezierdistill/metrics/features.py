"""A fixed random feature extractor: a stand-in for Inception that needs no weights and suits any shape.

Random two-layer ReLU features separate laws well enough for a Frechet distance (Ulyanov et al. 2018 on random features; Naeem et al.
2020, arXiv 2002.09797, on random embeddings for evaluation). The matrices are a function of the input size and the seed alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """``features(x)``: states ``(B, ...)`` of ``size`` numbers to ``(B, outputs)``.

    Args:
        size: numbers a state.
        hidden: hidden ReLU units.
        outputs: number of features.
        seed: seed of the matrices.
    """

    enter: Tensor
    bias: Tensor
    leave: Tensor

    def __init__(self, size: int, hidden: int = 256, outputs: int = 64, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("enter", 2 / math.sqrt(size) * torch.randn(size, hidden, generator=generator))
        self.register_buffer("bias", torch.randn(hidden, generator=generator))
        self.register_buffer("leave", math.sqrt(2 / hidden) * torch.randn(hidden, outputs, generator=generator))
        self.num_features = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, outputs)``."""
        return torch.relu(x.flatten(1).to(self.enter) @ self.enter + self.bias) @ self.leave

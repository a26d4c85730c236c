"""A small diffusion transformer for images: patches as tokens, times by adaptive layer norm (adaLN-zero).

Source: Peebles & Xie 2023, *Scalable Diffusion Models with Transformers*, arXiv 2212.09748.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.networks.embeddings import TimeEmbedding


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the time embedding; the gates start at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Tokens ``(B, N, width)`` to tokens, given the time embedding ``(B, width)``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, -1)
        query, key, value = self.qkv(_norm(h) * (1 + scale1) + shift1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        h = h + gate1 * self.mix(attended.transpose(1, 2).flatten(2))
        return h + gate2 * self.mlp(_norm(h) * (1 + scale2) + shift2)


class Transformer(nn.Module):
    """``net(x, s, t, cond)`` for images ``(B, C, H, W)``.

    Args:
        shape: ``(C, H, W)``; H and W divisible by ``patch``.
        width: token width, a multiple of 32 (the width of a head).
        depth: number of blocks.
        patch: side of a square patch in pixels.

    Raises:
        ValueError: on a shape that is no image or not divisible by the patch, or a width that heads of 32 do not divide.
    """

    def __init__(self, shape: Sequence[int], width: int = 128, depth: int = 4, patch: int = 2) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
            raise ValueError(
                f"states have shape {tuple(shape)}, a transformer with patch {patch} expects (C, H, W) with H, W divisible by it"
            )
        if width % 32:
            raise ValueError(f"transformer width is {width}, expected a multiple of 32 (one attention head)")
        channels, self.rows, self.columns = shape[0], shape[1] // patch, shape[2] // patch
        self.patch = patch
        self.time = TimeEmbedding(width)
        self.enter = nn.Linear(channels * patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn(self.rows * self.columns, width))
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, channels * patch**2)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Average velocity ``(B, C, H, W)`` of images ``x`` between ``s`` and ``t``, each ``(B,)``."""
        time = functional.silu(self.time(s, t))
        h = self.enter(functional.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)) + self.position
        for block in self.blocks:
            h = block(h, time)
        shift, scale = self.modulation(time)[:, None].chunk(2, -1)
        h = self.leave(_norm(h) * (1 + scale) + shift)
        return functional.pixel_shuffle(h.transpose(1, 2).unflatten(2, (self.rows, self.columns)), self.patch)


def _norm(h: Tensor) -> Tensor:
    return functional.layer_norm(h, h.shape[-1:])

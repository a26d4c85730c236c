r"""A transformer over positions, for states ``(L, V)`` such as a text's L one-hot rows: a row is a
token, times and condition by adaptive layer norm (adaLN-zero), as in the DiT.

.. math:: u(x, s, t, c)_l = W\,\mathrm{blocks}(E x + p,\ e(s, t, c))_l + a(s, t)\, x_l

Attention is in both directions. The skip a(s, t), a learned number that is zero at first, carries
the noise, as in the MLP.

Source: Peebles & Xie 2023 (arXiv 2212.09748) for the blocks, diffusers' ``BasicTransformerBlock``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.networks.dit import HEAD, Given, count_heads
from bezierdistill.networks.embeddings import TimeEmbedding, stacked


class Transformer(nn.Module):
    """``net(x, s, t, cond)`` for states ``(B, L, V)``.

    Args:
        shape: ``(L, V)``.
        width: token width, a multiple of 32 (the width of a head).
        depth: number of blocks.
        condition_size: numbers of a condition; 0 is none.
        outputs: velocities K of a pass, ``(B, K, L, V)`` if more than one.

    Raises:
        UserError: on states that are no rows of tokens, or another width.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        depth: int = 4,
        condition_size: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if len(shape) != 2:
            given = f"states have shape {tuple(shape)}"
            raise UserError(f"{given}, a transformer expects texts, (length, characters)")
        heads = count_heads(width)
        # Imported here: it takes seconds that only its users need.
        from diffusers.models.attention import BasicTransformerBlock

        self.outputs, (length, size) = outputs, shape
        self.time = TimeEmbedding(width, condition_size)
        self.enter = nn.Linear(size, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.inner = nn.ModuleList(
            BasicTransformerBlock(
                width,
                heads,
                HEAD,
                activation_fn="gelu-approximate",
                num_embeds_ada_norm=1,
                attention_bias=True,
                norm_type="ada_norm_zero",
                norm_elementwise_affine=False,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.leave = nn.Linear(width, outputs * size)
        self.skip = nn.Linear(width, outputs)
        zero = [self.last[1], self.leave, self.skip]
        for block in self.inner:
            norm = cast(Any, block).norm1
            norm.emb = Given()
            zero.append(norm.linear)
        for layer in zero:
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Average velocity ``(B, L, V)``, or K of them ``(B, K, L, V)``, of states between the
        times ``s`` and ``t``, each ``(B,)``.
        """
        time = self.time(s, t, cond)
        h = self.enter(x) + self.places
        for block in self.inner:
            h = block(h, timestep=time)
        shift, scale = self.last(time)[:, None].chunk(2, 2)
        out = self.leave(self.norm(h) * (1 + scale) + shift)
        out = out.unflatten(2, (self.outputs, -1)).transpose(1, 2)
        return stacked(out + self.skip(time)[:, :, None, None] * x[:, None], x)

r"""diffusers' diffusion transformer for images: patches as tokens, times and condition by adaptive
layer norm (adaLN-zero).

.. math:: u(x, s, t, c) = \mathrm{DiT}(x,\ e(s, t, c))

Our embedding e of both times and the condition is computed once and shared by all blocks, as in the
paper; diffusers would make one per block. Gates and output start at zero. Where states have
more than four channels and a patch has as many numbers as a token, the output adds ``a(s, t) x``
(:class:`~bezierdistill.networks.embeddings.Skip`).

Source: Peebles & Xie 2023, *Scalable diffusion models with transformers* (arXiv 2212.09748);
``DiTTransformer2DModel`` of diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.networks.embeddings import TimeEmbedding, skip_of, stacked

HEAD = 32  # width of an attention head


class Given(nn.Module):
    """Takes the place of a block's own embedding of the time: its input is the embedding."""

    def forward(
        self, embedding: Tensor, label: Any = None, hidden_dtype: torch.dtype | None = None
    ) -> Tensor:
        """``embedding`` ``(B, width)`` as it is."""
        return embedding


def count_heads(width: int) -> int:
    """Heads of a token width.

    Raises:
        UserError: if it is no multiple of a head's.
    """
    if width % HEAD:
        raise UserError(f"transformer width is {width}, expected a multiple of {HEAD} (a head)")
    return width // HEAD


class DiT(nn.Module):
    """``net(x, s, t, cond)`` for square images ``(B, C, N, N)``.

    Args:
        shape: ``(C, N, N)``, N divisible by ``patch``.
        width: token width, a multiple of 32 (the width of a head).
        depth: number of blocks.
        patch: side of a square patch in pixels.
        condition_size: numbers of a condition; 0 is none.
        outputs: velocities K of a pass, ``(B, K, C, N, N)`` if more than one.

    Raises:
        UserError: on a shape that is no square image divisible by the patch, or another width.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        depth: int = 4,
        patch: int = 2,
        condition_size: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % patch:
            given = f"states have shape {tuple(shape)}"
            raise UserError(
                f"{given}, a DiT expects square images (C, N, N), N divisible by {patch}"
            )
        heads = count_heads(width)
        # Imported here: it takes seconds that only its users need.
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        self.inner = DiTTransformer2DModel(
            heads,
            HEAD,
            shape[0],
            outputs * shape[0],
            num_layers=depth,
            sample_size=shape[1],
            patch_size=patch,
            num_embeds_ada_norm=1,
        )
        zero = [self.inner.proj_out_1, self.inner.proj_out_2]
        for block in cast(Any, self.inner.transformer_blocks):
            block.norm1.emb = Given()
            zero.append(block.norm1.linear)
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.time = TimeEmbedding(width, condition_size)
        self.skip = skip_of(shape[0], patch, width, outputs)
        # Of the last layer's rows the channels of a velocity lie together, for every pixel.
        self.blocks = dict.fromkeys(("inner.proj_out_2.weight", "inner.proj_out_2.bias"), shape[0])

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Average velocity ``(B, C, N, N)`` of images between times ``s`` and ``t``, ``(B,)``."""
        out = stacked(self.inner(x, self.time(s, t, cond), return_dict=False)[0], x)
        return out if self.skip is None else out + self.skip(x, s, t).reshape(out.shape)

r"""diffusers' U-Net for images, with the interval and the condition beside its own embedding.

.. math:: u(x, s, t, c) = \mathrm{UNet}(x,\ 1000\, s,\ Z\,(t - s,\ \sin \omega (t - s)) + C c)

The last argument is added to the embedding of the time, where diffusers adds the one of a class
label. The width is doubled below full resolution, and only the lowest level attends, where that is
cheap. Patches of pixels may be channels of a smaller image, which is several times faster at little
loss (Hoogeboom et al. 2023, *Simple diffusion*, arXiv 2301.11093). Where states have more than four
channels, such as clips, whose frames are channels, and a place then has as many numbers as the
network has channels, the output adds ``a(s, t) x``
(:class:`~bezierdistill.networks.embeddings.Skip`).

Source: Ho et al. 2020, *Denoising diffusion probabilistic models* (arXiv 2006.11239);
``UNet2DModel`` of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.networks.embeddings import TimeEmbedding, skip_of, stacked

MIN_SIDE, MAX_SIDE = 4, 16  # of the lowest level, which attends


class UNet(nn.Module):
    """``net(x, s, t, cond)`` for images ``(B, C, H, W)``.

    Args:
        shape: ``(C, H, W)``; sides that halve down to 16 or less after the patches (28: 28, 14, 7).
        width: channels at full resolution, a multiple of 8; twice as many below.
        depth: residual layers per block.
        patch: side of a square patch in pixels; 1 is none.
        condition_size: numbers of a condition; 0 is none.
        outputs: velocities K of a pass, ``(B, K, C, H, W)`` if more than one.

    Raises:
        UserError: on a shape that is no image or does not halve, or another width.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 64,
        depth: int = 1,
        patch: int = 1,
        condition_size: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if width % 8:
            raise UserError(f"U-Net width is {width}, expected a multiple of 8")
        # Imported here: it takes seconds that only its users need.
        from diffusers.models.unets.unet_2d import UNet2DModel

        if len(shape) != 3:
            given = f"states have shape {tuple(shape)}"
            raise UserError(f"{given}, a U-Net expects images (C, H, W): choose --network.kind mlp")
        if shape[1] % patch or shape[2] % patch:
            given = f"images are {shape[1]}x{shape[2]}"
            raise UserError(f"{given}, a U-Net with patch {patch} expects sides divisible by it")
        self.patch = patch
        channels, sides = shape[0] * patch**2, (shape[1] // patch, shape[2] // patch)
        below = count_levels(*sides) - 1
        self.inner = UNet2DModel(
            sides,
            channels,
            outputs * channels,
            block_out_channels=(width, *[2 * width] * below),
            down_block_types=(*["DownBlock2D"] * below, "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * below),
            layers_per_block=depth,
            attention_head_dim=math.gcd(32, 2 * width if below else width),
            norm_num_groups=math.gcd(32, width // 4),
            class_embed_type="identity",
        )
        for parameter in self.inner.conv_out.parameters():
            nn.init.zeros_(parameter)  # no velocity at first, as in the paper's code: learns faster
        self.time = TimeEmbedding(4 * width, condition_size, start=False)
        self.skip = skip_of(shape[0], patch, width, outputs)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Average velocity ``(B, C, H, W)`` of images between times ``s`` and ``t``, ``(B,)``."""
        patches = functional.pixel_unshuffle(x, self.patch)
        out = self.inner(patches, 1000 * s, self.time(s, t, cond), return_dict=False)[0]
        out = out.unflatten(1, (-1, patches.shape[1]))  # velocities before patches of pixels
        out = stacked(functional.pixel_shuffle(out, self.patch), x)
        return out if self.skip is None else out + self.skip(x, s, t).reshape(out.shape)


def count_levels(height: int, width: int) -> int:
    """Resolutions of a U-Net: the image, and every half of it down to a side of 4.

    Raises:
        UserError: on sides too odd to be halved down to 16.
    """
    low, high, levels = min(height, width), max(height, width), 1
    while low % 2 == 0 and high % 2 == 0 and low // 2 >= MIN_SIDE:
        low, high, levels = low // 2, high // 2, levels + 1
    if high > MAX_SIDE:
        raise UserError(
            f"images are {height}x{width}, a U-Net expects sides that halve down to {MAX_SIDE} or"
            " less (28, 32, 48, 64): pad or resize them, or choose --network.kind mlp"
        )
    return levels

r"""Images as the states of a pipeline: its encoder, and the way back from what its decoder gets.

A pipeline shifts and scales what its decoder is given, channel by channel, and may pack it into
tokens; each does it otherwise, and only on the way out. So the way out is measured, with states of
zeros, of ones, and of their own places, :math:`z_k = a_k x_{p(k)} + b_k`, and inverted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.noise import Stream, noise
from bezierdistill.pipelines.loop import Loop

BASE = 1024  # digits of places: small, so that they survive the scaling in single precision
CLOSE = 1e-3


class Latents:
    """Encodes images as the states of a pipeline.

    Args:
        loop: the pipeline's loop.
        texts: what ``encode_prompt`` returned for one prompt.
        state: the argument of its transformer that is the states.
        shape: shape of a state.

    Raises:
        UserError: if what its decoder is given is no such function of the states.
    """

    def __init__(self, loop: Loop, texts: Any, state: str, shape: tuple[int, ...]) -> None:
        self.loop, self.shape = loop, shape
        places = torch.arange(int(np.prod(shape)), device=loop.device)

        def out(x: Tensor) -> Tensor:
            return loop.decoder_input(x.float().reshape(1, *shape), texts, state)

        zero = out(torch.zeros_like(places))
        self.shift, self.scale = zero, out(torch.ones_like(places)) - zero
        high, low = (
            ((out(digits) - zero) / self.scale).round().long()
            for digits in (places // BASE, places % BASE)
        )
        self.places = (high * BASE + low).flatten()
        whole = torch.equal(self.places.sort().values, places)
        x = noise(0, Stream.SEARCH, range(1), shape)[0].to(loop.device)
        if not whole or float((self.states(out(x))[0] - x).abs().max()) > CLOSE:
            raise UserError(
                f"a {type(loop.pipe).__name__} does more with its states than to scale and pack"
                " them before they are decoded, so that images cannot be encoded: expected"
                " alignment without --data"
            )

    def states(self, z: Tensor) -> Tensor:
        """The states ``(B, *shape)`` of what the decoder would be given."""
        flat = ((z - self.shift) / self.scale).flatten(1)
        return torch.empty_like(flat).index_copy_(1, self.places, flat).reshape(-1, *self.shape)

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """States ``(B, *shape)``, on the CPU, of images ``(B, H, W, 3)`` of bytes.

        Raises:
            UserError: if they have another size than the pipeline's images.
        """
        vae = self.loop.pipe.vae
        kind = next(vae.parameters()).dtype
        pixels = torch.from_numpy(images).movedim(-1, 1).to(self.loop.device).float() / 127.5 - 1
        if self.shift.ndim == 5:  # a decoder of films
            pixels = pixels.unsqueeze(2)
        found = vae.encode(pixels.to(kind))
        z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        if z.shape[1:] != self.shift.shape[1:]:
            raise UserError(
                f"images of {images.shape[1:3]} pixels are states {tuple(z.shape[1:])}, the"
                f" pipeline makes {tuple(self.shift.shape[1:])}: expected its own size"
            )
        return self.states(z.float()).cpu()

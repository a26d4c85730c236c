"""Images at another size: their middle, or resized."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from torch.nn import functional

from bezierdistill.data.scaling import CLIPS, Scaling
from bezierdistill.errors import UserError

SIZE = r"(crop)?([1-9]\d{0,3})x([1-9]\d{0,3})"  # what follows an @
SIZES = re.compile(f"@{SIZE}")
CHUNK = 4096  # images that are resized together


class Size(NamedTuple):
    """A size of images, ``@16x16``, or of their middle, ``@crop16x16``.

    Args:
        rows: height in pixels.
        columns: width in pixels.
        crop: take the middle instead of resizing.
    """

    rows: int
    columns: int
    crop: bool = False

    @classmethod
    def read(cls, crop: str | None, rows: str, columns: str) -> Size:
        """The size that the groups of :data:`SIZE` say."""
        return cls(int(rows), int(columns), bool(crop))

    def __str__(self) -> str:
        return f"@{'crop' * self.crop}{self.rows}x{self.columns}"

    def __call__(self, x: np.ndarray, scaling: Scaling, name: str) -> np.ndarray:
        """Images ``(N, ...)``, or the frames of clips, of this size, by antialiased bilinear
        interpolation if they are resized; bytes stay bytes.

        Args:
            x: the images, in original units.
            scaling: theirs.
            name: what to call them in messages.

        Raises:
            UserError: if they are vectors, or smaller than the middle that is asked for.
        """
        before = 2 if scaling.layout in ("chw", *CLIPS) else 1
        found = (0, 0) if scaling.layout == "flat" else x.shape[before : before + 2]
        if found == (0, 0) or (self.crop and (self.rows > found[0] or self.columns > found[1])):
            asked = f"{'a middle' if self.crop else 'images'} of {self.rows} x {self.columns}"
            raise UserError(f"{self} asks for {asked}, {name} holds samples of shape {x.shape[1:]}")
        if self.crop:
            places = zip(found, self[:2], strict=True)
            window = (slice((old - new) // 2, (old - new) // 2 + new) for old, new in places)
            return x[(*[slice(None)] * before, *window)]
        parts = []
        for k in range(0, len(x), CHUNK):
            states = scaling.encode(x[k : k + CHUNK])
            states = functional.interpolate(states, self[:2], mode="bilinear", antialias=True)
            parts.append(scaling.decode(states))
        return np.concatenate(parts)


def split_sizes(text: str) -> tuple[str, tuple[Size, ...]]:
    """A text without the views of sizes at its end, and these.

    Example:
        >>> split_sizes("PHOTOS@crop160x160@32x32")
        ('PHOTOS', (Size(rows=160, columns=160, crop=True), Size(rows=32, columns=32, crop=False)))
    """
    head = re.sub(f"(?:{SIZES.pattern})+$", "", text)
    return head, tuple(Size.read(*groups) for groups in SIZES.findall(text[len(head) :]))

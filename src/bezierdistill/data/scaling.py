"""The reversible way between a data set's original units and layout and those of a model.

Texts of one length are states of tokens: a one-hot row per character, centred, of unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.settings import check_choice

Layout = Literal["flat", "hw", "hwc", "chw", "fhw", "fhwc", "latent", "tokens"]
CLIPS, COLOURS = ("fhw", "fhwc"), 3  # frames are channels of a state
CHANNELS, BLANK = (1, 3, 4), " "
MIN_SCALE, MAX_NUMBER = 1e-37, 3e38  # of single precision


@dataclass(frozen=True)
class Scaling:
    """Affine map ``model = (original - shift) / scale``; it is kept with every model, so samples
    come back in the data's original units.

    Args:
        shift: one number, or one per component (flat) or channel (images).
        scale: likewise, positive.
        layout: how a state is stored: ``flat`` (D,), ``hw``, ``hwc`` or ``chw``, ``fhw`` and
            ``fhwc`` (clips of F grey or RGB frames). Models use (D,) and (C, H, W), clips with
            F or 3F channels. ``latent`` are states of any shape, as they are;
            ``tokens`` are texts, whose states are (length, characters of the alphabet).
        low: least value in original units; None is unbounded.
        high: greatest value in original units; None is unbounded.
        integer: whether original units are whole numbers (images of bytes).
        alphabet: of tokens, its characters in rising order.
    """

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    layout: Layout = "flat"
    low: float | None = None
    high: float | None = None
    integer: bool = False
    alphabet: str = ""

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        numbers = [*self.shift, *self.scale, *bounds]
        if not self.shift or not self.scale or not all(abs(n) < MAX_NUMBER for n in numbers):
            told = f"scaling holds {str(numbers)[:100]}"
            raise UserError(f"{told}, expected one finite number or more of shift and scale")
        if min(self.scale) < MIN_SCALE or bounds != sorted(bounds):
            told = f"scaling has scale {min(self.scale)} from {self.low} to {self.high}"
            raise UserError(f"{told}, expected positive, and a range that rises")
        bytes_fit = self.low is not None and self.high is not None
        if self.integer and not (bytes_fit and bounds[0] >= 0 and bounds[1] <= 255):
            told = f"scaling makes bytes from {self.low} to {self.high}"
            raise UserError(f"{told}, expected 0 to 255")
        check_choice("layout of a scaling", self.layout, Layout)
        rising = list(self.alphabet) == sorted(set(self.alphabet))
        if not rising or (len(self.alphabet) > 1) != (self.layout == "tokens"):
            told = f"scaling is {self.layout} with the alphabet {self.alphabet[:80]!r}"
            raise UserError(f"{told}, expected two characters or more, rising, of tokens alone")

    @classmethod
    def tokens(cls, alphabet: str) -> Scaling:
        """The scaling of texts of an alphabet: one-hot rows with mean 0 and std 1 where all
        characters are as frequent.
        """
        known = "".join(sorted(set(alphabet)))
        mean = 1 / max(len(known), 2)
        std = math.sqrt(mean * (1 - mean))
        return cls((mean,), (std,), "tokens", 0.0, 1.0, alphabet=known)

    @classmethod
    def of_bytes(cls, layout: Layout) -> Scaling:
        """The scaling of images or clips of bytes, to [-1, 1]."""
        return cls((127.5,), (127.5,), layout, 0.0, 255.0, True)

    @property
    def is_clips(self) -> bool:
        """Whether states are clips."""
        return self.layout in CLIPS

    @property
    def axes(self) -> int:
        """Axes of samples ``(N, ...)`` in original units."""
        return {"flat": 2, "hw": 3, "fhwc": 5}.get(self.layout, 4)

    @classmethod
    def measure(cls, array: np.ndarray) -> Scaling:
        """The scaling of real samples ``(N, ...)``: bytes to [-1, 1]; other numbers to mean 0 and
        std 1 per component or channel; texts ``(N,)`` to :meth:`tokens` of their characters.

        Arrays (N, A, B, C) are (N, H, W, C) where C is 1, 3 or 4, and (N, C, H, W) where A is;
        where both are, as in (N, 3, 4, 4), the reading with square images holds, and (N, H, W, C)
        where neither or both are square.

        Raises:
            UserError: if the array is neither (N, D), (N, H, W), (N, H, W, C) nor (N, C, H, W).
        """
        if array.dtype.kind == "U":
            return cls.tokens("".join(map(chr, np.unique(_characters(array)))))
        layout = _layout(array.shape)
        if array.dtype == np.uint8:
            return cls.of_bytes(layout)
        axes = {"flat": (0,), "hw": (0, 1, 2), "hwc": (0, 1, 2), "chw": (0, 2, 3)}[layout]
        std = np.atleast_1d(array.std(axes, dtype=np.float64))
        shift = tuple(np.atleast_1d(array.mean(axes, dtype=np.float64)).tolist())
        return cls(shift, tuple(np.where(std > 1e-9 * np.abs(shift), std, 1.0).tolist()), layout)

    def encode(self, original: np.ndarray | Tensor) -> Tensor:
        """Samples ``(N, ...)`` in original units as float32 states ``(N, D)``, ``(N, C, H, W)``;
        texts ``(N,)`` as ``(N, length, characters)``.

        Raises:
            UserError: if a text has a character that is not in the alphabet.
        """
        if self.layout == "tokens":
            codes = character_codes(np.asarray(original), self.alphabet)
            original = functional.one_hot(torch.from_numpy(codes), len(self.alphabet))
        if not isinstance(original, Tensor):
            original = torch.from_numpy(np.asarray(original, np.float32))
        x = original.to(torch.float32)
        if self.layout == "hw":
            x = x.unsqueeze(1)
        elif self.layout == "hwc":
            x = x.permute(0, 3, 1, 2)
        elif self.layout == "fhwc":
            x = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return (x - _broadcast(self.shift, x)) / _broadcast(self.scale, x)

    def decode(self, x: Tensor) -> np.ndarray:
        """Model states back in original units, layout and number type, clamped to their range;
        states of tokens as the texts of their most likely characters, without blanks at the end.
        """
        if self.layout == "tokens":
            return _texts(x.argmax(2).cpu().numpy(), self.alphabet)
        original = x.float() * _broadcast(self.scale, x) + _broadcast(self.shift, x)
        if self.low is not None or self.high is not None:
            original = original.clamp(self.low, self.high)
        if self.layout == "hw":
            original = original.squeeze(1)
        elif self.layout == "hwc":
            original = original.permute(0, 2, 3, 1)
        elif self.layout == "fhwc":
            original = self.frames(original).permute(0, 1, 3, 4, 2)
        array = original.cpu().numpy()
        return np.rint(array).astype(np.uint8) if self.integer else array

    def frames(self, x: Tensor) -> Tensor:
        """Clips among states as ``(N, F, C, H, W)``, each frame by itself; others as they are."""
        return x.unflatten(1, (-1, COLOURS if self.layout == "fhwc" else 1)) if self.is_clips else x

    def clamp(self, x: Tensor) -> Tensor:
        """Model states moved into the original range, if there is one, still in model units."""
        if self.low is None and self.high is None:
            return x
        shift, scale = _broadcast(self.shift, x), _broadcast(self.scale, x)
        low, high = (b if b is None else (b - shift) / scale for b in (self.low, self.high))
        return x.clamp(low, high)

    def check(self, shape: Sequence[int]) -> None:
        """Raise ``UserError`` unless it fits model states of ``shape``."""
        sizes = {"flat": (1,), "tokens": (2,), "latent": range(1, 5)}.get(self.layout, (3,))
        fits = len(shape) in sizes
        fits = fits and (self.layout != "tokens" or shape[1] == len(self.alphabet))
        fits = fits and (self.layout != "hw" or shape[0] == 1)
        fits = fits and (self.layout != "fhwc" or shape[0] % COLOURS == 0)
        if not fits or {len(self.shift), len(self.scale)} - {1, shape[0]}:
            told = f"{self.layout} with {len(self.shift)} and {len(self.scale)} numbers"
            raise UserError(f"scaling is {told}, which does not fit states of shape {tuple(shape)}")


def _broadcast(values: tuple[float, ...], x: Tensor) -> Tensor:
    numbers = torch.tensor(values, dtype=torch.float32, device=x.device)
    return numbers if x.ndim == 2 or len(values) == 1 else numbers.reshape(-1, 1, 1)


def _characters(texts: np.ndarray) -> np.ndarray:
    """Code points ``(N, length)`` of texts ``(N,)``; shorter ones end in blanks."""
    native = np.ascontiguousarray(texts, texts.dtype.newbyteorder("="))
    points = native.view(np.uint32).reshape(len(texts), -1)
    return np.where(points == 0, ord(BLANK), points)


def character_codes(texts: np.ndarray, alphabet: str) -> np.ndarray:
    """Texts ``(N,)`` as the numbers of their characters ``(N, length)``.

    Raises:
        UserError: if a text has a character that is not in the alphabet.
    """
    points, known = _characters(texts), np.array(list(map(ord, alphabet)), np.uint32)
    codes = np.searchsorted(known, points).clip(max=len(known) - 1)
    if (other := np.argwhere(known[codes] != points)).size:
        row, place = other[0].tolist()
        told = f"text {str(texts[row])[:80]!r} has {chr(points[row, place])!r}"
        raise UserError(f"{told}, expected characters of {alphabet[:200]!r} alone")
    return codes


def _texts(codes: np.ndarray, alphabet: str) -> np.ndarray:
    """Texts ``(N,)`` of rows of numbers of characters ``(N, length)``."""
    points = np.array(list(map(ord, alphabet)), np.uint32)[codes]
    last = np.logical_and.accumulate((points == ord(BLANK))[:, ::-1], 1)[:, ::-1]
    points[last] = 0  # where numpy ends a text
    return points.view(f"U{points.shape[1]}").reshape(len(points))


def _layout(shape: tuple[int, ...]) -> Layout:
    if len(shape) in (2, 3):
        return "flat" if len(shape) == 2 else "hw"
    first, last = (len(shape) == 4 and shape[axis] in CHANNELS for axis in (1, -1))
    if first and (not last or (shape[2] == shape[3] != shape[1])):
        return "chw"
    if last:
        return "hwc"
    told = f"samples have shape {shape}, expected (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W)"
    raise UserError(f"{told} with C of 1, 3 or 4")

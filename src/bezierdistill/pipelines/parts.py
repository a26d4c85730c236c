"""What text encoders return, as named tensors with a row per prompt: put together, filled up,
compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.noise import Stream, noise

LENGTHS = ".lengths"
VECTOR, NUMBERS = "vector", 32  # what stands for a prompt where prompts are compared; its length
Parts = dict[str, Tensor]


def join(found: Sequence[Parts]) -> Parts:
    """Parts of several rows as one, filled up with zeros to the longest, which masks leave out."""
    joined: Parts = {}
    for name in found[0] if found else ():
        parts = [own[name] for own in found]
        longest = max(part.shape[1] if part.ndim > 1 else 0 for part in parts)
        joined[name] = torch.cat([padded(part, longest) for part in parts])
    return joined


def padded(part: Tensor, length: int) -> Tensor:
    """A part filled up with zeros to a length."""
    lacking = length - part.shape[1] if part.ndim > 1 else 0
    return functional.pad(part, (*(0, 0) * (part.ndim - 2), 0, lacking)) if lacking else part


def ragged(name: str, value: Sequence[Tensor]) -> Parts:
    """Tensors of different lengths as one, with their lengths beside."""
    longest = max(len(part) for part in value)
    rows = [padded(part[None], longest) for part in value]
    lengths = torch.tensor([len(part) for part in value])
    return {name: torch.cat(rows), name + LENGTHS: lengths}


def vector(parts: Parts, count: int) -> Tensor:
    """What stands for prompts: of the largest part the mean over tokens, projected."""
    floats = [part for part in parts.values() if part.is_floating_point()]
    if not floats:
        return torch.zeros(count, NUMBERS)
    part = max(floats, key=lambda one: one.numel())
    mean = part.float().mean(1) if part.ndim > 2 else part.float()
    mean = mean.cpu() / mean.shape[1] ** 0.5
    return mean @ noise(0, Stream.SEARCH, range(mean.shape[1]), (NUMBERS,))


def difference(a: Tensor, b: Tensor) -> float:
    """How far apart two values are, in shares of their size."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-6))


def on_cpu(parts: Parts) -> Parts:
    """Parts as they are written."""
    return {name: part.detach().cpu().contiguous() for name, part in parts.items()}

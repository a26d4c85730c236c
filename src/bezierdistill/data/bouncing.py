r"""Clips of digits that bounce off walls, made of any set of small grey images: data whose motion
is known.

A digit is shrunk to a box of 10/16 of the frame's shorter side, with its centroid in the middle of
the box. The box starts anywhere within the frame, moves in any direction by 1 to 2 sixteenths of
that side a frame, and bounces at the walls: along each axis, with the room R that is left for it,

.. math:: p(t) = R - |((p_0 + v t) \bmod 2R) - R|.

Between pixels it is interpolated linearly, which moves its centroid exactly. Splits of clips are
made of the same splits of digits: no digit that is trained on is in a clip that judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.data.base import SPLITS, ArrayData, Split
from bezierdistill.data.clips import clip_scaling
from bezierdistill.data.reading import Samples, read_file
from bezierdistill.data.splits import array_data, hold_out
from bezierdistill.errors import UserError
from bezierdistill.memory import check_memory
from bezierdistill.noise import Stream, generator

FRAMES, SIDE = 8, 16
BOX, SPEEDS = 10 / 16, (1 / 16, 2 / 16)  # of the shorter side; per frame
MOST, CHUNK, MADE = 20_000, 1024, 1005  # clips of a split, made together; what a generator is for
STREAMS = {"train": Stream.TRAIN, "valid": Stream.SEARCH, "test": Stream.JUDGE}


@dataclass(frozen=True)
class Walls:
    """Where a box may go.

    Args:
        sides: rows and columns of a frame.
    """

    sides: tuple[int, int]

    @property
    def box(self) -> int:
        """Side of a digit's box."""
        return round(BOX * min(self.sides))

    @property
    def room(self) -> Tensor:
        """How far a box can move along rows and columns, ``(2,)``."""
        return torch.tensor(self.sides, dtype=torch.float64) - self.box

    @property
    def speeds(self) -> tuple[float, float]:
        """The least and the greatest speed in pixels a frame."""
        return SPEEDS[0] * min(self.sides), SPEEDS[1] * min(self.sides)

    def draw(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where boxes start, and their velocities, ``(count, 2)`` each."""
        start, (angle, speed) = (
            torch.rand(count, 2, dtype=torch.float64, generator=draws),
            torch.rand(2, count, dtype=torch.float64, generator=draws),
        )
        low, high = self.speeds
        angle, speed = 2 * torch.pi * angle, low + (high - low) * speed
        return start * self.room, speed[:, None] * torch.stack([angle.sin(), angle.cos()], 1)

    def tracks(self, start: Tensor, velocity: Tensor, frames: int) -> Tensor:
        """Places ``(N, F, 2)`` of boxes from ``(N, 2)``, see the module's docstring."""
        times = torch.arange(frames, dtype=torch.float64)[:, None]
        return reflected(start[:, None] + velocity[:, None] * times, self.room)

    def render(self, boxes: Tensor, places: Tensor) -> Tensor:
        """Frames ``(N, F, H, W)`` of boxes ``(N, S, S)`` whose centroids lie in the middle of a box
        at ``places`` ``(N, F, 2)``.
        """
        ticks = torch.arange(boxes.shape[1], dtype=boxes.dtype)
        mass = boxes.sum((1, 2)).clamp_min(1e-9)
        centroid = torch.stack([(boxes.sum(k) @ ticks) / mass for k in (2, 1)], 1)
        corners = places + (self.box - 1) / 2 - centroid[:, None]
        down, along = (
            (1 - (torch.arange(side)[:, None] - corners[..., k, None, None] - ticks).abs())
            .clamp(0)
            .to(boxes)
            for k, side in enumerate(self.sides)
        )
        return down @ boxes[:, None] @ along.mT


def reflected(x: Tensor, room: Tensor) -> Tensor:
    """Places on a line after all bounces between walls at 0 and ``room``."""
    return room - (x.remainder(2 * room) - room).abs()


@dataclass(frozen=True)
class BouncingData(ArrayData):
    """Bouncing digits.

    Args:
        digits: of a clip.
        walls: of its frames.
    """

    digits: int = 1
    walls: Walls = Walls((SIDE, SIDE))


def load_bouncing(
    name: str,
    path: Path,
    frames: str | None = None,
    rows: str | None = None,
    columns: str | None = None,
    two: str | None = None,
) -> BouncingData:
    """Bouncing digits of a file of small grey images; of a single digit the class is known.

    Args:
        name: what the user called it.
        path: a ``.npz`` of images.
        frames: of a clip.
        rows: of a frame.
        columns: likewise.
        two: whether there are two digits in it, which may pass over each other.

    Raises:
        UserError: if the file holds no such images, or clips would have one frame or be too small.
    """
    count, walls = int(frames or FRAMES), Walls((int(rows or SIDE), int(columns or SIDE)))
    if count < 2 or min(walls.sides) < SIDE // 2:
        told = f"{name} asks for {count} x {' x '.join(map(str, walls.sides))}"
        raise UserError(f"{told}, expected two frames or more of {SIDE // 2} x {SIDE // 2} or more")
    found = _digits(path)
    x, given = dict(found.x), dict(found.given)
    hold_out(x, given)
    clips, labels = dict[Split, np.ndarray](), dict[Split, np.ndarray]()
    for split in SPLITS:
        draws = generator(0, STREAMS[split], MADE)
        chosen = torch.randperm(len(x[split]), generator=draws)[:MOST].numpy()
        clips[split] = bounce(x[split][chosen], walls, count, draws, 2 if two else 1)
        if given and not two:
            labels[split] = given[split][chosen]
    made = array_data(name, Samples(clips, labels, found.names), clip_scaling(clips["train"]))
    return BouncingData(**vars(made), digits=2 if two else 1, walls=walls)


def bounce(
    images: np.ndarray, walls: Walls, frames: int, draws: torch.Generator, digits: int = 1
) -> np.ndarray:
    """Clips ``(N, F, H, W)`` of bytes of images ``(N, S, S)``, each with as many digits."""
    shape = (len(images), frames, *walls.sides)
    check_memory(2 * int(np.prod(shape)), f"{len(images):,} clips of shape {shape[1:]}")
    clips = np.zeros(shape, np.uint8)
    for _ in range(digits):
        for start in range(0, len(images), CHUNK):
            part = torch.from_numpy(images[start : start + CHUNK]).float()[:, None] / 255
            size = (walls.box, walls.box)
            boxes = functional.interpolate(part, size, mode="bilinear", antialias=True)[:, 0]
            places = walls.tracks(*walls.draw(len(part), draws), frames)
            pixels = (255 * walls.render(boxes, places)).round().clamp(0, 255).to(torch.uint8)
            own = clips[start : start + CHUNK]
            np.maximum(own, pixels.numpy(), out=own)
        images = images[torch.randperm(len(images), generator=draws).numpy()]
    return clips


def _digits(path: Path) -> Samples:
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a .npz of small grey images")
    found = read_file(path)
    x = found.x["train"]
    if x.ndim != 3 or x.dtype != np.uint8 or min(x.shape[1:]) < SIDE // 2:
        told = f"{path} holds {x.dtype} samples of shape {x.shape[1:]}, and bouncing digits"
        raise UserError(f"{told} are made of grey images of bytes, (N, H, W): expected a .npz")
    return found

"""Captioned images whose truth is known, made of MNIST or Fashion-MNIST, and their judge.

An image shows one item in one of six colours and two sizes, somewhere near the middle of 32x32
black pixels; its caption says what, which colour and which size. Colour and size are read off an
image by arithmetic: the hue of its bright pixels, and the longer side of their box. What it shows
is said by a classifier. Rows of the data are split three ways: those that make the pipeline
(``train``), those that the classifier is trained on (``judge``) and those that samples are compared
with (``real``).
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.files import read_tensors, write_tensors
from bezierdistill.metrics import ClassifierFeatures, frechet_distance
from bezierdistill.metrics.classifier import train_classifier
from bezierdistill.metrics.features import extract

Name = Literal["mnist", "fashion"]
Part = Literal["train", "judge", "real"]
ITEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mnist": (
        "mnist.npz",
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ),
    "fashion": (
        "fashion_mnist.npz",
        (
            *("top", "trousers", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "boot"),
        ),
    ),
}
COLOURS = ("red", "yellow", "green", "cyan", "blue", "pink")  # 60 degrees of hue apart
SIZES = ("small", "large")
TEMPLATES = (
    "a {size} {colour} {item}",
    "a {colour} {item}, {size}",
    "{item} in {colour}, {size}",
    "a {size} {item} in {colour}",
    "the {item} is {colour} and {size}",
    "{colour} {size} {item}",
)
SIDE, PIXELS, SHIFTS = 32, (14.0, 25.0), (2.0, 1.0)  # of small and large items
BETWEEN = 19.5  # a longer side above it is large
HUE, VALUE, BRIGHT = 0.02, 0.8, 0.35  # spread of the hue, least brightness, what counts as an item
PARTS: dict[Part, tuple[str, slice]] = {
    "train": ("train", slice(0, 40_000)),
    "judge": ("train", slice(40_000, 60_000)),
    "real": ("test", slice(0, 10_000)),
}
ROUNDS = 4  # images per row that the classifier is trained on
MODEL = "judge.safetensors"


class Asked(NamedTuple):
    """What captions ask for: numbers ``(N,)`` of the item, the colour and the size."""

    item: Tensor
    colour: Tensor
    size: Tensor

    @property
    def kind(self) -> Tensor:
        """One number per caption's meaning, 120 in all."""
        return (self.item * len(COLOURS) + self.colour) * len(SIZES) + self.size


def asked_of(kinds: Tensor) -> Asked:
    """The other way round of :attr:`Asked.kind`."""
    rest, size = kinds // len(SIZES), kinds % len(SIZES)
    return Asked(rest // len(COLOURS), rest % len(COLOURS), size)


@dataclass(frozen=True)
class Captioned:
    """Captioned images of a data set.

    Args:
        name: ``mnist`` or ``fashion``.
        shared: the folder that holds it.
    """

    name: Name
    shared: Path

    @property
    def items(self) -> tuple[str, ...]:
        """Words of the ten classes."""
        return ITEMS[self.name][1]

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        with np.load(self.shared / ITEMS[self.name][0], allow_pickle=False) as file:
            return dict(file)

    def captions(self, asked: Asked, seed: int | None = None) -> list[str]:
        """A caption for each row: the first template, or with a seed one drawn for each."""
        which = torch.zeros(len(asked.item), dtype=torch.long)
        if seed is not None:
            draws = torch.Generator().manual_seed(seed)
            which = torch.randint(len(TEMPLATES), which.shape, generator=draws)
        rows = zip(*(part.tolist() for part in (which, *asked)), strict=True)
        return [
            TEMPLATES[k].format(item=self.items[item], colour=COLOURS[colour], size=SIZES[size])
            for k, item, colour, size in rows
        ]

    def vocabulary(self) -> list[str]:
        """Every word of a caption."""
        said = " ".join(TEMPLATES).replace(",", " ,").split()
        words = [*(word for word in said if "{" not in word), *SIZES, *COLOURS, *self.items]
        return list(dict.fromkeys(words))

    def draw(self, part: Part, count: int, seed: int) -> tuple[Tensor, Asked]:
        """Images ``(count, 32, 32, 3)`` of bytes: rows of a part in random order, as often as
        needed, in random colours and sizes.
        """
        split, rows = PARTS[part]
        grey, labels = (self._rows[f"{split}_{what}"][rows] for what in ("images", "labels"))
        draws = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(grey), generator=draws) for _ in range(-(-count // len(grey)))]
        chosen = torch.cat(orders)[:count]
        item = torch.from_numpy(labels)[chosen].long()
        colour, size = (
            torch.randint(len(of), (count,), generator=draws) for of in (COLOURS, SIZES)
        )
        images = paint(torch.from_numpy(grey)[chosen], colour, size, draws)
        return images, Asked(item, colour, size)

    def like(self, part: Part, asked: Asked, seed: int) -> Tensor:
        """Other images of a part, of what is asked: an item's rows in random order."""
        split, rows = PARTS[part]
        grey, labels = (self._rows[f"{split}_{what}"][rows] for what in ("images", "labels"))
        draws, chosen = torch.Generator().manual_seed(seed), torch.zeros_like(asked.item)
        for k in range(len(self.items)):
            places = (asked.item == k).nonzero()[:, 0]
            own = torch.from_numpy((labels == k).nonzero()[0])
            own = own[torch.randperm(len(own), generator=draws)]
            chosen[places] = own[torch.arange(len(places)) % len(own)]
        return paint(torch.from_numpy(grey)[chosen], asked.colour, asked.size, draws)


def paint(grey: Tensor, colour: Tensor, size: Tensor, draws: torch.Generator) -> Tensor:
    """Items ``(N, 28, 28)`` in colours and sizes, near the middle of ``(N, 32, 32, 3)`` bytes."""
    parts = []
    for image, side, shift in zip(
        grey.float().div(255).split(4096),
        torch.tensor(PIXELS)[size].split(4096),
        torch.tensor(SHIFTS)[size].split(4096),
        strict=True,
    ):
        low, high = box(image)
        middle, longer = (low + high) / 2, (high - low).amax(1)
        moved = (2 * torch.rand(len(image), 2, generator=draws) - 1) * shift[:, None]
        scale = longer / side  # pixels of the original per pixel
        centre = (middle - 14) / 14 - moved * scale[:, None] / 14
        theta = torch.zeros(len(image), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale * SIDE / 28
        theta[:, :, 2] = centre
        grid = functional.affine_grid(theta, [len(image), 1, SIDE, SIDE], align_corners=False)
        parts.append(functional.grid_sample(image[:, None], grid, align_corners=False)[:, 0])
    return _tinted(torch.cat(parts), colour, draws)


def _tinted(grey: Tensor, colour: Tensor, draws: torch.Generator) -> Tensor:
    spread, dark = (torch.rand(len(grey), generator=draws) for _ in range(2))
    hue = (colour / len(COLOURS) + HUE * (2 * spread - 1)) % 1
    value = 1 - (1 - VALUE) * dark
    tints = [colorsys.hsv_to_rgb(h, 1.0, v) for h, v in zip(hue.tolist(), value.tolist())]  # noqa: B905
    own = grey[..., None] * torch.tensor(tints)[:, None, None]
    return own.mul(255).round().to(torch.uint8)


def box(light: Tensor, least: float = BRIGHT) -> tuple[Tensor, Tensor]:
    """Corners ``(N, 2)``, x before y, of the boxes around what is brighter than ``least``; a box
    without anything is empty.
    """
    bright, size = light > least, light.shape[-1]
    found = torch.stack([bright.any(1), bright.any(2)], 1).to(torch.uint8)  # (N, x or y, places)
    low, high = found.argmax(2), size - found.flip(2).argmax(2)
    empty = ~bright.flatten(1).any(1)
    high[empty] = low[empty]
    return low.float(), high.float()


def read_colour(images: Tensor) -> Tensor:
    """The named colour whose hue is nearest to that of the bright pixels' mean."""
    x = images.float() / 255
    light = x.amax(3)
    weight = light * (light > BRIGHT)
    r, g, b = (x * weight[..., None]).sum((1, 2)).unbind(1)
    turn = torch.atan2(3**0.5 * (g - b), 2 * r - g - b) / (2 * torch.pi)
    return (turn * len(COLOURS)).round().long() % len(COLOURS)


def read_size(images: Tensor) -> Tensor:
    """Whether the longer side of the box around the bright pixels is that of a large item."""
    low, high = box(images.float().amax(3) / 255)
    return ((high - low).amax(1) > BETWEEN).long()


class Judge:
    """Says of images what they show, and how far they are from real ones.

    Args:
        data: captioned images.
        path: where the classifier is, or is put once it is trained.
    """

    def __init__(self, data: Captioned, path: Path) -> None:
        self.data = data
        self.features = ClassifierFeatures((3, SIDE, SIDE), len(data.items))
        if not path.exists():
            count = ROUNDS * 20_000
            images, asked = data.draw("judge", count, 77)
            trained = train_classifier(states(images), asked.item, len(data.items))
            write_tensors(path, trained.state_dict())
        self.features.load_state_dict(read_tensors(path)[0])
        self.features.requires_grad_(False).eval()

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Asked, Tensor]:
        """What images show, and their features."""
        found = extract(states(images), self.features)
        return Asked(
            self.features.head(found.float()).argmax(1), read_colour(images), read_size(images)
        ), found

    def __call__(
        self, images: Tensor | np.ndarray, asked: Asked, seed: int = 0
    ) -> dict[str, float]:
        """Shares of images ``(N, 32, 32, 3)`` of bytes that are as asked, their Frechet distance
        beside its floor, and their diversity within a caption over that of real images.
        """
        images = torch.as_tensor(images)
        seen, own = self.read(images)
        right = [a == b for a, b in zip(seen, asked, strict=True)]
        names = ("class", "colour", "size")
        row = {name: float(r.double().mean()) for name, r in zip(names, right, strict=True)}
        row["all"] = float(torch.stack(right).all(0).double().mean())
        real, other = (self.data.like("real", asked, 1000 + 2 * seed + k) for k in (0, 1))
        reference, floor = (extract(states(x), self.features) for x in (real, other))
        row["frechet"] = frechet_distance(own, reference, torch.nn.Identity())
        row["floor"] = frechet_distance(floor, reference, torch.nn.Identity())
        row["frechet over floor"] = row["frechet"] / row["floor"]
        row["diversity"] = spread(own, asked) / spread(reference, asked)
        row["pixel diversity"] = spread(images, asked) / spread(real, asked)
        return row


def spread(x: Tensor, asked: Asked) -> float:
    """Mean distance of two samples of the same caption."""
    flat, kinds = x.flatten(1).float(), asked.kind
    groups: Sequence[Tensor] = [flat[kinds == kind] for kind in kinds.unique()]
    return float(torch.cat([torch.pdist(own) for own in groups if len(own) > 1]).mean())


def states(images: Tensor) -> Tensor:
    """Bytes ``(N, H, W, 3)`` as ``(N, 3, H, W)`` in [-1, 1]."""
    return images.movedim(3, 1).float().div(127.5).sub(1).contiguous()

"""A small classifier of the data's own classes as a feature extractor: it knows what matters in
this data, and needs no foreign weights.

It is trained once on the validation split and its labels, which nothing that it judges is trained
on (on the training split, if the validation split has fewer than 2,000 rows or lacks a class), and
kept in a cache (``$BEZIERDISTILL_CACHE``, or ``~/.cache/bezierdistill``). The features are the
activations before the last layer, as in the Frechet distance of Heusel et al. 2017 (arXiv
1706.08500); accuracy of a classifier on labelled samples is a measure of class-conditional
generation (Ravuri & Vinyals 2019, arXiv 1905.10887, in reverse).

The recipe is fixed: own seed, own generator, one thread, so the weights are a function of the data
and the machine's arithmetic. Their digest stands in every protocol: figures compare only where it
is equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.data.base import Data, Split
from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors, write_tensors
from bezierdistill.memory import batch_size
from bezierdistill.metrics.features import weights_digest
from bezierdistill.noise import Stream, generator
from bezierdistill.progress import progress

RECIPE = 3  # counts changes of what follows that change weights
SEED = 20_261_016  # its own: no run has it by default
STEPS, EPOCHS, BATCH, RATE, FEATURES = 2500, 60, 128, 3e-3, 96
MAX_ROWS, MIN_VALID = 100_000, 2_000
LARGE = 14  # pixels of a side


class ClassifierFeatures(nn.Module):
    """``features(x)``: states ``(B, *shape)`` to ``(B, 96)``; :func:`classifier_features` gives a
    trained one.

    Args:
        shape: shape of a state: an image ``(C, H, W)`` or a vector ``(D,)``.
        classes: number of classes.

    Attributes:
        accuracy: share of the data's held-out split that is classified right; NaN before training.
        split: the split that it was trained on; None before training.
    """

    name = "classifier"
    num_features = FEATURES

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            if len(shape) == 3:
                self.body = _convolutions(shape)
            else:
                self.body = nn.Sequential(nn.Linear(math.prod(shape), 128), nn.ReLU())
            self.last = nn.Linear(self.body(torch.zeros(1, *shape)).shape[1], FEATURES)
            self.head = nn.Linear(FEATURES, classes)
        self.shape, self.accuracy = shape, math.nan
        self.split: Split | None = None

    @property
    def digest(self) -> str:
        """See :func:`~bezierdistill.metrics.features.weights_digest`."""
        return weights_digest(self)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, 96)``, none negative.

        Raises:
            UserError: if the states have another shape than the classifier's.
        """
        if tuple(x.shape[1:]) != self.shape:
            told = f"the classifier got states of shape {tuple(x.shape[1:])}"
            raise UserError(f"{told}, expected {self.shape}")
        rows = batch_size(self.shape, self.head.weight.device.type)
        parts = x.to(self.head.weight).split(rows)
        return torch.cat([self.last(self.body(part)).relu() for part in parts])

    def logits(self, x: Tensor) -> Tensor:
        """Logarithms of unnormalised probabilities of the classes, ``(B, classes)``."""
        return self.head(self(x))


def _convolutions(shape: tuple[int, ...]) -> nn.Sequential:
    """Three convolutions, the last at a quarter of the size (or half), averaged over 4x4 places."""
    widths, strides = (shape[0], 32, 64, 96), (2 if min(shape[1:]) >= LARGE else 1, 2, 1)
    layers: list[nn.Module] = []
    for k, (inside, outside, stride) in enumerate(zip(widths, widths[1:], strides, strict=False)):
        size = 3 if k else 5
        layers += [nn.Conv2d(inside, outside, size, stride, size // 2)]
        layers += [nn.GroupNorm(outside // 8, outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())


def labels_of(data: Data, count: int, seed: int, split: Split) -> Tensor:
    """Class labels ``(count,)`` of the states that ``data.real`` gives.

    Raises:
        UserError: if the data has no class labels.
    """
    given = data.conditions(count, seed, split) if data.classes else None
    if given is None:
        raise UserError(f"{data.name} has no class labels, which a classifier needs")
    return given.argmax(1)


def classifier_features(data: Data) -> ClassifierFeatures:
    """The classifier of a data set: read from the cache, or trained (one to two minutes for 28x28
    images on one thread) and kept there.

    Raises:
        UserError: if the data has no class labels.
    """
    split = training_split(data)
    (x, labels), (test, test_labels) = _labelled(data, split), _labelled(data, "test")
    path = cache_folder() / f"classifier-{_key(x, labels, test, test_labels)}.safetensors"
    extractor = ClassifierFeatures(data.shape, data.classes)
    extractor.requires_grad_(False).eval()
    extractor.split = split
    with contextlib.suppress(ValueError, RuntimeError, KeyError):  # none, or damaged: it is trained
        tensors, notes = read_tensors(path)
        extractor.load_state_dict(tensors)
        if extractor.digest == notes["digest"]:
            extractor.accuracy = float(notes["accuracy"])
            return extractor
    extractor = train_classifier(x, labels, data.classes)
    extractor.split = split
    with torch.no_grad():
        right = extractor.logits(test).argmax(1) == test_labels
    extractor.accuracy = float(right.double().mean())
    notes = {"digest": extractor.digest, "accuracy": repr(extractor.accuracy)}
    with contextlib.suppress(OSError):  # a folder that cannot be written costs the next call time
        write_tensors(path, extractor.state_dict(), notes)
    return extractor


def train_classifier(x: Tensor, labels: Tensor, classes: int) -> ClassifierFeatures:
    """Train on states ``(N, *shape)`` and labels ``(N,)``: AdamW with one cycle of the rate, images
    shifted by a pixel or two.

    It takes 2500 steps of 128 rows, or 60 epochs if they are fewer.
    """
    steps = min(STEPS, EPOCHS * math.ceil(len(x) / BATCH))
    extractor = ClassifierFeatures(tuple(x.shape[1:]), classes)
    optimizer = torch.optim.AdamW(extractor.parameters(), RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    draws = generator(SEED, Stream.JUDGE)
    rows = _epochs(len(x), draws)
    with _one_thread(), torch.enable_grad(), progress("classifier", steps) as advance:
        for _ in range(steps):
            chosen = next(rows)
            logits = extractor.logits(_shifted(x[chosen], draws))
            loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            advance(1)
    return extractor.requires_grad_(False).eval()


def _epochs(count: int, draws: torch.Generator) -> Iterator[Tensor]:
    """Batches of distinct rows, from a new order after every whole pass over the rows."""
    while True:
        order = torch.randperm(count, generator=draws)
        yield from order[: max(count // BATCH * BATCH, min(count, BATCH))].split(BATCH)


def _shifted(x: Tensor, draws: torch.Generator) -> Tensor:
    """A batch of images moved by a few pixels, all alike; vectors and small images as they are."""
    if x.ndim == 2 or min(x.shape[2:]) < LARGE:
        return x
    most = max(1, min(x.shape[2:]) // 28)
    down, right = torch.randint(2 * most + 1, (2,), generator=draws).tolist()
    x, (height, width) = functional.pad(x, (most,) * 4, mode="replicate"), x.shape[2:]
    return x[..., down : down + height, right : right + width]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: with several threads the weights would depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def training_split(data: Data) -> Split:
    """The split that the classifier is trained on (module docstring).

    Raises:
        UserError: if the data has no class labels.
    """
    if (data.count("valid") or MAX_ROWS) >= MIN_VALID:
        labels = _labelled(data, "valid")[1]
        if len(labels.unique()) == data.classes:
            return "valid"
    return "train"


def _labelled(data: Data, split: Split) -> tuple[Tensor, Tensor]:
    count = min(data.count(split) or MAX_ROWS, MAX_ROWS)
    return data.real(count, SEED, split), labels_of(data, count, SEED, split)


def _key(*tensors: Tensor) -> str:
    found = hashlib.sha256(f"recipe {RECIPE}".encode())
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:32]


def cache_folder() -> Path:
    """``$BEZIERDISTILL_CACHE``, ``~/.cache/bezierdistill``; a temporary folder without a home."""
    given = os.environ.get("BEZIERDISTILL_CACHE")
    try:
        return Path(given or "~/.cache/bezierdistill").expanduser()
    except RuntimeError:  # no $HOME, and a user id that the system does not know
        return Path(tempfile.gettempdir()) / f"bezierdistill-{getattr(os, 'getuid', int)()}"

"""From a word to a feature extractor. Any module that follows :mod:`~bezierdistill.metrics.features` can stand in for these in Python."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from bezierdistill.data import Data
from bezierdistill.metrics.classifier import classifier_features
from bezierdistill.metrics.features import RandomFeatures
from bezierdistill.metrics.squeezenet import SqueezeNetFeatures


def load_extractor(text: str, data: Data) -> nn.Module:
    """The extractor called ``random``, ``classifier`` or ``squeezenet:PATH`` for a data set.

    Raises:
        ValueError: if there is no such extractor, or it does not suit the data.
    """
    if text == "random":
        return RandomFeatures(math.prod(data.shape))
    if text == "classifier":
        return classifier_features(data)
    path = text.removeprefix("squeezenet:")
    if path in ("", text):
        raise ValueError(f"no extractor called {text[:200]!r}: expected random, classifier or squeezenet:PATH with the .npz of its weights")
    if len(data.shape) != 3 or data.shape[0] not in (1, 3) or data.scaling.low is None or data.scaling.high is None:
        raise ValueError(f"{data.name} holds states of shape {data.shape}, expected images of bytes, grey or RGB, for SqueezeNet")
    return SqueezeNetFeatures(Path(path))

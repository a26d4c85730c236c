"""From a word to a feature extractor. Any module that follows
:mod:`~bezierdistill.metrics.features` can stand in for these in Python.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.metrics.classifier import classifier_features
from bezierdistill.metrics.dino import DinoFeatures
from bezierdistill.metrics.features import RandomFeatures
from bezierdistill.metrics.inception import InceptionFeatures
from bezierdistill.metrics.squeezenet import SqueezeNetFeatures
from bezierdistill.objects import find_function, is_object

BY_WEIGHTS: dict[str, type[nn.Module]] = {
    "squeezenet": SqueezeNetFeatures,
    "inception": InceptionFeatures,
    "dino": DinoFeatures,
}


def load_extractor(text: str, data: Data) -> nn.Module:
    """The extractor called ``random``, ``classifier``, ``squeezenet:PATH``, ``inception:PATH`` or
    ``dino:FOLDER`` for a data set, or one of the user's own.

    ``FILE.py:function`` is a function of a Python file (by default ``extractor``) that takes the
    data and returns a module.

    Raises:
        UserError: if there is no such extractor, or it does not suit the data.
    """
    if text == "random":
        return RandomFeatures(math.prod(data.shape))
    if text == "classifier":
        return classifier_features(data)
    if is_object(text):
        does = "takes the data and returns a module from states to features"
        found: Any = find_function(text, "extractor", does)
        module = found if isinstance(found, nn.Module) else found(data)
        if not isinstance(module, nn.Module):
            told = f"{text} made a {type(module).__name__}"
            raise UserError(f"{told}, expected a torch module from states to features")
        return module
    kind, _, path = text.partition(":")
    if kind not in BY_WEIGHTS or not path:
        told = f"no extractor called {text[:200]!r}: expected random, classifier, squeezenet:PATH,"
        raise UserError(f"{told} inception:PATH, dino:FOLDER or FILE.py:function")
    bounded = None not in (data.scaling.low, data.scaling.high)
    if len(data.shape) != 3 or data.shape[0] not in (1, 3) or not bounded:
        told = f"{data.name} holds states of shape {data.shape}"
        raise UserError(f"{told}, expected images of bytes, grey or RGB, for {kind}")
    return BY_WEIGHTS[kind](Path(path))

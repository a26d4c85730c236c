"""From samples in memory to three disjoint splits.

Where there is no test split, a quarter is held out; where there is no validation split, an eighth
of the training split (each at most 10,000, by a fixed seed).
"""

from __future__ import annotations

import numpy as np

from bezierdistill.data.base import ArrayData, Split
from bezierdistill.data.reading import Samples
from bezierdistill.data.scaling import BLANK, Scaling
from bezierdistill.errors import UserError

MAX_HELD_OUT, MIN_SAMPLES = 10_000, 64


def array_data(name: str, found: Samples, scaling: Scaling | None = None) -> ArrayData:
    """Samples as a data set, whose scaling is measured if it is not known.

    Raises:
        UserError: if they are too few, or of several shapes.
    """
    x: dict[Split, np.ndarray] = dict(found.x)
    given = dict(found.given)
    first = x["train"]
    texts = first.dtype.kind == "U"
    if len(first) < MIN_SAMPLES or (first.ndim < 2 and not texts):
        told = f"{name} holds samples of shape {first.shape}"
        raise UserError(f"{told}, expected (N, ...) with N of {MIN_SAMPLES} or more")
    for split, array in x.items():
        if array.shape[1:] != first.shape[1:]:
            told = f"training samples of shape {first.shape[1:]} and {split} ones of"
            raise UserError(f"{name} has {told} {array.shape[1:]}, expected one shape")
    if texts:  # of one length, one alphabet, and without blanks at the end
        longest = np.result_type(*x.values())
        x.update({s: np.char.rstrip(own, BLANK).astype(longest) for s, own in x.items()})
        first = np.concatenate(list(x.values()))
    hold_out(x, given)
    scaling = scaling or Scaling.measure(first if texts else x["train"])
    if found.alphabet:
        scaling = Scaling.tokens(scaling.alphabet + found.alphabet)
    return ArrayData(
        name, x["train"], x["valid"], x["test"], scaling, given, found.names, found.problem
    )


def hold_out(*arrays: dict[Split, np.ndarray]) -> None:
    """Move shares of the training rows of arrays to the splits that are not there."""
    _move("test", 1 / 4, *arrays)
    _move("valid", 1 / 8, *arrays)


def _move(split: Split, share: float, *arrays: dict[Split, np.ndarray]) -> None:
    if split in arrays[0]:
        return
    count = len(arrays[0]["train"])
    order = np.random.default_rng(0).permutation(count)
    held = min(int(share * count), MAX_HELD_OUT)
    for own in arrays:
        if own:
            rows = own["train"]
            own[split], own["train"] = rows[np.sort(order[:held])], rows[np.sort(order[held:])]

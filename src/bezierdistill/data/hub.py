"""Data of the Hugging Face hub, and folders in its formats, by the library ``datasets``; its tables
are mapped into memory, not loaded. No code of a data set is run.

``hf:OWNER/NAME[:SPLIT]`` is a data set of the hub (``hf:OWNER/NAME/CONFIG`` one of several that it
has), ``hf:./FOLDER[:SPLIT]`` a folder of Parquet, CSV, JSON or image files, or one that
``save_to_disk`` wrote.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import numpy as np

from bezierdistill.data.items import LABEL_KEYS, X_KEYS, find_key
from bezierdistill.errors import UserError

HUB = "hf:"
SOURCE = re.compile(r"hf:(?P<path>[^:]+)(:(?P<split>.+))?")
DISK = ("dataset_dict.json", "state.json")


class Columns(NamedTuple):
    """Where a table has samples and labels, the number type of samples, and names of classes."""

    key: str
    labels: str | None
    dtype: str | None
    names: tuple[str, ...]
    left: tuple[str, ...]

    def problem(self, name: str) -> str:
        """Why labels that may be there cannot be used; empty if some are found."""
        told = f"{name} has no labels, only {', '.join(self.left)[:200]}: name them by @labels=NAME"
        return told if self.labels is None and self.left else ""


def load_hub(name: str) -> Any:
    """The tables by split, or the one of the split that is asked for.

    Raises:
        UserError: if there are none, or ``datasets`` is not installed.
    """
    match = SOURCE.fullmatch(name)
    if match is None:
        raise UserError(f"no data {name[:200]!r}, expected hf:OWNER/NAME, or hf:./FOLDER")
    try:
        import datasets.exceptions
    except ImportError:
        told = f"{name} needs the library datasets, which is not installed"
        raise UserError(f"{told}: pip install 'bezierdistill[hub]'") from None
    path, split = os.path.expanduser(match["path"]), match["split"]
    config = None
    if os.path.isdir(path) or path.startswith((".", "/")):
        if not os.path.isdir(path):
            raise UserError(f"no folder {path}: expected one of data files for {name}")
    elif path.count("/") == 2:
        path, _, config = path.rpartition("/")
    try:
        if any(os.path.exists(os.path.join(path, file)) for file in DISK):
            found: Any = datasets.load_from_disk(path)
            return found if split is None else found[split]
        return datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name} cannot be loaded ({type(error).__name__}: {told}): expected a data set that"
            " is on the hub or in your cache, or hf:./FOLDER"
        ) from None


def is_table(data: Any) -> bool:
    """Whether an object is a data set of ``datasets`` with columns that are known."""
    known = getattr(data, "features", None) is not None and hasattr(data, "column_names")
    transformed = (getattr(data, "format", None) or {}).get("type") == "custom"
    return known and not transformed


def find_columns(data: Any, key: str | None, labels: str | None, name: str) -> Columns:
    """Where a table has samples and labels: as asked for, by usual names, or the only column of
    images and of class labels.

    Raises:
        UserError: if there is no such column, or none is found.
    """
    features = dict(data.features)
    place = find_key(list(features), X_KEYS, key, name) or _only(features, "Image")
    if place is None:
        told = f"{name} has the columns {', '.join(features)[:200]}"
        raise UserError(f"{told}, expected image, x or another usual name, or @key=NAME")
    label = find_key(list(features), LABEL_KEYS, labels, name) or _only(features, "ClassLabel")
    names = tuple(getattr(features.get(label), "names", None) or ())
    inner = features[place]
    while hasattr(inner, "feature"):
        inner = inner.feature
    image = type(inner).__name__ == "Image"
    left = tuple(column for column in features if column not in (place, label))
    return Columns(place, label, None if image else getattr(inner, "dtype", None), names, left)


def _only(features: dict[str, Any], kind: str) -> str | None:
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    return found[0] if len(found) == 1 else None


def read_table(data: Any, columns: Columns) -> tuple[Any, np.ndarray | None]:
    """A map-style table of the columns that are used, and its labels if they are one by one."""
    labels = None
    if columns.labels is not None:
        column = data.select_columns([columns.labels]).with_format("numpy")[:][columns.labels]
        if isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "uibU":
            labels = column
    vectors = [columns.labels] if columns.labels is not None and labels is None else []
    items = data.select_columns(list({columns.key: None, **dict.fromkeys(vectors)}))
    return items if columns.dtype is None else items.with_format("numpy"), labels

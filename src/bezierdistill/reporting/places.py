"""A page is made to be shared: of absolute paths it tells the names alone, so that it says nothing
of whose machine it was made on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# What begins a path, which may follow another in a list, and the folders up to its name.
FOLDER = r"(?:[^/\s'\",;:]|[,;:](?!/))+"
FOLDERS = re.compile(rf"(?<![^\s'\"=,;:()\[\]])(?:~|(?:\.\./)*\.\.)?(?:/{FOLDER})*/(?=[^/\s])")


def without_places(folder: Path, told: Iterable[Any]) -> Callable[[str], str]:
    """A function that leaves out the folders of absolute paths in a text.

    Args:
        folder: the run's own.
        told: settings and records, whose paths may have spaces.
    """
    known = {folder.resolve().parent, Path.cwd(), Path.home()}
    known |= {Path(text).parent for own in told for text in _texts(own) if text.startswith("/")}
    places = sorted({f"{place}/" for place in known if place != Path("/")}, key=len, reverse=True)

    def shown(text: str) -> str:
        for place in places:
            text = text.replace(place, "")
        return FOLDERS.sub("", text)

    return shown


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for own in value.values():
            yield from _texts(own)
    elif isinstance(value, list | tuple):
        for own in value:
            yield from _texts(own)

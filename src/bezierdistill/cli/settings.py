"""``--config``: a YAML file of settings, which stands for the flags that would give them.

Nobody vouches for the file. It holds names and plain values: no alias (a few lines of which stand
for billions of values), nothing deeper than settings ever are. A value is written as text, and read
as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bezierdistill.errors import UserError

MAX_BYTES, MAX_DEPTH = 2**18, 20


def read_flags(path: Path) -> list[str]:
    """The flags that a settings file stands for: ``--loop.lr=0.001``.

    Raises:
        UserError: if it is larger or deeper than settings are, has an alias, or no names of values.
        OSError: if it cannot be read.
    """
    depth = 0
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"more than {MAX_BYTES:,} bytes")
        for event in yaml.parse(content, yaml.BaseLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"an alias *{event.anchor[:40]}, expected the value written out")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"values nested more than {MAX_DEPTH} deep")
        settings = yaml.load(content, yaml.BaseLoader)  # which makes text of every value
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path} holds no settings in YAML: {error}") from None
    if not isinstance(settings, dict) or "config" in settings:
        raise UserError(f"{path} holds no settings, expected lines of option: value")
    return list(_flags(settings, "--"))


def _flags(settings: dict[str, Any], start: str) -> Iterator[str]:
    for name, value in settings.items():
        flag = f"{start}{name}".replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(value, f"{flag}.")
        elif isinstance(value, list) and value:
            yield from (flag, *map(_text, value))
        else:
            yield f"{flag}={_text(value)}"


def _text(value: Any) -> str:
    """A value, or a row of several, as it is written in a flag."""
    return ":".join(map(_text, value)) if isinstance(value, list) else str(value)

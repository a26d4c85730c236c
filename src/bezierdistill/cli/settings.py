"""YAML that nobody vouches for: what a settings file or a flag may hold, before it is turned into
settings.

A value is plain data: nothing that names a class to build or a file to include, no alias (a few
lines of which stand for billions of values), and no deeper than settings ever are. Tags that would
build Python objects are unknown to the loader underneath.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from bezierdistill.errors import UserError

MODE = "plain"  # of the parser: its values are read by :func:`load_plain`
MOST_BYTES, MOST_DEPTH = 2**18, 20
BUILDERS = {"class_path", "init_args", "dict_kwargs", "__path__", "__default_config__"}


def register_loader() -> None:
    """Make :data:`MODE` known to jsonargparse."""
    set_loader(MODE, load_plain, (yaml.YAMLError, ValueError))


def load_plain(text: str) -> Any:
    """The value of a YAML text of plain data.

    Raises:
        UserError: if it is too large or deep, has an alias or a key that builds something, or is
            no YAML.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"settings have {len(text):,} characters, expected {MOST_BYTES:,} or fewer")
    depth = 0
    try:
        for event in yaml.parse(
            text, yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader
        ):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(
                    f"settings have an alias *{event.anchor[:40]}, expected the value written out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if depth > MOST_DEPTH:
                raise UserError(
                    f"settings are nested more than {MOST_DEPTH} deep, expected names and values"
                )
        value = get_loader("yaml")(text)
    except (
        TypeError,
        LookupError,
        RecursionError,
        AttributeError,
    ) as error:  # of values that pass for YAML but make no Python value
        raise UserError(f"settings cannot be read as YAML: {error}") from None
    _refuse_builders(value)
    return value


def _refuse_builders(value: Any) -> None:
    if isinstance(value, dict):
        found = BUILDERS & {str(key).rpartition(".")[2] for key in value}
        if found:
            raise UserError(
                f"settings have the key {sorted(found)[0]}, expected names of options: nothing is"
                " built by name"
            )
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        _refuse_builders(part)


def check_file(arguments: Sequence[str]) -> None:
    """Refuse a ``--config`` file that holds no settings, before the parser reads all of it.

    Raises:
        UserError: if it is larger than settings are, no text, or no mapping.
        OSError: if it cannot be read.
    """
    for k, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != "--config" or not (equals or k + 1 < len(arguments)):
            continue
        path = Path(value if equals else arguments[k + 1])
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(
                f"{path} has more than {MOST_BYTES:,} bytes, expected a YAML file of settings"
            )
        try:
            settings = load_plain(content.decode())
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path} holds no settings: {error}") from None
        if not isinstance(settings, dict):
            raise UserError(
                f"{path} holds a {type(settings).__name__}, expected YAML of option: value"
            )

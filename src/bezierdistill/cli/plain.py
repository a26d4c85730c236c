"""YAML that nobody vouches for: what a settings file or a flag may hold.

A value is plain data: no alias (a few lines of which stand for billions of values), and no deeper
than settings ever are. The loader underneath knows no tags that build Python objects, and no
setting is a class that is named by text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, get_loader, set_loader

from bezierdistill.errors import UserError

MODE = "plain"  # of the parser: its values are read by :func:`load_plain`
MAX_CHARACTERS, MAX_DEPTH = 2**18, 20


def load_plain(text: str) -> Any:
    """The value of a YAML text of plain data.

    Raises:
        UserError: if it is too large or deep, has an alias, or makes no value.
        YAMLError: if it is no YAML.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{len(text):,} characters, expected {MAX_CHARACTERS:,} or fewer")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"an alias *{event.anchor[:40]}, expected the value written out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"nested more than {MAX_DEPTH} deep, expected names and values")
    try:
        return get_loader("yaml")(text)
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"no value ({error}), expected one in YAML") from None  # !!int x


class PlainConfigFile(ActionConfigFile):
    """``--config``: a YAML file of settings, looked at before the parser reads it.

    Raises:
        UserError: if it is larger than settings are, no text, or no mapping.
        OSError: if it cannot be read.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        with open(values, "rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
        try:
            settings = load_plain(content.decode())
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{values} holds no settings: {error}") from None
        if not isinstance(settings, dict):
            raise UserError(
                f"{values} holds a {type(settings).__name__}, expected YAML of option: value"
            )
        super().__call__(parser, cfg, str(Path(values)), option_string)


set_loader(MODE, load_plain, (yaml.YAMLError, ValueError))

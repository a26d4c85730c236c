"""What ``--help`` prints, worked out from a settings class: a verb's use, examples, and every
option with its default.

The class says in its docstring what the verb does, in the block ``Example::`` how it is called, in
``Args`` what each option means.
"""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring

NARROWEST, WIDEST, INDENT = 60, 120, 28  # columns
CALL = "bezierdistill "  # how an example begins
NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{true,false}"}
JSON = "print the result as one JSON value on standard output, and nothing else there"
SHARED = {
    "--config PATH": "YAML file of settings; flags given after it win",
    "--print_config": "print all settings as YAML and exit",
}


def summary(config: type) -> str:
    """The first line of a settings class."""
    return (config.__doc__ or "").strip().splitlines()[0]


def examples(config: type) -> list[str]:
    """The commands in its docstring."""
    return [
        line.strip()
        for line in (config.__doc__ or "").splitlines()
        if line.strip().startswith(CALL)
    ]


def texts(config: type) -> dict[str, str]:
    """What its docstring says of every option, by name."""
    found = {
        param.arg_name: param.description or ""
        for param in parse_docstring(config.__doc__ or "").params
    }
    return {
        name: " ".join(text.replace("``", "").split()).removesuffix(".")
        for name, text in found.items()
    }


def describe(verb: str, config: type, gives: bool) -> str:
    """The help of a verb.

    Args:
        verb: as it is spelt, such as ``store info``.
        config: its settings class.
        gives: whether it has a result, which ``--json`` prints.
    """
    parsed = parse_docstring(config.__doc__ or "")
    more = (parsed.long_description or "").partition("Example::")[0].strip()
    needed = [
        _spelt(field, kind, "")
        for field, kind in _fields(config)
        if _default(field) is dataclasses.MISSING
    ]
    shared = SHARED | ({"--json": f"{JSON} (default: off)"} if gives else {})
    parts = [
        _filled(f"usage: bezierdistill {' '.join([verb, *needed])} [options]", "       "),
        *map(_filled, [summary(config), *more.split("\n\n")] if more else [summary(config)]),
        "\n".join(["example:", *(f"  {line}" for line in examples(config))]),
        *(f"{title}:\n{_table(rows)}" for title, rows in _groups(config)),
        f"common options:\n{_table({**shared, '-h, --help': 'print this'})}",
    ]
    return "\n\n".join(parts) + "\n"


def overview(call: str, about: str, groups: Mapping[str, Mapping[str, str]]) -> str:
    """The help of a command that is a group of others.

    Args:
        call: how one of them is called.
        about: what they are about.
        groups: a line for each of them, by groups.
    """
    indent = max(len(name) for verbs in groups.values() for name in verbs) + 4
    listed = "\n\n".join(f"{title}:\n{_table(verbs, indent)}" for title, verbs in groups.items())
    return f"""usage: {call} [options]

{about}

{listed}

{call} --help lists every option with its default, and has examples.
Flags take dashes or underscores. bezierdistill --version prints the version.
"""


def _groups(config: type) -> Iterator[tuple[str, dict[str, str]]]:
    """The options of a settings class, then those of every settings class in it, each with its
    text.
    """
    inner = [(field, kind) for field, kind in _fields(config) if dataclasses.is_dataclass(kind)]
    rows = dict(_rows(config, None, ""))
    if rows:
        yield "options", rows
    for field, kind in inner:
        assert isinstance(kind, type)
        assert callable(field.default_factory)
        yield (
            texts(config)[field.name],
            dict(_rows(kind, field.default_factory(), f"{field.name}.")),
        )


def _rows(config: type, values: Any, group: str) -> Iterator[tuple[str, str]]:
    told = texts(config)
    for field, kind in _fields(config):
        if dataclasses.is_dataclass(kind):
            continue
        default = _default(field) if values is None else getattr(values, field.name)
        note = (
            "required"
            if default is dataclasses.MISSING
            else f"default: {_shown(default, bool(group))}"
        )
        yield _spelt(field, kind, group), f"{told[field.name]} ({note})"


def _fields(config: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    kinds = get_type_hints(config)
    for field in dataclasses.fields(config):
        yield field, kinds[field.name]


def _default(field: dataclasses.Field[Any]) -> Any:
    return (
        field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    )


def _shown(default: object, nested: bool) -> str:
    if isinstance(default, bool):
        return str(default).lower() if nested else ("on" if default else "off")
    return "none" if default is None else str(default)


def _spelt(field: dataclasses.Field[Any], kind: Any, group: str) -> str:
    """A flag and what it takes: ``--steps INT``."""
    flag = "" if "positional" in field.metadata else f"--{group}{field.name} "
    return (
        flag.strip()
        if kind is bool and not group
        else f"{flag}{_taken(field.name, kind, bool(flag))}"
    )


def _taken(name: str, kind: Any, flagged: bool) -> str:
    parts = (
        [part for part in get_args(kind) if part is not NoneType]
        if get_origin(kind) is not Literal
        else []
    )
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    if get_origin(kind) is tuple:
        word = NAMES[parts[0]] if flagged else name.upper()
        return f"{word} [{word} ...]"
    word = _taken(name, parts[0], flagged) if parts else NAMES[kind]
    return word if flagged else name.upper()


def _columns() -> int:
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns)) - 1


def _filled(text: str, indent: str = "") -> str:
    """A paragraph; words stay whole, so that what is to be copied can be."""
    return textwrap.fill(
        " ".join(text.split()),
        _columns(),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(rows: Mapping[str, str], indent: int = INDENT) -> str:
    lines = []
    for name, text in rows.items():
        head, gap = f"  {name}", " " * indent
        filled = textwrap.fill(
            text,
            _columns(),
            initial_indent=gap,
            subsequent_indent=gap,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(
            f"{head.ljust(indent)}{filled[indent:]}"
            if len(head) < indent - 1
            else f"{head}\n{filled}"
        )
    return "\n".join(lines)

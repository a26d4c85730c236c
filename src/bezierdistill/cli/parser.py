"""From arguments to settings: every field of a verb's settings class is an option.

Jsonargparse reads flags and YAML files. What it lacks is here: flags with dashes, values that begin
with a minus, the texts under fields, and fields that are written as
:class:`~bezierdistill.settings.Text`.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from bezierdistill.cli.plain import MODE, PlainConfigFile
from bezierdistill.cli.verbs import GROUPS, SILENT, VERBS, Verb, read_help
from bezierdistill.errors import UserError

NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{true,false}"}
MINUS = re.compile(r"-\.?\d")  # a value that begins so is no flag; as in Python 3.14
JSON = "print the result as one JSON value on standard output, and nothing else there"


class Request(NamedTuple):
    """What a command line asks for."""

    verb: Verb
    config: Any
    json: bool


class Formatter(DefaultHelpFormatter):
    """Paragraphs as they are written, and words whole, so that what is to be copied can be."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._width = min(self._width, 118)

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or ""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(
            part if "\n  " in part else "\n".join(self._split_lines(part, width)) for part in parts
        )


def listing(start: str = "") -> str:
    """The verbs with a line each, in the order of the work.

    Args:
        start: how the names of the verbs begin that are listed, such as ``store``.
    """
    lines = []
    for title, verbs in GROUPS.items():
        rows = [f"  {n:<14}{VERBS[n].help.summary}" for n in verbs if n.startswith(start)]
        lines += [f"{title}:", *rows, ""] if rows else []
    return f"""usage: bezierdistill VERB [options]

Distil flow models along Bezier curves into one or two network passes.

{chr(10).join(lines)}
bezierdistill VERB --help lists every option with its default, and has examples.
Flags take dashes or underscores. bezierdistill --version prints the version.
"""


def build_parser() -> ArgumentParser:
    """The parser of all verbs, for the completion of shells."""
    parser, store = _new(prog="bezierdistill"), _new()
    verbs = parser.add_subcommands(required=True, dest="verb")
    verbs.add_subcommand("store", store, help="look at, check, join and exchange curve stores")
    actions = store.add_subcommands(required=True, dest="action")
    for verb in VERBS.values():
        group, name = actions if " " in verb.name else verbs, verb.name.rpartition(" ")[2]
        group.add_subcommand(name, verb_parser(verb), help=verb.help.summary)
    return parser


def _new(**settings: Any) -> ArgumentParser:
    return ArgumentParser(
        formatter_class=Formatter,
        parser_mode=MODE,
        print_config="--print-config",
        exit_on_error=False,
        allow_abbrev=False,
        **settings,
    )


def verb_parser(verb: Verb) -> ArgumentParser:
    """The options of a verb: the fields of its settings, and of settings within them."""
    told, config = verb.help, verb.config
    examples = "\n".join(["example:", *(f"  {line}" for line in told.examples)])
    parser = _new(
        prog=f"bezierdistill {verb.name}",
        description="\n\n".join([told.summary, *told.details, examples]),
        add_help=False,
    )
    parser._negative_number_matcher = MINUS
    needed = _add_options(parser, config, None, "", "options")
    parser.usage = " ".join(["%(prog)s", *needed, "[options]"])
    common = parser.add_argument_group("common options")
    config_help = "YAML file of settings; flags given after it win"
    setattr(common, "_print_config", parser._print_config)  # it comes with --config
    common.add_argument("--config", action=PlainConfigFile, metavar="PATH", help=config_help)
    printing = parser._option_string_actions["--print-config"]
    printing.metavar, printing.help = "", "print all settings as YAML and exit"
    if verb.name not in SILENT:
        common.add_argument("--json", action="store_true", help=JSON)
    common.add_argument("-h", "--help", action="help", help="print this")
    return parser


def _add_options(
    parser: ArgumentParser, config: type, values: Any, start: str, title: str
) -> list[str]:
    """Add a group of the fields of a settings class, then a group for each settings class in it.

    Returns:
        Flags that have no default, with what they take.
    """
    group, kinds, needed = parser.add_argument_group(title), get_type_hints(config), []
    told, inner = read_help(config).fields, []
    for field in fields(config):
        kind, text = kinds[field.name], told[field.name]
        default = _default(field) if values is None else getattr(values, field.name)
        if is_dataclass(kind):
            inner.append((kind, default, f"{start}{field.name}.", text))
            continue
        flag, how = _option(field, kind, start)
        if default is MISSING:
            note = "required"
            needed.append(f"{flag} {how['metavar']}" if flag.startswith("-") else how["metavar"])
            how |= {"required": True} if flag.startswith("-") else {}
        else:
            note = f"default: {_shown(default, field, start)}"
            how |= {"default": default}
        group.add_argument(flag, help=f"{text} ({note})", **how)
    for kind, default, name, text in inner:
        _add_options(parser, kind, default, name, text)
    return needed


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _option(field: Field[Any], kind: Any, start: str) -> tuple[str, dict[str, Any]]:
    """A flag, or the name of a positional argument, and how it is read."""
    place, many = "positional" in field.metadata, get_origin(kind) is tuple
    flag = field.name if place else f"--{start}{field.name}".replace("_", "-")
    if "text" in field.metadata:
        how = field.metadata["text"]
        return flag, {"type": _reader(how), "metavar": how.word}
    if kind is bool and not start:
        return flag, {"action": "store_true"}
    word = field.name.upper() if place else _word(kind)
    return flag, {
        "type": get_args(kind)[0] if many else kind,
        "metavar": word,
    } | ({"nargs": "+"} if many else {})


def _word(kind: Any) -> str:
    """What help calls a value of a type."""
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    parts = [part for part in get_args(kind) if part not in (NoneType, ...)]
    return _word(parts[0]) if parts else NAMES[kind]


def _shown(default: Any, field: Field[Any], start: str) -> str:
    if isinstance(default, bool):
        return str(default).lower() if start else ("on" if default else "off")
    if default is None or default == ():
        return "none"
    return field.metadata["text"].show(default) if "text" in field.metadata else str(default)


def _reader(how: Any) -> Callable[[Any], Any]:
    """What reads a :class:`~bezierdistill.settings.Text`, or the list that YAML has for it."""

    def flat(value: Any, between: str = ",") -> str:
        if isinstance(value, list | tuple):
            return between.join(flat(part, ":") for part in value)
        return str(value)

    def read(value: Any) -> Any:
        try:
            return how.parse(flat(value))
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def parse(arguments: Sequence[str]) -> Request:
    """What the arguments ask for; flags may have dashes or underscores.

    Raises:
        UserError: if they say nothing that is known, or settings do not fit together.
    """
    verb = find_verb(arguments)
    words = [_dashed(word) for word in arguments[len(verb.name.split()) :]]
    try:
        parsed = verb_parser(verb).parse_args(words)
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{error} (bezierdistill {verb.name} --help)") from None
    return Request(verb, _built(verb.config, parsed), bool(parsed.get("json")))


def find_verb(words: Sequence[str]) -> Verb:
    """The verb that a command line begins with.

    Raises:
        UserError: if there is none.
    """
    for count in (1, 2):
        if verb := VERBS.get(" ".join(words[:count])):
            return verb
    said = " ".join(words[:1] if words[0] != "store" else words[:2])
    raise UserError(f"no verb {said!r}, expected one that bezierdistill --help lists")


def _built(config: type, values: Any) -> Any:
    """Settings of what the parser read."""
    kinds, given = get_type_hints(config), {}
    for field in fields(config):
        value = values[field.name]
        if is_dataclass(kinds[field.name]):
            value = _built(kinds[field.name], value)
        given[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**given)


def _dashed(word: str) -> str:
    """``--keep_samples`` as the parser knows it; what follows an equals sign stays as it is."""
    flag, equals, value = word.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") else word

"""From arguments to settings: every field of a verb's settings class is an option.

Options are named and typed by the fields, and told by the texts under them. A value may begin with
a minus, flags may have dashes or underscores, and ``--config`` stands for the flags in its file.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

from bezierdistill.cli.settings import read_flags
from bezierdistill.cli.verbs import GROUPS, SILENT, VERBS, Verb, read_help
from bezierdistill.errors import UserError
from bezierdistill.settings import default_of
from bezierdistill.words import did_you_mean

NAMES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "{true,false}"}
NONE = ("none", "null", "~", "")  # here, and in YAML
MINUS = re.compile(r"-\.?\d")  # a value that begins so is no flag; as in Python 3.14
WIDEST = 120  # columns
JSON = "print the result as one JSON value on standard output, and nothing else there"
QUIET = "no bars or lines of progress on standard error; notices and errors are still told"


class Request(NamedTuple):
    """What a command line asks for; ``print_config`` asks for the settings alone."""

    verb: Verb
    config: Any
    json: bool
    quiet: bool
    print_config: bool


class Formatter(argparse.HelpFormatter):
    """Paragraphs as they are written, and words whole, so that what is to be copied can be."""

    def __init__(self, prog: str) -> None:
        width = min(WIDEST, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=30, width=width)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """A switch that is off needs no value; a list in one word is shown as one."""
        if action.const is True and action.default is False:
            return ""
        whole = action.nargs == "+" and "," in str(action.metavar)
        return str(action.metavar) if whole else super()._format_args(action, default_metavar)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(
            part if "\n  " in part else "\n".join(self._split_lines(part, width)) for part in parts
        )


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are the user's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **settings)
        self._negative_number_matcher = MINUS

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """A value ``--`` would be dropped, and leave none."""
        if action.option_strings and "--" in arg_strings:
            self.error(f"argument {action.option_strings[0]}: got '--', expected a value")
        return super()._get_values(action, arg_strings)

    def check_flags(self, words: Sequence[str]) -> None:
        """Raise ``UserError`` on a flag that is like one of the verb's, and none of them."""
        for word in words:
            flag, known = word.partition("=")[0], self._option_string_actions
            strange = flag.startswith("--") and flag != "--" and flag not in known
            if strange and (close := did_you_mean(flag, known)):
                self.error(f"unrecognized arguments: {word[:80]}{close}")

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError``."""
        raise UserError(f"{message} ({self.prog} --help)")


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


def build_parser() -> Parser:
    """The parser of all verbs, for the completion of shells."""
    parser = Parser(prog="bezierdistill")
    verbs = parser.add_subparsers()
    store = verbs.add_parser("store", help="look at, check, join and exchange curve stores")
    actions = store.add_subparsers()
    for verb in VERBS.values():
        group, name = actions if " " in verb.name else verbs, verb.name.split()[-1]
        _fill(group.add_parser(name, help=verb.help.summary, add_help=False), verb)
    return parser


def _fill(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """Add the options of a verb: the fields of its settings, and of settings within them."""
    told = verb.help
    examples = "\n".join(["example:", *(f"  {line}" for line in told.examples)])
    parser.description = "\n\n".join([told.summary, *told.details, examples])
    parser.epilog = verb.epilog
    needed = list(_add_options(parser, verb.config, None, "", "options"))
    parser.usage = " ".join(["%(prog)s", *needed, "[options]"])
    add = parser.add_argument_group("common options").add_argument
    add("--config", metavar="PATH", help="YAML file of settings; flags given after it win")
    add("--print-config", action="store_true", help="print all settings as YAML and exit")
    if verb.name not in SILENT:
        add("--json", action="store_true", help=JSON)
        add("--quiet", action="store_true", help=QUIET)
    add("-h", "--help", action="help", help="print this")


def _add_options(
    parser: argparse.ArgumentParser, config: type, values: Any, start: str, title: str
) -> Iterator[str]:
    """Add a group of a settings class's fields, then those of the settings in it; yields usage."""
    group, kinds, inner = parser.add_argument_group(title), get_type_hints(config), []
    for field in sorted(fields(config), key=lambda field: default_of(field) is not MISSING):
        kind, text = kinds[field.name], read_help(config).fields[field.name]
        default = default_of(field) if values is None else getattr(values, field.name)
        if is_dataclass(kind):
            inner.append((kind, default, f"{start}{field.name}.", text))
            continue
        name, options = _option(field, kind, start)
        if default is MISSING:
            note = "required"
            yield f"{name} {options['metavar']}" if name.startswith("-") else options["metavar"]
            options |= {"required": True} if name.startswith("-") else {}
        else:
            note = f"default: {_shown(default, field)}"
            options["default"] = default
        group.add_argument(name, help=f"{text} ({note})".replace("%", "%%"), **options)
    for settings in inner:
        yield from _add_options(parser, *settings)


def _option(field: Field[Any], kind: Any, start: str) -> tuple[str, dict[str, Any]]:
    """A flag, or the name of a positional argument, and how it is read."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    single = kind if get_origin(kind) in (None, Literal) else parts[0]
    if object in get_args(single):  # text that may stand for an object in Python
        single = get_args(single)[0]
    if "text" in field.metadata:
        options: dict[str, Any] = {"nargs": "+", "metavar": field.metadata["text"].word}
    elif get_origin(single) is Literal:
        choices = get_args(single)
        options = {"choices": choices, "metavar": f"{{{','.join(choices)}}}"}
    else:
        read = partial(_read, single, NoneType in get_args(kind))
        options = {"type": read, "metavar": NAMES[single]}
        options |= {"nargs": "+"} if get_origin(kind) is tuple else {}
        options |= {"nargs": "?", "const": True} if single is bool else {}
    if "positional" in field.metadata:
        return field.name, options | {"metavar": field.name.upper()}
    return f"--{start}{field.name}".replace("_", "-"), options


def _read(kind: Any, optional: bool, text: str) -> Any:
    if optional and text in NONE:
        return None
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        told = f"got {text[:80]!r}, expected {NAMES[kind]}"
        raise argparse.ArgumentTypeError(told) from None


def _shown(default: Any, field: Field[Any]) -> str:
    if default is None or default == ():
        return "none"
    if "text" in field.metadata:
        return field.metadata["text"].show(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def parse(arguments: Sequence[str]) -> Request:
    """What the arguments ask for.

    Raises:
        UserError: if they say nothing that is known, or settings do not fit together.
        OSError: if the file of settings cannot be read.
    """
    verb = find_verb(arguments)
    parser = Parser(prog=f"bezierdistill {verb.name}", add_help=False)
    _fill(parser, verb)
    words = _expanded([_dashed(word) for word in arguments[len(verb.name.split()) :]])
    parser.check_flags(words)
    parsed = vars(parser.parse_args(words))
    config = _built(verb.config, parsed, "")
    as_json, quiet = (parsed.get(name, False) for name in ("json", "quiet"))
    return Request(verb, config, as_json, quiet, parsed["print_config"])


def find_verb(words: Sequence[str]) -> Verb:
    """The verb that a command line begins with.

    Raises:
        UserError: if there is none.
    """
    for count in (1, 2):
        if verb := VERBS.get(" ".join(words[:count])):
            return verb
    said = " ".join(words[: 2 if words[0] == "store" else 1])
    close = did_you_mean(said[:80], VERBS)
    raise UserError(f"no verb {said[:80]!r}, expected one that bezierdistill --help lists{close}")


def _dashed(word: str) -> str:
    """``--keep_samples`` as the parser knows it; what follows an equals sign stays as it is."""
    flag, equals, value = word.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if flag.startswith("--") else word


def _expanded(words: list[str]) -> list[str]:
    """Words with the flags of a settings file in the place of ``--config``."""
    found, rest = list[str](), iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        path = value if equals else next(rest, None) if flag == "--config" else None
        found += read_flags(Path(path)) if flag == "--config" and path else [word]
    return found


def _built(config: Any, parsed: dict[str, Any], start: str) -> Any:
    """Settings of what the parser read."""
    kinds, given = get_type_hints(config), {}
    for field in fields(config):
        kind, name = kinds[field.name], f"{start}{field.name}"
        value = _built(kind, parsed, f"{name}.") if is_dataclass(kind) else parsed[name]
        if isinstance(value, list) and "text" in field.metadata:
            try:
                empty = NoneType in get_args(kind) and value[0] in NONE
                value = None if empty else field.metadata["text"].parse(",".join(value))
            except UserError as error:
                raise UserError(f"argument --{name.replace('_', '-')}: {error}") from None
        given[field.name] = tuple(value) if isinstance(value, list) else value
    return config(**given)

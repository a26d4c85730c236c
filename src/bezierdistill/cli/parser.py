"""From arguments to settings: a parser for every verb, whose options are the fields of its settings
class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from bezierdistill import __version__
from bezierdistill.cli.help import JSON, describe, overview, summary, texts
from bezierdistill.cli.results import Verb
from bezierdistill.cli.settings import MODE, check_file, register_loader
from bezierdistill.cli.verbs import GROUPS, SILENT, VERBS
from bezierdistill.errors import UserError
from bezierdistill.stages.store import STORE, STORE_SUMMARY


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Args:
        verb: the verb as it is spelt, such as ``store info``.
        kind: its settings class.
        run: its function of the settings.
        values: values of the fields of the settings.
        json: whether the result is to be printed as JSON.
    """

    verb: str
    kind: type
    run: Callable[[Any], Any]
    values: dict[str, Any]
    json: bool

    @property
    def config(self) -> Any:
        """The settings.

        Raises:
            UserError: if they do not fit together.
        """
        return self.kind(**self.values)


class Parser(ArgumentParser):
    """A parser whose help is ours."""

    told: Callable[[], str]

    def format_help(self, formatter: Any = None) -> str:
        """What ``--help`` prints."""
        return self.told()


def listing() -> str:
    """The verbs with a line each, in the order of the work."""
    lines = {name: summary(config) for name, (config, _) in VERBS.items()} | {
        "store": STORE_SUMMARY
    }
    about = "Distil flow models along Bezier curves into one or two network passes."
    return overview(
        "bezierdistill VERB",
        about,
        {title: {name: lines[name] for name in names} for title, names in GROUPS.items()},
    )


def store_listing() -> str:
    """The actions on curve stores with a line each."""
    actions = {name: summary(config) for name, (config, _) in STORE.items()}
    return overview("bezierdistill store ACTION", STORE_SUMMARY, {"actions": actions})


def build_parser() -> ArgumentParser:
    """The parser of all verbs."""
    register_loader()
    parser = _new(listing, prog="bezierdistill", version=__version__)
    verbs = parser.add_subcommands(required=True, dest="verb")
    for name, verb in VERBS.items():
        verbs.add_subcommand(name, _verb_parser(name, verb), help=summary(verb[0]))
    group = _new(store_listing)
    verbs.add_subcommand("store", group, help=STORE_SUMMARY)
    actions = group.add_subcommands(required=True, dest="action")
    for name, verb in STORE.items():
        actions.add_subcommand(name, _verb_parser(f"store {name}", verb), help=summary(verb[0]))
    return parser


def _new(told: Callable[[], str], **settings: Any) -> Parser:
    parser = Parser(exit_on_error=False, parser_mode=MODE, **settings)
    parser.told = told
    return parser


def _verb_parser(name: str, verb: Verb) -> ArgumentParser:
    """The flags of a settings class; some fields are spelt otherwise than the parser would:
    ``STORE``, ``--teachers A B``, ``--report``.
    """
    config, gives = verb[0], name not in SILENT
    parser = _new(lambda: describe(name, config, gives))
    parser.add_argument("--config", action="config", help="YAML file of settings")
    if gives:
        parser.add_argument("--json", action="store_true", help=JSON)
    kinds, plain = get_type_hints(config), dict[str, dict[str, Any]]()
    for field in dataclasses.fields(config):
        many, place = field.type == "tuple[Path, ...]", "positional" in field.metadata
        if field.type == "bool":
            plain[field.name] = {"action": "store_true"}
        elif many or field.metadata:
            kind = {"type": Path, "nargs": "+"} if many else {"type": kinds[field.name]}
            plain[field.name] = kind | ({} if place else {"required": True})
    parser.add_class_arguments(config, skip=set(plain))
    places = {field.name for field in dataclasses.fields(config) if "positional" in field.metadata}
    for field, settings in plain.items():
        parser.add_argument(
            field if field in places else f"--{field}", help=texts(config)[field], **settings
        )
    return parser


def parse(arguments: Sequence[str]) -> Request:
    """What the arguments ask for; flags may have dashes or underscores.

    Raises:
        UserError: if they say nothing that is known.
    """
    words = [_underscored(argument) for argument in arguments]
    parser = build_parser()
    try:
        check_file(words)
        parsed = parser.parse_args(words)
    except (
        ArgumentError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        OSError,
    ) as error:
        raise UserError(f"{error} (bezierdistill VERB --help lists every option)") from None
    fields, verb, table = parser.instantiate_classes(parsed)[parsed.verb], parsed.verb, VERBS
    if verb == "store":
        fields, verb, table = fields[fields.action], fields.action, STORE
    kind, run = table[verb]
    given = {
        key: value
        for key, value in vars(fields).items()
        if key not in ("config", "__path__", "json")
    }
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    return Request(
        verb if table is VERBS else f"store {verb}", kind, run, values, bool(fields.get("json"))
    )


def _underscored(argument: str) -> str:
    """``--keep-samples`` as the parser knows it; what follows an equals sign stays as it is."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument

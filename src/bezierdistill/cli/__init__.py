"""The command line: one verb a stage. Settings are dataclasses, given by flags or by YAML (``--config``).

A mistake of the user's ends with one line on standard error and exit code 2. ``BEZIERDISTILL_DEBUG=1`` shows the traceback instead.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from safetensors import SafetensorError

from bezierdistill import __version__
from bezierdistill.cli.settings import MODE, check_file, register_loader
from bezierdistill.cli.stores import STORE
from bezierdistill.cli.verbs import VERBS
from bezierdistill.progress import follows

__all__ = ["STORE", "VERBS", "build_parser", "explain", "main"]

MISTAKES = (ValueError, TypeError, OSError, OverflowError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
STORE_SUMMARY = "Look at curve stores, check, merge, export and import them."


def build_parser() -> ArgumentParser:
    """The parser of all verbs; every flag comes from a dataclass."""
    register_loader()
    parser = ArgumentParser(
        prog="bezierdistill",
        description="Distil flow models along Bezier curves into one or two network passes. Flags take dashes or underscores.",
        version=__version__,
        exit_on_error=False,
        parser_mode=MODE,
    )
    verbs = parser.add_subcommands(required=True, dest="verb")
    for name, (config, _) in VERBS.items():
        verbs.add_subcommand(name, _verb_parser(config), help=_summary(config))
    group = ArgumentParser(description=STORE_SUMMARY, exit_on_error=False, parser_mode=MODE)
    verbs.add_subcommand("store", group, help=STORE_SUMMARY)
    actions = group.add_subcommands(required=True, dest="action")
    for name, (config, _) in STORE.items():
        actions.add_subcommand(name, _verb_parser(config), help=_summary(config))
    return parser


def _summary(config: type) -> str:
    return (config.__doc__ or "").strip().splitlines()[0]


def _verb_parser(config: type) -> ArgumentParser:
    """The flags of a settings class; some fields are spelt otherwise than the parser would: ``STORE``, ``--teachers A B``, ``--report``."""
    parser = ArgumentParser(description=_summary(config), exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--config", action="config", help="YAML file of settings; flags given after it win")
    texts = {param.arg_name: param.description or "" for param in parse_docstring(config.__doc__ or "").params}
    plain: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(config):
        many, place = field.type == "tuple[Path, ...]", "positional" in field.metadata
        if field.type == "bool":
            plain[field.name] = {"action": "store_true"}
        elif many or field.metadata:
            plain[field.name] = {"type": Path} | ({"nargs": "+"} if many else {}) | ({} if place else {"required": True})
    parser.add_class_arguments(config, skip=set(plain))
    places = {field.name for field in dataclasses.fields(config) if "positional" in field.metadata}
    for name, settings in plain.items():
        parser.add_argument(name if name in places else f"--{name}", help=texts[name], **settings)
    return parser


def _chosen(parser: ArgumentParser, parsed: Namespace) -> tuple[str, type, Callable[[Any], None], Namespace]:
    """The verb that was asked for as it is spelt, its settings class, its function, and the values of its fields."""
    fields = parser.instantiate_classes(parsed)[parsed.verb]
    if parsed.verb != "store":
        return parsed.verb, *VERBS[parsed.verb], fields
    return f"store {fields.action}", *STORE[fields.action], fields[fields.action]


def _underscored(argument: str) -> str:
    """``--keep-samples`` as the parser knows it; what follows an equals sign stays as it is."""
    flag, equals, value = argument.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = [_underscored(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    command = "bezierdistill"
    try:
        parser = build_parser()
        parsed = _parse(parser, given)
        verb, config_class, run, fields = _chosen(parser, parsed)
        command = f"bezierdistill {verb}"
        with redirect_stdout(io.StringIO()) if follows() else nullcontext():
            run(config_class(**{key: value for key, value in vars(fields).items() if key not in ("config", "__path__")}))
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("BEZIERDISTILL_DEBUG"):
            raise
        print(f"{command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted; what was saved is kept, the same command continues", file=sys.stderr)
        return 130
    return 0


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """What the arguments say.

    Raises:
        ArgumentError: if they say nothing that is known.
    """
    hint = "(bezierdistill VERB --help lists every option)"
    try:
        check_file(arguments)
        return parser.parse_args(list(arguments))
    except (ArgumentError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{error} {hint}") from None


def explain(error: Exception) -> str | None:
    """One line for a mistake of the user's, or of what the user's files hold; None for what is a mistake of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in NO_MEMORY):
        return f"not enough memory ({text[:200] or 'no more could be had'}): ask for fewer, or smaller batches"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({text}): expected a file of ours"
    return (text or type(error).__name__) if isinstance(error, MISTAKES) else None

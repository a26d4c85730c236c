"""The command line: one verb per stage; settings are given by flags or by YAML (``--config``).

A result is told to people, or with ``--json`` printed as one JSON value; what takes long is told on
standard error, unless ``--quiet``. What a user can put right
(:class:`~bezierdistill.errors.UserError`), a file that cannot be used and a lack of memory end with
one line on standard error and exit code 2; ``BEZIERDISTILL_DEBUG=1`` shows the traceback instead.
Anything else is a mistake of ours, and keeps its traceback.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from bezierdistill import __version__
from bezierdistill.cli.parser import find_verb, listing, parse
from bezierdistill.cli.verbs import CONTINUED, SILENT, VERBS
from bezierdistill.errors import UnfitError, UserError
from bezierdistill.progress import is_follower, silent, stage
from bezierdistill.settings import as_yaml

__all__ = ["VERBS", "explain", "main", "parse"]

JSON_VERSION, SEEDS = 1, ("seed", "first_seed", "seeds")
ALLOCATOR = ("can't allocate memory", "Storage size calculation overflowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _interrupts() as asked:
            try:
                return _answer(words, asked)
            finally:
                print(end="", flush=True)
    except BrokenPipeError:  # whoever read has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed at exit
        return 128 + 13


def _answer(words: list[str], asked: list[int]) -> int:
    group = "store" if words[:1] == ["store"] else ""
    if words[bool(group) :] in ([], ["-h"], ["--help"]):
        print(listing(group), end="")
        return 0
    if words == ["--version"]:
        print(f"bezierdistill {__version__}")
        return 0
    name, as_json, config, started = "", False, None, time.perf_counter()
    try:
        name = find_verb(words).name
        verb, config, as_json, quiet, print_config = parse(words)
        if print_config:
            print(as_yaml(config), end="")
            return 0
        told = nullcontext() if name in SILENT else stage(name)
        only_json = redirect_stdout(io.StringIO()) if as_json or is_follower() else nullcontext()
        with only_json, silent(quiet), told:
            result = verb.run(config)
        if as_json:
            _print_json(name, config, started, result)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        message = explain(error)
        if isinstance(error, KeyboardInterrupt) and not asked:
            asked.append(signal.SIGINT)
        if asked:  # even if a library has made another error of it
            more = "; what was saved is kept, the same command continues" * (name in CONTINUED)
            message = f"interrupted{more}"
        elif message is None or os.environ.get("BEZIERDISTILL_DEBUG"):
            raise
        code = _told(error, as_json, name, config, started)
    print(f"{' '.join(['bezierdistill', name]).strip()}: {message}", file=sys.stderr)
    return 128 + asked[0] if asked else code


def _told(error: BaseException, as_json: bool, verb: str, config: Any, started: float) -> int:
    """The exit code of a mistake; one that is a result as well is printed."""
    if not isinstance(error, UnfitError):
        return 2
    if as_json:
        _print_json(verb, config, started, error.result)
    return error.code


def _print_json(verb: str, config: Any, started: float, result: dict[str, Any]) -> None:
    """Print a result behind what every document has: the version of its layout, the verb, how long
    it took, its seeds.
    """
    if is_follower():
        return
    head: dict[str, Any] = {"version": JSON_VERSION, "verb": verb}
    head["seconds"] = round(time.perf_counter() - started, 3)
    head |= {name: getattr(config, name) for name in SEEDS if hasattr(config, name)}
    print(json.dumps(head | result, indent=2, default=os.fspath, allow_nan=False))


def explain(error: BaseException) -> str | None:
    """One line for a mistake of the user's or what the machine lacks; None for one of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, BrokenPipeError) or hasattr(error, "__notes__"):  # of a user's own file
        return None
    torch = sys.modules.get("torch")  # on the CPU it says by text alone that it had no memory
    by_text = isinstance(error, RuntimeError) and any(words in text for words in ALLOCATOR)
    if by_text or isinstance(
        error, (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    ):
        return f"not enough memory ({text[:200]}): ask for fewer, or smaller batches"
    return (text or type(error).__name__) if isinstance(error, UserError | OSError) else None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Take what a scheduler or a closed terminal sends for Ctrl-C; yields the signals that came."""
    asked = list[int]()

    def interrupt(number: int, _: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    usual = (signal.SIG_DFL, signal.default_int_handler)  # what ``nohup`` ignores stays ignored
    is_main = threading.current_thread() is threading.main_thread()  # signals reach no other
    names = ("SIGINT", "SIGTERM", "SIGHUP") if is_main else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {k: signal.signal(k, interrupt) for k in numbers if signal.getsignal(k) in usual}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

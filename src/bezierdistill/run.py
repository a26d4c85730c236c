"""Where a folder comes from: the command that makes it, the machine that did, and a ``README.txt``
that says what is in it.

    made.json    command, machine, when it was started, seconds, sessions, whether it has finished
    README.txt   the same for people, and what each file is

The command is worked out from the settings, so a run from Python has one too. Both files hold
times: of two runs alike they differ.
"""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bezierdistill import __version__
from bezierdistill.errors import UserError
from bezierdistill.files import check_entries, read_json, write_atomically, write_json
from bezierdistill.progress import follows

MADE, README = "made.json", "README.txt"
PACKAGES = ("torch", "diffusers", "numpy", "safetensors", "lightning-fabric")
MADE_ENTRIES = {
    "command": str,
    "machine": dict,
    "started": str,
    "seconds": (int, float),
    "sessions": int,
    "finished": bool,
}
MODEL = {
    "model.json": "the model's card: network, shape, units, knots, network passes spent, settings",
    "model.safetensors": (
        "its averaged weights; bezierdistill sample --model {out} and other verbs read both"
    ),
}
TRAINING = {
    "run.json": "the settings; the folder belongs to a run with these",
    "state-*.safetensors": "the whole state of a stage of training, from which it continues",
    "log.jsonl": "losses and steps a second, a line every so many steps",
    "tensorboard/": "the same for: tensorboard --logdir {out}",
}
STORE = {
    "manifest.json": (
        "what made the curves, and the checksums of the shards; manifest.copy.json is its copy"
    ),
    "shard-*.safetensors": (
        "control points and conditions; bezierdistill distill --curves {out} reads them"
    ),
}
ARENA = {
    "run.json": "the settings, and the machine of the first session",
    "arena.json": "the result: a row for each method, seed and number of passes",
    "cells/": "the same by method and seed; remove a cell's file to run it again",
    "samples/": "judged samples, where they are kept",
    "models/, shared/": "models and curves of every method, where they are kept",
}
EXTENDED = {"arena", "reflow"}  # whose finished folders take more methods, seeds and rounds
# By verb: what its folder is, and its files.
FOLDERS: dict[str, tuple[str, dict[str, str]]] = {
    "train": ("a teacher, trained by flow matching", MODEL | TRAINING),
    "simulate": ("a store of Bezier curves, simulated by teachers", STORE),
    "distill": ("a student, distilled from stored curves", MODEL | TRAINING),
    "recipe": (
        "a student and all that it was made of, within a budget of network passes",
        {
            "recipe.json": "the settings; the folder belongs to a recipe with these",
            "strong/, weak/": "the teachers",
            "curves/": "their curves",
            "student/": (
                "the student: bezierdistill sample --model {out}/student --passes 1 --out"
                " samples.npz"
            ),
            "search.json": "the search of the blend, where there was one",
        },
    ),
    "reflow": (
        "k-rectified flows and what each round loses",
        {
            "reflow.json": "the settings; the folder belongs to a reflow with these",
            "rounds.json": "the result: the figures of every round",
            "round-1/, ...": "a round's flow, its pairs, the one-pass student; ours, with --report",
        },
    ),
    "arena": ("methods compared within one budget of network passes", ARENA),
    "demo": ("ours beside rectified-flow distillation within one budget of network passes", ARENA),
    "import": ("a teacher, imported from diffusers", MODEL),
    "store merge": ("a store of Bezier curves, merged of several", STORE),
    "store import": ("a store of Bezier curves, imported", STORE),
}


@dataclass(frozen=True)
class Made:
    """What ``made.json`` says of a folder.

    Args:
        command: the shell command; a line each if it was extended by others.
        machine: where the last session ran, see :func:`machine`.
        started: when the first session began (UTC, ISO 8601).
        seconds: working time of all sessions but killed ones.
        sessions: how often it was started.
        finished: whether it has come to its end.
    """

    command: str
    machine: dict[str, Any]
    started: str
    seconds: float = 0.0
    sessions: int = 0
    finished: bool = False


def machine() -> dict[str, Any]:
    """Where a result comes from: system, processor, threads, versions."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "bezierdistill": __version__,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def command(verb: str, config: Any) -> str:
    """The shell command of a verb with these settings; what is as it is by default is left out.

    Args:
        verb: as it is spelt, such as ``train`` or ``store merge``.
        config: its settings, a dataclass.
    """
    return shlex.join(["bezierdistill", *verb.split(), *_flags(config, None, "")])


def _flags(config: Any, usual: Any, group: str) -> Iterator[str]:
    """The flags of what differs from ``usual``, or from the defaults."""
    for field in fields(config):
        value, default = (
            getattr(config, field.name),
            _default(field) if usual is None else getattr(usual, field.name),
        )
        if is_dataclass(value):
            yield from _flags(value, default, f"{group}{field.name}.")
        elif value != default:
            yield from _flag(f"--{group}{field.name}", value, field)


def _flag(flag: str, value: Any, field: Field[Any]) -> Iterator[str]:
    words = [str(part) for part in value] if isinstance(value, tuple | list) else [str(value)]
    if isinstance(value, bool):
        yield from [flag, str(value).lower()] if "." in flag else [flag]
    elif "positional" in field.metadata:
        yield from words
    elif words[0].startswith("-"):
        yield f"{flag}={words[0]}"  # else it would be a flag itself
    else:
        yield from [flag, *words]


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@contextmanager
def recorded(out: Path, verb: str, config: Any) -> Iterator[None]:
    """Write down what is done in a folder while it is done: ``made.json`` and ``README.txt``, by
    the first rank.

    A finished run that is started again is left alone. A damaged ``made.json`` is begun anew: it
    must not stop the run that it is about.

    Args:
        out: the folder, which belongs to the run already.
        verb: the verb that makes it.
        config: its settings.
    """
    if follows():
        yield
        return
    line = command(verb, config)
    made = _before(out) or Made(line, {}, _now())
    known = line in made.command.split("\n")
    if made.finished and (
        known or verb not in EXTENDED
    ):  # the same settings: another spelling of the folder, at most
        yield
        return
    if not known:
        made = replace(made, command=f"{made.command}\n{line}")
    made = replace(made, machine=machine(), sessions=made.sessions + 1, finished=False)
    write_json(out / MADE, asdict(made))
    write_atomically(
        out / README, lambda path: path.write_text(_readme(out, verb, made), encoding="utf-8")
    )
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        with suppress(OSError):  # of a full disk the first failure tells
            _close(out, made, started, finished=False)
        raise
    _close(out, made, started, finished=True)


def _close(out: Path, made: Made, started: float, finished: bool) -> None:
    seconds = round(made.seconds + time.perf_counter() - started, 2)
    write_json(out / MADE, asdict(replace(made, seconds=seconds, finished=finished)))


@contextmanager
def noted(out: Path, verb: str, config: Any) -> Iterator[None]:
    """The same for a folder that is made whole in one step, such as an imported model: both files
    are written when it is there.
    """
    line, now, started = command(verb, config), _now(), time.perf_counter()
    yield
    if not (out / MADE).exists():
        made = Made(line, machine(), now, sessions=1)
        write_atomically(
            out / README, lambda path: path.write_text(_readme(out, verb, made), encoding="utf-8")
        )
        _close(out, made, started, finished=True)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _before(out: Path) -> Made | None:
    with suppress(ValueError):
        return read_made(out)
    return None


def read_made(folder: Path) -> Made | None:
    """What a folder's ``made.json`` says; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / MADE
    if not path.exists():
        return None
    entries = check_entries(read_json(path, "record of the run"), MADE_ENTRIES, str(path))
    check_entries(
        entries["machine"] | dict.fromkeys({"cores", "threads"} - entries["machine"].keys(), 1),
        dict.fromkeys(("cores", "threads"), (int, type(None))),
        str(path),
    )
    for name, value in entries["machine"].items():
        if type(value) not in (str, int, type(None)):
            raise UserError(
                f"{path} has machine {name[:80]} {str(value)[:80]!r}, expected text or a whole"
                " number"
            )
    if entries["seconds"] < 0 or entries["sessions"] < 1:
        raise UserError(
            f"{path} has {entries['sessions']} sessions of {entries['seconds']} seconds, expected"
            " one or more of 0 or more"
        )
    return Made(**{name: entries[name] for name in MADE_ENTRIES})


def _readme(out: Path, verb: str, made: Made) -> str:
    what, names = FOLDERS[verb]
    names = names | {
        MADE: "the command, the machine and the working time",
        "report.html": "pictures and tables, once they are asked for",
    }
    where = shlex.quote(str(out))
    files = "\n".join(f"  {name:<20} {line.format(out=where)}" for name, line in names.items())
    versions = ", ".join(
        f"{name} {made.machine[name]}" for name in ("python", "bezierdistill", *PACKAGES)
    )
    place = "{system}, {processor}, cores {cores}, threads {threads}, {device}".format(
        **made.machine
    )
    commands = "\n".join(f"  {line}" for line in made.command.split("\n"))
    again = (
        ""
        if verb == "import"
        else (
            "The same command again continues it where it was stopped, and leaves it alone once it"
            " is finished.\n\n"
        )
    )
    return f"""This folder holds {what}.

Made by

{commands}

{again}See it

  bezierdistill report --run {where}
  bezierdistill app --run {where}

Files

{files}

Started {made.started} (session {made.sessions}) on

  {place}
  {versions}
"""

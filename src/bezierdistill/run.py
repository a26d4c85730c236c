"""A folder belongs to a run: locked while it is written, claimed by its settings, and told about.

    run.json       to which verb and settings it belongs (:class:`~bezierdistill.records.Settings`)
    settings.yaml  the settings of the last session, which ``--config`` takes
    made.json      commands, machine, time (:class:`~bezierdistill.records.Made`)
    README.txt     the same for people, and what each file is

The command is worked out from the settings, so a run from Python has one too. ``made.json`` and
``README.txt`` hold times: of two runs alike they differ.
"""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import Field, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import indent
from typing import Any

import psutil
import torch
from msgspec.structs import replace

from bezierdistill import __version__
from bezierdistill.errors import UserError
from bezierdistill.files import locked, write_text
from bezierdistill.progress import is_follower, notice
from bezierdistill.records import Machine, Made, Settings, read_sealed, to_json, write_sealed
from bezierdistill.settings import Contents, as_word, as_yaml, default_number, default_of
from bezierdistill.words import counted

RUN, MADE, README, SETTINGS = "run.json", "made.json", "README.txt", "settings.yaml"
BUSY = 0.5  # load per core, above which runs get in each other's way
PACKAGES = ("torch", "diffusers", "numpy", "safetensors", "lightning-fabric")
AGAIN = "The same command continues it where it was stopped, and leaves it alone once finished.\n"
# What may always change from session to session: it leaves the result as it is.
FREE = ("out", "loop.callbacks", "loop.loggers", "loop.log_every", "loop.save_every")
TELLS = {
    RUN: "the settings; the folder belongs to a run with these",
    SETTINGS: "the same, for --config of the same verb with another --out",
    MADE: "the command, the machine and the working time",
    "report.html": "pictures and tables, once they are asked for",
}


@dataclass
class Run:
    """A folder that a verb fills; a context manager.

    The first process of several takes it for all. The same settings again continue the run, or find
    it finished; other settings are refused.

    Args:
        out: the folder.
        verb: the verb that fills it.
        config: its settings.
        contents: what the folder is.
        free: further settings that may change from session to session; ``loop.clip`` is one of
            settings within.
        identity: what stands for settings that are paths, such as the digests of models: folders
            that were moved are still the same.
        barrier: what several processes wait at.
        asked: the settings that its command is told by, if they are not these.
        fast: whether it is a small trial run.

    Raises:
        UserError: if another process holds the folder, or it holds another run, or anything else.
    """

    out: Path
    verb: str
    config: Any
    contents: Contents
    free: Sequence[str] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    barrier: Callable[[], object] = lambda: None
    asked: Any = None
    fast: bool = False
    _grown: bool = field(default=False, init=False)

    def __enter__(self) -> Run:
        self._stack = ExitStack()
        with self._stack as stack:  # let go of the lock if what follows fails
            if not is_follower():
                stack.enter_context(locked(self.out))
                self._claim()
            self.barrier()
            if not is_follower():
                stack.enter_context(self._recorded())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def _claim(self) -> None:
        settings = _without(to_json(self.config), (*FREE, *self.free))
        wanted = Settings(verb=self.verb, settings=settings | to_json(dict(self.identity)))
        file = self.out / RUN
        if not file.exists():
            if any(not entry.name.startswith(".") for entry in self.out.iterdir()):
                told = f"{self.out} is not empty and holds no run of {self.verb}"
                raise UserError(f"{told}: choose another --out")
            write_sealed(file, wanted)
            return
        held = read_settings(self.out)
        if held.verb != self.verb:
            raise UserError(f"{self.out} holds a run of {held.verb}: choose another --out")
        keys = held.settings.keys() | wanted.settings.keys()
        other = {k for k in keys if held.settings.get(k) != wanted.settings.get(k)}
        more = other & self.contents.grows.keys()
        if less := sorted(other - more):
            told = f"{self.out} holds another run of {self.verb}, with other {', '.join(less)}"
            raise UserError(f"{told}: choose another --out, or the same settings")
        for name in sorted(more):
            self._check_more(name, held.settings[name], wanted.settings[name])
        if more:
            self._grown = True
            write_sealed(file, wanted)

    def _check_more(self, name: str, held: int, wanted: int) -> None:
        """Refuse a run of fewer steps, or of more than a finished one that left no state."""
        told, state = f"{self.out} holds a run of {held} {name}", self.contents.grows[name]
        if wanted < held:
            raise UserError(f"{told}, expected as many or more, not {wanted}: choose another --out")
        made = None
        with suppress(UserError):  # a damaged record
            made = read_made(self.out)
        if made is not None and made.finished and not (self.out / state).exists():
            raise UserError(f"{told} and no {state} to go on from: choose another --out")

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        made, before = _new(self.verb, self.asked or self.config, self.fast), None
        with suppress(UserError):  # a damaged record must not stop the run that it tells about
            before = read_made(self.out)
        if before is not None:
            known = made.commands[0] in before.commands
            if before.finished and (known or not (self.free or self._grown)):
                yield  # a finished run that is started again is left alone
                return
            commands = before.commands if known else (*before.commands, *made.commands)
            more = {"commands": commands, "machine": made.machine, "sessions": before.sessions + 1}
            made = replace(before, finished=False, fast=self.fast, **more)
        _tell_threads(made.machine, before and before.machine)
        _write(self.out, made, self.contents)
        write_text(self.out / SETTINGS, as_yaml(self.asked or self.config))
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            with suppress(OSError):  # of a full disk the first failure tells
                _close(self.out, made, started, finished=False)
            raise
        _close(self.out, made, started, finished=True)
        if self.contents.shown:
            write_text(self.out / README, _readme(self.out, made, self.contents))


def _without(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Settings without those of some names, such as ``seed`` or ``loop.loggers``."""
    inner = {
        key: [name.partition(".")[2] for name in names if name.startswith(f"{key}.")]
        for key, value in settings.items()
        if isinstance(value, dict)
    }
    return {
        key: _without(value, inner[key]) if key in inner else value
        for key, value in settings.items()
        if key not in names
    }


@contextmanager
def made_whole(out: Path, verb: str, config: Any, contents: Contents) -> Iterator[None]:
    """Tell about a folder that is made in one step, such as an imported model, when it is there."""
    made, started = _new(verb, config), time.perf_counter()
    yield
    if not (out / MADE).exists():
        _write(out, made, contents)
        _close(out, made, started, finished=True)


def _new(verb: str, config: Any, fast: bool = False) -> Made:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    line = command(verb, config)
    return Made(verb=verb, commands=(line,), machine=machine(), started=now, fast=fast)


def _write(out: Path, made: Made, contents: Contents) -> None:
    write_sealed(out / MADE, made)
    text = _readme(out, made, contents)
    write_text(out / README, text)


def _close(out: Path, made: Made, started: float, finished: bool) -> None:
    seconds = round(made.seconds + time.perf_counter() - started, 2)
    write_sealed(out / MADE, replace(made, seconds=seconds, finished=finished))


def read_settings(folder: Path) -> Settings:
    """To which run a folder belongs.

    Raises:
        UserError: if it belongs to none, or this is damaged.
    """
    return read_sealed(folder / RUN, Settings, "run")


def read_made(folder: Path) -> Made | None:
    """What a folder's ``made.json`` says; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / MADE
    return read_sealed(path, Made, "record of the run") if path.exists() else None


def machine() -> Machine:
    """Where a result comes from: system, processor, threads, versions."""
    versions = {"python": platform.python_version(), "bezierdistill": __version__}
    return Machine(
        system=platform.platform(),
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        device="cuda" if torch.cuda.is_available() else "cpu",
        versions=versions | {name: _version(name) for name in PACKAGES},
    )


def _tell_threads(here: Machine, before: Machine | None) -> None:
    """Say where threads cost more than they bring, or results will differ in their last digits.

    Their number is never chosen here: the same command would give other bits by other work's load.
    """
    if before is not None and before.threads != here.threads:
        notice(
            f"begun with {counted(before.threads, 'thread')}, goes on with {here.threads}: sums are"
            f" rounded otherwise; OMP_NUM_THREADS={before.threads} continues it to the same bits"
        )
    elif here.threads > 1 and here.device == "cpu" and not os.environ.get("OMP_NUM_THREADS"):
        _tell_busy(here.threads)


@cache
def _tell_busy(threads: int) -> None:
    """Say once that other work has the cores, if it has."""
    cores = os.cpu_count() or 1
    if (load := psutil.getloadavg()[0]) > BUSY * cores and psutil.cpu_percent(0.2) > 100 * BUSY:
        notice(
            f"other work is running (load {load:.1f} of {cores} cores): {threads} threads wait for"
            " each other; OMP_NUM_THREADS=1 takes less of the processor, and differs in rounding"
        )


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def command(verb: str, config: Any) -> str:
    """The shell command of a verb with these settings; what is as it is by default is left out.

    Args:
        verb: such as ``train`` or ``store merge``.
        config: its settings, a dataclass.
    """
    flags = _flags(config, None, "", getattr(config, "fast", False))
    return shlex.join(["bezierdistill", *verb.split(), *flags])


def _flags(config: Any, usual: Any, group: str, fast: bool) -> Iterator[str]:
    """The flags of what differs from ``usual``, or from the defaults."""
    for part in fields(config):
        value = getattr(config, part.name)
        default = default_of(part) if usual is None else getattr(usual, part.name)
        if is_dataclass(value):
            yield from _flags(value, default, f"{group}{part.name}.", fast)
        elif value != default_number(default, fast):
            yield from _flag(f"--{group}{part.name}".replace("_", "-"), value, part)


def _flag(flag: str, value: Any, part: Field[Any]) -> Iterator[str]:
    how, values = part.metadata.get("text"), value if isinstance(value, tuple) else (value,)
    words = ["none"] if value is None else [how.show(value)] if how else [*map(as_word, values)]
    if not words:
        return  # an empty list has no flag
    if isinstance(value, bool):
        yield from [flag, str(value).lower()] if "." in flag else [flag]
    elif "positional" in part.metadata:
        yield from words
    elif words[0].startswith("-"):
        yield f"{flag}={words[0]}"  # else it would be a flag itself
    else:
        yield from [flag, *words]


def _readme(out: Path, made: Made, contents: Contents) -> str:
    where, place = shlex.quote(str(out)), made.machine
    files = {name: text.format(out=where) for name, text in contents.files.items()} | TELLS
    again = AGAIN if contents.continues else ""
    if contents.grows:
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in contents.grows)
        again += f"With a larger {flags} it goes on from where it ended.\n"
    width = max(map(len, files))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in files.items())
    versions = ", ".join(f"{name} {number}" for name, number in place.versions.items())
    commands = "".join(f"  {line}\n" for line in made.commands)
    shown = [out / name for name in contents.shown if (out / name).exists()]
    code = "".join(f"\n{file.name}\n\n{indent(file.read_text(), '  ')}" for file in shown)
    return f"""This folder holds {contents.what}.

Made by

{commands}
{again}{chr(10) if again else ""}See it

  bezierdistill report --run {where}
  bezierdistill app --run {where}

Files

{lines}

Started {made.started} (session {made.sessions}) on

  {place.system}, {place.processor}, cores {place.cores}, threads {place.threads}, {place.device}
  {versions}
{code}"""

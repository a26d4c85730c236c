"""What a long piece of work is doing, on standard error: a bar on a terminal, and where there is
none a plain line every ten seconds. Nothing of ranks but the first, with ``--quiet``, or
among the outputs of a notebook.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

EVERY = 10.0  # seconds between two lines


def is_follower() -> bool:
    """Whether this process is one of several ranks, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def has_bars() -> bool:
    """Whether progress is shown by bars."""
    return not (is_follower() or _State.quiet) and sys.stderr.isatty()


def announce(text: str) -> None:
    """Say on standard error which part of a long run begins; where there are no bars with the next
    line, so that what is short is silent.
    """
    if has_bars():
        notice(text)
    elif not is_follower():
        with _State.lock:
            _State.parts.append(text)


def notice(text: str) -> None:
    """Say on standard error what the user should know, even with ``--quiet``: one line."""
    if not is_follower():
        print(text, file=sys.stderr)


@dataclass(eq=False)
class _Work:
    """A piece of work that is under way; ``done`` of ``total`` units."""

    name: str
    total: int | None = None
    done: int = 0
    has_bar: bool = False
    note: str = ""
    first: int = 0
    begun: float = field(default_factory=time.monotonic)
    noted: float = field(default_factory=time.monotonic)

    def advance(self, n: int, note: Callable[[], str] | None = None) -> None:
        self.done += n
        now = time.monotonic()
        if note is not None and now >= self.noted + EVERY / 2:  # a loss waits for its device
            self.note, self.noted = note(), now

    def line(self) -> str:
        """How far it is: ``train: 1,200 of 5,000, 112/s, loss 0.03, 34 s left``."""
        taken = time.monotonic() - self.begun
        rate = (self.done - self.first) / taken if taken > 0 else 0.0
        if not self.done and self.total is None:
            return f"{self.name}: {_clock(taken)}"
        parts = [f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"]
        parts += [f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"] if rate else []
        parts += [self.note] if self.note else []
        if rate and self.total is not None:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return f"{self.name}: {', '.join(parts)}"


class _State:
    """Of this process: the work under way, the innermost last, and parts that are not told yet."""

    quiet = False
    works: list[_Work] = []  # noqa: RUF012
    parts: list[str] = []  # noqa: RUF012
    lock = threading.Lock()
    over = threading.Event()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _tell(over: threading.Event) -> None:
    """Say every ten seconds what the innermost work has done, until all is over."""
    while not over.wait(EVERY):
        with _State.lock:
            lines = [*_State.parts, *(w.line() for w in _State.works[-1:] if not w.has_bar)]
            _State.parts.clear()
        with suppress(OSError, ValueError):  # of a closed stream
            for line in lines if not (_State.quiet or "ipykernel" in sys.modules) else ():
                print(line, file=sys.stderr, flush=True)


@contextmanager
def _under_way(work: _Work) -> Iterator[_Work]:
    with _State.lock:
        if not _State.works:
            _State.over = threading.Event()
            threading.Thread(target=_tell, args=(_State.over,), daemon=True).start()
        _State.works.append(work)
    try:
        yield work
    finally:
        with _State.lock:
            _State.works.remove(work)
            if not _State.works:
                _State.over.set()
                _State.parts.clear()


@contextmanager
def silent(quiet: bool = True) -> Iterator[None]:
    """Neither bars nor lines of progress; notices and errors are still told."""
    before, _State.quiet = _State.quiet, quiet
    try:
        yield
    finally:
        _State.quiet = before


@contextmanager
def stage(name: str, total: int | None = None, done: int = 0) -> Iterator[Callable[..., None]]:
    """Name a part of the work, of which a line tells if it takes long; yields ``advance(n)``, or
    with a function that gives a text to be shown beside it, ``advance(n, note)``.

    Args:
        name: of this part.
        total: its units, if they are known.
        done: units that an earlier session did.
    """
    if is_follower():
        yield lambda n, note=None: None
        return
    with _under_way(_Work(name, total, done, first=done)) as work:
        yield work.advance


@contextmanager
def progress(name: str, total: int | None, done: int = 0) -> Iterator[Callable[..., None]]:
    """As :func:`stage`, with a bar where standard error is a terminal."""
    if not has_bars():
        with stage(name, total, done) as advance:
            yield advance
        return
    from rich import progress as bars  # imported here: commands that show no bar need not wait
    from rich.console import Console
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")

    told, left = bars.TextColumn("{task.description}"), bars.TimeRemainingColumn()
    note = bars.TextColumn("{task.fields[note]}", markup=False)
    columns = (told, bars.BarColumn(), bars.MofNCompleteColumn(), Rate(), left, note)
    with (
        _under_way(_Work(name, has_bar=True)),
        bars.Progress(*columns, console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task(name, total=total, completed=done, note="")

        def advance(n: int, note: Callable[[], str] | None = None) -> None:
            if note is not None:
                bar.update(task, note=note())
            bar.advance(task, n)

        yield advance

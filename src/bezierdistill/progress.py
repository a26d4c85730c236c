"""Progress on a terminal, silence elsewhere and of all ranks but the first."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")


def follows() -> bool:
    """Whether this process is one of several ranks, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _silent() -> bool:
    return not sys.stderr.isatty() or follows()


def announce(text: str) -> None:
    """Say on standard error which part of a long run begins; silent where there is no terminal."""
    if not _silent():
        print(text, file=sys.stderr)


def notice(text: str) -> None:
    """Say on standard error what the user should know, on a terminal or not: one line."""
    if not follows():
        print(text, file=sys.stderr)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left (if the total is known) on standard error; yields
    ``advance(n)``; silent where there is no terminal.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=_silent()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)

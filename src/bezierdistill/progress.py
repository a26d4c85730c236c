"""Progress on a terminal, silence elsewhere and of all ranks but the first."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_follower() -> bool:
    """Whether this process is one of several ranks, and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def announce(text: str) -> None:
    """Say on standard error which part of a long run begins; silent where there is no terminal."""
    if sys.stderr.isatty():
        notice(text)


def notice(text: str) -> None:
    """Say on standard error what the user should know, on a terminal or not: one line."""
    if not is_follower():
        print(text, file=sys.stderr)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show a bar on standard error, where it is a terminal; yields ``advance(n)``, or with a
    function that gives a text to be shown beside it, ``advance(n, note)``: it is called where there
    is a bar alone.
    """
    if is_follower() or not sys.stderr.isatty():
        yield lambda n, note=None: None
        return
    from rich import progress as bars  # imported here: commands that show no bar need not wait
    from rich.console import Console
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")

    name, left = bars.TextColumn("{task.description}"), bars.TimeRemainingColumn()
    note = bars.TextColumn("{task.fields[note]}", markup=False)
    columns = (name, bars.BarColumn(), bars.MofNCompleteColumn(), Rate(), left, note)
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(n: int, note: Callable[[], str] | None = None) -> None:
            if note is not None:
                bar.update(task, note=note())
            bar.advance(task, n)

        yield advance

"""What training writes down: lines of ``log.jsonl``, none twice, and TensorBoard's scalars."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bezierdistill.files import write_text
from bezierdistill.records import LogEntry, from_json, to_json

LOG = "log.jsonl"
Write = Callable[[int, Mapping[str, float], float], None]


@contextmanager
def journal(folder: Path, stage: str, first: int) -> Iterator[Write]:
    """Continue a stage's log after step ``first``: ``write(step, losses, steps_per_second)``."""
    from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a second

    folder.mkdir(parents=True, exist_ok=True)
    _rewind(folder / LOG, stage, first)
    # Each stage has a folder of its own: a new start purges what stands in it after its first step.
    with (
        open(folder / LOG, "a") as log,
        SummaryWriter(str(folder / "tensorboard" / stage), purge_step=first + 1) as board,
    ):

        def write(step: int, losses: Mapping[str, float], rate: float) -> None:
            speed = round(rate, 2)
            entry = LogEntry(stage=stage, step=step, loss=dict(losses), steps_per_second=speed)
            log.write(json.dumps(to_json(entry)) + "\n")
            log.flush()
            for name, loss in losses.items():
                board.add_scalar(f"loss/{name}", loss, step)

        yield write


def _rewind(path: Path, stage: str, first: int) -> None:
    """Drop what a killed process wrote of steps that will be taken again, and a torn line."""
    if not path.exists():
        return
    text, kept = path.read_text(errors="replace"), ""
    for line in text.splitlines():
        entry = _entry(line)
        if entry is not None and (entry.stage != stage or entry.step <= first):
            kept += line + "\n"
    if kept != text:
        write_text(path, kept)


def entries(path: Path) -> Iterator[LogEntry]:
    """The lines of a log; one that does not fit, such as a torn last one, is left out."""
    return filter(None, map(_entry, path.read_text(errors="replace").splitlines()))


def _entry(line: str) -> LogEntry | None:
    try:
        return from_json(json.loads(line), LogEntry, "a line")
    except (ValueError, RecursionError):
        return None

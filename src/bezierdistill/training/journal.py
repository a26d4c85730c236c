"""What training writes down: a line of ``log.jsonl`` and TensorBoard's scalars every so many steps;
no line comes twice after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bezierdistill.files import write_atomically
from bezierdistill.records import LogEntry, from_json, to_json

LOG = "log.jsonl"
Write = Callable[[int, Mapping[str, float], float], None]


@contextmanager
def journal(folder: Path, stage: str, first: int) -> Iterator[Write]:
    """Continue the log of a stage after step ``first``; yields ``write(step, losses,
    steps_per_second)``.
    """
    from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a second

    folder.mkdir(parents=True, exist_ok=True)
    _rewind(folder / LOG, stage, first)
    # Each stage has a folder of its own: a new start purges what stands in it after its first step.
    with (
        open(folder / LOG, "a") as log,
        SummaryWriter(str(folder / "tensorboard" / stage), purge_step=first + 1) as board,
    ):

        def write(step: int, losses: Mapping[str, float], rate: float) -> None:
            entry = LogEntry(
                stage=stage, step=step, loss=dict(losses), steps_per_second=round(rate, 2)
            )
            log.write(json.dumps(to_json(entry)) + "\n")
            log.flush()
            for name, loss in losses.items():
                board.add_scalar(f"loss/{name}", loss, step)

        yield write


def _rewind(path: Path, stage: str, first: int) -> None:
    """Drop what a killed process wrote of steps that will be taken again, and a line that it did
    not finish.
    """
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    kept = "".join(line + "\n" for line in text.splitlines() if _stays(line, stage, first))
    if kept != text:
        write_atomically(path, lambda temporary: temporary.write_text(kept))


def entries(path: Path) -> Iterator[LogEntry]:
    """The lines of a log; one that does not fit, such as a torn last one, is left out."""
    for line in path.read_text(errors="replace").splitlines():
        if (entry := _entry(line)) is not None:
            yield entry


def _entry(line: str) -> LogEntry | None:
    try:
        return from_json(json.loads(line), LogEntry, "a line")
    except (ValueError, RecursionError):
        return None


def _stays(line: str, stage: str, first: int) -> bool:
    entry = _entry(line)
    return entry is not None and (entry.stage != stage or entry.step <= first)

"""What training writes down: lines of ``log.jsonl``, none twice, and what loggers show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from bezierdistill.errors import UserError
from bezierdistill.files import write_text
from bezierdistill.records import LogEntry, from_json, to_json

LOG = "log.jsonl"
Write = Callable[[int, Mapping[str, float], float], None]
Show = Callable[[int, Mapping[str, float]], None]


def check_loggers(loggers: Sequence[str]) -> None:
    """Raise ``UserError`` unless the loggers are installed."""
    if "wandb" in loggers and find_spec("wandb") is None:
        raise UserError(
            "loggers has wandb, which is not installed: pip install wandb, or leave it out"
        )


@contextmanager
def journal(folder: Path, stage: str, first: int, loggers: Sequence[str]) -> Iterator[Write]:
    """Continue a stage's log after step ``first``: ``write(step, losses, steps_per_second)``."""
    folder.mkdir(parents=True, exist_ok=True)
    _rewind(folder / LOG, stage, first)
    with ExitStack() as stack:
        log = stack.enter_context(open(folder / LOG, "a"))
        shown = [stack.enter_context(SHOWN[name](folder, stage, first)) for name in loggers]

        def write(step: int, losses: Mapping[str, float], rate: float) -> None:
            speed = round(rate, 2)
            entry = LogEntry(stage=stage, step=step, loss=dict(losses), steps_per_second=speed)
            log.write(json.dumps(to_json(entry)) + "\n")
            log.flush()
            for show in shown:
                show(step, losses)

        yield write


@contextmanager
def _tensorboard(folder: Path, stage: str, first: int) -> Iterator[Show]:
    from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a second

    # Each stage has a folder of its own: a new start purges what stands in it after its first step.
    with SummaryWriter(str(folder / "tensorboard" / stage), purge_step=first + 1) as board:

        def show(step: int, losses: Mapping[str, float]) -> None:
            for name, loss in losses.items():
                board.add_scalar(f"loss/{name}", loss, step)

        yield show


@contextmanager
def _wandb(folder: Path, stage: str, first: int) -> Iterator[Show]:
    """A run of its own for every session, in the group of the folder."""
    import wandb  # pyright: ignore[reportMissingImports]

    where = {"project": "bezierdistill", "group": folder.resolve().name, "dir": str(folder)}
    run = wandb.init(**where, name=f"{folder.resolve().name} {stage} from step {first}")
    try:
        yield lambda step, losses: run.log({f"loss/{k}": v for k, v in losses.items()}, step=step)
    finally:
        run.finish()


SHOWN: dict[str, Callable[[Path, str, int], AbstractContextManager[Show]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "none": lambda folder, stage, first: nullcontext(lambda step, losses: None),
}


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

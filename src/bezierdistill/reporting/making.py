"""What was run: the command to run it again, the machine, the working time, and the same of every
stage.
"""

from __future__ import annotations

from bezierdistill.models import Model
from bezierdistill.reporting.page import Section, code, paragraph, table
from bezierdistill.reporting.runs import Run, counted
from bezierdistill.run import Made, read_made
from bezierdistill.store import CurveStore

NO_RECORD = (
    "No command is on record here: it was made in Python alone, or by a version that kept none. Its"
    " settings stand at the end."
)
PLACE = ("system", "processor", "cores", "threads", "device")
UNKNOWN = "not recorded"


def brief(run: Run) -> str:
    """The command, and in one line how long it took and where."""
    made = run.made
    if made is None:
        return paragraph(NO_RECORD)
    where = ", ".join(
        [
            counted(int(made.machine.get("cores") or 1), "core"),
            counted(int(made.machine.get("threads") or 1), "thread"),
        ]
    )
    state = "" if made.finished else " It has not come to its end: the same command continues it."
    line = (
        f"It took {made.seconds:,.1f} seconds on {where},"
        f" {made.machine.get('device', 'cpu')}.{state}"
    )
    return (
        paragraph("The command, which also continues a run that was stopped:")
        + code(made.command)
        + paragraph(line)
    )


def what_was_run(run: Run) -> Section:
    """When, how long and where; a table of the stages, and their commands."""
    parts = [paragraph(NO_RECORD)] if run.made is None else [_record(run.made)]
    stages = [] if run.is_arena else _stages(run)
    if len(stages) > 1:
        rows = [[name, what, f"{passes:,}", *_times(made)] for name, what, passes, made in stages]
        head = ["stage", "what it made", "network passes", "seconds", "sessions"]
        parts.append(
            table(
                "Stages, and what each has cost by itself. Seconds are working time, of all"
                " sessions.",
                head,
                rows,
            )
        )
        lines = [f"# {name}\n{made.command}" for name, _, _, made in stages if made]
        parts += ["<h3>The stages by themselves</h3>", code("\n\n".join(lines))] if lines else []
    return Section("What was run", "".join(parts))


def _record(made: Made) -> str:
    versions = [
        f"{name} {value}"
        for name, value in made.machine.items()
        if name not in PLACE and value is not None
    ]
    rows = [
        ["started", made.started],
        ["working time", f"{made.seconds:,.2f} seconds"],
        ["sessions", f"{made.sessions} ({'finished' if made.finished else 'not finished'})"],
        *([name, made.machine[name]] for name in PLACE if name in made.machine),
        ["versions", ", ".join(versions)],
    ]
    return table(
        "When and where the whole was run; the machine is that of the last session.", [], rows
    )


def _times(made: Made | None) -> list[str]:
    return [UNKNOWN, UNKNOWN] if made is None else [f"{made.seconds:,.1f}", str(made.sessions)]


def _stages(run: Run) -> list[tuple[str, str, int, Made | None]]:
    """Name, what it made, passes, and record of every model and store, in the order of the run."""
    found = []
    for name, part in [*run.models.items(), *run.stores.items()]:
        if part.folder is None:
            continue
        made = read_made(part.folder)
        what, passes = _curves(part) if isinstance(part, CurveStore) else _model(part)
        rank = (
            1 if isinstance(part, CurveStore) else 2 * (what == "student")
        )  # of what was started within the same second
        order = (made.started if made else "", rank, name)
        found.append((order, (name, what, passes, made)))
    return [stage for _, stage in sorted(found, key=lambda entry: entry[0])]


def _curves(store: CurveStore) -> tuple[str, int]:
    return (
        f"{counted(len(store), 'curve')} of degree {store.recipe['degree']}",
        store.manifest["passes"],
    )


def _model(model: Model) -> tuple[str, int]:
    passes = model.card.get("passes", {})
    return str(model.card.get("kind", "model")), passes.get("training", model.spent) + passes.get(
        "search", 0
    )

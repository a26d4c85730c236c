"""What was run: the command to run it again, the machine, the working time, and the same of every
stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from bezierdistill.records import Made
from bezierdistill.reporting.page import Code, Note, Part, Section, Table
from bezierdistill.reporting.runs import Findings
from bezierdistill.run import read_made
from bezierdistill.store import CurveStore
from bezierdistill.words import counted

NO_RECORD = Note("No command is on record here: it was made in Python alone.")
NAMES_ALONE = (
    "Of absolute paths this page has the names alone; README.txt beside it has them whole."
)
UNKNOWN = "not recorded"


def what_was_run(found: Findings, facts: Mapping[str, object]) -> Section:
    """The command, when and where; a table of the stages, and their commands.

    ``facts`` are what else is told of the run.
    """
    made, parts = found.made, list[Part]()
    rows = [(name, value) for name, value in facts.items() if value not in (None, "")]
    if made is None:
        parts.append(NO_RECORD)
    else:
        told = f"The command, which also continues a run that was stopped. {NAMES_ALONE}"
        parts += [Note(told), Code("\n".join(made.commands))]
        rows += _record(made)
    if rows:
        parts.append(Table("The run; the machine is that of the last session.", [], rows))
    stages = [] if found.is_arena else _stages(found)
    if len(stages) > 1:
        caption = (
            "Stages, and what each has cost by itself. Seconds are working time, of all sessions."
        )
        head = ["stage", "what it made", "network passes", "seconds", "sessions"]
        rows = [[name, what, f"{passes:,}", *_times(made)] for name, what, passes, made in stages]
        parts.append(Table(caption, head, rows, left=(0, 1)))
        lines = ["\n".join([f"# {name}", *made.commands]) for name, _, _, made in stages if made]
        parts += [Code("\n\n".join(lines), "The stages by themselves")] if lines else []
    return Section("What was run", parts, True)


def _record(made: Made) -> list[tuple[str, object]]:
    place = made.machine
    versions = [f"{name} {version}" for name, version in place.versions.items() if version]
    return [
        ("started", made.started),
        ("working time", f"{made.seconds:,.2f} seconds"),
        ("sessions", f"{made.sessions} ({'finished' if made.finished else 'not finished'})"),
        ("system", place.system),
        ("processor", place.processor),
        *((name, getattr(place, name) or UNKNOWN) for name in ("cores", "threads", "device")),
        ("versions", ", ".join(versions)),
    ]


def _times(made: Made | None) -> list[str]:
    return [UNKNOWN, UNKNOWN] if made is None else [f"{made.seconds:,.1f}", str(made.sessions)]


def _stages(found: Findings) -> list[tuple[str, str, int, Made | None]]:
    """Name, what it made, passes, and record of every model and store, in the order of the run."""
    stages = []
    for name, part in [*found.models.items(), *found.stores.items()]:
        assert part.folder is not None
        made = read_made(part.folder)
        if isinstance(part, CurveStore):
            what = f"{counted(len(part), 'curve')} of degree {part.recipe.degree}"
            passes, rank = part.manifest.passes, 1
        else:
            what, own = part.card.kind, part.card.passes
            passes, rank = own.training + own.search, 2 * (what == "student")
        # The rank orders what was started within the same second.
        order = ("" if made is None else made.started, rank, name)
        stages.append((order, (name, what, passes, made)))
    return [stage for _, stage in sorted(stages, key=lambda entry: entry[0])]

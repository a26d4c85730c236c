"""An arena in one sentence: what ours comes to at the fewest passes, its place, and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

from bezierdistill.reporting.names import title
from bezierdistill.reporting.summary import LEARNT, Entry, learnt, with_error
from bezierdistill.words import capital, counted, place, spelled

SCALE = (
    "Excess: 0 is as good as real data, 1 is twice as far from them as they are from themselves."
)
TEACHERS = {"own-teacher": "bezier-teacher", "given-teacher": "teacher-20"}  # by track, of ours


def verdict(entries: Sequence[Entry], track: str) -> str:
    """What an arena says of the fewest passes at which anything has learnt, or that nothing has."""
    if not entries:
        return "No method has come to a result."
    at, few = min(learnt(entries), default=None), entries[0]
    missed = f"at {spelled(few.passes, 'pass')} the least excess is {with_error(few)}"
    if at is None:
        return f"Nothing has learnt yet: {missed}, above {LEARNT:g}, so no method is ranked."
    group = [entry for entry in entries if entry.passes == at]
    own = next((entry for entry in group if entry.ours), group[0])
    told = f"{capital(spelled(at, 'pass'))}: {_placed(own, group)}{_teacher(own, entries, track)}"
    return f"{told}." if at == few.passes else f"{told}; {missed}, which is nothing learnt yet."


def _placed(own: Entry, group: Sequence[Entry]) -> str:
    """The excess of a method and its place, and the nearest rival where it is not told apart."""
    told = f"excess {with_error(own)} by {title(own.method)}"
    rivals = [entry for entry in group if entry is not own]
    if not rivals:
        return told
    told += f", {place(own.rank)} of {spelled(len(group), 'method')}"
    if own.rank > 1:
        told += f" (the best: {with_error(rivals[0])} by {title(rivals[0].method)})"
    near = min(rivals, key=lambda entry: abs(entry.excess - own.excess))
    apart = 2 * hypot(near.error, own.error)
    if own.seeds > 1 and near.seeds > 1 and abs(near.excess - own.excess) < apart:
        told += f", not told apart from {title(near.method)} by these seeds"
    return told


def _teacher(own: Entry, entries: Sequence[Entry], track: str) -> str:
    """What the teacher of ours comes to, if it was judged."""
    teachers = [entry for entry in entries if entry.method == TEACHERS[track]]
    if not own.ours or not teachers:
        return ""
    (teacher,) = teachers
    passes, comes = counted(teacher.passes, "pass"), with_error(teacher)
    if teacher.excess > own.excess:
        return f"; its teacher needs {passes} for {comes}"
    return f"; its teacher reaches {comes} in {passes}"

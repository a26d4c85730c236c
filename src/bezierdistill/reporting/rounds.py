"""The report of a reflow: what every round loses, and ours beside it at the same passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bezierdistill.records import ERRORS, RoundRow
from bezierdistill.reporting.page import Gallery, Opening, Part, Picture, Section, Table, Words
from bezierdistill.reporting.plots import errors_figure, rounds_figure
from bezierdistill.reporting.runs import Findings
from bezierdistill.reporting.summary import LEARNT, sampler_label
from bezierdistill.reporting.verdict import SCALE
from bezierdistill.words import capital, counted, spelled

WHOSE = {"distilled": "by distilling the last flow", "ours": "by ours"}
WORDS = ("excess", "floor", "pass", "straightness", "drift", "reconstruction")
HEADS = ("straightness", "drift", "reconstruction: real", "generated")  # of ERRORS


def opening(found: Findings) -> Opening:
    """What the page begins with."""
    figures = [own for own in found.rounds.values() if own.rounds]
    data = Path(found.asked.data or "data").name
    if not figures:
        facts = {"data": found.asked.data}
        return Opening(f"Reflow on {data}", "No round is finished yet.", facts=facts)
    last, count = figures[0].rounds[-1], spelled(len(figures[0].rounds), "round")
    ours = ", and ours at the same passes" if last.ours_passes is not None else ""
    lead = (
        f"{SCALE} Every flow is trained on the pairs of noise and ends that the one before has"
        f" made, and distilled into one pass{'; ours starts from the first flow' if ours else ''}."
    )
    facts: dict[str, object] = {"data": found.asked.data, "seed": figures[0].seed}
    title = f"{capital(count)} of reflow on {data}{ours}"
    return Opening(title, _verdict(last, count), lead, facts)


def _verdict(last: RoundRow, count: str) -> str:
    """What the last round comes to in one pass."""
    few = [one for one in last.samplers if one.who != "flow" and one.passes == 1]
    told = " and ".join(f"{one.scores.frechet.excess:.2f} {WHOSE[one.who]}" for one in few)
    if not few:
        return f"No student of one pass was judged after {count}."
    if min(one.scores.frechet.excess for one in few) > LEARNT:
        return f"Nothing has learnt one pass yet after {count}: the excess is {told}."
    return f"One pass after {count}: excess {told}."


def sections(found: Findings) -> list[Section]:
    """A table and two pictures for each reflow."""
    several = len(found.rounds) > 1
    shown = [
        Section(f"Reflow rounds: {name}" if several else "Reflow rounds", _parts(figures.rounds))
        for name, figures in found.rounds.items()
        if figures.rounds
    ]
    return [*shown, Section("What the words mean", [Words(WORDS)], True)] if shown else []


def _parts(rounds: Sequence[RoundRow]) -> list[Part]:
    first, excesses, errors = rounds[0], [], []
    costs = ["flow", "student", *(["ours"] if first.ours_passes is not None else [])]
    for row in rounds:
        own = [f"{one.scores.frechet.excess:.2f}" for one in row.samplers]
        excesses.append([row.round, *own])
        lost = [f"{getattr(row, error):.4g}" for error in ERRORS]
        errors.append([row.round, *lost, *(f"{getattr(row, f'{who}_passes'):,}" for who in costs)])
    caption = "Excess of the Frechet distances; 0 is as good as real data."
    error_caption = "Errors per component in model units squared, and network passes spent."
    error_head = ["round", *HEADS, *(f"passes, {who}" for who in costs)]
    shown = counted(len(rounds), "round")
    excess_alt = f"excess of the Frechet distance in {shown}, a line per sampler"
    error_alt = (
        "errors of every round of reflow: straightness, drift, reconstruction of real and"
        " generated states"
    )
    charts = [Picture(rounds_figure(rounds), excess_alt), Picture(errors_figure(rounds), error_alt)]
    return [
        Table(caption, ["round", *map(sampler_label, first.samplers)], excesses),
        Gallery("charts", charts),
        Table(error_caption, error_head, errors),
    ]

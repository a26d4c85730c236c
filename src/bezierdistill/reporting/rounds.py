"""The report of a reflow: what every round loses, and ours beside it at the same passes."""

from __future__ import annotations

from collections.abc import Sequence

from bezierdistill.records import ERRORS, RoundRow
from bezierdistill.reporting.page import Gallery, Opening, Part, Picture, Section, Table, Words
from bezierdistill.reporting.plots import errors_figure, rounds_figure
from bezierdistill.reporting.runs import Findings
from bezierdistill.reporting.summary import sampler_label
from bezierdistill.words import counted

HEADS = ("straightness", "drift", "reconstruction: real", "generated")  # of ERRORS


def opening(found: Findings) -> Opening:
    """What the page begins with."""
    figures = [own for own in found.rounds.values() if own.rounds]
    last = figures[0].rounds[-1] if figures else None
    ours = ""
    if last is not None and last.ours_passes is not None:
        ours = "; ours beside it, at the passes that this has cost"
    lead = (
        f"Reflow on {found.asked.data}: every flow is trained on the pairs of noise and ends that"
        f" the one before has made, and distilled into one pass{ours}."
    )
    facts: dict[str, object] = {"Data": found.asked.data}
    if last is not None:
        facts |= {"Seed": figures[0].seed, "Rounds": len(figures[0].rounds)}
        for one in last.samplers:
            if one.who != "flow" and one.passes == 1:
                name = f"Last round's excess: {sampler_label(one)}"
                facts[name] = f"{one.scores.frechet.excess:.2f}"
    return Opening("reflow", lead, facts)


def sections(found: Findings) -> list[Section]:
    """A table and two pictures for each reflow."""
    several = len(found.rounds) > 1
    return [
        Section(f"Reflow rounds: {name}" if several else "Reflow rounds", _parts(figures.rounds))
        for name, figures in found.rounds.items()
        if figures.rounds
    ]


def _parts(rounds: Sequence[RoundRow]) -> list[Part]:
    first, ratios, errors = rounds[0], [], []
    costs = ["flow", "student", *(["ours"] if first.ours_passes is not None else [])]
    for row in rounds:
        ratios.append([row.round, *(f"{one.scores.frechet.ratio:.2f}x" for one in row.samplers)])
        lost = [f"{getattr(row, error):.4g}" for error in ERRORS]
        errors.append([row.round, *lost, *(f"{getattr(row, f'{who}_passes'):,}" for who in costs)])
    ratio_caption = (
        "Frechet distances over their floor; 1.00x is as good as real data. Ours starts from"
        " round 1's flow."
    )
    error_caption = "Errors per component in model units squared, and network passes spent."
    error_head = ["round", *HEADS, *(f"passes, {who}" for who in costs)]
    shown = counted(len(rounds), "round")
    ratio_alt = f"Frechet distance over its floor in {shown}, a line per sampler"
    error_alt = (
        "errors of every round of reflow: straightness, drift, reconstruction of real and"
        " generated states"
    )
    charts = [Picture(rounds_figure(rounds), ratio_alt), Picture(errors_figure(rounds), error_alt)]
    return [
        Table(ratio_caption, ["round", *map(sampler_label, first.samplers)], ratios),
        Table(error_caption, error_head, errors),
        Gallery("charts", charts),
        Words(["straightness", "drift", "reconstruction", "floor", "pass"]),
    ]

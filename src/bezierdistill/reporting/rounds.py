"""The report of a reflow: what every round loses, and ours beside it at the same passes."""

from __future__ import annotations

from bezierdistill.records import ERRORS, Rounds
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
    ours = last is not None and last.ours_passes is not None
    lead = (
        f"Reflow on {found.asked.data}: every flow is trained on the pairs of noise and ends that"
        " the one before has made, and distilled into one"
        f" pass{'; ours beside it, at the passes that this has cost' if ours else ''}."
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
        Section(f"Reflow rounds: {name}" if several else "Reflow rounds", _parts(figures))
        for name, figures in found.rounds.items()
        if figures.rounds
    ]


def _parts(figures: Rounds) -> list[Part]:
    rounds = figures.rounds
    first = rounds[0]
    ratios = [
        [row.round, *(f"{one.scores.frechet.ratio:.2f}x" for one in row.samplers)] for row in rounds
    ]
    costs = ["flow", "student", *(["ours"] if first.ours_passes is not None else [])]
    errors = [
        [
            row.round,
            *(f"{getattr(row, error):.4g}" for error in ERRORS),
            *(f"{getattr(row, f'{cost}_passes'):,}" for cost in costs),
        ]
        for row in rounds
    ]
    return [
        Table(
            "Frechet distances over their floor; 1.00x is as good as real data. Ours starts from"
            " round 1's flow.",
            ["round", *map(sampler_label, first.samplers)],
            ratios,
        ),
        Table(
            "Errors per component in model units squared, and network passes spent.",
            ["round", *HEADS, *(f"passes, {cost}" for cost in costs)],
            errors,
        ),
        Gallery(
            "charts",
            [
                Picture(
                    rounds_figure(rounds),
                    f"Frechet distance over its floor in {counted(len(rounds), 'round')}, a line"
                    " per sampler",
                ),
                Picture(
                    errors_figure(rounds),
                    "errors of every round of reflow: straightness, drift, reconstruction of real"
                    " and generated states",
                ),
            ],
        ),
        Words(["straightness", "drift", "reconstruction", "floor", "pass"]),
    ]

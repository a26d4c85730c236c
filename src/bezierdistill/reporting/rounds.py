"""The report of a reflow: what every round loses, and ours beside it at the same passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bezierdistill.files import check_entries, read_json
from bezierdistill.reporting.page import Section, explained, gallery, picture, table
from bezierdistill.reporting.plots import errors_figure, law_figure
from bezierdistill.reporting.runs import Run, counted

ERRORS = ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
# What every round has.
ROUND: dict[str, type | tuple[type, ...]] = {
    "round": int,
    "flow_passes": int,
    "student_passes": int,
    **dict.fromkeys(ERRORS, (int, float)),
}


def opening(run: Run) -> tuple[str, str, dict[str, object]]:
    """Kind of run, one sentence, and what one sees first."""
    file = run.rounds[0]
    rounds, whole = read_rounds(file), read_json(file, "reflow rounds")
    ours = rounds and "ours" in rounds[0]
    lead = (
        f"Reflow on {whole.get('data', 'data')}: every flow is trained on the pairs of noise and"
        " ends that the one before has made, and distilled into one"
        f" pass{'; ours beside it, at the passes that this has cost' if ours else ''}."
    )
    facts: dict[str, object] = {
        "Data": whole.get("data", ""),
        "Seed": whole.get("seed", ""),
        "Rounds": len(rounds),
    }
    for name in ("distilled, 1 pass", "ours, 1 pass"):
        last = _samplers(rounds[-1]).get(name) if rounds else None
        if last is not None:
            facts[f"Last round's excess: {name}"] = f"{last['frechet_ratio'] - 1:.2f}"
    return "reflow", lead, facts


def sections(run: Run) -> list[Section]:
    """A table and two pictures for each reflow."""
    found = [(file, read_rounds(file)) for file in run.rounds]
    several = len(found) > 1
    return [
        Section(f"Reflow rounds: {file.parent.name}" if several else "Reflow rounds", _body(rounds))
        for file, rounds in found
        if rounds
    ]


def _body(rounds: list[dict[str, Any]]) -> str:
    laws = [
        [entry["round"], *(_ratio(metrics) for metrics in _samplers(entry).values())]
        for entry in rounds
    ]
    costs = ["flow_passes", "student_passes", *(["ours_passes"] if "ours" in rounds[0] else [])]
    errors = [
        [
            entry["round"],
            *(f"{entry[key]:.4g}" for key in ERRORS),
            *(f"{entry[key]:,}" for key in costs),
        ]
        for entry in rounds
    ]
    heads = [
        "straightness",
        "drift",
        "reconstruction: real",
        "generated",
        *(f"passes, {key.removesuffix('_passes')}" for key in costs),
    ]
    pictures = [
        picture(
            law_figure(rounds),
            f"Frechet distance over its floor in {counted(len(rounds), 'round')}, a line a sampler",
        ),
        picture(
            errors_figure(rounds),
            "errors of every round of reflow: straightness, drift, reconstruction of real and"
            " generated states",
        ),
    ]
    note = (
        "Frechet distances over their floor; 1.00x is as good as real data. Ours starts from round"
        " 1's flow."
    )
    return (
        table(note, ["round", *_samplers(rounds[0])], laws)
        + table(
            "Errors a component in model units squared, and network passes spent.",
            ["round", *heads],
            errors,
        )
        + gallery("charts", pictures)
        + explained("straightness", "drift", "reconstruction", "floor", "pass")
    )


def _samplers(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {**entry["samplers"], **entry.get("ours", {})}


def _ratio(metrics: dict[str, Any]) -> str:
    return f"{metrics['frechet_ratio']:.2f}x"


def read_rounds(file: Path) -> list[dict[str, Any]]:
    """The rounds of a file.

    Raises:
        UserError: if it is damaged.
    """
    rounds = check_entries(read_json(file, "reflow rounds"), {"rounds": list}, str(file))["rounds"]
    where = f"a round of {file}"
    for entry in rounds:
        ours = ["ours"] if isinstance(rounds[0], dict) and "ours" in rounds[0] else []
        check_entries(entry, ROUND | ({"ours_passes": int} if ours else {}), where)
        for part in ("samplers", *ours):
            own = check_entries(entry, {part: dict}, where)[part]
            check_entries(own, dict.fromkeys(rounds[0][part], dict), where)
            for metrics in own.values():
                check_entries(metrics, {"frechet_ratio": (int, float)}, where)
    return rounds

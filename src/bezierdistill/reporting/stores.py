"""The report of a curve store: a picture of some curves, how many there are, how they are kept, and
what made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from bezierdistill.errors import UserError
from bezierdistill.reporting.page import Section, explained, picture, table
from bezierdistill.reporting.plots import curves_figure
from bezierdistill.reporting.runs import Run, counted, number
from bezierdistill.store import CurveStore

SHOWN, MEASURED = 8, 256


def opening(run: Run) -> tuple[str, str, dict[str, object]]:
    """Kind of run, one sentence, and what one sees first."""
    store = next(iter(run.stores.values()))
    teachers = (
        "a field of one's own"
        if "network" in store.recipe
        else counted(len(store.recipe.get("teachers", [])), "teacher")
    )
    start = store.recipe.get("source") or "noise"
    lead = (
        f"Bezier curves from {start} to data, simulated by {teachers}: what a student is distilled"
        " from."
    )
    facts = {
        "Curves": f"{len(store):,}",
        "Degree": store.recipe["degree"],
        "Bytes a curve": f"{_bytes(store):,.0f}",
        "Seed": store.recipe.get("seed", "several"),
    }
    return (
        "curve store",
        lead,
        {
            **facts,
            "Greatest error": _error(store),
            "Network passes spent": f"{store.manifest['passes']:,}",
        },
    )


def sections(run: Run, every: bool) -> list[Section]:
    """A section for each store of curves; ``every`` takes in those of straight lines."""
    chosen = {
        name: store for name, store in run.stores.items() if every or store.recipe["degree"] > 1
    }
    return [
        Section(f"Curves: {name}" if len(chosen) > 1 else "Curves", _body(store))
        for name, store in chosen.items()
    ]


def _body(store: CurveStore) -> str:
    curves = store.curves(torch.arange(min(MEASURED, len(store))))
    if not bool(curves.points.isfinite().all()):
        raise UserError(f"{store.folder} holds NaN or infinite numbers: simulate again")
    figure = curves_figure(curves, SHOWN)
    shown, degree = min(SHOWN, len(store)), store.recipe["degree"]
    alt = (
        f"{counted(shown, 'curve')} of degree {degree} from a source to a data end, with control"
        " polygons and guides"
    )
    caption = (
        f"The first {counted(shown, 'curve')}, in the plane in which the control points of"
        f" {min(MEASURED, len(store))} vary most."
    )
    return (
        picture(figure, alt, caption)
        + table("What is kept, and what made it.", [], _rows(store))
        + explained("guides")
    )


def _rows(store: CurveStore) -> list[Sequence[object]]:
    recipe, numbers = store.recipe, prod(store.recipe["shape"])
    kept = (
        f"{recipe.get('points', 'float32')}, noise {'from its seed' if store.seeded else 'stored'}"
    )
    rows: list[Sequence[object]] = [
        ["curves", f"{len(store):,}"],
        ["left out", f"{store.skipped:,} rows with NaN or infinite states"],
        ["degree", recipe["degree"]],
        ["guides", recipe.get("guides", "")],
        ["shape of a state", " x ".join(map(str, recipe["shape"]))],
        ["bytes a curve", f"{_bytes(store):,.1f}; a pair of float32 states has {8 * numbers:,}"],
        ["kept as", kept],
        ["greatest error", _error(store)],
        ["seed", recipe.get("seed", "of each of its parts")],
        [
            "solver",
            (
                f"{recipe.get('solver', '')}, {recipe.get('steps', '')} steps"
                if "solver" in recipe
                else ""
            ),
        ],
        ["teachers", "; ".join(_teacher(one, weight) for one, weight in _weighted(recipe))],
        [
            "network passes",
            (
                f"{store.manifest['passes']:,}, and {number(recipe.get('teacher_passes', 0))} for"
                " the teachers"
            ),
        ],
    ]
    rows += [[name, recipe[name]] for name in ("source", "guided", "data") if recipe.get(name)]
    rows += (
        [["merged of", counted(len(recipe["merged"]), "store")]]
        if isinstance(recipe.get("merged"), list)
        else []
    )
    rows += (
        [["imported from", recipe["imported"].get("source", "")]]
        if isinstance(recipe.get("imported"), dict)
        else []
    )
    return [row for row in rows if row[1] != ""]


def _weighted(recipe: dict[str, Any]) -> list[tuple[dict[str, Any], object]]:
    teachers, weights = recipe.get("teachers", []), recipe.get("weights")
    given = weights if isinstance(weights, list) else []
    return list(zip(teachers, [*given, *[""] * len(teachers)], strict=False))


def _teacher(entry: dict[str, Any], weight: object) -> str:
    coefficients = ":".join(map(str, weight)) if isinstance(weight, list) else str(weight)
    return (
        f"{Path(str(entry.get('path'))).name} ({str(entry.get('digest'))[:8]}) with weight"
        f" {coefficients}"
    )


def _bytes(store: CurveStore) -> float:
    return sum(shard.bytes for shard in store.shards) / len(store)


def _error(store: CurveStore) -> str:
    return f"{store.error:.2g} model units" if store.error else "none, numbers are exact"

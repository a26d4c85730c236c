"""The report of a curve store: a picture of some curves, how many there are, how they are kept, and
what made them.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from bezierdistill.errors import UserError
from bezierdistill.records import CurveRecipe
from bezierdistill.reporting.page import Opening, Part, Picture, Section, Table, Words
from bezierdistill.reporting.plots import curves_figure
from bezierdistill.reporting.runs import Findings
from bezierdistill.store import CurveStore
from bezierdistill.words import counted, spelled

SHOWN, MEASURED = 8, 256


def opening(found: Findings) -> Opening:
    """What the page begins with."""
    (store,) = found.stores.values()
    recipe = store.recipe
    start = Path(recipe.domain).name if recipe.domain else "noise"
    facts = {"bytes per curve": f"{_bytes(store):,.0f}", "seed": recipe.seed}
    title = f"{counted(len(store), 'Bezier curve')} of degree {recipe.degree} from {start} to data"
    lead = "They are what a student is distilled from."
    return Opening(title, _verdict(store), lead, facts)


def _verdict(store: CurveStore) -> str:
    """Where the curves come from, and how exact their ends are, where that was measured."""
    recipe = store.recipe
    if recipe.imported is not None:
        return f"Imported from {recipe.imported.source}."
    by = spelled(len(recipe.teachers), "teacher") if recipe.teachers else "a field"
    steps = f" in {counted(recipe.steps, 'solver step')}" if recipe.steps else ""
    told = f"Simulated by {by}{steps}"
    if (chosen := recipe.chosen) is None:
        return f"{told}; how exact the ends are was not measured."
    off = f"off by {chosen.error:.2g} model units, neighbours are {chosen.neighbours:.2g} apart"
    return f"{told}: the ends are {off}."


def sections(found: Findings, every: bool) -> list[Section]:
    """A section for each store of curves, behind the models that there are; ``every`` takes in
    those of straight lines.
    """
    stores, folded = found.stores.items(), not every
    chosen = {name: _parts(store) for name, store in stores if every or store.recipe.degree > 1}
    titles = {name: f"Curves: {name}" if len(chosen) > 1 else "Curves" for name in chosen}
    return [Section(titles[name], own, folded) for name, own in chosen.items()]


def _parts(store: CurveStore) -> list[Part]:
    measured = min(MEASURED, len(store))
    curves = store.curves(torch.arange(measured))
    if not bool(curves.points.isfinite().all()):
        raise UserError(f"{store.folder} holds NaN or infinite numbers: simulate again")
    shown = counted(min(SHOWN, len(store)), "curve")
    alt = (
        f"{shown} of degree {store.recipe.degree} from a source to a data end, with control"
        " polygons and guides"
    )
    how = f"The first {shown}, in the plane in which the control points of {measured} vary most."
    picture = Picture(curves_figure(curves, SHOWN), alt, how)
    return [picture, Table("What is kept, and what made it.", [], _rows(store)), Words(["guides"])]


def _rows(store: CurveStore) -> list[tuple[str, object]]:
    recipe, pair = store.recipe, 8 * prod(store.recipe.shape)
    passes = f"{store.manifest.passes:,}, and {recipe.teacher_passes:,} for the teachers"
    rows: list[tuple[str, object]] = [
        ("curves", f"{len(store):,}"),
        ("left out", f"{counted(store.skipped, 'row')} with NaN or infinite states"),
        ("degree", recipe.degree),
        ("guides", recipe.guides),
        ("shape of a state", " x ".join(map(str, recipe.shape))),
        ("bytes per curve", f"{_bytes(store):,.1f}; a pair of float32 states has {pair:,}"),
        ("kept as", f"{recipe.points}, noise {'from its seed' if store.seeded else 'stored'}"),
        ("greatest error", _error(store)),
        ("seed", recipe.seed),
        ("solver", recipe.solver and f"{recipe.solver}, {counted(recipe.steps or 0, 'step')}"),
        ("error of the ends", _chosen(recipe)),
        ("teachers", "; ".join(_teachers(recipe))),
        ("network passes", passes),
        ("domain", recipe.domain),
        ("classes", ", ".join(recipe.conditions.names)),
        ("guidance scale", " to ".join(f"{scale:g}" for scale in recipe.conditions.guided)),
        ("inverted from", recipe.invert_from),
        ("merged of", counted(len(recipe.merged), "store") if recipe.merged else ""),
        ("imported from", recipe.imported and recipe.imported.source),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def _chosen(recipe: CurveRecipe) -> str | None:
    """By how much the ends are off in so many solver steps, where that was measured."""
    if (chosen := recipe.chosen) is None:
        return None
    told = f"{chosen.error:.2g} model units, neighbours are {chosen.neighbours:.2g} apart"
    aim = f"steps were chosen for {chosen.tolerance:g} of that distance"
    return f"{told}; {aim}{'' if chosen.reached else ', which was not reached'}"


def _teachers(recipe: CurveRecipe) -> list[str]:
    weights = [":".join(f"{number:g}" for number in row) for row in recipe.weights]
    pairs = zip(recipe.teachers, weights, strict=False)
    return [f"{Path(ref.path).name} ({ref.digest[:8]}) with weight {own}" for ref, own in pairs]


def _bytes(store: CurveStore) -> float:
    return sum(shard.bytes for shard in store.shards) / len(store)


def _error(store: CurveStore) -> str:
    return f"{store.error:.2g} model units" if store.error else "none, numbers are exact"

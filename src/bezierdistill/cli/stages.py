"""The verbs that make something of data: stages, and what runs many of them."""

from __future__ import annotations

import sys
from typing import Any

from bezierdistill.arena.demo import DemoConfig, demo
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.cli.results import Verb, facts
from bezierdistill.reporting import print_arena, print_rows, write_report
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train


def _train(config: TrainConfig) -> dict[str, Any]:
    model = train(config)
    print(f"{config.out}: teacher for {config.data}, {model.spent:,} network passes spent")
    return facts(model)


def _simulate(config: SimulateConfig) -> dict[str, Any]:
    store = simulate(config)
    passes = store.manifest["passes"]
    print(
        f"{config.out}: {len(store):,} curves of degree {config.degree}, {passes:,} network passes"
        " spent"
    )
    return {
        "out": config.out,
        "rows": len(store),
        "skipped": store.skipped,
        "degree": config.degree,
        "passes": passes,
    }


def _distill(config: DistillConfig) -> dict[str, Any]:
    model = distill(config)
    knots = "; ".join(
        f"{k}: {', '.join(f'{t:g}' for t in times)}" for k, times in model.knots.items()
    )
    print(
        f"{config.out}: student with knots {knots or 'evenly spaced'}, {model.spent:,} network"
        " passes spent in all"
    )
    return facts(model)


def _recipe(config: RecipeConfig) -> dict[str, Any]:
    model = run_recipe(config)
    print(
        f"{config.out / 'student'}: student of one and two passes, {model.spent:,} network passes"
        " spent in all"
    )
    return facts(model)


def _reflow(config: ReflowConfig) -> dict[str, Any]:
    rounds = reflow(config)
    for row in rounds:
        figures = ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
        print(f"round {row['round']}: {', '.join(f'{name} {row[name]:.4g}' for name in figures)}")
        print_rows(
            [
                {"method": name, **metrics}
                for name, metrics in {**row["samplers"], **row.get("ours", {})}.items()
            ]
        )
    if not config.report:
        return {"out": config.out, "rounds": rounds}
    page = write_report(config.out)
    print(page)
    return {"out": config.out, "rounds": rounds, "report": page}


def _arena(config: ArenaConfig) -> dict[str, Any]:
    rows = arena(config)
    failed = [f"{row['method']} (seed {row['seed']})" for row in rows if "error" in row]
    if failed:
        print(
            f"failed: {', '.join(failed)}; the reason stands in arena.json, remove the cell's file"
            " to try again",
            file=sys.stderr,
        )
    return _compared(config, rows)


def _demo(config: DemoConfig) -> dict[str, Any]:
    return _compared(config, demo(config))


def _compared(config: ArenaConfig | DemoConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    print_arena(rows)
    page = write_report(config.out)
    print(page)
    return {"out": config.out, "rows": rows, "report": page}


STAGES: dict[str, Verb] = {
    "demo": (DemoConfig, _demo),
    "recipe": (RecipeConfig, _recipe),
    "train": (TrainConfig, _train),
    "simulate": (SimulateConfig, _simulate),
    "distill": (DistillConfig, _distill),
    "arena": (ArenaConfig, _arena),
    "reflow": (ReflowConfig, _reflow),
}

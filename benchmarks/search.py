"""The arena's search of settings: four trials or more for every method, on one development task and
seed.

    python benchmarks/search.py --out runs/search [--methods rfd-1 dmd ...]

The first trial is what the method's authors recommend where they say so (the share of the budget
that a teacher gets, 0.4, is nobody's recommendation). Trials are scored by the mean excess over the
numbers of passes that a method reports (1 and 2); the best one becomes the default in
``bezierdistill/arena/methods.py``, for every task and seed of the arena. The development seed, 100,
is not judged there. Ours was developed on more: docs/log.md tells on what.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from bezierdistill.arena import methods
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.summary import excess

SEED = 100
LOW, HIGH = {"share": 0.25}, {"share": 0.55}
TRIALS: dict[str, list[dict[str, Any]]] = {
    "bezier": [
        {},
        {"shares": {"align": 0.1}},
        {"shares": {"align": 0.2}},
        {"shares": {"curves": 0.05, "weak": 0.05}, "simulate": {"steps": 6}},
        {"distill": {"anchor": 0.1}},
    ],
    "rf-2": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "huber": 0.03}],
    "rf-3": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "huber": 0.03}],
    "rfd-1": [{"share": 0.4}, HIGH, {"share": 0.7}, {"share": 0.4, "huber": 0.03}],
    "rfd-2": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "huber": 0.03}],
    "rfd-3": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "huber": 0.03}],
    "rfd-1-two": [{"share": 0.4}, HIGH, {"share": 0.7}, {"share": 0.4, "huber": 0.03}],
    "rf-2++": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "huber": 0.0}],
    "conic": [{"share": 0.4}, HIGH, {"share": 0.4, "zeta": 0.23}, {"share": 0.4, "zeta": 0.05}],
    "progressive": [{"share": 0.4}, LOW, {"share": 0.4, "steps": 8}, {"share": 0.4, "steps": 32}],
    "consistency-distillation": [
        {"share": 0.4},
        LOW,
        {"share": 0.4, "even": True},
        {"share": 0.4, "even": True, "huber": 0.03},
    ],
    "consistency-tuning": [
        {"share": 0.4},
        HIGH,
        {"share": 0.4, "huber": 0.03},
        {"share": 0.4, "huber": 0.1},
        {"share": 0.4, "lr": 3e-4},
    ],
    "consistency-training": [
        {},
        {"huber": 0.03},
        {"huber": 0.1},
        {"huber": 0.03, "log_mean": 0.0, "log_std": 1.4},
    ],
    "shortcut": [{}, {"share": 0.125}, {"share": 0.5}, {"share": 0.75}],
    "mean-flow": [
        {},
        {"power": 0.0},
        {"share": 0.75, "power": 0.75, "logit_mean": -2.0, "logit_std": 2.0},
        {"share": 0.5, "power": 0.5, "logit_std": 2.0},
    ],
    "flow-map": [{"share": 0.4}, LOW, HIGH, {"share": 0.7}],
    "flow-map-self": [{}, {"share": 0.1}, {"share": 0.35}, {"share": 0.5}],
    "piecewise": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "steps": 4, "solver": "heun"}],
    "piecewise-one": [{"share": 0.4}, LOW, HIGH, {"share": 0.4, "steps": 4, "solver": "heun"}],
    "acceleration": [
        {"share": 0.4},
        {"share": 0.4, "h": 1.0},
        LOW,
        {"share": 0.4, "velocity": 0.3},
    ],
    "moments": [{"share": 0.4, "lr": 2e-4}, {"share": 0.4}, {}, {"lr": 5e-4}],
    "dmd": [
        {"share": 0.4},
        {"share": 0.4, "times": (0.02, 0.7)},
        {"share": 0.4, "lr": 5e-4},
        {"share": 0.4, "critic_steps": 2},
    ],
    "dmd-two": [
        {"share": 0.4},
        {"share": 0.4, "times": (0.02, 0.7)},
        {"share": 0.4, "lr": 5e-4},
        {"share": 0.4, "critic_steps": 2},
    ],
    "dmd-gan": [
        {"share": 0.4, "lr": 1e-4, "critic_steps": 5},
        {"share": 0.4, "lr": 1e-4, "critic_steps": 2},
        {"share": 0.4, "lr": 5e-4, "critic_steps": 2},
        {"share": 0.4, "lr": 2e-3, "critic_steps": 2},
        {"share": 0.4, "lr": 1e-4, "generator_weight": 3e-2, "critic_weight": 1e-1},
    ],
    "fsf": [
        {"share": 0.4, "track": 0.0},
        {"share": 0.4, "track": 1.0},
        {"share": 0.4, "track": 0.1},
        {"share": 0.4, "track": 1.0, "lr": 5e-4},
        {"share": 0.4, "track": 1.0, "mapped": 0.8},
        {"share": 0.4, "track": 1.0, "mapped": 0.0},
    ],
    "drifting": [
        {"real_rows": 1},
        {"real_rows": 4},
        {"real_rows": 4, "widths": (0.05, 0.2, 0.5)},
        {"real_rows": 4, "normalised": False},
        {"share": 0.4, "real_rows": 4, "lr": 5e-4},
    ],
    "drifting-teacher": [
        {"share": 0.4, "time": None},
        {"share": 0.4, "time": None, "lr": 5e-4},
        {"share": 0.4, "time": 0.9},
        {"share": 0.4, "time": None, "real_rows": 4},
        {"share": 0.4, "time": None, "widths": (0.05, 0.2, 0.5)},
    ],
    "pi-flow": [
        {"share": 0.4, "outputs": 10},
        {"share": 0.4, "outputs": 10, "points": 4},
        {"share": 0.4, "outputs": 4},
        {"share": 0.4, "outputs": 10, "huber": 0.03},
        {"share": 0.4, "outputs": 4, "points": 1},
    ],
    "freeflow": [
        {"share": 0.4, "corrected": 0.5, "lr": 2e-3},
        {"share": 0.4, "corrected": 0.5},
        {"share": 0.4, "corrected": 0.25},
        {"share": 0.4, "corrected": 0.75},
        {"share": 0.4, "corrected": 0.5, "huber": 0.03},
    ],
    "cmt": [
        {"share": 0.4, "mid": 0.5},
        {"share": 0.4, "mid": 0.25},
        {"share": 0.4, "mid": 0.75},
        {"share": 0.4, "mid": 0.5, "huber": 0.03},
        {"share": 0.4, "mid": 0.5, "decay": 16.0},
        {"share": 0.4, "mid": 0.5, "stages": 8, "decay": 2.0},
    ],
    "ayf": [
        {"share": 0.4, "strength": 2.0, "lr": 2e-3, "lagrangian": False},
        {"share": 0.4, "strength": 1.25, "lagrangian": False, "lr": 3e-4},
        {"share": 0.4, "strength": 1.25, "lagrangian": False, "lr": 3e-4, "whole": 0.5},
        {"share": 0.4, "strength": 1.25, "lagrangian": False, "lr": 3e-4, "offset": None},
        {"share": 0.4, "strength": 1.25, "lagrangian": False, "lr": 1e-3},
        {"share": 0.4, "strength": 1.25, "lr": 2e-3},
    ],
    "soflow": [
        {"share": 0.25, "power": 1.0, "logit_std": 1.0},
        {"share": 0.25, "power": 0.0, "logit_std": 1.0},
        {"share": 0.25, "power": 0.5, "logit_std": 2.0},
        {"share": 0.5, "power": 0.5, "logit_std": 2.0},
        {"share": 0.5, "power": 0.5, "logit_std": 2.0, "last": 0.05},
    ],
    "terminal-velocity": [
        {},
        {"gap_std": 2.0},
        {"gap_mean": 0.5, "gap_std": 1.5},
        {"gap_mean": 0.5, "gap_std": 1.5, "logit_std": 2.0},
    ],
    "re-meanflow": [
        {"share": 0.4, "power": 1.0},
        {"share": 0.4, "power": 1.0, "dropped": 0.0},
        {"share": 0.4, "power": 0.0},
        {"share": 0.4, "power": 0.5},
        {"share": 0.4, "power": 1.0, "logit_mean": 0.5, "logit_std": 1.5},
    ],
}


def label(settings: dict[str, Any]) -> str:
    """Settings as text, also used in file names."""
    return (
        " ".join(f"{key}={value}".replace(", ", "-") for key, value in settings.items())
        or "the authors'"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="manifold")
    parser.add_argument("--methods", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--fast", action="store_true", help="small trials, to see that it works")
    options = parser.parse_args()
    trials = {
        f"{name} {label(settings)}": (name, settings)
        for name in options.methods
        for settings in TRIALS[name]
    }
    methods.METHODS.update(
        {
            trial: partial(methods.METHODS[name], **settings)
            for trial, (name, settings) in trials.items()
        }
    )
    config = ArenaConfig(
        options.data, options.out, tuple(trials), seeds=1, first_seed=SEED, fast=options.fast
    )
    rows = arena(config)
    lines = ["| method | settings | excess | at 1, 2 passes |", "|---|---|---|---|"]
    for name in options.methods:
        values = {trial: _values(rows, trial) for trial, (own, _) in trials.items() if own == name}
        best = min(values, key=lambda trial: statistics.mean(values[trial] or [math.inf]))
        for trial, found in values.items():
            score = f"{statistics.mean(found):.2f}" if found else "failed"
            text = f"**{score}**" if trial == best else score
            lines.append(
                f"| {name} | {label(trials[trial][1])} | {text} |"
                f" {', '.join(f'{value:.2f}' for value in found)} |"
            )
    (options.out / "search.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _values(rows: list[ArenaRow], trial: str) -> list[float]:
    return [excess(row) for row in rows if row.method == trial and row.passes in (1, 2)]


if __name__ == "__main__":
    main()

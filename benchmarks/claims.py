"""Ours against rectified-flow distillation at equal network passes: the demo's comparison on two tasks and three seeds.

    python benchmarks/claims.py --out runs/claims [--tasks digits manifold] [--seeds 3]

Excess is Frechet distance over its floor, minus one. For every task and seed: the excess of our one- and two-pass student, of the better
of rectified-flow distillation k=1 and k=2, of 2-rectified flow with two Euler passes, and the ratios. A task and seed that is finished is
not run again. The settings are those of ``recipes/demo-TASK.yaml``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bezierdistill.cli import main as command

OURS = "Bezier distillation"
RIVALS = ("rectified-flow distillation, k=1", "rectified-flow distillation, k=2")


def excess(result: dict[str, Any], method: str, passes: int) -> float:
    """Frechet distance over its floor, minus one."""
    (row,) = (row for row in result["rows"] if row["method"] == method and row["passes"] == passes)
    return row["frechet_ratio"] - 1


def figures(result: dict[str, Any]) -> dict[str, float]:
    """What the table shows of one run."""
    ours, two = excess(result, OURS, 1), excess(result, OURS, 2)
    rivals = [excess(result, method, 1) for method in RIVALS]
    return {
        "teacher, 40": excess(result, "teacher, Heun", 40),
        "blend, 32": excess(result, "blend of teachers, Heun", 32),
        "RF distil k=1": rivals[0],
        "RF distil k=2": rivals[1],
        "ours, 1 pass": ours,
        "ratio, 1 pass": ours / min(rivals),
        "2-RF Euler-2": excess(result, "2-rectified flow, Euler", 2),
        "ours, 2 passes": two,
        "ratio, 2 to 1": two / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["digits", "manifold"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    table = Table(title="excess of the Frechet distance over its floor (0 is as good as real data); ratios below 1: ours is better")
    for task in options.tasks:
        results = []
        for seed in range(options.seeds):
            folder = options.out / f"{task}-{seed}"
            recipe = Path(__file__).parents[1] / "recipes" / f"demo-{task}.yaml"
            if not (folder / "metrics.json").exists() and command(
                ["demo", "--config", str(recipe), "--out", str(folder), "--seed", str(seed)]
            ):
                raise SystemExit(2)
            results.append(figures(json.loads((folder / "metrics.json").read_text())))
            if not table.columns:
                for heading in ("task", "seed", *results[0]):
                    table.add_column(heading, justify="right")
            table.add_row(task, str(seed), *(f"{value:.2f}" for value in results[-1].values()))
        means = [statistics.mean(result[key] for result in results) for key in results[0]]
        table.add_row(task, "mean", *(f"{value:.2f}" for value in means), style="bold", end_section=True)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

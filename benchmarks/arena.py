"""The arena on five tasks, and what it says about our claims.

    python benchmarks/arena.py --out runs/arena [--tasks manifold digits] [--seeds 3] [--shared ../shared/data]

Cells that are finished are not run again, so it can be stopped and started, and two processes can share the tasks. Seeds are run in the
outer loop. Every call ends with ``OUT/results.md``: tables over all tasks found in OUT, and the claims with their figures.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bezierdistill.arena.methods import METHODS, OURS
from bezierdistill.arena.runner import ArenaConfig, arena, gather
from bezierdistill.arena.summary import excess, standard_error

TASKS = {
    "manifold": "manifold",
    "manifold64": "manifold64",
    "digits": "digits",
    "fashion-pca48": "{shared}/fashion_mnist.npz@pca48",
    "mnist-pca48": "{shared}/mnist.npz@pca48",
}
ABLATIONS = {
    "bezier-lines": "no curves: straight lines",
    "bezier-one-teacher": "no second teacher",
    "bezier-squared": "no pseudo-Huber: squared loss",
    "bezier-unaligned": "no law alignment",
    "bezier-searched": "the blend's weight searched",
}
NOT_RANKED = {*ABLATIONS, "bezier-half", "bezier-teacher"}
METRICS = {"frechet": "Fréchet", "sliced_wasserstein": "sliced Wasserstein", "energy": "energy"}
DISTILLED = ("rfd-1", "rfd-2", "rfd-3")
Rows = list[dict[str, Any]]


class Results:
    """Rows of all tasks, asked by method, passes and metric."""

    def __init__(self, rows: dict[str, Rows]) -> None:
        self.rows = {task: [row for row in own if "error" not in row] for task, own in rows.items()}
        self.failed = [
            f"{task}: {row['method']}, seed {row['seed']}: {row['error']}" for task in rows for row in rows[task] if "error" in row
        ]

    def values(self, task: str, method: str, passes: int, metric: str = "frechet") -> list[float]:
        """Excess of every seed."""
        return [excess(row, metric) for row in self.rows[task] if row["method"] == method and row["passes"] == passes]

    def mean(self, method: str, passes: int, metric: str = "frechet", task: str | None = None) -> float:
        """Mean over seeds, then over tasks; infinite if a task has no figure."""
        values = [self.values(own, method, passes, metric) for own in ([task] if task else self.rows)]
        return statistics.mean(statistics.mean(own) for own in values) if all(values) else math.inf

    def without(self, methods: Iterable[str]) -> list[str]:
        """Those of the methods that have no figure on some task."""
        found = [{row["method"] for row in rows} for rows in self.rows.values()]
        return [method for method in methods if not all(method in own for own in found)]

    def methods(self, passes: int) -> list[str]:
        """Ranked methods with a figure at a number of passes, the best mean first."""
        found = {row["method"] for rows in self.rows.values() for row in rows if row["passes"] == passes} - NOT_RANKED
        return sorted(found, key=lambda method: self.mean(method, passes))


def cell(values: list[float]) -> str:
    """Mean and standard error as text."""
    if not values:
        return "-"
    error = f" ± {standard_error(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


def table(results: Results, passes: int, methods: list[str]) -> list[str]:
    """A method a line, a task a column, and the mean over tasks in three metrics."""
    head = ["method", *results.rows, *(f"mean, {name}" for name in METRICS.values())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in methods:
        cells = [cell(results.values(task, method, passes)) for task in results.rows]
        means = [results.mean(method, passes, metric) for metric in METRICS]
        name = f"**{method}**" if method == OURS else method
        lines.append(f"| {name} | {' | '.join(cells)} | {' | '.join('-' if math.isinf(mean) else f'{mean:.2f}' for mean in means)} |")
    return lines


def first(results: Results, passes: int) -> list[str]:
    """Where ours stands on every task at a number of passes."""
    lines = []
    for task in results.rows:
        means = {method: results.mean(method, passes, task=task) for method in results.methods(passes)}
        ours = results.values(task, OURS, passes)
        better = [f"{method} {mean:.2f}" for method, mean in means.items() if mean < means[OURS]]
        within = not better or min(means.values()) >= means[OURS] - standard_error(ours)
        lines.append(
            f"{task}: {means[OURS]:.2f}, {'first' if not better else 'within one standard error of the first' if within else 'behind'}"
            f"{' (' + ', '.join(better) + ')' if better else ''}"
        )
    return lines


def claims(results: Results) -> list[str]:
    """The statements, each with its figures and whether it holds."""
    ours, half = results.mean(OURS, 1), results.mean("bezier-half", 1)
    best = min(results.mean(method, 1) for method in DISTILLED)
    two = {method: results.mean(method, 2) for method in results.methods(2) if method != OURS}
    rival = min(two, key=lambda method: two[method])
    ratios = {name: results.mean(OURS, 1, m) / min(results.mean(d, 1, m) for d in DISTILLED) for m, name in METRICS.items()}
    teachers = {task: results.mean("bezier-teacher", 20, task=task) for task in results.rows}
    reached = [task for task in results.rows if results.mean(OURS, 1, task=task) <= teachers[task]]

    def verdict(holds: bool) -> str:
        return "holds" if holds else "does NOT hold"

    return [
        f"1. One pass, ours over the best rectified-flow distillation (k = 1, 2, 3) at equal total passes: {ours:.2f} / {best:.2f} = "
        f"{ours / best:.2f} (wanted: 0.65 or less): {verdict(ours <= 0.65 * best)}. By metric: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        + ".",
        f"2. One pass, rank among all methods: {'; '.join(first(results, 1))}. At half the budget ours has {half:.2f}, "
        f"rectified-flow distillation at the full one {best:.2f}: {verdict(half < best)}.",
        f"3. Two passes, rank among all methods: {'; '.join(first(results, 2))}. Mean: ours {results.mean(OURS, 2):.2f}, the best other "
        f"({rival}) {two[rival]:.2f}; at half the budget {results.mean('bezier-half', 2):.2f}.",
        f"4. Ours at one pass no worse than its best teacher at 20: on {len(reached)} of {len(teachers)} tasks ("
        + ", ".join(f"{task} {results.mean(OURS, 1, task=task):.2f} against {value:.2f}" for task, value in teachers.items())
        + f"): {verdict(len(reached) >= min(3, len(teachers)))}.",
    ]


def ablation(results: Results) -> list[str]:
    """What every ingredient is worth: excess without it, and the ratio to the whole recipe; methods that were not run are left out."""
    lines = ["| | 1 pass | ratio | 2 passes | ratio | seconds |", "|---|---|---|---|---|---|"]
    for method, text in {OURS: "the whole recipe", **ABLATIONS}.items():
        if method in results.without(ABLATIONS):
            continue
        seconds = [row["seconds"] for rows in results.rows.values() for row in rows if row["method"] == method]
        cells = []
        for passes in (1, 2):
            mean = results.mean(method, passes)
            cells += [f"{mean:.2f}", f"{mean / results.mean(OURS, passes):.2f}"]
        lines.append(f"| {text} | {' | '.join(cells)} | {statistics.mean(seconds):.0f} |")
    return lines


def write_results(out: Path) -> str:
    """All tables and claims of a folder as Markdown."""
    folders = [out / task for task in TASKS if (out / task / "run.json").exists()]
    results = Results({folder.name: gather(folder) for folder in folders})
    settings = json.loads((folders[0] / "run.json").read_text())
    network, machine = settings["network"], settings["machine"]
    seeds = sorted({row["seed"] for rows in results.rows.values() for row in rows})
    parts = [
        f"Budget {settings['budget']:,} network passes a method and seed; network {network['kind']} {network['depth']} x "
        f"{network['width']}; batch {settings['batch']}; seeds {', '.join(map(str, seeds))}; {settings['samples']:,} samples judged. "
        f"Machine: {machine['cores']} cores, {machine['processor']}, {machine['threads']} thread(s) a process, torch {machine['torch']}.",
        "### One pass",
        "\n".join(table(results, 1, results.methods(1))),
        "### Two passes",
        "\n".join(table(results, 2, results.methods(2))),
        "### Four and twenty passes, and ours at half the budget",
        "\n".join([*table(results, 4, results.methods(4)), *table(results, 20, ["bezier-teacher"])[2:]]),
        "Ours at half the budget, one pass, then two:",
        "\n".join(table(results, 1, ["bezier-half"]) + table(results, 2, ["bezier-half"])[2:]),
        "### The claims",
    ]
    missing = results.without([OURS, "bezier-half", "bezier-teacher", *DISTILLED])
    if missing or len(results.methods(2)) < 2:
        parts.append(f"They are not judged: some task has no figures of {', '.join(missing) or 'another method at two passes'}.")
    else:
        parts += ["\n".join(claims(results)), "### What every ingredient is worth", "\n".join(ablation(results))]
    if results.failed:
        parts += ["Failed cells:", "\n".join(f"- {line}" for line in results.failed)]
    text = "\n\n".join(parts) + "\n"
    (out / "results.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder with mnist.npz and fashion_mnist.npz")
    options = parser.parse_args()
    for seed in range(options.seeds):
        for task in options.tasks:
            data = TASKS[task].format(shared=options.shared)
            if "@" in data and not Path(data.split("@")[0]).exists():
                print(f"{task} is left out: no file {data.split('@')[0]}")
                continue
            arena(ArenaConfig(data, options.out / task, options.methods, seeds=1, first_seed=seed))
    print(write_results(options.out))


if __name__ == "__main__":
    main()

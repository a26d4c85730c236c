"""The arena on five tasks, and what it says about our claims.

    python benchmarks/arena.py --out runs/arena [--tasks manifold digits] [--seeds 3] [--shared
    ../shared/data]

Cells that are finished are not run again, so it can be stopped and started, and two processes can
share the tasks. Seeds are run in the outer loop. Every call ends with ``OUT/results.md``: tables
over all tasks found in OUT, and the claims with their figures.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from bezierdistill.arena.methods import OURS
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.summary import excess, gather, standard_error
from bezierdistill.run import RUN, read_made, read_settings

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
    "bezier-plain": "neither: rectified-flow distillation, aligned",
    "bezier-squared": "no pseudo-Huber: squared loss",
    "bezier-unaligned": "no alignment",
}
NOT_RANKED = {*ABLATIONS, "bezier-half", "bezier-teacher"}
METRICS = {
    "frechet": "Fréchet",
    "sliced_wasserstein": "sliced Wasserstein",
    "energy": "energy",
}  # ours and moments train on the last
DISTILLED = {1: ("rfd-1", "rfd-2", "rfd-3"), 2: ("rfd-1-two",)}
SHARES = ("precision", "recall")
# What papers publish: the first is better than the second at that many passes (CIFAR-10 or
# ImageNet; not at our budget).
ORDERINGS = (
    ("rf-2", "teacher-euler", 1, "Liu et al. 2022"),
    ("rfd-1", "teacher-euler", 1, "Liu et al. 2022"),
    ("rf-3", "rf-2", 1, "Liu et al. 2022"),
    ("rfd-2", "rfd-1", 1, "Liu et al. 2022"),
    ("rfd-2", "rf-2", 1, "Liu et al. 2022"),
    ("rfd-3", "rf-3", 1, "Liu et al. 2022"),
    ("rf-2++", "rf-2", 1, "Lee et al. 2024"),
    ("conic", "rf-2", 1, "Kim et al. 2025"),
    ("progressive", "teacher-euler", 1, "Salimans & Ho 2022"),
    ("consistency-distillation", "teacher-euler", 1, "Song et al. 2023"),
    ("consistency-training", "consistency-distillation", 1, "Song & Dhariwal 2023"),
    ("consistency-tuning-two", "consistency-training-two", 2, "Geng et al. 2024"),
    (
        "consistency-tuning-two",
        "consistency-tuning-two",
        2,
        "Geng et al. 2024: two passes better than one",
    ),
    ("shortcut", "teacher-euler", 1, "Frans et al. 2024"),
    ("mean-flow", "shortcut", 1, "Geng et al. 2025"),
    ("flow-map", "teacher-euler", 2, "Boffi et al. 2024"),
    ("flow-map-self", "shortcut", 1, "Boffi et al. 2025"),
    ("piecewise", "teacher-euler", 2, "Yan et al. 2024"),
    ("acceleration", "rf-2", 2, "Park et al. 2024"),
    ("dmd", "consistency-distillation", 1, "Yin et al. 2024"),
    ("teacher-heun", "teacher-euler", 4, "second order against first"),
)


class Results:
    """Rows of all tasks, asked by method, passes and metric."""

    def __init__(self, rows: dict[str, list[ArenaRow]]) -> None:
        self.rows = {task: [row for row in own if row.scores] for task, own in rows.items()}
        self.failed = [
            f"{task}: {row.method}, seed {row.seed}: {row.error}"
            for task, own in rows.items()
            for row in own
            if row.error is not None
        ]

    def chosen(self, task: str, method: str, passes: int) -> list[ArenaRow]:
        """Rows of every seed."""
        return [row for row in self.rows[task] if (row.method, row.passes) == (method, passes)]

    def values(self, task: str, method: str, passes: int, metric: str = "frechet") -> list[float]:
        """Excess of every seed."""
        return [excess(row, metric) for row in self.chosen(task, method, passes)]

    def mean(
        self, method: str, passes: int, metric: str = "frechet", task: str | None = None
    ) -> float:
        """Mean over seeds, then over tasks; infinite if a task has no figure."""
        values = [
            self.values(own, method, passes, metric) for own in ([task] if task else self.rows)
        ]
        return overall(values)

    def share(self, method: str, passes: int, key: str) -> float:
        """Mean precision or recall over seeds, then over tasks; infinite if a task has no
        figure.
        """
        return overall(
            [
                [row.judged[key].value for row in self.chosen(task, method, passes)]
                for task in self.rows
            ]
        )

    def without(self, methods: Iterable[str]) -> list[str]:
        """Those of the methods that have no figure on some task."""
        found = [{row.method for row in rows} for rows in self.rows.values()]
        return [method for method in methods if not all(method in own for own in found)]

    def methods(self, passes: int) -> list[str]:
        """Ranked methods with a figure at a number of passes, the best mean first."""
        found = {
            row.method for rows in self.rows.values() for row in rows if row.passes == passes
        } - NOT_RANKED
        return sorted(found, key=lambda method: (self.mean(method, passes), method))


def overall(values: list[list[float]]) -> float:
    """Mean over seeds, then over tasks; infinite if a task has no figure."""
    return statistics.mean(statistics.mean(own) for own in values) if all(values) else math.inf


def cell(values: list[float]) -> str:
    """Mean and standard error as text."""
    if not values:
        return "-"
    error = f" ± {standard_error(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


def table(results: Results, passes: int, methods: list[str]) -> list[str]:
    """A method a line, a task a column, the mean over tasks in three metrics, and mean precision
    and recall.
    """
    head = ["method", *results.rows, *(f"mean, {name}" for name in METRICS.values()), *SHARES]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in methods:
        cells = [cell(results.values(task, method, passes)) for task in results.rows]
        means = [results.mean(method, passes, metric) for metric in METRICS] + [
            results.share(method, passes, key) for key in SHARES
        ]
        name = f"**{method}**" if method == OURS else method
        lines.append(
            f"| {name} | {' | '.join(cells)} |"
            f" {' | '.join('-' if math.isinf(mean) else f'{mean:.2f}' for mean in means)} |"
        )
    return lines


def standing(results: Results, passes: int) -> tuple[str, bool]:
    """Where ours stands on every task at a number of passes, and whether it is first or within one
    standard error everywhere.
    """
    lines, good = [], True
    for task in results.rows:
        means = {
            method: results.mean(method, passes, task=task) for method in results.methods(passes)
        }
        better = [f"{method} {mean:.2f}" for method, mean in means.items() if mean < means[OURS]]
        within = min(means.values()) >= means[OURS] - standard_error(
            results.values(task, OURS, passes)
        )
        good = good and within
        place = (
            "first"
            if not better
            else "within one standard error of the first"
            if within
            else "behind"
        )
        lines.append(
            f"{task}: {means[OURS]:.2f}, {place}{' (' + ', '.join(better) + ')' if better else ''}"
        )
    return "; ".join(lines), good


def verdict(holds: bool) -> str:
    """A statement's last word."""
    return "holds" if holds else "does NOT hold"


def distillation(results: Results, passes: int, metric: str = "frechet") -> float:
    """The best rectified-flow distillation of as many passes."""
    return min(results.mean(method, passes, metric) for method in DISTILLED[passes])


def against_distillation(results: Results, passes: int) -> str:
    """Ours over the best rectified-flow distillation of as many passes, at equal total cost."""
    count, ours, best = (
        {1: "One pass", 2: "Two passes"}[passes],
        results.mean(OURS, passes),
        distillation(results, passes),
    )
    ratios = {
        name: results.mean(OURS, passes, metric) / distillation(results, passes, metric)
        for metric, name in METRICS.items()
    }
    return (
        f"{count}, ours over the best rectified-flow distillation ({', '.join(DISTILLED[passes])})"
        f" at equal total passes: {ours:.2f} / {best:.2f} = {ours / best:.2f} (wanted: 0.65 or"
        f" less): {verdict(ours <= 0.65 * best)}. By metric:"
        f" {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())}."
    )


def against_all(results: Results, passes: int) -> str:
    """The place of ours among all methods, and ours at half the budget."""
    text, good = standing(results, passes)
    means = {method: results.mean(method, passes) for method in results.methods(passes)}
    rival = min((method for method in means if method != OURS), key=lambda method: means[method])
    half, best = results.mean("bezier-half", passes), distillation(results, passes)
    return (
        f"Place among all methods: {text}. First, or within one standard error of the first, on"
        f" every task: {verdict(good)}. Mean over tasks: ours {means[OURS]:.2f}, the best other"
        f" ({rival}) {means[rival]:.2f}. At half the budget ours has {half:.2f}, rectified-flow"
        f" distillation at the full one {best:.2f}: {verdict(half < best)}."
    )


def claims(results: Results) -> list[str]:
    """The statements, each with its figures and whether it holds."""
    teachers = {task: results.mean("bezier-teacher", 20, task=task) for task in results.rows}
    reached = [task for task in results.rows if results.mean(OURS, 1, task=task) <= teachers[task]]
    return [
        f"1. {against_distillation(results, 1)}",
        f"2. One pass. {against_all(results, 1)}",
        f"3. {against_distillation(results, 2)} {against_all(results, 2)}",
        f"4. Ours at one pass no worse than its best teacher at 20: on {len(reached)} of"
        f" {len(teachers)} tasks ("
        + ", ".join(
            f"{task} {results.mean(OURS, 1, task=task):.2f} against {value:.2f}"
            for task, value in teachers.items()
        )
        + f"): {verdict(len(reached) >= min(3, len(teachers)))}.",
    ]


def orderings(results: Results) -> list[str]:
    """Published orderings of rivals, and the tasks on which these figures show them."""
    lines = ["| published | passes | source | seen on |", "|---|---|---|---|"]
    for better, worse, passes, source in ORDERINGS:
        other = passes if better != worse else 1
        if results.without([better, worse]):
            continue
        seen = [
            task
            for task in results.rows
            if results.mean(better, passes, task=task) < results.mean(worse, other, task=task)
        ]
        where = "every task" if len(seen) == len(results.rows) else ", ".join(seen) or "no task"
        lines.append(
            f"| {better} better than {worse} |"
            f" {passes if other == passes else f'{passes} against {other}'} | {source} | {where} |"
        )
    return lines


def ablation(results: Results) -> list[str]:
    """What every ingredient is worth: excess with the change, and the ratio to the whole recipe;
    methods that were not run are left out.
    """
    lines = ["| | 1 pass | ratio | 2 passes | ratio | seconds |", "|---|---|---|---|---|---|"]
    for method, text in {OURS: "the whole recipe", **ABLATIONS}.items():
        if method in results.without(ABLATIONS):
            continue
        seconds = [
            row.seconds for rows in results.rows.values() for row in rows if row.method == method
        ]
        cells = []
        for passes in (1, 2):
            mean = results.mean(method, passes)
            cells += [f"{mean:.2f}", f"{mean / results.mean(OURS, passes):.2f}"]
        lines.append(f"| {text} | {' | '.join(cells)} | {statistics.mean(seconds):.0f} |")
    return lines


def write_results(out: Path) -> str:
    """All tables and claims of a folder as Markdown."""
    folders = [out / task for task in TASKS if (out / task / RUN).exists()]
    results = Results({folder.name: gather(folder) for folder in folders})
    settings, made = read_settings(folders[0]).settings, read_made(folders[0])
    network, seeds = (
        settings["network"],
        sorted({row.seed for rows in results.rows.values() for row in rows}),
    )
    assert made is not None
    machine = made.machine
    parts = [
        (
            f"Budget {settings['budget']:,} network passes a method and seed; network"
            f" {network['kind']} {network['depth']} x {network['width']}; batch"
            f" {settings['batch']}; seeds {', '.join(map(str, seeds))}; {settings['samples']:,}"
            f" samples judged. Machine: {machine.cores} cores, {machine.processor},"
            f" {machine.threads} thread(s) a process, torch {machine.versions['torch']}."
        ),
        "### One pass",
        "\n".join(table(results, 1, results.methods(1))),
        "### Two passes",
        "\n".join(table(results, 2, results.methods(2))),
        "### Four and twenty passes, and ours at half the budget",
        "\n".join(
            [*table(results, 4, results.methods(4)), *table(results, 20, ["bezier-teacher"])[2:]]
        ),
        "Ours at half the budget, one pass, then two:",
        "\n".join(table(results, 1, ["bezier-half"]) + table(results, 2, ["bezier-half"])[2:]),
        "### The claims",
    ]
    missing = results.without([OURS, "bezier-half", "bezier-teacher", *DISTILLED[1], *DISTILLED[2]])
    if missing or len(results.methods(2)) < 2:
        parts.append(
            "They are not judged: some task has no figures of"
            f" {', '.join(missing) or 'another method at two passes'}."
        )
    else:
        parts += [
            "\n".join(claims(results)),
            "### What every ingredient is worth",
            "\n".join(ablation(results)),
        ]
    parts += ["### Orderings that the rivals' papers publish", "\n".join(orderings(results))]
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
    parser.add_argument("--methods", default="all")
    parser.add_argument("--fast", action="store_true", help="a small run, to see that it works")
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path("../shared/data"),
        help="folder with mnist.npz and fashion_mnist.npz",
    )
    options = parser.parse_args()
    for seed in range(options.seeds):
        for task in options.tasks:
            data = TASKS[task].format(shared=options.shared)
            if "@" in data and not Path(data.split("@")[0]).exists():
                print(f"{task} is left out: no file {data.split('@')[0]}")
                continue
            methods, out = tuple(options.methods.split(",")), options.out / task
            arena(ArenaConfig(data, out, methods, seeds=1, first_seed=seed, fast=options.fast))
    print(write_results(options.out))


if __name__ == "__main__":
    main()

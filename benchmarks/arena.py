"""The arena on seven tasks, in two tracks, and what it says about our claims.

    python benchmarks/arena.py --out runs/arena [--track own-teacher given-teacher]
    [--tasks manifold digits] [--seeds 3] [--jobs 2] [--shared ../shared/data]

Cells that are finished are not run again, so it can be stopped and started, and two processes can
share the tasks. Seeds are run in the outer loop. Every call ends with ``OUT/results.md``: for each
track tables over all tasks found in ``OUT/TRACK``, and the claims with their figures.

A figure that a method trains on has an asterisk, and no claim rests on it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from bezierdistill.arena.methods import OURS, TRAINED_ON
from bezierdistill.arena.runner import GIVEN, ArenaConfig, Track, arena
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.export import MARK, NOTE, figures, is_marked
from bezierdistill.reporting.summary import gather, standard_error
from bezierdistill.run import RUN, read_made, read_settings
from bezierdistill.words import counted

TASKS = {
    "manifold": "manifold",
    "manifold64": "manifold64",
    "digits": "digits",
    "fashion-pca48": "{shared}/fashion_mnist.npz@pca48",
    "mnist-pca48": "{shared}/mnist.npz@pca48",
    "usps-pca48": "{shared}/usps.npz@pca48",
    "loops": "loops",
}
TRACKS = get_args(Track)
TITLES = {
    "own-teacher": "Every method trains its own teacher",
    "given-teacher": "The teacher is given, the budget is distillation alone",
}
TEACHERS = {"own-teacher": "bezier-teacher", "given-teacher": GIVEN}  # sampled at 20 passes
ABLATIONS = {
    "bezier-lines": "no curves: straight lines",
    "bezier-one-teacher": "no second teacher",
    "bezier-plain": "neither: rectified-flow distillation, aligned",
    "bezier-squared": "no pseudo-Huber: squared loss",
    "bezier-unaligned": "no alignment",
    "bezier-energy": "alignment by the energy distance alone",
    "bezier-hidden": "alignment in the teacher's hidden states",
    "bezier-stored": "no on-policy rows",
    "bezier-jumps": "no emitted curves: a student that jumps",
    "on-policy": "on-policy curves alone: nothing is stored, nothing aligned",
    **{f"bezier-degree-{degree}": f"curves of degree {degree}" for degree in (2, 3, 5, 6)},
}
NOT_RANKED = {*ABLATIONS, "bezier-half", "bezier-teacher", GIVEN}
METRICS = {
    "frechet": "coarse",
    "middle": "middle",
    "fine": "fine",
    "fidelity": "fidelity",
    "sliced_wasserstein": "sliced Wasserstein",
    "energy": "energy",
}
JUDGES = ("frechet", "middle", "fine", "fidelity")  # a claim holds only if it holds by each
DISTILLED = {1: ("rfd-1", "rfd-2", "rfd-3"), 2: ("rfd-1-two",)}
SHARES = ("precision", "recall")
PASSES, THIN, PRECISION = (1, 2, 4), "loops", 0.33
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
        every = [set(figures(row)) for own in self.rows.values() for row in own]
        known = set.intersection(*every) if every else set()
        self.metrics = {name: text for name, text in METRICS.items() if name in known}

    def values(self, task: str, method: str, passes: int, metric: str = "frechet") -> list[float]:
        """The figure of every seed: excess, or what ``figures`` says of others."""
        rows = [row for row in self.rows[task] if (row.method, row.passes) == (method, passes)]
        return [figures(row)[metric] for row in rows]

    def mean(
        self, method: str, passes: int, metric: str = "frechet", task: str | None = None
    ) -> float:
        """Mean over seeds, then over tasks; infinite if a task has no figure."""
        tasks = [task] if task else [*self.rows]
        values = [self.values(own, method, passes, metric) for own in tasks]
        return statistics.mean(map(statistics.mean, values)) if all(values) else math.inf

    def error(
        self, method: str, passes: int, metric: str = "frechet", task: str | None = None
    ) -> float:
        """Standard error of that mean."""
        tasks = [task] if task else [*self.rows]
        errors = [standard_error(self.values(own, method, passes, metric)) for own in tasks]
        return math.hypot(*errors) / len(tasks)

    def without(self, methods: Iterable[str], passes: int | None = None) -> list[str]:
        """Those of the methods that have no figure on some task."""
        found = [
            {row.method for row in rows if passes in (None, row.passes)}
            for rows in self.rows.values()
        ]
        return [method for method in methods if not all(method in own for own in found)]

    def methods(self, passes: int) -> list[str]:
        """Ranked methods with a figure at a number of passes, the best mean first."""
        found = {row.method for rows in self.rows.values() for row in rows if row.passes == passes}
        return sorted(found - NOT_RANKED, key=lambda method: (self.mean(method, passes), method))

    @property
    def judges(self) -> list[str]:
        """The metrics that claims rest on: ours trains on none of them."""
        return [
            name
            for name in JUDGES
            if name in self.metrics and not is_marked(name, trained_on(OURS))
        ]


def trained_on(method: str) -> frozenset[str]:
    """Metrics that a method trains on."""
    return TRAINED_ON.get(method, frozenset())


def cell(values: list[float]) -> str:
    """Mean and standard error as text."""
    if not values:
        return "-"
    error = f" ± {standard_error(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


def table(results: Results, passes: int, methods: Sequence[str]) -> list[str]:
    """A method a line, the excess on each task a column, then the mean over tasks of every metric,
    precision and recall.
    """
    means = [*results.metrics, *SHARES]
    named = [f"mean, {text}" for text in results.metrics.values()]
    head = ["method", *results.rows, *named, *SHARES]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in methods:
        cells = [cell(results.values(task, method, passes)) for task in results.rows]
        for metric in means:
            mean = results.mean(method, passes, metric)
            mark = MARK if is_marked(metric, trained_on(method)) else ""
            cells.append("-" if math.isinf(mean) else f"{mean:.2f}{mark}")
        name = f"**{method}**" if method == OURS else method
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def place(
    results: Results, passes: int, metric: str = "frechet", task: str | None = None
) -> tuple[str, bool]:
    """Where ours stands by a metric, and whether it is first or within its standard error of the
    first.
    """
    own = results.mean(OURS, passes, metric, task)
    others = {
        method: results.mean(method, passes, metric, task)
        for method in results.methods(passes)
        if method != OURS
    }
    others = {method: mean for method, mean in others.items() if math.isfinite(mean)}
    if not others:
        return f"{own:.2f}, with no other method on all of these tasks", True
    better = sorted((mean, method) for method, mean in others.items() if mean < own)
    within = not better or better[0][0] >= own - results.error(OURS, passes, metric, task)
    words = "first" if not better else "within one standard error of the first" if within else ""
    mean, rival = min((mean, method) for method, mean in others.items())
    told = f"{own:.2f}, {words or 'behind'}"
    named = ", ".join(f"{method} {mean:.2f}" for mean, method in better[:3])
    return f"{told} ({named})" if better else f"{told} (next: {rival} {mean:.2f})", within


def standing(results: Results, passes: int) -> list[str]:
    """The place of ours by every judge in the mean over tasks, and on every task."""
    judged = {name: place(results, passes, name) for name in results.judges}
    count = counted(passes, "pass").capitalize()
    told = "; ".join(f"{METRICS[name]} {text}" for name, (text, _) in judged.items())
    holds = all(good for _, good in judged.values())
    lines = [
        f"{count}, the mean over tasks: {told}. First, or within one standard error of the first,"
        f" by each: {verdict(holds)}."
    ]
    parts, everywhere = [], True
    for task in results.rows:
        text, _ = place(results, passes, task=task)
        good = {name: place(results, passes, name, task)[1] for name in results.judges}
        missed = [METRICS[name] for name, own in good.items() if not own]
        everywhere = everywhere and not missed
        but = f" [not by {', '.join(missed)}]" if missed else ""
        parts.append(f"{task}: {text}{but}")
    lines.append(
        f"{count}, task by task: {'; '.join(parts)}. On every task: {verdict(everywhere)}."
    )
    return lines


def verdict(holds: bool) -> str:
    """A statement's last word."""
    return "holds" if holds else "does NOT hold"


def against_distillation(results: Results, passes: int) -> str:
    """Ours over the best rectified-flow distillation of as many passes, at equal passes."""

    def best(metric: str) -> float:
        return min(results.mean(method, passes, metric) for method in DISTILLED[passes])

    own, other = results.mean(OURS, passes), best("frechet")
    ratios = {name: results.mean(OURS, passes, name) / best(name) for name in results.metrics}
    told = ", ".join(
        f"{METRICS[name]} {ratio:.2f}{MARK if is_marked(name, trained_on(OURS)) else ''}"
        for name, ratio in ratios.items()
    )
    return (
        f"{counted(passes, 'pass').capitalize()}, ours over the best rectified-flow distillation"
        f" ({', '.join(DISTILLED[passes])}): {own:.2f} / {other:.2f} = {own / other:.2f} (wanted:"
        f" 0.65 or less): {verdict(own <= 0.65 * other)}. By metric: {told}."
    )


def against_teacher(results: Results, teacher: str, passes: int = 1) -> str:
    """Ours against a teacher's own samples at 20 passes, on every task and by every judge."""
    parts, reached = [], 0
    for task in results.rows:
        pairs = {
            name: (results.mean(OURS, passes, name, task), results.mean(teacher, 20, name, task))
            for name in results.judges
        }
        missed = [METRICS[name] for name, (own, other) in pairs.items() if own > other]
        reached += not missed
        own, other = pairs["frechet"]
        told = f" [not by {', '.join(missed)}]" if missed else ""
        parts.append(f"{task} {own:.2f} against {other:.2f}{told}")
    return (
        f"{counted(passes, 'pass').capitalize()} of ours no worse than {teacher} at 20 passes: on"
        f" {reached} of {len(results.rows)} tasks ({'; '.join(parts)}):"
        f" {verdict(reached == len(results.rows))}."
    )


def thin(results: Results, teacher: str, passes: int = 4) -> str:
    """On thin data the distances themselves, over the teacher's; wanted: 1.5 or less by each."""
    ratios = {}
    for name in results.judges:
        plus = 0 if name == "fidelity" else 1  # excess is distance / floor - 1
        own, other = (
            results.mean(method, k, name, THIN) + plus
            for method, k in ((OURS, passes), (teacher, 20))
        )
        ratios[name] = own / other
    told = ", ".join(f"{METRICS[name]} {ratio:.2f}" for name, ratio in ratios.items())
    return (
        f"{THIN}, {counted(passes, 'pass')}: distances of ours over those of {teacher}: {told}"
        f" (wanted: 1.5 or less): {verdict(max(ratios.values()) <= 1.5)}."
    )


def claims(results: Results, track: str = "own-teacher") -> list[str]:
    """The statements, each with its figures and whether it holds."""
    found, teacher, given = list[str](), TEACHERS[track], track == "given-teacher"
    for passes in PASSES:
        if results.without([OURS], passes) or len(results.methods(passes)) < 2:
            found.append(
                f"{counted(passes, 'pass').capitalize()}: not judged, for lack of figures."
            )
            continue
        if passes in DISTILLED and not results.without(DISTILLED[passes]):
            found.append(against_distillation(results, passes))
        found += standing(results, passes)
    if not results.without([OURS], 1) and not results.without([teacher], 20):
        found.append(against_teacher(results, teacher))
    if given and THIN in results.rows and not results.without([OURS], 4):
        found.append(thin(results, teacher))
    if not given and not results.without([OURS, "bezier-half", *DISTILLED[1]], 1):
        precision = results.mean(OURS, 1, "precision")
        half = results.mean("bezier-half", 1)
        best = min(results.mean(method, 1) for method in DISTILLED[1])
        found += [
            f"Precision at one pass: {precision:.2f} (wanted: {PRECISION} or more):"
            f" {verdict(precision >= PRECISION)}.",
            f"At half the budget ours has {half:.2f} at one pass, rectified-flow distillation at"
            f" the full one {best:.2f}: {verdict(half < best)}.",
        ]
    return [f"{k}. {text}" for k, text in enumerate(found, 1)]


def orderings(results: Results) -> list[str]:
    """Published orderings of rivals, and the tasks on which these figures show them."""
    lines = ["| published | passes | source | seen on |", "|---|---|---|---|"]
    for better, worse, passes, source in ORDERINGS:
        other = passes if better != worse else 1
        if results.without([better], passes) or results.without([worse], other):
            continue
        seen = [
            task
            for task in results.rows
            if results.mean(better, passes, task=task) < results.mean(worse, other, task=task)
        ]
        where = "every task" if len(seen) == len(results.rows) else ", ".join(seen) or "no task"
        told = passes if other == passes else f"{passes} against {other}"
        lines.append(f"| {better} better than {worse} | {told} | {source} | {where} |")
    return lines


def paired(
    results: Results, method: str, passes: int, metric: str
) -> tuple[list[str], float, float]:
    """Tasks on which a method was run, and the means of it and of ours over these tasks and the
    seeds that both have.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for task, rows in results.rows.items():
        here = [row for row in rows if row.passes == passes]
        ours = {row.seed: figures(row)[metric] for row in here if row.method == OURS}
        pairs = [
            (figures(row)[metric], ours[row.seed])
            for row in here
            if row.method == method and row.seed in ours
        ]
        if pairs:
            found[task] = pairs
    if not found:
        return [], math.inf, math.inf
    own, other = zip(
        *((statistics.mean(side) for side in zip(*pairs, strict=True)) for pairs in found.values()),
        strict=True,
    )
    return list(found), statistics.mean(own), statistics.mean(other)


def ablation(results: Results) -> list[str]:
    """What every ingredient is worth: excess with the change, its ratio to the whole recipe's on
    the same tasks and seeds, and that of fidelity; methods that were not run are left out.
    """
    there = [passes for passes in PASSES if not results.without([OURS], passes)]
    head = [text for k in there for text in (counted(k, "pass"), "ratio", "of fidelity")]
    lines = [f"| | tasks | {' | '.join(head)} | seconds |", "|---" * (len(head) + 3) + "|"]
    for method, text in {OURS: "the whole recipe", **ABLATIONS}.items():
        every = [row for rows in results.rows.values() for row in rows if row.method == method]
        cells, tasks = list[str](), list[str]()
        for passes in there:
            tasks, own, whole = paired(results, method, passes, "frechet")
            _, near, its = paired(results, method, passes, "fidelity")
            cells += [f"{own:.2f}", f"{own / whole:.2f}", f"{near / its:.2f}"] if tasks else []
        if every and tasks:
            seconds = statistics.mean(row.seconds for row in every)
            lines.append(f"| {text} | {len(tasks)} | {' | '.join(cells)} | {seconds:.0f} |")
    return lines


def conditions(out: Path, results: Results) -> str:
    """Budget, network, seeds and machine of a run."""
    settings, made = read_settings(out).settings, read_made(out)
    seeds = sorted({row.seed for rows in results.rows.values() for row in rows})
    network = settings["network"]
    assert made is not None
    machine = made.machine
    return (
        f"Budget {settings['budget']:,} network passes a method and seed; network {network['kind']}"
        f" {network['depth']} x {network['width']}; batch {settings['batch']}; seeds"
        f" {', '.join(map(str, seeds))}; {settings['samples']:,} samples judged, against other real"
        f" ones for each seed. Machine: {machine.cores} cores, {machine.processor},"
        f" {machine.threads} thread(s) a process, torch {machine.versions['torch']}. {MARK} {NOTE}."
    )


def track_results(out: Path, track: str) -> list[str]:
    """Tables and claims of a track."""
    folders = [out / task for task in TASKS if (out / task / RUN).exists()]
    if not folders:
        return []
    results, teacher = Results({folder.name: gather(folder) for folder in folders}), TEACHERS[track]
    parts = [f"## {TITLES[track]}", conditions(folders[0], results)]
    for passes in PASSES:
        own = table(results, passes, results.methods(passes))
        parts += [f"### {counted(passes, 'pass').capitalize()}", "\n".join(own)]
    parts += ["### The teacher at 20 passes", "\n".join(table(results, 20, [teacher]))]
    if track == "own-teacher":
        half = [table(results, passes, ["bezier-half"]) for passes in (1, 2)]
        parts += [
            "Ours at half the budget, one pass, then two:",
            "\n".join([*half[0], *half[1][2:]]),
        ]
    parts += ["### The claims", "\n".join(claims(results, track))]
    if not results.without([OURS]):
        parts += ["### What every ingredient is worth", "\n".join(ablation(results))]
    parts += ["### Orderings that the rivals' papers publish", "\n".join(orderings(results))]
    if results.failed:
        parts += ["Failed cells:", "\n".join(f"- {line}" for line in results.failed)]
    return parts


def write_results(out: Path) -> str:
    """All tables and claims of a folder as Markdown."""
    parts = [part for track in TRACKS for part in track_results(out / track, track)]
    text = "\n\n".join(parts) + "\n"
    (out / "results.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--track", nargs="+", default=list(TRACKS), choices=list(TRACKS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--budget", type=int, default=2_000_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cells")
    parser.add_argument("--fast", action="store_true", help="a small run, to see that it works")
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path("../shared/data"),
        help="folder with mnist.npz and fashion_mnist.npz",
    )
    options = parser.parse_args()
    shared = {"seeds": 1, "fast": options.fast, "jobs": options.jobs}
    for seed in range(options.seeds):
        for track in options.track:
            for task in options.tasks:
                data = TASKS[task].format(shared=options.shared)
                if "@" in data and not Path(data.split("@")[0]).exists():
                    print(f"{task} is left out: no file {data.split('@')[0]}")
                    continue
                methods, out = tuple(options.methods.split(",")), options.out / track / task
                settings = {**shared, "first_seed": seed, "track": track}
                arena(ArenaConfig(data, out, methods, options.budget, **settings))
    print(write_results(options.out))


if __name__ == "__main__":
    main()

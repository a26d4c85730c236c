"""Class-conditional images by the arena's rules: ours against rectified-flow distillation, judged
by random and by a classifier's features, and guidance distilled over a range.

    python benchmarks/images.py --out runs/images [--data ../shared/data/fashion_mnist.npz]
    [--budget 500000] [--seeds 3]

Cells that are finished are not run again, and two processes may share the seeds (``--first-seed``).
Every call that finds seed 0 ends with ``OUT/results.md``, ``results.json`` and grids.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.data import Data, load_data, read_samples
from bezierdistill.files import write_json
from bezierdistill.metrics import Evaluator, classifier_features
from bezierdistill.models import Model, find_teacher, load_model
from bezierdistill.models.folder import CARD
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ArenaRow, Scores, read_record, to_json, write_record
from bezierdistill.reporting.plots import save_grid
from bezierdistill.reporting.summary import excess, gather, standard_error
from bezierdistill.run import machine
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.training.settings import LoopConfig

OURS = "bezier_images"
METHODS = (
    str(Path(__file__).with_name(f"{OURS}.py")),
    *("rfd-1", "rfd-2", "rfd-1-two", "bezier-teacher"),
)
NETWORK = NetworkConfig("unet", 32, 1, 2)
LOOP = LoopConfig(lr=2e-3, accelerator="cpu")
BATCH = 64
RANGE, SCALES = (1.0, 3.0), (1.0, 2.0, 3.0)
COUNT = 1000  # samples per guidance scale
FIGURES = ("excess", "FD-classifier", "kernel", "precision", "recall", "accuracy", "coverage")
Rows = list[dict[str, Any]]
Judged = list[tuple[ArenaRow, Scores]]


def judge_samples(out: Path, data: Data) -> Judged:
    """The arena's rows, each with the scores of its kept samples by the classifier's features."""
    evaluate, found = Evaluator(data, extractor=classifier_features(data)), []
    for row in (row for row in gather(out) if row.scores):
        name = f"{row.method}-{row.seed}-{row.passes}"
        file = out / "judged" / f"{name}.json"
        if not file.exists():
            samples, labels = read_samples(out / "samples" / f"{name}.npz", data, labelled=True)
            assert labels is not None
            x = data.scaling.encode(samples)
            write_record(file, replace(evaluate(x), classes=evaluate.classes(x, labels)))
        found.append((row, read_record(file, Scores, "judged samples")))
    return found


def figures(row: ArenaRow, scores: Scores) -> dict[str, float]:
    """What the table shows of a row and of its scores by the classifier's features."""
    kernel, classes = scores.kernel, scores.classes
    assert kernel is not None
    assert classes is not None
    assert classes.accuracy is not None
    return {
        "excess": excess(row),
        "FD-classifier": scores.frechet.value,
        "kernel": kernel.value,
        "precision": scores.precision.value,
        "recall": scores.recall.value,
        "accuracy": classes.accuracy,
        "coverage": classes.coverage,
    }


def guided(out: Path, data: Data, teacher: Model, budget: int) -> Rows:
    """A student distilled over a range of guidance, and its teacher guided, by the classifier."""
    curves, student, steps = out / "guided-curves", out / "guided-student", 4
    assert teacher.folder is not None
    if not (student / CARD).exists():
        left = budget - teacher.spent
        count = left // 3 // (2 * 2 * steps)
        simulate(
            SimulateConfig(
                (teacher.folder,),
                curves,
                count=count,
                guidance_scale=RANGE,
                steps=steps,
                accelerator="cpu",
            )
        )
        settings = DistillConfig(
            curves, student, steps=left // 2 // (3 * BATCH), batch=BATCH, loop=LOOP
        )
        distill(settings)
    model, evaluate, rows = (
        load_model(student),
        Evaluator(data, extractor=classifier_features(data)),
        [],
    )
    labels = list(range(data.classes))
    given = torch.arange(COUNT) % data.classes
    for scale in SCALES:
        sets = {
            "guided teacher": (
                40,
                teacher.sample(COUNT, 40, 7, "heun", 500, labels, guidance_scale=scale),
            )
        }
        sets |= {
            f"guided student, {k}": (
                k,
                model.sample(COUNT, k, 7, batch=500, labels=labels, guidance_scale=scale),
            )
            for k in (1, 2)
        }
        for name, (passes, own) in sets.items():
            x = data.scaling.encode(own)
            scores = evaluate(x)
            rows.append(
                {
                    "method": name,
                    "guidance scale": scale,
                    "passes": passes,
                    "spent": teacher.spent if "teacher" in name else model.spent,
                    "accuracy": evaluate.classes(x, given).accuracy,
                    "FD-classifier": scores.frechet.value,
                    "precision": scores.precision.value,
                    "recall": scores.recall.value,
                }
            )
            save_grid(out / f"guidance-{scale:g}-{passes}.png", x[:60])
    return rows


def table(judged: Judged) -> list[str]:
    """Means over seeds with standard errors, a method and number of passes per line."""
    lines = [f"| method | passes | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 2) + "|"]
    groups: dict[tuple[int, str], list[dict[str, float]]] = {}
    for row, scores in judged:
        groups.setdefault((row.passes, row.method), []).append(figures(row, scores))
    order = sorted(
        groups, key=lambda key: (key[0], statistics.mean(row["excess"] for row in groups[key]))
    )
    for passes, method in order:
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in groups[passes, method]]
            error = f" ± {standard_error(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{error}")
        lines.append(f"| {method} | {passes} | {' | '.join(cells)} |")
    return lines


def guidance_table(rows: Rows) -> list[str]:
    """Class accuracy and distances of guided samples."""
    lines = [
        "| guidance scale | method | accuracy | FD-classifier | precision | recall | passes |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        cells = " | ".join(
            f"{row[key]:.3f}" for key in ("accuracy", "FD-classifier", "precision", "recall")
        )
        lines.append(
            f"| {row['guidance scale']:g} | {row['method']} | {cells} | {row['spent']:,} |"
        )
    return lines


def verdicts(judged: Judged, guidance: Rows) -> list[str]:
    """What is claimed, with its figures."""

    def mean(method: str, passes: int) -> float:
        values = [excess(row) for row, _ in judged if (row.method, row.passes) == (method, passes)]
        return statistics.mean(values) if values else float("nan")

    lines = []
    for passes, rivals in ((1, ("rfd-1", "rfd-2")), (2, ("rfd-1-two",))):
        own, best = mean(OURS, passes), min(mean(rival, passes) for rival in rivals)
        lines.append(
            f"- Passes {passes}: ours over the best of {', '.join(rivals)}: {own:.2f} / {best:.2f}"
            f" = {own / best:.2f}."
        )
    for scale in SCALES:
        own = [row["accuracy"] for row in guidance if row["guidance scale"] == scale]
        teacher, one, two = (100 * value for value in own)
        lines.append(
            f"- Guidance scale {scale:g}: class accuracy of the teacher {teacher:.1f} %, one pass"
            f" {one:.1f} %, two passes {two:.1f} %."
        )
    return lines


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="../shared/data/fashion_mnist.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--budget", type=int, default=500_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--judge", action="store_true", help="only judge what is there")
    arguments = parser.parse_args()
    out, data = arguments.out, load_data(arguments.data)
    if not arguments.judge:
        arena(
            ArenaConfig(
                arguments.data,
                out,
                tuple(arguments.methods),
                arguments.budget,
                arguments.seeds,
                arguments.first_seed,
                batch=BATCH,
                keep_samples=True,
                keep_models=True,
                conditional=True,
                network=NETWORK,
                loop=LOOP,
            )
        )
    if not (out / "models" / f"{OURS}-0" / "student" / CARD).exists() or not (
        arguments.judge or arguments.first_seed == 0
    ):
        return
    judged = judge_samples(out, data)
    student = out / "models" / f"{OURS}-0" / "student"
    teacher = find_teacher(load_model(student).card.teachers[0], student)
    guidance = guided(out, data, teacher, arguments.budget)
    protocol, classes = to_json(judged[0][1].protocol), judged[0][1].classes
    assert classes is not None
    rows = [
        {"method": row.method, "seed": row.seed, "passes": row.passes, "spent": row.spent}
        | {"seconds": row.seconds, "memory": row.memory, **figures(row, scores)}
        for row, scores in judged
    ]
    found = {"rows": rows, "guidance": guidance, "machine": to_json(machine())}
    write_json(out / "results.json", found | {"protocol": protocol})
    for file in sorted((out / "samples").glob("*-0-*.npz")):
        save_grid(
            out / f"{file.stem}.png",
            data.scaling.encode(np.load(file, allow_pickle=False)["x"][:64]),
        )
    seeds = sorted({row.seed for row, _ in judged})
    real = (
        f"real held-out images: accuracy {classes.accuracy_real:.3f}, coverage"
        f" {classes.coverage_real:.3f}"
    )
    head = (
        f"Budget {arguments.budget:,} network passes a method and seed, seeds {seeds}, network"
        f" {NETWORK.kind} {NETWORK.width}; {real}."
    )
    lines = [
        head,
        "",
        *table(judged),
        "",
        *verdicts(judged, guidance),
        "",
        *guidance_table(guidance),
        "",
        f"`{json.dumps(protocol)}`",
    ]
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

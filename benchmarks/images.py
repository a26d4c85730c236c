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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.data import Data, load_data, read_sides
from bezierdistill.files import read_json, write_json
from bezierdistill.metrics import Evaluator, classifier_features
from bezierdistill.models import Model, load_model
from bezierdistill.models.folder import CARD
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.reporting.plots import save_grid
from bezierdistill.reporting.summary import gather, standard_error
from bezierdistill.run import machine
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.training.settings import LoopConfig

OURS = "bezier_images"
METHODS = f"{Path(__file__).with_name(OURS)}.py,rfd-1,rfd-2,rfd-1-two,bezier-teacher"
NETWORK = NetworkConfig("unet", 32, 1, 2)
LOOP = LoopConfig(lr=2e-3, accelerator="cpu")
BATCH = 64
RANGE, STRENGTHS = "1,3", (1.0, 2.0, 3.0)
COUNT = 1000  # samples a strength
FIGURES = ("excess", "FD-classifier", "kernel", "precision", "recall", "accuracy", "coverage")
Rows = list[dict[str, Any]]


def judge_samples(out: Path, data: Data) -> Rows:
    """Every kept set of samples by the classifier's features, beside the arena's own figures."""
    evaluate = Evaluator(data, extractor=classifier_features(data))
    rows = []
    for row in (row for row in gather(out) if "error" not in row):
        name = f"{row['method']}-{row['seed']}-{row['passes']}"
        file = out / "judged" / f"{name}.json"
        if not file.exists():
            side = read_sides(out / "samples" / f"{name}.npz")[0]
            x = data.scaling.encode(side.x)
            assert side.given is not None
            write_json(
                file,
                {"law": evaluate(x), "classes": evaluate.classes(x, torch.from_numpy(side.given))},
            )
        judged = read_json(file, "judged samples")
        law, classes = judged["law"], judged["classes"]
        rows.append(
            {
                **{
                    key: row[key]
                    for key in (
                        "method",
                        "seed",
                        "passes",
                        "spent_passes",
                        "seconds",
                        "peak_memory_mb",
                    )
                },
                "excess": row["frechet_ratio"] - 1,
                "FD-classifier": law["frechet"],
                **{key: law[key] for key in ("kernel", "precision", "recall")},
                **{
                    key: classes[key]
                    for key in ("accuracy", "coverage", "accuracy_real", "coverage_real")
                },
                "protocol": law["protocol"],
            }
        )
    return rows


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
                guidance=RANGE,
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
    for strength in STRENGTHS:
        sets = {
            "guided teacher": (
                40,
                teacher.sample(COUNT, 40, 7, "heun", 500, labels, guidance=strength),
            )
        }
        sets |= {
            f"guided student, {k}": (
                k,
                model.sample(COUNT, k, 7, batch=500, labels=labels, guidance=strength),
            )
            for k in (1, 2)
        }
        for name, (passes, own) in sets.items():
            x = data.scaling.encode(own)
            law, classes = evaluate(x), evaluate.classes(x, given)
            figures = {
                "FD-classifier": law["frechet"],
                **{key: law[key] for key in ("precision", "recall")},
            }
            spent = teacher.spent if "teacher" in name else model.spent
            rows.append(
                {
                    "method": name,
                    "guidance": strength,
                    "passes": passes,
                    "spent_passes": spent,
                    "accuracy": classes["accuracy"],
                    **figures,
                }
            )
            save_grid(out / f"guidance-{strength:g}-{passes}.png", x[:60])
    return rows


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Means over seeds with standard errors, a method and number of passes a line."""
    lines = [f"| method | passes | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 2) + "|"]
    groups: dict[tuple[int, str], Rows] = {}
    for row in rows:
        groups.setdefault((row["passes"], row["method"]), []).append(dict(row))
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
    """Class accuracy and law of guided samples."""
    lines = [
        "| guidance | method | accuracy | FD-classifier | precision | recall | passes spent |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        figures = " | ".join(
            f"{row[key]:.3f}" for key in ("accuracy", "FD-classifier", "precision", "recall")
        )
        lines.append(
            f"| {row['guidance']:g} | {row['method']} | {figures} | {row['spent_passes']:,} |"
        )
    return lines


def verdicts(rows: Rows, guidance: Rows) -> list[str]:
    """What is claimed, with its figures."""

    def mean(method: str, passes: int) -> float:
        values = [
            row["excess"] for row in rows if row["method"] == method and row["passes"] == passes
        ]
        return statistics.mean(values) if values else float("nan")

    lines = []
    for passes, rivals in ((1, ("rfd-1", "rfd-2")), (2, ("rfd-1-two",))):
        own, best = mean(OURS, passes), min(mean(rival, passes) for rival in rivals)
        lines.append(
            f"- Passes {passes}: ours over the best of {', '.join(rivals)}: {own:.2f} / {best:.2f}"
            f" = {own / best:.2f}."
        )
    for strength in STRENGTHS:
        own = {row["method"]: row["accuracy"] for row in guidance if row["guidance"] == strength}
        teacher, one, two = (100 * value for value in own.values())
        lines.append(
            f"- Guidance {strength:g}: class accuracy of the teacher {teacher:.1f} %, one pass"
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
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--judge", action="store_true", help="only judge what is there")
    arguments = parser.parse_args()
    out, data = arguments.out, load_data(arguments.data)
    if not arguments.judge:
        arena(
            ArenaConfig(
                arguments.data,
                out,
                arguments.methods,
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
    rows = judge_samples(out, data)
    teacher = load_model(
        load_model(out / "models" / f"{OURS}-0" / "student").card["teachers"][0]["path"]
    )
    guidance = guided(out, data, teacher, arguments.budget)
    write_json(
        out / "results.json",
        {"rows": rows, "guidance": guidance, "machine": machine(), "protocol": rows[0]["protocol"]},
    )
    for file in sorted((out / "samples").glob("*-0-*.npz")):
        save_grid(
            out / f"{file.stem}.png",
            data.scaling.encode(np.load(file, allow_pickle=False)["x"][:64]),
        )
    seeds = sorted({row["seed"] for row in rows})
    real = (
        f"real held-out images: accuracy {rows[0]['accuracy_real']:.3f}, coverage"
        f" {rows[0]['coverage_real']:.3f}"
    )
    head = (
        f"Budget {arguments.budget:,} network passes a method and seed, seeds {seeds}, network"
        f" {NETWORK.kind} {NETWORK.width}; {real}."
    )
    lines = [
        head,
        "",
        *table(rows),
        "",
        *verdicts(rows, guidance),
        "",
        *guidance_table(guidance),
        "",
        f"`{json.dumps(rows[0]['protocol'])}`",
    ]
    (out / "results.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

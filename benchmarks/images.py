"""Class-conditional images by the arena's rules, in both tracks: ours against every rival, judged
by random features, a classifier's and SqueezeNet's; and guidance distilled over a range.

    python benchmarks/images.py --out runs/images [--data fashion mnist colours] [--track
    own-teacher given-teacher] [--budget 500000] [--seeds 3] [--jobs 2] [--shared ../shared/data]
    [--accelerator cuda] [--teacher runs/teacher-{data}]

Cells that are finished are not run again. Every call ends with ``OUT/results.md`` over all that is
in OUT, and grids of the samples of seed 0. A figure that a method trains on has an asterisk, and no
claim rests on it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from bezierdistill.arena.runner import GIVEN, ArenaConfig, Track, arena
from bezierdistill.data import Data, load_data
from bezierdistill.metrics import Evaluator, classifier_features
from bezierdistill.models import Model, find_teacher, load_model
from bezierdistill.models.folder import CARD
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.export import MARK, NOTE, SHARES, Line, Mean, lines
from bezierdistill.reporting.plots import save_grid
from bezierdistill.reporting.summary import gather
from bezierdistill.run import RUN
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.training.settings import LoopConfig
from bezierdistill.words import counted

OURS = "bezier_images"
DATA = {
    "fashion": "fashion_mnist.npz",
    "mnist": "mnist.npz",
    "colours": "cifar10_jpeg.npz",  # lossy: not comparable with published figures
}
TRACKS = get_args(Track)
METHODS = (
    str(Path(__file__).with_name(f"{OURS}.py")),
    *("rfd-1", "rfd-2", "rfd-1-two", "bezier-teacher"),
)
NETWORK = NetworkConfig("unet", 32, 1, 2)
LOOP = LoopConfig(lr=2e-3)
BATCH, TEACHERS = 64, {"own-teacher": "bezier-teacher", "given-teacher": GIVEN}
DISTILLED = {1: ("rfd-1", "rfd-2", "rfd-3"), 2: ("rfd-1-two",)}
SHOWN = {
    "frechet": "coarse",
    "middle": "middle",
    "fine": "fine",
    "fidelity": "fidelity",
    "precision": "precision",
    "recall": "recall",
    "classifier FD": "classifier FD",
    "classifier precision": "its precision",
    "classifier recall": "recall",
    "classifier accuracy": "accuracy",
    "classifier coverage": "coverage",
    "squeezenet FD": "SqueezeNet FD",
    "squeezenet precision": "its precision",
    "squeezenet recall": "recall",
}
JUDGES = ("frechet", "classifier FD", "squeezenet FD")
WANTED = {"own-teacher": 0.6, "given-teacher": 0.5}  # classifier FD over the best distillation's
RANGE, SCALES = (1.0, 3.0), (1.0, 2.0, 3.0)
COUNT = 1000  # samples per guidance scale
Rows = list[dict[str, Any]]
Figures = dict[str, Mean]


def guided(out: Path, data: Data, teacher: Model, budget: int) -> Rows:
    """A student distilled over a range of guidance, and its teacher guided, by the classifier."""
    curves, student, steps = out / "guided-curves", out / "guided-student", 4
    assert teacher.folder is not None
    if not (student / CARD).exists():
        left = budget - teacher.spent
        count = left // 3 // (2 * 2 * steps)
        settings = {"count": count, "guidance_scale": RANGE, "steps": steps}
        simulate(
            SimulateConfig((teacher.folder,), curves, accelerator=LOOP.accelerator, **settings)
        )
        steps = left // 2 // (3 * BATCH)
        distill(DistillConfig(curves, student, steps=steps, batch=BATCH, loop=LOOP))
    model, rows = load_model(student), list[dict[str, Any]]()
    evaluate = Evaluator(data, extractor=classifier_features(data))
    labels, given = list(range(data.classes)), torch.arange(COUNT) % data.classes
    for scale in SCALES:
        shared: dict[str, Any] = {"labels": labels, "guidance_scale": scale, "batch": 500}
        sets = {"guided teacher": (40, teacher.sample(COUNT, 40, 7, "heun", **shared))}
        for k in (1, 2):
            sets[f"guided student, {k}"] = (k, model.sample(COUNT, k, 7, **shared))
        for name, (passes, own) in sets.items():
            x = data.scaling.encode(own)
            scores, classes = evaluate(x), evaluate.classes(x, given)
            row = {"scale": scale, "method": name, "passes": passes, "accuracy": classes.accuracy}
            figures = {name: scores[name].value for name in ("frechet", *SHARES)}
            rows.append(row | figures)
            save_grid(out / f"guidance-{scale:g}-{passes}.png", x[:60])
    return rows


def guidance_table(rows: Rows) -> list[str]:
    """Class accuracy and distances of guided samples."""
    names = ("accuracy", "frechet", *SHARES)
    head = ["guidance scale", "method", "passes", "accuracy", "classifier FD", *SHARES]
    found = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = " | ".join(f"{row[name]:.3f}" for name in names)
        found.append(f"| {row['scale']:g} | {row['method']} | {row['passes']} | {cells} |")
    return found


def table(found: list[Line]) -> list[str]:
    """Means over seeds with standard errors, a method and number of passes per line."""
    known = {name for line in found for name in line.figures}
    names = [name for name in SHOWN if name in known]
    heads = [SHOWN[name] for name in names]
    rows = [f"| method | passes | {' | '.join(heads)} |", "|---" * (len(names) + 2) + "|"]
    for entry, figures in found:
        cells = [_cell(figures.get(name), entry.seeds) for name in names]
        rows.append(f"| {entry.method} | {entry.passes} | {' | '.join(cells)} |")
    return rows


def _cell(own: Mean | None, seeds: int) -> str:
    if own is None:
        return "-"
    error = f" ± {own.error:.2g}" if seeds > 1 else ""
    return f"{own.mean:.3g}{error}{MARK if own.marked else ''}"


def verdict(holds: bool) -> str:
    """A statement's last word."""
    return "holds" if holds else "does NOT hold"


def standing(found: list[Line], passes: int) -> list[str]:
    """The place of ours at a number of passes by every judge that it does not train on."""
    here = {line.entry.method: line.figures for line in found if line.entry.passes == passes}
    if OURS not in here or len(here) < 2:
        return []
    own, told, holds = here[OURS], list[str](), True
    for judge in (name for name in JUDGES if name in own):
        if own[judge].marked:
            told.append(f"{judge} {own[judge].mean:.2f}{MARK}, no evidence")
            continue
        others = {name: figures[judge].mean for name, figures in here.items() if name != OURS}
        best = min(others, key=lambda name: others[name])
        first = own[judge].mean <= others[best]
        holds = holds and first
        place = "first" if first else "behind"
        told.append(f"{judge} {own[judge].mean:.2f}, {place} ({best} {others[best]:.2f})")
    count = counted(passes, "pass").capitalize()
    return [f"{count}: {'; '.join(told)}. First by each judge: {verdict(holds)}."]


def against_distillation(own: Figures, rival: Figures, wanted: float) -> list[str]:
    """Ours at one pass against the best rectified-flow distillation."""
    ratio = own["classifier FD"].mean / rival["classifier FD"].mean
    precision, recall = (own[name].mean for name in SHARES)
    other, its = (rival[name].mean for name in SHARES)
    near = precision >= other - 0.05 and recall > its
    return [
        f"1 pass, classifier FD over the best rectified-flow distillation's: {ratio:.2f} (wanted:"
        f" {wanted} or less): {verdict(ratio <= wanted)}.",
        f"1 pass, precision {precision:.2f} against {other:.2f} (wanted: no less than 0.05 below)"
        f" and recall {recall:.2f} against {its:.2f} (wanted: higher): {verdict(near)}.",
    ]


def claims(found: list[Line], track: str) -> list[str]:
    """What is claimed, with its figures."""
    known = {(line.entry.method, line.entry.passes): line.figures for line in found}
    told = [text for passes in (1, 2, 4) for text in standing(found, passes)]
    own = known.get((OURS, 1))
    rivals = [known[name, 1] for name in DISTILLED[1] if (name, 1) in known]
    if own is None or "classifier FD" not in own:
        return told
    if rivals:
        rival = min(rivals, key=lambda figures: figures["classifier FD"].mean)
        told += against_distillation(own, rival, WANTED[track])
    teacher = known.get((TEACHERS[track], 20))
    if teacher is not None:
        there, here = (figures["classifier FD"].mean for figures in (teacher, own))
        told.append(
            f"1 pass no worse than {TEACHERS[track]} at 20 by classifier FD: {here:.2f} against"
            f" {there:.2f}: {verdict(here <= there)}."
        )
    return told


def results(out: Path) -> str:
    """All tables and claims of a folder as Markdown."""
    parts = []
    for name in DATA:
        for track in TRACKS:
            folder = out / name / track
            if not (folder / RUN).exists():
                continue
            rows = gather(folder)
            found, seeds = lines(rows), sorted({row.seed for row in rows})
            numbered = [f"{k}. {text}" for k, text in enumerate(claims(found, track), 1)]
            parts += [f"## {name}, {track}", f"Seeds {', '.join(map(str, seeds))}. {_real(rows)}"]
            marked = any(own.marked for line in found for own in line.figures.values())
            parts += ["\n".join(table(found)), *([f"{MARK} {NOTE}."] if marked else [])]
            parts += ["\n".join(numbered)] if numbered else []
            failed = [row for row in rows if row.error is not None]
            parts += [f"Failed: {row.method}, seed {row.seed}: {row.error}." for row in failed]
            if (text := folder / "guidance.md").exists():
                parts += ["### Guidance over a range", text.read_text().rstrip()]
    text = "\n\n".join(parts) + "\n"
    (out / "results.md").write_text(text)
    return text


def _real(rows: list[ArenaRow]) -> str:
    """What the classifier says of real images."""
    judged = (row.judges["classifier"].classes for row in rows if "classifier" in row.judges)
    classes = next((own for own in judged if own is not None), None)
    if classes is None or classes.accuracy_real is None:
        return ""
    return (
        f"Real held-out images by the classifier: accuracy {classes.accuracy_real:.3f}, coverage"
        f" {classes.coverage_real:.3f}."
    )


def run(options: argparse.Namespace, name: str, track: Track) -> None:
    """The arena of a data set and track; grids, and with ours of seed 0 the guided student."""
    source, out = str(options.shared / DATA[name]), options.out / name / track
    squeezenet = options.shared / "squeezenet_imagenet.npz"
    extra = (f"squeezenet:{squeezenet}",) if squeezenet.exists() else ()
    given = None
    if options.teacher and track == "given-teacher":
        given = Path(options.teacher.format(data=name))
    methods = [name for name in options.methods if track == TRACKS[0] or name != "bezier-teacher"]
    config = ArenaConfig(
        source,
        out,
        tuple(methods),
        options.budget,
        options.seeds,
        options.first_seed,
        batch=BATCH,
        track=track,
        extractor=("classifier", *extra),
        jobs=options.jobs,
        keep_samples=True,
        keep_models=True,
        samples=options.samples,
        teacher=given,
        conditional=True,
        network=NETWORK,
        loop=replace(LOOP, accelerator=options.accelerator),
    )
    arena(config)
    data, student = load_data(source), out / "models" / f"{OURS}-0" / "student"
    for file in sorted((out / "samples").glob("*-0-*.npz")):
        x = np.load(file, allow_pickle=False)["x"][:64]
        save_grid(out / f"{file.stem}.png", data.scaling.encode(x))
    if options.guidance and track == "own-teacher" and (student / CARD).exists():
        teacher = find_teacher(load_model(student).card.teachers[0], student)
        told = guidance_table(guided(out, data, teacher, options.budget))
        (out / "guidance.md").write_text("\n".join(told) + "\n")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    parser.add_argument("--data", nargs="+", default=["fashion", "mnist"], choices=list(DATA))
    parser.add_argument("--track", nargs="+", default=list(TRACKS), choices=list(TRACKS))
    parser.add_argument("--budget", type=int, default=500_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=4096, help="samples judged")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--teacher", help="the teacher that is given, {data} is the data's name")
    parser.add_argument("--guidance", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cells")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    for name in options.data:
        for track in options.track:
            run(options, name, track)
    print(results(options.out))


if __name__ == "__main__":
    main()

"""Make the small run that ships with the package: what `bezierdistill app` shows where there is no
run of one's own.

    python benchmarks/bundled.py --out runs/bundled

A class-conditional student of digits with its teacher (recipes/bundled.yaml), another whose
guidance is an input, a translation from threes to eights with its flow, and an arena on digits
(docs/results.md has the same cells). Ten minutes on one thread; a part that is finished is not made
again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from bezierdistill.files import whole_folder
from bezierdistill.models.folder import CARD, WEIGHTS, read_card
from bezierdistill.records import ModelCard, write_record

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bezierdistill" / "bundled"
METHODS = (
    "bezier,bezier-half,bezier-teacher,teacher-euler,rf-2,rfd-1,rfd-2,consistency-tuning,"
    "consistency-training,consistency-training-two,mean-flow,flow-map,shortcut,progressive"
)
MODELS = {
    "digits": "labels/student",
    "digits-teacher": "labels/strong",
    "digits-guided": "guided",
    "threes-to-eights": "eights/student",
    "threes-to-eights-flow": "eights/strong",
}


def commands(out: Path, tiny: bool = False) -> list[list[str]]:
    """The commands that make the parts; ``tiny`` ones only show that they run."""
    loop = "--loop.accelerator cpu"
    small = f"--network.width 96 --network.depth 4 {loop}"
    budget, count, steps, seeds = (100_000, 500, 20, 1) if tiny else (3_000_000, 40_000, 4000, 3)
    lines = [
        f"recipe --config {ROOT / 'recipes' / 'bundled.yaml'} --out {out}/labels",
        f"simulate --teachers {out}/labels/strong --guidance-scale 1,3 --count {count} --out"
        f" {out}/guided-curves",
        f"distill --curves {out}/guided-curves --steps {steps} {loop} --out {out}/guided",
        "recipe --data digits@class8 --domain digits@class3 --train.coupling ot"
        f" --budget {budget} {small} --out {out}/eights",
        f"arena --data digits --seeds {seeds} --methods {METHODS} {loop} --out {out}/arena",
    ]
    if tiny:
        lines[0] += f" --budget {budget}"
        lines[-1] += " --fast"
    return [line.split() for line in lines]


def packed(cards: dict[str, ModelCard], name: str) -> ModelCard:
    """A card as it ships: its teachers where they lie in the package, known by their digests."""
    places = {card.digest: f"../{other}" for other, card in cards.items()}
    teachers = tuple(
        msgspec.structs.replace(ref, path=places.get(ref.digest, f"../{Path(ref.path).name}"))
        for ref in cards[name].teachers
    )
    return msgspec.structs.replace(cards[name], teachers=teachers)


def pack(out: Path, package: Path) -> dict[str, ModelCard]:
    """Copy what ships out of the runs; the cards by name."""
    cards = {name: read_card(out / made) for name, made in MODELS.items()}
    shutil.rmtree(package, ignore_errors=True)
    with whole_folder(package) as folder:
        for name, made in MODELS.items():
            (folder / name).mkdir()
            shutil.copyfile(out / made / WEIGHTS, folder / name / WEIGHTS)
            write_record(folder / name / CARD, packed(cards, name))
        shutil.copytree(out / "arena" / "cells", folder / "cells")
        for file in ("run.json", "made.json", "arena.json"):
            shutil.copyfile(out / "arena" / file, folder / file)
    return cards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bundled"), help="folder of the runs")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="where what ships is put")
    parser.add_argument("--tiny", action="store_true", help="a tiny run, to see that it works")
    given = parser.parse_args()
    if given.tiny and given.package == PACKAGE:
        parser.error("a tiny run does not ship: expected --package")
    for words in commands(given.out, given.tiny):
        print(*words, flush=True)
        subprocess.run(
            [sys.executable, "-m", "bezierdistill.cli", *words],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    for name, card in pack(given.out, given.package).items():
        print(f"{name:<23}{card.digest}")


if __name__ == "__main__":
    main()

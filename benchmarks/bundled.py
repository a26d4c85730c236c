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
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bezierdistill.files import digest, whole_folder, write_json

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bezierdistill" / "bundled"
METHODS = "bezier,bezier-half,bezier-teacher,teacher-euler,rf-2,rfd-1,rfd-2,consistency-tuning,consistency-training,"
METHODS += "consistency-training-two,mean-flow,flow-map,shortcut,progressive"
MODELS = {
    "digits": "labels/student",
    "digits-teacher": "labels/strong",
    "digits-guided": "guided",
    "threes-to-eights": "eights/student",
    "threes-to-eights-flow": "eights/strong",
}


def commands(out: Path) -> list[str]:
    """The commands that make the parts, with ``OUT`` filled in."""
    small = "--network.width 96 --network.depth 4 --loop.accelerator cpu"
    return [
        f"recipe --config {ROOT / 'recipes' / 'bundled.yaml'} --out {out}/labels",
        (
            f"simulate --teachers {out}/labels/strong --guidance 1,3 --count 40000 --out"
            f" {out}/guided-curves"
        ),
        (
            f"distill --curves {out}/guided-curves --steps 4000 --loop.accelerator cpu --out"
            f" {out}/guided"
        ),
        (
            "recipe --data digits@class8 --source digits@class3 --coupling ot --budget 3000000"
            f" {small} --out {out}/eights"
        ),
        (
            f"arena --data digits --seeds 3 --methods {METHODS} --loop.accelerator cpu --out"
            f" {out}/arena"
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/bundled"),
        help="folder of the runs (default: runs/bundled)",
    )
    out = parser.parse_args().out
    for command in commands(out):
        print(command, flush=True)
        subprocess.run(
            [sys.executable, "-m", "bezierdistill.cli", *command.split()],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    shutil.rmtree(PACKAGE, ignore_errors=True)
    with whole_folder(PACKAGE) as folder:
        for name, made in MODELS.items():
            (folder / name).mkdir()
            shutil.copyfile(out / made / "model.safetensors", folder / name / "model.safetensors")
            card = json.loads((out / made / "model.json").read_text())
            for teacher in card.get(
                "teachers", []
            ):  # found by their digest: where they lay on this machine is of no use elsewhere
                teacher["path"] = Path(teacher["path"]).name
            write_json(folder / name / "model.json", card)
        shutil.copytree(out / "arena" / "cells", folder / "cells")
        for file in ("run.json", "arena.json"):
            shutil.copyfile(out / "arena" / file, folder / file)
    for name in MODELS:
        print(f"{name}: {digest(PACKAGE / name / 'model.safetensors')}")


if __name__ == "__main__":
    main()

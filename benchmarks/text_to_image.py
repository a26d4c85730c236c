"""A text-to-image pipeline distilled to one low-rank adapter of one, two or four passes, and judged
by what is known of every caption.

    python benchmarks/text_to_image.py --out runs/text-to-image [--base runs/small] [--seed 0]
    [--passes 1 2] [--shared ../shared/data]

The pipeline is that of ``small_pipeline.py``, which is made if it is not there. It is imported with
its prompts and guidance, its curves are simulated, and adapters of equal rank are distilled from
them at equal passes: rectified-flow distillation of the pairs of ends, and ours, which regresses
along the curves and is then aligned with captioned images of the owner's (6,000 of those that the
pipeline was trained on). Judged are as many samples of each of 120 captions: the share that shows
the class, the colour and the size that are asked for, the Frechet distance to other real images
over its floor, and diversity within a caption, by a classifier that took part in nothing else.
``OUT/SEED/results.md`` and ``rows.png`` show the result; stages that are finished are not run
again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import Captioned, Judge, asked_of, states
from PIL import Image
from small_pipeline import Making, sample, table

from bezierdistill.files import whole_folder, write_json, write_text
from bezierdistill.interop.pipeline import import_pipeline
from bezierdistill.models.folder import is_model
from bezierdistill.models.pipeline import PipelineModel
from bezierdistill.reporting.plots import save_rows
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.training.settings import LoopConfig

GIVEN = {"height": 32, "width": 32, "max_sequence_length": 1}
GUIDANCE, COUNT, SOLVER_STEPS, DEGREE = 3.0, 6000, 4, 3
RANK, BATCH, STEPS, ALIGN, ANCHOR, IMAGES = 16, 64, 1000, 300, 0.3, 6000
JUDGED, SHOWN = 1200, 12
TEACHER_STEPS = (28, 4, 2, 1)
TOLD = ("class", "colour", "size", "all", "frechet over floor", "diversity", "seconds")


@dataclass
class Bench:
    """One run: a pipeline, its curves, its students, what is found of them.

    Args:
        options: of the command line.
    """

    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.out: Path = self.options.out / str(self.options.seed)
        base = argparse.Namespace(
            out=self.options.base,
            data="mnist",
            seed=0,
            minutes=self.options.minutes,
            shared=self.options.shared,
            judge=None,
        )
        base.out.mkdir(parents=True, exist_ok=True)
        self.making = Making(base)
        self.stock = self.making.pipeline()
        self.data = Captioned("mnist", self.options.shared)
        self.asked = asked_of(torch.arange(JUDGED) % 120)
        self.captions = self.data.captions(self.asked, 1)

    @cached_property
    def judge(self) -> Judge:
        """The judge."""
        return self.making.judge()

    def teacher(self) -> Path:
        """The pipeline as a teacher."""
        folder = self.out / "teacher"
        if not is_model(folder):
            source, prompts = self.options.base / "pipeline", self.options.base / "prompts.txt"
            import_pipeline(str(source), prompts, folder, GUIDANCE, given=GIVEN)
        return folder

    def curves(self) -> Path:
        """Curves of the teacher."""
        config = SimulateConfig(
            teachers=(self.teacher(),),
            out=self.out / "curves",
            count=COUNT,
            steps=SOLVER_STEPS,
            degree=DEGREE,
            seed=self.options.seed,
        )
        simulate(config)
        return config.out

    def images_folder(self) -> Path:
        """Captioned images, in the form of the library datasets."""
        folder = self.options.out / "images"
        if not folder.exists():
            images, asked = self.data.draw("train", IMAGES, 0)
            with whole_folder(folder) as made:
                lines = []
                for k, text in enumerate(self.data.captions(asked, 0)):
                    Image.fromarray(images[k].numpy()).save(made / f"{k:05d}.png")
                    lines.append(json.dumps({"file_name": f"{k:05d}.png", "text": text}))
                write_text(made / "metadata.jsonl", "\n".join(lines) + "\n")
        return folder

    def student(self, name: str, passes: int, steps: int, align: int) -> PipelineModel:
        """An adapter for a number of passes; without alignment, and for one pass, its regression is
        rectified-flow distillation.
        """
        config = DistillConfig(
            curves=self.curves(),
            out=self.out / f"{name}-{passes}",
            lora=RANK,
            passes=passes,
            steps=steps,
            align=align,
            data=str(self.images_folder()) if align else None,
            anchor=ANCHOR,
            batch=BATCH,
            seed=self.options.seed,
            loop=LoopConfig(lr=self.options.lr),
        )
        found = distill(config)
        assert isinstance(found, PipelineModel)
        return found

    def images(self, model: PipelineModel, passes: int) -> tuple[np.ndarray, float]:
        """Samples of all captions, and the seconds of the network alone."""
        asked = model.with_prompts(self.captions)
        began = time.perf_counter()
        x = asked.sample(JUDGED, passes, seed=5, conditions=np.arange(JUDGED))
        seconds = time.perf_counter() - began
        return asked.images(x), seconds


def ours(bench: Bench, passes: int) -> PipelineModel:
    """Our student."""
    return bench.student("ours", passes, STEPS, ALIGN)


def rectified(bench: Bench, passes: int, spent: int) -> PipelineModel:
    """Rectified-flow distillation of the same ends, at the passes that ours has spent."""
    steps = spent // (3 * BATCH)
    return bench.student("rfd", passes, steps, 0)


def judged(bench: Bench) -> dict[str, dict[str, float]]:
    """What the judge finds of the pipeline, of ours and of the rival."""
    rows: dict[str, dict[str, float]] = {}
    real = bench.data.like("real", bench.asked, 5)
    shown = {"real": real.numpy()}
    rows["real images"] = bench.judge(real, bench.asked)
    for steps in TEACHER_STEPS:
        began = time.perf_counter()
        found = sample(bench.stock, bench.captions, steps, 5, GUIDANCE)
        seconds = time.perf_counter() - began
        name = f"the pipeline, {steps} steps ({2 * steps} passes)"
        rows[name] = bench.judge(found, bench.asked) | {"seconds": seconds}
        shown[f"pipeline, {steps}"] = found.numpy()
    for passes in bench.options.passes:
        own = ours(bench, passes)
        rival = rectified(bench, passes, own.card.passes.training)
        for name, short, model in (
            ("ours", "ours", own),
            ("rectified-flow distillation", "rfd", rival),
        ):
            images, seconds = bench.images(model, passes)
            row = bench.judge(images, bench.asked)
            more = {"seconds": seconds, "spent": float(model.card.passes.training)}
            rows[f"{name}, {passes}"] = row | more
            shown[f"{short}, {passes}"] = images
    columns = torch.linspace(0, 119, SHOWN).long()  # a caption each
    save_rows(
        bench.out / "rows.png",
        {name: states(torch.from_numpy(own)[columns]) for name, own in shown.items()},
    )
    return rows


def main() -> None:
    """Distil, judge, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/text-to-image"))
    parser.add_argument("--base", type=Path, default=Path("runs/small"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of the pipeline's training")
    parser.add_argument("--seed", type=int, default=0, help="of curves and students")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)
    bench.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = judged(bench)
    write_json(bench.out / "results.json", rows)
    text = f"{table(rows, TOLD)}\n"
    write_text(bench.out / "results.md", text)
    print(text)
    print(json.dumps({"out": str(bench.out)}))


if __name__ == "__main__":
    main()

"""A small text-to-image pipeline that is really trained, made in minutes on one core, for where no
weights can be downloaded: a stock ``StableDiffusion3Pipeline`` of diffusers for the captioned
images of ``captions.py``.

    python benchmarks/small_pipeline.py --out runs/small [--data mnist] [--seed 0] [--minutes 10]
    [--shared ../shared/data] [--judge runs/judge.safetensors]

``OUT/pipeline`` is its folder, ``OUT/prompts.txt`` has captions as often as the data do,
``OUT/made.json`` says what was done and what the judge finds, ``OUT/*.png`` show samples. Stages
that are finished are not run again. Steps are counted by ``--minutes`` at a nominal rate, so that
the same arguments give the same pipeline on any machine of the same arithmetic.

Words reach the network by its two CLIP encoders alone. The third, a T5, says zeros:
``max_sequence_length`` rows of them, 256 unless told otherwise, which cost ten times what the
captions do. Ask with ``max_sequence_length=1``; the network has learnt both.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from captions import SIDE, Captioned, Judge, asked_of, states
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from small_models import (
    ZEROS,
    encode,
    encode_texts,
    make_encoder,
    make_silent,
    make_tokenizer,
    make_transformer,
    train_transformer,
    train_vae,
)
from torch import Tensor

from bezierdistill.files import read_tensors, whole_folder, write_json, write_tensors, write_text
from bezierdistill.reporting.plots import save_grid

MADE = "made.json"
ROWS, PROMPTS, JUDGED = 40_000, 1500, 1200
VAE_STEPS, FLOW_STEPS = 120, 300  # per nominal minute of --minutes
SCALE = 3.0
ASKED = (28, 4, 2, 1)  # steps at which the teacher is judged


@torch.no_grad()
def sample(
    pipeline: Any,
    captions: list[str],
    steps: int,
    seed: int = 0,
    scale: float = SCALE,
    **more: Any,
) -> Tensor:
    """Images ``(N, 32, 32, 3)`` of bytes."""
    pipeline.set_progress_bar_config(disable=True)
    draws, found = torch.Generator().manual_seed(seed), []
    for start in range(0, len(captions), 200):
        found += pipeline(
            captions[start : start + 200],
            num_inference_steps=steps,
            guidance_scale=scale,
            height=SIDE,
            width=SIDE,
            generator=draws,
            output_type="pt",
            **({"max_sequence_length": 1} | more),
        ).images
    return torch.stack(found).movedim(1, 3).mul(255).round().to(torch.uint8)


@dataclass
class Making:
    """What is made of ``--out``, stage by stage."""

    options: argparse.Namespace
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out: Path = self.options.out
        if (self.out / MADE).exists():
            self.notes = json.loads((self.out / MADE).read_text())
        self.data = Captioned(self.options.data, self.options.shared)
        given = {name: getattr(self.options, name) for name in ("data", "seed", "minutes")}
        if self.notes.setdefault("arguments", given) != given:
            raise SystemExit(f"{self.out} was made with {self.notes['arguments']}: another --out")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note the seconds of a stage."""
        began, worked = time.perf_counter(), time.process_time()
        yield
        seconds = {"wall": time.perf_counter() - began, "processor": time.process_time() - worked}
        self.notes.setdefault("seconds", {})[name] = seconds
        write_json(self.out / MADE, self.notes)

    def vae(self) -> Any:
        """The autoencoder."""
        folder = self.out / "vae"
        if not folder.exists():
            with self.stage("autoencoder"):
                images, _ = self.data.draw("train", ROWS, self.options.seed)
                steps = math.ceil(VAE_STEPS * self.options.minutes)
                vae = train_vae(states(images), steps, self.options.seed)
                with whole_folder(folder) as made:
                    vae.save_pretrained(made)
        return AutoencoderKL.from_pretrained(folder).eval()

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        """Latents of the training images, scaled."""
        path = self.out / "latents.safetensors"
        if not path.exists():
            with self.stage("latents"):
                write_tensors(path, {"x": encode(vae, states(images))})
        own = vae.config
        return (read_tensors(path)[0]["x"] - own.shift_factor) * own.scaling_factor

    def pipeline(self) -> Any:
        """The pipeline, as anyone would load it."""
        folder = self.out / "pipeline"
        if not folder.exists():
            images, asked = self.data.draw("train", ROWS, self.options.seed)
            captions = self.data.captions(asked, self.options.seed)
            vae = self.vae()
            latents = self.latents(vae, images)
            with self.stage("transformer"):
                made = self._assemble(vae, latents, captions)
                with whole_folder(folder) as place:
                    made.save_pretrained(place)
            write_text(self.out / "prompts.txt", "\n".join(captions[:PROMPTS]) + "\n")
        return StableDiffusion3Pipeline.from_pretrained(folder)

    def _assemble(self, vae: Any, latents: Tensor, captions: list[str]) -> Any:
        torch.manual_seed(self.options.seed)
        words = self.data.vocabulary()
        tokenizer, network = make_tokenizer(words), make_transformer()
        nothing, silent = make_silent()
        parts: dict[str, Any] = {
            "transformer": network,
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
            "vae": vae,
            "text_encoder": make_encoder(len(words)),
            "tokenizer": tokenizer,
            "text_encoder_2": make_encoder(len(words)),
            "tokenizer_2": tokenizer,
            "text_encoder_3": silent,
            "tokenizer_3": nothing,
        }
        made = StableDiffusion3Pipeline(**parts)
        texts = encode_texts(made, captions)
        rows = torch.tensor([texts.row[caption] for caption in captions])
        steps = math.ceil(FLOW_STEPS * self.options.minutes)
        made.register_modules(transformer=train_transformer(network, latents, texts, rows, steps))
        return made

    def judge(self) -> Judge:
        """The judge, trained on other rows than the pipeline."""
        path = self.options.judge or self.out / "judge.safetensors"
        if path.exists():
            return Judge(self.data, path)
        with self.stage("judge"):
            return Judge(self.data, path)


def figures(making: Making, pipeline: Any) -> dict[str, dict[str, float]]:
    """What the judge finds of real images, of what the autoencoder leaves of them, and of the
    pipeline's samples of as many of each of the 120 captions.
    """
    judge, data = making.judge(), making.data
    asked = asked_of(torch.arange(JUDGED) % 120)
    captions, real = data.captions(asked, 1), data.like("real", asked, 5)
    rows = {"real images": judge(real, asked)}
    with torch.no_grad():
        own = [pipeline.vae(part).sample for part in states(real).split(200)]
    rows["real images, autoencoded"] = judge(_bytes(torch.cat(own)), asked)
    for steps in ASKED:
        rows[f"{steps} steps"] = judge(sample(pipeline, captions, steps, steps), asked)
    rows["28 steps, unguided"] = judge(sample(pipeline, captions, 28, 5, 1.0), asked)
    few = asked_of(7 * torch.arange(60).remainder(30) % 120)
    x = sample(pipeline, data.captions(few, 2), 28, 6, max_sequence_length=ZEROS)
    rows[f"28 steps, {ZEROS} zeros, 60 images"] = judge(x, few)
    return rows


def _bytes(x: Tensor) -> Tensor:
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).movedim(1, 3)


def table(rows: dict[str, dict[str, float]], names: Sequence[str] = ()) -> str:
    """The figures as Markdown: those of the first row, or some; what a row has not is left out."""
    names = names or list(next(iter(rows.values())))
    lines = [f"| of | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, row in rows.items():
        told = (f"{row[key]:.3f}" if key in row else "" for key in names)
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the pipeline and judge it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/small"))
    parser.add_argument("--data", choices=("mnist", "fashion"), default="mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, on one core")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--judge", type=Path, help="the judge's classifier, trained if absent")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    making = Making(options)
    pipeline = making.pipeline()
    if "figures" not in making.notes:
        with making.stage("figures"):
            making.notes["figures"] = figures(making, pipeline)
    if not (picture := options.out / "samples.png").exists():
        captions = making.data.captions(asked_of(torch.arange(120)))
        save_grid(picture, states(sample(pipeline, captions, 28)))
    print(json.dumps(making.notes["seconds"], indent=1))
    print(table(making.notes["figures"]))


if __name__ == "__main__":
    main()

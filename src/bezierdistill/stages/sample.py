"""Samples of a model: ``bezierdistill sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named
from bezierdistill.settings import (
    WORDS,
    Solver,
    as_paths,
    check_choice,
    check_counts,
    check_seed,
    written,
)
from bezierdistill.words import counted

if TYPE_CHECKING:
    from bezierdistill.data import Scaling
    from bezierdistill.models.model import Model


@dataclass(frozen=True)
class SampleConfig:
    """Draw samples from a model, in the data's original units.

    Example::

        bezierdistill sample --model runs/student --count 100 --out a.npz --grid a.png
        bezierdistill sample --model runs/words --count 100 --out a.txt
        bezierdistill sample --model runs/labels --labels 0,1,2 --passes 2 --out b.npz
        bezierdistill sample --model runs/lora --prompt "a red boot" --passes 2 --out boot.png
    """

    model: Path
    """Folder of a student or teacher."""
    out: Path
    """The .npz to write; its array is x. Of texts a .txt as well, with one a line; of clips a .gif,
    or a folder of these; of a pipeline with prompts a .png, .gif or .mp4, or a folder of these."""
    passes: int = 1
    """Network passes per sample."""
    count: int | None = None
    """Number of samples; without it 64, or one for each prompt that is given."""
    seed: int = 0
    """Seed of the noise; sample i depends on the seed and i alone, up to rounding."""
    solver: Solver = "euler"
    """How passes are spent: euler jumps from knot to knot; midpoint, heun and rk4 integrate a
    teacher's velocity."""
    labels: tuple[str, ...] = written((), WORDS)
    """Class labels, numbers or names, separated by commas and repeated in turn; without them they
    are as frequent as in the training data."""
    conditions: Path | None = None
    """A .npy of condition vectors, one per sample, for a model that takes these."""
    guidance_scale: float | None = None
    """Scale of guidance: of a student that was distilled for a range, or of a conditional
    teacher."""
    prompt: str | None = None
    """Of a pipeline: a prompt of all samples."""
    prompts: Path | None = None
    """Of a pipeline: a file of prompts, a line each, in turn; without either those that it was
    distilled on."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""
    grid: Path | None = None
    """A PNG of the first samples to write as well; of clips an animated one, or a GIF."""
    network: str | object | None = None
    """Of a student that is your own module: FILE.py:function that returns its teacher."""

    def __post_init__(self) -> None:
        as_paths(self, "model", "out")
        as_named(self, "network")
        check_seed(self.seed)
        check_counts(passes=self.passes, count=1 if self.count is None else self.count)
        if self.prompt is not None and self.prompts is not None:
            raise UserError("prompt and prompts are both given, expected one of them")
        if self.prompts is not None:
            as_paths(self, "prompts")
        check_choice("solver", self.solver, Solver)


def load_on(folder: Path, accelerator: str, network: object = None) -> Model:
    """A model on a device; Fabric, which takes seconds to import, is only asked where there is a
    choice.
    """
    import torch

    from bezierdistill.models.folder import load_model
    from bezierdistill.models.teacher import find_network
    from bezierdistill.training.ranks import open_fabric

    model = load_model(folder, find_network(network))
    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    if accelerator != "cpu" and (accelerator != "auto" or there):
        model.net.to(open_fabric(accelerator).device)
    return model


def main_sample(config: SampleConfig) -> dict[str, Any]:
    """The verb ``sample``."""
    from bezierdistill.data import read_array
    from bezierdistill.files import write_array, write_text
    from bezierdistill.reporting.films import write_images
    from bezierdistill.reporting.plots import save_grid

    model = load_on(config.model, config.accelerator, config.network)
    if model.card.is_pipeline:
        from bezierdistill.stages.prompted import sample_prompts

        return sample_prompts(config, model)
    if config.prompt is not None or config.prompts is not None:
        raise UserError(f"{config.model} is no pipeline and takes no prompt: expected --labels")
    _check_files(config, model.scaling)
    count = config.count or 64
    labels = list(config.labels) or None
    vectors = None if config.conditions is None else read_array(config.conditions)
    x = model.sample(
        count,
        config.passes,
        config.seed,
        config.solver,
        labels=labels,
        conditions=vectors,
        guidance_scale=config.guidance_scale,
    )
    more = {}
    if model.conditions.frequencies is not None and vectors is None:  # as the samples had them
        given = model.labels(range(count), config.seed, labels=labels)
        more = {"labels": given.numpy()}
    scaling = model.scaling
    if config.out.suffix == ".npz":
        write_array(config.out, x, **more)
    elif scaling.layout == "tokens":
        write_text(config.out, "".join(f"{text}\n" for text in x))
    else:
        write_images(config.out, x if x.ndim == 5 else x[..., None].repeat(3, -1))
    if config.grid is not None:
        save_grid(config.grid, scaling.frames(scaling.encode(x[:64])))
    return told(config, x.shape)


def _check_files(config: SampleConfig, scaling: Scaling) -> None:
    """Refuse what could not be written, before anything is sampled."""
    clips, texts = scaling.is_clips, scaling.layout == "tokens"
    kinds, more = {".npz"}, ""
    if texts:
        kinds, more = {".npz", ".txt"}, " or a .txt"
    elif clips:
        kinds, more = {".npz", ".gif", ""}, ", a .gif or a folder"
    if config.out.suffix not in kinds:
        raise UserError(f"out is {config.out}, expected a .npz{more}")
    check_new(config.out)
    if texts and config.grid is not None:
        raise UserError(f"grid is {config.grid}, and texts are no images: leave it out")
    if clips and config.grid is not None and config.grid.suffix not in (".png", ".gif"):
        raise UserError(f"grid is {config.grid}, expected a .png or .gif of clips")


def check_new(out: Path) -> None:
    """Refuse a folder that is there."""
    if out.suffix == "" and out.exists():
        raise UserError(f"{out} exists: choose another --out")


def told(config: SampleConfig, shape: tuple[int, ...]) -> dict[str, Any]:
    """Tell of samples of shape ``(N, ...)``; what ``--json`` prints of them."""
    count, *rest = shape
    own = tuple(rest)
    what = f"samples of shape {own}" if own else "texts"
    print(f"{config.out}: {count} {what}, {counted(config.passes, 'pass')} each")
    return {
        "out": config.out,
        "grid": config.grid,
        "count": count,
        "shape": own,
        "passes": config.passes,
    }

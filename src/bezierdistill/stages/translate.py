"""Images of one domain to another, files in, files out: ``bezierdistill translate``.

A model that was trained or simulated with a domain starts from its images instead of noise
(:meth:`~bezierdistill.models.model.Model.translate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.settings import WORDS, Solver, as_paths, check_choice, check_counts, written
from bezierdistill.stages.sample import load_on
from bezierdistill.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor

    from bezierdistill.data import Scaling
    from bezierdistill.models.model import Model


COLUMNS, GRID = 12, 36  # images of a row, and those that a grid shows


@dataclass(frozen=True)
class TranslateConfig:
    """Translate images of one domain to another.

    Example::

        bezierdistill translate --model runs/student --input threes --out eights
        bezierdistill translate --model runs/student --input in.npz --out out.npz --grid out.png
    """

    model: Path
    """Folder of a model that translates."""
    input: Path
    """An image, a folder of images, or a .npz or .npy of samples in the domain's original units."""
    out: Path
    """A .npz, or a folder for images of the same names."""
    passes: int = 1
    """Network passes per image."""
    solver: Solver = "euler"
    """How passes are spent: euler jumps from knot to knot; midpoint, heun and rk4 integrate an
    undistilled flow."""
    resize: bool = False
    """Resize inputs of other sizes instead of refusing them."""
    labels: tuple[str, ...] = written((), WORDS)
    """Of a conditional model: class labels of the inputs, numbers or names, separated by commas and
    repeated in turn; without them those of the input, its folders or its array of labels."""
    grid: Path | None = None
    """A PNG of the first inputs, with their translations below them, to write as well."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        as_paths(self, "model", "input", "out")
        check_counts(passes=self.passes)
        check_choice("solver", self.solver, Solver)
        if self.grid is not None:
            as_paths(self, "grid")


def translate_files(model: Model, config: TranslateConfig) -> np.ndarray:
    """Translate what ``config.input`` holds and write ``config.out``.

    Returns:
        The translations in the target's original units, ``(N, ...)``.

    Raises:
        UserError: on inputs that cannot be read or are no states of the domain, or an output that
            fits neither; see :meth:`~bezierdistill.models.model.Model.translate`.
    """
    from bezierdistill.data import Size, from_pixels, read_file, read_images
    from bezierdistill.files import write_array

    if model.domain is None:
        raise UserError(
            f"{config.model} starts from noise, expected a model that was trained or simulated with"
            " --domain"
        )
    if config.grid is not None and (len(model.shape) != 3 or model.scaling.is_clips):
        what = "clips" if model.scaling.is_clips else "vectors"
        raise UserError(f"the model translates {what}, which no grid shows: expected no --grid")
    files, labels = list[Path](), list(config.labels) or None
    if config.input.suffix.lower() in (".npz", ".npy"):
        found = read_file(config.input)
        x, given = found.x["train"], found.given.get("train")
        if config.out.suffix != ".npz":
            raise UserError(
                f"out is {config.out}, expected a path ending in .npz for the array {config.input}"
            )
        if model.condition_size and labels is None and given is not None and given.ndim == 1:
            labels = [found.names[k] for k in given] if found.names else given.tolist()
    else:
        sizes = [Size(*model.shape[1:])] if config.resize and len(model.shape) == 3 else ()
        files, x = read_images(config.input, sizes)
        x = from_pixels(x, model.domain, model.shape[0])
        if model.condition_size and labels is None and config.input.is_dir():
            labels = [file.relative_to(config.input).parent.name for file in files]
    targets = [] if config.out.suffix == ".npz" else _targets(config, files, model.scaling)
    if config.resize:
        x = resized(x, model)
    y = model.translate(x, config.passes, config.solver, labels=labels)
    if targets:
        _write_images(targets, y)
    else:
        write_array(config.out, y)
    if config.grid is not None:
        few = slice(GRID)
        shown = {"output": model.scaling.encode(y[few])}
        save_translations(config.grid, model.domain.encode(x[few]), shown)
    return y


def save_translations(path: Path, x: Tensor, outputs: Mapping[str, Tensor]) -> None:
    """Write images ``(N, C, H, W)`` in model units as a PNG: rows of inputs above what becomes of
    them.
    """
    from bezierdistill.reporting.plots import save_rows

    rows: dict[str, Tensor] = {}
    for start in range(0, len(x), COLUMNS):
        part = slice(start, start + COLUMNS)
        which = f" {start + 1}-{min(start + COLUMNS, len(x))}"
        rows |= {name + which: own[part] for name, own in {"input": x, **outputs}.items()}
    save_rows(path, rows, COLUMNS)


def resized(x: np.ndarray, model: Model) -> np.ndarray:
    """States of a model's domain in original units, at the model's size.

    Raises:
        UserError: if the model translates vectors.
    """
    from bezierdistill.data import Size

    assert model.domain is not None
    if len(model.shape) != 3:
        raise UserError(
            "the model translates vectors, which have no size to change: expected no --resize"
        )
    if x.ndim != model.domain.axes:
        return x  # of the wrong kind, which translate says
    same = model.domain.encode(x[:1]).shape[2:] == model.shape[1:]
    return x if same else Size(*model.shape[1:])(x, model.domain, "input")


def _targets(config: TranslateConfig, files: list[Path], scaling: Scaling) -> list[Path]:
    """Where each translation goes: a PNG of the same name in the folder, which must not be the
    inputs' own.
    """
    if not scaling.integer or scaling.layout not in ("hw", "hwc"):
        raise UserError(
            "the model's states are no images of bytes, expected --out to end in .npz instead of"
            f" {config.out}"
        )
    if config.out.exists() and not config.out.is_dir():
        raise UserError(
            f"out is the file {config.out}, expected a folder for images, or a path ending in .npz"
        )
    base = config.input if config.input.is_dir() else config.input.parent
    targets = [config.out / file.relative_to(base).with_suffix(".png") for file in files]
    taken = [target for target in targets if target.exists()]
    if taken:
        raise UserError(
            f"{taken[0]} exists already, and so do {len(taken) - 1} more: choose another --out"
        )
    twice = len(targets) - len(set(targets))
    if twice:
        raise UserError(
            f"{twice} inputs differ only in the ending of their names: rename them, or choose an"
            " --out ending in .npz"
        )
    return targets


def _write_images(targets: list[Path], y: np.ndarray) -> None:
    from PIL import Image

    from bezierdistill.files import write_atomically

    for target, pixels in zip(targets, y, strict=True):
        image = Image.fromarray(pixels)
        write_atomically(target, lambda path, image=image: image.save(path, format="png"))


def main_translate(config: TranslateConfig) -> dict[str, Any]:
    """The verb ``translate``."""
    y = translate_files(load_on(config.model, config.accelerator), config)
    shape = y.shape[1:]
    each = f"{counted(config.passes, 'pass')} each"
    print(f"{config.out}: {len(y)} translations of shape {shape}, {each}")
    return {"out": config.out, "count": len(y), "shape": shape, "passes": config.passes}

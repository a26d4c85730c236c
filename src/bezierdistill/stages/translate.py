r"""Translation between two domains: image files in, image files out; and SDEdit, the way without a
flow between the domains.

A model that was trained or simulated with a source domain starts from its images instead of noise
(:meth:`~bezierdistill.models.model.Model.translate`). SDEdit (Meng et al. 2021, arXiv 2108.01073) needs
only the target's flow: the input is mixed with noise, :math:`x_t = t\, x + (1 - t)\, \epsilon`, and
carried to the end from there. A later t keeps more of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bezierdistill.data import Scaling, read_array, read_images
from bezierdistill.errors import UserError
from bezierdistill.fields import Field
from bezierdistill.files import write_array, write_atomically
from bezierdistill.models import Model
from bezierdistill.settings import Solver
from bezierdistill.solvers import Solution, solve, time_grid


@dataclass(frozen=True)
class TranslateConfig:
    """Translate images of one domain to another.

    Example::

        bezierdistill translate --model runs/student --input threes --out eights
        bezierdistill translate --model runs/student --input in.npz --out out.npz
    """

    model: Path
    """Folder of a model that translates."""
    input: Path
    """An image, a folder of images, or a .npz or .npy of samples in the source's own units."""
    out: Path
    """A .npz, or a folder for images of the same names."""
    passes: int = 1
    """Network passes an image."""
    solver: Solver = "euler"
    """Euler jumps from knot to knot; midpoint, heun and rk4 integrate an undistilled flow with the
    given passes."""
    resize: bool = False
    """Resize inputs of another size instead of refusing them."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        for name in ("model", "input", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))


def translate_files(model: Model, config: TranslateConfig) -> np.ndarray:
    """Translate what ``config.input`` holds and write ``config.out``.

    Returns:
        The translations in the target's own units, ``(N, ...)``.

    Raises:
        UserError: on inputs that cannot be read or are no states of the source, or an output that
            fits neither; see :meth:`~bezierdistill.models.model.Model.translate`.
    """
    if model.source is None:
        raise UserError(
            f"{config.model} starts from noise, expected a model that was trained or simulated with"
            " --source"
        )
    files: list[Path] = []
    if config.input.suffix.lower() in (".npz", ".npy"):
        x = read_array(config.input)
        if config.out.suffix != ".npz":
            raise UserError(
                f"out is {config.out}, expected a path ending in .npz for the array {config.input}"
            )
    else:
        files, x = read_images(config.input)
        x = from_pixels(x, model.source)
    targets = [] if config.out.suffix == ".npz" else _targets(config, files, model.scaling)
    if config.resize:
        x = resized(x, model)
    y = model.translate(x, config.passes, config.solver)
    if targets:
        _write_images(targets, y)
    else:
        write_array(config.out, y)
    return y


def sdedit(
    field: Field,
    x: Tensor,
    keep: float,
    steps: int,
    generator: torch.Generator,
    method: str = "heun",
) -> Solution:
    """Carry inputs mixed with noise to the end by the target's flow.

    Args:
        field: the target domain's flow from noise.
        x: inputs ``(B, ...)`` in model units.
        keep: the time t in (0, 1) at which the flow is entered: the share of the input.
        steps: solver steps.
        generator: of the noise.
        method: fixed-step solver.

    Raises:
        UserError: if ``keep`` is not in (0, 1).
    """
    if not 0 < keep < 1:
        raise UserError(f"keep is {keep}, expected a share of the input in (0, 1)")
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
    return solve(field, torch.lerp(noise, x, keep), time_grid(steps, keep, 1.0), method)


def from_pixels(x: np.ndarray, source: Scaling, grey: bool = False) -> np.ndarray:
    """Bytes of image files, ``(N, H, W)`` or ``(N, H, W, 3)``, as the source stores its images, in
    its own units.

    Args:
        x: pixels from black, 0, to white, 255.
        source: of the domain that is translated from.
        grey: turn colour into grey (ITU-R BT.601) for a source of grey images.

    Raises:
        UserError: on colour for a source of grey images, or a source whose numbers have no range
            that black and white could be.
    """
    if source.layout == "hw" and x.ndim == 4:
        if not grey:
            raise UserError(
                "input images are in colour, the model translates grey ones: convert them"
            )
        x = x @ np.array([0.299, 0.587, 0.114])
    if source.layout == "hwc" and x.ndim == 3:
        x = np.repeat(x[..., None], 3, axis=3)
    if source.layout == "chw":
        x = np.moveaxis(x, 3, 1) if x.ndim == 4 else np.repeat(x[:, None], 3, axis=1)
    if source.integer:
        return x
    if source.low is None or source.high is None:
        raise UserError(
            "the model's states have no range from black to white, expected a .npz or .npy of"
            " samples in their own units"
        )
    return source.low + (source.high - source.low) / 255 * x


def resized(x: np.ndarray, model: Model) -> np.ndarray:
    """States of a model's source in own units, at the model's size.

    Raises:
        UserError: if the model translates vectors.
    """
    assert model.source is not None
    if len(model.shape) != 3:
        raise UserError(
            "the model translates vectors, which have no size to change: expected no --resize"
        )
    if x.ndim != {"hw": 3}.get(model.source.layout, 4):
        return x  # of the wrong kind, which translate says
    states = model.source.encode(x)
    if states.shape[2:] == model.shape[1:]:
        return x
    return model.source.decode(
        torch.nn.functional.interpolate(states, model.shape[1:], mode="bilinear", antialias=True)
    )


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

    for target, pixels in zip(targets, y, strict=True):
        image = Image.fromarray(pixels)
        write_atomically(target, lambda path, image=image: image.save(path, format="png"))

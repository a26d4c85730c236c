"""The verbs that use what is there: samples, their judgement, reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bezierdistill.cli.results import Verb, facts
from bezierdistill.data import load_data, read_array, read_sides
from bezierdistill.errors import UserError
from bezierdistill.files import write_array, write_json
from bezierdistill.metrics import Evaluator, load_extractor
from bezierdistill.models import Model, load_model
from bezierdistill.reporting import print_rows, protocol_lines, write_report
from bezierdistill.reporting.plots import save_grid
from bezierdistill.settings import Solver
from bezierdistill.stages.translate import TranslateConfig, translate_files
from bezierdistill.training.ranks import open_fabric


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Draw samples from a model, in the data's own units.

    Example::

        bezierdistill sample --model runs/student --count 100 --out a.npz --grid a.png
        bezierdistill sample --model runs/labels --labels 0,1,2 --passes 2 --out b.npz
    """

    model: Path
    """Folder of a student or teacher."""
    out: Path
    """The .npz to write; its array is x."""
    passes: int = 1
    """Network passes a sample."""
    count: int = 64
    """Number of samples."""
    seed: int = 0
    """Seed of the noise; sample i depends on the seed and i alone."""
    solver: Solver = "euler"
    """Euler jumps from knot to knot; midpoint, heun and rk4 integrate a teacher's velocity with the
    given passes."""
    labels: str | None = None
    """Class labels separated by commas, repeated in turn; without them they are as frequent as in
    the training data."""
    conditions: Path | None = None
    """A .npy of condition vectors, one a sample, for a model that takes these."""
    guidance: float | None = None
    """Strength of guidance: of a student that was distilled for a range, or of a conditional
    teacher."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""
    grid: Path | None = None
    """A PNG of the first samples to write as well."""

    def numbers(self) -> list[int] | None:
        """The labels as numbers.

        Raises:
            UserError: if they are none.
        """
        try:
            return None if self.labels is None else [int(part) for part in self.labels.split(",")]
        except ValueError:
            raise UserError(
                f"labels are {self.labels!r}, expected whole numbers separated by commas, such as"
                " 0,1,2"
            ) from None


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Compare samples with held-out real data.

    Every metric comes with its floor (real against real) and their ratio.

    Example::

        bezierdistill evaluate --samples one.npz --data digits
        bezierdistill evaluate --samples one.npz --data digits --out scores.json
    """

    samples: Path
    """A .npz or .npy of samples in the data's own units; if it has labels, --extractor classifier
    judges every class."""
    data: str
    """Built-in name or path."""
    seed: int = 0
    """Which real samples are drawn."""
    extractor: str = "random"
    """Features to compare by: random, classifier (of the data's own classes, trained once),
    squeezenet:PATH of its weights, or a Python file whose function extractor(data) returns a module
    of your own."""
    out: Path | None = None
    """A JSON file for the result as well."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write report.html of a run, one self-contained page.

    It holds pictures, tables and settings, and asks for nothing from elsewhere.

    Example::

        bezierdistill report --run runs/student
    """

    run: Path
    """Folder of a demo, model, curve store or reflow."""


def _load(folder: Path, accelerator: str) -> Model:
    """A model on a device; Fabric, which takes seconds to import, is only asked where there is a
    choice.
    """
    model = load_model(folder)
    if accelerator != "cpu" and (
        accelerator != "auto" or torch.cuda.is_available() or torch.backends.mps.is_available()
    ):
        model.net.to(open_fabric(accelerator).device)
    return model


def _sample(config: SampleConfig) -> dict[str, Any]:
    model, labels = _load(config.model, config.accelerator), config.numbers()
    vectors = None if config.conditions is None else read_array(config.conditions)
    x = model.sample(
        config.count,
        config.passes,
        config.seed,
        config.solver,
        labels=labels,
        conditions=vectors,
        guidance=config.guidance,
    )
    more = {}
    if (
        model.frequencies is not None and vectors is None
    ):  # as the samples had them: row by row from the seed
        given = model.condition(range(config.count), config.seed, labels)
        more = (
            {}
            if given is None
            else {"labels": given[:, : len(model.frequencies)].argmax(1).numpy()}
        )
    write_array(config.out, x, **more)
    if config.grid is not None:
        save_grid(config.grid, model.scaling.encode(x[:64]))
    print(
        f"{config.out}: {config.count} samples of shape {x.shape[1:]}, {config.passes} passes each"
    )
    return {
        "out": config.out,
        "grid": config.grid,
        "count": config.count,
        "shape": x.shape[1:],
        "passes": config.passes,
    }


def _evaluate(config: EvaluateConfig) -> dict[str, Any]:
    data = load_data(config.data)
    side = read_sides(config.samples)[0]
    if side.x.shape[1:] != data.scaling.decode(data.real(1, 0, "test")).shape[1:]:
        raise UserError(
            f"{config.samples} holds samples of shape {side.x.shape[1:]}, {config.data} of another:"
            " expected samples of that data"
        )
    evaluate = Evaluator(
        data,
        config.seed,
        None if config.extractor == "random" else load_extractor(config.extractor, data),
    )
    x = data.scaling.encode(side.x)
    labels = (
        side.given
        if config.extractor == "classifier" and side.given is not None and side.given.ndim == 1
        else None
    )
    classes = {} if labels is None else {"classes": evaluate.classes(x, labels)}
    result = {**evaluate(x), **classes}
    if config.out is not None:
        write_json(config.out, result)
    print_rows([{"method": str(config.samples), **result}])
    print("\n".join(protocol_lines(result)))
    return result


def _translate(config: TranslateConfig) -> dict[str, Any]:
    y = translate_files(_load(config.model, config.accelerator), config)
    print(
        f"{config.out}: {len(y)} translations of shape {y.shape[1:]}, {config.passes} passes each"
    )
    return {"out": config.out, "count": len(y), "shape": y.shape[1:], "passes": config.passes}


def _report(config: ReportConfig) -> dict[str, Any]:
    page = write_report(config.run)
    print(page)
    return {"report": page}


SAMPLES: dict[str, Verb] = {
    "sample": (SampleConfig, _sample),
    "translate": (TranslateConfig, _translate),
    "evaluate": (EvaluateConfig, _evaluate),
    "report": (ReportConfig, _report),
}

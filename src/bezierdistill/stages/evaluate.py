"""Samples judged against held-out real data: ``bezierdistill evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.settings import as_paths, check_seed
from bezierdistill.stages.sources import as_data

if TYPE_CHECKING:
    from bezierdistill.records import ClassScores

LISTED = 20  # classes of a table in the terminal, the worst ones


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare samples with held-out real data.

    Every metric comes with its floor (real against real) and their ratio.

    Example::

        bezierdistill evaluate --samples one.npz --data digits
        bezierdistill evaluate --samples one.npz --data digits --out scores.json
    """

    samples: Path
    """A .npz or .npy of samples in the data's original units, or a folder of images; if it has
    labels, --extractor classifier judges every class."""
    data: str | object
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function; in Python an object as well."""
    seed: int = 0
    """Which real samples are drawn."""
    extractor: str = "random"
    """Features to compare by: random, classifier (of the data's own classes, trained once),
    squeezenet:PATH of its weights, or a Python file whose function extractor(data) returns a
    module of your own."""
    out: Path | None = None
    """A JSON file for the result as well."""

    def __post_init__(self) -> None:
        as_paths(self, "samples")
        as_data(self, "data")
        check_seed(self.seed)


def main_evaluate(config: EvaluateConfig) -> Any:
    """The verb ``evaluate``."""
    import msgspec

    from bezierdistill.data import load_data, read_samples
    from bezierdistill.metrics import Evaluator, load_extractor
    from bezierdistill.records import to_json, write_record
    from bezierdistill.reporting.tables import print_rows, protocol_lines

    data = load_data(config.data)
    by_class = config.extractor == "classifier"
    x, given = read_samples(config.samples, data, by_class)
    extractor = None if config.extractor == "random" else load_extractor(config.extractor, data)
    evaluate = Evaluator(data, config.seed, extractor)
    states = data.scaling.encode(x)
    scores = evaluate(states)
    if given is not None:
        scores = msgspec.structs.replace(scores, classes=evaluate.classes(states, given))
    if config.out is not None:
        write_record(config.out, scores)
    print_rows({str(config.samples): scores})
    print("\n".join(protocol_lines(scores)))
    if scores.classes is not None:
        print("\n".join(class_lines(scores.classes)))
    return to_json(scores)


def class_lines(classes: ClassScores) -> list[str]:
    """A line per class, by name: those of least accuracy where there are many."""
    worst = sorted(classes.by_class, key=lambda row: -1 if row.accuracy is None else row.accuracy)
    shown = {row.name for row in worst[:LISTED]}
    lines = []
    for row in classes.by_class:
        figures = ((row.accuracy, "accuracy"), (row.coverage, "coverage"))
        told = [f"{what} {value:.3f}" for value, what in figures if value is not None]
        if row.name in shown:
            lines.append(f"  {row.name}: {', '.join([f'{row.count:,} samples', *told])}")
    return lines

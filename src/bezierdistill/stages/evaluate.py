"""Samples judged against held-out real data: ``bezierdistill evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named, find_function, is_object, label
from bezierdistill.settings import WORDS, as_paths, check_seed, written
from bezierdistill.stages.sources import as_data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    extractor: str | object = "random"
    """Features to compare by: random, classifier (of the data's own classes, trained once),
    squeezenet:PATH of its weights, or FILE.py:function, which takes the data and returns a module
    of your own."""
    metric: tuple[str | object, ...] = written((), WORDS)
    """Metrics of your own beside the others, as FILE.py:function, which takes two sets of states
    and returns a number."""
    out: Path | None = None
    """A JSON file for the result as well."""

    def __post_init__(self) -> None:
        as_paths(self, "samples")
        as_named(self, "extractor", "metric")
        as_data(self, "data")
        check_seed(self.seed)
        for name in self.metric:
            if not is_object(name):
                raise UserError(f"metric is {name!r}, expected FILE.py:function")


def main_evaluate(config: EvaluateConfig) -> Any:
    """The verb ``evaluate``."""
    import msgspec

    from bezierdistill.data import load_data, read_samples
    from bezierdistill.metrics import Evaluator, load_extractor
    from bezierdistill.records import to_json, write_record
    from bezierdistill.reporting.tables import print_rows, protocol_lines

    metrics = find_metrics(config.metric)
    data = load_data(config.data)
    by_class = config.extractor == "classifier"
    x, given = read_samples(config.samples, data, by_class)
    name: Any = config.extractor
    extractor = None if name == "random" else load_extractor(name, data)
    evaluate = Evaluator(data, config.seed, extractor)
    states = data.scaling.encode(x)
    scores = evaluate(states)
    if given is not None:
        scores = msgspec.structs.replace(scores, classes=evaluate.classes(states, given))
    own = {name: evaluate.measure(states, metric) for name, metric in metrics.items()}
    result = to_json(scores) | ({"metrics": to_json(own)} if own else {})
    if config.out is not None:
        write_record(config.out, result)
    print_rows({str(config.samples): scores})
    print("\n".join(protocol_lines(scores)))
    if scores.classes is not None:
        print("\n".join(class_lines(scores.classes)))
    for name, score in own.items():
        print(f"{name}: {score.value:.4g} ({score.ratio:.2f}x), floor {score.floor:.4g}")
    return result


def find_metrics(names: Sequence[Any]) -> dict[str, Callable[..., Any]]:
    """Metrics by what they are called.

    Raises:
        UserError: if there is no such metric, or two are called alike.
    """
    does = "takes two sets of states and returns a number"
    found = {label(name, "metric"): find_function(name, "metric", does) for name in names}
    if len(found) < len(names):
        raise UserError(f"two metrics are called alike in {', '.join(names)}: rename one of them")
    return found


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

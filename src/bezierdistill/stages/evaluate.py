"""Samples judged against held-out real data: ``bezierdistill evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named, find_function, is_object, label
from bezierdistill.settings import WORDS, as_paths, check_seed, written
from bezierdistill.stages.sources import as_data
from bezierdistill.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from torch import Tensor

    from bezierdistill.data import Data, Inputs
    from bezierdistill.metrics import Evaluator
    from bezierdistill.records import ClassScores, ClipScores, Motion, Scores

LISTED = 20  # classes of a table in the terminal, the worst ones


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare samples with held-out real data.

    Every metric comes with its floor (real against real) and their ratio; Frechet distances at
    three scales, and fidelity, the distance of a sample to the nearest real one, among them. Texts
    are judged by their words, trigrams and perplexity as well.

    Example::

        bezierdistill evaluate --samples one.npz --data digits
        bezierdistill evaluate --samples one.npz --data digits --out scores.json
        bezierdistill evaluate --samples one.npz --data IMAGES --extractor classifier,squeezenet:W
        bezierdistill evaluate --samples eights --inputs threes@8x8 --data digits@class8
        bezierdistill evaluate --samples films.npz --against films-of-the-teacher.npz
    """

    samples: Path
    """A .npz or .npy of samples in the data's original units, a folder of images or a .txt of
    texts; if it has labels, an --extractor judges every class, a classifier its accuracy too.
    @16x16 after the path resizes images."""
    data: str | object | None = None
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function; in Python an object as well. Without
    it the motion of clips is compared with that of --against, and nothing else is measured."""
    seed: int = 0
    """Which real samples are drawn."""
    extractor: tuple[str | object, ...] = written(("random",), WORDS)
    """Features to compare by, one judge after the other: random, classifier (of the data's own
    classes, trained once, on the validation split), squeezenet:PATH or inception:PATH of its
    weights, dino:FOLDER, or FILE.py:function, which takes the data and returns a module of your
    own."""
    against: Path | None = None
    """Of clips: others to compare the motion with instead of held-out ones, such as those of a
    teacher from the same noise: a .npz, .npy, .gif or folder of films."""
    metric: tuple[str | object, ...] = written((), WORDS)
    """Metrics of your own beside the others, as FILE.py:function, which takes two sets of states
    and returns a number."""
    inputs: Path | None = None
    """What the samples were translated from, in the same order and written likewise: how much of it
    they keep is measured, by an --extractor classifier whether they keep its labels too."""
    back: Path | None = None
    """What another model translates the samples back to: how far it is from --inputs."""
    out: Path | None = None
    """A JSON file for the result as well."""

    def __post_init__(self) -> None:
        as_paths(self, "samples")
        if self.against is not None:
            as_paths(self, "against")
        as_named(self, "extractor", "metric")
        as_data(self, "data")
        for name in ("inputs", "back"):
            if getattr(self, name) is not None:
                as_paths(self, name)
        if self.back is not None and self.inputs is None:
            raise UserError(f"back is {self.back} and inputs None: expected --inputs as well")
        check_seed(self.seed)
        if not self.extractor:
            raise UserError("extractor is empty, expected one or more, such as random")
        check_metrics(self.metric)


def check_metrics(names: Iterable[object]) -> None:
    """Raise ``UserError`` unless every metric is one of the user's own."""
    for name in names:
        if not is_object(name):
            raise UserError(f"metric is {name!r}, expected FILE.py:function")


def main_evaluate(config: EvaluateConfig) -> Any:
    """The verb ``evaluate``."""
    if config.data is None:
        return _compared(config)
    from bezierdistill.data import load_data, read_inputs, read_samples
    from bezierdistill.metrics import Evaluator, load_extractor
    from bezierdistill.records import Score, Scores, to_json, write_record
    from bezierdistill.reporting.tables import print_rows, protocol_lines

    metrics = find_metrics(config.metric)
    names: list[Any] = list(dict.fromkeys(config.extractor))
    data = load_data(config.data)
    x, labels = read_samples(config.samples, data, _labelled(names, data))
    inputs = None
    if config.inputs is not None:
        inputs = read_inputs(config.inputs, config.samples, data, config.back)
    against = _against(config.against, data)
    states, found, own = data.scaling.encode(x), dict[str, Scores](), dict[str, Score]()
    for name in names:
        extractor = None if name == "random" else load_extractor(name, data)
        evaluate = Evaluator(data, config.seed, extractor)
        found[str(name)] = judged(evaluate, states, labels, inputs, against)
        own = own or {key: evaluate.measure(states, metric) for key, metric in metrics.items()}
    # One judge's scores are the result; several are told apart by their words.
    result = to_json(next(iter(found.values())) if len(found) == 1 else found)
    result |= {"metrics": to_json(own)} if own else {}
    if config.out is not None:
        write_record(config.out, result)
    for scores in found.values():
        print_rows({str(config.samples): scores})
        print("\n".join(protocol_lines(scores)))
        if scores.classes is not None:
            print("\n".join(class_lines(scores.classes)))
        if scores.clips is not None:
            print("\n".join(clip_lines(scores.clips)))
    for name, score in own.items():
        print(f"{name}: {score.value:.4g} ({score.ratio:.2f}x), floor {score.floor:.4g}")
    return result


def _compared(config: EvaluateConfig) -> Any:
    """The motion of clips over that of others: what can be told without data.

    Raises:
        UserError: if there are no others, they are of another size or length, or more is asked for.
    """
    from torch import from_numpy

    from bezierdistill.data.clips import read_clips
    from bezierdistill.metrics import motion_ratio
    from bezierdistill.records import to_json, write_record

    if config.against is None:
        raise UserError("data is None, expected --data; of clips --against will do as well")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in ("samples", "against", "out") and value != field.default:
            raise UserError(f"{field.name} is {value} and data None: expected --data as well")
    paths = (config.samples, config.against)
    own, other = (read_clips(path).x["train"] for path in paths)
    if own.shape[1:4] != other.shape[1:4]:
        one, two = (
            f"{path} holds clips of {counted(x.shape[1], 'frame')} of {x.shape[3]} x {x.shape[2]}"
            for path, x in zip(paths, (own, other), strict=True)
        )
        raise UserError(f"{one}, {two}: expected clips of one length and one size")
    motion = motion_ratio(from_numpy(own), from_numpy(other))
    result = {"clips": {"motion": to_json(motion), "against": "given"}}
    if config.out is not None:
        write_record(config.out, result)
    print(motion_line(motion, "the clips given"))
    return result


def _labelled(names: Iterable[str], data: Data) -> bool:
    """Whether samples are judged by class: by any features but random ones, where the data have
    classes; a classifier tells by itself what is wrong with theirs.
    """
    if "classifier" in names:
        return True
    try:
        return set(names) != {"random"} and data.classes > 0
    except UserError:
        return False


def _against(path: Path | None, data: Data) -> Tensor | None:
    """The clips to compare the motion with, if some are given."""
    from bezierdistill.data import read_samples

    if path is None:
        return None
    if not data.scaling.is_clips:
        told = f"against is {path}, and {data.name} holds states of shape {data.shape}"
        raise UserError(f"{told}: expected clips, or no --against")
    return data.scaling.encode(read_samples(path, data)[0])


def judged(
    evaluate: Evaluator,
    states: Tensor,
    labels: np.ndarray | None,
    inputs: Inputs | None = None,
    against: Tensor | None = None,
) -> Scores:
    """The scores of states, with those of classes where there are labels, of a translation where
    there are inputs, and those of clips.
    """
    import msgspec

    return msgspec.structs.replace(
        evaluate(states),
        classes=None if labels is None else evaluate.classes(states, labels),
        translation=None if inputs is None else evaluate.translation(states, inputs),
        clips=_clips(evaluate, states, against),
    )


def _clips(evaluate: Evaluator, states: Tensor, against: Tensor | None) -> ClipScores | None:
    """The scores of clips, with those of their digits where the extractor is a classifier."""
    from bezierdistill.metrics.classifier import ClassifierFeatures
    from bezierdistill.metrics.clips import ClipJudge, frame_classifier

    if not evaluate.data.scaling.is_clips:
        return None
    learned = isinstance(evaluate.extractor, ClassifierFeatures)
    judge = ClipJudge(evaluate, frame_classifier(evaluate.data) if learned else None)
    return judge(states, against)


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


def clip_lines(clips: ClipScores) -> list[str]:
    """Figures of clips, for people."""
    distances = (("frames", clips.frames), ("differences", clips.differences))
    told = [f"{name} {own.value:.4g} ({own.ratio:.2f}x)" for name, own in distances]
    shares = (
        (clips.tracks, clips.tracks_real, "right tracks"),
        (clips.kept, clips.kept_real, "digits kept"),
    )
    told += [f"{what} {own:.3f} (real {real:.3f})" for own, real, what in shares if own is not None]
    whose = "held-out clips" if clips.against == "test" else "the clips given"
    return [f"clips: {', '.join(told)}", motion_line(clips.motion, whose)]


def motion_line(motion: Motion, whose: str) -> str:
    """The motion of clips beside that of others, for people."""
    low, middle, high = motion.quantiles
    least, median, most = motion.reference
    return (
        f"motion over that of {whose}: {motion.ratio:.3f}; 5, 50 and 95 % of clips"
        f" {low:.2f}, {middle:.2f}, {high:.2f} (theirs {least:.2f}, {median:.2f}, {most:.2f})"
    )


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

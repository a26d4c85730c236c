"""What files say, typed: the card of a model, the recipe of a curve store, rows of results.

A record is checked once, when it is read, and is used by attribute from then on. What does not fit
is refused with the path of the field. Numbers that JSON does not have (NaN, infinity) are neither
written nor read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from bezierdistill.data.scaling import Scaling
from bezierdistill.errors import UserError
from bezierdistill.files import read_text, write_json, write_text
from bezierdistill.settings import Noise, Points, Units

T = TypeVar("T")
ROUNDS = "rounds.json"
# What a round of a reflow loses.
ERRORS = ("straightness", "drift", "reconstruction_real", "reconstruction_generated")
SCALES = ("coarse", "middle", "fine")
MAX_STATE, MAX_NUMBERS, MAX_COUNT = 2**28, 2**40, 2**62
Kind = Literal["teacher", "student"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all records are: frozen, fields by name, no unknown ones."""


def expect(fits: bool, name: str, got: object, expected: str) -> None:
    """Refuse a field.

    Raises:
        ValueError: unless it fits; reading tells the record's path as well.
    """
    if not fits:
        raise ValueError(f"{name} is {str(got)[:100]!r}, expected {expected}")


def _counts(**numbers: int) -> None:
    for name, value in numbers.items():
        expect(0 <= value < MAX_COUNT, name, value, "a whole number of 0 or more")


class TeacherRef(Record, frozen=True):
    """A teacher that a record names: where it was, and the digest that it is known by."""

    path: str
    digest: str


class Conditions(Record, frozen=True):
    """What the conditions of a model or of curves are.

    ``size`` numbers a condition, 0 is none; ``frequencies`` of class labels in the training data,
    None for vectors; ``names`` of the classes; ``rows`` of a table that the one number of a
    condition is a row of, and ``table``, what that is known by; ``guidance_range`` of a scale
    that is the last number of a condition; ``guided``, the scale, or both ends of the range, that
    is in the curves.
    """

    size: int = 0
    frequencies: tuple[float, ...] | None = None
    names: tuple[str, ...] = ()
    rows: int | None = None
    table: str | None = None
    guidance_range: tuple[float, float] | None = None
    guided: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        expect(0 <= self.size <= MAX_NUMBERS, "size", self.size, "a whole number")
        low_high, own = self.guidance_range, self.size - (self.guidance_range is not None)
        rises = low_high is None or (low_high[0] < low_high[1] and self.size > 0)
        expect(rises, "guidance_range", low_high, "two rising numbers of a model with conditions")
        given = self.frequencies
        shares = given is None or (len(given) == own and min(given) >= 0 and 0 < sum(given) < 1e6)
        expect(shares, "frequencies", given, f"{own} of 0 or more")
        table = self.rows is None or (own == 1 and given is None and 0 < self.rows < MAX_COUNT)
        expect(table, "rows", self.rows, "1 or more of a condition of one number")
        known = not self.names or (given is not None and len(self.names) == len(given))
        expect(known, "names", self.names, "one per class")
        fits = all(math.isfinite(g) for g in self.guided) and len(self.guided) <= 2
        expect(fits, "guided", self.guided, "a strength, or both ends of a range")

    @property
    def classes(self) -> int:
        """Number of classes; 0 if conditions are vectors or none."""
        return len(self.frequencies or ())

    @property
    def guidance_scale(self) -> float | None:
        """The one guidance scale that is in the curves; None for none, or a range."""
        return self.guided[0] if len(self.guided) == 1 and self.guided[0] != 1 else None


class Passes(Record, frozen=True):
    """Network passes spent: on the model's own training, its curves, its teachers, a search."""

    training: int
    curves: int = 0
    teachers: int = 0
    search: int = 0

    def __post_init__(self) -> None:
        _counts(**self.parts)

    @property
    def parts(self) -> dict[str, int]:
        """What was spent by what it was spent on."""
        return msgspec.structs.asdict(self)

    @property
    def total(self) -> int:
        """Everything."""
        return sum(self.parts.values())


class ModelCard(Record, frozen=True):
    """``model.json``: how to build a network, how to use it, and where it comes from.

    ``network`` are the settings of the network, ``settings`` those of the stage that made it;
    ``domain`` and ``domain_data`` are the units and the name of the other domain that a model
    translates from; ``drop`` is the share of rows that it was trained on without their condition.
    """

    kind: Kind
    network: dict[str, Any]
    shape: tuple[int, ...]
    scaling: Scaling
    seed: int
    steps: int
    passes: Passes
    conditions: Conditions = Conditions()
    domain: Scaling | None = None
    domain_data: str | None = None
    data: str | None = None
    drop: float | None = None
    knots: dict[int, tuple[float, ...]] = {}
    teachers: tuple[TeacherRef, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    settings: dict[str, Any] = {}
    package: str = ""
    digest: str = ""
    format: Literal["bezierdistill-model"] = "bezierdistill-model"
    version: Literal[2] = 2

    @property
    def is_own(self) -> bool:
        """Whether the network is a user's own module, which no file can build."""
        return self.network.get("kind") == "own"

    @property
    def is_of_file(self) -> bool:
        """Whether the network is that of a user's own file, in an arena."""
        return self.network.get("file") is not None

    @property
    def is_pipeline(self) -> bool:
        """Whether the network is the transformer of a pipeline with prompts."""
        return self.network.get("kind") == "pipeline"

    def __post_init__(self) -> None:
        shape = self.shape
        sizes = (1, 2, 3, 4) if self.is_pipeline else (1, 2, 3)
        fits = len(shape) in sizes and min(shape) > 0 and math.prod(shape) <= MAX_STATE
        told = f"{', '.join(map(str, sizes))} sizes whose product is {MAX_STATE:,} or less"
        expect(fits, "shape", shape, told)
        self.scaling.check(self.shape)
        if self.domain is not None:
            self.domain.check(self.shape)
        for passes, times in self.knots.items():
            expect(passes == len(times) - 1, "knots", times, "one time more than passes")


class Imported(Record, frozen=True):
    """Where imported curves come from: the path, the passes of a row, and its units."""

    source: str
    passes: int
    units: Units


class Merged(Record, frozen=True):
    """A store that was merged into another."""

    rows: int
    shards: tuple[str, ...]


class ChosenSteps(Record, frozen=True):
    """Why a simulation took its solver steps (:func:`~bezierdistill.choose_steps`).

    ``error`` of the ends and distance between ``neighbours`` among them, both medians of a sample
    in model units, of which the first was to be at most ``tolerance`` times the second; ``passes``
    were spent on it.
    """

    error: float
    neighbours: float
    tolerance: float
    passes: int

    def __post_init__(self) -> None:
        measured = (self.error, self.neighbours, self.tolerance)
        sound = all(0 <= number < math.inf for number in measured)
        expect(sound, "error, neighbours and tolerance", measured, "numbers of 0 or more")
        _counts(passes=self.passes)

    @property
    def reached(self) -> bool:
        """Whether the error is as small as it was to be."""
        return self.error <= self.tolerance * self.neighbours


class CurveRecipe(Record, frozen=True):
    """What made the rows of a curve store.

    ``weights`` are Bernstein coefficients over time, a row per teacher; ``through`` is the flow of
    another domain that carries its data to noise first; ``chosen`` says why there are so many
    ``steps``, where nobody gave their number.
    """

    degree: int
    shape: tuple[int, ...]
    scaling: Scaling = Scaling()
    points: Points = "float32"
    noise: Noise = "stored"
    conditions: Conditions = Conditions()
    guides: str = "fit"
    weights: tuple[tuple[float, ...], ...] = ((1.0,),)
    teachers: tuple[TeacherRef, ...] = ()
    teacher_passes: int = 0
    through: TeacherRef | None = None
    domain: str | None = None
    domain_scaling: Scaling | None = None
    invert_from: str | None = None
    count: int | None = None
    seed: int | None = None
    steps: int | None = None
    chosen: ChosenSteps | None = None
    solver: str | None = None
    batch: int | None = None
    merged: tuple[Merged, ...] = ()
    imported: Imported | None = None

    def __post_init__(self) -> None:
        fits = self.degree > 0 and len(self.shape) > 0 and min(self.shape) > 0
        fits = fits and (self.degree + 1) * math.prod(self.shape) <= MAX_NUMBERS
        expect(fits, "degree and shape", (self.degree, self.shape), "whole numbers of 1 or more")
        _counts(teacher_passes=self.teacher_passes)
        named = len(self.teachers) in (0, len(self.weights))
        expect(named, "weights", self.weights, f"a row for each of {len(self.teachers)} teachers")

    @property
    def stored_points(self) -> int:
        """Control points of a curve that are kept: without its source where that is drawn again."""
        return self.degree + (self.noise == "stored")


class Shard(Record, frozen=True):
    """The record of a shard.

    ``first`` is its first row in the table of its ``seed`` (None for imported rows), which gives
    their noise again; ``skipped`` are indices within its range that are left out, as the teachers
    gave NaN or infinite states; ``error`` is the greatest error, in model units, of keeping a
    number in fewer bits; ``bytes`` the size of the file.
    """

    file: str
    first: int
    rows: int
    seed: int | None
    skipped: tuple[int, ...]
    passes: int
    error: float
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        expect(self.file == Path(self.file).name != "", "file", self.file, "a plain name")
        _counts(first=self.first, rows=self.rows - 1, passes=self.passes, bytes=self.bytes)
        seeded = self.seed is None or 0 <= self.seed < 2**63
        expect(seeded, "seed", self.seed, "0 up to 2^63 - 1")
        rising = all(a < b for a, b in pairwise((-1, *self.skipped, self.span, MAX_NUMBERS)))
        expect(rising, "skipped", self.skipped, "rising indices within the shard")
        expect(0 <= self.error < math.inf, "error", self.error, "a number of 0 or more")

    @property
    def span(self) -> int:
        """Rows of the shard's range, those left out among them."""
        return self.rows + len(self.skipped)


class Manifest(Record, frozen=True):
    """``manifest.json``: what made a store, and the record of every shard."""

    recipe: CurveRecipe
    complete: bool = False
    shards: tuple[Shard, ...] = ()
    format: Literal["bezierdistill-curves"] = "bezierdistill-curves"
    version: Literal[4] = 4

    @property
    def rows(self) -> int:
        """Curves in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def passes(self) -> int:
        """Network passes spent on all shards, and on choosing the solver's steps."""
        chosen = self.recipe.chosen
        return sum(shard.passes for shard in self.shards) + (chosen.passes if chosen else 0)


class Machine(Record, frozen=True):
    """Where a result comes from: system, processor, threads, versions of packages."""

    system: str
    processor: str
    cores: int | None
    threads: int
    device: str
    versions: dict[str, str | None]


class Made(Record, frozen=True):
    """``made.json``: what made a folder, and on which machine.

    ``commands`` are shell commands, more than one if the folder was extended by others; ``fast`` is
    whether it was a small trial run; ``seconds`` is the working time of all ``sessions``.
    """

    verb: str
    commands: tuple[str, ...]
    machine: Machine
    started: str
    seconds: float = 0.0
    sessions: int = 1
    finished: bool = False
    fast: bool = False

    def __post_init__(self) -> None:
        expect(self.seconds >= 0, "seconds", self.seconds, "0 or more")
        expect(self.sessions > 0, "sessions", self.sessions, "1 or more")


class Settings(Record, frozen=True):
    """``run.json``: to which run a folder belongs."""

    verb: str
    settings: dict[str, Any]


class Score(Record, frozen=True):
    """A distance, and its floor: the same distance of real data to real data."""

    value: float
    floor: float

    @property
    def ratio(self) -> float:
        """Distance over floor; 1 is as good as real data."""
        return self.value / self.floor

    @property
    def excess(self) -> float:
        """Distance over floor, minus one; 0 is as good as real data."""
        return self.ratio - 1


class Protocol(Record, frozen=True):
    """What figures depend on besides the samples: they compare only where it is equal.

    ``metric`` names the Frechet distance, ``manifold`` says where precision, recall and fidelity
    are measured; ``trained`` is the split that a classifier was trained on; ``scales`` is the
    digest of the features of three scales and ``widths`` those of the middle and the fine ones.
    ``samples`` were generated, and ``count`` compared in each of ``parts`` comparisons; ``split``
    is judged against, and ``reference`` is whether each seed has its own draw of it or the whole;
    ``floor`` is the split of the floor, a mean of ``draws``; ``quantised`` is whether states are
    whole numbers in original units.
    """

    extractor: str
    digest: str
    metric: str
    manifold: Literal["states", "features"]
    samples: int
    count: int
    parts: int
    split: str
    floor: str
    seed: int
    quantised: bool
    trained: str | None = None
    scales: str = ""
    widths: tuple[float, ...] = ()
    reference: Literal["draw", "whole"] = "draw"
    draws: int = 1


class ClassScore(Record, frozen=True):
    """The figures of one class; None where there are no samples to measure it."""

    name: str
    count: int
    accuracy: float | None
    coverage: float | None
    coverage_real: float | None


class ClassScores(Record, frozen=True):
    """Accuracy and coverage: :meth:`~bezierdistill.metrics.Evaluator.classes`.

    There is no accuracy where the features are not a classifier's.
    """

    accuracy: float | None
    accuracy_real: float | None
    coverage: float
    coverage_real: float
    by_class: tuple[ClassScore, ...] = ()


class TranslationScores(Record, frozen=True):
    """How much of its inputs a translation keeps:
    :func:`~bezierdistill.metrics.translation_scores`.

    ``pixel`` and ``feature`` are distances between input and output over those of inputs and
    outputs that do not belong together (0 is a copy, 1 is chance), ``cycle`` that of an input and
    what comes back from its output; ``agreement`` is the share of outputs in which a classifier
    sees the input's label.
    """

    pixel: float
    feature: float
    agreement: float | None = None
    cycle: float | None = None


class TextScores(Record, frozen=True):
    """What texts are: :class:`~bezierdistill.metrics.TextJudge`.

    Shares of samples: ``train`` are whole texts of the training split, ``held_out`` of the other
    splits alone; ``distinct`` is the number of different ones over that of all, and ``found`` that
    of different ones which are texts of the data. ``words`` is the share of whole words in them
    that the data have, None where a text is a single word.
    ``trigrams`` is the Jensen-Shannon divergence from the test split, in bits; ``perplexity`` is
    that of a model of the test split, a character, and ``entropy`` that of the samples' own
    trigrams, in bits. The floors of these three are those of as many training texts.
    """

    train: float
    held_out: float
    distinct: float
    found: float
    words: float | None
    trigrams: Score
    perplexity: Score
    entropy: Score

    @property
    def valid(self) -> float:
        """Share of samples that are whole texts of the data."""
        return self.train + self.held_out


class Motion(Record, frozen=True):
    """Motion of clips over the mean motion of others: its mean, and its quantiles at 5, 50 and
    95 %, beside those of the others (``reference``).
    """

    ratio: float
    quantiles: tuple[float, ...]
    reference: tuple[float, ...]


class ClipScores(Record, frozen=True):
    """Figures of clips: :class:`~bezierdistill.metrics.ClipJudge`.

    ``frames`` and ``differences`` are Frechet distances of single frames and of differences of
    neighbouring ones. The motion is compared with the ``test`` split or with clips that are
    ``given``. ``tracks`` is the share of bouncing digits that do so rightly, ``kept`` that of those
    which are of one class in all frames; the same of held-out clips beside them.
    """

    frames: Score
    differences: Score
    motion: Motion
    against: Literal["test", "given"] = "test"
    tracks: float | None = None
    tracks_real: float | None = None
    kept: float | None = None
    kept_real: float | None = None


class Scores(Record, frozen=True):
    """All metrics of a set of samples: :class:`~bezierdistill.metrics.Evaluator`.

    ``coarse``, ``middle`` and ``fine`` are Frechet distances of states at three scales, whatever
    the extractor; ``fidelity`` is the distance of a sample to the nearest real one. Files of before
    they were measured have none. ``text`` is of texts alone.
    """

    frechet: Score
    sliced_wasserstein: Score
    energy: Score
    mmd: Score
    precision: Score
    recall: Score
    kernel: Score | None = None
    coarse: Score | None = None
    middle: Score | None = None
    fine: Score | None = None
    fidelity: Score | None = None
    classes: ClassScores | None = None
    translation: TranslationScores | None = None
    text: TextScores | None = None
    clips: ClipScores | None = None
    protocol: Protocol | None = None

    @property
    def finite(self) -> bool:
        """Whether all distances are."""
        parts = msgspec.structs.astuple(self)
        return all(math.isfinite(part.value) for part in parts if isinstance(part, Score))

    @property
    def scales(self) -> dict[str, Score]:
        """The scores at each scale, from coarse to fine; empty where they were not measured."""
        found = ((name, getattr(self, name)) for name in SCALES)
        return {name: score for name, score in found if score is not None}

    def __getitem__(self, metric: str) -> Score:
        """A score by the name of its metric, one that was measured."""
        return getattr(self, metric)


class ArenaRow(Record, frozen=True):
    """A cell of the arena: ``spent`` passes of everything, ``memory`` peak MB, or its ``error`` and
    the ``traceback`` of that.

    ``judges`` are its scores by further extractors, ``metrics`` those by the user's own metrics,
    ``trained_on`` the metrics that its method trains on, ``teachers`` the digests of those that it
    was given.
    """

    method: str
    seed: int
    ours: bool = False
    passes: int = 0
    spent: int = 0
    seconds: float = 0.0
    memory: float = 0.0
    scores: Scores | None = None
    judges: dict[str, Scores] = {}
    metrics: dict[str, Score] = {}
    trained_on: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    error: str | None = None
    traceback: str | None = None

    def __post_init__(self) -> None:
        fits = (self.scores is None) != (self.error is None)
        expect(fits, "scores", self.scores, "scores or an error")

    @property
    def judged(self) -> Scores:
        """The scores of a row that has not failed."""
        assert self.scores is not None, self.error
        return self.scores


class Sampled(Record, frozen=True):
    """The scores of a sampler in a reflow: whose it is, its solver, its passes."""

    who: Literal["flow", "distilled", "ours"]
    solver: Literal["heun", "euler", "jumps"]
    passes: int
    scores: Scores


class RoundRow(Record, frozen=True):
    """A round of a reflow: what it cost, what it lost, and the scores of its samplers."""

    round: int
    flow_passes: int
    student_passes: int
    straightness: float
    drift: float
    reconstruction_real: float
    reconstruction_generated: float
    samplers: tuple[Sampled, ...]
    ours_passes: int | None = None


class Rounds(Record, frozen=True):
    """``rounds.json``: the figures of a reflow."""

    data: str
    seed: int
    rounds: tuple[RoundRow, ...] = ()


class Search(Record, frozen=True):
    """``search.json``: the search of a blend's weight; ``scores`` by the strong teacher's."""

    metric: str
    samples: int
    scores: dict[str, float]
    best: float
    passes: int


class LogEntry(Record, frozen=True):
    """A line of ``log.jsonl``: mean losses by network since the line before."""

    stage: str
    step: int
    loss: dict[str, float]
    steps_per_second: float = 0.0


def to_json(record: object) -> Any:
    """A record, or settings, as plain JSON: tuples become lists, paths become text.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    plain = asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
    value = msgspec.to_builtins(plain, enc_hook=str, str_keys=True)
    return json.loads(json.dumps(value, allow_nan=False))


def from_json(value: object, kind: type[T], where: str | Path) -> T:
    """A record of plain JSON.

    Raises:
        UserError: if it does not fit; ``where`` and the path of the field are told.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_hook, str_keys=True)
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        told = " ".join(str(error).replace("`", "").split())[:300]
        raise UserError(f"{where} cannot be used: {told}; {AGAIN}") from None


AGAIN = "it is damaged, or of another version of bezierdistill: make it again"


def _hook(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}")


def write_record(path: Path, record: object) -> None:
    """Write a record as readable JSON, atomically."""
    write_json(path, to_json(record))


def write_sealed(path: Path, record: object) -> None:
    """Write a record with its own checksum, by which a single flipped bit is found."""
    body = json.dumps(to_json(record), indent=2).removesuffix("\n}")
    write_text(path, body + seal(body))


def seal(body: str) -> str:
    """How a JSON object ends whose text up to here is ``body``: with its checksum."""
    return f',\n  "seal": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def read_sealed(path: Path, kind: type[T], what: str, again: str = "make it again") -> T:
    """Read what :func:`write_sealed` wrote.

    Args:
        path: the file.
        kind: the record's class.
        what: what to call it in messages.
        again: what to do if it is damaged.

    Raises:
        UserError: if it is missing, of another version, or a single bit of it has changed.
    """
    value = parse_json(path, text := read_text(path, what))
    if issubclass(kind, Manifest):
        check_version(path, value, Manifest)
    body = text[: -len(seal(""))]
    if body + seal(body) != text:
        told = f"{path} differs from its checksum: it was changed, damaged, or written by another"
        raise UserError(f"{told} version of bezierdistill; {again}")
    return from_json({key: value[key] for key in value if key != "seal"}, kind, path)


def read_record(path: Path, kind: type[T], what: str) -> T:
    """Read a record.

    Args:
        path: the file.
        kind: the record's class.
        what: what to call it in messages, such as "model".

    Raises:
        UserError: if the file is missing, no JSON, or another record.
    """
    return from_json(parse_json(path, read_text(path, what)), kind, path)


def parse_json(path: Path, text: str) -> Any:
    """The value of a file's JSON.

    Raises:
        UserError: if it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error}): {AGAIN}") from None


def check_version(path: Path, head: object, kind: type[ModelCard] | type[Manifest]) -> None:
    """Refuse a file of another format or version.

    Raises:
        UserError: if it is one.
    """
    wanted = {"format": kind.__struct_defaults__[-2], "version": kind.__struct_defaults__[-1]}
    got = {key: head.get(key) for key in wanted} if isinstance(head, Mapping) else {}
    if got != wanted:
        told = ", ".join(f"{key} {str(got.get(key))[:40]!r}" for key in wanted)
        needed = ", ".join(f"{key} {value!r}" for key, value in wanted.items())
        told = f"{path} has {told}, expected {needed}: it was written by another version of"
        raise UserError(f"{told} bezierdistill, make it again")

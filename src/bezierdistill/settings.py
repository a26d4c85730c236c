"""What settings share: the words that they choose from, and the checks of their numbers.

Settings are frozen dataclasses, the same for Python, YAML recipes and the command line. Importing
them takes no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bezierdistill.errors import UserError

Coupling = Literal["independent", "ot", "label-ot"]
DistanceName = Literal["energy", "drifting", "laplace", "sinkhorn"]
Guides = Literal["fit", "hermite", "endpoints"]
Noise = Literal["stored", "seed"]
ObjectiveName = Literal["end", "map", "knots", "velocity"]
Points = Literal["float32", "bfloat16", "uint8"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "64-true"]
Prediction = Literal["velocity", "flow", "epsilon", "sample", "v_prediction"]
ScheduleKind = Literal["linear-up", "linear-down", "sigma", "steps"]
Solver = Literal["euler", "midpoint", "heun", "rk4"]
Strategy = Literal["ddp", "fsdp"]
Units = Literal["model", "data"]
MAX_PASSES = 10  # of a student's sampler
TOLERANCE = 0.1  # error of curves' ends, in distances between neighbours
MAX_DEGREE = 66  # of a curve: beyond it binomials are no longer exact


@dataclass(frozen=True)
class Text:
    """How a setting that is no single word is written on the command line and in YAML.

    Args:
        parse: from text to the value; raises :class:`~bezierdistill.errors.UserError`.
        show: from the value to text.
        word: what ``--help`` calls it.
    """

    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    word: str


def written(default: Any, how: Text) -> Any:
    """A field of a settings class that is written as :class:`Text`."""
    return field(default=default, metadata={"text": how})


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas: ``1,3``.

    Raises:
        UserError: if they are none.
    """
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{text!r} are no numbers, expected some separated by commas, such as 1,3")
    return numbers


def parse_weights(text: str) -> tuple[tuple[float, ...], ...]:
    """Weights of a blend: a number per teacher, or Bernstein coefficients over time.

    Raises:
        UserError: if they are none.

    Example:
        >>> parse_weights("1.25,-0.25"), parse_weights("1.0:1.5,0.0:-0.5")
        (((1.25,), (-0.25,)), ((1.0, 1.5), (0.0, -0.5)))
    """
    return tuple(parse_numbers(part.replace(":", ",")) for part in text.split(","))


def parse_words(text: str) -> tuple[str, ...]:
    """Words separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_distance(text: str) -> tuple[tuple[float, str], ...]:
    """A weighted sum of distances: their weights and names.

    Raises:
        UserError: if it is none.

    Example:
        >>> parse_distance("energy+0.3*drifting")
        ((1.0, 'energy'), (0.3, 'drifting'))
    """
    found = []
    for part in text.split("+"):
        weight, star, name = part.strip().rpartition("*")
        try:
            number = float(weight) if star else 1.0
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf or name.strip() not in get_args(DistanceName):
            names = ", ".join(get_args(DistanceName))
            raise UserError(
                f"align-distance is {text!r}, expected some of {names}, such as energy or"
                " energy+0.3*drifting"
            )
        found.append((number, name.strip()))
    return tuple(found)


def _joined(values: Iterable[object]) -> str:
    return ",".join(
        repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
        for value in values
    )


NUMBERS = Text(parse_numbers, _joined, "FLOAT,...")
WORDS = Text(parse_words, _joined, "NAME,...")
WEIGHTS = Text(
    parse_weights,
    lambda rows: ",".join(_joined(row).replace(",", ":") for row in rows),
    "FLOAT,... | FLOAT:FLOAT,...",
)


class Usual(int):
    """A default number, for which ``fast`` stands in the place where settings are to be fast."""

    fast: int

    def __new__(cls, number: int, fast: int) -> Usual:
        """A default of both kinds."""
        usual = super().__new__(cls, number)
        usual.fast = fast
        return usual


def default_number(default: Any, fast: bool) -> Any:
    """A default as a plain number, if it is :class:`Usual`; anything else is as it is."""
    return (default.fast if fast else int(default)) if isinstance(default, Usual) else default


def settle(config: Any, fast: bool) -> None:
    """Put plain numbers in the place of defaults that :class:`Usual` are, in settings within these
    as well; what was given stays as it is.
    """
    for part in fields(config):
        value = getattr(config, part.name)
        if is_dataclass(value):
            settle(value, fast)
        elif isinstance(value, Usual):
            object.__setattr__(config, part.name, default_number(value, fast))


@dataclass(frozen=True)
class Contents:
    """What a verb's folder is, and its files, for ``README.txt``.

    Args:
        what: what it is: "a teacher, trained by flow matching".
        files: what each file is; ``{out}`` stands for the folder.
        continues: whether the same command goes on where it was stopped.
        grows: the numbers of a finished run that a command may raise, such as steps, and the file
            from which each goes on.
        shown: the files whose text the README repeats, once they are there.
    """

    what: str
    files: Mapping[str, str]
    continues: bool = True
    grows: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()


def as_paths(config: object, *names: str) -> None:
    """Let Python users give paths as text."""
    for name in names:
        value = getattr(config, name)
        object.__setattr__(
            config,
            name,
            Path(value) if isinstance(value, str | Path) else tuple(Path(v) for v in value),
        )


def check_coupling(conditional: bool, domain: object, coupling: Coupling) -> None:
    """Refuse what a coupling cannot join, and what a conditional flow cannot be.

    Raises:
        UserError: without a domain, if the coupling joins it by labels; if a flow is conditional
            with another domain, whose samples do not keep their labels; or with optimal transport
            within the batch, which makes the noise depend on the condition, while sampling draws it
            independently.
    """
    if coupling == "label-ot" and domain is None:
        raise UserError(
            "coupling is label-ot, which joins two domains by their labels, and flows start from"
            " noise: expected --domain (and no --through), or another coupling"
        )
    if conditional and domain is not None and coupling != "label-ot":
        raise UserError(
            f"conditional is on, domain is {domain} and coupling {coupling}, which keeps no label:"
            " expected --coupling label-ot, or no --conditional"
        )
    if conditional and coupling == "ot":
        raise UserError(
            "coupling ot with conditional would make the noise depend on the condition: expected"
            " --coupling independent"
        )


def check_whole_batches(accumulate: int) -> None:
    """Raise ``UserError`` if gradients of several batches are added up, where a budget or rounds
    are counted in batches.
    """
    if accumulate > 1:
        raise UserError(
            f"loop.accumulate is {accumulate}, expected 1: passes are counted in whole batches"
        )


def check_counts(**counts: int) -> None:
    """Raise ``UserError`` unless every number is 1 or more."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more")


def check_seed(seed: int) -> None:
    """Raise ``UserError`` unless a seed is one that every table of draws takes."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}, expected a whole number from 0 up to 2^63 - 1")


def check_not_negative(**numbers: float) -> None:
    """Raise ``UserError`` unless every number is 0 or more."""
    for name, value in numbers.items():
        if value < 0:
            raise UserError(f"{name} is {value}, expected 0 or more")


def check_tolerance(tolerance: float) -> None:
    """Raise ``UserError`` unless an error may be a positive number of distances."""
    if not 0 < tolerance < math.inf:
        raise UserError(f"tolerance is {tolerance}, expected a number above 0, such as {TOLERANCE}")


def check_shares(**shares: float) -> None:
    """Raise ``UserError`` unless every share is in [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} is {share}, expected 0 (no row) to 1 (every row)")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise ``UserError`` unless a setting is one of the words of a ``Literal``."""
    if value not in get_args(choices):
        raise UserError(f"{name} is {value!r}, expected one of {', '.join(get_args(choices))}")


def check_degree(degree: int) -> None:
    """Raise ``UserError`` unless ``degree`` is an integer of 1 or more."""
    if isinstance(degree, bool) or not isinstance(degree, int) or not 1 <= degree <= MAX_DEGREE:
        raise UserError(f"degree is {degree!r}, expected 1 (the straight line) to {MAX_DEGREE}")


def check_scale(scale: tuple[float, ...]) -> None:
    """Raise ``UserError`` unless a guidance scale is none, a strength, or a rising range."""
    if len(scale) > 2 or (len(scale) == 2 and scale[0] >= scale[1]):
        raise UserError(
            f"guidance scale is {_joined(scale)}, expected a strength such as 2, or a rising range"
            " such as 1,3"
        )


def default_of(part: Field[Any]) -> Any:
    """The default of a field of a settings class; ``MISSING`` where it has none."""
    return part.default if part.default_factory is MISSING else part.default_factory()


def as_yaml(config: Any) -> str:
    """Settings as a file that ``--config`` takes."""
    import yaml  # imported here: only who writes or reads such a file needs it

    return yaml.safe_dump(_plain(config), sort_keys=False)


def _plain(config: Any) -> dict[str, Any]:
    found = {}
    for part in fields(config):
        value = getattr(config, part.name)
        if "positional" in part.metadata:
            continue
        if is_dataclass(value):
            value = _plain(value)
        elif "text" in part.metadata and value is not None:
            value = part.metadata["text"].show(value)
        elif isinstance(value, tuple):
            value = [as_word(entry) for entry in value]
        found[part.name] = as_word(value) if isinstance(value, Path | str) else value
    return found


def as_word(value: object) -> str:
    """A value as a word of a command; a path is never taken for a flag."""
    word = str(value)
    return f"./{word}" if isinstance(value, Path) and word.startswith("-") else word

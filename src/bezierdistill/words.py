"""Words for people, which the command line, the report and the page share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def counted(count: int, noun: str) -> str:
    """``1 pass``, ``2 passes``, ``3 curves``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def listed(words: Sequence[str], between: str = ", ") -> str:
    """Words by commas; of many the first ones and the last."""
    return between.join(words if len(words) <= 12 else [*words[:10], "...", words[-1]])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean train?`` where a word is like a known one; else nothing."""
    close = get_close_matches(word.lower(), known, 1)
    return f", did you mean {close[0]}?" if close else ""


NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
PLACES = (
    *("best", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth"),
)


def spelled(count: int, noun: str) -> str:
    """``one pass``, ``twelve methods``, ``20 passes``."""
    digits, _, plural = counted(count, noun).partition(" ")
    return f"{NUMBERS[count] if count < len(NUMBERS) else digits} {plural}"


def place(rank: int) -> str:
    """``best``, ``second``, ``twelfth``, ``place 13``."""
    return PLACES[rank - 1] if rank <= len(PLACES) else f"place {rank}"


def capital(text: str) -> str:
    """A text with a capital at its beginning, and the rest as it is."""
    return text[:1].upper() + text[1:]

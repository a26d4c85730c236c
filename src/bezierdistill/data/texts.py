"""Texts as data: lists of words, and prose in pieces of one length.

``words:PATH`` has a word (or a short phrase) a line; shorter ones end in blanks. ``text:PATH`` is
cut into consecutive pieces of 64 characters, every run of white space as one blank. Right after the
path, ``@10`` leaves out longer words, or sets the length of pieces, and ``@alphabet=a-z`` refuses
characters that are not in it; without it the alphabet is what is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bezierdistill.data.base import ArrayData
from bezierdistill.data.reading import Samples
from bezierdistill.data.scaling import BLANK
from bezierdistill.data.splits import array_data
from bezierdistill.errors import UserError
from bezierdistill.progress import notice

LENGTH, LONGEST = 64, 64  # of a piece of prose, and of a word where no length is given


def load_words(
    name: str, path: Path, length: str | None = None, alphabet: str | None = None
) -> ArrayData:
    """The words of a file, one a line.

    Args:
        name: what the user called them.
        path: the file.
        length: of the longest word that is taken.
        alphabet: the characters that may be there beside the blank, such as ``a-z``.

    Raises:
        UserError: if it is no text, has no words, words that are too long, one character alone, or
            others than the alphabet's.
    """
    words = [word for line in _read(path).splitlines() if (word := BLANK.join(line.split()))]
    longest = max(words, key=len, default="")
    most = int(length) if length else None
    if most is None and len(longest) > LONGEST:
        told = f"{path} has {longest[:40]!r}... of {len(longest)} characters on a line"
        raise UserError(
            f"{told}, expected {LONGEST} or fewer; words:PATH@10 leaves out longer ones"
        )
    kept = [word for word in words if most is None or len(word) <= most]
    if len(kept) < len(words):
        notice(
            f"{path}: left out {len(words) - len(kept):,} words of more than {length} characters"
        )
    return _data(name, path, kept, alphabet)


def load_prose(
    name: str, path: Path, length: str | None = None, alphabet: str | None = None
) -> ArrayData:
    """A text in pieces of one length; what is left at its end is not used. See :func:`load_words`.

    Raises:
        UserError: if it is no text, is empty, one character alone, or has others than the
            alphabet's.
    """
    text, size = BLANK.join(_read(path).split()), int(length or LENGTH)
    pieces = [text[k : k + size] for k in range(0, len(text) - size + 1, size)]
    return _data(name, path, pieces, alphabet)


def read_lines(path: Path) -> np.ndarray:
    """The lines of a file as they are, such as samples that were written to it, ``(N,)``."""
    return np.array(_read(path).splitlines(), str)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        told = f"{path} is no text in UTF-8 (byte {error.start} cannot be read)"
        raise UserError(f"{told}: convert it, such as by iconv -t UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _data(name: str, path: Path, texts: Sequence[str], alphabet: str | None) -> ArrayData:
    if not texts:
        raise UserError(f"{path} holds no text of that length, expected words or prose")
    found = set().union(*texts)
    if other := sorted(c for c in found if not c.isprintable()):
        raise UserError(f"{path} has the character {other[0]!r}, expected plain text")
    if len(found - {BLANK}) < 2:
        told = f"{path} holds {min(found - {BLANK}, default=BLANK)!r} again and again"
        raise UserError(f"{told}, expected two characters or more")
    known = found if alphabet is None else set(expand(alphabet))
    if other := sorted(found - known - {BLANK}):
        row = next(text for text in texts if other[0] in text)
        told = f"{path} has {other[0]!r} in {row[:80]!r}"
        raise UserError(f"{told}, expected characters of @alphabet={alphabet} alone")
    samples = Samples({"train": np.array(texts)}, alphabet="".join(sorted(known)))
    return array_data(name, samples)


def expand(alphabet: str) -> str:
    """An alphabet whose ranges, such as ``a-z``, are written out."""

    def between(ends: re.Match[str]) -> str:
        return "".join(map(chr, range(ord(ends[1]), ord(ends[2]) + 1)))

    return re.sub(r"(.)-(.)", between, alphabet)

r"""Arrays of numbers or text from ``.npy`` and ``.npz`` files that nobody vouches for: what a
header claims is compared with what is there first.

``numpy.load`` takes the memory that a header claims before it reads a row. Here a claim must agree
with the file, to the byte, and fit in memory; a member of an archive may not claim more than its
packed bytes can hold (deflate packs 1032 bytes in one at most). There are no objects, so nothing
can be unpickled, and no structured types.

Source: the format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy

from bezierdistill.errors import UserError
from bezierdistill.memory import check_memory

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
MAX_HEADER, MAX_AXES, MAX_NUMBERS, MAX_PACKED = 10_000, 32, 2**56, 1032
KINDS = "biufU"  # booleans, integers, floats, text
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
NO_HEADER = (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError)
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error, zlib.error)
DAMAGED = (*DAMAGED, zipfile.BadZipFile)


class Claim(NamedTuple):
    """What a ``.npy`` header claims, and how many bytes the header itself has."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy(
    source: str | Path | bytes | BinaryIO,
    held: int | None = None,
    name: str = "array",
    mmap: bool = False,
) -> np.ndarray:
    """The array of a ``.npy`` file.

    Args:
        source: a path, the file's bytes, or an open file that can be sought, at its start.
        held: bytes that an open file has, for one that cannot tell without being read (a member of
            an archive).
        name: what to call it in messages, if it is no path.
        mmap: map a path's numbers instead of reading them; they cannot be written.

    Raises:
        UserError: if it holds no numbers or text (objects, structures), is cut off or longer than
            it claims, or would not fit in memory.
    """
    if isinstance(source, str | Path):
        try:
            with open(source, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if not mmap:
                    return read_npy(file, size, str(source))
                claim = _checked_claim(file, size, str(source))
        except OSError as error:
            raise UserError(f"{source} cannot be read: {error.strerror}") from None
        if not claim.size:
            return np.empty(claim.shape, claim.dtype)  # an empty file cannot be mapped
        order = "F" if claim.fortran else "C"
        return np.memmap(source, claim.dtype, "r", claim.start, claim.shape, order)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    held = len(source) if isinstance(source, bytes) else held
    claim = _checked_claim(file, file.seek(0, os.SEEK_END) if held is None else held, name)
    check_memory(claim.size, f"{name} of shape {claim.shape}")
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False, max_header_size=MAX_HEADER)
    return _checked_bytes(array, name)


def _checked_claim(file: BinaryIO, held: int, name: str) -> Claim:
    """The header of an open file, of which no more is read than a header of numbers can have."""
    file.seek(0)
    head = io.BytesIO(file.read(MAX_HEADER))
    try:
        read_header = HEADERS[npy.read_magic(head)]
    except (ValueError, KeyError):
        told = f"{name} does not start as a .npy of numbers does"
        raise UserError(f"{told}, expected version 1 or 2 of that format") from None
    try:
        claim = Claim(*read_header(head, max_header_size=MAX_HEADER), head.tell())
    except NO_HEADER:
        raise UserError(f"{name} has a damaged .npy header: restore it or make it again") from None
    if claim.dtype.kind not in KINDS:
        told = f"{name} holds {str(claim.dtype)[:80]!r}, expected integers, floats or text"
        raise UserError(f"{told}: objects and structures are not read")
    sizes = [n for n in claim.shape if n]
    if len(claim.shape) > MAX_AXES or min(sizes, default=0) < 0 or math.prod(sizes) > MAX_NUMBERS:
        told = f"{name} claims shape {str(claim.shape)[:80]}, expected {MAX_AXES} sizes or fewer"
        raise UserError(f"{told}, from 0 up, of a product that a file can hold")
    if claim.start + claim.size != held:
        told = f"it claims shape {claim.shape} of {claim.dtype}, {claim.size:,} bytes, and has"
        told = f"{name} cannot be read: {told} {max(0, held - claim.start):,}"
        raise UserError(f"{told}; it is cut off or damaged, restore it or make it again")
    return claim


def _checked_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """Refuse bytes that are no booleans, by which numpy counts, and numbers that are no letters."""
    kind, most = np.dtype(np.uint8), 1
    if array.dtype.kind == "U":
        kind, most = np.dtype("u4").newbyteorder(array.dtype.byteorder), 0x10FFFF
    if array.dtype.kind in "bU" and array.size and array.ravel(order="K").view(kind).max() > most:
        raise UserError(f"{name} has bytes that are no {array.dtype}: it is damaged, restore it")
    return array


class Archive(Mapping[str, np.ndarray]):
    """The arrays of a ``.npz`` by name, each read whenever it is asked for; a context manager.

    Args:
        path: the file.

    Raises:
        UserError: if it is no zip archive, is damaged, or names a member twice or outside of
            itself; on reading, see :func:`read_npy`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.taken = path, 0
        try:
            self.archive = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise UserError(f"{path} cannot be read as .npz: {error}") from None
        names = self.archive.namelist()
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise UserError(f"{path} has two members {twice[0][:80]!r}, expected each name once")
        for name in names:
            check_member(path, name)
        self.entries = {
            entry.filename.removesuffix(".npy"): entry
            for entry in self.archive.infolist()
            if entry.filename.endswith(".npy")
        }

    def __getitem__(self, key: str) -> np.ndarray:
        """An array.

        Raises:
            UserError: if it claims more than is there, is damaged, or does not fit in memory with
                those read before.
        """
        entry, name = self.entries[key], f"{self.path} ({key})"
        _check_entry(entry, name)
        self.taken += entry.file_size
        check_memory(self.taken, f"{self.path} up to {key}")
        try:
            with self.archive.open(entry) as member:
                return read_npy(cast(BinaryIO, member), entry.file_size, name)
        except UserError:
            raise
        except DAMAGED as error:
            raise UserError(f"{name} is damaged ({error}): restore it or make it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()


def check_member(archive: str | Path, name: str) -> None:
    """Refuse a member of an archive whose name leads out of it.

    Raises:
        UserError: if the name is absolute, empty, has ``..`` as a part, or a backslash, drive or
            control character.
    """
    inside = name and not name.startswith("/") and ".." not in name.split("/")
    if not inside or not name.isprintable() or re.search(r"\\|^[A-Za-z]:", name):
        told = f"{archive} has a member {name[:80]!r}"
        raise UserError(f"{told}, expected names inside the archive alone")


def _check_entry(entry: zipfile.ZipInfo, name: str) -> None:
    """Whether a member's packed bytes can hold what it claims, in a way that is read here."""
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{name} is encrypted or packed oddly, expected numpy.savez or _compressed")
    most = entry.compress_size * (MAX_PACKED if entry.compress_type == zipfile.ZIP_DEFLATED else 1)
    if entry.file_size > most:
        told = f"{name} claims {entry.file_size:,} bytes and can hold {most:,} at most"
        raise UserError(f"{told}: it is damaged")


def read_arrays(path: Path) -> Archive | np.ndarray:
    """A ``.npz`` as an :class:`Archive`, or the array of a ``.npy``, whichever the file is.

    Raises:
        UserError: if it is neither; else see both.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(npy.MAGIC_PREFIX))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start == npy.MAGIC_PREFIX:
        return read_npy(path)
    if start[:4] in ZIP:
        return Archive(path)
    told = f"{path} cannot be read as .npz or .npy of numbers"
    raise UserError(f"{told}: expected a file of numpy.savez or numpy.save")

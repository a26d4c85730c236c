r"""Arrays of numbers from ``.npy`` and ``.npz`` files that nobody vouches for: what a header claims
is compared with what is there first.

``numpy.load`` takes the memory that a header claims before it reads a row. Here a claim must agree
with the file, to the byte, and fit in memory; a member of an archive may not claim more than its
packed bytes can hold (deflate packs 1032 bytes in one at most). There are no objects, so nothing
can be unpickled, and no structured types.

Source: the format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from bezierdistill.errors import UserError

MAGIC, ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")
NUMBER = re.compile(r"[<>|=]?(b1|[iu][1248]|f2|f4|f8|f12|f16)")
MOST_HEADER, MOST_AXES, CHUNK = 10_000, 32, 2**20
MOST_NUMBERS = 2**56
MEMORY_SHARE, MOST_PACKED = 0.8, 1032
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def memory() -> int:
    """Bytes of memory that this process may have: the machine's, its container's, or what its
    address space may still grow by.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource  # imported here: there is none on Windows

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            limits.append(
                most
                - os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
            )
    return min(limits)


def check_memory(size: int, what: str) -> None:
    """Refuse what would not fit in memory, before any is taken.

    Args:
        size: its bytes.
        what: what it is, the subject of the message: ``"50 samples of shape (3,)"``.

    Raises:
        UserError: if it has more than four fifths of the memory that this process may have.
    """
    most = int(MEMORY_SHARE * memory())
    if size > most:
        raise UserError(
            f"{what} would take {size / 2**30:,.1f} GiB of memory, expected {most / 2**30:,.1f} or"
            " less: ask for fewer"
        )


@dataclass(frozen=True)
class Claim:
    """What a ``.npy`` header claims: number type, shape, order, and how many bytes the header
    itself has.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]
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
        source: a path, the file's bytes, or an open file at its start.
        held: bytes that an open file has, for one that cannot tell without being read (a member of
            an archive).
        name: what to call it in messages, if it is no path.
        mmap: map a path's numbers instead of reading them; they cannot be written.

    Raises:
        UserError: if it holds no numbers (objects, text, structures), is cut off or longer than it
            claims, or would not fit in memory.
    """
    if isinstance(source, str | Path):
        try:
            with open(source, "rb") as file:
                if not mmap:
                    return read_npy(file, None, str(source))
                claim = _checked_claim(file, os.fstat(file.fileno()).st_size, str(source))
        except OSError as error:
            raise UserError(f"{source} cannot be read: {error.strerror}") from None
        if not claim.size:
            return np.empty(claim.shape, claim.dtype)  # an empty file cannot be mapped
        return np.memmap(source, claim.dtype, "r", claim.start, claim.shape, claim.order)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    claim = _checked_claim(file, _count_bytes(file) if held is None else held, name)
    check_memory(claim.size, f"{name} of shape {claim.shape}")
    return _read_numbers(file, claim, name)


def _count_bytes(file: BinaryIO) -> int:
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    return end - start


def _checked_claim(file: BinaryIO, held: int, name: str) -> Claim:
    claim = _read_claim(file, name)
    if claim.start + claim.size != held:
        raise UserError(
            f"{name} cannot be read: it claims shape {claim.shape} of {claim.dtype}, {claim.size:,}"
            f" bytes, and has {max(0, held - claim.start):,}; it is cut off or damaged, restore it"
            " or make it again"
        )
    return claim


def _read_claim(file: BinaryIO, name: str) -> Claim:
    """The header, read without trust: no more of it than a header of numbers can have."""
    start = file.read(8)
    if len(start) < 8 or start[:6] != MAGIC or start[6] not in (1, 2):
        raise UserError(
            f"{name} does not start as a .npy of numbers does, expected version 1 or 2 of that"
            " format"
        )
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MOST_HEADER:
        raise UserError(
            f"{name} claims a .npy header of {length:,} bytes, expected {MOST_HEADER:,} or fewer"
        )
    try:
        header = ast.literal_eval(file.read(length).decode("latin1").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        header = None
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise UserError(f"{name} has a damaged .npy header: restore it or make it again")
    kind, shape = header["descr"], header["shape"]
    if not isinstance(kind, str) or not NUMBER.fullmatch(kind):
        raise UserError(
            f"{name} holds {str(kind)[:80]!r}, expected integers or floats: objects, text and"
            " structures are not read"
        )
    if (
        not isinstance(shape, tuple)
        or len(shape) > MOST_AXES
        or any(type(n) is not int or n < 0 for n in shape)
    ):
        raise UserError(
            f"{name} claims shape {str(shape)[:80]}, expected whole numbers from 0 up, {MOST_AXES}"
            " at most"
        )
    if math.prod(n for n in shape if n) > MOST_NUMBERS:
        raise UserError(
            f"{name} claims shape {str(shape)[:80]}, more numbers than any file holds: it is"
            " damaged"
        )
    try:
        dtype = np.dtype(kind)
    except TypeError:  # long doubles have other sizes on other machines
        raise UserError(
            f"{name} holds {kind!r}, which this machine does not have: save it as '<f8'"
        ) from None
    return Claim(dtype, shape, "F" if header["fortran_order"] is True else "C", 8 + width + length)


def _read_numbers(file: BinaryIO, claim: Claim, name: str) -> np.ndarray:
    """The numbers after a header, straight into their place."""
    flat = np.empty(math.prod(claim.shape), claim.dtype)
    view, done = flat.view(np.uint8).data if flat.size else memoryview(b""), 0
    while done < len(view):
        part = file.read(min(CHUNK, len(view) - done))
        if not part:
            raise UserError(
                f"{name} ends after {done:,} of {len(view):,} bytes: it is cut off, restore it or"
                " make it again"
            )
        view[done : done + len(part)] = part
        done += len(part)
    if (
        claim.dtype == bool and flat.size and flat.view(np.uint8).max() > 1
    ):  # numpy counts on 0 and 1 when it sizes a selection
        raise UserError(
            f"{name} has bytes that are no booleans: it is damaged, restore it or make it again"
        )
    return flat.reshape(claim.shape, order=claim.order)


class Archive(Mapping[str, np.ndarray]):
    """The arrays of a ``.npz`` by name, each read anew when it is asked for; a context manager.

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
        entries = self.archive.infolist()
        _check_names(path, [entry.filename for entry in entries])
        self.entries = {
            entry.filename.removesuffix(".npy"): entry
            for entry in entries
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
        check_memory(
            self.taken, name if self.taken == entry.file_size else f"{self.path} up to {key}"
        )
        try:
            with self.archive.open(entry) as member:
                return read_npy(cast(BinaryIO, member), entry.file_size, name)
        except DAMAGED as error:
            if str(error).startswith(str(self.path)):
                raise
            raise UserError(f"{name} is damaged ({error}): restore it or make it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()


def _check_names(path: Path, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{path} has two members {twice[0][:80]!r}, expected each name once")
    for name in names:
        check_member(path, name)


def check_member(archive: str | Path, name: str) -> None:
    """Refuse a member of an archive whose name leads out of it.

    Raises:
        UserError: if the name is absolute, empty, has ``..`` as a part, or a backslash, drive or
            control character.
    """
    if (
        not name
        or name.startswith("/")
        or ".." in name.split("/")
        or not name.isprintable()
        or re.search(r"\\|^[A-Za-z]:", name)
    ):
        raise UserError(
            f"{archive} has a member {name[:80]!r}, expected names inside the archive alone"
        )


def _check_entry(entry: zipfile.ZipInfo, name: str) -> None:
    """Whether a member's packed bytes can hold what it claims, in a way that is read here."""
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{name} is encrypted or packed otherwise than numpy does, expected numpy.savez or"
            " savez_compressed"
        )
    most = entry.compress_size * (MOST_PACKED if entry.compress_type == zipfile.ZIP_DEFLATED else 1)
    if entry.file_size > most:
        raise UserError(
            f"{name} claims {entry.file_size:,} bytes and can hold {most:,} at most: it is damaged"
        )


def read_arrays(path: Path) -> Archive | np.ndarray:
    """A ``.npz`` as an :class:`Archive`, or the array of a ``.npy``, whichever the file is.

    Raises:
        UserError: if it is neither; else see both.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start == MAGIC:
        return read_npy(path)
    if start[:4] in ZIP:
        return Archive(path)
    raise UserError(
        f"{path} cannot be read as .npz or .npy of numbers: expected a file of numpy.savez or"
        " numpy.save"
    )

"""Files that are whole or absent: write to a temporary name, flush to disk, rename. And digests,
and JSON that says what is wrong.

A folder is written by one process at a time (:func:`locked`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bezierdistill.errors import UserError

LOCK = ".lock"
MAX_TEXT = 2**28  # bytes


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, and put the result in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # some libraries write what nobody else may read
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some network file systems cannot have names on disk
            os.fsync(folder)
        os.close(folder)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, against every other process; what a killed one left
    half-written in it is removed.

    The system lets go of the lock when the process ends, however it ends.

    Raises:
        UserError: if another process holds it, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a folder: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        told = f"{folder} is being written by another process: wait for it"
        raise UserError(f"{told}, or choose another --out") from None
    try:
        remove_unfinished(folder)
        yield
    finally:
        with suppress(OSError):  # of a folder that has gone the first failure tells
            (folder / LOCK).unlink()  # whoever waits for it sees that it has gone
        lock.release()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends, and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written; nothing else may be writing in the folder."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove a folder: under its name it is whole or absent, even if the removal is cut off."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; infinite numbers are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_text(path: Path, what: str) -> str:
    """The text of a file of a folder of ours, which nobody vouches for.

    Raises:
        UserError: if the file is missing, too large, or no text; ``what`` names the folder.
    """
    try:
        if (size := path.stat().st_size) > MAX_TEXT:
            raise UserError(f"{path} has {size:,} bytes, expected {MAX_TEXT:,} or fewer")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {what} at {path.parent}: expected a folder with {path.name}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text: restore it or make the {what} again") from None


def write_array(path: Path, x: np.ndarray, **more: Any) -> None:
    """Write samples atomically as a ``.npz`` with the array ``x``, and further arrays by name."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, x=x, **more)

    write_atomically(path, write)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors atomically as safetensors; of those that share memory each is written."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in whole.values())
    for name, tensor in whole.items():
        if shared[tensor.untyped_storage().data_ptr()] > 1:
            whole[name] = tensor.clone()
    write_atomically(path, lambda temporary: save_file(whole, temporary, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (memory-mapped) and metadata of a safetensors file.

    Raises:
        UserError: if the file is missing, cut off or no safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        told = f"{path} is missing, cut off or damaged ({error})"
        raise UserError(f"{told}: restore it or make it again") from None


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def load_function(path: Path, name: str, does: str) -> Callable[..., Any]:
    """The function ``name`` of a user's own Python file, which is run; it can import what lies
    beside it.

    What the file or the function raises has a note that names the file.

    Args:
        path: the file.
        name: the function.
        does: what it does, for the message.

    Raises:
        UserError: if there is no such file or function.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: expected a Python file whose function {name} {does}")
    place = f"bezierdistill_file_{path.stem}"  # hides no module of that name
    spec = importlib.util.spec_from_file_location(place, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    with _noted(path):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{path} has no function {name}, which {does}")
    return _noted(path)(function)


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Run a user's file as Python would, with its folder among those that modules come from; name
    it in the errors of its code, which are told with their traceback.
    """
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    try:
        yield
    except Exception as error:
        error.add_note(f"(in {path}, a file of your own)")
        raise

"""Files that are whole or absent: write to a temporary name, flush to disk, rename. And digests,
and JSON that says what is wrong.

A folder is written by one process at a time (:func:`locked`), and belongs to one run with its
settings (:func:`claim`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bezierdistill.errors import UserError

LOCK = ".lock"
MOST_JSON = 2**28  # bytes


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, then put the result in its place in one
    step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # as the user's files have it; some libraries write what nobody else may read
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk as well, where the system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems cannot
    finally:
        os.close(handle)


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
    with _lock(folder):
        try:
            remove_unfinished(folder)
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _lock(folder: Path) -> IO[str]:
    """The open file whose lock this process holds."""
    import fcntl  # imported here: there is none on Windows, where the rest may work

    path = folder / LOCK
    while True:
        file = open(path, "w")  # noqa: SIM115  # it is the caller's
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            raise UserError(
                f"{folder} is being written by another process: wait for it to end, or choose"
                " another --out"
            ) from None
        except FileNotFoundError:
            pass
        file.close()  # whoever held it has removed it meanwhile: its lock is worth nothing


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, which gets that name in one step when the block ends, and
    is removed if it fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left; nothing else may be
    writing in the folder.
    """
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove a folder: under its name it is whole or absent, even if the removal is cut off. One
    call later nothing of it is left.
    """
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; infinite numbers are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: if the file is missing, no JSON, or no object; ``what`` names it in the message.
    """
    try:
        if path.stat().st_size > MOST_JSON:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, expected a {what} of {MOST_JSON:,} or"
                " fewer"
            )
        value = json.loads(path.read_text(), parse_constant=_refuse_constant, parse_float=_finite)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {what} at {path.parent}: expected a folder with {path.name}") from None
    except (ValueError, RecursionError) as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(
            f"{path} is no valid JSON ({error}): restore it or make the {what} again"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise UserError(f"{name} is no number of JSON")


def check_entries(
    value: object, wanted: Mapping[str, type | tuple[type, ...]], where: str
) -> dict[str, Any]:
    """An object of JSON that has entries of the types wanted (true and false are no numbers).

    Raises:
        UserError: if it is no object, or an entry is missing or of another type; ``where`` says
            which in the message.
    """
    if not isinstance(value, dict):
        raise UserError(
            f"{where} is a {type(value).__name__}, expected an object with {', '.join(wanted)}"
        )
    for name, kinds in wanted.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if type(value.get(name)) not in kinds:
            raise UserError(
                f"{where} has {name} {str(value.get(name))[:80]!r}, expected a"
                f" {' or '.join(kind.__name__ for kind in kinds)}"
            )
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def claim(file: Path, settings: Mapping[str, Any], what: str, **notes: Any) -> None:
    """Take the folder of ``file`` for a run by writing its settings there, or check that it holds
    the same run.

    ``notes`` are written the first time and not compared.

    Raises:
        UserError: if the folder holds a run with other settings, or anything else.
    """
    folder, wanted = (
        file.parent,
        json.loads(json.dumps(settings, default=str)),
    )  # as they are read back
    if not file.exists():
        if folder.exists() and (
            not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir())
        ):
            raise UserError(f"{folder} is not empty and holds no {what}: choose another --out")
        write_json(file, {**wanted, **notes})
        return
    held = read_json(file, f"{what} settings")
    other = sorted(
        key
        for key in (held.keys() | wanted.keys()) - notes.keys()
        if held.get(key) != wanted.get(key)
    )
    if other:
        raise UserError(
            f"{folder} holds another {what}, with other {', '.join(other)}: choose another --out,"
            " or the same settings"
        )


def write_array(path: Path, x: np.ndarray, **more: Any) -> None:
    """Write samples atomically as a ``.npz`` with the array ``x``, and further arrays by name."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, x=x, **more)

    write_atomically(path, write)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors atomically as safetensors."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
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
        raise UserError(
            f"{path} is missing, cut off or damaged ({error}): restore it or make it again"
        ) from None


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
    """The function ``name`` of a user's own Python file, which is run.

    Args:
        path: the file.
        name: the function.
        does: what it does, for the message.

    Raises:
        UserError: if there is no such file or function, or the file cannot be run.
    """
    if not path.is_file():
        raise UserError(
            f"no file {path}: expected a Python file with a function {name}, which {does}"
        )
    spec = importlib.util.spec_from_file_location(
        f"bezierdistill_file_{path.stem}", path
    )  # hides no module of that name
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{path} has no function {name}, which {does}")
    return function

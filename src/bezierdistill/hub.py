"""Folders of the Hugging Face hub, by name: fetched into its cache, and sent. Tensors are read from
safetensors alone, and no code of a folder is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bezierdistill.errors import UserError
from bezierdistill.progress import has_bars, stage

SETTINGS = ("*.json",)
WEIGHTS = ("*.json", "*.safetensors")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Found = TypeVar("Found")


def is_name(source: str | Path) -> bool:
    """Whether there is no such path, and it may be ``OWNER/NAME``: a path in a folder that is there
    is a path.
    """
    path = Path(source)
    return bool(NAME.fullmatch(str(source))) and not path.exists() and not path.parent.exists()


def local_folder(source: str | Path, patterns: Sequence[str] = WEIGHTS) -> Path:
    """The folder ``source``, or the cached copy of a hub's of this name, of which files of some
    patterns are fetched.

    Raises:
        UserError: if the hub has none, or cannot be reached and none is in the cache.
    """
    if not is_name(source):
        return Path(source)
    import huggingface_hub

    name = str(source)
    with stage(f"fetching {name}"):
        place = _asked(
            f"{name} is no folder here, and the hub",
            lambda: huggingface_hub.snapshot_download(name, allow_patterns=[*patterns]),
            "has none of this name that you may read",
        )
    return Path(place)


def check_sending(name: str) -> None:
    """Refuse to send what cannot be, before it is made.

    Raises:
        UserError: if the name is none, or nobody is logged in.
    """
    import huggingface_hub

    if not NAME.fullmatch(name):
        raise UserError(f"to is {name[:100]!r}, expected a name on the hub: OWNER/NAME")
    if huggingface_hub.get_token() is None:
        raise UserError(f"{name} is written by its owner, nobody is logged in: hf auth login")


def send(folder: Path, name: str, private: bool = False) -> str:
    """Put a folder's files into a model on the hub, which is made if it is new; gives its page.

    Raises:
        UserError: if the hub refuses, or is not reached.
    """
    import huggingface_hub

    def sent() -> str:
        page = huggingface_hub.create_repo(name, private=private, exist_ok=True)
        told = "Add a model of bezierdistill"
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder, commit_message=told)
        return str(page)

    with stage(f"sending {name}"):
        return _asked(f"{name}: the hub", sent, "does not let you write there: hf auth login")


def _asked(who: str, ask: Callable[[], Found], refused: str) -> Found:
    """What the hub answers; that it refuses, or is not reached, is told in a line."""
    from huggingface_hub import errors

    try:
        with _bars():
            return ask()
    except Exception as error:  # of the network, the cache, or the hub
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise UserError(f"{who} {refused}") from None
        told = f"refuses ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        away = (ConnectionError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
        if isinstance(error, away) or type(error).__name__.startswith("Connect"):
            told = "cannot be reached: expected a network"
        raise UserError(f"{who} {told}") from None


@contextmanager
def _bars() -> Iterator[None]:
    """The hub's own bars, where we have some."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    if not has_bars():
        disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()

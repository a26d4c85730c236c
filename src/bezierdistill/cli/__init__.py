"""The command line: one verb a stage. Settings are dataclasses, given by flags or by YAML
(``--config``).

A result is told to people, or with ``--json`` printed as one JSON value. A mistake of the user's
ends with one line on standard error and exit code 2. ``BEZIERDISTILL_DEBUG=1`` shows the traceback
instead.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

import torch
from safetensors import SafetensorError

from bezierdistill.cli.parser import listing, parse
from bezierdistill.cli.stages import STAGES
from bezierdistill.cli.verbs import VERBS
from bezierdistill.errors import UnfitError
from bezierdistill.progress import follows
from bezierdistill.stages.store import STORE

__all__ = ["STORE", "VERBS", "explain", "main", "parse"]

MISTAKES = (
    ValueError,
    TypeError,
    OSError,
    OverflowError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)
NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    command, as_json = "bezierdistill", False
    if not given:
        print(listing(), end="")
        return 0
    try:
        request = parse(given)
        command, as_json = f"bezierdistill {request.verb}", request.json
        config = request.config
        with redirect_stdout(io.StringIO()) if as_json or follows() else nullcontext():
            result = request.run(config)
        if as_json:
            _print_json(result)
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get("BEZIERDISTILL_DEBUG"):
            raise
        if as_json and isinstance(error, UnfitError):
            _print_json(error.result)
        print(f"{command}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if command.rpartition(" ")[2] in STAGES:
            print(
                f"{command}: interrupted; what was saved is kept, the same command continues",
                file=sys.stderr,
            )
        else:
            print(f"{command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _print_json(result: Any) -> None:
    if not follows():
        print(json.dumps(result, indent=2, default=str, allow_nan=False))


def explain(error: Exception) -> str | None:
    """One line for a mistake of the user's, or of what the user's files hold; None for what is a
    mistake of ours.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in NO_MEMORY
    ):
        return (
            f"not enough memory ({text[:200] or 'no more could be had'}): ask for fewer, or smaller"
            " batches"
        )
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({text}): expected a file of ours"
    return (text or type(error).__name__) if isinstance(error, MISTAKES) else None

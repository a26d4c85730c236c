"""The engine of the fuzz: a spoilt copy of a valid folder is read under limits of memory and time,
and the outcome is judged.

``python tests/hostile.py FORMAT SEED`` plays one case again and shows what happened.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from bezierdistill import cli
from bezierdistill.errors import UserError
from bezierdistill.models import load_model
from bezierdistill.store import CurveStore

MORE_MEMORY, SECONDS = 2 * 2**30, 10
PRODUCTS = {".npz", ".png", ".html", ".tar"}


@dataclass(frozen=True)
class Kit:
    """What a case has: a folder of its own, in it the spoilt copy and a place for output, and whole
    things beside."""

    case: Path
    assets: Path

    @property
    def folder(self) -> Path:
        """The spoilt copy."""
        return self.case / "in"

    @property
    def out(self) -> Path:
        """Where output goes."""
        return self.case / "out"

    @property
    def marker(self) -> Path:
        """A file that only code from a file would make."""
        return self.case / "marker"


Use = Callable[
    [Random, Kit], "list[object] | Callable[[], object]"
]  # a command line, or something to call


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Args:
        name: its name.
        build: makes a valid folder, given where the whole things are.
        spoil: spoils the copy of a case and says how.
        uses: what reads it, with how often.
        cases: how many of 2,000 cases it has, about.
    """

    name: str
    build: Callable[[Path, Path], None]
    spoil: Callable[[Random, Kit], str]
    uses: dict[Use, float]
    cases: int


@dataclass
class Outcome:
    """How a case went: what was done, and what is wrong with that, if anything."""

    format: str
    seed: int
    did: str = ""
    problem: str | None = None
    refused: bool = False
    seconds: float = 0.0
    message: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.format} {self.seed}: {self.problem} [{self.did[:300]}]"


class TooLongError(BaseException):
    """No handler of ours may catch it."""


@contextmanager
def limited() -> Iterator[None]:
    """Two GiB more memory than now, and ten seconds of the processor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    linux = Path("/proc/self/statm")

    def stop(*_: object) -> None:
        raise TooLongError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    if linux.exists():
        now = int(linux.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + MORE_MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@dataclass
class Hostile:
    """All formats in a folder: valid ones are made once, then copied for each case."""

    root: Path
    formats: dict[str, Format]
    assets: Path = field(init=False)

    def __post_init__(self) -> None:
        self.assets = self.root / "assets"

    def case(self, name: str, seed: int, spoil: bool = True) -> Outcome:
        """Play a case."""
        form, rng, outcome = self.formats[name], Random(f"{name} {seed}"), Outcome(name, seed)
        valid, yard = self.root / f"valid-{name}", self.root / "yard"
        if not valid.exists():
            valid.mkdir()
            form.build(self.assets, valid)
        kit = Kit(yard / "a" / "b" / "case", self.assets)  # with room above, for what climbs out
        shutil.rmtree(yard, ignore_errors=True)
        shutil.copytree(valid, kit.folder, symlinks=True)
        (kit.case / "cwd").mkdir()
        (kit.case / "assets").symlink_to(self.assets)  # teachers are named by the path to there
        around = _listed(self.root, yard)
        use = rng.choices(list(form.uses), list(form.uses.values()))[0]
        outcome.did = form.spoil(rng, kit) if spoil else "nothing spoilt"
        before = _listed(kit.folder)
        start = time.perf_counter()
        self._play(use, rng, kit, outcome)
        outcome.seconds = time.perf_counter() - start
        outcome.problem = outcome.problem or _left(kit, yard, before, outcome.refused)
        if _listed(self.root, yard) != around:
            outcome.problem = outcome.problem or "changed files outside of its folder"
        shutil.rmtree(yard, ignore_errors=True)
        return outcome

    def _play(self, use: Use, rng: Random, kit: Kit, outcome: Outcome) -> None:
        out, error = io.StringIO(), io.StringIO()
        target = use(rng, kit)
        outcome.did += f" | {_told(target)}"
        try:
            with ExitStack() as stack:
                for context in (
                    chdir(kit.case / "cwd"),
                    redirect_stdout(out),
                    redirect_stderr(error),
                    warnings.catch_warnings(),
                    limited(),
                ):
                    stack.enter_context(context)
                warnings.simplefilter("default")
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", UserWarning)
                code = _run(target)
        except BaseException as failure:
            if isinstance(failure, KeyboardInterrupt):
                raise
            outcome.refused = isinstance(failure, UserError | OSError) and callable(target)
            outcome.message = str(failure)
            outcome.trace = traceback.format_exc()
            if not outcome.refused or "\n" in str(failure).strip():
                outcome.problem = f"{type(failure).__name__}: {str(failure)[:300]}"
            return
        outcome.refused, outcome.message = code != 0, error.getvalue()
        outcome.problem = _judged(code, error.getvalue())


def _run(target: Any) -> int:
    if not isinstance(target, list):
        target()
        return 0
    try:
        return cli.main([str(argument) for argument in target])
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)


def _told(target: Any) -> str:
    return (
        " ".join(str(argument)[:60] for argument in target)
        if isinstance(target, list)
        else getattr(target, "__name__", "a call")
    )


def _judged(code: int, error: str) -> str | None:
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in error:
        return f"a traceback: {error[-300:]}"
    lines = [line for line in error.splitlines() if ", passed over " not in line]  # no error
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("bezierdistill")):
        return f"standard error has {len(lines)} lines: {error[:500]}"
    if code == 2 and "not enough memory" in error:
        return f"took memory before it looked: {error[:200]}"
    return None


def _listed(folder: Path, *without: Path) -> dict[Path, int]:
    """Files and when they were changed."""
    files = (
        path
        for path in folder.rglob("*")
        if not path.is_dir() and not any(path.is_relative_to(other) for other in without)
    )
    return {path: path.lstat().st_mtime_ns for path in files if path.name != ".lock"}


def _left(kit: Kit, yard: Path, before: dict[Path, int], refused: bool) -> str | None:
    """What is wrong with the files that a case has left."""
    if kit.marker.exists():
        return "code of the file was run"
    files = [path for path in yard.rglob("*") if path.is_file()]
    if outside := [
        path
        for path in files
        if not path.is_relative_to(kit.folder) and not path.is_relative_to(kit.out)
    ]:
        return f"wrote {outside[0].relative_to(yard)}"
    if unfinished := [path for path in files if path.suffix == ".tmp"]:
        return f"left {unfinished[0].name}"
    new = [
        path
        for path in files
        if before.get(path) != path.lstat().st_mtime_ns and path.name != ".lock"
    ]
    made = [path.name for path in new if path.suffix in PRODUCTS or path.name == "model.json"]
    if refused and made:
        return f"refused, and left {made[0]}"
    return None if refused else next((problem for path in new if (problem := _broken(path))), None)


def _broken(path: Path) -> str | None:
    """What is wrong with an output of a command that succeeded."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].size >= 0 for name in arrays)
        elif path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict | list)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                assert all(file.get_tensor(name).numel() >= 0 for name in file.keys())  # noqa: SIM118
        if path.name == "model.json":
            load_model(path.parent)
        if path.name == "manifest.json":
            store = CurveStore.open(path.parent)
            assert not list(store.verify())
            store.take(torch.arange(min(8, len(store))))
    except Exception as error:
        return f"succeeded, and {path.name} is broken: {type(error).__name__}: {str(error)[:200]}"
    return None


def main(name: str, seed: int) -> None:
    """Play one case and show it."""
    from hostile_formats import FORMATS, build_assets

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build_assets(Path(folder) / "assets")
        outcome = Hostile(Path(folder), FORMATS).case(name, seed)
    print(outcome.trace, outcome.message[:2000], sep="\n")
    print(outcome, f"{outcome.seconds:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Processes that really die, disks that are full, folders in use: results are those of an
undisturbed run, and a mistake is one line.

Every command runs in a process of its own, forked from a server that has everything loaded. ``make
faults`` kills at random, 100 times."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import partialmethod
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from arena_rows import timeless
from bezierdistill.cli import main
from bezierdistill.files import locked, whole_folder, write_tensors
from bezierdistill.records import ArenaRow, read_record
from bezierdistill.store import CurveStore, CurveWriter

TINY = ["--batch", "16", "--loop.accelerator", "cpu", "--loop.save_every", "2"]
NET = ["--network.width", "16", "--network.depth", "2"]
Command = tuple[list[str], tuple[str, ...]]  # all but --out, and the files that it gives
CONTEXT: Any = multiprocessing.get_context("forkserver")


def child(arguments: list[str], log: str, kill_at: int, limit: int) -> None:
    """Run a command; die at its ``kill_at``-th file, odd ones before it has its name and even ones
    after; write no file above ``limit``."""
    torch.set_num_threads(1)
    several: Any = partialmethod(CurveWriter.plan, shard_bytes=2_000)
    CurveWriter.plan = several
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    true, files = os.replace, iter(range(1, 10_000))

    def replace(source: Any, target: Any) -> None:
        if (last := next(files) == kill_at) and kill_at % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        true(source, target)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    raise SystemExit(main(arguments))


def hold(folder: str, held: Any) -> None:
    """Hold a folder until the process is killed."""
    with locked(Path(folder)):
        held.set()
        time.sleep(600)


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    CONTEXT.set_forkserver_preload(
        ["bezierdistill.cli", "lightning_fabric", "torch.utils.tensorboard"]
    )


def run(arguments: list[str], out: Path, kill_at: int = 0, limit: int = 0) -> tuple[int, str]:
    """The exit code of a command in a process of its own, and what it printed."""
    log = out.parent / "log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    process = CONTEXT.Process(
        target=child, args=([*arguments, "--out", str(out)], str(log), kill_at, limit)
    )
    process.start()
    process.join()
    return process.exitcode, log.read_text() if log.exists() else ""


def results(out: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Bytes of files without the folder's own name, and of figures what is no clock."""
    found: dict[str, Any] = {}
    for path in (path for name in names for path in sorted(out.glob(name))):
        if path.name == "arena.json":
            found[path.name] = timeless(read_record(path, list[ArenaRow], "arena"))
        else:
            own = path.read_bytes().replace(str(out).encode(), b"")
            found[str(path.relative_to(out))] = sha256(own).hexdigest()
    return found


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    """Every verb that writes much, on data of 12 numbers, with its inputs made."""
    folder = tmp_path_factory.mktemp("inputs")
    data = str(folder / "data.npz")
    np.savez(data, x=np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32))
    train = ["train", "--data", data, "--steps", "6", *TINY, *NET]
    simulate = [
        "simulate",
        "--teachers",
        str(folder / "teacher"),
        "--degree",
        "3",
        "--count",
        "60",
        "--batch",
        "16",
        "--steps",
        "4",
    ]
    for arguments, name in ((train, "teacher"), (simulate, "curves")):
        assert run(arguments, folder / name)[0] == 0
    assert len(list((folder / "curves").glob("shard-*.safetensors"))) > 2
    distill = [
        "distill",
        "--curves",
        str(folder / "curves"),
        "--steps",
        "4",
        "--align",
        "4",
        "--data",
        data,
        *TINY,
    ]
    small = ["--data", data, *TINY, *NET]
    return {
        "train": (train, ("model.*",)),
        "simulate": (simulate, ("shard-*", "manifest*")),
        "distill": (distill, ("model.*",)),
        "sample": (["sample", "--model", str(folder / "teacher"), "--count", "200"], ("*.npz",)),
        "arena": (
            [
                "arena",
                "--budget",
                "12000",
                "--samples",
                "64",
                "--seeds",
                "1",
                "--methods",
                "rfd-2,rf-2",
                *small,
            ],
            ("arena.json",),
        ),
        "recipe": (["recipe", "--budget", "20000", *small], ("student/model.*",)),
        "reflow": (
            ["reflow", "--steps", "4", "--count", "60", "--solver_steps", "2", *small],
            ("rounds.json", "round-*/*/model.*"),
        ),
    }


@pytest.fixture(scope="module")
def whole(
    commands: dict[str, Command], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What a verb gives undisturbed, made once."""
    made: dict[str, dict[str, Any]] = {}

    def of(verb: str) -> dict[str, Any]:
        if verb not in made:
            arguments, names = commands[verb]
            out = tmp_path_factory.mktemp(verb) / ("x.npz" if verb == "sample" else "out")
            assert run(arguments, out)[0] == 0
            made[verb] = results(out.parent if verb == "sample" else out, names)
            assert made[verb]
        return made[verb]

    return of


def untidy(out: Path) -> list[Path]:
    """What no run may leave: temporary files, half-removed folders, files that cannot be read,
    records of a finished store."""
    left = [path for pattern in (".*.tmp", ".*.gone") for path in out.rglob(pattern)]
    for path in out.rglob("*.safetensors"):
        with safe_open(path, framework="pt"):
            pass
    return left + (
        list(out.glob("shard-*.json"))
        if (out / "manifest.json").exists() and CurveStore.open(out)
        else []
    )


VERBS = [
    "train",
    "simulate",
    "distill",
    *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("arena", "recipe", "reflow")),
]


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_one_file_after_the_other_the_result_is_the_same(
    verb: str, commands: dict[str, Command], tmp_path: Path, whole: Callable[[str], dict[str, Any]]
) -> None:
    arguments, names = commands[verb]
    kill_at, kills, left = 1, 0, 0
    while (code := run(arguments, tmp_path / "out", kill_at)[0]) == -signal.SIGKILL:
        left += any((tmp_path / "out").rglob(".*.tmp"))
        kill_at, kills = kill_at + (1 if verb in VERBS[:3] else 3), kills + 1
    assert code == 0
    assert kills >= 3
    assert left  # some of the kills were within a write
    assert results(tmp_path / "out", names) == whole(verb)
    assert not untidy(tmp_path / "out")


@pytest.mark.parametrize(
    ("verb", "limit"),
    [("train", 100), ("train", 4_000), ("simulate", 1_000), ("simulate", 2_200), ("sample", 1_000)],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    verb: str,
    limit: int,
    commands: dict[str, Command],
    tmp_path: Path,
    whole: Callable[[str], dict[str, Any]],
) -> None:
    arguments, names = commands[verb]
    folder = tmp_path / "out"
    out = folder / "x.npz" if verb == "sample" else folder
    code, printed = run(arguments, out, limit=limit)
    assert code == 2
    error = [line for line in printed.splitlines() if line.startswith("bezierdistill")]
    assert len(error) == 1
    assert "File too large" in error[0]
    assert "Traceback" not in printed
    assert not [path for path in folder.rglob(".*.tmp") if path.is_file()]
    assert not list(folder.glob("*.npz"))
    assert run(arguments, out)[0] == 0
    assert results(folder, names) == whole(verb)


@pytest.mark.parametrize("verb", ["train", "simulate", "distill", "sample"])
def test_a_folder_that_may_not_be_written_is_one_line(
    verb: str,
    commands: dict[str, Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    out = tmp_path / "out" / "x.npz" if verb == "sample" else tmp_path / "out"
    assert main([*commands[verb][0], "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"bezierdistill {verb}: [Errno 13] Permission denied")
    assert all(path.name == ".lock" for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(
    commands: dict[str, Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert main([*commands["train"][0], "--out", str(tmp_path / "out")]) == 2
    assert "Permission denied" in capsys.readouterr().err
    tmp_path.chmod(0o700)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Any]:
    """A process that holds the folder ``out``."""
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(str(tmp_path / "out"), ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("verb", ["train", "simulate", "distill", "arena", "recipe", "reflow"])
def test_one_process_at_a_time_writes_a_folder(
    verb: str,
    held: Any,
    commands: dict[str, Command],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*commands[verb][0], "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is being written by another process" in error
    if verb in VERBS[:3]:
        held.kill()  # a killed process holds nothing
        held.join()
        assert main(arguments) == 0


def test_files_may_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    assert (tmp_path / "x.safetensors").stat().st_mode == plain.stat().st_mode


def test_a_folder_that_a_killed_process_left_half_made_is_removed(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "a") as made:
            (made / "x").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    (tmp_path / ".a.1.tmp").mkdir()
    (tmp_path / ".a.1.tmp" / "x").touch()
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        with pytest.raises(ValueError, match="is being written by another process"), locked(folder):
            pass
        assert (folder / ".lock").exists()
    assert not list(folder.iterdir())
    with pytest.raises(KeyboardInterrupt), locked(folder):
        raise KeyboardInterrupt
    assert not list(folder.iterdir())

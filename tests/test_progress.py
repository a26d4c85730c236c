"""What long work says while it runs, where standard error is no terminal."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from bezierdistill import progress as module
from bezierdistill.cli import main
from bezierdistill.progress import announce, notice, progress, silent, stage


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every twentieth of a second."""
    monkeypatch.setattr(module, "EVERY", 0.05)


def wait_for(capsys: pytest.CaptureFixture[str], lines: int = 1) -> list[str]:
    """The lines of standard error, once there are so many."""
    found = ""
    for _ in range(400):
        time.sleep(0.02)
        found += capsys.readouterr().err
        if found.count("\n") >= lines:
            break
    return found.splitlines()


def test_a_line_has_step_rate_loss_and_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("train", 5000, done=1000) as advance:
        time.sleep(0.1)
        advance(1500, lambda: "loss 0.25")
        capsys.readouterr()
        lines = wait_for(capsys, 2)
    for line in lines:
        match = re.fullmatch(r"train: 2,500 of 5,000, ([\d,]+)/s, loss 0.25, (\d+) s left", line)
        assert match, line
        rate = int(match[1].replace(",", ""))  # of this session's steps alone
        assert rate <= 15_000
        assert abs(2500 / rate - int(match[2])) <= 1
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # it is over


def test_the_innermost_stage_is_named_and_one_that_counts_nothing_tells_its_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stage("recipe"):
        with stage("saving"):
            assert re.fullmatch("saving: [01] s", wait_for(capsys)[0])
        capsys.readouterr()
        assert "recipe: " in wait_for(capsys, 2)[-1]

    @stage("knots")
    def slow() -> list[str]:
        return wait_for(capsys)

    assert slow()[0].startswith("knots: ")


def test_quiet_leaves_notices_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with silent(), stage("saving"), progress("train", 3) as advance:
        time.sleep(0.2)
        advance(3)
        announce("the strong teacher")
        notice("passed over 3 files")
    assert capsys.readouterr().err == "passed over 3 files\n"


def test_parts_are_announced_with_the_next_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage("recipe"):
        announce("the strong teacher")
        announce("the weak teacher")
        assert wait_for(capsys, 3)[:2] == ["the strong teacher", "the weak teacher"]
    monkeypatch.setattr(module, "EVERY", 100.0)
    with stage("recipe"):
        announce("what is short")
    assert capsys.readouterr().err == ""


def test_ranks_but_the_first_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with stage("saving"), progress("train", 3) as advance:
        time.sleep(0.2)
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_command_tells_of_itself_unless_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "train --data gaussians --batch 8 --network.width 8 --network.depth 1 --steps"
    assert main([*line.split(), "1500", "--out", str(tmp_path / "told")]) == 0
    told = capsys.readouterr()
    assert re.search(r"^teacher: [\d,]+ of 1,500, [\d,]+/s, loss \d", told.err, re.MULTILINE)
    assert main([*line.split(), "400", "--quiet", "--out", str(tmp_path / "quiet")]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert quiet.out  # its result is told

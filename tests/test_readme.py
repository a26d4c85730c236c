"""The README's code and commands run as they stand, only with smaller numbers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bezierdistill.cli import VERBS, main

README = (Path(__file__).parents[1] / "README.md").read_text()
SMALLER = [
    ("steps=3000", "steps=3"),
    ("steps=500", "steps=2"),
    ("align=600", "align=2, steps=3"),
    ('out="runs/curves"', 'out="runs/curves", count=90'),
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks(block: str) -> None:
    for large, small in SMALLER:
        block = block.replace(large, small)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert "images" not in names or getattr(names["images"], "shape", None) == (64, 8, 8)


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    net = ["--network.width", "16", "--network.depth", "2"]
    smaller = {
        "demo": ["--fast"],
        "recipe": ["--budget", "240000", "--batch", "128", *net],
        "arena": ["--methods", "teacher-euler,rfd-1", "--seeds", "1", "--budget", "12000", "--batch", "32", "--samples", "64", *net],
        "train": ["--steps", "3"],
        "simulate": ["--count", "90"],
        "distill": ["--steps", "3", "--align", "2"],
        "sample": ["--count", "500"],
        "reflow": ["--steps", "150", "--count", "300", "--batch", "16", *net],
    }
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    (bezierdistill .*)$", README, re.MULTILINE)]
    stages = {"train", "simulate", "distill", "sample", "evaluate", "report", "reflow"}
    assert stages <= {command[1] for command in commands} <= VERBS.keys()
    for command in commands:
        assert main([*command[1:], *smaller.get(command[1], [])]) == 0, capsys.readouterr().err
    assert Path("runs/one.png").exists()
    assert Path("runs/student/report.html").exists()


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^    make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)

"""What is public, and what the wheel holds."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bezierdistill

ROOT = Path(__file__).parents[1]


def test_what_is_public_is_listed_and_documented() -> None:
    assert list(bezierdistill.__all__) == sorted(bezierdistill.__all__)
    assert set(dir(bezierdistill)) >= set(bezierdistill.__all__)
    for name in bezierdistill.__all__:
        told = (getattr(bezierdistill, name).__doc__ or "").split("\n\n")[0].strip()
        assert re.fullmatch(rf"(?!{name}\().{{18,}}[.:]", told, re.DOTALL), name


def test_the_version_is_semantic_and_everywhere_the_same() -> None:
    number = r"\d+\.\d+\.\d+(?:-[\w.]+)?"
    assert re.fullmatch(number, bezierdistill.__version__)
    for file, line in {
        "CHANGELOG.md": rf"^## \[({number})\]",
        "CITATION.cff": r"^version: (.+)$",
    }.items():
        found = re.search(line, (ROOT / file).read_text(), re.MULTILINE)
        assert found is not None
        assert found[1] == bezierdistill.__version__


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 3_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")
        }
    tracked = subprocess.run(
        ["git", "ls-files", "src", "recipes"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    whole = {name.removeprefix("src/") for name in tracked}
    assert names == {re.sub("^recipes/", "bezierdistill/recipes/", name) for name in whole}
    assert "bezierdistill/py.typed" in names
    assert "bezierdistill/bundled/digits/model.safetensors" in names

"""The notebooks run, are kept without outputs, and lead somewhere; every drawing is made by code
and shown."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
# What students of one and two passes print, and its bounds: an excess below 1 is nearer to real
# data than twice the floor, independent characters are at a distance of 0.81, and of clips that
# stand still no track is right. Curves and blends draw their figures instead.
EXCESS = ("excess", 0, 1)
FIGURES = {
    "first-steps": EXCESS,
    "distil-a-diffusers-model": EXCESS,
    "words": ("distance", 0, 0.1),
    "clips": ("right tracks", 0.2, 1),
}
by_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def cells(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["cells"]


def test_there_are_five() -> None:
    assert [file.stem for file in NOTEBOOKS] == [
        "clips",
        "curves-and-blends",
        "distil-a-diffusers-model",
        "first-steps",
        "words",
    ]


@by_notebook
def test_a_notebook_is_kept_without_outputs(file: Path) -> None:
    for cell in cells(file):
        assert cell["id"]
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == (
            [],
            None,
        )
    assert re.fullmatch(r"# [^\n]+\n", "".join(cells(file)[0]["source"][:1]))


@by_notebook
def test_its_links_lead_somewhere(file: Path) -> None:
    text = "".join(
        line for cell in cells(file) if cell["cell_type"] == "markdown" for line in cell["source"]
    )
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    assert not [link for link in links if not (file.parent / link).exists()]


@pytest.mark.slow
@by_notebook
def test_a_notebook_runs_quietly(file: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip(
        "nbclient", reason="nbclient is not installed: pip install -e '.[docs]'"
    )
    import nbformat

    book = nbformat.read(file, 4)
    nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [
        output.text
        for output in outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    text = "".join(output.get("text", "") for output in outputs)
    if file.stem in FIGURES:
        word, low, high = FIGURES[file.stem]
        told = rf"^student, \d pass(?:es)? +.*{word} +([\d.]+)"
        figures = [float(value) for value in re.findall(told, text, re.MULTILINE)]
        assert len(figures) == 2
        assert all(low < value < high for value in figures), figures


def drawings() -> Any:
    spec = importlib.util.spec_from_file_location("drawings", DOCS / "drawings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_is_drawn_by_code_and_shown() -> None:
    pictures = {file.stem for file in (DOCS / "pictures").iterdir()}
    assert pictures == drawings().DRAWINGS.keys()
    shown = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    assert not [name for name in pictures if f"](pictures/{name}.png)" not in shown]
    assert all(file.stat().st_size < 150_000 for file in (DOCS / "pictures").iterdir())


def test_a_drawing_is_the_same_every_time(tmp_path: Path) -> None:
    made = drawings()
    first, second = (made.draw("curves", tmp_path / part).read_bytes() for part in ("a", "b"))
    assert first == second

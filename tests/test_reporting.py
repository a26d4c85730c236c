"""Reports: one file that asks for nothing else, whose every word is escaped, in colours that
everyone can tell apart."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bezierdistill.reporting.style import DARK, LIGHT
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bezierdistill import knots
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.cli import parse
from bezierdistill.curves import BezierCurve
from bezierdistill.models import NetworkConfig
from bezierdistill.reporting import plots, write_report
from bezierdistill.reporting.page import Section, page, table
from bezierdistill.reporting.summary import Entry
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.training.settings import LoopConfig

NET, LOOP = NetworkConfig(width=16, depth=2), LoopConfig(accelerator="cpu", warmup=1)
EVIL = "<img src=x onerror=alert(1)>&\"'"
KINDS = (
    "recipe",
    "recipe/student",
    "recipe/strong",
    "recipe/curves",
    "arena",
    "reflow",
    "vectors",
    "translation",
)


class Checked(HTMLParser):
    """Reads a page, and insists that every element is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.commands: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "pre":
            self.commands.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
            if self.open[-1] == "pre":
                self.commands[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module", autouse=True)
def few_curves_for_the_knots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knots, "KNOT_CURVES", 16)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small runs of every kind, on data whose name is markup."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    names = {name: str(folder / f"{name} {EVIL}.npz") for name in ("images", "others", "vectors")}
    for name in ("images", "others"):
        np.savez(names[name], x=rng.integers(0, 255, (200, 4, 4)).astype(np.uint8))
    np.savez(names["vectors"], x=rng.standard_normal((300, 3)).astype(np.float32))
    sizes: dict[str, Any] = {"batch": 32, "network": NET, "loop": LOOP}
    run_recipe(RecipeConfig(names["images"], folder / "recipe", 60_000, **sizes))
    run_recipe(RecipeConfig(names["vectors"], folder / "vectors", 60_000, degree=1, **sizes))
    run_recipe(
        RecipeConfig(
            names["images"],
            folder / "translation",
            60_000,
            source=names["others"],
            coupling="ot",
            **sizes,
        )
    )
    arena(
        ArenaConfig(
            names["images"],
            folder / "arena",
            "bezier,rf-2",
            60_000,
            2,
            samples=50,
            keep_samples=True,
            **sizes,
        )
    )
    reflow(
        ReflowConfig(
            names["vectors"],
            folder / "reflow",
            report=True,
            steps=200,
            count=200,
            solver_steps=2,
            **sizes,
        )
    )
    return folder


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    return {kind: write_report(root / kind).read_text() for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_well_formed_and_asks_for_nothing(kind: str, pages: dict[str, str]) -> None:
    read = Checked(pages[kind])
    links = [
        value
        for _, attributes in read.found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data")
    ]
    assert all(link is not None and re.match(r"data:|#part-\d+$", link) for link in links)
    assert "http" not in pages[kind]
    assert not re.search(r"url\(|@import", read.texts["style"])
    assert {tag for tag, _ in read.found} >= {
        "header",
        "main",
        "section",
        "footer",
        "figure",
        "title",
        "h1",
    }
    assert not {tag for tag, _ in read.found} & {"script", "iframe", "object", "base", "form"}
    assert not [
        name for _, attributes in read.found for name in attributes if name.startswith("on")
    ]
    assert read.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in read.all(
        "meta"
    )
    assert len(pages[kind]) < 2_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_links_lead_to_sections_and_pictures_say_what_one_sees(
    kind: str, pages: dict[str, str]
) -> None:
    read = Checked(pages[kind])
    marks = [section["id"] for section in read.all("section")]
    assert len(marks) == len(set(marks))
    assert [str(link["href"])[1:] for link in read.all("a")] == (marks if len(marks) > 4 else [])
    assert all(
        len(image["alt"] or "") > 20 and int(image["width"] or 0) > 60 for image in read.all("img")
    )
    assert all("scope" in head for head in read.all("th"))
    assert pages[kind].count("<table>") == pages[kind].count(
        '<figure class="table">'
    )  # each with its caption
    assert pages[kind].count("<figure") == pages[kind].count("</figure>")


@pytest.mark.parametrize(
    ("kind", "titles"),
    [
        (
            "recipe",
            ["Samples", "Account of passes", "Curves", "Losses", "What was run", "Settings"],
        ),
        ("recipe/curves", ["Curves", "What was run", "Settings"]),
        (
            "translation",
            ["Translations", "Account of passes", "Curves", "Losses", "What was run", "Settings"],
        ),
        (
            "arena",
            [
                "Results",
                "Quality against passes",
                "Quality against cost",
                "Samples at 1 pass",
                "Samples at 2 passes",
                "What was run",
            ],
        ),
        (
            "reflow",
            [
                "Reflow rounds",
                "Curves: round-1/ours/curves",
                "Curves: round-2/ours/curves",
                "Losses",
                "What was run",
                "Settings",
            ],
        ),
        ("vectors", ["Samples", "Account of passes", "Losses", "What was run", "Settings"]),
    ],
)
def test_what_stands_on_a_page(kind: str, titles: list[str], pages: dict[str, str]) -> None:
    assert re.findall("<h2>(.*?)</h2>", pages[kind])[: len(titles)] == titles


def test_the_command_on_the_page_is_the_run(root: Path, pages: dict[str, str]) -> None:
    first = Checked(pages["recipe"]).commands[0]
    words = shlex.split(first)
    data = str(root / f"images {EVIL}.npz")
    assert words[:2] == ["bezierdistill", "recipe"]
    assert parse(words[1:]).config == RecipeConfig(
        data, root / "recipe", 60_000, batch=32, network=NET, loop=LOOP
    )


def test_every_stage_has_its_command_passes_and_seconds(root: Path, pages: dict[str, str]) -> None:
    read = Checked(pages["recipe"])
    stages = read.commands[1]
    lines = [line for line in stages.split("\n") if line.startswith("bezierdistill ")]
    assert [shlex.split(line)[1] for line in lines] == ["train", "train", "simulate", "distill"]
    card = json.loads((root / "recipe" / "student" / "model.json").read_text())
    assert f'<td class="n">{card["passes"]["training"]:,}</td>' in pages["recipe"]
    assert "not recorded" not in pages["recipe"]


def test_a_run_without_a_record_says_so(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "recipe", tmp_path / "old")
    for file in (tmp_path / "old").rglob("made.json"):
        file.unlink()
    page = write_report(tmp_path / "old").read_text()
    assert "No command is on record here" in page
    assert "not recorded" in page


def test_teachers_are_shown_while_they_are_at_hand(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "recipe", tmp_path / "r")
    assert "strong (teacher)" in write_report(root / "recipe" / "student").read_text()
    card = json.loads((tmp_path / "r" / "student" / "model.json").read_text())
    card["teachers"] = [{**entry, "path": str(tmp_path / "gone")} for entry in card["teachers"]]
    (tmp_path / "r" / "student" / "model.json").write_text(json.dumps(card))
    page = write_report(tmp_path / "r" / "student").read_text()
    assert "(teacher)" not in page
    assert "student" in page


def test_real_data_stand_beside_the_samples_however_few_are_held_out(pages: dict[str, str]) -> None:
    for kind, count in (("recipe", 36), ("vectors", 75)):
        assert (
            f"<b>real data, held out</b> {count} of {kind.replace('recipe', 'images')}"
            f" {html.escape(EVIL)}.npz" in pages[kind]
        )


def test_what_a_run_says_of_itself_is_text(pages: dict[str, str]) -> None:
    for kind in ("recipe", "arena", "reflow", "translation"):
        assert "<img src=x" not in pages[kind]
        assert html.escape(EVIL) in pages[kind]
    told = page(EVIL, EVIL, EVIL, "", [Section(EVIL, table(EVIL, [EVIL], [[EVIL]]))] * 5)
    assert not Checked(told).all("img")
    assert told.count(html.escape(EVIL)) >= 18


def test_the_same_run_gives_the_same_page(root: Path, pages: dict[str, str]) -> None:
    for kind in ("recipe", "arena"):
        assert write_report(root / kind).read_text() == pages[kind]


@pytest.mark.parametrize(
    "name",
    ["recipe.json", "made.json", "student/model.json", "curves/manifest.json", "strong/made.json"],
)
@pytest.mark.parametrize("damage", ["[]", "{", '{"data": 3, "machine": {"cores": []}}'])
def test_a_damaged_file_is_one_clear_error(
    name: str, damage: str, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "recipe", tmp_path / "r")
    (tmp_path / "r" / name).write_text(damage)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "r"))):
        write_report(tmp_path / "r")
    assert (
        not (tmp_path / "r" / "report.html").exists() or (root / "recipe" / "report.html").exists()
    )


def test_columns_of_numbers_stand_right_and_ours_is_told_by_more_than_colour(
    pages: dict[str, str],
) -> None:
    made = table(
        "words",
        ["name", "figure", "mixed"],
        [["a", "1,200", "x"], ["b", "0.5 ± 0.1", "3"], ["c", "9 (12 %)", ""]],
        ours=[1],
    )
    assert made.count('class="n"') == 4
    assert '<tr class="ours"><th scope="row">b</th>' in made
    assert "bezier (ours)" in pages["arena"]
    assert 'content:"\\2605' in pages["arena"]  # a star


# Colours and figures.


def linear(colour: str) -> np.ndarray:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2: ratio of relative luminances."""
    light, dark = sorted(
        (float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


def test_contrast_by_its_known_values() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("dress", [LIGHT, DARK], ids=["light", "dark"])
def test_letters_stand_out(dress: dict[str, str]) -> None:
    for letters in ("ink", "quiet", "link"):
        for ground in ("paper", "panel", "mark"):
            assert contrast(dress[letters], dress[ground]) >= 4.5, (letters, ground)


# Vienot, Brettel & Mollon 1999, on linear sRGB.
SIGHT = {
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "trichromacy": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of linear sRGB under D65."""
    xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ) @ rgb.clip(0, 1)
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    f = np.where(
        xyz / [0.9505, 1.0, 1.089] > 0.008856, f, 7.787 * xyz / [0.9505, 1.0, 1.089] + 16 / 116
    )
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart(sight: str) -> None:
    seen = [lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in plots.COLOURS[:7]]
    assert (
        min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15
    )  # a just noticeable difference is 2.3


def entry(k: int, passes: int) -> Entry:
    return Entry(f"m{k}", k == 0, passes, 1 + k, 0.3 + k, 0.05 * k, 3, 4.0 + k, 100.0, 50.0)


def figures() -> dict[str, Figure]:
    laws = {name: {"frechet_ratio": 2.0} for name in ("flow", "distilled, 1 pass")}
    errors = {
        "straightness": 0.1,
        "drift": 0.0,
        "reconstruction_real": 1e-3,
        "reconstruction_generated": 1e-8,
    }
    rounds = [
        {"round": k, "samplers": laws, "ours": {"ours, 1 pass": {"frechet_ratio": 1.5}}, **errors}
        for k in (1, 2)
    ]
    entries = [entry(k, passes) for passes in (1, 2) for k in range(12)]
    return {
        "passes": plots.arena_figure(entries, "passes"),
        "seconds": plots.arena_figure(entries, "seconds", 1),
        "cubics": plots.curves_figure(BezierCurve(torch.randn(4, 9, 5))),
        "lines": plots.curves_figure(BezierCurve(torch.randn(2, 9, 1, 2, 2))),
        "law": plots.law_figure(rounds),
        "errors": plots.errors_figure(rounds),
        "loss": plots.loss_figure(
            "student: curves", {"student": [(1, 0.5), (2, 0.1)], "critic": [(1, 0.5), (2, 0.2)]}
        ),
    }


@pytest.mark.parametrize("name", figures())
def test_figures_have_titles_labels_and_letters_for_a_phone(name: str) -> None:
    figure = figures()[name]
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        letters = [
            *axes.get_xticklabels(),
            *axes.get_yticklabels(),
            axes.xaxis.label,
            axes.yaxis.label,
        ]
        assert min(float(label.get_fontsize()) for label in letters) >= 8
    assert figure.get_figwidth() <= 6
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    if len(lines) > 1 and name not in ("cubics", "lines"):
        looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
        assert len(set(looks)) == len(looks)


def test_points_share_their_axes_and_limits() -> None:
    drawn = plots.scatter_figures({"real": torch.randn(100, 5), "ours": 50 * torch.randn(100, 5)})
    one, two = (figure.axes[0] for figure in drawn.values())
    assert one.get_xlim() == two.get_xlim()
    assert one.get_ylim() == two.get_ylim()
    assert "principal axis (model units)" in one.get_xlabel()


def test_an_axis_of_a_narrow_range_has_ticks() -> None:
    figure = plots.loss_figure("one point", {"net": [(7, 0.31)]})
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    assert [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]

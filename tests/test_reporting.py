"""Reports: one file that asks for nothing else, whose every word is escaped, in colours that
everyone can tell apart."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from dataclasses import replace as replace_entry
from html.parser import HTMLParser
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from msgspec.structs import replace

from bezierdistill.arena.methods import METHODS
from bezierdistill.cli import parse
from bezierdistill.curves import BezierCurve
from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.files import write_array
from bezierdistill.models.folder import read_card, save_model
from bezierdistill.models.model import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import (
    ArenaRow,
    ClassScores,
    Conditions,
    Made,
    ModelCard,
    Passes,
    Protocol,
    RoundRow,
    Rounds,
    Sampled,
    Score,
    Scores,
    Settings,
    from_json,
    to_json,
    write_record,
    write_sealed,
)
from bezierdistill.reporting import plots, print_arena, print_rows, protocol_lines, write_report
from bezierdistill.reporting.names import NAMES
from bezierdistill.reporting.page import Code, Note, Opening, Section, Table, render
from bezierdistill.reporting.places import without_places
from bezierdistill.reporting.summary import Entry, excess, sampler_label, summarise
from bezierdistill.reporting.tables import arena_lines
from bezierdistill.reporting.verdict import verdict
from bezierdistill.run import MADE, RUN, machine
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.simulate import CurveSettings
from bezierdistill.stages.train import FlowSettings
from bezierdistill.training.settings import LoopConfig
from bezierdistill.words import counted

NET, LOOP = NetworkConfig(width=16, depth=2), LoopConfig(accelerator="cpu", warmup=1)
EVIL = "<img src=x onerror=alert(1)>&\"'$a$"
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


def scores(ratio: float, **more: Any) -> Scores:
    """Scores whose distances are all so many times their floor."""
    names = ("frechet", "sliced_wasserstein", "energy", "mmd", "coarse", "middle", "fine")
    more = {"fidelity": Score(value=0.5, floor=0.25)} | more
    shares = {name: Score(value=0.75, floor=0.9) for name in ("precision", "recall")}
    return Scores(**dict.fromkeys(names, Score(value=ratio / 8, floor=0.125)), **shares, **more)


def row(method: str, seed: int, passes: int, ratio: float) -> ArenaRow:
    return ArenaRow(
        method=method,
        seed=seed,
        ours=method == "bezier",
        passes=passes,
        spent=60_000,
        seconds=2.0,
        memory=100.0,
        scores=scores(ratio),
    )


Who = Literal["flow", "distilled", "ours"]


def sampled(who: Who, solver: Literal["heun", "euler", "jumps"], passes: int) -> Sampled:
    return Sampled(who=who, solver=solver, passes=passes, scores=scores(1.5))


SAMPLERS = (
    sampled("flow", "heun", 40),
    sampled("flow", "euler", 1),
    sampled("flow", "euler", 2),
    sampled("distilled", "jumps", 1),
    sampled("ours", "jumps", 1),
    sampled("ours", "jumps", 2),
)


def rounds() -> tuple[RoundRow, ...]:
    return tuple(
        RoundRow(
            round=k,
            flow_passes=100,
            student_passes=200,
            ours_passes=200,
            straightness=0.1,
            drift=float(k - 1),
            reconstruction_real=1e-3,
            reconstruction_generated=1e-8,
            samplers=SAMPLERS,
        )
        for k in (1, 2)
    )


def tell(folder: Path, verb: str, command: str, fast: bool = False, **settings: Any) -> None:
    """Write of which run a folder is."""
    made = Made(
        verb=verb,
        commands=(command,),
        machine=machine(),
        started="2030-01-01T00:00:00Z",
        seconds=3.0,
        finished=True,
        fast=fast,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / MADE, made)
    write_sealed(folder / RUN, Settings(verb=verb, settings=settings))


def write_arena(folder: Path, data: str, verb: str = "arena", fast: bool = False) -> None:
    """The folder of an arena of two methods and two seeds, by hand; a third method has failed."""
    tell(folder, verb, f"bezierdistill {verb} --fast-looking", fast, data=data, budget=60_000)
    (folder / "cells").mkdir()
    for method, ratio in (("bezier", 1.25), ("rf-2", 3.0)):
        for seed in (0, 1):
            rows = [row(method, seed, passes, ratio + seed / 8) for passes in (1, 2)]
            write_record(folder / "cells" / f"{method}-{seed}.json", rows)
        for passes in (1, 2):
            file = folder / "samples" / f"{method}-0-{passes}.npz"
            write_array(file, np.zeros((50, 4, 4), np.uint8))
    failed = ArenaRow(method="rf-3", seed=0, error=f"it diverged {EVIL}")
    write_record(folder / "cells" / "rf-3-0.json", [failed])
    write_array(folder / "samples" / "real.npz", np.zeros((50, 4, 4), np.uint8))


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
    lines = CurveSettings(degree=1, steps=4)
    run_recipe(RecipeConfig(names["vectors"], folder / "vectors", 60_000, simulate=lines, **sizes))
    sizes |= {"domain": names["others"], "train": FlowSettings(coupling="ot")}
    run_recipe(RecipeConfig(names["images"], folder / "translation", 60_000, **sizes))
    write_arena(folder / "arena", names["images"])
    tell(folder / "reflow", "reflow", "bezierdistill reflow", data=names["vectors"])
    figures = Rounds(data=names["vectors"], seed=0, rounds=rounds())
    write_record(folder / "reflow" / "rounds.json", figures)
    for k in (1, 2):
        shutil.copytree(folder / "recipe", folder / "reflow" / f"round-{k}" / "ours")
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
    assert all(link is not None and link.startswith("data:") for link in links)
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
def test_pictures_say_what_one_sees(kind: str, pages: dict[str, str]) -> None:
    read = Checked(pages[kind])
    assert all(
        len(image["alt"] or "") > 20 and int(image["width"] or 0) > 60 for image in read.all("img")
    )
    assert all("scope" in head for head in read.all("th"))
    assert pages[kind].count("<table>") == pages[kind].count(
        '<figure class="table">'
    )  # each with its caption
    assert pages[kind].count("<figure") == pages[kind].count("</figure>")


DETAILS = ("Loss curves", "What was run", "Settings")
WORDS = "What the words mean"


@pytest.mark.parametrize(
    ("kind", "shown", "folded"),
    [
        ("recipe", ["Samples"], ["Account of passes", "Curves", *DETAILS]),
        ("recipe/strong", ["Samples"], ["Account of passes", *DETAILS]),
        ("recipe/curves", ["Curves"], DETAILS[1:]),
        ("translation", ["Translations"], ["Account of passes", "Curves", *DETAILS]),
        (
            "arena",
            ["Samples in one pass", "Samples in two passes", "Results", "Quality against passes"],
            ["All figures", WORDS, *DETAILS[1:]],
        ),
        (
            "reflow",
            ["Reflow rounds"],
            [WORDS, *(f"Curves: round-{k}/ours/curves" for k in (1, 2)), *DETAILS],
        ),
        ("vectors", ["Samples"], ["Account of passes", *DETAILS]),
    ],
)
def test_results_stand_on_a_page_and_details_are_folded(
    kind: str, shown: list[str], folded: list[str], pages: dict[str, str]
) -> None:
    titles = re.findall("<h2>(.*?)</h2>", pages[kind])
    assert titles == [*shown, *folded]
    assert re.findall("<summary><h2>(.*?)</h2>", pages[kind]) == list(folded)


def test_a_page_begins_with_what_was_done_and_what_came_out(pages: dict[str, str]) -> None:
    data = {name: f"{name} {escaped(EVIL)}.npz" for name in ("images", "others", "vectors")}
    unjudged = "the student and what led to it took"
    for kind, title, came_out in (
        ("recipe", f"A generator of {data['images']} in one to four passes, dist", unjudged),
        (
            "recipe/strong",
            f"A teacher: a flow to {data['images']}, trained for",
            "It is to be distilled",
        ),
        ("recipe/curves", "of degree 4 from noise to data", "Simulated by two teachers in"),
        ("translation", f"A translator from {data['others']} to {data['images']} in", unjudged),
        (
            "arena",
            f"Two methods of few passes, compared on {data['images']}",
            "One pass: excess 0.31 ± 0.06 by Bezier distillation, best of two methods.",
        ),
        (
            "reflow",
            f"Two rounds of reflow on {data['vectors']}, and ours at the same passes",
            "One pass after two rounds: excess 0.50 by distilling the last flow and 0.50 by ours.",
        ),
    ):
        (heading,) = re.findall("<h1>(.*?)</h1>", pages[kind])
        assert title in heading
        assert f"<title>{heading}</title>" in pages[kind]
        (told,) = re.findall('<p class="verdict">(.*?)</p>', pages[kind])
        assert came_out in told
        assert told.endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_says_nothing_of_whose_machine_it_was(
    kind: str, root: Path, pages: dict[str, str]
) -> None:
    text = re.sub(r"data:image/png;base64,[^\"]*", "", pages[kind])
    for place in (root, root.resolve(), Path.home(), Path.cwd(), root.parent, "/tmp"):
        assert f"{place}/" not in text
        assert f"{place}&" not in text


def test_paths_are_told_by_their_names(tmp_path: Path) -> None:
    home, odd = Path.home(), "/mnt/Jane Doe's/in 1"
    shown = without_places(tmp_path / "run", [{"data": [f"{odd}/a b.npz"]}])
    for text, told in (
        (f"--out {tmp_path}/run --data /data/x.npz", "--out run --data x.npz"),
        (f"cannot read {odd}/a b.npz: no such file", "cannot read a b.npz: no such file"),
        (f"'{home}/some where/x.npz'", "'some where/x.npz'"),
        (f"{Path.cwd()}/runs/a", "runs/a"),
        ("squeezenet:/opt/a,b/w.pt,/opt/v.pt", "squeezenet:w.pt,v.pt"),
        ("--data ~/jane/x.npz ../../jane/y.npz", "--data x.npz y.npz"),
    ):
        assert shown(text) == told
    for text in ("runs/a/b", "distance / floor", "hf:OWNER/NAME", "1/2", "https://a.b/c", "a // b"):
        assert shown(text) == text


def test_the_command_on_the_page_is_the_run(pages: dict[str, str]) -> None:
    first = Checked(pages["recipe"]).commands[0]
    words = shlex.split(first)
    assert words[:2] == ["bezierdistill", "recipe"]
    assert parse(words[1:]).config == RecipeConfig(
        f"images {EVIL}.npz", Path("recipe"), 60_000, batch=32, network=NET, loop=LOOP
    )


def test_every_stage_has_its_command_passes_and_seconds(root: Path, pages: dict[str, str]) -> None:
    read = Checked(pages["recipe"])
    stages = read.commands[1]
    lines = [line for line in stages.split("\n") if line.startswith("bezierdistill ")]
    assert [shlex.split(line)[1] for line in lines] == ["train", "train", "simulate", "distill"]
    passes = read_card(root / "recipe" / "student").passes
    assert f'<td class="n">{passes.training:,}</td>' in pages["recipe"]
    assert f'<td class="n">{passes.total:,}</td>' in pages["recipe"]
    assert "not recorded" not in pages["recipe"]


def test_a_run_without_a_record_says_so(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "recipe", tmp_path / "old")
    for file in (tmp_path / "old").rglob("made.json"):
        file.unlink()
    page = write_report(tmp_path / "old").read_text()
    assert "No command is on record here" in page
    assert "not recorded" in page


def test_teachers_are_shown_while_they_are_at_hand(root: Path, tmp_path: Path) -> None:
    assert "strong (teacher)" in write_report(root / "recipe" / "student").read_text()
    shutil.copytree(root / "recipe" / "student", tmp_path / "alone" / "student")
    page = write_report(tmp_path / "alone" / "student").read_text()
    assert "(teacher)" not in page
    assert "student" in page


def test_the_verb_of_a_folder_says_what_it_is(root: Path, tmp_path: Path) -> None:
    data = str(root / f"images {EVIL}.npz")
    write_arena(tmp_path / "a", data, "demo", fast=True)
    write_arena(tmp_path / "b", data, "demo")
    fast, slow = (write_report(tmp_path / name).read_text() for name in "ab")
    assert '<p class="kind">bezierdistill demo, folder a</p>' in fast
    assert '<p class="kind">bezierdistill demo, folder b</p>' in slow
    assert "This was a fast run" in fast
    assert "This was a fast run" not in slow  # though its command has the letters --fast
    shutil.rmtree(tmp_path / "b" / "cells")
    assert "Results" in write_report(tmp_path / "b").read_text()  # nothing is finished
    (tmp_path / "a" / RUN).unlink()
    (tmp_path / "a" / MADE).unlink()
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path / "a")


def test_failed_methods_are_told(pages: dict[str, str]) -> None:
    assert f"Failed: rf-3, seed 0: it diverged {EVIL}" in Checked(pages["arena"]).texts["p"]


def test_a_table_has_full_names_and_a_scale_of_excess(pages: dict[str, str]) -> None:
    body = pages["arena"].split("<main>")[1]
    assert '<th scope="row">Bezier distillation (ours)</th>' in body
    assert '<th scope="row">2-rectified flow</th><td>rf-2</td>' in re.sub(r"\n *", "", body)
    assert "over seeds" in body
    assert '<th scope="col" class="n">flow, Heun, 40 passes</th>' in pages["reflow"]
    assert re.search(r'<td class="n">0.50</td>', pages["reflow"])
    assert "over their floor" not in pages["reflow"]


def test_a_single_seed_has_no_error_over_seeds(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "arena", tmp_path / "a")
    for file in (tmp_path / "a" / "cells").glob("*-1.json"):
        file.unlink()
    page = write_report(tmp_path / "a").read_text()
    assert "over seeds" not in page
    assert "±" not in page
    assert "One seed: small differences mean nothing." in page


def test_an_arena_in_one_sentence() -> None:
    def told(*rows: ArenaRow, track: str = "own-teacher") -> str:
        return verdict(summarise(rows), track)

    ours, rival = row("bezier", 0, 1, 1.25), row("rf-2", 0, 1, 3.0)
    teacher = row("bezier-teacher", 0, 20, 1.75)
    assert told(ours, rival, teacher) == (
        "One pass: excess 0.25 by Bezier distillation, best of two methods;"
        " its teacher needs 20 passes for 0.75."
    )
    assert told(ours, row("teacher-20", 0, 20, 1.125), track="given-teacher") == (
        "One pass: excess 0.25 by Bezier distillation; its teacher reaches 0.12 in 20 passes."
    )
    assert told(row("bezier", 0, 1, 4.0), rival) == (
        "One pass: excess 3.00 by Bezier distillation, second of two methods"
        " (the best: 2.00 by 2-rectified flow)."
    )
    assert told(rival) == "One pass: excess 2.00 by 2-rectified flow."
    assert told() == "No method has come to a result."
    near = [row(name, k, 1, r + k) for name, r in (("bezier", 2), ("rf-2", 2.5)) for k in (0, 1)]
    assert told(*near).endswith("not told apart from 2-rectified flow by these seeds.")
    far = [row(name, 0, 1, r) for name, r in (("bezier", 9.0), ("rf-2", 7.0))]
    assert told(*far) == (
        "Nothing has learnt yet: at one pass the least excess is 6.00, above 5, so no method is"
        " ranked."
    )
    assert told(*far, row("bezier", 0, 2, 2.0)) == (
        "Two passes: excess 1.00 by Bezier distillation; at one pass the least excess is 6.00,"
        " which is nothing learnt yet."
    )


def test_noise_is_not_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    far = [row(name, 0, 1, r) for name, r in (("bezier", 9.0), ("rf-2", 7.0))]
    pairs = arena_lines([*far, row("rf-2", 0, 2, 2.0), row("bezier", 0, 2, 9.0)])
    assert [line[1] for _, line in pairs] == ["–", "–", "1", "2"]
    assert [line[4] for _, line in pairs] == ["6.00", "8.00", "1.00 (1)", "8.00 (2)"]
    print_arena(far)
    assert "nothing has learnt yet" in " ".join(capsys.readouterr().out.split())


def test_every_method_of_the_arena_has_a_full_name() -> None:
    assert NAMES.keys() == METHODS.keys()
    assert len(set(NAMES.values())) == len(NAMES)
    assert max(map(len, NAMES.values())) <= 38  # two columns of a legend


@pytest.mark.parametrize("names", [(), ("cats", f"dogs {EVIL}")])
def test_classes_are_told_by_name(names: tuple[str, ...], tmp_path: Path) -> None:
    conditions = Conditions(size=2, frequencies=(0.5, 0.5), names=names)
    settings = msgspec.to_builtins(NET)
    card = ModelCard(
        kind="teacher",
        network=settings,
        shape=(1, 4, 4),
        scaling=Scaling(layout="hw"),
        seed=0,
        steps=1,
        passes=Passes(training=10),
        conditions=conditions,
    )
    save_model(tmp_path / "m", Model(NET.build((1, 4, 4), 0, 2), card))
    page = Checked(write_report(tmp_path / "m").read_text())
    assert f"a row is a class: {', '.join(names or ('0', '1'))}." in page.texts["p"]


def test_real_data_stand_beside_the_samples_however_few_are_held_out(pages: dict[str, str]) -> None:
    for kind, count in (("recipe", 36), ("vectors", 75)):
        assert (
            f"<b>real data, held out</b> {count} of {kind.replace('recipe', 'images')}"
            f" {escaped(EVIL)}.npz" in pages[kind]
        )


def test_what_a_run_says_of_itself_is_text(pages: dict[str, str]) -> None:
    for kind in ("recipe", "arena", "reflow", "translation"):
        assert "<img src=x" not in pages[kind]
        assert escaped(EVIL) in pages[kind]
    parts = [Note(EVIL), Code(EVIL, EVIL, folded=True), Table(EVIL, [EVIL], [[EVIL]])]
    told = render(EVIL, Opening(EVIL, EVIL, EVIL), [Section(EVIL, parts)] * 5)
    assert not Checked(told).all("img")
    assert told.count(escaped(EVIL)) == 5 + 5 * 7 + 5


def escaped(text: str) -> str:
    return html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def test_the_same_run_gives_the_same_page(root: Path, pages: dict[str, str]) -> None:
    for kind in ("recipe", "arena"):
        assert write_report(root / kind).read_text() == pages[kind]


@pytest.mark.parametrize(
    "name",
    ["run.json", "made.json", "student/model.json", "strong/made.json"],
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
    rows = [["a", "1,200", "x"], ["b", "0.5 ± 0.1", "3"], ["c", "9 (12 %)", ""]]
    table = Table("words", ["name", "figure", "mixed"], rows, left=(0, 2), ours=[1])
    made = render("", Opening("", ""), [Section("", [table])])
    assert made.count('class="n"') == 4
    assert '<tr class="ours"><th scope="row">b</th>' in made
    assert "Bezier distillation (ours)" in pages["arena"]
    assert 'content: "\\2605' in pages["arena"]  # a star


# Words and terminal tables.


def test_words_for_people() -> None:
    assert [counted(k, "pass") for k in (1, 2)] == ["1 pass", "2 passes"]
    assert [counted(k, "curve") for k in (1, 1200)] == ["1 curve", "1,200 curves"]
    assert list(map(sampler_label, SAMPLERS)) == [
        "flow, Heun, 40 passes",
        "flow, Euler, 1 pass",
        "flow, Euler, 2 passes",
        "distilled, 1 pass",
        "ours, 1 pass",
        "ours, 2 passes",
    ]


def test_seeds_become_means_with_ranks() -> None:
    rows = [row("a", 0, 1, 2.0), row("a", 1, 1, 3.0), row("bezier", 0, 1, 1.5)]
    rows.append(ArenaRow(method="c", seed=0, error="no"))
    best, worst = summarise(rows)
    assert (best.label, best.rank, best.seeds, best.error) == (
        "Bezier distillation (ours)",
        1,
        1,
        0.0,
    )
    assert (worst.label, worst.rank, worst.seeds) == ("a", 2, 2)
    assert worst.excess == pytest.approx(1.5)
    assert worst.error == pytest.approx(0.5)  # sqrt(((-1/2)^2 + (1/2)^2) / 1) / sqrt(2)
    assert excess(rows[1], "energy") == pytest.approx(2.0)


def test_an_arena_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_arena([row("bezier", seed, 1, 1.25 + seed / 8) for seed in (0, 1)] + [row("b", 0, 2, 2)])
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split(r" *[│┃] *", line)[1:-1] for line in lines if re.search("[│┃]", line)]
    assert cells[0][:4] == ["passes", "rank", "method", "excess"]
    assert cells[0][4:-3] == [
        *("middle", "fine", "sliced W2", "energy", "precision", "recall", "fidelity")
    ]
    assert cells[1][:4] == ["1", "1", "bezier", "0.31 ± 0.06"]
    assert cells[1][4:-3] == ["0.31 ± 0.06 (1)"] * 4 + ["0.750", "0.750", "2.00x"]
    assert cells[2][:5] == ["2", "1", "b", "1.00", "1.00 (1)"]


def test_rows_of_before_a_figure_was_measured_are_read_and_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = ("coarse", "middle", "fine", "fidelity")
    plain = to_json(row("b", 0, 1, 2.0))
    for name in new:
        del plain["scores"][name]
    old = from_json(plain, ArenaRow, "here")
    assert old.judged.scales == {}
    assert old.judged.finite
    print_arena([old, row("bezier", 0, 1, 1.5)])
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split(r" *[│┃] *", line)[1:-1] for line in lines if re.search("[│┃]", line)]
    assert cells[1][:6] == ["1", "1", "bezier", "0.50", "0.50 (1)", "0.50 (1)"]
    assert cells[2][:7] == ["1", "2", "b", "1.00", "–", "–", "1.00 (2)"]
    assert cells[2][10] == "–"
    print_rows({"old": old.judged})
    assert "Frechet" in capsys.readouterr().out


def test_scores_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    protocol = Protocol(
        extractor="classifier",
        digest="0123456789",
        metric="FD-classifier",
        manifold="features",
        samples=1000,
        count=500,
        parts=2,
        split="test",
        floor="train",
        seed=3,
        quantised=True,
    )
    of_classes = ClassScores(accuracy=0.5, accuracy_real=0.9, coverage=0.25, coverage_real=1.0)
    kernel = Score(value=0.5, floor=0.25)
    own = scores(2.0, kernel=kernel, protocol=protocol, classes=of_classes)
    print_rows({"a": own, "b": own})
    printed = capsys.readouterr().out
    for text in ("FD-classifier", "coarse", "fine", "0.25 (2.00x)", "0.5 (2.00x)", "0.750"):
        assert text in printed
    assert printed.count(" 2.00x ") == 2  # fidelity
    print_rows({"a": scores(2.0)})
    printed = capsys.readouterr().out
    assert "Frechet" in printed
    assert "kernel" not in printed
    assert "coarse" not in printed  # it is the Frechet distance
    assert protocol_lines(own) == [
        "features: classifier (01234567); 1,000 samples against 500 real ones of the test split,"
        " floor from the train split; seed 3, rounded to whole numbers",
        "classes: accuracy 0.500 (real 0.900), coverage 0.250 (real 1.000)",
    ]
    assert protocol_lines(scores(1.0)) == []
    told = replace(
        protocol,
        **{"trained": "valid", "reference": "whole", "draws": 4},
        **{"scales": "abcdefghij", "widths": (1.25, 0.5)},
    )
    covered = replace(of_classes, accuracy=None, accuracy_real=None)
    assert protocol_lines(replace(own, protocol=told, classes=covered)) == [
        "features: classifier (01234567), trained on the valid split; 1,000 samples against 500"
        " real ones of the test split, all that there are, whatever the seed, floor from the train"
        " split, a mean of 4 draws; seed 3, rounded to whole numbers",
        "middle, fine: kernels of width 1.25 and 0.5 (abcdefgh)",
        "classes: coverage 0.250 (real 1.000)",
    ]


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


CSS = (files("bezierdistill.reporting") / "report.css").read_text()
COLOURS = [dict(re.findall(r"--(\w+): (#\w+)", part)) for part in CSS.split("@media screen")]


@pytest.mark.parametrize("dress", COLOURS, ids=["light", "dark"])
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
    entries = [entry(k, passes) for passes in (1, 2) for k in range(12)]
    losses = {"student": [(1, 0.5), (2, 0.1)], "critic": [(1, 0.5), (2, 0.2)]}
    return {
        "passes": plots.arena_figure(entries, "passes"),
        "seconds": plots.arena_figure(entries, "seconds"),
        "cubics": plots.curves_figure(BezierCurve(torch.randn(4, 9, 5))),
        "lines": plots.curves_figure(BezierCurve(torch.randn(2, 9, 1, 2, 2))),
        "rounds": plots.rounds_figure(rounds()),
        "errors": plots.errors_figure(rounds()),
        "loss": plots.loss_figure("student: curves", losses),
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


def test_a_line_of_ours_has_the_marker_of_its_passes() -> None:
    lines = {str(line.get_label()): line for line in plots.rounds_figure(rounds()).axes[0].lines}
    assert lines["ours, 1 pass"].get_marker() == "*"
    assert lines["ours, 2 passes"].get_marker() == "P"
    assert lines["flow, Euler, 1 pass"].get_marker() not in ("*", "P")


def test_points_share_their_axes_and_limits() -> None:
    drawn = plots.scatter_figures([torch.randn(100, 5), 50 * torch.randn(100, 5)])
    one, two = (figure.axes[0] for figure in drawn)
    assert one.get_xlim() == two.get_xlim()
    assert one.get_ylim() == two.get_ylim()
    assert "principal axis (model units)" in one.get_xlabel()


@pytest.mark.parametrize("excess", [(0.0, 30.0), (-0.2, 0.4), (0.01, 0.02), (3.0, 4000.0)])
def test_an_axis_of_excess_tells_values_near_and_far_from_real_data_apart(
    excess: tuple[float, float],
) -> None:
    entries = [
        replace_entry(entry(k, 1), excess=value, error=0.0) for k, value in enumerate(excess)
    ]
    figure = plots.arena_figure(entries, "passes")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    ticks = axes.get_yticks()
    assert low < min(0.0, *excess)
    assert max(excess) < high
    assert 0.0 in ticks
    assert 3 <= len(ticks) <= 11
    places = axes.transData.transform([(1, tick) for tick in ticks])[:, 1]
    assert min(np.diff(places)) > 15  # pixels, more than a letter
    labels = [float(label.get_text()) for label in axes.get_yticklabels()]
    assert labels == pytest.approx(list(ticks))


def test_an_axis_of_a_narrow_range_has_ticks() -> None:
    figure = plots.loss_figure("one point", {"net": [(7, 0.31)]})
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    assert [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]

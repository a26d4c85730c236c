"""The arena as a tool: given teachers and what they cost, processes that share cells, failed cells
tried again, further judges, tables as files."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as changed

from arena_rows import a_row, benchmark, scored, timeless
from bezierdistill.arena import crew as crew_module
from bezierdistill.arena import given as given_module
from bezierdistill.arena.bench import Bench
from bezierdistill.arena.methods import METHODS, SCRATCH, TRAINED_ON
from bezierdistill.arena.runner import GIVEN, ArenaConfig, arena, choose_methods, compared
from bezierdistill.budget import Budget
from bezierdistill.cli import main
from bezierdistill.data import load_data
from bezierdistill.errors import UserError
from bezierdistill.models import load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import FlowMatching
from bezierdistill.records import (
    ArenaRow,
    ClassScores,
    Score,
    Settings,
    read_record,
    write_record,
    write_sealed,
)
from bezierdistill.reporting import export, names, print_arena
from bezierdistill.reporting.summary import gather
from bezierdistill.run import RUN, read_settings
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.settings import LoopConfig

NET, LOOP = NetworkConfig(width=8, depth=1), LoopConfig(accelerator="cpu", warmup=1)
BUDGET, BATCH = 6_000, 16
TWO_CORES = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(file, x=np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32) + 3)
    return str(file)


def small(data: str, out: Path, *methods: str, **settings: Any) -> ArenaConfig:
    defaults: dict[str, Any] = {"budget": BUDGET, "batch": BATCH, "samples": 64, "seeds": 1}
    return ArenaConfig(data, out, methods, **{**defaults, "network": NET, "loop": LOOP, **settings})


def own(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(f"def method(bench):\n    {body}\n")
    return str(folder / f"{name}.py")


@pytest.fixture(scope="module")
def teacher(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teachers") / "mine"
    train(TrainConfig(data, out, 30, BATCH, 7, network=NET, loop=LOOP))
    return out


def test_a_given_teacher_is_free_for_all_and_always_in_the_table(
    data: str, teacher: Path, tmp_path: Path
) -> None:
    config = small(
        data,
        tmp_path / "a",
        "rfd-1",
        "teacher-euler",
        track="given-teacher",
        teacher=teacher,
        weak=teacher,
    )
    rows = arena(config)
    assert all(row.error is None for row in rows), rows
    by_method = {row.method: row for row in rows}
    assert by_method.keys() == {"rfd-1", "teacher-euler", GIVEN}
    assert [row.passes for row in rows if row.method == "teacher-euler"] == [1, 2, 4]
    assert by_method[GIVEN].passes == 20
    assert by_method[GIVEN].spent == by_method["teacher-euler"].spent == 0
    # All is left for pairs and distillation: no share has gone to a teacher.
    assert BUDGET - 3 * BATCH < by_method["rfd-1"].spent <= BUDGET
    model = load_model(teacher)
    assert all(row.teachers == (model.digest, model.digest) for row in rows)
    settings = read_settings(config.out).settings
    assert settings["track"] == "given-teacher"
    assert settings["teacher"] == settings["weak"] == model.digest
    compared(config.out, rows)
    page = (config.out / "report.html").read_text()
    assert model.digest[:8] in page
    assert "network passes for distillation from a teacher that is given" in page
    moved = tmp_path / "moved"
    teacher.rename(moved)  # it is known by its digest
    try:
        assert arena(replace(config, teacher=moved, weak=moved)) == rows
    finally:
        moved.rename(teacher)


def test_the_given_teacher_is_the_one_that_is_sampled(
    data: str, teacher: Path, tmp_path: Path
) -> None:
    loaded, folders = load_data(data), (tmp_path / "own", tmp_path / "shared")
    bench = Bench(loaded, Budget(BUDGET, BATCH), 0, *folders, NET, LOOP, strong=teacher)
    assert bench.given
    model = bench.teacher(0.4)
    assert model.digest == load_model(teacher).digest
    assert bench.budget.spent == 0
    store = bench.pairs(model)
    assert store.folder.parent == bench.shared  # for the next method as well
    assert bench.budget.spent == store.manifest.passes > 0
    weak = bench.teacher(0.2, weak=True)  # none is given: it is trained, and paid for
    assert bench.budget.spent == store.manifest.passes + weak.spent
    assert weak.spent <= 0.2 * BUDGET


def test_without_one_a_teacher_of_ten_budgets_is_trained_once_a_seed(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, loss = list[int](), FlowMatching.loss

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return loss(*arguments)

    monkeypatch.setattr(FlowMatching, "loss", counted)
    config = small(data, tmp_path / "a", "teacher-euler", track="given-teacher", seeds=2)
    config = replace(config, budget=600)
    rows = arena(config)
    steps = 10 * 600 // (3 * BATCH)
    cards = {
        name: load_model(config.out / "shared" / name).card
        for name in ("strong-0", "strong-1", "weak-0", "weak-1")
    }
    assert [cards[f"strong-{seed}"].steps for seed in (0, 1)] == [steps, steps]
    assert [cards[f"weak-{seed}"].steps for seed in (0, 1)] == [int(0.08 * steps)] * 2
    assert (cards["strong-1"].seed, cards["weak-1"].seed) == (1, 2)
    assert len(calls) == sum(card.steps for card in cards.values())
    assert {row.teachers for row in rows if row.seed == 1} == {
        (cards["strong-1"].digest, cards["weak-1"].digest)
    }
    assert all(row.spent == 0 and row.error is None for row in rows)


def test_methods_from_scratch_are_not_entered_where_a_teacher_is_given() -> None:
    entered = choose_methods(("all",), "given-teacher").keys()
    assert entered == METHODS.keys() - SCRATCH
    assert METHODS.keys() >= SCRATCH
    assert choose_methods(("all",)).keys() == METHODS.keys()
    with pytest.raises(UserError, match="mean-flow learns without a teacher"):
        choose_methods(("rfd-1", "mean-flow"), "given-teacher")
    assert [*choose_methods(("rfd-1",), "given-teacher")] == ["rfd-1", GIVEN]
    assert METHODS.keys() >= TRAINED_ON.keys()
    assert [*choose_methods(("rfd-1", "all"))][:2] == ["rfd-1", next(iter(METHODS))]


def test_a_teacher_that_does_not_fit_is_refused_before_anything(
    data: str, teacher: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "three.npz", x=np.random.default_rng(0).standard_normal((99, 3)))
    shifted = np.random.default_rng(0).standard_normal((99, 2)) * 9
    np.savez(tmp_path / "other.npz", x=shifted)
    with np.load(data) as known:
        np.savez(tmp_path / "same.npz", x=known["x"], labels=np.arange(300) % 3)
    given: dict[str, Any] = {"track": "given-teacher", "teacher": teacher}
    wrong: dict[str, dict[str, Any]] = {
        "the data's have shape (3,)": {"data": str(tmp_path / "three.npz")},
        "units of its own": {"data": str(tmp_path / "other.npz")},
        "its conditions have 0 numbers, expected 3": {
            "data": str(tmp_path / "same.npz"),
            "conditional": True,
        },
        "no model at": {"teacher": tmp_path / "gone"},
    }
    for message, settings in wrong.items():
        config = small(data, tmp_path / "a", "rfd-1", **given)
        with pytest.raises(UserError) as refused:
            arena(replace(config, **settings))
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()
    for settings, message in (
        ({"teacher": teacher}, "expected --track given-teacher"),
        ({"weak": teacher, "track": "given-teacher"}, "expected --teacher as well"),
        ({"track": "both"}, "expected one of own-teacher, given-teacher"),
        ({"metric": ("pdf",)}, "expected FILE.py:function"),
        ({"jobs": 0}, "jobs is 0"),
    ):
        with pytest.raises(UserError, match=message):
            small(data, tmp_path / "a", "rfd-1", **settings)


def test_networks_are_built_like_the_given_teacher(data: str, tmp_path: Path) -> None:
    wide = NetworkConfig(width=12, depth=1)
    train(TrainConfig(data, tmp_path / "t", 3, BATCH, network=wide, loop=LOOP))
    config = small(data, tmp_path / "a", "x", track="given-teacher", teacher=tmp_path / "t")
    assert given_module.network_of(config) == wide
    assert given_module.network_of(small(data, tmp_path / "a", "x")) == NET


@TWO_CORES
def test_two_processes_give_the_rows_of_one(data: str, tmp_path: Path) -> None:
    """They share a teacher and its pairs, and one of the methods is a file of one's own."""
    mine = own(tmp_path, "mine", "print('spoken')\n    return {1: lambda x: x / 2}")
    methods = ("rf-2", "rfd-2", mine)
    one = arena(small(data, tmp_path / "one", *methods, seeds=2))
    two = arena(small(data, tmp_path / "two", *methods, seeds=2, jobs=2))
    assert all(row.error is None for row in one)
    assert timeless(two) == timeless(one)
    assert gather(tmp_path / "two") == two
    assert read_record(tmp_path / "two" / "arena.json", list[ArenaRow], "arena") == two
    assert not list((tmp_path / "two" / "shared").iterdir())
    assert arena(small(data, tmp_path / "two", *methods, seeds=2)) == two  # all are finished


@TWO_CORES
def test_a_process_that_dies_takes_its_cell_alone(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dies = own(tmp_path, "dies", "__import__('os')._exit(3)")
    bug = own(tmp_path, "bug", "return len(None)")
    fine = own(tmp_path, "fine", "return {1: lambda x: x}")
    config = small(data, tmp_path / "a", dies, bug, fine, jobs=2)
    rows = arena(config)
    assert [row.error for row in rows if row.method == "dies"] == ["its process ended with 3"]
    assert all("TypeError" in (row.error or "") for row in rows if row.method == "bug")
    assert [row.error for row in rows if row.method == "fine"] == [None]
    assert "dies, seed 0: its process ended with 3" in capsys.readouterr().err
    own(tmp_path, "dies", "return {1: lambda x: x}")
    own(tmp_path, "bug", "return {1: lambda x: x}")
    assert all(row.error is None for row in arena(replace(config, jobs=1)))


@TWO_CORES
def test_ctrl_c_stops_every_process(data: str, tmp_path: Path) -> None:
    body = "import os, time, pathlib\n    pathlib.Path(f'{here}', str(os.getpid())).touch()\n"
    (tmp_path / "pids").mkdir()
    body = body.format(here=tmp_path / "pids")
    for name in ("a", "b"):
        own(tmp_path, name, f"{body}    time.sleep(60)")
    words = ["--methods", f"{tmp_path}/a.py,{tmp_path}/b.py", "--seeds", "1", "--jobs", "2"]
    words += ["--data", data, "--out", str(tmp_path / "out"), "--samples", "64", "--quiet"]
    running = subprocess.Popen(
        [sys.executable, "-m", "bezierdistill.cli", "arena", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while len(list((tmp_path / "pids").iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    started = time.monotonic()
    running.send_signal(signal.SIGINT)
    error = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert time.monotonic() - started < 30  # they were not waited for
    assert error.count("\n") == 1
    assert "interrupted" in error
    pids = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_are_no_more_than_cores_and_have_no_objects(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jobs is 5000, expected 1 to"):
        arena(small(data, tmp_path / "a", "rf-2", jobs=5000))
    if (os.cpu_count() or 1) > 1:
        mine: Any = lambda bench: {1: lambda x: x}  # noqa: E731
        with pytest.raises(UserError, match="some settings are Python objects"):
            arena(small(data, tmp_path / "a", mine, jobs=2))


def test_a_process_reads_the_settings_that_it_is_sent(data: str, tmp_path: Path) -> None:
    config = small(data, tmp_path, "rf-2", "x.py", jobs=2, metric=("m.py",), extractor=("random",))
    told = json.loads(json.dumps(crew_module.to_json(config)))
    assert crew_module._settings(told) == config


def test_failed_cells_are_tried_again(data: str, tmp_path: Path) -> None:
    raises = "raise __import__('bezierdistill').errors.UserError('it diverged')"
    file, fine = own(tmp_path, "mine", raises), own(tmp_path, "fine", "return {1: lambda x: x}")
    config = small(data, tmp_path / "a", file, fine)
    rows = arena(config)
    assert [row.error for row in rows if row.method == "mine"] == ["it diverged"]
    own(tmp_path, "mine", "return {1: lambda x: x}")
    again = arena(config)
    assert all(row.error is None for row in again)
    assert [row for row in again if row.method == "fine"] == [rows[0]]  # its clock too


def test_further_judges_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that gives real samples of the labels asked for has the classifier's own accuracy;
    one that ignores labels has chance."""
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "cache"))
    rng, labels = np.random.default_rng(0), np.arange(600) % 3
    images = (rng.integers(0, 60, (600, 6, 6)) + 90 * (labels == 2)[:, None, None]).astype(np.uint8)
    images[:, :, :3] += (90 * (labels == 0)).astype(np.uint8)[:, None, None]
    np.savez(tmp_path / "images.npz", x=images, labels=labels)
    data = str(tmp_path / "images.npz")

    def ideal(bench: Bench) -> Mapping[int, Any]:
        real = bench.data.real(300, 9, "train")
        known = bench.data.conditions(300, 9, "train")
        assert known is not None
        by_class = [real[known.argmax(1) == k] for k in range(3)]

        def sampler(x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            picks = zip(cond.argmax(1), x, strict=True)
            return torch.stack(
                [by_class[k][int(1e3 * row.sum()) % len(by_class[k])] for k, row in picks]
            )

        return {1: sampler, 2: lambda x, cond: sampler(x, cond.roll(1, 1))}

    rows = arena(small(data, tmp_path / "a", ideal, conditional=True))  # pyright: ignore
    right, wrong = (row.judges["classifier"].classes for row in rows)
    assert isinstance(right, ClassScores)
    assert isinstance(wrong, ClassScores)
    assert right.accuracy is not None
    assert wrong.accuracy is not None
    assert right.accuracy > 0.9 > 0.1 > wrong.accuracy
    assert rows[0].judges["classifier"].kernel is not None
    found = export.figures(rows[0])
    assert found["classifier FD"] == rows[0].judges["classifier"].frechet.value
    assert found["classifier accuracy"] == right.accuracy
    compared(tmp_path / "a", rows)
    assert "in the features of classifier" in (tmp_path / "a" / "report.html").read_text()
    plain = arena(small(data, tmp_path / "b", ideal, conditional=True, extractor=("random",)))  # pyright: ignore
    assert all(row.judges == {} for row in plain)


def test_every_seed_is_judged_by_other_real_samples(data: str, tmp_path: Path) -> None:
    same = own(
        tmp_path,
        "same",
        "return {1: lambda x: 0 * x + __import__('torch').arange(64.)[:, None] / 32 - 1}",
    )
    first, second = arena(small(data, tmp_path / "a", same, seeds=2))
    assert first.judged.energy.value != second.judged.energy.value
    assert first.judged.protocol is not None
    assert second.judged.protocol is not None
    assert (first.judged.protocol.seed, second.judged.protocol.seed) == (0, 1)


CODE = """
import math, torch

class Net(torch.nn.Module):
    def __init__(self, size, more):
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(size + 2 + more, 16), torch.nn.Linear(16, size)

    def forward(self, x, s, t, cond=None):
        times = [time.expand(len(x))[:, None] for time in (s, t)]
        parts = [x.flatten(1), *times, *([] if cond is None else [cond])]
        return self.leave(torch.relu(self.enter(torch.cat(parts, 1)))).view_as(x)

def network(shape, condition_size):
    return Net(math.prod(shape), condition_size)
"""
TABLE = [
    changed(a_row("bezier", seed, 1, 1.5 + seed), trained_on=("energy",)) for seed in (0, 1)
] + [a_row("a_b&c", 0, 1, 3.0), a_row("a_b&c", 0, 2, 2.0), ArenaRow(method="d", seed=0, error="x")]


NAMES = [*export.figures(TABLE[0])]


def test_the_table_as_csv(tmp_path: Path) -> None:
    export.write_csv(tmp_path / "t.csv", TABLE, NAMES)
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["passes"], row["rank"]) for row in rows] == [
        ("bezier", "1", "1"),
        ("a_b&c", "1", "2"),
        ("a_b&c", "2", "1"),
    ]
    ours, other, _ = rows
    assert float(ours["frechet"]) == pytest.approx(1.0)
    assert float(ours["frechet_error"]) == pytest.approx(0.5)  # of 0.5 and 1.5
    assert float(ours["precision"]) == 0.5
    assert not [name for name in ours if " " in name]
    assert (ours["trained_on"], other["trained_on"]) == ("energy", "")
    assert (other["frechet"], other["frechet_error"]) == ("2.0", "")
    assert not any(cell is None for row in rows for cell in row.values())


def test_the_table_as_latex(tmp_path: Path) -> None:
    export.write_latex(tmp_path / "t.tex", TABLE, NAMES, "10 % of it")
    text = (tmp_path / "t.tex").read_text()
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    columns = {line.replace("\\&", "").count("&") for line in lines}
    preamble = text.split("tabular}{")[1].split("}")[0]
    assert columns == {len(preamble) - 1}
    assert text.count("\\midrule") == 2
    assert "% \\caption{10 \\% of it}" in text
    assert "1 & Bezier distillation (ours) & $\\mathbf{1.00} \\pm 0.50$" in text
    assert "$\\downarrow$ & precision $\\uparrow$" in lines[0]
    assert "a\\_b\\&c & $2.00$" in text
    assert text.count("$1.00 \\pm 0.50^{*}$") == 1  # energy alone
    assert "sliced W2" in lines[0]
    assert f"$^{{*}}$ {export.NOTE}" in text
    export.write_latex(tmp_path / "t.tex", TABLE, ["recall"])
    assert "^{*}" not in (tmp_path / "t.tex").read_text()  # no figure there is marked
    assert export.escaped("~^\\{#") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}\{\#"


def test_a_method_of_ones_own_says_what_it_trains_on(data: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from bezierdistill.arena.bench import trains_on\n"
        "@trains_on('mmd')\ndef method(bench):\n    return {1: lambda x: x}\n"
    )
    silent = own(tmp_path, "silent", "return {1: lambda x: x}")
    rows = arena(small(data, tmp_path / "a", str(tmp_path / "mine.py"), silent))
    assert [(row.method, row.trained_on) for row in rows] == [("mine", ("mmd",)), ("silent", ())]


def test_claims_of_images_by_hand() -> None:
    """Ours is behind by random features, ahead by the classifier's, and trains on SqueezeNet's."""

    def line(method: str, passes: int, excess: float, by_class: float, recall: float) -> ArenaRow:
        row = a_row(method, 0, passes, 1 + excess)
        judges = {"classifier": scored(by_class / 2), "squeezenet": scored(1.0)}
        assert row.scores is not None
        scores = changed(row.scores, recall=Score(value=recall, floor=1))
        trained_on = ("squeezenet",) if method == "bezier_images" else ()
        return changed(row, scores=scores, judges=judges, trained_on=trained_on)

    images = benchmark("images")
    rows = [line("bezier_images", 1, 2.0, 6.0, 0.9), line("rfd-1", 1, 1.5, 10.0, 0.5)]
    rows += [line("rfd-2", 1, 3.0, 12.0, 0.5), line("bezier-teacher", 20, 1.0, 5.9, 0.9)]
    told = images.claims(export.lines(rows), "own-teacher")
    assert "frechet 2.00, behind (rfd-1 1.50); classifier FD 6.00, first (rfd-1 10.00)" in told[0]
    assert "squeezenet FD 2.00*, no evidence. First by each judge: does NOT hold." in told[0]
    assert told[1].endswith("0.60 (wanted: 0.6 or less): holds.")
    assert told[2].endswith("recall 0.90 against 0.50 (wanted: higher): holds.")
    assert told[3].endswith("6.00 against 5.90: does NOT hold.")
    given = images.claims(export.lines(rows[:3]), "given-teacher")
    assert given[1].endswith("0.60 (wanted: 0.5 or less): does NOT hold.")
    assert "| bezier_images | 1 | 2 |" in "\n".join(images.table(export.lines(rows)))


def test_tables_mark_what_a_method_trains_on(capsys: pytest.CaptureFixture[str]) -> None:
    print_arena(TABLE)
    text = capsys.readouterr().out
    assert text.count("1.00 ± 0.50 (1) *") == 1  # of three distances, energy alone
    assert " ".join(text.split()).count(f"* {export.NOTE}") == 1
    print_arena([changed(row, trained_on=()) for row in TABLE])
    assert "*" not in capsys.readouterr().out


def test_the_table_as_markdown_and_its_best(tmp_path: Path) -> None:
    rows = [changed(a_row("x", 0, 1, 2.0), trained_on=("fine",)), a_row("rfd-1", 0, 1, 3.0)]
    rows = [*rows, a_row("dmd", 0, 1, 4.0), a_row("dmd", 0, 2, 4.0)]
    export.write_markdown(tmp_path / "t.md", rows, ["frechet", "fine", "precision"], "Told.")
    assert (tmp_path / "t.md").read_text().splitlines() == [
        "Told.",
        "",
        "| passes | method | Fréchet ↓ | fine ↓ | precision ↑ |",
        "|--:|:--|--:|--:|--:|",
        "| 1 | x | **1.00** | 1.00 \\* | **0.50** |",
        "| 1 | 1-rectified flow, distilled | 2.00 | **2.00** | **0.50** |",
        "| 1 | Distribution matching (DMD2) | 3.00 | 3.00 | **0.50** |",
        "| 2 | Distribution matching (DMD2) | 3.00 | 3.00 | 0.50 |",  # the best of one is none
        "",
        f"\\* {export.NOTE}",
    ]


def test_every_method_has_a_name_in_full() -> None:
    assert list(names.NAMES) == list(METHODS)
    titles = [name.title for name in names.NAMES.values()]
    assert len(set(titles)) == len(titles)
    assert names.title("my_method") == "my_method"


def test_the_report_writes_tables_and_figures(data: str, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def method(bench):\n    return {1: lambda x: x}\n"
        "def shift(a, b):\n    return float((a.mean(0) - b.mean(0)).square().mean())\n"
    )
    out, mine = tmp_path / "a", tmp_path / "mine.py"
    words = ["--data", data, "--out", str(out), "--methods", f"teacher-euler,{mine}"]
    words += ["--samples", "64", "--seeds", "1", "--loop.accelerator", "cpu"]
    words += ["--metric", f"{mine}:shift"]
    assert main(["arena", *words, "--track", "given-teacher", "--teacher", str(teacher)]) == 0
    report = ["report", "--run", str(out), "--to"]
    assert main([*report, "csv,latex,markdown,pdf,svg"]) == 0
    with open(out / "arena.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["passes"] for row in rows] == ["1", "1", "2", "4", "20"]
    cells = read_record(out / "arena.json", list[ArenaRow], "arena")
    by_hand = {f"{row.method} {row.passes}": row.metrics["shift"].excess for row in cells}
    assert {f"{row['method']} {row['passes']}": float(row["shift"]) for row in rows} == by_hand
    assert "Metrics of your own" in (out / "report.html").read_text()
    assert "\\bottomrule" in (out / "arena.tex").read_text()
    assert (out / "arena.pdf").read_bytes().startswith(b"%PDF")
    drawn = (out / "arena.svg").read_bytes()
    assert b"Teacher, 20 passes" in drawn  # as letters, in a comment
    chosen = ["--methods", "teacher-euler", "--columns", "precision,shift"]
    assert main([*report, "csv,svg", *chosen]) == 0
    with open(out / "arena.csv", newline="") as file:
        (first, *_) = rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"teacher-euler"}
    assert [*first][5:9] == ["precision", "precision_error", "shift", "shift_error"]
    assert (out / "arena.svg").read_bytes() != drawn
    assert main([*report, "svg"]) == 0
    assert (out / "arena.svg").read_bytes() == drawn  # the same bytes from the same figures


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--to markdwon", "to is markdwon, did you mean markdown?: expected some of csv,"),
        ("--to csv --methods bezir", "methods has 'bezir', which this arena has not, did you mean"),
        ("--to csv --columns reacll", "columns has 'reacll', which this arena has not, did you"),
        ("--columns recall", "those of the files of --to, which is none"),
    ],
)
def test_what_a_report_cannot_write(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sealed(tmp_path / RUN, Settings(verb="arena", settings={"data": "moons"}))
    write_record(tmp_path / "cells" / "bezier-0.json", [a_row("bezier", 0, 1, 2.0)])
    before = sorted(tmp_path.rglob("*"))
    assert main(["report", "--run", str(tmp_path), *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "none").mkdir()
    assert main(["report", "--run", str(tmp_path / "none"), "--to", "csv"]) == 2
    assert "holds no arena" in capsys.readouterr().err


def test_the_layout_of_arena_json_is_that_of_the_documentation(tmp_path: Path) -> None:
    """What docs/extend.md says pandas makes of it."""
    pandas = pytest.importorskip("pandas")
    rows = [changed(a_row("x", 0, 1, 2.0), judges={"classifier": scored(3.0)})]
    rows += [ArenaRow(method="y", seed=0, error="boom", traceback="Traceback ...")]
    write_record(tmp_path / "arena.json", rows)
    assert pandas.read_json(tmp_path / "arena.json").method.tolist() == ["x", "y"]
    found = pandas.json_normalize(json.loads((tmp_path / "arena.json").read_text()))
    docs = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
    table = docs.partition("| column | what |")[2].partition("\n\n")[0]
    told = re.findall(r"`([\w.]+)`", " ".join(line.split("|")[1] for line in table.split("\n")[2:]))
    assert len(told) > 12
    assert set(told) <= set(found.columns)
    assert float(found["scores.frechet.value"][0] / found["scores.frechet.floor"][0]) == 2.0
    assert float(found["judges.classifier.frechet.value"][0]) == 6.0


def test_a_metric_that_fails_is_told_before_anything_is_trained(data: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def metric(a, b):\n    return 'much'\n")
    config = small(data, tmp_path / "a", "rf-2", metric=(str(tmp_path / "mine.py"),))
    with pytest.raises(UserError, match="metric metric gave much, expected a finite number"):
        arena(config)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match=r"metric is 'fid', expected FILE\.py:function"):
        small(data, tmp_path / "a", "rf-2", metric=("fid",))


def test_a_network_of_ones_own_is_every_teacher_and_student(data: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    file = str(tmp_path / "mine.py")
    network = NetworkConfig(file=f"{file}:network")
    methods = ("bezier", "rfd-1", "shortcut", "acceleration", "on-policy")
    config = small(data, tmp_path / "a", *methods, network=network, keep_models=True)
    rows = {row.method: row for row in arena(config)}
    assert {name for name, row in rows.items() if row.error is not None} == {"on-policy"}
    assert "gives one velocity" in str(rows["on-policy"].error)
    card = next((tmp_path / "a" / "models").rglob("model.json"))
    assert load_model(card.parent).sample(3).shape[0] == 3  # settings of this process name it
    code = (
        "import sys; from pathlib import Path; from bezierdistill.models.folder import load_model\n"
        "try: load_model(Path(sys.argv[1]))\nexcept ValueError as error: print(error)"
    )
    words = [sys.executable, "-c", code, card.parent]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "which only an arena with the same --network.file runs" in run.stdout  # no card's code
    assert main(["report", "--run", str(tmp_path / "a")]) == 0
    with pytest.raises(UserError, match=r"expected FILE\.py:function"):
        small(data, tmp_path / "b", "rf-2", network=NetworkConfig(file="mlp"))

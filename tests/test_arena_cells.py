"""Cells of the arena: cut off anywhere and continued, failed in every way, cleaned up; and the
tables made of their rows."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arena_rows import a_row, benchmark, timeless
from bezierdistill.arena import bench as bench_module
from bezierdistill.arena.methods import METHODS, OURS
from bezierdistill.arena.runner import ArenaConfig, arena, choose_methods
from bezierdistill.cli import main, parse
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import FlowMatching
from bezierdistill.records import (
    ArenaRow,
    Machine,
    Made,
    Settings,
    read_record,
    write_record,
    write_sealed,
)
from bezierdistill.reporting.summary import gather
from bezierdistill.run import MADE, RUN, command
from bezierdistill.training.settings import LoopConfig

CUT = ("rfd-2", "rf-2")  # they share a teacher and its pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(file, x=np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32))
    return str(file)


def small(data: str, out: Path, methods: Sequence[str], **settings: Any) -> ArenaConfig:
    defaults: dict[str, Any] = {"budget": 12_000, "batch": 32, "samples": 64, "seeds": 1}
    loop = LoopConfig(accelerator="cpu", save_every=10)
    return ArenaConfig(
        data,
        out,
        tuple(methods),
        **{**defaults, "network": NetworkConfig(width=16, depth=2), "loop": loop, **settings},
    )


def own(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(f"def method(bench):\n    {body}\n")
    return str(folder / f"{name}.py")


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> list[ArenaRow]:
    """Rows of an arena that nothing has disturbed."""
    return timeless(arena(small(data, tmp_path_factory.mktemp("whole") / "a", CUT)))


def cut_at(call: int, true: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
    """The function, which Ctrl-C stops at one of its calls."""
    calls = iter(range(1, 10_000))

    def function(*arguments: Any) -> Any:
        made = true(*arguments) if (last := next(calls) == call) and after else None
        if last:
            raise KeyboardInterrupt
        return true(*arguments) if made is None else made

    return function


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        (FlowMatching, "loss", 25),  # within the teacher, after its second saved state
        (bench_module, "simulate", 1),  # the pairs are whole, their clock is not written
        (bench_module, "distill", 1),  # within the first cell
        (
            bench_module,
            "distill",
            3,
        ),  # within the second cell, which uses the first one's teacher and pairs
    ],
)
def test_cut_off_anywhere_it_gives_the_same_rows(
    where: Any,
    name: str,
    call: int,
    data: str,
    tmp_path: Path,
    whole: list[ArenaRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small(data, tmp_path / "a", CUT)
    with monkeypatch.context() as patch:
        patch.setattr(
            where, name, cut_at(call, getattr(where, name), after=where is not FlowMatching)
        )
        with pytest.raises(KeyboardInterrupt):
            arena(config)
    assert len(gather(config.out)) == (1 if call == 3 else 0)
    assert timeless(arena(config)) == whole


def test_methods_may_be_added_when_the_removal_of_shared_models_was_cut_off(
    data: str, tmp_path: Path, whole: list[ArenaRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = shutil.rmtree

    def half(folder: Path, **more: Any) -> None:
        if folder.name == ".0.gone" and folder.exists():
            next(folder.rglob("model.json")).unlink()
            raise KeyboardInterrupt
        true(folder, **more)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            arena(small(data, tmp_path / "a", ["rf-2"]))
    assert timeless(arena(small(data, tmp_path / "a", CUT))) == whole
    assert not list((tmp_path / "a" / "shared").iterdir())


def test_ctrl_c_is_one_line_and_what_is_finished_stays(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = own(tmp_path, "good", "return {1: lambda x: x}")
    bad = own(tmp_path, "stop", "raise KeyboardInterrupt")
    command = [
        "arena",
        "--data",
        data,
        "--out",
        str(tmp_path / "a"),
        "--methods",
        f"{good},{bad}",
        "--samples",
        "64",
    ]
    assert main(command) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "interrupted" in error
    assert "--resume" not in error  # which this verb does not have
    rows = read_record(tmp_path / "a" / "arena.json", list[ArenaRow], "arena")
    assert [row.method for row in rows] == ["good"]


ENDS = """import os, signal
from bezierdistill.objectives import FlowMatching

class Ends(FlowMatching):
    def loss(self, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(*given)

def method(bench):
    bench.fit(bench.build(), Ends(), spend=960)
    return {1: lambda x: x}
"""


def test_a_signal_ends_the_arena_and_is_no_failed_cell(data: str, tmp_path: Path) -> None:
    good = own(tmp_path, "good", "return {1: lambda x: x}")
    (tmp_path / "ends.py").write_text(ENDS)
    methods = [good, str(tmp_path / "ends.py"), "rf-2"]
    with pytest.raises(SystemExit) as ended:
        arena(small(data, tmp_path / "a", methods))
    assert ended.value.code == 143
    assert [row.method for row in gather(tmp_path / "a")] == ["good"]


def test_seeds_and_methods_may_be_added(data: str, tmp_path: Path, whole: list[ArenaRow]) -> None:
    first = arena(small(data, tmp_path / "a", ["rf-2"]))
    assert timeless(first) == [row for row in whole if row.method == "rf-2"]
    more = arena(small(data, tmp_path / "a", CUT, seeds=2))
    assert [
        row for row in more if row.method == "rf-2" and row.seed == 0
    ] == first  # their clocks too: they were not run again
    assert [row for row in timeless(more) if row.seed == 0] == whole
    assert {row.seed for row in more} == {0, 1}
    assert {row.judged.frechet.value for row in more if row.seed == 0}.isdisjoint(
        row.judged.frechet.value for row in more if row.seed == 1
    )


BROKEN = {
    "diverged": (
        "raise __import__('bezierdistill').errors.UserError('loss of student is not finite')",
        "loss of student is not finite",
    ),
    "overspent": (
        "bench.budget.charge(12_001)\n    return {1: lambda x: x}",
        "12,001 network passes were spent, the budget is 12,000",
    ),
    "nan": ("return {1: lambda x: x, 2: lambda x: 0 * x / 0}", "NaN or infinite"),
    "far": ("return {1: lambda x: 1e30 * x}", "a metric is not finite: it has diverged"),
    "shape": (
        "return {1: lambda x: x[:, :2]}",
        r"made samples of shape (64, 2), expected (64, 3) as its noise",
    ),
    "nothing": ("pass", "returned NoneType, expected {passes: sampler}"),
    "none": ("return {}", "expected {passes: sampler} with one sampler or more"),
}


def test_a_cell_that_fails_is_one_row_and_stops_no_other(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [own(tmp_path, name, body) for name, (body, _) in BROKEN.items()]
    fine = own(
        tmp_path,
        "fine",
        "bench.fit(bench.build(), __import__('bezierdistill.objectives').objectives.FlowMatching(),"
        " spend=96)\n    return {1: lambda x: x}",
    )
    rows = {row.method: row for row in arena(small(data, tmp_path / "a", [*files, fine]))}
    assert len(rows) == len(gather(tmp_path / "a")) == len(BROKEN) + 1
    for name, (_, message) in BROKEN.items():
        assert rows[name].scores is None
        assert message in (rows[name].error or "")
        assert "\n" not in (rows[name].error or "")
    assert rows["fine"].spent == 96
    assert all(str(row.traceback).startswith("Traceback") for row in rows.values() if row.error)
    assert capsys.readouterr().err.count("\n") == len(BROKEN)
    assert not list((tmp_path / "a").rglob("*.safetensors"))  # only figures stay


def test_a_report_of_failures_alone_names_them(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = own(
        tmp_path,
        "mine",
        "from bezierdistill.errors import UserError; raise UserError('it was <too> much')",
    )
    assert (
        main(
            [
                "arena",
                "--data",
                data,
                "--out",
                str(tmp_path / "a"),
                "--methods",
                file,
                "--samples",
                "64",
                "--seeds",
                "2",
            ]
        )
        == 1
    )
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == [f"mine, seed {k}: it was <too> much" for k in (0, 1)]
    assert "2 of 2 cells failed (mine, seed 0; mine, seed 1): tracebacks are in" in last
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Failed: mine, seed 0: it was &lt;too&gt; much" in page


def test_two_methods_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = own(tmp_path, "mine", "pass"), own(tmp_path / "other", "mine", "pass")
    with pytest.raises(ValueError, match="two methods are called mine"):
        choose_methods(files)
    (tmp_path / "three.py").write_text("method = 3")
    with pytest.raises(ValueError, match="no function method, which takes a bench"):
        choose_methods((str(tmp_path / "three.py"),))
    (tmp_path / "half.py").write_text("def method(bench:")
    with pytest.raises(SyntaxError) as failed:
        choose_methods((str(tmp_path / "half.py"),))
    assert "a file of your own" in failed.value.__notes__[0]
    assert list(choose_methods(("all",))) == list(METHODS)
    assert list(choose_methods(("rf-2", "bezier"))) == ["rf-2", "bezier"]


def test_ours_is_one_method_and_models_stay_if_asked(data: str, tmp_path: Path) -> None:
    assert [name for name in METHODS if name == OURS] == ["bezier"]
    arena(small(data, tmp_path / "a", ["rfd-1"], keep_models=True))
    kept = sorted(
        file.parent.relative_to(tmp_path / "a").parts[0]
        for file in (tmp_path / "a").rglob("model.json")
    )
    assert kept == ["models", "shared"]


def test_peak_memory_is_that_of_the_cell(data: str, tmp_path: Path) -> None:
    heavy = own(
        tmp_path, "heavy", "import torch; torch.ones(30_000_000).sum()\n    return {1: lambda x: x}"
    )
    light = own(tmp_path, "light", "return {1: lambda x: x}")
    rows = {row.method: row for row in arena(small(data, tmp_path / "a", [heavy, light]))}
    if Path("/proc/self/clear_refs").exists():
        assert rows["heavy"].memory > rows["light"].memory + 90  # 120 MB of numbers
    assert rows["heavy"].seconds > 0


def sizes(line: str) -> tuple[int, ...]:
    """Budget, batch, samples, width and depth that a command line asks for."""
    config = parse(f"arena --data moons --out x {line}".split()).config
    again = command("arena", config).split()[1:]
    assert parse(again).config == config  # as made.json and README tell it
    network = config.network
    return (config.budget, config.batch, config.samples, network.width, network.depth)


def test_fast_changes_the_sizes_that_are_not_given() -> None:
    assert sizes("") == (2_000_000, 256, 4096, 192, 3)
    assert sizes("--fast") == (400_000, 64, 512, 32, 2)
    assert sizes("--fast --budget 9000 --samples 64") == (9000, 64, 64, 32, 2)
    usual = "--budget 2000000 --batch 256 --samples 4096 --network.width 192"
    assert sizes(f"--fast {usual}") == (2_000_000, 256, 4096, 192, 2)  # given, though as by default
    fast = ArenaConfig("moons", Path("x"), fast=True, batch=32, network=NetworkConfig(width=48))
    assert (fast.budget, fast.batch, fast.network) == (400_000, 32, NetworkConfig(width=48))
    assert type(ArenaConfig("moons", Path("x")).budget) is int
    assert parse(["demo", "--out", "x", "--fast"]).config.budget == 400_000
    assert parse(["demo", "--out", "x", "--fast", "--budget", "4000000"]).config.budget == 4_000_000


def fill(
    out: Path, tasks: dict[str, float], methods: dict[str, float], failed: tuple[str, ...] = ()
) -> None:
    """A folder of the benchmark: a method's excess is its own number times the task's, 20 % off for
    the two seeds."""
    network = {"kind": "mlp", "depth": 2, "width": 3}
    settings = {"budget": 5_000, "samples": 64, "batch": 8, "network": network}
    out = out / "own-teacher"
    machine = Machine(
        system="s", processor="x", cores=2, threads=1, device="cpu", versions={"torch": "2"}
    )
    made = Made(verb="arena", commands=(), machine=machine, started="now")
    for task, scale in tasks.items():
        (out / task).mkdir(parents=True)
        write_sealed(out / task / RUN, Settings(verb="arena", settings=settings))
        write_sealed(out / task / MADE, made)
        for method, excess in methods.items():
            for seed in (0, 1):
                own = excess * scale * (0.8 + 0.4 * seed)
                passes = (20,) if method == "bezier-teacher" else (1, 2)
                rows = [
                    a_row(method, seed, k, 1 + own / (2 if k == 2 else 1), seconds=4.0)
                    for k in passes
                ]
                if method in failed:
                    rows = [ArenaRow(method=method, seed=seed, error="too far")]
                write_record(out / task / "cells" / f"{method}-{seed}.json", rows)


FULL = {
    "rfd-1-two": 1.0,
    "bezier": 0.5,
    "bezier-half": 0.8,
    "bezier-teacher": 6.0,
    "rfd-1": 1.0,
    "rfd-2": 2.0,
    "rfd-3": 3.0,
    "dmd": 0.6,
    "mean-flow": 9.0,
}
ABLATED = {
    "bezier-lines": 1.0,
    "bezier-plain": 0.9,
    "bezier-one-teacher": 0.25,
    "bezier-squared": 0.5,
    "bezier-unaligned": 0.75,
    "bezier-energy": 0.6,
    "bezier-hidden": 0.65,
    "bezier-stored": 0.55,
    "bezier-jumps": 0.6,
    "on-policy": 0.9,
    **{f"bezier-degree-{degree}": 0.5 for degree in (2, 3, 5, 6)},
}


def test_results_of_the_benchmark_by_hand(tmp_path: Path) -> None:
    fill(tmp_path, {"digits": 1.0, "manifold": 3.0}, FULL | ABLATED, failed=("mean-flow",))
    text = benchmark("arena").write_results(tmp_path)
    assert (tmp_path / "results.md").read_text() == text
    assert (
        "| method | manifold | digits | mean, coarse | mean, middle | mean, fine | mean, fidelity |"
        " mean, sliced Wasserstein | mean, energy | precision | recall |" in text
    )
    # rfd-1: 1.0 (0.8 and 1.2) on digits, 3.0 on manifold; the standard error is half the difference
    # of two seeds
    means = "2.00 | 2.00 | 2.00 | 3.00 | 2.00 | 2.00"  # fidelity is over its floor
    assert f"| rfd-1 | 3.00 ± 0.60 | 1.00 ± 0.20 | {means} | 0.50 | 0.25 |" in text
    means = "1.00 | 1.00 | 1.00 | 2.00 | 1.00 | 1.00*"
    assert f"| **bezier** | 1.50 ± 0.30 | 0.50 ± 0.10 | {means} | 0.50 | 0.25 |" in text
    one_pass = text.split("### 1 pass")[1].split("###")[0]
    assert [line.split("|")[1].strip() for line in one_pass.splitlines()[4:] if line] == [
        "**bezier**",
        "dmd",
        "rfd-1",
        "rfd-1-two",
        "rfd-2",
        "rfd-3",
    ]
    assert "1.00 / 2.00 = 0.50 (wanted: 0.65 or less): holds. By metric: coarse 0.50," in text
    assert "fidelity 0.67, sliced Wasserstein 0.50, energy 0.50*." in text
    assert "manifold: 1.50, first (next: dmd 1.80); digits: 0.50, first (next: dmd 0.60)." in text
    assert "ours has 1.60 at one pass, rectified-flow distillation at the full one 2.00" in text
    assert "2 passes, the mean over tasks: coarse 0.50, first (next: dmd 0.60)" in text
    assert "on 2 of 2 tasks (manifold 1.50 against 18.00; digits 0.50 against 6.00): holds." in text
    assert "Given" not in text
    assert "The teacher is given" not in text  # that track was not run
    assert "| no curves: straight lines | 2 | 2.00 | 2.00 | 1.50 | 1.00 | 2.00 | 1.33 | 4 |" in text
    assert "| no second teacher | 2 | 0.50 | 0.50 | 0.75 | 0.25 | 0.50 | 0.83 | 4 |" in text
    assert all(f"| {name} |" in text for name in benchmark("arena").ABLATIONS.values())
    assert {
        OURS,
        "bezier-half",
        "bezier-teacher",
        *benchmark("arena").DISTILLED[1],
        *benchmark("arena").DISTILLED[2],
        *benchmark("arena").ABLATIONS,
    } <= METHODS.keys()
    assert "- manifold: mean-flow, seed 1: too far" in text
    named = {name for better, worse, *_ in benchmark("arena").ORDERINGS for name in (better, worse)}
    assert named <= METHODS.keys()
    assert "| dmd better than" not in text  # one of the two was not run


def test_results_of_the_benchmark_say_what_does_not_hold(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"digits": 1.0},
        FULL
        | ABLATED
        | {
            "bezier": 0.7,
            "bezier-half": 1.5,
            "bezier-teacher": 0.6,
            "mean-flow": 0.2,
        },
    )
    text = benchmark("arena").write_results(tmp_path)
    assert "0.70 / 1.00 = 0.70 (wanted: 0.65 or less): does NOT hold." in text
    assert "digits: 0.70, behind (mean-flow 0.20, dmd 0.60) [not by coarse," in text
    assert text.count("On every task: does NOT hold.") == 2
    assert (
        "ours has 1.50 at one pass, rectified-flow distillation at the full one 1.00: does" in text
    )
    assert "on 0 of 1 tasks (digits 0.70 against 0.60 [not by coarse, middle, fine," in text


def test_results_of_the_benchmark_within_an_error_of_the_first(tmp_path: Path) -> None:
    fill(
        tmp_path, {"digits": 1.0}, FULL | ABLATED | {"bezier": 0.65}
    )  # the standard error is a fifth of it: 0.13
    assert "digits: 0.65, within one standard error of the first (dmd 0.60)." in benchmark(
        "arena"
    ).write_results(tmp_path)


@pytest.mark.parametrize(
    ("left_out", "without"),
    [
        ("bezier", "1 pass: not judged, for lack of figures."),
        ("bezier-lines", ""),
        ("bezier-half", ""),
        ("rfd-3", ""),
        ("bezier-teacher", ""),
        ("dmd", ""),
    ],
)
def test_results_of_the_benchmark_without_a_method(
    left_out: str, without: str, tmp_path: Path
) -> None:
    kept = {name: excess for name, excess in (FULL | ABLATED).items() if name != left_out}
    fill(tmp_path, {"digits": 1.0}, kept)
    text = benchmark("arena").write_results(tmp_path)
    assert "nan" not in text
    assert without in text
    assert ("wanted: 0.65" in text.split("2 passes, ours")[0]) == (
        left_out not in ("bezier", "rfd-3")
    )
    assert ("no worse than bezier-teacher" in text) == (
        left_out not in ("bezier", "bezier-teacher")
    )
    assert ("At half the budget" in text) == (left_out not in ("bezier", "bezier-half", "rfd-3"))
    assert ("| no curves" in text) == (left_out not in ("bezier", "bezier-lines"))

"""The commands as a user types them: the whole chain, and one line with exit code 2 for every
mistake."""

from __future__ import annotations

import io
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from bezierdistill import app
from bezierdistill.cli import main
from bezierdistill.models import load_model
from bezierdistill.store import CurveStore

TINY = ["--steps", "6", "--batch", "16", "--loop.accelerator", "cpu"]
NET = ["--network.width", "16", "--network.depth", "2"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers on a .npz of 12 numbers, their curves, and a two-pass student with alignment."""
    folder = tmp_path_factory.mktemp("chain")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=(5 + 3 * rng.standard_normal((600, 12))).astype(np.float32))
    for name, seed in (("strong", 0), ("weak", 1)):
        assert (
            run(
                "train",
                "--data",
                folder / "data.npz",
                "--out",
                folder / name,
                "--seed",
                seed,
                *TINY,
                *NET,
            )
            == 0
        )
    teachers = ["--teachers", folder / "strong", folder / "weak", "--weights", "1.25,-0.25"]
    assert (
        run(
            "simulate",
            *teachers,
            "--degree",
            3,
            "--guides",
            "fit",
            "--count",
            100,
            "--out",
            folder / "curves",
        )
        == 0
    )
    distill = [
        "distill",
        "--curves",
        folder / "curves",
        "--objective",
        "map",
        "--passes",
        2,
        "--align",
        2,
        *TINY,
    ]
    assert run(*distill, "--data", folder / "data.npz", "--out", folder / "student") == 0
    return folder


def test_chain_passes_add_up(chain: Path) -> None:
    teacher = 6 * 16 * 3
    assert load_model(chain / "strong").spent == teacher
    assert CurveStore.open(chain / "curves").manifest["passes"] == 100 * 8 * 2 * 2
    passes = load_model(chain / "student").card["passes"]
    regression, knots = 6 * 16 * 3, 100 // 8 * 11 * 10 // 2
    alignment = 2 * 16 * (3 + (1 + 3))
    expected = {"training": regression + knots + alignment, "curves": 3200, "teachers": 2 * teacher}
    assert passes == expected | {"total": sum(expected.values())}


def test_samples_are_in_the_datas_own_units_and_do_not_depend_on_the_count(
    chain: Path, tmp_path: Path
) -> None:
    for count in (40, 1100):
        assert (
            run(
                "sample",
                "--model",
                chain / "student",
                "--passes",
                2,
                "--count",
                count,
                "--seed",
                3,
                "--out",
                tmp_path / f"{count}.npz",
            )
            == 0
        )
    few, many = (np.load(tmp_path / f"{count}.npz")["x"] for count in (40, 1100))
    np.testing.assert_allclose(few, many[:40], rtol=1e-5)
    assert many.shape == (1100, 12)
    assert many.mean() == pytest.approx(5, abs=1.0)


def test_sample_jumps_along_the_models_knots(chain: Path) -> None:
    model = load_model(chain / "student")
    assert set(model.knots) == {1, 2}
    x0 = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    s = model.knots[2][1]
    zero, middle, one = (torch.full((4,), t) for t in (0.0, s, 1.0))
    x = x0 + s * model.net(x0, zero, middle)
    torch.testing.assert_close(model.generate(x0, 2), x + (1 - s) * model.net(x, middle, one))


def test_evaluate_gives_every_metric_its_floor_and_ratio(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        "sample",
        "--model",
        chain / "student",
        "--count",
        200,
        "--out",
        tmp_path / "s.npz",
        "--grid",
        tmp_path / "s.png",
    )
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    evaluate = ["evaluate", "--samples", tmp_path / "s.npz", "--data", chain / "data.npz"]
    assert run(*evaluate, "--out", tmp_path / "m.json") == 0
    assert "Frechet" in capsys.readouterr().out
    assert run(*evaluate, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "m.json").read_text()) == printed
    for name in ("frechet", "sliced_wasserstein", "energy", "mmd", "precision", "recall"):
        assert printed[f"{name}_ratio"] == pytest.approx(printed[name] / printed[f"{name}_floor"])
    assert printed["count"] == 150


def test_report_is_one_page_without_requests(chain: Path) -> None:
    assert run("report", "--run", chain / "student") == 0
    page = (chain / "student" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page


@pytest.mark.parametrize(
    ("objective", "passes"), [("end", 1), ("end", 2), ("knots", 2), ("velocity", 1)]
)
def test_every_objective_distils(chain: Path, tmp_path: Path, objective: str, passes: int) -> None:
    distill = [
        "distill",
        "--curves",
        chain / "curves",
        "--objective",
        objective,
        "--passes",
        passes,
        *TINY,
    ]
    assert run(*distill, "--out", tmp_path / "out") == 0
    assert load_model(tmp_path / "out").generate(torch.zeros(1, 12), passes).isfinite().all()


@pytest.mark.parametrize(
    ("guides", "degree"), [("hermite", 3), ("hermite", 5), ("endpoints", 3), ("fit", 1)]
)
def test_every_kind_of_guides_simulates(
    chain: Path, tmp_path: Path, guides: str, degree: int
) -> None:
    teachers = ["--teachers", chain / "strong", chain / "weak", "--weights", "1.0:1.5,0.0:-0.5"]
    assert (
        run(
            "simulate",
            *teachers,
            "--guides",
            guides,
            "--degree",
            degree,
            "--count",
            20,
            "--out",
            tmp_path / "c",
        )
        == 0
    )
    assert CurveStore.open(tmp_path / "c").curves(torch.arange(20)).degree == degree


def test_simulate_from_real_data_ends_on_it(chain: Path, tmp_path: Path) -> None:
    simulate = [
        "simulate",
        "--teachers",
        chain / "strong",
        "--count",
        30,
        "--data",
        chain / "data.npz",
        "--out",
        tmp_path / "c",
    ]
    assert run(*simulate) == 0
    own = load_model(chain / "strong").scaling.decode(
        CurveStore.open(tmp_path / "c").curves(torch.arange(30)).data
    )
    real = np.load(chain / "data.npz")["x"]
    assert all(np.abs(real - row).sum(1).min() < 1e-3 for row in own)


def test_reflow_records_every_round(chain: Path, tmp_path: Path) -> None:
    command = [
        "reflow",
        "--data",
        chain / "data.npz",
        "--rounds",
        2,
        "--count",
        64,
        "--solver_steps",
        2,
        *TINY,
        *NET,
    ]
    assert run(*command, "--out", tmp_path / "r") == 0
    rounds = json.loads((tmp_path / "r" / "rounds.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == [1, 2]
    assert rounds[0]["drift"] == 0.0 < rounds[1]["drift"]
    pairs, training = 64 * 4, 6 * 16 * 3
    assert [row["flow_passes"] for row in rounds] == [training, 2 * training + pairs]
    assert [row["student_passes"] for row in rounds] == [
        2 * training + pairs,
        3 * training + 2 * pairs,
    ]
    assert "ours" not in rounds[0]


def test_reflow_report_sets_our_curves_beside_every_round(chain: Path, tmp_path: Path) -> None:
    sizes = ["--rounds", 2, "--count", 300, "--solver_steps", 2, "--steps", 200, "--batch", 16]
    command = ["reflow", "--data", chain / "data.npz", *sizes, *NET]
    assert run(*command, "--out", tmp_path / "r", "--report") == 0
    first, second = json.loads((tmp_path / "r" / "rounds.json").read_text())["rounds"]
    assert first["drift"] == 0
    assert max(first["reconstruction_real"], first["reconstruction_generated"]) < 1e-3
    assert (
        first["reconstruction_real"] < 0.01 * second["reconstruction_real"]
    )  # round 1 undoes its own inversion but for solver error
    assert first["reconstruction_generated"] < 0.01 * second["reconstruction_generated"]
    for row in (first, second):
        assert 0.9 * row["student_passes"] <= row["ours_passes"] <= row["student_passes"]
        assert list(row["ours"]) == ["ours, 1 pass", "ours, 2 passes"]
    page = (tmp_path / "r" / "report.html").read_text()
    assert "http" not in page
    assert "reconstruction: real" in page
    assert "errors of every round" in page


def test_a_yaml_recipe_with_overrides_gives_the_same_model_as_flags(
    chain: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {chain / 'data.npz'}\nsteps: 99\nbatch: 16\nnetwork:\n  width: 16\n  depth:"
        " 2\nloop:\n  accelerator: cpu\n"
    )
    assert run("train", "--config", recipe, "--steps", 6, "--out", tmp_path / "m") == 0
    assert load_model(tmp_path / "m").card["digest"] == load_model(chain / "strong").card["digest"]


def test_resume_of_a_finished_run_gives_the_same_model(chain: Path, tmp_path: Path) -> None:
    train = ["train", "--data", chain / "data.npz", "--out", tmp_path / "m", *TINY, *NET]
    assert run(*train) == 0
    first = load_model(tmp_path / "m").card["digest"]
    before = (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns
    assert run(*train) == 0
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns == before
    assert load_model(tmp_path / "m").card["digest"] == first


def test_simulate_continues_a_store_and_leaves_a_finished_one_alone(
    chain: Path, tmp_path: Path
) -> None:
    simulate = ["simulate", "--teachers", chain / "strong", "--count", 90, "--out", tmp_path / "c"]
    assert run(*simulate) == 0
    manifest = (tmp_path / "c" / "manifest.json").read_bytes()
    assert run(*simulate) == 0
    assert (tmp_path / "c" / "manifest.json").read_bytes() == manifest


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail with exit code 2 and one line on standard error; return the
    line."""
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("bezierdistill")
    return error


def test_mistakes_in_data(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert "no data called 'nowhere'" in fails(capsys, "train", "--data", "nowhere", "--out", out)
    x = np.ones((100, 3), np.float32)
    x[7, 1] = np.nan
    np.save(tmp_path / "nan.npy", x)
    assert "row 7" in fails(capsys, "train", "--data", tmp_path / "nan.npy", "--out", out)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    assert "objects.npz" in fails(capsys, "train", "--data", tmp_path / "objects.npz", "--out", out)
    np.savez(tmp_path / "other.npz", x=np.ones((100, 5)))
    assert "(5,)" in fails(
        capsys, "evaluate", "--samples", tmp_path / "other.npz", "--data", chain / "data.npz"
    )
    assert not out.exists()


def test_mistakes_in_simulation(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    two = ["simulate", "--teachers", chain / "strong", chain / "weak", "--out", out]
    assert "sum to [1.2]" in fails(capsys, *two, "--weights", "1,0.2")
    assert "expected a row" in fails(capsys, *two, "--weights", "1")
    assert "degree is 0" in fails(capsys, *two, "--weights", "1,0", "--degree", 0)
    assert "expected 3 or more" in fails(
        capsys, *two, "--weights", "1,0", "--guides", "endpoints", "--degree", 2
    )
    np.savez(tmp_path / "wide.npz", x=np.random.default_rng(0).standard_normal((100, 5)))
    assert (
        run("train", "--data", tmp_path / "wide.npz", "--out", tmp_path / "wide", *TINY, *NET) == 0
    )
    mixed = [
        "simulate",
        "--teachers",
        chain / "strong",
        tmp_path / "wide",
        "--weights",
        "1,0",
        "--out",
        out,
    ]
    assert "expected one shape" in fails(capsys, *mixed)
    assert not out.exists()


def test_mistakes_in_distillation(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    base = ["distill", "--curves", chain / "curves", "--out", out]
    assert "passes is 0" in fails(capsys, *base, "--passes", 0)
    assert "passes is 11, expected 1 to 10" in fails(capsys, *base, "--passes", 11)
    assert "steps is 0" in fails(capsys, *base, "--steps", 0)
    assert "trains a flow, not jumps" in fails(
        capsys, *base, "--objective", "velocity", "--align", 3
    )
    assert "alignment needs real data" in fails(capsys, *base, "--align", 3)
    assert "alignment needs real data" in fails(capsys, *base, "--data", "digits")
    assert "batch is 1" in fails(capsys, *base, "--align", 3, "--data", "digits", "--batch", 1)
    assert "not what the teachers" in fails(capsys, *base, "--align", 3, "--data", "digits")
    assert "rise strictly" in fails(capsys, *base, "--knots", "1.5")
    assert "no curve store" in fails(capsys, "distill", "--curves", tmp_path, "--out", out)
    assert "passes" in fails(capsys, *base, "--passes", "two")
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the mistake is to ask for what is there")
def test_an_accelerator_that_is_not_there(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "out"]
    for command in (
        ["train", "--data", "moons", "--loop.accelerator", "cuda"],
        ["simulate", "--teachers", chain / "strong", "--accelerator", "cuda"],
        ["distill", "--curves", chain / "curves", "--loop.accelerator", "cuda"],
    ):
        assert "accelerator 'cuda'" in fails(capsys, *command, *out)
    assert not (tmp_path / "out").exists()


def test_a_store_made_by_another_teacher_is_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--data", chain / "data.npz", *TINY, *NET]
    assert run(*train, "--out", tmp_path / "t") == 0
    assert (
        run("simulate", "--teachers", tmp_path / "t", "--count", 20, "--out", tmp_path / "c") == 0
    )
    (tmp_path / "t").rename(tmp_path / "old")
    assert run(*train, "--out", tmp_path / "t", "--seed", 9) == 0
    line = fails(capsys, "distill", "--curves", tmp_path / "c", "--out", tmp_path / "s", *TINY)
    assert "made by another teacher" in line
    assert not (tmp_path / "s").exists()


def test_damaged_models_are_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((chain / "student" / name).read_bytes())
    sample = ["sample", "--model", tmp_path, "--out", tmp_path / "s.npz"]
    assert "passes is 0" in fails(capsys, *sample, "--passes", 0)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-40])
    assert "cut off or damaged" in fails(capsys, *sample)
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "differs from the digest" in fails(capsys, *sample)
    (tmp_path / "model.json").write_text("{}")
    assert "expected 'bezierdistill-model'" in fails(capsys, *sample)
    assert not (tmp_path / "s.npz").exists()


def test_a_folder_that_holds_another_run_is_left_alone(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        path: path.read_bytes()
        for path in chain.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    train = ["train", "--data", chain / "data.npz", *TINY, *NET]
    assert "holds another run, with other seed: choose another --out" in fails(
        capsys, *train, "--out", chain / "strong", "--seed", 5
    )
    simulate = ["simulate", "--teachers", chain / "strong", "--count", 9]
    assert "holds a store made with other batch, count" in fails(
        capsys, *simulate, "--out", chain / "curves", "--batch", 7
    )
    assert "run of another kind" in fails(capsys, *simulate, "--out", chain / "weak")
    assert "holds no arena" in fails(capsys, "demo", "--out", chain)
    assert {
        path: path.read_bytes()
        for path in chain.rglob("*")
        if path.is_file() and path.name != ".lock"
    } == files


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["sample", "--bogus", "1"],
        ["train", "--data", "digits", "--out", "x", "--steps", "many"],
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--help" in fails(capsys, *arguments)


def test_flags_may_be_written_with_dashes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "my-data.npz",
        x=np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32),
    )
    arena = [
        "arena",
        f"--data={tmp_path / 'my-data.npz'}",
        "--methods",
        "teacher-euler",
        "--seeds",
        1,
        "--first-seed",
        4,
        "--samples",
        64,
    ]
    assert (
        run(
            *arena,
            "--keep-samples",
            "--budget=12000",
            "--batch",
            32,
            *NET,
            "--loop.save-every=50",
            "--out",
            tmp_path / "a-b",
        )
        == 0
    )
    assert (tmp_path / "a-b" / "samples" / "teacher-euler-4-1.npz").exists()


def print_as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run a command with ``--json``; its standard output is one JSON value, and standard error is
    empty."""
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_every_verb_of_the_chain_prints_json(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = partial(print_as_json, capsys)
    data, out = ["--data", chain / "data.npz"], ["--out", tmp_path / "out"]
    card = load_model(chain / "student").card
    train = told("train", *data, "--out", tmp_path / "teacher", *TINY, *NET)
    assert train["digest"] == load_model(chain / "strong").card["digest"]
    assert train["passes"] == {"training": 288, "total": 288}
    curves = told(
        "simulate", "--teachers", chain / "strong", "--count", 30, "--out", tmp_path / "curves"
    )
    assert (curves["rows"], curves["passes"]) == (30, 30 * 16)
    student = told(
        "distill",
        "--curves",
        tmp_path / "curves",
        "--out",
        tmp_path / "student",
        "--passes",
        1,
        *TINY,
    )
    assert student["kind"] == "student"
    assert student["knots"] == {"1": [0.0, 1.0]}
    sample = told(
        "sample", "--model", chain / "student", "--count", 40, "--out", tmp_path / "x.npz"
    )
    assert (sample["count"], sample["shape"], sample["out"]) == (40, [12], str(tmp_path / "x.npz"))
    assert told("report", "--run", chain / "student") == {
        "report": str(chain / "student" / "report.html")
    }
    recipe = told(
        "recipe", "--budget", 20_000, "--batch", 16, *data, *NET, "--out", tmp_path / "recipe"
    )
    assert recipe["passes"]["total"] <= 20_000
    assert recipe["out"] == str(tmp_path / "recipe" / "student")
    rows = told(
        "arena",
        "--methods",
        "rf-2",
        "--seeds",
        1,
        "--budget",
        12_000,
        "--batch",
        16,
        "--samples",
        64,
        *data,
        *NET,
        *out,
    )["rows"]
    assert rows == json.loads((tmp_path / "out" / "arena.json").read_text())
    sizes = ["--rounds", 1, "--count", 64, "--solver_steps", 2]
    assert (
        told("reflow", *data, *sizes, *TINY, *NET, "--out", tmp_path / "r")["rounds"][0]["drift"]
        == 0
    )
    assert card == load_model(chain / "student").card


def test_every_action_on_stores_prints_json(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = partial(print_as_json, capsys)
    info = told("store", "info", chain / "curves")
    assert (info["rows"], info["degree"], info["shape"]) == (100, 3, [12])
    assert told("store", "verify", chain / "curves")["problems"] == []
    assert told(
        "store", "export", chain / "curves", "--to", "webdataset", "--out", tmp_path / "tars"
    )["files"]
    imported = told(
        "store",
        "import",
        tmp_path / "tars",
        "--teacher",
        chain / "strong",
        "--out",
        tmp_path / "imported",
    )
    assert (imported["rows"], imported["degree"]) == (100, 3)
    assert told("store", "merge", chain / "curves", "--out", tmp_path / "merged")["rows"] == 100
    for folder in ("imported", "merged"):
        assert "store" in (tmp_path / folder / "README.txt").read_text()
    shard = next((tmp_path / "imported").glob("shard-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run("store", "verify", tmp_path / "imported", "--json") == 2
    printed = capsys.readouterr()
    assert shard.name in json.loads(printed.out)["problems"][0]
    assert printed.err.count("\n") == 1


class Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_progress_is_shown_on_a_terminal_and_nowhere_else(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["recipe", "--budget", 20_000, "--batch", 16, "--data", chain / "data.npz", *NET]
    assert run(*recipe, "--out", tmp_path / "a") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(*recipe, "--out", tmp_path / "b") == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", cast(Terminal, sys.stderr).getvalue())
    for part in ("the strong teacher", "the weak teacher", "its curves", "the student"):
        assert f"{tmp_path / 'b'}: {part}\n" in shown
    for stage in ("teacher", "curves", "alignment"):
        assert re.search(rf"[\r\n]{stage} +\S+ +(\d+)/\1 +\S+/s \d:\d\d:\d\d", shown), (
            stage
        )  # steps, steps a second, time left


def test_the_app_is_asked_for_with_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr(app, "serve", asked.append)
    assert run("app", "--run", tmp_path, "--port", 7000) == 0
    assert asked == [app.AppConfig(tmp_path, port=7000)]

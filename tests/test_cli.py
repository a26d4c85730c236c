"""The commands as a user types them: how options are read and how commands end, the whole chain,
and one line with exit code 2 for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import toy_verbs
from bezierdistill import app
from bezierdistill.cli import VERBS, main, parse
from bezierdistill.cli.verbs import Verb
from bezierdistill.data import load_data
from bezierdistill.errors import UserError
from bezierdistill.files import load_function
from bezierdistill.models import load_model
from bezierdistill.settings import as_yaml
from bezierdistill.store import CurveStore
from toy_verbs import Inner, ToyConfig

TINY = "--steps 6 --batch 16 --loop.accelerator cpu"
NET = "--network.width 16 --network.depth 2"


def run(line: str) -> int:
    """Run a command."""
    return main(shlex.split(line))


def fails(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """Run a command that must fail with exit code 2 and one line on standard error; return the
    line."""
    capsys.readouterr()
    assert run(line) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("bezierdistill")
    return error


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs that do nothing."""
    for name in ("toy", "store toy"):
        monkeypatch.setitem(VERBS, name, Verb(name, "toy_verbs"))


def settings(line: str) -> Any:
    """The settings of a command."""
    return parse(shlex.split(line)).config


PATHS = (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("", ToyConfig(PATHS)),
        ("--weights -0.5,1.5", ToyConfig(PATHS, ((-0.5,), (1.5,)))),
        ("--weights=-0.5,1.5", ToyConfig(PATHS, ((-0.5,), (1.5,)))),
        ("--weights -0.5 1.5", ToyConfig(PATHS, ((-0.5,), (1.5,)))),
        ("--weights 1.0:1.5,0.0:-.5", ToyConfig(PATHS, ((1.0, 1.5), (0.0, -0.5)))),
        (
            "--knots 0,0.5 --labels cats,dogs",
            ToyConfig(PATHS, knots=(0, 0.5), labels=("cats", "dogs")),
        ),
        ("--shift -1e-3 --many-steps none", ToyConfig(PATHS, shift=-1e-3)),
        ("--many_steps 3 --many-steps 4", ToyConfig(PATHS, many_steps=4)),
        ("--solver heun --keep-samples", ToyConfig(PATHS, solver="heun", keep_samples=True)),
        ("--keep_samples false --inner.fast", ToyConfig(PATHS, inner=Inner(0.5, fast=True))),
        ("--inner.save-every=7 --inner.lr 1", ToyConfig(PATHS, inner=Inner(1.0, 7))),
    ],
)
def test_options_become_settings(toys: None, line: str, config: ToyConfig, tmp_path: Path) -> None:
    assert settings(f"toy --teachers a b {line}") == config
    (tmp_path / "toy.yaml").write_text(as_yaml(config))
    assert settings(f"toy --config {tmp_path / 'toy.yaml'}") == config  # the same again from YAML


def test_a_settings_file_stands_for_flags_in_its_place(toys: None, tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(
        "teachers: [a, b]\nweights: [[1, 1.5], [0, -0.5]]\nshift: -2 # a remark\nlabels: 3\n"
        "inner: {lr: 1e-3, fast: true}\nmany_steps: null\nkeep-samples: true\n"
    )
    inner = Inner(1e-3, fast=True)
    wanted = ToyConfig(PATHS, ((1, 1.5), (0, -0.5)), labels=("3",), shift=-1, inner=inner)
    got = settings(f"toy --inner.fast false --config={file} --shift -1 --keep_samples false")
    assert got == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("toy", "the following arguments are required: --teachers"),
        ("toy --teachers a --shift x", "argument --shift: got 'x', expected FLOAT"),
        ("toy --teachers a --seed 1.5", "argument --seed: got '1.5', expected INT"),
        ("toy --teachers a --seed -1", "seed is -1, expected a whole number"),
        ("toy --teachers a --knots x", "argument --knots: 'x' are no numbers"),
        ("toy --teachers a --solver x", "argument --solver: invalid choice: 'x'"),
        (
            "toy --teachers a --inner.fast x",
            "argument --inner.fast: got 'x', expected {true,false}",
        ),
        ("toy --teachers a --bogus 1", "unrecognized arguments: --bogus 1"),
        ("toy --teachers a --config nowhere.yaml", "nowhere.yaml"),
        ("store toy", "the following arguments are required: STORES"),
        ("store nothing", "no verb 'store nothing', expected one that bezierdistill --help lists"),
        ("nothing", "no verb 'nothing'"),
        ("toi", "no verb 'toi', expected one that bezierdistill --help lists, did you mean toy?"),
        ("toy --teachers a --sede 3", "unrecognized arguments: --sede, did you mean --seed?"),
        ("toy --techers a", "unrecognized arguments: --techers, did you mean --teachers?"),
        ("toy --teachers a --inner.safe-every=3", "did you mean --inner.save-every?"),
    ],
)
def test_mistakes_in_options(
    toys: None, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3", "unrecognized arguments: --steps=3"),
        ("inner: 3", "unrecognized arguments: --inner=3"),
        ("seed: {a: 1}", "unrecognized arguments: --seed.a=1"),
        ("seed: null", "argument --seed: got 'null', expected INT"),
        ("- a", "holds no settings"),
        ("config: other.yaml", "holds no settings"),
        ("a: &a [x]\nb: *a", "an alias *a"),
    ],
)
def test_mistakes_in_settings_files(
    toys: None, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.yaml").write_text(text)
    assert message in fails(capsys, f"toy --teachers a --config {tmp_path / 'toy.yaml'}")


def test_a_result_is_told_to_people_or_printed_as_json(
    toys: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("toy --teachers a b") == 0
    assert capsys.readouterr().out == "played\n"
    assert run("toy --teachers a b --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("seconds") >= 0
    assert told == {"version": 1, "verb": "toy", "teachers": ["a", "b"], "seed": 0}


@pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError, RuntimeError])
def test_a_mistake_of_ours_keeps_its_traceback(
    toys: None, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise error("ours")

    monkeypatch.setattr(toy_verbs, "main_toy", broken)
    with pytest.raises(error, match="ours"):
        run("toy --teachers a")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Path("/nowhere/at/all").read_bytes(),
            "No such file or directory: '/nowhere/at/all'",
        ),
        (lambda: np.empty(2**58), "not enough memory"),
        (lambda: torch.empty(2**58), "not enough memory"),
        (lambda: torch.empty(2**62), "not enough memory"),
    ],
)
def test_what_the_machine_lacks_is_told_in_one_line(
    toys: None,
    call: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(toy_verbs, "main_toy", lambda _: call())
    assert message in fails(capsys, "toy --teachers a")
    monkeypatch.setenv("BEZIERDISTILL_DEBUG", "1")
    with pytest.raises((OSError, MemoryError, RuntimeError)):
        run("toy --teachers a")


@pytest.mark.parametrize("error", ["len(None)", "open('/nowhere')", "int('x')"])
def test_a_users_own_file_keeps_its_traceback_and_is_named(
    toys: None, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    for text in (error, f"def method(): {error}"):
        file.write_text(text)
        monkeypatch.setattr(
            toy_verbs, "main_toy", lambda _: load_function(file, "method", "plays")()
        )
        with pytest.raises((TypeError, OSError, ValueError)) as caught:
            run("toy --teachers a")
        assert str(file) in caught.value.__notes__[0]
    file.write_text("")
    with pytest.raises(UserError, match="has no function method, which plays"):
        load_function(file, "method", "plays")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_command_may_be_interrupted_politely(
    number: signal.Signals,
    code: int,
    toys: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = []

    def work(_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            for _ in range(6000):  # a pause would not end if another thread took the signal
                time.sleep(0.01)
        finally:
            saved.append(True)

    def muddled(_: object) -> None:
        try:
            work(_)
        except BaseException:
            raise ImportError("what a library makes of it") from None

    before = signal.getsignal(number)
    for times, function in enumerate((work, muddled), 1):
        monkeypatch.setattr(toy_verbs, "main_toy", function)
        assert run("toy --teachers a") == code
        assert capsys.readouterr().err == "bezierdistill toy: interrupted\n"
        assert saved == [True] * times
        assert signal.getsignal(number) == before


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers on a .npz of 12 numbers, their curves, and a two-pass student with alignment."""
    at = tmp_path_factory.mktemp("chain")
    rng = np.random.default_rng(0)
    np.savez(at / "data.npz", x=(5 + 3 * rng.standard_normal((600, 12))).astype(np.float32))
    for line in (
        f"train --data {at}/data.npz --out {at}/strong {TINY} {NET}",
        f"train --data {at}/data.npz --out {at}/weak --seed 1 {TINY} {NET}",
        f"simulate --teachers {at}/strong {at}/weak --weights 1.25,-0.25 --degree 3 --count 100"
        f" --steps 8 --out {at}/curves",
        f"distill --curves {at}/curves --passes 2 --align 2 {TINY} --data {at}/data.npz"
        f" --out {at}/student",
    ):
        assert run(line) == 0
    return at


def test_chain_passes_add_up(chain: Path) -> None:
    teacher = 6 * 16 * 3
    assert load_model(chain / "strong").spent == teacher
    assert CurveStore.open(chain / "curves").manifest.passes == 100 * 8 * 2 * 2
    regression = 6 * (16 * 3 + 4 * 2)  # 0.3 of 16 rows, 4 whole ones, ask two teachers
    valid = load_data(str(chain / "data.npz")).count("valid")
    assert valid is not None
    assert valid < 100
    knots = 5 * 2 * valid  # five powers, samples of two passes
    alignment = 32 * (3 + 4)  # of twice as many rows: a step of one pass, one of two
    parts = load_model(chain / "student").card.passes.parts
    training = regression + knots + alignment
    assert parts == {"training": training, "curves": 3200, "teachers": 2 * teacher, "search": 0}


def test_samples_are_in_original_units_and_do_not_depend_on_the_count(
    chain: Path, tmp_path: Path
) -> None:
    sample = f"sample --model {chain}/student --passes 2 --seed 3"
    assert run(f"{sample} --count 40 --out {tmp_path}/40.npz") == 0
    assert run(f"{sample} --count 1100 --out {tmp_path}/1100.npz") == 0
    few, many = (np.load(tmp_path / f"{count}.npz")["x"] for count in (40, 1100))
    np.testing.assert_allclose(few, many[:40], rtol=1e-5, atol=1e-5)
    assert many.shape == (1100, 12)
    assert many.mean() == pytest.approx(5, abs=1.0)


def test_sample_jumps_along_the_models_knots(chain: Path, tmp_path: Path) -> None:
    model = load_model(chain / "student")
    assert set(model.knots) == {1, 2, 3, 4}
    x0 = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    s = model.knots[2][1]
    zero, middle, one = (torch.full((4,), t) for t in (0.0, s, 1.0))
    x = x0 + s * model.net(x0, zero, middle)
    torch.testing.assert_close(model.generate(x0, 2), x + (1 - s) * model.net(x, middle, one))
    power = np.log(s) / np.log(1 / 2)
    for passes in (3, 4):  # whose knots have the power of those of two
        even = np.arange(passes + 1) / passes
        np.testing.assert_allclose(model.knots[passes], even**power, rtol=1e-6)
    assert run(f"sample --model {chain}/student --passes 3 --count 5 --out {tmp_path}/3.npz") == 0
    assert np.isfinite(np.load(tmp_path / "3.npz")["x"]).all()


def test_evaluate_gives_every_metric_its_floor(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = f"--grid {tmp_path}/s.png"
    assert run(f"sample --model {chain}/student --count 200 --out {tmp_path}/s.npz {grid}") == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    evaluate = f"evaluate --samples {tmp_path}/s.npz --data {chain}/data.npz"
    assert run(f"{evaluate} --out {tmp_path}/m.json") == 0
    assert "Frechet" in capsys.readouterr().out
    assert run(f"{evaluate} --json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "m.json").read_text()).items() <= printed.items()
    assert (printed["version"], printed["verb"], printed["seed"]) == (1, "evaluate", 0)
    for name in ("frechet", "sliced_wasserstein", "energy", "mmd", "precision", "recall"):
        assert set(printed[name]) >= {"value", "floor"}
    assert printed["protocol"]["count"] == 150


def test_report_is_one_page_without_requests(chain: Path) -> None:
    assert run(f"report --run {chain}/student") == 0
    page = (chain / "student" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page


@pytest.mark.parametrize(
    ("objective", "passes"), [("end", 1), ("end", 2), ("knots", 2), ("velocity", 1)]
)
def test_every_objective_distils(chain: Path, tmp_path: Path, objective: str, passes: int) -> None:
    more = "" if objective == "velocity" else f"--passes {passes}"
    distill = f"distill --curves {chain}/curves --objective {objective} {more} {TINY}"
    assert run(f"{distill} --out {tmp_path}/out") == 0
    assert load_model(tmp_path / "out").generate(torch.zeros(1, 12), passes).isfinite().all()


@pytest.mark.parametrize(
    ("guides", "degree"), [("hermite", 3), ("hermite", 5), ("endpoints", 3), ("fit", 1)]
)
def test_every_kind_of_guides_simulates(
    chain: Path, tmp_path: Path, guides: str, degree: int
) -> None:
    teachers = f"--teachers {chain}/strong {chain}/weak --weights 1.0:1.5,0.0:-0.5 --count 20"
    assert run(f"simulate {teachers} --guides {guides} --degree {degree} --out {tmp_path}/c") == 0
    assert CurveStore.open(tmp_path / "c").curves(torch.arange(20)).degree == degree


def test_simulate_from_real_data_ends_on_it(chain: Path, tmp_path: Path) -> None:
    real = f"--invert-from {chain}/data.npz --count 30"
    assert run(f"simulate --teachers {chain}/strong {real} --out {tmp_path}/c") == 0
    ends = load_model(chain / "strong").scaling.decode(
        CurveStore.open(tmp_path / "c").curves(torch.arange(30)).data
    )
    x = np.load(chain / "data.npz")["x"]
    assert all(np.abs(x - row).sum(1).min() < 1e-3 for row in ends)


def test_a_yaml_recipe_with_overrides_gives_the_same_model_as_flags(
    chain: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"data: {chain / 'data.npz'}\nsteps: 99\nbatch: 16\n"
        "network: {width: 16, depth: 2}\nloop: {accelerator: cpu}\n"
    )
    assert run(f"train --config {tmp_path}/recipe.yaml --steps 6 --out {tmp_path}/m") == 0
    assert load_model(tmp_path / "m").card.digest == load_model(chain / "strong").card.digest


def test_finished_runs_are_left_alone(chain: Path, tmp_path: Path) -> None:
    for line, file in (
        (f"train --data {chain}/data.npz {TINY} {NET}", "model.safetensors"),
        (f"simulate --teachers {chain}/strong --count 90", "manifest.json"),
    ):
        out = tmp_path / file
        assert run(f"{line} --out {out}") == 0
        before = (out / file).stat().st_mtime_ns
        assert run(f"{line} --out {out}") == 0
        assert (out / file).stat().st_mtime_ns == before


def test_mistakes_in_data(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out {tmp_path}/out"
    assert "no data called 'nowhere'" in fails(capsys, f"train --data nowhere {out}")
    x = np.ones((100, 3), np.float32)
    x[7, 1] = np.nan
    np.save(tmp_path / "nan.npy", x)
    assert "row 7" in fails(capsys, f"train --data {tmp_path}/nan.npy {out}")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    assert "objects.npz" in fails(capsys, f"train --data {tmp_path}/objects.npz {out}")
    np.savez(tmp_path / "other.npz", x=np.ones((100, 5)))
    other = f"evaluate --samples {tmp_path}/other.npz --data {chain}/data.npz"
    assert "(5,)" in fails(capsys, other)
    assert not (tmp_path / "out").exists()


def test_mistakes_in_simulation(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = f"simulate --teachers {chain}/strong {chain}/weak --out {tmp_path}/out"
    assert "sum to [1.2]" in fails(capsys, f"{two} --weights 1,0.2")
    assert "expected a row" in fails(capsys, f"{two} --weights 1")
    assert "degree is 0" in fails(capsys, f"{two} --weights 1,0 --degree 0")
    ends = "--guides endpoints --degree 2"
    assert "expected 3 or more" in fails(capsys, f"{two} --weights 1,0 {ends}")
    np.savez(tmp_path / "wide.npz", x=np.random.default_rng(0).standard_normal((100, 5)))
    assert run(f"train --data {tmp_path}/wide.npz --out {tmp_path}/wide {TINY} {NET}") == 0
    mixed = f"simulate --teachers {chain}/strong {tmp_path}/wide --weights 1,0"
    assert "expected one shape" in fails(capsys, f"{mixed} --out {tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_mistakes_in_distillation(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"distill --curves {chain}/curves --out {tmp_path}/out"
    for options, message in {
        "--passes 0": "passes is 0",
        "--passes 11": "passes is 11, expected 1 to 10",
        "--passes two": "argument --passes: got 'two', expected INT",
        "--steps 0": "steps is 0",
        "--objective velocity --align 3": "trains a flow, not jumps",
        "--data digits": "without --align",
        "--lora 4": "no pipeline with prompts",
        "--full": "no pipeline with prompts",
        "--targets to_q": "without --lora",
        "--align 3 --data digits --align-batch 1": "align-batch is 1",
        "--align 3 --data digits": "not what the teachers",
        "--knots 1.5": "rising between 0 and 1",
    }.items():
        assert message in fails(capsys, f"{base} {options}"), options
    assert "no curve store" in fails(capsys, f"distill --curves {tmp_path} --out {tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_alignment_without_data_is_with_the_ends_of_the_curves(chain: Path, tmp_path: Path) -> None:
    """It leaves the regression as it is and draws towards others than with data."""
    line = f"distill --curves {chain}/curves --passes 2 {TINY}"
    assert run(f"{line} --align 2 --out {tmp_path}/ends") == 0
    assert run(f"{line} --align 2 --data {chain}/data.npz --out {tmp_path}/data") == 0
    ends, data = (load_model(tmp_path / name) for name in ("ends", "data"))
    assert ends.digest != data.digest
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("ends", "data")]
    losses = [[json.loads(row)["loss"] for row in log] for log in logs]
    assert losses[0][0] == losses[1][0]
    assert losses[0][-1] != losses[1][-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the mistake is to ask for what is there")
def test_an_accelerator_that_is_not_there(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (
        "train --data moons --loop.accelerator cuda",
        f"simulate --teachers {chain}/strong --accelerator cuda",
        f"distill --curves {chain}/curves --loop.accelerator cuda",
    ):
        assert "accelerator 'cuda'" in fails(capsys, f"{line} --out {tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_a_store_made_by_another_teacher_is_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = f"train --data {chain}/data.npz {TINY} {NET} --out {tmp_path}/t"
    assert run(train) == 0
    assert run(f"simulate --teachers {tmp_path}/t --count 20 --out {tmp_path}/c") == 0
    shutil.rmtree(tmp_path / "t")
    assert run(f"{train} --seed 9") == 0
    line = fails(capsys, f"distill --curves {tmp_path}/c --out {tmp_path}/s {TINY}")
    assert "needs the teacher ../t" in line
    assert not (tmp_path / "s").exists()


def test_damaged_models_are_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((chain / "student" / name).read_bytes())
    sample = f"sample --model {tmp_path} --out {tmp_path}/s.npz"
    assert "passes is 0" in fails(capsys, f"{sample} --passes 0")
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-40])
    assert "cut off or damaged" in fails(capsys, sample)
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "differs from the digest" in fails(capsys, sample)
    (tmp_path / "model.json").write_text("{}")
    assert "expected format 'bezierdistill-model'" in fails(capsys, sample)
    assert not (tmp_path / "s.npz").exists()


def test_a_folder_that_holds_another_run_is_left_alone(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, bytes]:
        found = (path for path in chain.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in found}

    before = files()
    train = f"train --data {chain}/data.npz {TINY} {NET} --out {chain}/strong --seed 5"
    assert "holds another run of train, with other seed" in fails(capsys, train)
    simulate = f"simulate --teachers {chain}/strong --count 9"
    assert "with other" in fails(capsys, f"{simulate} --batch 7 --out {chain}/curves")
    assert "holds a run of train" in fails(capsys, f"{simulate} --out {chain}/weak")
    assert "holds no run of" in fails(capsys, f"demo --out {chain}")
    assert files() == before


def test_every_verb_of_the_chain_prints_json(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(line: str) -> Any:
        capsys.readouterr()
        assert run(f"{line} --json") == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        found = json.loads(printed.out)
        assert (found["version"], found["verb"]) == (1, line.split(maxsplit=1)[0])
        assert found["seconds"] > 0
        assert not [key for key in found if " " in key]
        return found

    data, strong = f"--data {chain}/data.npz", load_model(chain / "strong")
    train = told(f"train {data} --out {tmp_path}/teacher {TINY} {NET}")
    assert train["digest"] == strong.card.digest
    assert (train["passes"]["training"], train["passes"]["total"]) == (288, 288)
    curves = told(
        f"simulate --teachers {chain}/strong --count 30 --steps 8 --out {tmp_path}/curves"
    )
    assert (curves["rows"], curves["passes"]) == (30, 30 * 16)
    student = told(f"distill --curves {tmp_path}/curves --out {tmp_path}/s --passes 1 {TINY}")
    assert (student["kind"], student["knots"]) == ("student", {"1": [0.0, 1.0]})
    sample = told(f"sample --model {chain}/student --count 40 --out {tmp_path}/x.npz")
    assert (sample["count"], sample["shape"], sample["out"]) == (40, [12], f"{tmp_path}/x.npz")
    report = told(f"report --run {chain}/student")
    assert (report["report"], report["files"]) == (f"{chain}/student/report.html", [])
    small = f"--batch 16 {data} {NET}"
    recipe = told(f"recipe --budget 20000 {small} --out {tmp_path}/recipe")
    assert recipe["passes"]["total"] <= 20_000
    assert recipe["out"] == f"{tmp_path}/recipe/student"
    cells = "--methods rf-2 --seeds 1 --budget 12000 --samples 64 --keep-samples"
    rows = told(f"arena {cells} {small} --out {tmp_path}/arena")["rows"]
    assert [row["method"] for row in rows] == ["rf-2"] * len(rows)
    assert list((tmp_path / "arena" / "samples").glob("rf-2-*.npz"))
    rounds = f"--rounds 1 --count 64 --steps 6 --loop.accelerator cpu {small}"
    assert told(f"reflow {rounds} --out {tmp_path}/r")["rounds"][0]["drift"] == 0


def test_every_action_on_stores_prints_json(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(line: str) -> Any:
        capsys.readouterr()
        assert run(f"store {line} --json") == 0
        return json.loads(capsys.readouterr().out)

    curves = chain / "curves"
    info = told(f"info {curves}")
    assert (info["rows"], info["degree"], info["shape"]) == (100, 3, [12])
    assert told(f"verify {curves}")["problems"] == []
    assert told(f"export {curves} --to webdataset --out {tmp_path}/tars")["files"]
    teacher = f"--teacher {chain}/strong"
    imported = told(f"import {tmp_path}/tars {teacher} --out {tmp_path}/imported")
    assert (imported["rows"], imported["degree"]) == (100, 3)
    assert told(f"merge {curves} --out {tmp_path}/merged")["rows"] == 100
    for folder in ("imported", "merged"):
        assert "store" in (tmp_path / folder / "README.txt").read_text()
    shard = next((tmp_path / "imported").glob("shard-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert run(f"store verify {tmp_path}/imported --json") == 2
    printed = capsys.readouterr()
    assert shard.name in json.loads(printed.out)["problems"][0]
    assert printed.err.count("\n") == 1


class Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_bars_are_shown_on_a_terminal_alone_and_nothing_if_quiet(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = f"recipe --budget 20000 --batch 16 --data {chain}/data.npz {NET} --out {tmp_path}"
    parts = ("the strong teacher", "the weak teacher", "its curves", "the student")
    assert run(f"{recipe}/a") == 0
    assert capsys.readouterr().err == ""  # it is short
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run(f"{recipe}/quiet --quiet") == 0
    assert cast(Terminal, sys.stderr).getvalue() == ""
    assert run(f"{recipe}/b") == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", cast(Terminal, sys.stderr).getvalue())
    for part in parts:
        assert f"{tmp_path / 'b'}: {part}\n" in shown
    for stage in ("teacher", "curves", "alignment"):  # steps, steps per second, time left
        assert re.search(rf"[\r\n]{stage} +\S+ +(\d+)/\1 +\S+/s \d:\d\d:\d\d", shown), stage


def test_the_app_is_asked_for_with_its_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr(app, "main_app", asked.append)
    assert run(f"app --run {tmp_path} --port 7000") == 0
    assert asked == [app.AppConfig(tmp_path, port=7000)]

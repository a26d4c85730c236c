"""A folder belongs to a run: whose it is, what may change, what is written down of it, and a
command that parses back to the settings."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bezierdistill import run as run_module
from bezierdistill.arena.demo import DemoConfig, demo
from bezierdistill.arena.runner import FREE, ArenaConfig, arena
from bezierdistill.cli import VERBS, main, parse
from bezierdistill.cli.parser import NONE
from bezierdistill.errors import UserError
from bezierdistill.models import load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import Made, Settings, read_sealed, to_json, write_record, write_sealed
from bezierdistill.reporting.names import EXPORTS
from bezierdistill.run import (
    MADE,
    README,
    RUN,
    SETTINGS,
    Run,
    command,
    machine,
    made_whole,
    read_made,
    read_settings,
)
from bezierdistill.settings import Contents, as_yaml
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.store import StoreMergeConfig
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig

THING = Contents("a thing", {"thing.txt": "the thing"})


def means_something(text: str) -> bool:
    """Whether YAML and the command take a text for anything but nothing, which an option that may
    be left out takes for being left out."""
    if text in NONE:
        return False
    try:
        return yaml.safe_load(text) is not None
    except (yaml.YAMLError, ValueError):
        return True


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(means_something)
WORD = TEXT.filter(lambda text: "," not in text and text == text.strip())
PATH = st.builds(Path, TEXT)
FLOAT = st.floats(-1e6, 1e6)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    Path: PATH,
    int: st.integers(1, 10**6),
    float: st.floats(0.001, 0.2),
    bool: st.booleans(),
    tuple[Path, ...]: st.lists(PATH, min_size=1, max_size=3).map(tuple),
    tuple[Path | object, ...]: st.lists(PATH, min_size=1, max_size=3).map(tuple),
    tuple[str, ...]: st.lists(WORD, min_size=1, max_size=3).map(tuple),
    tuple[str | object, ...]: st.lists(WORD, min_size=1, max_size=3).map(tuple),
    tuple[float, ...]: st.lists(FLOAT, min_size=1, max_size=3).map(tuple),
    tuple[tuple[float, ...], ...]: st.integers(1, 3).flatmap(
        lambda size: st.lists(st.tuples(*[FLOAT] * size), min_size=1, max_size=3).map(tuple)
    ),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if kind in VALUES:
        return VALUES[kind]
    if dataclasses.is_dataclass(kind):
        return configs_of(kind)
    parts = get_args(kind)
    return (
        st.sampled_from(parts)
        if isinstance(parts[0], str)
        else st.one_of(*(values_of(part) for part in parts if part not in (type(None), object)))
    )


NEEDED = ("ImportConfig", "folder")  # or its source: one of the two


@st.composite
def configs_of(draw: Any, config: Any) -> Any:
    """Settings with some fields changed; those that refuse each other are left as they are by
    default."""
    hints = get_type_hints(config)
    chosen = {
        field.name: draw(values_of(hints[field.name]))
        for field in dataclasses.fields(config)
        if _has_no_default(field) or (config.__name__, field.name) == NEEDED
    }
    for field in draw(st.permutations(dataclasses.fields(config)))[:6]:
        more = chosen | {field.name: draw(values_of(hints[field.name]))}
        try:
            config(**more)
        except ValueError:
            continue
        chosen = more
    return config(**chosen)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_a_command_parses_to_the_settings_that_it_was_made_of(
    verb: str, data: st.DataObject
) -> None:
    config = data.draw(configs_of(VERBS[verb].config))
    line = command(verb, config)
    assert parse(shlex.split(line)[1:]).config == config


RUNS = ("train", "simulate", "distill", "recipe", "reflow", "arena", "demo")


@pytest.mark.parametrize("verb", RUNS)
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_the_settings_file_of_a_run_parses_to_the_settings_that_it_was_written_of(
    verb: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = data.draw(configs_of(VERBS[verb].config))
    file = tmp_path_factory.mktemp("run") / SETTINGS
    file.write_text(as_yaml(config))
    assert parse([verb, "--config", str(file)]).config == config


def test_commands_lose_no_digit_and_take_no_path_for_a_flag() -> None:
    config = SimulateConfig(("-a", "-b"), "--c", ((1.23456789,), (-0.23456789,)))  # pyright: ignore[reportArgumentType]
    line = command("simulate", config)
    weights = "--weights 1.23456789,-0.23456789"
    assert line == f"bezierdistill simulate --teachers ./-a ./-b --out ./--c {weights}"
    assert parse(shlex.split(line)[1:]).config == config


def run_of(out: Path, seed: int = 0, **more: Any) -> Run:
    return Run(out, "train", TrainConfig("digits", out, seed=seed), THING, **more)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What is in a folder, and when it was written."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def told(folder: Path) -> Made:
    """What is written down of a run."""
    made = read_made(folder)
    assert made is not None
    return made


def test_a_folder_belongs_to_the_run_that_claimed_it(tmp_path: Path) -> None:
    with run_of(tmp_path / "r"):
        held = read_settings(tmp_path / "r")
        assert (held.verb, held.settings["seed"]) == ("train", 0)
        assert "out" not in held.settings
    other = TrainConfig("moons", tmp_path / "r", seed=3, loop=LoopConfig(lr=1e-3))
    before = files(tmp_path / "r")
    with (
        pytest.raises(UserError, match="another run of train, with other data, loop, seed: choose"),
        Run(tmp_path / "r", "train", other, THING),
    ):
        pytest.fail("the folder was taken")
    with (
        pytest.raises(UserError, match="holds a run of train: choose another --out"),
        Run(tmp_path / "r", "distill", other, THING),
    ):
        pytest.fail("the folder was taken")
    assert files(tmp_path / "r") == before
    with run_of(tmp_path / "r"):  # those that were refused have let go of it
        pass


def test_a_folder_of_something_else_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run of train"), run_of(tmp_path):
        pytest.fail("the folder was taken")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, expected a folder"), run_of(tmp_path / "file"):
        pytest.fail("the file was taken")


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    with run_of(tmp_path):
        with (
            pytest.raises(UserError, match="is being written by another process"),
            run_of(tmp_path),
        ):
            pytest.fail("two runs hold the folder")
        assert not told(tmp_path).finished


def test_free_settings_may_change_and_identity_stands_for_paths(tmp_path: Path) -> None:
    def held(curves: str, seed: int, digest: str) -> Run:
        config = DistillConfig(Path(curves), tmp_path, seed=seed)
        return Run(tmp_path, "distill", config, THING, ("seed",), {"curves": digest})

    with held("one/curves", 0, "abc"):
        assert read_settings(tmp_path).settings["curves"] == "abc"
    with held("two/curves", 1, "abc"):
        pass
    assert told(tmp_path).sessions == 2
    with (
        pytest.raises(UserError, match="another run of distill, with other curves: choose"),
        held("one/curves", 0, "abd"),
    ):
        pytest.fail("other curves were taken for the same")


def test_sessions_and_their_seconds_add_up_also_of_an_interrupted_one(tmp_path: Path) -> None:
    assert read_made(tmp_path) is None

    def interrupted() -> None:
        with run_of(tmp_path):
            time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    stopped = told(tmp_path)
    assert stopped.seconds >= 0.05
    assert (stopped.sessions, stopped.finished) == (1, False)
    with run_of(tmp_path):
        running = told(tmp_path)
        time.sleep(0.05)
    assert (running.sessions, running.finished, running.seconds) == (2, False, stopped.seconds)
    done = told(tmp_path)
    assert (done.sessions, done.finished, done.started) == (2, True, stopped.started)
    assert done.seconds >= stopped.seconds + 0.05
    assert done.machine == machine()
    assert done.commands == (command("train", TrainConfig("digits", tmp_path)),)


def test_a_run_that_goes_on_with_other_threads_tells_how_to_keep_its_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        with run_of(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "begun with" not in capsys.readouterr().err
    made, threads = told(tmp_path), machine().threads
    before = msgspec.structs.replace(made.machine, threads=threads + 3)
    write_sealed(tmp_path / MADE, msgspec.structs.replace(made, machine=before))
    with run_of(tmp_path):
        line = f"begun with {threads + 3} threads, goes on with {threads}: sums are rounded"
        assert line in (notice := capsys.readouterr().err)
        assert f"OMP_NUM_THREADS={threads + 3} continues it to the same bits" in notice
    with run_of(tmp_path):  # finished: nothing is computed
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("load", "share", "threads", "variable", "hinted"),
    [
        (9.0, 90.0, 2, None, True),
        (9.0, 10.0, 2, None, False),  # the load is that of a command that has just ended
        (0.1, 90.0, 2, None, False),
        (9.0, 90.0, 1, None, False),
        (9.0, 90.0, 2, "2", False),  # it was chosen
    ],
)
def test_threads_that_wait_for_other_work_are_told_of_once(
    load: float,
    share: float,
    threads: int,
    variable: str | None,
    hinted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(run_module.psutil, "getloadavg", lambda: (load, 1.0, 1.0))
    monkeypatch.setattr(run_module.psutil, "cpu_percent", lambda seconds: share)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    run_module._tell_busy.cache_clear()
    here = msgspec.structs.replace(machine(), threads=threads, device="cpu")
    for _ in range(2):
        run_module._tell_threads(here, None)
    told = capsys.readouterr().err
    assert told.count("OMP_NUM_THREADS=1 takes less of the processor") == hinted
    assert told.count("\n") == hinted


def test_a_finished_run_is_left_alone_and_an_extended_one_is_told_of(tmp_path: Path) -> None:
    first = ArenaConfig("moons", tmp_path, ("rf-2",))
    more = dataclasses.replace(first, methods=("rf-2", "dmd"))

    def run(config: ArenaConfig) -> None:
        with Run(tmp_path, "arena", config, THING, FREE):
            pass

    run(first)
    before = files(tmp_path)
    assert before.keys() == {RUN, MADE, README, SETTINGS}
    run(first)
    assert files(tmp_path) == before
    for _ in range(2):
        run(more)
    made = told(tmp_path)
    assert made.commands == (command("arena", first), command("arena", more))
    assert made.sessions == 2


def test_other_ranks_than_the_first_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    met = []
    with run_of(tmp_path, barrier=lambda: met.append(True)):
        pass
    assert met == [True]
    assert not list(tmp_path.iterdir())


def test_a_failure_is_told_and_not_that_its_record_could_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def failing() -> None:
        with run_of(folder):
            shutil.rmtree(folder)
            folder.touch()  # now nothing can be written in it
            raise ValueError("the disk")

    with pytest.raises(ValueError, match="the disk"):
        failing()


@pytest.mark.parametrize(
    "more",
    [
        {"commands": 3},
        {"machine": []},
        {"machine": {"cores": [2]}},
        {"seconds": "1"},
        {"sessions": True},
        {"finished": 1},
        {"seconds": -1},
        {"sessions": -2},
    ],
)
def test_a_damaged_record_is_refused_by_its_reader_and_does_not_stop_the_run(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    with run_of(tmp_path):
        pass
    before = told(tmp_path)
    for damage in (
        lambda: write_sealed(tmp_path / MADE, to_json(before) | more),
        lambda: write_record(tmp_path / MADE, before),  # whole, but without its checksum
    ):
        damage()
        with pytest.raises(UserError, match=MADE):
            read_made(tmp_path)
        with run_of(tmp_path):
            pass
        assert told(tmp_path).sessions == 1  # begun again
        assert told(tmp_path).finished


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    with run_of(tmp_path):
        pass
    for name, read in ((RUN, read_settings), (MADE, read_made)):
        content = (tmp_path / name).read_bytes()
        for place in range(0, len(content), 7):
            wrong = bytearray(content)
            wrong[place] ^= 1
            (tmp_path / name).write_bytes(wrong)
            with pytest.raises(UserError, match=name):
                read(tmp_path)
        (tmp_path / name).write_bytes(content)


def test_what_is_made_in_one_step_is_told_of_once_it_is_there(tmp_path: Path) -> None:
    config = StoreMergeConfig((Path("a"), Path("b")), tmp_path)
    with (
        pytest.raises(ValueError, match="no"),
        made_whole(tmp_path, "store merge", config, THING),
    ):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        with made_whole(tmp_path, "store merge", config, THING):
            time.sleep(0.02)
    made = told(tmp_path)
    assert made.finished
    assert made.sessions == 1
    assert made.seconds >= 0.02


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small runs of the verbs, by Python."""
    folder = tmp_path_factory.mktemp("runs")
    data = str(folder / "data.npz")
    np.savez(data, x=np.random.default_rng(0).standard_normal((300, 12)).astype(np.float32))
    loop, network = LoopConfig(accelerator="cpu", save_every=2), NetworkConfig(width=16, depth=2)
    small: dict[str, Any] = {"batch": 16, "network": network, "loop": loop}
    train(TrainConfig(data, folder / "train", 4, **small))
    simulate(
        SimulateConfig(
            (folder / "train",), folder / "simulate", count=60, steps=4, accelerator="cpu"
        )
    )
    distill(
        DistillConfig(
            folder / "simulate",
            folder / "distill",
            steps=4,
            align=4,
            data=data,
            batch=16,
            loop=loop,
        )
    )
    run_recipe(RecipeConfig(data, folder / "recipe", 20_000, **small))
    reflow(ReflowConfig(data, folder / "reflow", 1, steps=4, count=60, solver_steps=2, **small))
    arena(
        ArenaConfig(
            data,
            folder / "arena",
            ("rf-2",),
            12_000,
            1,
            samples=64,
            keep_samples=True,
            keep_models=True,
            **small,
        )
    )
    return {
        verb: folder / verb
        for verb in ("train", "simulate", "distill", "recipe", "reflow", "arena")
    }


def explained(folder: Path) -> list[str]:
    """The names of files, or patterns of names, that a README explains."""
    lines = (
        (folder / README).read_text().partition("\nFiles\n\n")[2].partition("\n\n")[0].splitlines()
    )
    return [name for line in lines for name in line.strip().partition("  ")[0].split(", ")]


@pytest.mark.parametrize("verb", ["train", "simulate", "distill", "recipe", "reflow", "arena"])
def test_a_readme_explains_every_file_of_its_folder_and_no_other(
    verb: str, runs: dict[str, Path]
) -> None:
    there = {path.name + "/" * path.is_dir() for path in runs[verb].iterdir()} - {README}
    optional = {"search.json", "translations.png", "report.html", "...", *EXPORTS.values()}
    names = explained(runs[verb])
    assert {name for name in there if not any(fnmatch(name, pattern) for pattern in names)} <= {
        "manifest.copy.json"
    }
    assert {
        pattern for pattern in names if not any(fnmatch(name, pattern) for name in there)
    } <= optional


@pytest.mark.parametrize("verb", ["train", "simulate", "distill", "recipe", "reflow", "arena"])
def test_the_command_of_a_run_gives_back_its_settings_and_changes_nothing(
    verb: str, runs: dict[str, Path]
) -> None:
    made = told(runs[verb])
    assert made.finished
    (line,) = made.commands
    assert line in (runs[verb] / README).read_text()
    before = (runs[verb] / MADE).read_bytes()
    assert main(shlex.split(line)[1:]) == 0
    assert (runs[verb] / MADE).read_bytes() == before


def test_parts_of_a_run_are_told_of_too_and_a_demo_as_one(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    (line,) = told(runs["recipe"] / "student").commands
    assert line.startswith("bezierdistill distill --curves ")
    demo(DemoConfig(tmp_path / "demo", str(runs["train"].parent / "data.npz"), fast=True))
    made = told(tmp_path / "demo")
    assert made.commands[0].startswith("bezierdistill demo --out ")
    assert made.fast
    assert not told(runs["arena"]).fast


def test_files_of_older_commits_are_refused_in_one_line(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """A model and a store by the version that they name, settings by their missing checksum."""
    for verb in ("train", "simulate"):
        shutil.copytree(runs[verb], tmp_path / verb)
    card = tmp_path / "train" / "model.json"
    value = json.loads(card.read_text())
    card.write_text(json.dumps(value | {"version": 1, "guidance": None, "source": None}))
    with pytest.raises(UserError, match=r"version '1', expected .*version 2: .* another version"):
        load_model(tmp_path / "train")
    manifest = tmp_path / "simulate" / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"version": 2}))
    with pytest.raises(UserError, match=r"version '2', expected .*version 4: .* another version"):
        CurveStore.open(tmp_path / "simulate")
    held = read_sealed(runs["train"] / RUN, Settings, "run")
    (tmp_path / "train" / RUN).write_text(json.dumps(held.settings, indent=2))
    own = {"out": tmp_path / "train", "network": NetworkConfig(), "loop": LoopConfig()}
    with pytest.raises(UserError, match=r"run\.json .* another version of bezierdistill"):
        train(TrainConfig(**{**held.settings, **own}))
    for line in (
        f"sample --model {tmp_path}/train --out {tmp_path}/x.npz",
        f"distill --curves {tmp_path}/simulate --out {tmp_path}/s --loop.accelerator cpu",
        f"train --data moons --out {tmp_path}/train --loop.accelerator cpu",
    ):
        assert main(shlex.split(line)) == 2

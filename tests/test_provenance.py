"""Where folders come from: a command that parses back to its settings, and a record that tells what
was done, but for killed sessions."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bezierdistill.arena.demo import DemoConfig, demo
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.cli import STORE, VERBS, main, parse
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.run import (
    FOLDERS,
    MADE,
    README,
    command,
    machine,
    noted,
    read_made,
    recorded,
)
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.store import StoreMergeConfig
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training.settings import LoopConfig

CONFIGS = {name: config for name, (config, _) in VERBS.items()} | {
    f"store {name}": config for name, (config, _) in STORE.items()
}


def means_something(text: str) -> bool:
    """Whether YAML takes a text for anything but nothing, which an option that may be left out
    takes for being left out."""
    try:
        return yaml.safe_load(text) is not None
    except (yaml.YAMLError, ValueError):
        return True


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(means_something)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: WORDS,
    Path: st.builds(Path, WORDS.filter(lambda text: not text.startswith("-"))),
    int: st.integers(1, 10**6),
    float: st.floats(0.001, 0.2),
    bool: st.booleans(),
    tuple[Path, ...]: st.lists(
        st.builds(Path, WORDS.filter(lambda text: not text.startswith("-"))), min_size=1, max_size=3
    ).map(tuple),
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
        else st.one_of(*(values_of(part) for part in parts if part is not type(None)))
    )


@st.composite
def configs_of(draw: Any, config: Any) -> Any:
    """Settings with some fields changed; those that refuse each other are left as they are by
    default."""
    hints = get_type_hints(config)
    chosen = {
        field.name: draw(values_of(hints[field.name]))
        for field in dataclasses.fields(config)
        if _has_no_default(field)
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


@pytest.mark.parametrize("verb", CONFIGS)
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
def test_a_command_parses_to_the_settings_that_it_was_made_of(
    verb: str, data: st.DataObject
) -> None:
    config = data.draw(configs_of(CONFIGS[verb]))
    line = command(verb, config)
    assert parse(shlex.split(line)[1:]).config == config


TEXT = "bezierdistill train --data digits --out "


def made_with(folder: Path, **more: Any) -> None:
    """Write a record by hand."""
    whole = {
        "command": TEXT,
        "machine": {},
        "started": "",
        "seconds": 1,
        "sessions": 1,
        "finished": False,
    }
    (folder / MADE).write_text(json.dumps(whole | more))


def test_sessions_and_their_seconds_add_up_also_of_an_interrupted_one(tmp_path: Path) -> None:
    config = TrainConfig("digits", tmp_path)
    assert read_made(tmp_path) is None

    def interrupted() -> None:
        with recorded(tmp_path, "train", config):
            time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    stopped = read_made(tmp_path)
    assert stopped is not None
    assert stopped.seconds >= 0.05
    assert (stopped.sessions, stopped.finished) == (1, False)
    with recorded(tmp_path, "train", config):
        running = read_made(tmp_path)
        time.sleep(0.05)
    assert running is not None
    assert (running.sessions, running.finished, running.seconds) == (2, False, stopped.seconds)
    done = read_made(tmp_path)
    assert done is not None
    assert (done.sessions, done.finished, done.started) == (2, True, stopped.started)
    assert done.seconds >= stopped.seconds + 0.05
    assert done.machine == machine()
    assert done.command == command("train", config)


def test_a_finished_run_is_left_alone_and_an_extended_one_is_told_of(tmp_path: Path) -> None:
    arena = ArenaConfig("moons", tmp_path, "rf-2")
    with recorded(tmp_path, "arena", arena):
        pass
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert {path.name for path in before} == {MADE, README}
    with recorded(tmp_path, "arena", arena):
        pass
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()
    } == before
    more = dataclasses.replace(arena, methods="rf-2,dmd")
    for _ in range(2):
        with recorded(tmp_path, "arena", more):
            pass
    made = read_made(tmp_path)
    assert made is not None
    assert made.command.split("\n") == [command("arena", arena), command("arena", more)]
    assert made.sessions == 2


def test_other_ranks_than_the_first_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with recorded(tmp_path, "train", TrainConfig("digits", tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_failure_is_told_and_not_that_its_record_could_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def failing() -> None:
        with recorded(folder, "train", TrainConfig("digits", folder)):
            shutil.rmtree(folder)
            folder.touch()  # now nothing can be written in it
            raise ValueError("the disk")

    with pytest.raises(ValueError, match="the disk"):
        failing()


def test_a_damaged_record_is_refused_by_its_reader_and_does_not_stop_the_run(
    tmp_path: Path,
) -> None:
    wrong = [
        {"command": 3},
        {"machine": []},
        {"machine": {"cores": [2]}},
        {"seconds": "1"},
        {"sessions": True},
        {"finished": 1},
    ]
    for more in [*wrong, {"seconds": -1}, {"sessions": -2}]:
        made_with(tmp_path, **more)
        with pytest.raises(ValueError, match=MADE):
            read_made(tmp_path)
    with recorded(tmp_path, "train", TrainConfig("digits", tmp_path)):
        pass
    made = read_made(tmp_path)
    assert made is not None
    assert made.sessions == 1


def test_what_is_made_in_one_step_is_told_of_once_it_is_there(tmp_path: Path) -> None:
    config = StoreMergeConfig((Path("a"), Path("b")), tmp_path)
    with pytest.raises(ValueError, match="no"), noted(tmp_path, "store merge", config):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        with noted(tmp_path, "store merge", config):
            time.sleep(0.02)
    made = read_made(tmp_path)
    assert made is not None
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
            "rf-2",
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
    optional = {"search.json", "report.html", "..."}
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
    made = read_made(runs[verb])
    assert made is not None
    assert made.finished
    assert made.command in (runs[verb] / README).read_text()
    before = (runs[verb] / MADE).read_bytes()
    assert main(shlex.split(made.command)[1:]) == 0
    assert (runs[verb] / MADE).read_bytes() == before


def test_parts_of_a_run_are_told_of_too_and_a_demo_as_one(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    student = read_made(runs["recipe"] / "student")
    assert student is not None
    assert student.command.startswith("bezierdistill distill --curves ")
    demo(DemoConfig(tmp_path / "demo", str(runs["train"].parent / "data.npz"), fast=True))
    made = read_made(tmp_path / "demo")
    assert made is not None
    assert made.command.startswith("bezierdistill demo --out ")


def test_every_verb_that_is_recorded_is_a_verb() -> None:
    assert FOLDERS.keys() <= CONFIGS.keys()

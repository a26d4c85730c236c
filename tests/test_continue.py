"""Runs that were stopped, moved, or taken to another machine go on to the same result."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bezierdistill.cli import main
from bezierdistill.errors import UserError
from bezierdistill.memory import batch_size
from bezierdistill.models import Model, find_teacher, load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import EmittedCurves, FlowMatching
from bezierdistill.run import MADE
from bezierdistill.simulation import Simulation
from bezierdistill.stages import recipe as recipe_module
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.recipe import RecipeConfig, run_recipe
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.settings import LoopConfig

LOOP, NET = LoopConfig(accelerator="cpu", save_every=2), NetworkConfig(width=16, depth=2)
Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(file, x=np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32))
    return str(file)


class StoppedError(Exception):
    """What ends a run in a test."""


def stops(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, send: int = 0) -> None:
    """Let a method end the run at its n-th call: by an error, or by a signal to the process."""
    true, calls = getattr(owner, name), iter(range(1, 10**6))

    def method(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call:
            if not send:
                raise StoppedError
            os.kill(os.getpid(), send)
        return true(*arguments, **more)

    patch.setattr(owner, name, method)


def half(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, run: Call) -> None:
    """Run something up to the n-th call of a method."""
    with patch.context() as context:
        stops(context, owner, name, call)
        with pytest.raises(StoppedError):
            run()


def teacher(data: str, at: Path) -> None:
    train(TrainConfig(data, at / "t", 6, 16, network=NET, loop=LOOP))


def curves(at: Path, **more: Any) -> SimulateConfig:
    return SimulateConfig(
        (at / "t",), at / "c", count=60, batch=20, steps=4, accelerator="cpu", **more
    )


def student(at: Path, init: Any = "teacher") -> DistillConfig:
    return DistillConfig(at / "c", at / "s", steps=9, batch=16, init=init, loop=LOOP)


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that was neither stopped nor moved."""
    at = tmp_path_factory.mktemp("whole")
    teacher(data, at)
    simulate(curves(at))
    distill(student(at))
    distill(replace(student(at, "scratch"), out=at / "scratch"))
    return at


def digest(folder: Path) -> str:
    return load_model(folder).card.digest


@pytest.mark.parametrize("init", ["teacher", "scratch"])
def test_a_chain_is_moved_between_its_stages(
    init: Any, data: str, whole: Path, tmp_path: Path
) -> None:
    teacher(data, tmp_path / "one")
    simulate(curves(tmp_path / "one"))
    distill(student(tmp_path / "one", init))
    shutil.move(tmp_path / "one", tmp_path / "two")
    done = distill(student(tmp_path / "two", init))  # finished: known, and left alone
    assert done.card.digest == digest(whole / ("s" if init == "teacher" else "scratch"))
    new = distill(replace(student(tmp_path / "two", init), out=tmp_path / "two" / "new"))
    assert new.card.digest == done.card.digest
    assert simulate(curves(tmp_path / "two")).digest == CurveStore.open(whole / "c").digest


def test_runs_that_are_half_done_go_on_after_a_move(
    data: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / name for name in ("one", "two", "deep/er/three", "four")]
    steps: list[tuple[Any, str, int, Call]] = [
        (FlowMatching, "loss", 4, lambda at: teacher(data, at)),
        (Simulation, "curves", 2, lambda at: simulate(curves(at))),
        (EmittedCurves, "loss", 6, lambda at: distill(student(at))),
    ]
    for (owner, name, call, run), here, there in zip(steps, places, places[1:], strict=False):
        half(monkeypatch, owner, name, call, lambda run=run, here=here: run(here))
        if owner is Simulation:
            assert [path.name for path in here.rglob("shard-*.json")] == ["shard-000000.json"]
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(here, there)
        run(there)
    at = places[-1]
    assert digest(at / "t") == digest(whole / "t")
    assert CurveStore.open(at / "c").digest == CurveStore.open(whole / "c").digest
    assert digest(at / "s") == digest(whole / "s")


def test_a_finished_run_is_left_alone_wherever_it_lies(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    made = {path: path.read_bytes() for path in (tmp_path / "copy").rglob(MADE)}
    assert len(made) == 4
    train(
        TrainConfig(
            load_model(whole / "t").card.data or "",
            tmp_path / "copy" / "t",
            6,
            16,
            network=NET,
            loop=LOOP,
        )
    )
    simulate(curves(tmp_path / "copy"))
    distill(student(tmp_path / "copy"))
    assert {path: path.read_bytes() for path in made} == made


def test_teachers_are_found_by_their_digest(whole: Path, tmp_path: Path) -> None:
    (ref,) = CurveStore.open(whole / "c").recipe.teachers
    assert not Path(ref.path).is_absolute()
    at = tmp_path / "runs" / "here"
    shutil.copytree(whole / "c", at / "c")
    with pytest.raises(UserError, match=r"needs the teacher \.\./t .* which is not there, nor"):
        find_teacher(ref, at / "c")
    for place in (at / "renamed", at.parent / "elsewhere"):
        shutil.copytree(whole / "t", place)
        assert find_teacher(ref, at / "c").folder == place.resolve()
        shutil.rmtree(place)
    # Another model in its place is not taken for it.
    shutil.copytree(whole / "s", at / "t")
    shutil.copytree(whole / "t", at / "renamed")
    assert find_teacher(ref, at / "c").card.digest == ref.digest
    assert distill(student(at)).card.digest == digest(whole / "s")


def test_another_teacher_is_another_run(whole: Path, tmp_path: Path) -> None:
    at = tmp_path / "copy"
    shutil.copytree(whole, at)
    shutil.rmtree(at / "t")
    shutil.copytree(whole / "s", at / "t")
    with pytest.raises(UserError, match="another run of simulate, with other teachers: choose"):
        simulate(curves(at))
    assert CurveStore.open(at / "c").digest == CurveStore.open(whole / "c").digest


def test_a_recipe_goes_on_after_a_move(
    data: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(at: Path) -> RecipeConfig:
        given = at / "given"
        return RecipeConfig(
            data, at / "run", 30_000, batch=16, strong=given, network=NET, loop=LOOP
        )

    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    for at in (one, tmp_path / "still"):
        shutil.copytree(whole / "t", at / "given")
    still = run_recipe(config(tmp_path / "still"))
    half(monkeypatch, recipe_module, "simulate", 1, lambda: run_recipe(config(one)))
    shutil.move(one, two)
    half(monkeypatch, EmittedCurves, "loss", 5, lambda: run_recipe(config(two)))
    shutil.move(two, three)
    assert run_recipe(config(three)).card.digest == still.card.digest
    made = (three / "run" / MADE).read_bytes()
    shutil.move(three, one)
    assert run_recipe(config(one)).card.digest == still.card.digest
    assert (one / "run" / MADE).read_bytes() == made
    shutil.rmtree(one / "given")
    shutil.copytree(whole / "s", one / "given")
    with pytest.raises(UserError, match="another run of recipe, with other strong: choose"):
        run_recipe(config(one))


def test_rounds_are_added_after_a_move(data: str, tmp_path: Path) -> None:
    def config(name: str, rounds: int) -> ReflowConfig:
        small: Any = {"steps": 4, "batch": 16, "count": 32, "solver_steps": 2}
        return ReflowConfig(data, tmp_path / name, rounds, network=NET, loop=LOOP, **small)

    still = reflow(config("still", 2))
    reflow(config("one", 1))
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert reflow(config("two", 2)) == still


def line(*words: object) -> list[str]:
    return shlex.split(" ".join(map(str, words)))


TINY = "--network.width 16 --network.depth 2 --loop.accelerator cpu --batch 16"


def test_ctrl_c_in_a_simulation_is_one_line_and_the_same_command_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = line(
        f"simulate --teachers {whole}/t --out {tmp_path}/c --count 60 --batch 20 --steps 4",
        "--accelerator cpu",
    )
    with monkeypatch.context() as patch:
        stops(patch, Simulation, "curves", 2, signal.SIGINT)
        assert main(command) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "bezierdistill simulate: interrupted; what was saved is kept, the same command continues\n"
    )
    assert main(command) == 0
    assert CurveStore.open(tmp_path / "c").digest == CurveStore.open(whole / "c").digest


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(FlowMatching, "loss", 3), (Simulation, "curves", 1), (EmittedCurves, "loss", 5)],
)
def test_ctrl_c_in_a_recipe_ends_with_one_line_and_the_same_command_goes_on(
    owner: Any,
    name: str,
    call: int,
    data: str,
    recipe: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = line(f"recipe --data {data} --budget 30000 --out {tmp_path}/r", TINY)
    with monkeypatch.context() as patch:
        stops(patch, owner, name, call, signal.SIGINT)
        assert main(command) == 130
    *before, last = capsys.readouterr().err.splitlines()
    assert last == (
        "bezierdistill recipe: interrupted; what was saved is kept, the same command continues"
    )
    # A training says first at which step it stopped: the state of that very step is saved.
    assert len(before) == (owner is not Simulation)
    assert all(f"stopped at step {call} of " in told for told in before)
    assert main(command) == 0
    assert digest(tmp_path / "r" / "student") == recipe


@pytest.fixture(scope="module")
def recipe(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a recipe's student that was never stopped."""
    out = tmp_path_factory.mktemp("recipe") / "r"
    assert main(line(f"recipe --data {data} --budget 30000 --out {out}", TINY)) == 0
    return digest(out / "student")


def test_the_batch_of_a_simulation_suits_the_states_and_is_kept_elsewhere(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> SimulateConfig:
        return replace(curves(whole), out=tmp_path / name, batch=None, count=9000)

    still = simulate(config("still"))
    assert still.recipe.batch == batch_size((4,), "cpu", whole=True) == 4096
    half(monkeypatch, Simulation, "curves", 2, lambda: simulate(config("c")))
    monkeypatch.setattr(Model, "batch", 128)  # of another machine
    store = simulate(config("c"))
    assert store.recipe.batch == 4096
    assert store.digest == still.digest
    rows = torch.arange(len(store))
    assert torch.equal(store.curves(rows).points, still.curves(rows).points)
    assert simulate(config("new")).recipe.batch == 128
    with pytest.raises(UserError, match="another run of simulate, with other batch: choose"):
        simulate(replace(config("c"), batch=128))
    assert simulate(replace(config("c"), batch=4096)).digest == still.digest


@pytest.mark.parametrize(
    ("shape", "device", "rows"),
    [
        ((2,), "cpu", 4096),
        ((64,), "cpu", 256),
        ((1, 8, 8), "cpu", 256),
        ((3, 32, 32), "cpu", 16),
        ((3, 1024, 1024), "cpu", 2),
        ((3, 32, 32), "cuda", 4096),
        ((3, 256, 256), "cuda", 64),
    ],
)
def test_batches_hold_as_many_places_as_the_device_takes(
    shape: tuple[int, ...], device: str, rows: int
) -> None:
    """20,000 pixels on a processor, 2^22 on a GPU, to the nearest power of two from 2 to 4096;
    an MLP takes an image as one vector, of 40 numbers at most."""
    assert batch_size(shape, device) == rows
    assert batch_size(shape, device, whole=True) == batch_size((min(40, math.prod(shape)),), device)

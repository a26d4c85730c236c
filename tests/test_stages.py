"""What all stages have in common: devices, settings that are honoured or refused, names of classes,
and the names of the package."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from lightning_fabric.accelerators.cuda import CUDAAccelerator
from lightning_fabric.accelerators.mps import MPSAccelerator
from PIL import Image

from bezierdistill.arena import demo as demo_module
from bezierdistill.arena.demo import DemoConfig
from bezierdistill.arena.runner import ArenaConfig, arena
from bezierdistill.cli import VERBS, main
from bezierdistill.errors import UserError
from bezierdistill.models import load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.records import ArenaRow, Scores, read_record
from bezierdistill.stages import reflow as reflow_module
from bezierdistill.stages.distill import StudentSettings
from bezierdistill.stages.reflow import ReflowConfig, reflow
from bezierdistill.stages.simulate import SimulateConfig
from bezierdistill.store import CurveStore
from bezierdistill.training import ranks
from bezierdistill.training.settings import LoopConfig


def run(line: str) -> int:
    return main(shlex.split(line))


def fails(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """The one line that a command ends with that cannot be done."""
    capsys.readouterr()
    assert run(line) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where ``auto`` would be Apple's MPS."""
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For which accelerators Fabric is asked; it gives the processor."""
    found, true = list[str](), ranks.open_fabric

    def opened(accelerator: str, *more: Any) -> Any:
        found.append(accelerator)
        return true("cpu", *more)

    for name in ("training.ranks", "training.ranks"):
        monkeypatch.setattr(f"bezierdistill.{name}.open_fabric", opened)
    return found


def test_auto_is_what_fabric_finds(gpu: None) -> None:
    assert ranks.open_fabric("auto").device.type == "mps"
    assert ranks.open_fabric("cpu").device.type == "cpu"


def test_the_demo_runs_on_the_processor_whatever_is_there(
    gpu: None, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(config: ArenaConfig, *more: Any) -> list[ArenaRow]:
        sizes: dict[str, Any] = {"budget": 30_000, "samples": 64, "batch": 16, "fast": False}
        network, methods = NetworkConfig(width=16, depth=1), ("bezier", "rf-2")
        return arena(dataclasses.replace(config, network=network, methods=methods, **sizes), *more)

    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 2)))
    monkeypatch.setattr(demo_module, "arena", small)
    rows = demo_module.demo(DemoConfig(tmp_path / "run", str(tmp_path / "x.npy")))
    assert {row.method: row.error for row in rows} == dict.fromkeys(("bezier", "rf-2"))
    assert set(asked) == {"cpu"}
    assert "loop" not in {field.name for field in dataclasses.fields(DemoConfig)}


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_a_reflow_hands_the_accelerator_on(
    accelerator: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated, true = [], reflow_module.simulate

    def simulate(config: SimulateConfig) -> CurveStore:
        simulated.append(config.accelerator)
        return true(config)

    monkeypatch.setattr(reflow_module, "simulate", simulate)
    monkeypatch.setattr(reflow_module, "JUDGED", 64)
    reflow(
        ReflowConfig(
            "moons",
            tmp_path / "r",
            rounds=2,
            steps=2,
            batch=8,
            count=16,
            solver_steps=2,
            network=NetworkConfig(width=16, depth=1),
            loop=LoopConfig(accelerator=accelerator),
        )
    )
    assert simulated == [accelerator] * 2
    assert set(asked) == {accelerator}


ORDERS = [
    "import bezierdistill.simulation as s; from bezierdistill import simulate",
    "from bezierdistill import simulate; import bezierdistill.simulation as s",
    "import bezierdistill as b; simulate = b.simulate; import bezierdistill.stages.simulate;"
    " import bezierdistill.simulation as s; assert b.simulate is simulate",
]


@pytest.mark.parametrize("order", ORDERS)
def test_no_name_is_both_a_module_and_a_function(order: str) -> None:
    reflows = "import bezierdistill.stages.reflow as m; from bezierdistill import reflow"
    tests = (
        "assert s.Simulation and s.__name__ == 'bezierdistill.simulation'",
        "assert callable(simulate) and simulate.__module__ == 'bezierdistill.stages.simulate'",
        "assert m.reflow is reflow and callable(reflow)",
    )
    code = "; ".join([order, reflows, *tests])
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"knots": (0.5,)}, "knots"),
        ({"passes": 1}, "passes"),
        ({"power": 0.0}, "power"),
        ({"passes": 3, "knots": (0.2, 0.7), "power": 2.0}, "knots, passes, power"),
    ],
)
def test_what_a_flow_cannot_use_is_refused(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError, match=f"which trains a flow, and {names} given: leave them out"):
        StudentSettings(objective="velocity", **settings)
    StudentSettings(objective="map", **settings)
    StudentSettings(objective="velocity", huber=0.1)


SEEDS = [
    (name, field.name)
    for name, verb in VERBS.items()
    for field in dataclasses.fields(verb.config)
    if field.name.endswith("seed")
]


def test_the_verbs_that_draw_have_a_seed() -> None:
    verbs = {name for name, _ in SEEDS}
    assert verbs >= {"train", "simulate", "distill", "recipe", "sample", "evaluate", "arena"}
    assert verbs >= {"demo", "reflow"}


@pytest.mark.parametrize(("verb", "name"), SEEDS)
def test_a_seed_is_a_whole_number_from_0_up(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VERBS[verb].config
    kinds = get_type_hints(config)
    needed = [
        field.name
        for field in dataclasses.fields(config)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    given = {key: "x" if kinds[key] is str else Path("x") for key in needed}
    given |= {key: (Path("x"),) for key in needed if "tuple" in str(kinds[key])}
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match=f"seed is {seed}, expected a whole number from 0"):
            config(**given, **{name: seed})
    config(**given, **{name: 2**63 - 1})
    flags = " ".join(f"--{key} {tmp_path}/x" for key in needed)
    line = f"{verb} {flags} --{name.replace('_', '-')} -1"
    assert "seed is -1, expected a whole number from 0" in fails(capsys, line)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder of images per class, dark cats and bright dogs; and a model."""
    at = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for name, grey in (("cats", 60), ("dogs", 190)):
        (at / "data" / name).mkdir(parents=True)
        for k in range(80):
            x = np.clip(grey + 10 * rng.standard_normal((4, 4)), 0, 255).astype(np.uint8)
            Image.fromarray(x).save(at / "data" / name / f"{k}.png")
    small = "--steps 200 --batch 64 --network.width 32 --network.depth 2 --loop.accelerator cpu"
    assert run(f"train --data {at}/data --conditional {small} --out {at}/t") == 0
    return at


def test_classes_are_called_by_their_names(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(pets / "t")
    assert model.card.conditions.names == ("cats", "dogs")
    assert (
        run(f"train --data {pets}/data --out {tmp_path}/t --conditional --steps 2 --batch 8") == 0
    )
    assert "classes by their numbers: 0 cats, 1 dogs\n" in capsys.readouterr().out
    sample = f"sample --model {pets}/t --count 60 --passes 20 --out {tmp_path}"
    assert run(f"{sample}/dogs.npz --labels dogs") == 0
    assert run(f"{sample}/both.npz --labels dogs,0") == 0
    dogs, both = (np.load(tmp_path / f"{name}.npz") for name in ("dogs", "both"))
    assert dogs["labels"].tolist() == [1] * 60
    assert both["labels"].tolist() == [1, 0] * 30
    assert dogs["x"].mean() == pytest.approx(190, abs=25)
    assert both["x"][1::2].mean() == pytest.approx(60, abs=25)
    expected = "no class 'birds', expected cats, dogs"
    assert expected in fails(capsys, f"{sample}/x.npz --labels birds")
    assert np.array_equal(model.sample(60, 20, labels=["dogs"]), dogs["x"])
    with pytest.raises(UserError, match="labels are empty, expected one or more"):
        model.sample(3, labels=[])


def test_classes_keep_their_names_in_curves_and_students(pets: Path, tmp_path: Path) -> None:
    make = f"simulate --teachers {pets}/t --count 64 --steps 4 --accelerator cpu"
    assert run(f"{make} --guidance-scale 1,3 --out {tmp_path}/c") == 0
    names = ("cats", "dogs")
    assert CurveStore.open(tmp_path / "c").recipe.conditions.names == names
    small = "--steps 4 --batch 16 --loop.accelerator cpu"
    assert run(f"distill --curves {tmp_path}/c --out {tmp_path}/s {small}") == 0
    student = load_model(tmp_path / "s")
    assert student.conditions.names == names
    cond = student.condition(range(3), labels=["dogs", "cats"], guidance_scale=2.0)
    assert cond is not None
    assert torch.equal(cond, torch.tensor([[0.0, 1, 2], [1, 0, 2], [0, 1, 2]]))


def test_classes_are_judged_by_their_names(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = f"sample --model {pets}/t --count 60 --passes 20 --labels dogs,cats,dogs"
    assert run(f"{sample} --out {tmp_path}/s.npz") == 0
    capsys.readouterr()
    evaluate = f"evaluate --samples {tmp_path}/s.npz --data {pets}/data --out {tmp_path}/m.json"
    assert run(f"{evaluate} --extractor classifier") == 0
    printed = capsys.readouterr().out
    assert "\n  cats: 20 samples, accuracy " in printed
    assert "\n  dogs: 40 samples, accuracy " in printed
    scores = read_record(tmp_path / "m.json", Scores, "scores")
    assert scores.classes is not None
    assert [(row.name, row.count) for row in scores.classes.by_class] == [
        ("cats", 20),
        ("dogs", 40),
    ]
    assert (scores.classes.accuracy or 0) > 0.9
    assert run(evaluate) == 0
    assert "cats" not in capsys.readouterr().out

"""Any velocity field as a teacher: the same curves as a teacher's own, and a student from scratch
that follows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bezierdistill as bd
from bezierdistill.files import digest, load_function
from bezierdistill.records import Manifest, read_sealed, to_json, write_sealed
from bezierdistill.reporting import write_report
from conftest import close, gaussian

NET, LOOP = bd.NetworkConfig(width=32, depth=2), bd.LoopConfig(accelerator="cpu", ema=0.9)
FIELD, STD = gaussian([1.0, -2.0], [0.5, 1.5]), torch.tensor([0.5, 1.5])


def simulated(out: Path, **more: Any) -> bd.CurveStore:
    return bd.simulate_field(
        FIELD, (2,), bd.SimulateConfig((), out, count=2000, accelerator="cpu"), network=NET, **more
    )


def shards(store: bd.CurveStore) -> list[Path]:
    return sorted(store.folder.glob("shard-*.safetensors"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"points": "uint8", "noise": "seed"}, {"guides": "hermite", "degree": 3, "seed": 4}],
)
def test_a_teachers_own_field_gives_the_teachers_own_shards(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    teacher = bd.train(
        bd.TrainConfig("moons", tmp_path / "teacher", steps=5, network=NET, loop=LOOP)
    )
    config = bd.SimulateConfig(
        (tmp_path / "teacher",), tmp_path / "its", count=300, accelerator="cpu", **settings
    )
    own = bd.simulate(config)
    other = bd.simulate_field(
        teacher.field,
        (2,),
        replace(config, teachers=(), out=tmp_path / "field"),
        teacher.scaling,
        NET,
    )
    assert [digest(file) for file in shards(own)] == [digest(file) for file in shards(other)]
    assert own.manifest.passes == other.manifest.passes


def test_a_student_from_scratch_learns_the_exact_map(tmp_path: Path) -> None:
    """Between two normal distributions, the first standard, the flow is affine: mean + std x0."""
    scaling = bd.load_data("moons").scaling
    simulated(tmp_path / "curves", scaling=scaling)
    config = bd.DistillConfig(
        tmp_path / "curves", tmp_path / "student", steps=300, batch=256, init="scratch", loop=LOOP
    )
    student = bd.distill(config)
    assert (student.network, student.shape, student.scaling) == (NET, (2,), scaling)
    assert student.condition_size == 0
    assert student.spent == 2000 * 16 + student.card.passes.training
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    exact = torch.tensor([1.0, -2.0]) + STD * x0
    for passes in (1, 2):
        assert (student.generate(x0, passes) - exact).square().mean().sqrt() < 0.15
    assert bd.distill(config).card.digest == student.card.digest  # finished: loaded
    assert write_report(tmp_path / "student").exists()
    assert write_report(tmp_path / "curves").exists()


def test_alignment_needs_the_fields_own_units(tmp_path: Path) -> None:
    simulated(tmp_path / "curves")
    config = bd.DistillConfig(
        tmp_path / "curves",
        tmp_path / "student",
        init="scratch",
        align=2,
        data="moons",
        steps=2,
        batch=8,
        loop=LOOP,
    )
    with pytest.raises(ValueError, match="not what the teachers"):
        bd.distill(config)
    simulated(tmp_path / "scaled", scaling=bd.load_data("moons").scaling)
    assert bd.distill(replace(config, curves=tmp_path / "scaled")).knots.keys() == {1, 2}


def test_the_curves_end_where_the_field_does(tmp_path: Path) -> None:
    curve = simulated(tmp_path / "curves").curves(torch.arange(100))
    end = bd.solve(FIELD, curve.source, bd.time_grid(8), "heun").state
    close(curve.data, end, 1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": (Path("a"),)}, "teachers given"),
        ({"weights": (1, 0), "invert_from": "moons"}, "weights, invert_from given"),
        ({"guidance_scale": (2.0,)}, "guidance_scale given"),
        ({"guides": "hermite", "degree": 2}, "expected 3 or more"),
    ],
)
def test_what_is_for_teachers_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    config = bd.SimulateConfig(**({"teachers": (), "out": tmp_path / "curves"} | settings))
    with pytest.raises(ValueError, match=message):
        bd.simulate_field(FIELD, (2,), config)
    assert not (tmp_path / "curves").exists()


@pytest.mark.parametrize(
    ("field", "shape", "network", "message"),
    [
        (FIELD, (3,), NET, "cannot be asked at states of shape"),
        (FIELD, (2, 2), NET, r"expected \(D,\)"),
        (FIELD, (2,), bd.NetworkConfig("unet", 32), "shape"),
        (
            bd.ForeignField(lambda y, t: y[:, :1], "velocity", bd.LinearSchedule("up")),
            (2,),
            NET,
            "expected finite velocities",
        ),
        (
            bd.ForeignField(lambda y, t: y / 0, "velocity", bd.LinearSchedule("up")),
            (2,),
            NET,
            "expected finite velocities",
        ),
        ("a name", (2,), NET, "expected a velocity field"),
    ],
)
def test_a_misfit_is_found_before_anything_is_written(
    tmp_path: Path, field: Any, shape: Any, network: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bd.simulate_field(
            field,
            shape,
            bd.SimulateConfig((), tmp_path / "curves", count=10, accelerator="cpu"),
            network=network,
        )
    assert not (tmp_path / "curves").exists()


def test_a_plain_function_is_a_field_of_one_pass(tmp_path: Path) -> None:
    config = bd.SimulateConfig((), tmp_path / "curves", count=20, steps=4, accelerator="cpu")
    field: Any = lambda x, t, cond=None: -x  # noqa: E731
    store = bd.simulate_field(field, (2,), config, network=NET)
    assert store.manifest.passes == 20 * 2 * 4
    curve = store.curves(torch.arange(20))
    close(curve.data, curve.source * (1 - 0.25 + 0.25**2 / 2) ** 4, 1e-5)  # Heun's steps
    told = (tmp_path / "curves" / "README.txt").read_text()
    assert "simulated in Python (bezierdistill.simulate_field" in told


def test_without_teachers_there_are_no_weights_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teachers is empty"):
        bd.simulate(bd.SimulateConfig((), tmp_path / "none"))
    simulated(tmp_path / "curves")
    with pytest.raises(ValueError, match="expected --init scratch"):
        bd.distill(bd.DistillConfig(tmp_path / "curves", tmp_path / "student"))


@pytest.mark.parametrize(
    "network",
    [
        [],
        {},
        {"width": 2**20},
        {"depth": 10**9},
        {"kind": 3},
        {"width": "wide"},
        {"width": True},
        {"kind": "mlq"},
        {"kind": "diffusers"},
    ],
)
def test_a_network_that_nobody_has_is_refused(tmp_path: Path, network: Any) -> None:
    store = simulated(tmp_path / "curves")
    held = read_sealed(store.folder / "manifest.json", Manifest, "curve store")
    manifest = to_json(held)
    own = manifest["recipe"]["network"]
    manifest["recipe"]["network"] = own | network if network else network
    for name in ("manifest.json", "manifest.copy.json"):
        write_sealed(store.folder / name, manifest)
    with pytest.raises(ValueError, match=r"network|depth|width|kind"):
        bd.distill(
            bd.DistillConfig(
                store.folder, tmp_path / "student", init="scratch", steps=1, batch=8, loop=LOOP
            )
        )


def test_a_users_file_may_have_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class A:
    b: int = 3

def method(x):
    return A().b + x
"""
    )
    assert load_function(tmp_path / "mine.py", "method", "adds")(4) == 7

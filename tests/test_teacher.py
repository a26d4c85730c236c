"""Any velocity field as a teacher: the same curves as a model's own, and a student from scratch
that follows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bezierdistill as bd
from bezierdistill.files import digest, load_function
from bezierdistill.reporting import write_report
from conftest import close, gaussian

NET, LOOP = bd.NetworkConfig(width=32, depth=2), bd.LoopConfig(accelerator="cpu", ema=0.9)
FIELD, STD = gaussian([1.0, -2.0], [0.5, 1.5]), torch.tensor([0.5, 1.5])


LINE = bd.LinearSchedule("up")


def teacher_of(field: Any = FIELD, shape: Any = (2,), **more: Any) -> bd.Teacher:
    return bd.Teacher(field, "velocity", LINE, shape=shape, **more)


def simulated(out: Path, **more: Any) -> bd.CurveStore:
    config = bd.SimulateConfig((teacher_of(**more),), out, count=2000, accelerator="cpu")
    return bd.simulate(config)


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
    field = teacher_of(teacher.field, scaling=teacher.scaling)
    other = bd.simulate(replace(config, teachers=(field,), out=tmp_path / "field"))
    assert [digest(file) for file in shards(own)] == [digest(file) for file in shards(other)]
    assert own.manifest.passes == other.manifest.passes


def test_a_student_from_scratch_learns_the_exact_map(tmp_path: Path) -> None:
    """Between two normal distributions, the first standard, the flow is affine: mean + std x0."""
    scaling = bd.load_data("moons").scaling
    curves = simulated(tmp_path / "curves", scaling=scaling)
    config = bd.DistillConfig(
        tmp_path / "curves",
        tmp_path / "student",
        steps=300,
        batch=256,
        init="scratch",
        student=NET,
        loop=LOOP,
    )
    student = bd.distill(config)
    emitting = replace(NET, control_points=4)
    assert (student.network, student.shape, student.scaling) == (emitting, (2,), scaling)
    assert student.condition_size == 0
    assert student.spent == curves.manifest.passes + student.card.passes.training
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
        student=NET,
        align=2,
        data="moons",
        steps=2,
        batch=8,
        loop=LOOP,
    )
    with pytest.raises(ValueError, match="not what the teachers"):
        bd.distill(config)
    simulated(tmp_path / "scaled", scaling=bd.load_data("moons").scaling)
    assert bd.distill(replace(config, curves=tmp_path / "scaled")).knots.keys() == {1, 2, 3, 4}


def test_the_curves_end_where_the_field_does(tmp_path: Path) -> None:
    curve = simulated(tmp_path / "curves").curves(torch.arange(100))
    end = bd.solve(FIELD, curve.source, bd.time_grid(8), "heun").state
    close(curve.data, end, 1e-5)


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        (FIELD, (3,), "cannot be asked without a condition at states of shape"),
        (FIELD, (2, 2), r"expected \(D,\)"),
        (FIELD, None, "have no shape: give data="),
        (lambda y, t: y[:, :1], (2,), r"returns shape \(4, 1\) for states of shape \(4, 2\)"),
        (lambda y, t: (y, y), (2,), "returns 2 values .Tensor, Tensor.*choose it by call="),
        (lambda y, t: y / 0 * 0, (2,), "gives NaN or infinite numbers"),
        (lambda y, t: torch.randn_like(y), (2,), "different velocities for the same state"),
        (lambda y, t, label: y, (2,), "label.*give call=, and conditions= if it needs one"),
        ("a name", (2,), "cannot be asked"),
    ],
)
def test_a_misfit_is_found_before_anything_is_written(
    tmp_path: Path, field: Any, shape: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        bd.simulate(
            bd.SimulateConfig(
                (teacher_of(field, shape),), tmp_path / "curves", count=10, accelerator="cpu"
            )
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "curves").exists()


def test_a_plain_function_is_a_field_of_one_pass(tmp_path: Path) -> None:
    config = bd.SimulateConfig(
        (teacher_of(lambda x, t: -x),), tmp_path / "curves", count=20, steps=4, accelerator="cpu"
    )
    store = bd.simulate(config)
    assert store.manifest.passes == 20 * 2 * 4
    curve = store.curves(torch.arange(20))
    close(curve.data, curve.source * (1 - 0.25 + 0.25**2 / 2) ** 4, 1e-5)  # Heun's steps


def test_a_field_has_no_network_for_the_student(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teachers is empty"):
        bd.simulate(bd.SimulateConfig((), tmp_path / "none"))
    simulated(tmp_path / "curves")
    config = bd.DistillConfig(tmp_path / "curves", tmp_path / "student")
    with pytest.raises(ValueError, match=r"expected student=teacher.student"):
        bd.distill(config)
    with pytest.raises(ValueError, match="expected --init scratch"):
        bd.distill(replace(config, student=NET))
    with pytest.raises(ValueError, match="expected a torch module, which alone can be trained"):
        teacher_of().student()
    with pytest.raises(ValueError, match="student is a int"):
        bd.distill(replace(config, student=3))


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

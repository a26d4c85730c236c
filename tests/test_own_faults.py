"""What a user's own module may have or be that would give wrong results in silence, or a traceback:
shared and frozen weights, wrapped modules, conditions and conventions that do not match."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bezierdistill as bd
from bezierdistill.models.folder import SAMPLER, SECOND, WEIGHTS, _digest
from bezierdistill.models.teacher import told_schedule
from bezierdistill.networks.own import OwnNetwork

LINE = bd.LinearSchedule("up")
LOOP = bd.LoopConfig(accelerator="cpu", ema=0.9)
VALUES = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
FRESH = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """A small network that embeds its time, and takes a vector per row where it has one."""

    def __init__(self, cond: int = 0) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))
        self.enter, self.mid, self.leave = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.cond = nn.Linear(cond, 8) if cond else None

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.enter(x) + self.time(t[:, None])
        if self.cond is not None and c is not None:
            h = h + self.cond(c)
        return self.leave(self.middle(h.tanh()).tanh())

    def middle(self, h: Tensor) -> Tensor:
        return self.mid(h)


class Tied(Net):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 8)
        self.other.weight = self.mid.weight

    def middle(self, h: Tensor) -> Tensor:
        return self.other(self.mid(h).relu())


class Repeated(Tied):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.other = self.mid


class Masked(Net):
    """A saved mask of minus infinity, as attention has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


class Fourier(Net):
    """Random features that its owner froze."""

    def __init__(self) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def middle(self, h: Tensor) -> Tensor:
        return self.mid((h @ self.directions).sin())


class Encoder(nn.Module):
    """Torch's own transformer layer, which has a fused path where no gradient is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.enter, self.leave = nn.Linear(1, 8), nn.Linear(1, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.enter(x[..., None]) + self.time(t[:, None])[:, None]
        return self.leave(self.layer(h))[..., 0]


def normed() -> Net:
    net = Net()
    nn.utils.parametrizations.weight_norm(net.mid)
    return net


def teacher_of(module: Any, *given: Any, **more: Any) -> bd.Teacher:
    settings: dict[str, Any] = {"shape": (2,)} | more
    return bd.Teacher(module, "velocity", LINE, *given, **settings)


def simulated(teachers: Any, out: Path, **more: Any) -> bd.CurveStore:
    settings: dict[str, Any] = {"count": 40, "steps": 4, "accelerator": "cpu"} | more
    return bd.simulate(bd.SimulateConfig(teachers, out, **settings))


def distilled(teacher: bd.Teacher, folder: Path, way: Any = "second-time", **more: Any) -> bd.Model:
    if not (folder / "curves").exists():
        simulated(teacher, folder / "curves")
    settings: dict[str, Any] = {"steps": 8, "batch": 8, "loop": LOOP} | more
    student = settings.pop("student", None) or teacher.student(way)
    config = bd.DistillConfig(folder / "curves", folder / "student", student=student, **settings)
    return bd.distill(config)


def trained_adapters(module: nn.Module, **more: Any) -> OwnNetwork:
    """A student whose adapters do something."""
    net = teacher_of(module).student(lora=2, **more).build(0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return net.eval()


def plain_sample(folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> Callable[..., Any]:
    monkeypatch.chdir(folder)
    exec(Path(SAMPLER).read_text(), names)
    return names["sample"]


@pytest.mark.parametrize("kind", [Tied, Repeated, Masked, normed])
def test_what_a_module_may_hold(
    tmp_path: Path, kind: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained, kept, read again, and is the same in the plain class."""
    torch.manual_seed(0)
    module = kind()
    teacher = teacher_of(module)
    model = distilled(teacher, tmp_path)
    again = bd.load_model(tmp_path / "student", teacher)
    np.testing.assert_array_equal(again.sample(4, 2), model.sample(4, 2))
    sample = plain_sample(tmp_path / "student", monkeypatch, module=kind())
    torch.testing.assert_close(sample(FRESH, 2), model.generate(FRESH, 2), rtol=1e-6, atol=1e-6)
    assert not np.allclose(model.sample(4, 2), teacher.sample(4, 2), atol=1e-5)


@pytest.mark.parametrize("kind", [Net, Tied, Repeated, Encoder, normed])
def test_adapters_added_to_the_weights_are_the_adapters(kind: Callable[[], nn.Module]) -> None:
    """With gradients, without, and in the plain class."""
    torch.manual_seed(0)
    net, plain = trained_adapters(kind()), kind()
    plain.load_state_dict(net.weights())
    s = torch.full((4,), 0.3)
    trained = net(FRESH, s, s).detach()
    with torch.no_grad():
        torch.testing.assert_close(net(FRESH, s, s), trained)
        torch.testing.assert_close(plain.eval()(FRESH, s), trained, rtol=1e-5, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("target", ["layer.self_attn.out_proj", "other", "no"])
def test_adapters_that_could_not_be_added_are_refused(target: str) -> None:
    module = Encoder() if "attn" in target else Tied()
    with pytest.raises(ValueError, match="no layer whose weights an adapter can be added to"):
        teacher_of(module).student(lora=2, targets=(target,)).build(0)


def test_what_its_owner_froze_stays(tmp_path: Path) -> None:
    """Unless all is frozen, as of a module that was only called."""
    module = Fourier()
    net = distilled(teacher_of(module), tmp_path).net
    assert isinstance(net, OwnNetwork)
    assert torch.equal(net.module.directions, module.directions)
    assert not torch.equal(net.module.mid.weight, module.mid.weight)
    still = teacher_of(Net().requires_grad_(False)).student().build(0)
    assert not still.frozen


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_a_wrapped_module_has_its_own_names(tmp_path: Path, wrap: Any) -> None:
    module = Net()
    teacher = teacher_of(wrap(module))
    assert teacher.digest == teacher_of(module).digest
    distilled(teacher, tmp_path)
    Net().load_state_dict(load_file(tmp_path / "student" / WEIGHTS))


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Stated(Net):
    def get_extra_state(self) -> dict[str, int]:
        return {"step": 1}

    def set_extra_state(self, state: object) -> None:
        pass


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Parameter(torch.ones(8, dtype=torch.complex64))


def on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def traced() -> Any:
    return torch.jit.trace(Net(), (torch.zeros(4, 2), torch.zeros(4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Locked, "cannot be copied .TypeError: cannot pickle '_thread.lock'"),
        (Stated, "state has a dict"),
        (Complex, "rotation is torch.complex64"),
        (on_meta, "on the meta device, without weights"),
        (traced, "expected a torch module, which alone can be trained"),
    ],
)
def test_modules_that_cannot_be_students(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        teacher_of(make()).student("start-time").build(0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, t, c: m(x, t[:1].expand(len(x))), "rows that do not mix, each with its own"),
        (lambda m, x, t, c: m(x - x.mean(0), t), "rows that do not mix"),
        (lambda m, x, t, c: m(x, t).to(torch.complex64), "returns torch.complex64"),
        (lambda m, x, t, c: nn.functional.embedding(t, torch.zeros(9, 2)), "whole steps as call="),
    ],
)
def test_calls_that_would_train_a_wrong_field(call: Any, message: str) -> None:
    """One time for all rows is right in a simulation, and wrong in a training."""
    with pytest.raises(ValueError, match=message):
        teacher_of(Net(), call).student("start-time")


@pytest.mark.parametrize(
    ("given", "none", "message"),
    [
        (VALUES.tolist(), None, "different names of classes, or a table as an array"),
        ([0.1, 0.2], None, "different names of classes"),
        (["cat", "cat"], None, "different names of classes"),
        (3, 0.5, "none is 0.5, expected the index of a class"),
        (None, 3, "none is given without conditions"),
        (bd.Table(VALUES), torch.zeros(3), "none is given beside a Table"),
        (VALUES, torch.zeros(1, 3), r"none has shape \(1, 3\), expected one row"),
        ({"a": VALUES}, {"b": torch.zeros(3)}, "none has shape b"),
        (np.array(["a prompt", "another"]), None, "conditions are no numbers"),
        ({"text": ["a prompt"]}, None, "conditions are no numbers"),
        (torch.tensor(3), None, "a table of 0 rows"),
    ],
)
def test_conditions_that_would_be_taken_for_others(given: Any, none: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        teacher_of(Net(3), conditions=given, none=none)
    assert "\n" not in str(error.value)


def test_a_table_has_the_rows_that_it_says() -> None:
    with pytest.raises(ValueError, match="count is 9, the table has 7 rows"):
        bd.Table(VALUES, 9)
    assert bd.Table(VALUES, 5).count == 5
    assert teacher_of(Net(3), conditions=np.int64(4)).conditions.classes == 4


def test_conditions_of_samples_are_rows_or_values_in_any_form() -> None:
    module = Net(3)
    teacher = teacher_of(module, conditions=VALUES)
    rows = [3, 5, 5]
    right = teacher.sample(3, conditions=np.array(rows))
    for given in (torch.tensor(rows), VALUES[rows], VALUES[rows].numpy()):
        np.testing.assert_allclose(teacher.sample(3, conditions=given), right, atol=1e-6)
    named = teacher_of(module, conditions={"c": VALUES})
    values = {"c": VALUES[rows].numpy()}
    np.testing.assert_allclose(named.sample(3, conditions=values, batch=2), right, atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected row numbers \(3,\)"):
        teacher.sample(3, conditions=VALUES[:1])
    single = teacher_of(Net(1), conditions=VALUES[:, :1])
    with pytest.raises(ValueError, match="values of more than one number each"):
        single.sample(3, conditions=VALUES[:3, :1])  # would be taken for rows 0 or 1
    for row in (-1.0, 7.0, float("nan")):
        with pytest.raises(ValueError, match="of a table, expected 0 to 6"):
            teacher(FRESH[:1], 0.5, torch.tensor([[row]]))


def test_plain_code_takes_what_the_module_takes_and_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary of conditions, and a tuple of one tensor."""

    class Tuple(Net):
        def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Any:
            return (super().forward(x, t, c),)

    teacher = teacher_of(Tuple(3), conditions={"c": VALUES})
    model = distilled(teacher, tmp_path)
    sample, cond = plain_sample(model.folder or tmp_path, monkeypatch, module=Tuple(3)), VALUES[:4]
    ours = model.generate(FRESH, 2, cond={"c": cond})  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(sample(FRESH, 2, {"c": cond}), ours, rtol=1e-6, atol=1e-6)


def test_plain_code_samples_a_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that has learnt a velocity has no knots: its steps are even."""
    model = distilled(teacher_of(Net()), tmp_path, objective="velocity")
    assert not model.knots
    sample = plain_sample(tmp_path / "student", monkeypatch, module=Net())
    torch.testing.assert_close(sample(FRESH, 4), model.generate(FRESH, 4), rtol=1e-6, atol=1e-6)


def test_jumps_of_one_grid_are_no_velocity(tmp_path: Path) -> None:
    settings = {"objective": "knots", "passes": 2}
    model = distilled(teacher_of(Net()), tmp_path, "start-time", **settings)
    with pytest.raises(ValueError, match="not a velocity: expected the solver euler"):
        model.sample(2, 4, solver="heun")
    with pytest.raises(ValueError, match="not a velocity"):
        simulated(model, tmp_path / "more")


def test_a_student_is_read_as_it_was_distilled(tmp_path: Path) -> None:
    """With the same prediction, times, shape and form of conditions; else samples are wrong."""
    module, wide = Net(3), bd.LinearSchedule("up", 999)
    teacher = teacher_of(module, conditions=VALUES)
    distilled(teacher, tmp_path)
    bd.load_model(tmp_path / "student", bd.Teacher(module, "velocity", LINE, conditions=VALUES))
    more: dict[str, Any] = {"shape": (2,), "conditions": VALUES}
    misfits: list[tuple[Any, str]] = [
        (bd.Teacher(module, "flow", LINE, **more), "prediction velocity, the one given has flow"),
        (bd.Teacher(module, "velocity", wide, **more), "schedule LinearSchedule"),
        (bd.Teacher(module, "velocity", LINE, shape=(3,), conditions=VALUES), "shape"),
        (teacher_of(module, conditions=3), "of a condition 1"),
        (teacher_of(module, conditions=VALUES[:5]), "rows of a"),
        (module, "with a Net, expected the Teacher that wraps"),
    ]
    for other, message in misfits:
        with pytest.raises(ValueError, match=message):
            bd.load_model(tmp_path / "student", other)


def test_schedules_are_told_with_all_their_numbers() -> None:
    def told(least: float) -> str:
        return told_schedule(bd.StepSchedule((1 - torch.linspace(least, 0.02, 2000)).cumprod(0)))

    middle = torch.linspace(0.99, 0.01, 2000)
    other = middle.clone()
    other[1000] += 1e-5
    assert told_schedule(bd.StepSchedule(middle)) != told_schedule(bd.StepSchedule(other))
    assert told(1e-4) == told(1e-4)
    assert told_schedule(bd.LinearSchedule("up", 999)) == told_schedule(
        bd.LinearSchedule("up", 999.0)
    )


class Cosine:
    """A schedule of a user's own."""

    span = (0.001, 0.999)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = t.clamp(*self.span)
        return t, 1 - t, 1 - t


def test_a_schedule_of_the_users_own(tmp_path: Path) -> None:
    model = distilled(bd.Teacher(Net(), "flow", Cosine(), shape=(2,)), tmp_path)
    assert model.sample(3).shape == (3, 2)


def digest_of(scale: float, net: nn.Module) -> str:
    return teacher_of(lambda x, t: net(x, t * scale)).digest


class Holder:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)


def test_a_changed_function_is_another_teacher() -> None:
    """Its numbers, what it calls, and the weights of modules that it refers to."""
    net = Net()
    calls: list[Any] = [
        lambda m, x, t, c: m(x, t * 999),
        lambda m, x, t, c: m(x, t * 1000),
        lambda m, x, t, c: m(x, t.sin()),
        lambda m, x, t, c: m(x, t.cos()),
    ]
    assert len({teacher_of(net, call).digest for call in calls}) == 4
    assert digest_of(1.0, net) == digest_of(1.0, net) != digest_of(2.0, net)

    def digests() -> list[str]:
        holder = Holder(net)
        return [digest_of(1.0, net), teacher_of(holder.velocity).digest]

    before = digests()
    with torch.no_grad():
        net.mid.weight.add_(1)
    assert all(old != new for old, new in zip(before, digests(), strict=True))


def test_a_blend_has_conditions_of_one_meaning(tmp_path: Path) -> None:
    def by_class(names: Any) -> bd.Teacher:
        return teacher_of(lambda x, t, c: x, conditions=names)

    pairs = [
        (by_class(["cat", "dog"]), by_class(["dog", "cat"])),
        (by_class(1), by_class(VALUES)),
        (by_class(VALUES), by_class(VALUES[:5])),
    ]
    for pair in pairs:
        with pytest.raises(ValueError, match="expected conditions of one meaning, in one order"):
            simulated(pair, tmp_path / "curves", weights=((1.5,), (-0.5,)))


def test_a_student_has_the_units_and_the_table_of_its_curves(tmp_path: Path) -> None:
    module = Net(3)
    teacher = teacher_of(module, conditions=VALUES)
    simulated(teacher, tmp_path / "curves")
    mixed = teacher_of(module, conditions=VALUES.flip(0))
    with pytest.raises(ValueError, match="rows of another table"):
        distilled(mixed, tmp_path)
    units = bd.Scaling((1.0, 2.0), (3.0, 4.0))
    scaled = teacher_of(module, conditions=VALUES, scaling=units)
    with pytest.raises(ValueError, match="in other units than the curves"):
        distilled(scaled, tmp_path)
    assert distilled(teacher, tmp_path).conditions.rows == 7


def test_a_student_of_a_student(tmp_path: Path) -> None:
    """The first one's folder cannot be read without its module, and need not be."""
    teacher = teacher_of(Net())
    first = distilled(teacher, tmp_path / "first")
    simulated(first, tmp_path / "second" / "curves")
    second = distilled(teacher, tmp_path / "second")
    assert second.card.passes.teachers == first.spent
    assert second.card.teachers[0].digest == first.digest
    with pytest.raises(ValueError, match="module of your own, which has no network of ours"):
        bd.distill(bd.DistillConfig(tmp_path / "second" / "curves", tmp_path / "third"))


def test_the_best_of_a_blend_may_be_ours(tmp_path: Path) -> None:
    net = bd.NetworkConfig(width=8, depth=1)
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    ours = bd.train(bd.TrainConfig(data, tmp_path / "ours", steps=3, network=net, loop=LOOP))
    own = teacher_of(Net(), scaling=ours.scaling)
    simulated((tmp_path / "ours", own), tmp_path / "curves", weights=((1.5,), (-0.5,)))
    config = bd.DistillConfig(
        tmp_path / "curves", tmp_path / "student", steps=3, batch=8, loop=LOOP
    )
    assert bd.distill(config).network == replace(net, control_points=4)


def test_passes_of_a_module_of_several_and_of_features_are_counted(tmp_path: Path) -> None:
    data = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    spent = {}
    for passes in (1, 2):
        teacher = teacher_of(Net(), data=data, scaling=bd.Scaling(), passes=passes, shape=None)
        more = {"align": 4, "align_batch": 8, "data": data, "objective": "end", "passes": 1}
        for features in (("states",), ("mid",)):
            folder = tmp_path / f"{passes}{features}"
            model = distilled(teacher, folder, align_features=features, **more)
            spent[passes, features] = model.card.passes.training
    assert spent[2, ("states",)] == 2 * spent[1, ("states",)]
    # Of 8 rows in 4 steps 3 passes of a made state with its gradient; of 4 times as many real ones
    # 1, before the first step.
    assert spent[1, ("mid",)] - spent[1, ("states",)] == 4 * 8 * (3 + 4)
    assert spent[2, ("mid",)] == 2 * spent[1, ("mid",)]


def test_features_leave_no_gradient_in_the_module() -> None:
    module = Net()
    hidden = teacher_of(module).features(("mid",))
    x = FRESH.clone().requires_grad_(True)
    hidden(x)[0].sum().backward()
    assert x.grad is not None
    assert all(part.grad is None and part.requires_grad for part in module.parameters())


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor(1.0), "has no matrix time"),
        (torch.zeros(8, 3), r"second time of time is \(8, 3\), expected \(8, 17\)"),
        (torch.zeros(5, 17), "as many numbers"),
        (torch.zeros(100_000, 17), "as many numbers"),
    ],
)
def test_a_strangers_second_time_is_told_in_one_line(
    tmp_path: Path, tensor: Tensor, message: str
) -> None:
    teacher = teacher_of(Net())
    folder = distilled(teacher, tmp_path, steps=1).folder or tmp_path
    old = _digest(folder)
    save_file({"time": tensor}, folder / SECOND)
    card = folder / "model.json"
    card.write_text(card.read_text().replace(old, _digest(folder)))
    with pytest.raises(ValueError, match=message) as error:
        bd.load_model(folder, teacher).sample(3)
    assert "\n" not in str(error.value)


def test_constant_data_have_a_direction() -> None:
    assert bd.check_direction(teacher_of(lambda x, t: -x), torch.zeros(100, 2)).left < 1


def test_data_that_are_noise_have_no_direction() -> None:
    """Of two draws of one distribution the shares of their distance are chance."""
    same = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    weak = teacher_of(lambda x, t: 0.4 * x.sin(), scaling=bd.Scaling())
    assert abs(bd.check_direction(weak, same).left) > 1


def test_a_buffer_that_is_replaced_is_given_back() -> None:
    class Counting(Net):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def middle(self, h: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.mid(h)

    module = Counting()
    teacher_of(module).sample(3, 4)
    assert float(module.calls) == 0

"""A user's own module as teacher and student: exact in every calling convention, started as it is,
trained in three ways, saved by its own names, sampled by plain code."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bezierdistill as bd
from bezierdistill import objectives
from bezierdistill.fields import GaussianMixture, Guided
from bezierdistill.flow_map import sample
from bezierdistill.models.folder import SAMPLER, SECOND, WEIGHTS
from bezierdistill.models.standalone import standalone
from bezierdistill.networks.own import OwnNetwork
from bezierdistill.networks.second import SecondTime
from bezierdistill.noise import Stream, noise
from foreign_networks import CLASSES, MANNERS, MINE, Body, Ideal, Manner, mixtures, trained

LOOP = bd.LoopConfig(accelerator="cpu", ema=0.9)
REAL = mixtures()[1].sample(3000, torch.Generator().manual_seed(5)).float()
KNOWN: dict[str, Any] = {"data": REAL}  # in the units they were made in
F64 = torch.float64
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "start-time": ({"way": "start-time"}, {"objective": "knots", "passes": 2}),
    "second-time": ({}, {}),
    "lora": ({"lora": 3}, {}),
    "start-time, lora": ({"way": "start-time", "lora": 3}, {"objective": "knots", "passes": 1}),
}


def states(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def curves_of(teacher: bd.Teacher, out: Path, count: int = 200, **more: Any) -> bd.CurveStore:
    return bd.simulate(
        bd.SimulateConfig((teacher,), out, count=count, steps=4, accelerator="cpu", **more)
    )


def distilled(curves: Path, out: Path, student: Any, **more: Any) -> bd.Model:
    settings: dict[str, Any] = {"steps": 12, "batch": 64, "loop": LOOP} | more
    return bd.distill(bd.DistillConfig(curves, out, student=student, **settings))


@pytest.mark.parametrize("name", MANNERS)
def test_the_field_of_every_convention_is_exact(name: str) -> None:
    """With labels, without, and guided between both."""
    single, everything = mixtures()
    teacher = MANNERS[name].teacher(Ideal(name, single, everything), conditional=True)
    low, high = MANNERS[name].schedule.span
    x, t = states(90, dtype=F64), torch.linspace(low + 1e-3, high - 1e-3, 90, dtype=F64)
    torch.testing.assert_close(teacher(x, t), everything(x, t), rtol=1e-6, atol=1e-6)
    labels = torch.arange(90) % CLASSES
    cond = nn.functional.one_hot(labels, CLASSES).float()
    exact = torch.stack([mixture(x, t) for mixture in single])[labels, torch.arange(90)]
    torch.testing.assert_close(teacher(x, t, cond), exact, rtol=1e-6, atol=1e-6)
    guided = Guided(teacher, 2.5)(x, t, cond)
    torch.testing.assert_close(guided, 2.5 * exact - 1.5 * everything(x, t), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", MANNERS)
def test_students_of_every_convention_in_every_way(
    tmp_path: Path, name: str, conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manner = MANNERS[name]
    module = trained(manner, 30, conditional)
    before = copy.deepcopy(module.state_dict())
    teacher = manner.teacher(module, conditional)
    curves_of(teacher, tmp_path / "curves", guidance_scale=(2.0,) if conditional else ())
    for way, (asked, settings) in WAYS.items():
        student = teacher.student(**asked)
        untrained = student.build(0)
        x, s, t = states(8), torch.full((8,), 0.2), torch.full((8,), 0.9)
        cond = nn.functional.one_hot(torch.arange(8) % CLASSES, CLASSES).float()
        cond = cond if conditional else None
        with torch.no_grad():
            assert torch.equal(untrained.train()(x, s, t, cond), teacher(x, 0.2, cond))
        out = tmp_path / way
        model = distilled(tmp_path / "curves", out, student, **settings)
        weights, plain = load_file(out / WEIGHTS), manner.kind()
        plain.load_state_dict(weights)
        changed = [key for key in weights if not torch.equal(weights[key], before[key])]
        assert any("middle" in key for key in changed)  # it has learnt
        assert (out / SECOND).exists() == (asked.get("way") != "start-time")
        assert (out / "lora" / "adapter_config.json").exists() == ("lora" in asked)
        monkeypatch.chdir(out)
        namespace: dict[str, Any] = {"module": plain, "call": manner.call}
        exec(Path(SAMPLER).read_text(), namespace)
        label = torch.arange(8) % CLASSES if conditional else None
        for passes in model.knots:
            theirs = namespace["sample"](x, passes, label)
            ours = model.generate(x, passes, cond=cond)
            torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)
        again = bd.load_model(out, teacher)
        passes = max(model.knots)
        np.testing.assert_array_equal(again.sample(9, passes), model.sample(9, passes))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(part.training for part in module.modules())


def test_adapters_are_those_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    manner = MANNERS["Meta"]
    module = trained(manner, 30)
    teacher = manner.teacher(module)
    curves_of(teacher, tmp_path / "curves")
    out = tmp_path / "student"
    student = teacher.student("start-time", lora=2)
    model = distilled(tmp_path / "curves", out, student, objective="knots", passes=1)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(module), str(out / "lora"))
    x = states(5)
    with torch.no_grad():
        end = x + theirs.eval()(x=x, t=torch.zeros(5))
    torch.testing.assert_close(end, model.generate(x, 1), rtol=1e-5, atol=1e-6)
    trainable = sum(p.numel() for p in student.build(0).parameters())
    frozen = {id(p) for p in student.build(0).frozen}
    assert len(frozen) == len(list(module.parameters()))
    assert trainable > sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("way", ["start-time", "second-time"])
def test_a_student_learns_the_map_of_its_teacher(tmp_path: Path, way: Any) -> None:
    """One pass of the teacher is far from where its curves end, one of its student is near."""
    manner = MANNERS["torchcfm"]
    teacher = manner.teacher(trained(manner, 300))
    store = curves_of(teacher, tmp_path / "curves", 3000)
    objective = {"objective": "knots", "passes": 1} if way == "start-time" else {"passes": 1}
    model = distilled(
        tmp_path / "curves", tmp_path / "student", teacher.student(way), steps=300, **objective
    )
    curve = store.curves(torch.arange(500))

    def error(net: Any) -> float:
        with torch.no_grad():
            return float((sample(net, curve.source, (0.0, 1.0)) - curve.data).square().mean())

    assert error(model.net) < 0.3 * error(teacher.net)


def test_alignment_pulls_an_own_student_to_the_data(tmp_path: Path) -> None:
    manner = MANNERS["Meta"]
    teacher = manner.teacher(trained(manner, 30), **KNOWN)
    curves_of(teacher, tmp_path / "curves")
    plain, aligned = (
        distilled(
            tmp_path / "curves",
            tmp_path / f"{align}",
            teacher.student(),
            passes=1,
            align=align,
            align_lr=1e-2,
            anchor=0.0,
            batch=256,
            data=REAL if align else None,
        )
        for align in (0, 300)
    )
    fresh = mixtures()[1].sample(1000, torch.Generator().manual_seed(6)).float()
    off = [
        bd.metrics.energy_distance(torch.from_numpy(model.sample(1000, seed=3)), fresh)
        for model in (plain, aligned)
    ]
    assert off[1] < 0.5 * off[0]


def test_hidden_states_are_a_place_for_features(tmp_path: Path) -> None:
    """They are what the submodules make; by name or the widest; gradients reach states."""
    manner = MANNERS["Meta"]
    module = trained(manner, 10).eval()
    teacher = manner.teacher(module, **KNOWN)
    hidden = teacher.features(("enter", "middle.1"))
    x = states(50).requires_grad_(True)
    first, second = hidden(x)
    torch.testing.assert_close(first, module.enter(x))
    assert second.shape == (50, 24)
    second.sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert set(teacher.features().names) == {"drop"}  # the last of the one shape there is
    for names, message in (
        (("time_mlp",), "do not depend on the state"),
        (("no",), "no such part"),
    ):
        with pytest.raises(ValueError, match=message):
            teacher.features(names)
    curves_of(teacher, tmp_path / "curves")
    names = ("teacher", "drop", "auto", "states")
    digests = [
        distilled(
            tmp_path / "curves",
            tmp_path / name,
            teacher.student(),
            align=3,
            data=REAL,
            align_features=(name,),
        ).card.digest
        for name in names
    ]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_rows_without_a_class_are_none() -> None:
    """As training with dropped conditions has them: rows of zeros."""
    single, everything = mixtures()
    x, t = states(9, dtype=F64), torch.full((9,), 0.4, dtype=F64)
    cond = nn.functional.one_hot(torch.arange(9) % CLASSES, CLASSES).float()
    cond[::2] = 0
    manner = MANNERS["Meta"]

    class Indexed(Ideal):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.velocity(x, t, label)  # CLASSES is none of them: everything

    ideal = Indexed("Meta", single, everything)
    line = bd.LinearSchedule("up")
    teacher = bd.Teacher(ideal, "velocity", line, shape=(2,), conditions=CLASSES, none=CLASSES)
    made = teacher(x, t, cond)
    exact = torch.stack([m(x, t) for m in (*single, everything)])
    rows = torch.tensor([3, 1, 3, 0, 3, 2, 3, 1, 3])
    torch.testing.assert_close(made, exact[rows, torch.arange(9)])
    with pytest.raises(ValueError, match="some rows have no class"):
        replace(manner, none=None).teacher(ideal, conditional=True)(x, t, cond)


class Text(nn.Module):
    """A network that wants a dictionary: a vector and a number per row."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 2)
        self.text = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return -x + self.time(t[:, None]) + scale[:, None] * self.text(text)


TABLE = {"text": np.random.default_rng(0).standard_normal((7, 3)), "scale": np.arange(7.0)}
NONE = {"text": np.zeros(3), "scale": np.array(0.0)}


def by_function(rows: Tensor) -> dict[str, Tensor]:
    assert rows.dtype == torch.int64
    return {key: torch.from_numpy(part)[rows].float() for key, part in TABLE.items()}


CONDITIONS: dict[str, Any] = {
    "table": bd.Table(TABLE, none=NONE),
    "function": bd.Table(
        by_function, 7, none=lambda rows: {"text": torch.zeros(rows, 3), "scale": torch.zeros(rows)}
    ),
}


@pytest.mark.parametrize("form", CONDITIONS)
def test_stores_keep_the_numbers_of_rows(tmp_path: Path, form: str) -> None:
    """The curves are those of each row's own condition, guided, and a student reads them again."""
    torch.manual_seed(1)
    module = Text()
    teacher = bd.Teacher(
        module, "velocity", bd.LinearSchedule("up"), shape=(2,), conditions=CONDITIONS[form]
    )
    store = curves_of(teacher, tmp_path / "curves", 60, guidance_scale=(1.5,), solver="euler")
    curve, cond = store.take(torch.arange(60))
    assert cond is not None
    assert cond.dtype == F64
    assert cond.shape == (60, 1)
    assert set(cond.flatten().tolist()) == set(range(7))
    given = by_function(cond[:, 0].long())
    x = curve.source
    for k in range(4):
        t = torch.full((60,), k / 4)
        none = {"text": torch.zeros(60, 3), "scale": torch.zeros(60)}
        with torch.no_grad():
            x = x + 0.25 * (1.5 * module(x, t, **given) - 0.5 * module(x, t, **none))
    torch.testing.assert_close(curve.data, x, rtol=1e-4, atol=1e-5)
    model = distilled(tmp_path / "curves", tmp_path / "student", teacher.student())
    rows = np.array([3, 5, 5])
    fresh = {key: torch.from_numpy(part)[rows].float() for key, part in TABLE.items()}
    by_row = model.sample(3, conditions=rows, seed=4)
    np.testing.assert_allclose(by_row, model.sample(3, conditions=fresh, seed=4), atol=1e-6)
    assert not np.allclose(by_row, model.sample(3, conditions=np.array([0, 1, 2]), seed=4))
    with pytest.raises(ValueError, match="rows from 0 to 7, expected 3 from 0 to 6"):
        model.sample(3, conditions=np.array([0, 1, 7]))
    with pytest.raises(ValueError, match="rows of a table"):
        model.sample(3, labels=[1])


def test_a_table_holds_more_rows_than_single_precision(tmp_path: Path) -> None:
    """Row numbers beyond 2^24 are exact in a store and in a module."""
    seen: list[Tensor] = []

    def values(rows: Tensor) -> Tensor:
        seen.append(rows)
        return (rows % 2).float()[:, None]

    teacher = bd.Teacher(
        lambda x, t, cond: x * cond,
        "velocity",
        bd.LinearSchedule("up"),
        shape=(2,),
        conditions=bd.Table(values, 2**40),
    )
    store = curves_of(teacher, tmp_path / "curves", 50, solver="euler")
    curve, cond = store.take(torch.arange(50))
    assert cond is not None
    rows = cond[:, 0].long()
    assert int(rows.max()) > 2**32
    growth = torch.where(rows % 2 == 1, 1.25**4, 1.0)
    torch.testing.assert_close(curve.data, growth[:, None] * curve.source, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bd.Table({"a": np.zeros(3), "b": np.zeros(4)}), r"conditions have \[3, 4\] rows"),
        (lambda: bd.Table(by_function), "a function of None rows: expected Table"),
        (lambda: bd.Table(np.zeros((0, 2))), "a table of 0 rows"),
    ],
)
def test_tables_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Branches(nn.Module):
    """Two embeddings of the time that do not feed each other, or none but in the state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(1, 8), nn.Linear(1, 8)
        self.enter, self.leave = nn.Linear(3 if kind == "inside" else 2, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        if self.kind == "inside":
            return self.leave(self.enter(torch.cat([x, t], 1)).tanh())
        hidden = (self.enter(x) + self.first(t)).tanh()
        return self.leave(hidden + self.second(t))


def of(module: nn.Module) -> bd.Teacher:
    return bd.Teacher(module, "velocity", bd.LinearSchedule("up"), shape=(2,))


@pytest.mark.parametrize(
    ("kind", "time", "message"),
    [
        ("two", None, "embedded by first and by second, which do not feed each other"),
        ("inside", None, "no part of the module embeds the time alone"),
        ("two", "third", "the module has no such part: expected a path below first, second"),
        ("inside", "first", "makes no vector per row once a pass"),
        ("two", "enter", "does not depend on the time"),
    ],
)
def test_where_a_second_time_cannot_go(kind: str, time: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        of(Branches(kind)).student(time=time)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "time"), [("two", ("first", "second")), ("inside", "enter")])
def test_where_a_user_puts_a_second_time(kind: str, time: Any) -> None:
    """Any part will do whose output depends on the time: its Z gets a gradient."""
    net = of(Branches(kind)).student(time=time).build(0)
    assert isinstance(net.second, SecondTime)
    x, s = states(4), torch.zeros(4)
    net(x, s, torch.ones(4)).square().sum().backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in net.second.weights)  # pyright: ignore
    with torch.no_grad():
        for weight in net.second.weights:
            weight.normal_()
        moved = net(x, s, torch.ones(4)) - net(x, s, s)
    assert float(moved.abs().max()) > 0.01


def test_the_embedding_is_found_behind_its_sines() -> None:
    student = MANNERS["Meta"].teacher(trained(MANNERS["Meta"], 1)).student()
    assert dict(student.widths) == {"time_mlp": 24}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_asked_in_its_own_numbers(kind: torch.dtype) -> None:
    """Close to the field in single precision, whether the module or the states are halves; the time
    keeps its digits where the module takes them."""
    manner = MANNERS["Meta"]
    module = trained(manner, 100).eval()
    exact, half = manner.teacher(module), manner.teacher(copy.deepcopy(module).to(kind))
    x, t = states(50), torch.linspace(0, 1, 50)
    scale = float(exact(x, t).abs().max())
    for field, given in ((half, x), (exact, x.to(kind)), (half, x.to(kind))):
        made = field(given, t)
        assert made.dtype == given.dtype
        assert float((made.float() - exact(x, t)).abs().max()) < 0.03 * scale
    end = bd.solve(half, x, bd.time_grid(8), "heun").state
    assert end.dtype == torch.float32
    assert half.sample(4, passes=4).dtype == np.float32
    told: list[Tensor] = []

    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=kind))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            told.append(t)
            return x * self.weight

    of(Fine())(x, 0.12345)
    assert told[0].dtype == torch.float32


def test_a_module_is_left_as_it_was_found(tmp_path: Path) -> None:
    class Counting(Body):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.calls += 1
            return self.run(x, t, None)

    module = Counting().to(torch.bfloat16)
    module.middle[0].eval()
    modes = [part.training for part in module.modules()]
    before = copy.deepcopy(module.state_dict())
    teacher = of(module)
    curves_of(teacher, tmp_path / "curves")
    distilled(tmp_path / "curves", tmp_path / "student", teacher.student(), steps=2)
    assert [part.training for part in module.modules()] == modes
    assert all(part.requires_grad for part in module.parameters())
    after = module.state_dict()
    assert all(after[key].dtype == before[key].dtype for key in before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not module.time_mlp._forward_hooks


@pytest.mark.parametrize("name", MANNERS)
def test_a_wrong_convention_is_told_with_the_one_that_fits(name: str) -> None:
    single, everything = mixtures()
    ideal, right = Ideal(name, single, everything), MANNERS[name]
    found = bd.check_direction(right.teacher(ideal), REAL)
    assert found.left < 0.1
    if name == "EDM":
        wrongs = [("velocity", right.schedule), ("epsilon", right.schedule)]
    else:
        scale = right.schedule.scale
        wrongs = [("flow", right.schedule), ("flow", bd.LinearSchedule("down", scale))]
        wrongs += [("velocity", bd.LinearSchedule("down", scale))]
        wrongs += [("velocity", bd.LinearSchedule("up", 1000 / scale))]
    for prediction, schedule in wrongs:
        wrong = replace(right, prediction=prediction, schedule=schedule).teacher(ideal)
        with pytest.raises(ValueError, match=f'"{right.prediction}" with .* fits') as error:
            bd.check_direction(wrong, REAL)
        assert "\n" not in str(error.value)


def test_the_mean_velocity_at_the_source_is_that_of_the_data() -> None:
    """For the exact field of a normal distribution, in closed form: mean - x0, on average."""
    mean, std = torch.tensor([[3.0, -1.0]]), torch.tensor([[0.5, 0.5]])
    exact = GaussianMixture(mean, std, torch.ones(1))
    real = exact.sample(3000, torch.Generator().manual_seed(1))
    teacher = bd.Teacher(exact, "velocity", bd.LinearSchedule("up"), shape=(2,))
    found = bd.check_direction(teacher, real)
    assert found.mean_error < 4 * 2**0.5 / 256**0.5 / 0.5 / 2**0.5  # of 256 draws of noise
    off = bd.Teacher(
        exact, "velocity", bd.LinearSchedule("up"), lambda m, x, t, c: m(x, t) + 1, shape=(2,)
    )
    assert bd.check_direction(off, real).mean_error > 1


def test_units_are_those_of_the_data_as_they_are_or_told() -> None:
    """Of an object the numbers as they are, of bytes [-1, 1], of a name those of load_data; wrong
    ones are told."""
    _, everything = mixtures()
    far = 5 + 4 * REAL
    moved = replace(everything, means=5 + 4 * everything.means, stds=4 * everything.stds)
    line = bd.LinearSchedule("up")
    teacher = bd.Teacher(moved, "velocity", line, data=far)
    assert teacher.scaling == bd.Scaling()
    assert bd.check_direction(teacher, far).left < 0.1
    standard = bd.load_data(far).scaling
    shift, scale = torch.tensor(standard.shift), torch.tensor(standard.scale)
    own = replace(moved, means=(moved.means - shift) / scale, stds=moved.stds / scale)
    assert bd.check_direction(bd.Teacher(own, "velocity", line, data=far, scaling=standard), far)
    for field, scaling, told in (
        (moved, standard, "the numbers as they are, Scaling"),
        (own, None, "those of load_data leaves"),
    ):
        wrong = bd.Teacher(field, "velocity", line, data=far, scaling=scaling)
        with pytest.raises(ValueError, match=told):
            bd.check_direction(wrong, far)
    pixels = np.random.default_rng(0).integers(0, 255, (100, 4, 4), np.uint8)
    teacher = bd.Teacher(lambda x, t: x, "velocity", line, data=pixels)
    assert teacher.scaling == bd.load_data(pixels).scaling
    moons = bd.Teacher(lambda x, t: x, "velocity", line, data="moons")
    assert moons.scaling == bd.load_data("moons").scaling


def test_a_weak_teacher_is_not_refused() -> None:
    manner = MANNERS["Meta"]
    teacher = manner.teacher(trained(manner, 8), **KNOWN)
    assert bd.check_direction(teacher, REAL).left > 0.1


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        ({"way": "start-time"}, {}, "expected --objective knots, or student"),
        ({"way": "start-time"}, {"objective": "end"}, "expected --objective knots, or student"),
        ({}, {"init": "scratch"}, "a student of your own starts from its teacher's weights"),
    ],
)
def test_what_a_student_cannot_learn(
    tmp_path: Path, student: Any, settings: Any, message: str
) -> None:
    manner = MANNERS["Meta"]
    teacher = manner.teacher(trained(manner, 1))
    curves_of(teacher, tmp_path / "curves", 20)
    with pytest.raises(ValueError, match=message):
        distilled(tmp_path / "curves", tmp_path / "student", teacher.student(**student), **settings)
    assert not (tmp_path / "student").exists()


def test_a_start_time_student_has_learnt_one_number_of_passes(tmp_path: Path) -> None:
    manner = MANNERS["Meta"]
    teacher = manner.teacher(trained(manner, 1))
    curves_of(teacher, tmp_path / "curves", 50)
    settings = {"objective": "knots", "passes": 3, "knots": (0.2, 0.6)}
    model = distilled(
        tmp_path / "curves", tmp_path / "s", teacher.student("start-time"), **settings
    )
    assert model.knots == {3: (0.0, 0.2, 0.6, 1.0)}
    with pytest.raises(ValueError, match="knows the start time only and has learnt 3"):
        model.sample(2, passes=1)
    x = noise(0, Stream.SAMPLE, range(4), (2,))
    net = model.net
    assert isinstance(net, OwnNetwork)
    for s, t in ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0)):
        x = x + (t - s) * net.module(x=x, t=torch.full((4,), s))
    np.testing.assert_allclose(model.sample(4, passes=3), x, atol=1e-6)


def killing(call: int) -> Any:
    """The trainer's update, of which the n-th sends the process a signal."""
    step, calls = bd.Trainer._update, iter(range(1, 100))

    def update(self: Any, *given: Any) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *given)

    return update


@pytest.mark.parametrize("lora", [0, 2])
def test_a_killed_run_of_an_own_student_ends_with_the_same_bits(
    tmp_path: Path, lora: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manner = MANNERS["lucidrains"]
    teacher = manner.teacher(trained(manner, 30), **KNOWN)
    curves_of(teacher, tmp_path / "curves")
    settings = {"steps": 9, "align": 4, "data": REAL, "loop": replace(LOOP, save_every=3)}

    def run(out: Path) -> bd.Model:
        student = teacher.student(lora=lora)
        return distilled(tmp_path / "curves", out, student, **settings)

    whole = run(tmp_path / "whole")
    for stop in (4, 11):
        with monkeypatch.context() as patch:
            patch.setattr(bd.Trainer, "_update", killing(stop))
            with pytest.raises(SystemExit):
                run(tmp_path / f"{stop}")
        again = run(tmp_path / f"{stop}")
        assert again.card.digest == whole.card.digest


BATCHES: dict[str, Any] = {
    "flow matching": (objectives.FlowMatching(), "pairs"),
    "curves": (objectives.CurveRegression(objectives.MapIntervals()), "curves"),
    "mean flow": (objectives.MeanFlow(), "pairs"),
    "shortcut": (objectives.Shortcut(), "pairs"),
    "self-distillation": (objectives.LagrangianSelfDistillation(), "pairs"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_every_objective_trains_an_own_student(name: str) -> None:
    objective, kind = BATCHES[name]
    manner = MANNERS["gnobitab"]
    net = manner.teacher(trained(manner, 2)).student().build(0)
    x0, x1 = states(32), states(32, 1)
    batch = objectives.Pairs(x0, x1)
    if kind == "curves":
        batch = objectives.Curves(bd.BezierCurve(torch.stack([x0, x1])))
    generator = torch.Generator().manual_seed(0)
    losses = [loss for _, loss in objective.losses({"net": net}, batch, generator, 0.9)]
    assert losses
    sum(losses).backward()  # pyright: ignore
    assert net.second is not None
    assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in net.second.weights)


def test_a_files_function_is_a_teacher_and_a_student(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    from bezierdistill.cli import main

    curves, out, made = (str(tmp_path / name) for name in ("curves", "student", "x.npz"))
    loop = ["--loop.accelerator", "cpu"]
    main(["simulate", "--teachers", f"{file}", "--count", "40", "--out", curves])
    asked = ["distill", "--curves", curves, "--out", out, "--steps", "3", "--batch", "8", *loop]
    main([*asked, "--student", f"{file}:student"])
    main(["sample", "--model", out, "--network", f"{file}", "--count", "5", "--out", made])
    assert np.load(made)["x"].shape == (5, 2)
    with pytest.raises(ValueError, match=r"your own module .*Net: give it, as load_model"):
        bd.load_model(out)
    model = bd.load_model(out, bd.Teacher(*_parts(file)))
    np.testing.assert_allclose(model.sample(5), np.load(made)["x"], atol=1e-6)
    main(["report", "--run", out, "--network", f"{file}:student"])
    assert (Path(out) / "report.html").stat().st_size > 10_000
    assert main(["report", "--run", out]) == 2
    with pytest.raises(ValueError, match=r"expected FILE\.py:function that returns load_model"):
        bd.simulate(bd.SimulateConfig((out,), tmp_path / "again", count=10))
    told = (Path(out) / "README.txt").read_text()
    assert "def sample(x, passes, cond=None)" in told


def _parts(file: Path) -> tuple[Any, ...]:
    from bezierdistill.models.teacher import find_model

    teacher = find_model(str(file))
    assert isinstance(teacher, bd.Teacher)
    made = teacher.net.convention
    return teacher.net.module, made.prediction, made.schedule


def test_plain_code_has_no_word_of_ours(tmp_path: Path) -> None:
    manner: Manner = MANNERS["Meta"]
    teacher = manner.teacher(trained(manner, 1))
    curves_of(teacher, tmp_path / "curves", 20)
    model = distilled(tmp_path / "curves", tmp_path / "student", teacher.student(), steps=1)
    code = standalone(model)
    assert (tmp_path / "student" / SAMPLER).read_text() == code
    assert "import bezierdistill" not in code
    compile(code, "sampler", "exec")


def test_a_teacher_says_what_it_is() -> None:
    manner = MANNERS["Meta"]
    module = manner.kind()
    size = sum(part.numel() for part in module.parameters())
    told = f"Teacher(Meta of {size:,} parameters, velocity, LinearSchedule(time='up'"
    for teacher in (manner.teacher(module), manner.teacher(module, shape=None)):
        assert repr(teacher).startswith(told)
    assert manner.teacher(module).size == size

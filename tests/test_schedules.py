"""Other libraries' conventions: ideal models in each of them, in closed form, give the exact field
of a Gaussian mixture; and their modules are left as they were."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bezierdistill import schedules
from bezierdistill.fields import Blend, GaussianMixture, NetworkField, evaluating
from bezierdistill.models.teacher import Teacher
from bezierdistill.schedules import (
    LinearSchedule,
    Schedule,
    SigmaSchedule,
    StepSchedule,
)
from bezierdistill.settings import Prediction
from bezierdistill.solvers import solve, time_grid
from conftest import Draw

F64 = torch.float64
STEPS = StepSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0))
SCALED = StepSchedule(
    (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2).cumprod(0)
)
Level = Callable[[Tensor], tuple[Tensor, Tensor]]


class Ideal:
    """What a perfect model returns at its own time, from the posterior of a mixture given ``y =
    alpha x1 + sigma eps``."""

    def __init__(self, mixture: GaussianMixture, prediction: Prediction, level: Level) -> None:
        self.mixture, self.prediction, self.level = mixture, prediction, level

    def __call__(self, y: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (part[:, None] for part in self.level(time))
        a, s, variance = alpha[:, None], sigma[:, None], self.mixture.stds**2
        spread, centred = a**2 * variance + s**2, y[:, None] - a * self.mixture.means
        posterior = (
            -0.5 * (centred**2 / spread + spread.log()).sum(-1) + self.mixture.weights.log()
        ).softmax(1)[..., None]
        data = (posterior * (self.mixture.means + a * variance / spread * centred)).sum(1)
        noise = (posterior * (s / spread * centred)).sum(1)
        return {
            "velocity": data - noise,
            "flow": noise - data,
            "epsilon": noise,
            "sample": data,
            "v_prediction": alpha * noise - sigma * data,
        }[self.prediction]


def of_steps(schedule: StepSchedule) -> Level:
    """Levels of a table at whole and fractional steps, independent of the schedule's own
    inversion."""

    def level(step: Tensor) -> tuple[Tensor, Tensor]:
        a = schedule.alphas_cumprod
        logs = ((1 - a) / a).sqrt().log()
        low = step.floor().long().clamp(max=len(a) - 2)
        ratio = torch.lerp(logs[low], logs[low + 1], step - low).exp()
        return 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()

    return level


# The table of docs/notation.md: name, prediction, schedule, the model's levels by its own time.
CONVENTIONS: dict[str, tuple[Prediction, Schedule, Level]] = {
    "RectifiedFlow": ("velocity", LinearSchedule("up", 999), lambda t: (t / 999, 1 - t / 999)),
    "flow_matching, torchcfm": ("velocity", LinearSchedule("up"), lambda t: (t, 1 - t)),
    "rfpp": ("flow", LinearSchedule("down", low=1e-5), lambda t: (1 - t, t)),
    "FastGen": ("flow", LinearSchedule("down", low=1e-3), lambda t: (1 - t, t)),
    "diffusers FlowMatch": (
        "flow",
        LinearSchedule("down", 1000),
        lambda t: (1 - t / 1000, t / 1000),
    ),
    "InstaFlow": ("velocity", LinearSchedule("down", 1000), lambda t: (1 - t / 1000, t / 1000)),
    "EDM": ("sample", SigmaSchedule(), lambda s: (torch.ones_like(s), s)),
    "EDM, noise": ("epsilon", SigmaSchedule(0.01, 50), lambda s: (torch.ones_like(s), s)),
    "DDPM": ("epsilon", STEPS, of_steps(STEPS)),
    "DDPM, data": ("sample", STEPS, of_steps(STEPS)),
    "Stable Diffusion": ("epsilon", SCALED, of_steps(SCALED)),
    "Stable Diffusion 2": ("v_prediction", SCALED, of_steps(SCALED)),
    "flow, data": ("sample", LinearSchedule("up", high=0.999), lambda t: (t, 1 - t)),
    "flow, noise": ("epsilon", LinearSchedule("down", low=0.001), lambda t: (1 - t, t)),
}


def foreign(name: str, mixture: GaussianMixture, **more: Any) -> Teacher:
    prediction, schedule, level = CONVENTIONS[name]
    return Teacher(Ideal(mixture, prediction, level), prediction, schedule, **more)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_ideal_model_of_every_convention_is_the_exact_field(
    name: str, mixture: GaussianMixture, draw: Draw
) -> None:
    field, (low, high) = foreign(name, mixture), CONVENTIONS[name][1].span
    x, t = 1.5 * draw(300, 2), torch.linspace(low, high, 300, dtype=F64)
    torch.testing.assert_close(field(x, t), mixture(x, t), rtol=1e-7, atol=1e-7)
    for time in (0.5 * (low + high), 0.9 * high):
        torch.testing.assert_close(field(x, time), mixture(x, time), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_model_is_told_its_own_time(name: str, mixture: GaussianMixture) -> None:
    _, schedule, level = CONVENTIONS[name]
    t = torch.linspace(*schedule.span, 50, dtype=F64)
    alpha, sigma, time = schedule.at(t)
    expected = level(time)
    torch.testing.assert_close(alpha / (alpha + sigma), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.stack([alpha, sigma]), torch.stack(expected), rtol=1e-9, atol=1e-9
    )
    beyond = schedule.at(torch.tensor([0.0, 1.0], dtype=F64))
    torch.testing.assert_close(
        torch.stack(beyond), torch.stack(schedule.at(torch.tensor(schedule.span, dtype=F64)))
    )


def test_whole_steps_are_told_as_they_are() -> None:
    a = SCALED.alphas_cumprod
    t = a.sqrt() / (a.sqrt() + (1 - a).sqrt())
    torch.testing.assert_close(SCALED.at(t)[2], torch.arange(1000, dtype=F64), rtol=0, atol=1e-6)


def test_wrong_signs_and_directions_are_not_the_field(mixture: GaussianMixture, draw: Draw) -> None:
    x, t = draw(50, 2), torch.full((50,), 0.3, dtype=F64)
    prediction, schedule, level = CONVENTIONS["diffusers FlowMatch"]
    ideal = Ideal(mixture, prediction, level)
    for field in (
        Teacher(ideal, "velocity", schedule),
        Teacher(ideal, prediction, LinearSchedule("up", 1000)),
    ):
        assert float((field(x, t) - mixture(x, t)).abs().max()) > 0.5


def test_teachers_of_two_conventions_blend_and_are_solved_together(
    mixture: GaussianMixture, draw: Draw
) -> None:
    names = ("EDM", "diffusers FlowMatch")
    blend = Blend([foreign(name, mixture) for name in names], [[1.5], [-0.5]])
    assert blend.passes == 2
    x0, times = draw(200, 2), time_grid(40, 0.02, 0.98)
    ours, theirs = (solve(field, x0, times, "heun").state for field in (mixture, blend))
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)


def test_calls_conditions_and_wrapped_outputs(shape: tuple[int, ...], draw: Draw) -> None:
    x, t, cond = draw(*shape), torch.linspace(0.2, 0.8, shape[0], dtype=F64), draw(shape[0])
    told: list[Tensor] = []

    def time_first(time: Tensor, state: Tensor, label: Tensor) -> tuple[Tensor]:
        told.append(time)
        return (state * label.reshape(-1, *[1] * (x.ndim - 1)),)

    field = Teacher(
        time_first,
        "velocity",
        LinearSchedule("up"),
        lambda model, y, time, c: model(time, y, c),
        passes=2,
    )
    torch.testing.assert_close(field(x, t, cond), x * cond.reshape(-1, *[1] * (x.ndim - 1)))
    assert torch.equal(told[0], t)
    assert field.passes == 2
    plain = Teacher(
        lambda y, time, label: y + label.reshape(-1, *[1] * (x.ndim - 1)),
        "flow",
        LinearSchedule("down"),
    )
    torch.testing.assert_close(plain(x, t, cond), -x - cond.reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSchedule("forward"), "time is 'forward', expected 'up'"),  # pyright: ignore[reportArgumentType]
        (lambda: LinearSchedule("up", 0.0), "scale is 0.0"),
        (
            lambda: LinearSchedule("up", low=0.9, high=0.1),
            "span is 0.9 to 0.1, expected 0 <= low < high <= 1",
        ),
        (lambda: SigmaSchedule(0.0), "sigma is 0.0 to 80.0, expected 0 < least < most"),
        (lambda: StepSchedule(torch.tensor([0.5, 0.6])), "falling numbers"),
        (lambda: StepSchedule(torch.tensor([1.0, 0.6])), "falling numbers"),
        (
            lambda: Teacher(abs, "eps", LinearSchedule("up")),  # pyright: ignore[reportArgumentType]
            "prediction is 'eps', expected one of velocity",
        ),
        (
            lambda: Teacher(abs, "epsilon", LinearSchedule("up")),
            "predicts epsilon needs a span that ends before pure noise",
        ),
        (
            lambda: Teacher(abs, "sample", LinearSchedule("up", low=0.1)),
            "predicts sample needs a span that ends before pure data",
        ),
    ],
)
def test_mistakes(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Narrow(TorchDispatchMode):
    """Forbids double precision on the device without data, which so stands for one without it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            wide = isinstance(tensor, Tensor) and tensor.dtype == torch.float64
            assert not (wide and tensor.device.type == "meta"), func
        return out


def test_steps_are_found_without_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = StepSchedule((1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0))  # DDPM's
    t = torch.linspace(0, 1, 101)
    exact = schedule.at(t.double())
    monkeypatch.setattr(schedules, "widest", lambda device: torch.float32)
    for narrow, wide in zip(schedule.at(t), exact, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)
    with Narrow():
        assert all(part.dtype == torch.float32 for part in schedule.at(t.to("meta")))


class Dropped(nn.Module):
    """A module whose output and state depend on its mode: dropout, batch normalisation, and a part
    that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.norm.weight.requires_grad_(False)

    def train(self, mode: bool = True) -> "Dropped":
        raise AssertionError("a user's own method, which may do more than set the mode")

    def forward(self, y: Tensor, *more: Any) -> Tensor:
        return self.frozen(self.drop(self.norm(y)))


MODULE = Dropped()


class Holder:
    """An object of the user's with a module inside."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = {"net": [module]}

    def __call__(self, y: Tensor, time: Tensor) -> Any:
        return self.parts["net"][0](y)


def in_a_closure(module: nn.Module) -> Callable[..., Tensor]:
    return lambda y, time, cond=None: module(y)


HOLDERS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda module: module,
    "closure": in_a_closure,
    "partial": lambda module: partial(in_a_closure(module), cond=None),
    "method": lambda module: Holder(module).__call__,
    "object": Holder,
    "global": lambda module: lambda y, time: MODULE(y),
}


@pytest.mark.parametrize("how", HOLDERS)
def test_a_users_module_is_called_in_evaluation_mode_and_left_as_it_was(how: str) -> None:
    module = MODULE
    modes = [part.training for part in module.modules()]
    assert modes == [True, True, True, False]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x, line = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), LinearSchedule("up")
    expected = x / (1 + module.norm.eps) ** 0.5  # with the running mean 0 and variance 1
    field = Teacher(HOLDERS[how](module), "velocity", line)
    torch.testing.assert_close(field(x, 0.3), expected)
    torch.testing.assert_close(solve(field, x, [0.0, 0.5], "euler").state, x + 0.5 * expected)
    with evaluating(), evaluating():
        Blend([field], [[1.0]])(x, 0.3)
        assert not any(part.training for part in module.modules())
    with pytest.raises(RuntimeError), evaluating():
        module(x[:, :1])
    assert [part.training for part in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == [False, True]
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_network_as_a_field_is_in_evaluation_mode() -> None:
    net, x = nn.Sequential(nn.Dropout(0.5)), torch.ones(100, 2)
    field = NetworkField(Called(net))
    assert torch.equal(field(x, 0.5), x)
    assert net.training
    assert net[0].training


class Called(nn.Module):
    """A network that takes times and a condition."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x)

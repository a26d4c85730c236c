"""Other libraries' conventions: ideal models in each of them, in closed form, give the exact field
of a Gaussian mixture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bezierdistill import schedules
from bezierdistill.fields import Blend, GaussianMixture
from bezierdistill.schedules import (
    ForeignField,
    LinearSchedule,
    Prediction,
    Schedule,
    SigmaSchedule,
    StepSchedule,
)
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

    def __init__(self, law: GaussianMixture, prediction: Prediction, level: Level) -> None:
        self.law, self.prediction, self.level = law, prediction, level

    def __call__(self, y: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (part[:, None] for part in self.level(time))
        a, s, variance = alpha[:, None], sigma[:, None], self.law.stds**2
        spread, centred = a**2 * variance + s**2, y[:, None] - a * self.law.means
        posterior = (
            -0.5 * (centred**2 / spread + spread.log()).sum(-1) + self.law.weights.log()
        ).softmax(1)[..., None]
        data = (posterior * (self.law.means + a * variance / spread * centred)).sum(1)
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


def foreign(name: str, law: GaussianMixture, **more: Any) -> ForeignField:
    prediction, schedule, level = CONVENTIONS[name]
    return ForeignField(Ideal(law, prediction, level), prediction, schedule, **more)


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
        ForeignField(ideal, "velocity", schedule),
        ForeignField(ideal, prediction, LinearSchedule("up", 1000)),
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

    field = ForeignField(
        time_first,
        "velocity",
        LinearSchedule("up"),
        lambda model, y, time, c: model(time, y, c),
        passes=2,
    )
    torch.testing.assert_close(field(x, t, cond), x * cond.reshape(-1, *[1] * (x.ndim - 1)))
    assert torch.equal(told[0], t)
    assert field.passes == 2
    plain = ForeignField(
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
        (lambda: LinearSchedule("up", low=0.9, high=0.1), "low and high are 0.9 and 0.1"),
        (lambda: SigmaSchedule(0.0), "sigma runs from 0.0 to 80.0"),
        (lambda: StepSchedule(torch.tensor([0.5, 0.6])), "falling numbers"),
        (lambda: StepSchedule(torch.tensor([1.0, 0.6])), "falling numbers"),
        (
            lambda: ForeignField(abs, "eps", LinearSchedule("up")),
            "prediction is 'eps', expected one of velocity",
        ),  # pyright: ignore[reportArgumentType]
        (
            lambda: ForeignField(abs, "epsilon", LinearSchedule("up")),
            "predicts epsilon needs a span that ends before pure noise",
        ),
        (
            lambda: ForeignField(abs, "sample", LinearSchedule("up", low=0.1)),
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

"""Networks as other people write them: five calling conventions, with conditions and without, and
ideal ones whose field is exactly that of a Gaussian mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import bezierdistill as bd
from bezierdistill.fields import GaussianMixture

WIDTH, CLASSES = 24, 3
# A user's file, for settings that name functions of it.
MINE = """import torch
import bezierdistill as bd

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.time, self.state = torch.nn.Linear(1, 2), torch.nn.Linear(2, 2)

    def forward(self, x, t):
        return self.state(x) + self.time(t[:, None])

def teacher():
    torch.manual_seed(0)
    return bd.Teacher(Net(), "velocity", bd.LinearSchedule("up"), shape=(2,))

def student():
    return teacher().student()
"""


class Body(nn.Module):
    """What all of them have inside: a small network of a state, a time and a label."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(2, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.label = nn.Embedding(CLASSES + 1, WIDTH)
        self.enter = nn.Linear(dim, WIDTH)
        self.drop = nn.Dropout(0.3)
        self.middle = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.leave = nn.Linear(WIDTH, dim)

    def run(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        time = self.time_mlp(torch.stack([t, (3 * t).sin()], 1).to(x))
        if label is not None:
            time = time + self.label(label)
        hidden = self.enter(x)
        for layer in self.middle:
            hidden = hidden + layer(nn.functional.silu(hidden + time))
        return self.leave(self.drop(hidden))


class Gnobitab(Body):
    """RectifiedFlow: the time times 999, noise at 0."""

    def forward(self, x: Tensor, labels: Tensor, label: Tensor | None = None) -> Tensor:
        return self.run(x, labels / 999, label)


class Meta(Body):
    """flow_matching: conditions are keywords."""

    def forward(self, x: Tensor, t: Tensor, **extras: Tensor) -> Tensor:
        return self.run(x, t, extras.get("label"))


class TorchCFM(Body):
    """torchcfm: time first."""

    def forward(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.run(x, t, y)


class Lucidrains(Body):
    """rectified-flow-pytorch: keywords alone."""

    def forward(self, noised: Tensor, *, times: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.run(noised, times, cond)


class EDM(Body):
    """A preconditioned denoiser over sigma, with one-hot labels."""

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        s = sigma.reshape(-1, 1).to(x)
        label = None if class_labels is None else class_labels.argmax(1)
        out = self.run(x / (1 + s**2).sqrt(), sigma.log() / 4, label)
        return x / (1 + s**2) + s / (1 + s**2).sqrt() * out


@dataclass(frozen=True)
class Manner:
    """How a network is told to ``bezierdistill``."""

    kind: type[Body]
    prediction: Any
    schedule: Any
    call: Any = None
    none: int | None = CLASSES

    def teacher(self, module: Any, conditional: bool = False, **more: Any) -> bd.Teacher:
        given: dict[str, Any] = {"shape": (2,)} | more
        if conditional:
            given |= {"conditions": CLASSES, "none": self.none}
        return bd.Teacher(module, self.prediction, self.schedule, self.call, **given)


def by_keywords(module: Any, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    return module(x=x, t=t) if label is None else module(x=x, t=t, label=label)


def time_first(module: Any, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    return module(t, x, label)


def named(module: Any, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    return module(x, times=t, cond=label)


def one_hot(module: Any, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
    if label is None or bool((label == CLASSES).all()):
        return module(x, sigma)
    return module(x, sigma, nn.functional.one_hot(label, CLASSES))


MANNERS: dict[str, Manner] = {
    "gnobitab": Manner(Gnobitab, "velocity", bd.LinearSchedule("up", 999)),
    "Meta": Manner(Meta, "velocity", bd.LinearSchedule("up"), by_keywords),
    "torchcfm": Manner(TorchCFM, "velocity", bd.LinearSchedule("up"), time_first),
    "lucidrains": Manner(Lucidrains, "velocity", bd.LinearSchedule("up"), named),
    "EDM": Manner(EDM, "sample", bd.SigmaSchedule(0.01, 50.0), one_hot),
}


class Ideal(nn.Module):
    """The best network there can be, in one of these conventions: of the mixture of a label, or of
    all of them together."""

    def __init__(self, name: str, mixtures: list[GaussianMixture], everything: GaussianMixture):
        super().__init__()
        self.name, self.mixtures, self.everything = name, mixtures, everything

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        v = self.everything(x, t)
        for k, mixture in enumerate(self.mixtures):
            if label is not None and bool((label == k).any()):
                v = torch.where((label == k)[:, None], mixture(x, t), v)
        return v

    def forward(self, *given: Any, **named: Any) -> Tensor:
        values = [*given, *named.values()]
        label = values[2] if len(values) > 2 else None
        first, second = values[:2]
        x, t = (second, first) if first.ndim == 1 else (first, second)
        if self.name == "gnobitab":
            t = t / 999
        if self.name != "EDM":
            return self.velocity(x, t, label)
        label = None if label is None else label.argmax(1)
        ours = 1 / (1 + t)  # x = y / (1 + sigma), t = 1 / (1 + sigma)
        state = x / (1 + t[:, None])
        return state + (1 - ours[:, None]) * self.velocity(state, ours, label)


def mixtures() -> tuple[list[GaussianMixture], GaussianMixture]:
    """Three normal distributions, and all of them together."""
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64)
    stds = torch.tensor([[0.3, 0.5], [0.6, 0.2], [0.4, 0.4]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    single = [GaussianMixture(m[None], s[None], one) for m, s in zip(means, stds, strict=True)]
    return single, GaussianMixture(means, stds, torch.full((3,), 1 / 3, dtype=torch.float64))


def trained(manner: Manner, steps: int, conditional: bool = False, seed: int = 0) -> Body:
    """A network trained by flow matching, in its owner's own words, on the mixture."""
    torch.manual_seed(seed)
    module, (single, everything) = manner.kind(), mixtures()
    teacher = manner.teacher(module, conditional)
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(seed)
    low, high = manner.schedule.span
    for _ in range(steps):
        label = torch.randint(CLASSES, (256,), generator=generator)
        drawn = torch.stack([m.sample(256, generator) for m in single])
        x1 = drawn[label, torch.arange(256)] if conditional else everything.sample(256, generator)
        x1 = x1.float()
        x0 = torch.randn(256, 2, generator=generator)
        t = low + (high - low) * torch.rand(256, generator=generator)
        cond = nn.functional.one_hot(label, CLASSES).float() if conditional else None
        x = torch.lerp(x0, x1, t[:, None])
        v = teacher.net(x, t, t, cond)
        loss = (v - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.train()

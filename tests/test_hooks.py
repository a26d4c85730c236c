"""Hooks: any optimizer continues bit for bit, callbacks and loggers see a training, frozen
parameters stay, a finished run goes on, and objects stand where settings have text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bezierdistill as bd
from bezierdistill.arena.runner import ArenaConfig, choose_methods
from bezierdistill.cli import main, parse
from bezierdistill.data import load_data
from bezierdistill.errors import UserError
from bezierdistill.metrics import Evaluator, load_extractor, sliced_wasserstein
from bezierdistill.models import load_model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import FlowMatching
from bezierdistill.progress import progress
from bezierdistill.run import SETTINGS, read_made, read_settings
from bezierdistill.stages.evaluate import EvaluateConfig
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.training import loop as loop_module
from bezierdistill.training.activations import keep_fewer
from bezierdistill.training.batches import PairBatches
from bezierdistill.training.checkpoint import load_state, save_state
from bezierdistill.training.loop import Trainer
from bezierdistill.training.settings import LoopConfig
from test_training import Quadratic, assert_same, fit, linear, logged, loop, rows, stopping

STATE = "state-stage.safetensors"
NET = NetworkConfig(width=16, depth=2)


class Drifting(torch.optim.Optimizer):
    """As optimizers of others are: numbers in groups that change, tensors in double precision, a
    list, a count, something of no parameter."""

    def __init__(self, parameters: Any, lr: float = 0.02) -> None:
        super().__init__(parameters, {"lr": lr, "drift": 1.0, "betas": (0.9, 0.5), "begun": False})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            group["drift"] = group["drift"] * 0.97 + 0.01
            group["begun"] = True
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    zeros = torch.zeros_like(parameter, dtype=torch.float64)
                    state |= {"mean": zeros, "count": 0, "parts": [zeros.clone(), None]}
                state["count"] += 1
                state["mean"].lerp_(parameter.grad.double(), 1 - group["betas"][0])
                state["parts"][0] += state["mean"] ** 2
                scale = (state["parts"][0] / state["count"]).sqrt() + 1e-3
                change = group["lr"] * group["drift"] * state["mean"] / scale
                parameter.data -= change.float()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True, betas=(0.8, 0.9)),
    "drifting": Drifting,
    "groups": lambda p: torch.optim.SGD(
        [{"params": p[:1], "lr": 0.1, "momentum": 0.5}, {"params": p[1:], "lr": 0.01}]
    ),
}


@pytest.mark.parametrize("after", [11, 25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_continues_bit_for_bit(name: str, after: int, tmp_path: Path) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        made.append(OPTIMIZERS[name](parameters))
        return made[-1]

    made: list[torch.optim.Optimizer] = []
    whole = fit(tmp_path / "whole", 40, 7, optimizer=make)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 40, 7, stopping(after), optimizer=make)
    again = fit(tmp_path / "parts", 40, 7, optimizer=make)
    assert_same(whole, again)
    assert not torch.equal(next(whole.parameters()), next(linear().parameters()))
    files = [(tmp_path / part / STATE).read_bytes() for part in ("whole", "parts")]
    assert files[0] == files[1]  # moments, numbers and groups too
    assert made[0].state_dict().keys() == made[-1].state_dict().keys()


def test_a_continued_optimizer_holds_what_the_stopped_one_held(tmp_path: Path) -> None:
    made: list[Drifting] = []

    def make(parameters: Any) -> torch.optim.Optimizer:
        made.append(Drifting(parameters))
        return made[-1]

    for _ in range(2):
        fit(tmp_path, 20, optimizer=make)
    (first, group), (second, other) = ((one.state, one.param_groups[0]) for one in made)
    assert {k: v for k, v in group.items() if k != "params"} == {
        k: v for k, v in other.items() if k != "params"
    }
    assert group["drift"] not in (1.0, 0.0)
    for a, b in zip(first.values(), second.values(), strict=True):
        assert torch.equal(a["mean"], b["mean"])
        assert b["mean"].dtype == torch.float64
        assert (a["count"], a["parts"][1]) == (b["count"], b["parts"][1]) == (20, None)
        assert torch.equal(a["parts"][0], b["parts"][0])


def test_the_schedule_multiplies_an_optimizers_own_rates(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Rates(bd.Callback):
        def after_step(self, trainer: Trainer, step: int, losses: Mapping[str, Tensor]) -> None:
            groups = trainer.optimizers["net"].param_groups
            seen.append([group["lr"] for group in groups])

    settings = loop(optimizer=OPTIMIZERS["groups"], callbacks=(Rates(),), warmup=10, decay=0.5)
    trainer = Trainer({"net": linear()}, settings, tmp_path, "stage", {"net": settings.lr / 5})
    trainer.fit(Quadratic(), rows, 20, 0)
    warmup = 2  # a tenth of all steps, which is less than asked for
    shape = [min(1.0, (k + 1) / warmup, (20 - k) / 10) for k in range(20)]
    assert np.array(seen) == pytest.approx(np.outer(shape, [0.1, 0.01]) / 5)


def test_a_plain_step_is_that_of_the_optimizer(tmp_path: Path) -> None:
    def plain(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    net = fit(tmp_path, 1, optimizer=plain, warmup=0, decay=0.0, ema=0.0)
    by_hand = linear()
    generator = loop_module.ranks.rank_generator(0, 0, 1)
    Quadratic().loss(by_hand, rows(generator), generator).backward()
    for a, b in zip(net.parameters(), by_hand.parameters(), strict=True):
        assert b.grad is not None
        torch.testing.assert_close(a, b - 0.1 * b.grad)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p: 3, "made a int, expected a torch optimizer"),
        ("adam", "optimizer is 'adam', expected FILE.py:function"),
        ("gone.py", "no file gone.py: expected a Python file whose function optimizer"),
        ("python:SGD-0123", "an object of a Python program that is not there any more"),
    ],
)
def test_what_is_no_optimizer_is_told(optimizer: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fit(tmp_path, 1, optimizer=optimizer)


def test_a_state_that_cannot_be_saved_or_is_anothers_is_refused(tmp_path: Path) -> None:
    class Odd(Drifting):
        def step(self, closure: Any = None) -> None:
            super().step()
            for state in self.state.values():
                state["odd"] = {1, 2}

    with pytest.raises(UserError, match="a Odd keeps a set in its state, which cannot be saved"):
        fit(tmp_path / "odd", 10, optimizer=Odd)
    fit(tmp_path, 10, optimizer=OPTIMIZERS["momentum"])
    for other in ("adagrad", "groups"):
        with pytest.raises(UserError, match=r"is not a state of this run .*of a SGD, or of other"):
            fit(tmp_path, 20, optimizer=OPTIMIZERS[other])
    with pytest.raises(UserError, match=r"optimizer/net/0 is .*, expected not there"):
        fit(tmp_path, 20)
    tensors, step = load_state(tmp_path / STATE, 10)
    for text in (b"", b"[3]", b'["SGD", true, {"items": 3}]', b'["SGD", true, {"tensor": 99}]'):
        spoilt = {"optimizer/net/text": torch.tensor(list(text), dtype=torch.uint8)}
        save_state(tmp_path / STATE, tensors | spoilt, step)
        with pytest.raises(UserError, match="is not a state of this run"):
            fit(tmp_path, 20, optimizer=OPTIMIZERS["momentum"])


class Recorder:
    """A callback that writes down what it is told."""

    def __init__(self) -> None:
        self.steps, self.losses, self.saved, self.ends = list[int](), list[Any](), [], []

    def after_step(self, trainer: Trainer, step: int, losses: Mapping[str, Tensor]) -> None:
        assert not any(loss.requires_grad for loss in losses.values())
        self.steps.append(step)
        self.losses.append({name: float(loss) for name, loss in losses.items()})

    def after_save(self, trainer: Trainer, path: Path) -> None:
        self.saved.append(load_state(path, 10**6)[1])

    def at_end(self, trainer: Trainer, net: nn.Module) -> None:
        self.ends.append((trainer.stage, net))


def test_callbacks_are_told_of_every_step_save_and_end(tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    net = fit(tmp_path, 24, callbacks=(one, two, bd.Callback()), log_every=1, accumulate=2)
    assert one.steps == list(range(1, 25))
    assert one.saved == [10, 20, 24]
    assert one.ends == [("stage", net)]
    told = [line["loss"] for line in logged(tmp_path)]
    assert one.losses == [pytest.approx(loss) for loss in told]
    assert (one.steps, one.losses, one.saved) == (two.steps, two.losses, two.saved)
    assert_same(net, fit(tmp_path / "plain", 24, accumulate=2))


def test_a_continued_training_calls_for_the_steps_that_are_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 24, 0, stopping(15))
    recorder = Recorder()
    fit(tmp_path, 24, 0, callbacks=(recorder,))
    assert recorder.steps == list(range(11, 25))
    with pytest.raises(UserError, match="is a int with none of the methods after_step"):
        fit(tmp_path, 24, 0, callbacks=(3,))


def test_loggers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="wandb, which is not installed: pip install wandb"):
        fit(tmp_path / "a", 4, loggers=("wandb",))
    assert not (tmp_path / "a").exists()
    fit(tmp_path / "b", 8, loggers=("none",))
    assert [line["step"] for line in logged(tmp_path / "b")] == [4, 8]
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"log.jsonl", STATE}
    fake = """
import json, pathlib
class Run:
    def log(self, what, step): print(json.dumps([step, what]), file=self.file, flush=True)
    def finish(self): self.file.close()
def init(dir, **more):
    run = Run()
    run.file = open(pathlib.Path(dir) / "wandb.jsonl", "w")
    return run
"""
    (tmp_path / "wandb.py").write_text(fake)
    monkeypatch.syspath_prepend(tmp_path)
    fit(tmp_path / "c", 8, loggers=("wandb", "tensorboard"))
    monkeypatch.delitem(sys.modules, "wandb")
    told = [json.loads(line) for line in (tmp_path / "c/wandb.jsonl").read_text().splitlines()]
    expected = [[x["step"], {"loss/net": x["loss"]["net"]}] for x in logged(tmp_path / "c")]
    assert told == expected
    assert (tmp_path / "c" / "tensorboard").exists()
    assert LoopConfig(loggers="none") == LoopConfig(loggers=("none",))  # pyright: ignore[reportArgumentType]
    for loggers in (("csv",), ("none", "tensorboard")):
        with pytest.raises(UserError, match="expected some of tensorboard, wandb, or none"):
            LoopConfig(loggers=loggers)


def test_the_loss_stands_beside_the_bar_of_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[float] = []
    true = loop_module._shown
    monkeypatch.setattr(
        loop_module, "_shown", lambda losses: read.append(len(losses)) or true(losses)
    )
    fit(tmp_path / "silent", 40)
    assert read == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(tmp_path / "shown", 40, log_every=40)
    assert len(read) == 4  # every ten steps
    last = logged(tmp_path / "shown")[-1]["loss"]["net"]
    assert "loss 0." in capsys.readouterr().err
    assert math.isfinite(last)
    with progress("work", 3) as advance:
        advance(1)
        advance(2, lambda: "half [done]")
    assert "half [done]" in capsys.readouterr().err


class Half(nn.Module):
    """A frozen layer under one that is trained; tied, so that its name stands twice."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.top = nn.Linear(3, 3), nn.Linear(3, 1)
        self.again = self.base
        self.register_buffer("count", torch.zeros(()))
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.5)

    @property
    def frozen(self) -> list[nn.Parameter]:
        return [*self.base.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.base(x) + x)


def half() -> Half:
    net = Half()
    nn.init.eye_(net.base.weight)
    return net


@pytest.mark.parametrize("optimizer", [None, OPTIMIZERS["momentum"]])
def test_frozen_parameters_are_neither_trained_nor_averaged_nor_saved(
    optimizer: Any, tmp_path: Path
) -> None:
    more = {} if optimizer is None else {"optimizer": optimizer}
    net = half()
    trainer = Trainer({"net": net}, loop(**more), tmp_path / "t", "stage")
    assert trainer.ema.state().keys() == {"top.weight", "top.bias"}
    groups = trainer.optimizers["net"].param_groups
    assert sum(len(group["params"]) for group in groups) == 2
    whole = trainer.fit(Quadratic(), rows, 40, 7)
    before = half()
    assert torch.equal(net.base.weight, before.base.weight)
    assert torch.equal(net.base.bias, before.base.bias)
    assert not torch.equal(net.top.weight, before.top.weight)
    tensors, _ = load_state(tmp_path / "t" / STATE, 40)
    assert not [name for name in tensors if "base" in name or "again" in name]
    assert {"net/net/top.weight", "net/net/count", "ema/top.bias"} <= tensors.keys()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 40, 7, stopping(25), net=half(), **more)
    assert_same(whole, fit(tmp_path / "parts", 40, 7, net=half(), **more))
    # A training after it freezes the same, although the result of the first needs no gradient.
    again = Trainer({"net": net}, loop(), tmp_path / "next", "stage")
    assert again.ema.state().keys() == {"top.weight", "top.bias"}


@pytest.mark.parametrize("place", ["itself", "inner", "module"])
def test_checkpointing_is_switched_on_in_the_way_of_each_library(place: str) -> None:
    calls: list[Any] = []

    class Diffusers(nn.Module):
        def enable_gradient_checkpointing(self) -> None:
            calls.append("diffusers")

    class Transformers(nn.Module):
        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
            calls.append(gradient_checkpointing_kwargs)

    class Timm(nn.Module):
        def set_grad_checkpointing(self, enable: bool = False) -> None:
            calls.append(enable)

    for kind in (Diffusers, Transformers, Timm):
        net = kind()
        if place != "itself":
            net = nn.Module()
            setattr(net, place, kind())
        keep_fewer(net)
    assert calls == ["diffusers", {"use_reentrant": False}, True]
    with pytest.raises(UserError, match="checkpoint is on and a Linear keeps all activations"):
        keep_fewer(nn.Linear(1, 1))


@pytest.fixture
def data(tmp_path: Path) -> str:
    numbers = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=numbers)
    return str(tmp_path / "data.npz")


def config(data: str, out: Path, steps: int, **settings: Any) -> TrainConfig:
    own = LoopConfig(accelerator="cpu", save_every=70, log_every=20, **settings)
    return TrainConfig(data, out, steps, 16, network=NET, loop=own)


def test_a_finished_run_goes_on_for_more_steps(data: str, tmp_path: Path) -> None:
    out, card = tmp_path / "run", "model.json"
    first = train(config(data, out, 200))
    log = (out / "log.jsonl").read_text()
    more = train(config(data, out, 400))
    assert (more.card.steps, more.spent) == (400, 2 * first.spent)
    assert (out / "log.jsonl").read_text().startswith(log)  # no step is taken twice
    settings = read_settings(out).settings
    assert settings["steps"] == 400
    assert "steps: 400" in (out / SETTINGS).read_text()
    made = read_made(out)
    assert made is not None
    assert (made.finished, made.sessions, len(made.commands)) == (True, 2, 2)

    by_hand = NET.build((3,), 0)
    own, points = config(data, tmp_path / "hand", 1).loop, load_data(data)
    for steps in (200, 400):
        trainer = Trainer({"teacher": by_hand}, own, tmp_path / "hand", "teacher")
        by_hand = trainer.fit(FlowMatching(), PairBatches(points, 16, trainer.device), steps, 0)
    assert_same(more.net, by_hand)
    scratch = train(config(data, tmp_path / "scratch", 400))
    assert scratch.card.digest != more.card.digest

    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="holds a run of 400 steps, expected as many or more, not"):
        train(config(data, out, 300))
    assert train(config(data, out, 400)).card == load_model(out).card  # left alone
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    (out / "state-teacher.safetensors").unlink()
    with pytest.raises(UserError, match=r"400 steps and no state-teacher\.safetensors to go"):
        train(config(data, out, 500))
    assert read_settings(out).settings["steps"] == 400
    assert (out / card).read_bytes() == before[card]


def test_more_steps_that_are_stopped_go_on_and_another_setting_is_another_run(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "parts"):
        train(config(data, tmp_path / name, 40))
    whole = train(config(data, tmp_path / "whole", 120))
    true, calls = FlowMatching.loss, iter(range(1, 1000))

    def loss(self: Any, *arguments: Any) -> Tensor:
        if next(calls) == 50:
            raise KeyboardInterrupt
        return true(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FlowMatching, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            train(config(data, tmp_path / "parts", 120))
    assert load_model(tmp_path / "parts").card.steps == 40  # usable meanwhile
    assert train(config(data, tmp_path / "parts", 120)).card.digest == whole.card.digest
    with pytest.raises(UserError, match="holds another run of train, with other loop: choose"):
        train(config(data, tmp_path / "parts", 160, clip=1.0))


def test_what_only_looks_on_may_change_and_an_optimizer_may_not(data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = train(config(data, out, 20))
    watched = config(data, out, 20, loggers=("none",), callbacks=(Recorder(),))
    assert train(watched).card.digest == model.card.digest
    assert not {"loggers", "callbacks", "log_every"} & read_settings(out).settings["loop"].keys()
    with pytest.raises(UserError, match="holds another run of train, with other loop"):
        train(config(data, out, 20, optimizer=OPTIMIZERS["momentum"]))


def test_a_settings_file_makes_the_same_model(data: str, tmp_path: Path) -> None:
    (tmp_path / "sgd.py").write_text(
        "import torch\ndef mine(p):\n    return torch.optim.SGD(p, lr=0.01, momentum=0.9)\n"
    )
    first = config(data, tmp_path / "a", 20, optimizer=f"{tmp_path / 'sgd.py'}:mine")
    model = train(first)
    assert parse(["train", "--config", str(tmp_path / "a" / SETTINGS)]).config == first
    words = ["--config", str(tmp_path / "a" / SETTINGS), "--out", str(tmp_path / "b")]
    assert main(["train", *words]) == 0
    assert load_model(tmp_path / "b").card.digest == model.card.digest


def test_an_object_in_a_settings_file_is_told_to_be_gone(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01)

    train(config(data, tmp_path / "a", 4, optimizer=gone))
    file = tmp_path / "a" / SETTINGS
    assert "optimizer: python:gone-" in file.read_text()
    file.write_text(file.read_text().replace("python:gone-", "python:gone-0"))  # another process
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert "was an object of a Python program that is not there any more" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_objects_of_one_name_stay_apart() -> None:
    one, two = Recorder(), Recorder()
    settings = [LoopConfig(callbacks=(each,)) for each in (one, two)]
    values = [getattr(each.callbacks[0], "value", None) for each in settings]
    assert values[0] is one
    assert values[1] is two


def test_samples_start_from_given_noise(data: str, tmp_path: Path) -> None:
    model = train(config(data, tmp_path / "t", 20))
    noise = bd.noise(5, bd.Stream.SAMPLE, range(9), (3,))
    expected = model.sample(9, passes=2, seed=5)
    for given in (noise, noise.numpy().astype(np.float64)):
        assert np.array_equal(model.sample(9, passes=2, noise=given), expected)
    assert np.allclose(model.sample(9, passes=2, noise=noise, batch=4), expected, atol=1e-5)
    states = model.generate(noise, 2)
    assert np.allclose(model.scaling.decode(states), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"noise has shape \(9, 3\), expected \(8, 3\)"):
        model.sample(8, noise=noise)


def test_models_stores_and_curves_say_what_they_are_in_a_line(data: str, tmp_path: Path) -> None:
    model = train(config(data, tmp_path / "t", 20))
    simulation = bd.SimulateConfig((tmp_path / "t",), tmp_path / "c", count=40, accelerator="cpu")
    store = bd.simulate(simulation)
    student = bd.distill(
        bd.DistillConfig(tmp_path / "c", tmp_path / "s", steps=4, batch=8, loop=loop())
    )
    size = sum(parameter.numel() for parameter in model.net.parameters())
    net = f"MLP of {size:,} parameters, shape (3,)"
    assert repr(model) == f"Model(teacher, {net}, 960 passes spent, {tmp_path / 't'})"
    size = sum(parameter.numel() for parameter in student.net.parameters())
    net = f"CurveNetwork of {size:,} parameters, shape (3,)"
    assert f"{net}, knots of 1, 2, 3, 4 passes, " in repr(student)
    made = "40 curves of degree 4, shape (3,), guides fit, 1 teacher"
    assert repr(store) == f"CurveStore({made}, {tmp_path / 'c'})"
    curve = store.curves(torch.arange(7))
    assert repr(curve) == "BezierCurve(degree 4, batch 7, shape (3,))"
    assert repr(bd.Model(model.net, model.card)).endswith("not saved)")


def test_extractors_and_methods_are_functions_of_files_or_objects(
    data: str, tmp_path: Path
) -> None:
    file, points = tmp_path / "mine.py", load_data(data)
    file.write_text(
        "import torch\ndef flat(data):\n    return torch.nn.Flatten()\n"
        "def method(bench): return 1\ndef other(bench): return 2\n"
    )

    def made(data: Any) -> nn.Module:
        return nn.Flatten()

    x = points.real(20, 0, "test")
    for given in (f"{file}:flat", made, nn.Flatten()):
        one: Any = given  # in place of several
        (name,) = EvaluateConfig(Path("x"), data, extractor=one).extractor
        assert torch.equal(load_extractor(cast(str, name), points)(x), x)
    with pytest.raises(UserError, match="has no function gone, which takes the data"):
        load_extractor(f"{file}:gone", points)

    def third(bench: Any) -> Any:
        return 3

    arena = ArenaConfig(data, tmp_path, (str(file), f"{file}:other", third, "rf-2"))
    chosen = choose_methods(arena.methods)
    assert list(chosen) == ["mine", "other", "third", "rf-2"]
    bench: Any = None
    assert [chosen[name](bench) for name in ("mine", "other", "third")] == [1, 2, 3]
    with pytest.raises(UserError, match="two methods are called other"):
        choose_methods((f"{file}:other", f"{file}:other"))


def test_a_metric_of_ones_own_has_its_floor(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = load_data(data)
    evaluate = Evaluator(points)
    x = points.real(150, 3, "train") + 0.5
    scores, own = evaluate(x), evaluate.measure(x, sliced_wasserstein)
    assert own.value == pytest.approx(scores.sliced_wasserstein.value, rel=1e-6)
    assert own.floor == pytest.approx(scores.sliced_wasserstein.floor, rel=1e-6)
    with pytest.raises(UserError, match="metric <lambda> gave nan, expected a finite number"):
        evaluate.measure(x, lambda a, b: math.nan)

    np.savez(tmp_path / "x.npz", x=points.scaling.decode(x))
    file, out = tmp_path / "mine.py", tmp_path / "scores.json"
    file.write_text(
        "def shift(a, b): return (a.mean() - b.mean()).abs()\ndef metric(a, b): return 2.0\n"
    )
    words = ["evaluate", "--samples", str(tmp_path / "x.npz"), "--data", data]
    assert main([*words, "--metric", f"{file}:shift,{file}", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    told = json.loads(out.read_text())["metrics"]
    assert told["mine"] == {"value": 2.0, "floor": 2.0}
    assert told["shift"]["value"] == pytest.approx(0.5, abs=0.1)
    assert told["shift"]["floor"] < 0.2
    assert "mine: 2 (1.00x), floor 2" in printed
    assert main([*words, "--json"]) == 0
    assert "metrics" not in json.loads(capsys.readouterr().out)
    for given, message in (
        ("nothing", "metric is 'nothing', expected FILE.py:function"),
        (f"{file}:gone", "has no function gone, which takes two sets of states"),
        (f"{file},{file}:metric", "two metrics are called alike"),
    ):
        assert main([*words, "--metric", given]) == 2
        assert message in capsys.readouterr().err

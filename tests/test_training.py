"""The loop: averages and rates in closed form, exact resume, polite ends, and losses that are not
finite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import Objective, SingleObjective
from bezierdistill.training.checkpoint import load_state, save_state
from bezierdistill.training.ema import EMA
from bezierdistill.training.loop import Trainer
from bezierdistill.training.ranks import open_fabric
from bezierdistill.training.settings import LoopConfig
from bezierdistill.training.stopping import SIGNALS, Stop, leave

Losses = Iterator[tuple[str, Tensor]]


class Quadratic(SingleObjective):
    """A noisy regression of one linear layer."""

    cost = 3

    def loss(
        self, net: nn.Module, batch: Any, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        return (net(batch) - batch.sum(1, keepdim=True)).square().mean()


class By:
    """An objective of a function of the networks and a batch."""

    cost = 3

    def __init__(self, step: Callable[[Mapping[str, nn.Module], Tensor], Losses]) -> None:
        self.step = step

    def losses(
        self,
        nets: Mapping[str, nn.Module],
        batch: Any,
        generator: torch.Generator,
        progress: float,
    ) -> Losses:
        yield from self.step(nets, batch)


def rows(generator: torch.Generator) -> Tensor:
    """A batch of :class:`Quadratic`."""
    return torch.randn(16, 3, generator=generator)


def linear() -> nn.Module:
    net = nn.Linear(3, 1)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    return net


def loop(**settings: object) -> LoopConfig:
    return LoopConfig(
        **{"accelerator": "cpu", "lr": 0.05, "save_every": 10, "log_every": 4, **settings}
    )  # pyright: ignore[reportArgumentType]


def fit(
    folder: Path,
    steps: int,
    seed: int = 0,
    objective: Objective | None = None,
    stage: str = "stage",
    net: nn.Module | None = None,
    **settings: object,
) -> nn.Module:
    trainer = Trainer({"net": net or linear()}, loop(**settings), folder, stage)
    return trainer.fit(objective or Quadratic(), rows, steps, seed)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 20])
def test_ema_is_the_weighted_sum_of_its_history_and_ends_with_the_last_weights(steps: int) -> None:
    net = nn.Linear(1, 1, bias=False)
    ema, expected, taken = EMA(net, 0.7), float(net.weight), 0
    for done in range(1, steps + 1):
        nn.init.constant_(net.weight, float(done))
        ema.update(done - 1, last=done == steps)
        if done % 4 == 0 or done == steps:
            decay = min(0.7, done / (9 + done)) ** (done - taken)
            expected, taken = decay * expected + (1 - decay) * done, done
    assert float(ema.state()["weight"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_short_training_is_in_its_result(steps: int, tmp_path: Path) -> None:
    net = fit(tmp_path, steps, ema=0.999)
    decay = ((1 + steps - 1) / (10 + steps - 1)) ** ((steps - 1) % 4 + 1)
    live, start = load_state(tmp_path / "state-stage.safetensors", steps)[0]["net/net/weight"], 0.5
    if steps < 4:
        torch.testing.assert_close(next(net.parameters()), decay * start + (1 - decay) * live)
    assert float((next(net.parameters()) - live).abs().max()) < float((live - start).abs().max())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_ema_refuses_a_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match="ema decay"):
        EMA(linear(), decay)


def test_rate_rises_stays_and_falls(tmp_path: Path) -> None:
    trainer = Trainer({"net": linear()}, loop(warmup=10, decay=0.5), tmp_path, "stage")
    rates = [trainer._rate(k, 100) for k in range(100)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10:50] == pytest.approx([1.0] * 40)
    assert rates[50:] == pytest.approx([(100 - k) / 50 for k in range(50, 100)])


def test_training_solves_a_linear_regression(tmp_path: Path) -> None:
    net = fit(tmp_path, 600, ema=0.9)
    assert torch.cat([p.flatten() for p in net.parameters()]) == pytest.approx(
        torch.tensor([1.0, 1.0, 1.0, 0.0]), abs=1e-3
    )
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == list(range(4, 601, 4))
    assert lines[-1]["loss"]["net"] < 1e-4 < lines[0]["loss"]["net"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_log_holds_the_mean_loss_since_the_last_line(tmp_path: Path) -> None:
    losses = iter(range(1, 7))

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        yield "net", next(nets["net"].parameters()).sum() * 0 + float(next(losses))

    fit(tmp_path, 6, objective=By(step))
    assert [line["loss"]["net"] for line in logged(tmp_path)] == pytest.approx([2.5, 5.5])


def test_log_holds_the_mean_of_losses_that_come_several_times_a_step(tmp_path: Path) -> None:
    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        for name, values in (("net", [3.0]), ("critic", [1.0, 1.0, 1.0, 1.0, 6.0])):
            for value in values:
                yield name, next(nets[name].parameters()).sum() * 0 + value

    nets = {"net": linear(), "critic": linear()}
    Trainer(nets, loop(log_every=4), tmp_path, "stage").fit(By(step), rows, 6, 0)
    assert [line["loss"] for line in logged(tmp_path)] == [{"net": 3.0, "critic": 2.0}] * 2
    other = Trainer(nets, loop(accumulate=2), tmp_path / "sums", "stage")
    with pytest.raises(UserError, match="accumulate is 2 and critic is updated more than once"):
        other.fit(By(step), rows, 6, 0)


def test_losses_are_told_the_share_of_the_training_that_is_done(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watching(Quadratic):
        def losses(
            self,
            nets: Mapping[str, nn.Module],
            batch: Any,
            generator: torch.Generator,
            progress: float,
        ) -> Losses:
            seen.append(progress)
            if len(seen) == 12:
                raise KeyboardInterrupt
            return super().losses(nets, batch, generator, progress)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 20, objective=Watching())
    fit(tmp_path, 20, objective=Watching())
    assert seen == [k / 20 for k in (*range(12), *range(10, 20))]


def stopping(after: int) -> By:
    """The noisy regression, interrupted before step ``after`` is finished."""
    calls = 0

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        nonlocal calls
        calls += 1
        yield from Quadratic().losses(nets, batch, torch.Generator(), 0.0)
        if calls == after:
            raise KeyboardInterrupt

    return By(step)


@pytest.mark.parametrize("after", [11, 25])
def test_resume_gives_the_weights_of_the_uninterrupted_run_bit_for_bit(
    tmp_path: Path, after: int
) -> None:
    whole = fit(tmp_path / "whole", 40, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 40, 7, stopping(after))
    assert_same(whole, fit(tmp_path / "parts", 40, 7))


def sending(number: int, at: int, times: int = 1) -> By:
    """The noisy regression, during whose step ``at`` this process is sent a signal."""
    calls = 0

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        nonlocal calls
        calls += 1
        for _ in range(times if calls == at else 0):
            os.kill(os.getpid(), number)
        yield from Quadratic().losses(nets, batch, torch.Generator(), 0.0)

    return By(step)


@pytest.mark.parametrize("at", [1, 7, 18, 40])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_a_training_after_its_step_and_nothing_is_lost(
    name: str, at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))
    expected = KeyboardInterrupt if name == "SIGINT" else SystemExit
    with pytest.raises(expected) as ended:
        fit(tmp_path / "parts", 40, 7, sending(number, at))
    if name != "SIGINT":
        assert ended.value.code == 128 + number  # pyright: ignore[reportAttributeAccessIssue]
    assert signal.getsignal(number) is before
    assert f"stage: stopped at step {at} of 40, its state is in " in capsys.readouterr().err
    assert load_state(tmp_path / "parts" / "state-stage.safetensors", 40)[1] == at
    assert_same(fit(tmp_path / "whole", 40, 7), fit(tmp_path / "parts", 40, 7))


def test_a_second_signal_ends_at_once_unless_others_must_be_waited_for(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 40, 0, sending(signal.SIGINT, 12, times=2))
    assert load_state(tmp_path / "state-stage.safetensors", 40)[1] == 10
    with Stop(patient=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked == signal.SIGTERM
    with pytest.raises(SystemExit):
        leave(stop.asked)


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with Stop(patient=False) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


CHILD = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import Quadratic, linear, loop, rows
from bezierdistill.training.loop import Trainer

class Slow(Quadratic):
    def losses(self, nets, batch, generator, progress):
        if progress == 0.0:
            print("started", flush=True)
        yield from super().losses(nets, batch, generator, progress)

trainer = Trainer({{"net": linear()}}, loop(save_every=10**9), Path({folder!r}), "stage")
trainer.fit(Slow(), rows, 10**9, 7)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_ended_politely_keeps_its_state(number: int, tmp_path: Path) -> None:
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    child.send_signal(number)
    _, error = child.communicate(timeout=120)
    assert child.returncode == (-number if number == signal.SIGINT else 128 + number)
    _, step = load_state(tmp_path / "state-stage.safetensors", 10**9)
    assert f"stage: stopped at step {step} of 1000000000, its state is in {tmp_path}" in error


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_meet_are_told_what_is_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**own, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"WORLD_SIZE is 2 and {missing} is not set"):
        open_fabric("cpu")
    monkeypatch.setenv(missing, "" if missing == "MASTER_ADDR" else "one")
    with pytest.raises(UserError, match=f"WORLD_SIZE is 2 and {missing} is (not set|one)"):
        open_fabric("cpu")


def test_rates_of_unknown_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rates are of net, critic, networks net"):
        Trainer({"net": linear()}, loop(), tmp_path, "stage", {"critic": 0.1})


def test_a_training_costs_its_rows_times_the_objectives_cost(tmp_path: Path) -> None:
    trainer = Trainer({"net": linear()}, loop(accumulate=2), tmp_path, "stage")
    assert trainer.cost(Quadratic(), 5, 16) == 5 * 16 * 3 * 2


def test_resume_of_a_finished_stage_changes_nothing(tmp_path: Path) -> None:
    assert_same(fit(tmp_path, 20, 1), fit(tmp_path, 20, 1, stopping(1)))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    steps = 0

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        nonlocal steps
        steps += 1
        for name, loss in Quadratic().losses(nets, batch, torch.Generator(), 0.0):
            yield name, loss * (float("nan") if steps > 12 else 1.0)

    with pytest.raises(
        ValueError,
        match=(
            r"loss of net is not finite at step 16: the state of step 10 is kept in"
            r" .*state-stage.safetensors"
        ),
    ):
        fit(tmp_path, 40, objective=By(step))
    assert load_state(tmp_path / "state-stage.safetensors", 40)[1] == 10
    resumed = fit(tmp_path, 40, 0)
    assert all(bool(p.isfinite().all()) for p in resumed.parameters())


@pytest.mark.parametrize("save_every", [2, 3, 7])
def test_a_state_after_divergence_is_never_saved(save_every: int, tmp_path: Path) -> None:
    steps = 0

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        nonlocal steps
        steps += 1
        for name, loss in Quadratic().losses(nets, batch, torch.Generator(), 0.0):
            yield name, loss * (float("inf") if steps == 11 else 1.0)

    with pytest.raises(ValueError, match="not finite"):
        fit(tmp_path, 40, objective=By(step), save_every=save_every, log_every=100)
    tensors, saved = load_state(tmp_path / "state-stage.safetensors", 40)
    assert saved == 10 // save_every * save_every
    assert all(
        bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()
    )


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    net, steps = linear(), 0

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        nonlocal steps
        steps += 1
        yield from Quadratic().losses(nets, batch, torch.Generator(), 0.0)
        if steps == 5:
            nn.init.constant_(next(net.parameters()), float("nan"))

    with pytest.raises(
        ValueError,
        match=r"tensor .*net/net/weight.* is not finite at step 5: no state was saved before",
    ):
        fit(tmp_path, 5, objective=By(step), net=net, save_every=5, log_every=100)
    assert not (tmp_path / "state-stage.safetensors").exists()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    fit(tmp_path, 10)
    file = tmp_path / "state-stage.safetensors"
    content = file.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 16]) + content[-2:]
    for spoilt, message in (
        (content[:-9], "cut off or damaged"),
        (flipped, "differs from its digest"),
        (b"", "cut off or damaged"),
    ):
        file.write_bytes(spoilt)
        with pytest.raises(ValueError, match=rf"state-stage\.safetensors.*{message}"):
            fit(tmp_path, 20, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"net/net/weight": torch.zeros(2, 3)},
            r"net/net/weight is float32 \(2, 3\)",
        ),
        ({"ema/more": torch.zeros(1)}, r"ema/more is float32 \(1,\), expected not there"),
        (
            {"adam/net/0/exp_avg": torch.zeros(3)},
            r"adam/net/0/exp_avg is float32 \(3,\), expected float32 \(1, 3\)",
        ),
        (
            {"generator": torch.zeros(1, 3, dtype=torch.uint8)},
            r"generator is uint8 \(1, 3\), expected uint8 \(1, 5056\)",
        ),
        ({"generator": torch.zeros(1, 5056)}, "generator is float32"),
    ],
)
def test_a_state_of_another_run_changes_nothing(
    change: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    fit(tmp_path, 10, 0)
    file = tmp_path / "state-stage.safetensors"
    save_state(file, load_state(file, 10)[0] | change, 10)
    net = linear()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, 20, net=net)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), linear().parameters(), strict=True)
    )


def test_a_state_without_its_generator_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 10, 0)
    file = tmp_path / "state-stage.safetensors"
    tensors, step = load_state(file, 10)
    del tensors["generator"]
    save_state(file, tensors, step)
    with pytest.raises(ValueError, match="is not a state of this run"):
        fit(tmp_path, 10, 0)


def test_a_message_names_only_the_losses_that_are_not_finite(tmp_path: Path) -> None:
    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        for name, net in nets.items():
            yield name, next(net.parameters()).sum() * (float("inf") if name == "b" else 1.0)

    with pytest.raises(
        ValueError, match="loss of b is not finite at step 4: no state was saved before"
    ):
        Trainer({"a": linear(), "b": linear()}, loop(), tmp_path, "stage").fit(By(step), rows, 8, 0)


def test_a_state_of_a_longer_stage_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 20, 0)
    with pytest.raises(ValueError, match="the state of step '20', expected 0 to 10"):
        fit(tmp_path, 10, 0)


def test_the_log_of_a_resumed_stage_has_no_line_twice_and_none_torn(tmp_path: Path) -> None:
    fit(tmp_path / "whole", 40, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 40, 7, stopping(19))
    other = json.dumps({"stage": "before", "step": 99, "loss": {"net": 1.0}})
    log = tmp_path / "parts" / "log.jsonl"
    log.write_text(other + "\n" + log.read_text() + '{"stage": "stage", "st')
    fit(tmp_path / "parts", 40, 7)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [99, 4, 8, *range(12, 41, 4)]
    last = [(line["step"], line["loss"]) for line in lines[-6:]]
    assert last == [(line["step"], line["loss"]) for line in logged(tmp_path / "whole")[-6:]]


def test_tensorboard_shows_every_stage_whole_and_no_step_of_one_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )  # a second that no other test needs

    fit(tmp_path, 12, stage="first")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 24, 0, stopping(19), "second")
    fit(tmp_path, 24, stage="second")
    for stage, steps in (("first", range(4, 13, 4)), ("second", [4, 8, *range(12, 25, 4)])):
        board = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        assert [event.step for event in board.Scalars("loss/net")] == list(steps)


def test_two_networks_are_updated_in_turn_with_their_own_rates(tmp_path: Path) -> None:
    plain = {"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)}
    start = {name: net.weight.item() for name, net in plain.items()}
    seen = []

    def step(nets: Mapping[str, nn.Module], batch: Tensor) -> Losses:
        one = torch.ones(1, 1)
        yield "a", nets["a"](one).sum()
        seen.append(plain["a"].weight.item())
        yield "b", nets["b"](one).sum()

    trainer = Trainer(plain, loop(warmup=0, decay=0.0, ema=0.0), tmp_path, "stage", {"b": 0.2})
    trainer.fit(By(step), rows, 1, 0)
    assert seen[0] - start["a"] == pytest.approx(-0.05, rel=1e-4)
    assert plain["b"].weight.item() - start["b"] == pytest.approx(-0.2, rel=1e-4)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.0}, {"decay": 1.5}, {"warmup": -1}, {"clip": -1.0}, {"log_every": 0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        loop(**settings)


def test_the_networks_weights_are_a_function_of_the_seed_and_leave_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (NetworkConfig(width=8).build((2,), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(a.parameters(), b.parameters(), c.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q, _ in pairs)
    assert any(not torch.equal(p, r) for p, _, r in pairs)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    parts = fit(tmp_path / "parts", 30, accumulate=2)
    trainer = Trainer({"net": linear()}, loop(), tmp_path / "whole", "stage")
    whole = trainer.fit(Quadratic(), lambda g: torch.cat([rows(g), rows(g)]), 30, 0)
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    logs = [logged(tmp_path / name)[-1]["loss"]["net"] for name in ("parts", "whole")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


class Mirror(SingleObjective):
    """A small regression of images by a network of two times."""

    cost = 3

    def loss(
        self, net: nn.Module, batch: Any, generator: torch.Generator, progress: float = 0.0
    ) -> Tensor:
        s = torch.rand(len(batch), generator=generator)
        return (net(batch, s, s) - batch.flip(-1)).square().mean()


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=generator)


@pytest.mark.parametrize(
    "settings", [{"channels_last": True}, {"checkpoint": True}, {"precision": "bf16-mixed"}]
)
def test_options_of_images_change_speed_and_memory_and_little_else(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def trained(name: str, **more: Any) -> nn.Module:
        net = NetworkConfig("unet", 8, 1, 1).build((3, 8, 8), 0)
        settings = loop(lr=1e-3, warmup=0, ema=0.0, **more)
        trainer = Trainer({"net": net}, settings, tmp_path / name, "stage")
        return trainer.fit(Mirror(), images, 8, 0)

    plain, other = trained("plain"), trained("other", **settings)
    x, s = (
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.full((4,), 0.5),
    )
    tolerance = 0.05 if "precision" in settings else 1e-4
    assert all(parameter.dtype == torch.float32 for parameter in other.parameters())
    start = NetworkConfig("unet", 8, 1, 1).build((3, 8, 8), 0)(x, s, s)
    assert (plain(x, s, s) - start).abs().max() > 0.05
    torch.testing.assert_close(other(x, s, s), plain(x, s, s), rtol=tolerance, atol=tolerance)


def test_checkpointing_needs_a_network_that_can(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint is on and a MLP keeps all activations"):
        Trainer(
            {"net": NetworkConfig("mlp", 8, 1).build((2,), 0)},
            loop(checkpoint=True),
            tmp_path,
            "stage",
        )


def test_compiled_networks_are_the_ones_that_are_trained_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    class Compiled(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self._orig_mod = net
            compiled.append(net)

        def forward(self, *arguments: Tensor) -> Tensor:
            return self._orig_mod(*arguments)

    monkeypatch.setattr(torch, "compile", Compiled)
    net = fit(tmp_path / "a", 20, compile=True)
    plain = fit(tmp_path / "b", 20)
    assert len(compiled) == 1
    assert_same(net, plain)
    assert (tmp_path / "a" / "state-stage.safetensors").read_bytes() == (
        tmp_path / "b" / "state-stage.safetensors"
    ).read_bytes()


def test_resume_is_exact_with_images_kept_channels_last(tmp_path: Path) -> None:
    def fit(folder: str, steps: int) -> nn.Module:
        net = NetworkConfig("unet", 8, 1, 1).build((3, 8, 8), 0)
        settings = loop(lr=1e-3, warmup=0, ema=0.0, channels_last=True, save_every=4, decay=0.0)
        trainer = Trainer({"net": net}, settings, tmp_path / folder, "stage")
        return trainer.fit(Mirror(), images, steps, 0)

    whole = fit("whole", 8)
    fit("parts", 4)
    again = fit("parts", 8)  # on from the state of step 4
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )

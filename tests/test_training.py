"""The loop: averages and rates in closed form, exact resume, and losses that are not finite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bezierdistill.models import NetworkConfig
from bezierdistill.training.checkpoint import load_state, save_state
from bezierdistill.training.ema import EMA
from bezierdistill.training.loop import Step, Trainer
from bezierdistill.training.settings import LoopConfig


def quadratic(
    nets: Mapping[str, nn.Module], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """A noisy regression of one linear layer."""
    x = torch.randn(16, 3, generator=generator)
    yield "net", (nets["net"](x) - x.sum(1, keepdim=True)).square().mean()


def linear() -> nn.Module:
    net = nn.Linear(3, 1)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    return net


def loop(**settings: object) -> LoopConfig:
    return LoopConfig(
        **{"accelerator": "cpu", "lr": 0.05, "save_every": 10, "log_every": 4, **settings}
    )  # pyright: ignore[reportArgumentType]


def test_ema_is_the_weighted_sum_of_its_history() -> None:
    net = nn.Linear(1, 1, bias=False)
    history = [float(net.weight)]
    ema = EMA(net, 0.7)
    expected = history[0]
    for k in range(20):
        nn.init.constant_(net.weight, float(k))
        ema.update(k)
        if k % 4 == 3:
            decay = min(0.7, (1 + k) / (10 + k)) ** 4
            expected = decay * expected + (1 - decay) * k
    assert float(ema.state()["weight"]) == pytest.approx(expected, rel=1e-6)


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
    net = Trainer({"net": linear()}, loop(ema=0.9), tmp_path, "stage").fit(quadratic, 600, 0)
    assert torch.cat([p.flatten() for p in net.parameters()]) == pytest.approx(
        torch.tensor([1.0, 1.0, 1.0, 0.0]), abs=1e-3
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(4, 601, 4))
    assert lines[-1]["loss"]["net"] < 1e-4 < lines[0]["loss"]["net"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_log_holds_the_mean_loss_since_the_last_line(tmp_path: Path) -> None:
    losses = iter(range(1, 7))

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        yield "net", next(nets["net"].parameters()).sum() * 0 + float(next(losses))

    Trainer({"net": linear()}, loop(log_every=4), tmp_path, "stage").fit(step, 6, 0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"]["net"] for line in lines] == pytest.approx([2.5, 5.5])


def stopping(after: int) -> Step:
    """The noisy regression, interrupted before step ``after`` is finished."""
    calls = 0

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        nonlocal calls
        calls += 1
        yield from quadratic(nets, generator)
        if calls == after:
            raise KeyboardInterrupt

    return step


@pytest.mark.parametrize("after", [11, 25])
def test_resume_gives_the_weights_of_the_uninterrupted_run_bit_for_bit(
    tmp_path: Path, after: int
) -> None:
    whole = Trainer({"net": linear()}, loop(), tmp_path / "whole", "stage").fit(quadratic, 40, 7)
    with pytest.raises(KeyboardInterrupt):
        Trainer({"net": linear()}, loop(), tmp_path / "parts", "stage").fit(stopping(after), 40, 7)
    resumed = Trainer({"net": linear()}, loop(), tmp_path / "parts", "stage").fit(quadratic, 40, 7)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_of_a_finished_stage_changes_nothing(tmp_path: Path) -> None:
    first = Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 20, 1)
    again = Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(stopping(1), 20, 1)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    steps = 0

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        nonlocal steps
        steps += 1
        for name, loss in quadratic(nets, generator):
            yield name, loss * (float("nan") if steps > 12 else 1.0)

    with pytest.raises(
        ValueError,
        match=(
            r"loss of net is not finite at step 16: the state of step 10 is kept in"
            r" .*state-stage.safetensors"
        ),
    ):
        Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(step, 40, 0)
    assert load_state(tmp_path / "state-stage.safetensors", 40)[1] == 10
    resumed = Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 40, 0)
    assert all(bool(p.isfinite().all()) for p in resumed.parameters())


@pytest.mark.parametrize("save_every", [2, 3, 7])
def test_a_state_after_divergence_is_never_saved(save_every: int, tmp_path: Path) -> None:
    steps = 0

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        nonlocal steps
        steps += 1
        for name, loss in quadratic(nets, generator):
            yield name, loss * (float("inf") if steps == 11 else 1.0)

    with pytest.raises(ValueError, match="not finite"):
        Trainer(
            {"net": linear()}, loop(save_every=save_every, log_every=100), tmp_path, "stage"
        ).fit(step, 40, 0)
    tensors, saved = load_state(tmp_path / "state-stage.safetensors", 40)
    assert saved == 10 // save_every * save_every
    assert all(
        bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()
    )


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    net, steps = linear(), 0

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        nonlocal steps
        steps += 1
        yield from quadratic(nets, generator)
        if steps == 5:
            nn.init.constant_(next(net.parameters()), float("nan"))

    with pytest.raises(
        ValueError,
        match=r"tensor .*net/net/weight.* is not finite at step 5: no state was saved before",
    ):
        Trainer({"net": net}, loop(save_every=5, log_every=100), tmp_path, "stage").fit(step, 5, 0)
    assert not (tmp_path / "state-stage.safetensors").exists()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    trainer = Trainer({"net": linear()}, loop(), tmp_path, "stage")
    trainer.fit(quadratic, 10, 0)
    content = trainer.state_file.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 16]) + content[-2:]
    for spoilt, message in (
        (content[:-9], "cut off or damaged"),
        (flipped, "differs from its digest"),
        (b"", "cut off or damaged"),
    ):
        trainer.state_file.write_bytes(spoilt)
        with pytest.raises(ValueError, match=rf"state-stage\.safetensors.*{message}"):
            Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 20, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net/net/weight": torch.zeros(2, 3)}, r"net/net/weight is \(2, 3\), expected \(1, 3\)"),
        ({"ema/more": torch.zeros(1)}, r"ema/more is \(1,\), expected None"),
        (
            {"adam/net/0/exp_avg": torch.zeros(3)},
            r"adam/net/0/exp_avg is \(3,\), expected \(1, 3\)",
        ),
        (
            {"generator": torch.zeros(1, 3, dtype=torch.uint8)},
            r"generator is \(1, 3\), expected \(1, 5056\)",
        ),
        ({"generator": torch.zeros(1, 5056)}, "is not a state of this run"),
    ],
)
def test_a_state_of_another_run_changes_nothing(
    change: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 10, 0)
    file = tmp_path / "state-stage.safetensors"
    save_state(file, load_state(file, 10)[0] | change, 10)
    net = linear()
    with pytest.raises(ValueError, match=message):
        Trainer({"net": net}, loop(), tmp_path, "stage").fit(quadratic, 20, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), linear().parameters(), strict=True)
    )


def test_a_state_without_its_generator_is_refused(tmp_path: Path) -> None:
    Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 10, 0)
    file = tmp_path / "state-stage.safetensors"
    tensors, step = load_state(file, 10)
    del tensors["generator"]
    save_state(file, tensors, step)
    with pytest.raises(ValueError, match="is not a state of this run"):
        Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 10, 0)


def test_a_message_names_only_the_losses_that_are_not_finite(tmp_path: Path) -> None:
    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        for name, net in nets.items():
            yield name, next(net.parameters()).sum() * (float("inf") if name == "b" else 1.0)

    with pytest.raises(
        ValueError, match="loss of b is not finite at step 4: no state was saved before"
    ):
        Trainer({"a": linear(), "b": linear()}, loop(), tmp_path, "stage").fit(step, 8, 0)


def test_a_state_of_a_longer_stage_is_refused(tmp_path: Path) -> None:
    Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 20, 0)
    with pytest.raises(ValueError, match="the state of step '20', expected 0 to 10"):
        Trainer({"net": linear()}, loop(), tmp_path, "stage").fit(quadratic, 10, 0)


def test_the_log_of_a_resumed_stage_has_no_line_twice_and_none_torn(tmp_path: Path) -> None:
    Trainer({"net": linear()}, loop(), tmp_path / "whole", "stage").fit(quadratic, 40, 7)
    with pytest.raises(KeyboardInterrupt):
        Trainer({"net": linear()}, loop(), tmp_path / "parts", "stage").fit(stopping(19), 40, 7)
    other = json.dumps({"stage": "before", "step": 99, "loss": {"net": 1.0}})
    log = tmp_path / "parts" / "log.jsonl"
    log.write_text(other + "\n" + log.read_text() + '{"stage": "stage", "st')
    Trainer({"net": linear()}, loop(), tmp_path / "parts", "stage").fit(quadratic, 40, 7)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [99, 4, 8, *range(12, 41, 4)]
    whole = [
        json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    ]
    last = [(line["step"], line["loss"]) for line in lines[-6:]]
    assert last == [(line["step"], line["loss"]) for line in whole[-6:]]


def test_tensorboard_shows_every_stage_whole_and_no_step_of_one_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )  # a second that no other test needs

    Trainer({"net": linear()}, loop(), tmp_path, "first").fit(quadratic, 12, 0)
    with pytest.raises(KeyboardInterrupt):
        Trainer({"net": linear()}, loop(), tmp_path, "second").fit(stopping(19), 24, 0)
    Trainer({"net": linear()}, loop(), tmp_path, "second").fit(quadratic, 24, 0)
    for stage, steps in (("first", range(4, 13, 4)), ("second", [4, 8, *range(12, 25, 4)])):
        board = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        assert [event.step for event in board.Scalars("loss/net")] == list(steps)


def test_two_networks_are_updated_in_turn_with_their_own_rates(tmp_path: Path) -> None:
    plain = {"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)}
    start = {name: net.weight.item() for name, net in plain.items()}
    seen = []

    def step(
        nets: Mapping[str, nn.Module], generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        one = torch.ones(1, 1)
        yield "a", nets["a"](one).sum()
        seen.append(plain["a"].weight.item())
        yield "b", nets["b"](one).sum()

    Trainer(plain, loop(warmup=0, decay=0.0, ema=0.0), tmp_path, "stage", {"b": 0.2}).fit(
        step, 1, 0
    )
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


def twice(
    nets: Mapping[str, nn.Module], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Two batches of :func:`quadratic` as one."""
    losses = [loss for _ in range(2) for _, loss in quadratic(nets, generator)]
    yield "net", torch.stack(losses).mean()


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    parts = Trainer({"net": linear()}, loop(accumulate=2), tmp_path / "parts", "stage").fit(
        quadratic, 30, 0
    )
    whole = Trainer({"net": linear()}, loop(), tmp_path / "whole", "stage").fit(twice, 30, 0)
    for a, b in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    logs = [
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])["loss"]["net"]
        for name in ("parts", "whole")
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def regression(
    nets: Mapping[str, nn.Module], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """A small regression of images by a network of two times."""
    x, s = torch.randn(8, 3, 8, 8, generator=generator), torch.rand(8, generator=generator)
    yield "net", (nets["net"](x, s, s) - x.flip(-1)).square().mean()


@pytest.mark.parametrize(
    "settings", [{"channels_last": True}, {"checkpoint": True}, {"precision": "bf16-mixed"}]
)
def test_options_of_images_change_speed_and_memory_and_little_else(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def trained(name: str, **more: Any) -> nn.Module:
        net = NetworkConfig("unet", 8, 1, 1).build((3, 8, 8), 0)
        return Trainer(
            {"net": net}, loop(lr=1e-3, warmup=0, ema=0.0, **more), tmp_path / name, "stage"
        ).fit(regression, 8, 0)

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
    net = Trainer({"net": linear()}, loop(compile=True), tmp_path / "a", "stage").fit(
        quadratic, 20, 0
    )
    plain = Trainer({"net": linear()}, loop(), tmp_path / "b", "stage").fit(quadratic, 20, 0)
    assert len(compiled) == 1
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    assert (tmp_path / "a" / "state-stage.safetensors").read_bytes() == (
        tmp_path / "b" / "state-stage.safetensors"
    ).read_bytes()


def test_resume_is_exact_with_images_kept_channels_last(tmp_path: Path) -> None:
    def fit(folder: str, steps: int) -> nn.Module:
        net = NetworkConfig("unet", 8, 1, 1).build((3, 8, 8), 0)
        settings = loop(lr=1e-3, warmup=0, ema=0.0, channels_last=True, save_every=4, decay=0.0)
        return Trainer({"net": net}, settings, tmp_path / folder, "stage").fit(regression, steps, 0)

    whole = fit("whole", 8)
    fit("parts", 4)
    again = fit("parts", 8)  # on from the state of step 4
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )

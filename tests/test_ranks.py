"""Two gloo processes of one thread each do what one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

import ranks_child
from bezierdistill.files import read_tensors
from bezierdistill.models import load_model
from bezierdistill.noise import Stream, generator
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.store import CurveStore, CurveWriter
from bezierdistill.training.checkpoint import load_state
from bezierdistill.training.ranks import rank_generator
from ranks_child import STEPS


def torchrun(*arguments: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("losses", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("students", tmp_path_factory.mktemp("students"))


def run(what: str, folder: Path) -> Path:
    """What two ranks do of the child's, in a folder."""
    done = torchrun(ranks_child.__file__, what, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return read_tensors(folder / f"{name}.safetensors")[0]


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("more", [{}, {"clip": 0.01}, {"accumulate": 2}], ids=["", "clip", "sums"])
def test_two_ranks_take_the_steps_of_one(
    strategy: str,
    more: dict[str, Any],
    trained: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    ranks_child.fitted(tmp_path, "alone", **more)
    suffix = {"clip": "-clip", "accumulate": "-sums"}.get(next(iter(more), ""), "")
    assert_close(weights(trained, strategy + suffix), weights(tmp_path, "alone"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("network", ranks_child.NETWORKS)
def test_gradients_of_every_network_are_those_of_one_rank(
    network: str, strategy: str, trained: Path, tmp_path: Path
) -> None:
    assert_gradients_alike(trained, tmp_path, network, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("network", ranks_child.OWN)
def test_gradients_of_own_students_are_those_of_one_rank(
    network: str, strategy: str, students: Path, tmp_path: Path
) -> None:
    assert_gradients_alike(students, tmp_path, network, strategy)


def assert_gradients_alike(together: Path, alone: Path, network: str, strategy: str) -> None:
    ranks_child.fitted(alone, "alone", network=network, steps=2)
    states = [
        load_state(folder / "state-stage.safetensors", 2)[0]
        for folder in (together / f"{strategy}-{network}", alone / "alone")
    ]
    # Means of gradients, not weights: where a gradient is all rounding, Adam makes whole steps of
    # it.
    shared, single = (
        {name: moment for name, moment in state.items() if name.endswith("/exp_avg")}
        for state in states
    )
    assert max(float(moment.abs().max()) for moment in single.values()) > 1e-3
    assert_close(shared, single, 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stopped_run_of_two_ranks_ends_as_if_it_had_not_been(
    strategy: str, trained: Path, tmp_path: Path
) -> None:
    whole, parts = weights(trained, f"{strategy}-own"), weights(trained, f"{strategy}-parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    ranks_child.fitted(tmp_path, "alone", own=True)
    assert not torch.equal(
        next(iter(weights(tmp_path, "alone").values())), next(iter(whole.values()))
    )  # ranks draw their own


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("network", ranks_child.OWN)
def test_own_students_are_stopped_and_moved_between_ranks(
    network: str, strategy: str, students: Path, tmp_path: Path
) -> None:
    """The same bits on the same ranks; on one rank what one rank does, up to rounding."""
    name = f"{strategy}-{network}"
    whole, parts = weights(students, f"{name}-own"), weights(students, f"{name}-parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    ranks_child.fitted(tmp_path, "alone", network=network)
    alone = weights(tmp_path, "alone")
    assert load_state(students / f"{name}-fewer" / "state-stage.safetensors", STEPS)[1] == 4
    ranks_child.fitted(students, f"{name}-fewer", network=network)
    assert_close(weights(students, f"{name}-fewer"), alone, 1e-5)
    config, shape, conditions = ranks_child.OWN[network]
    before = config.build(shape, 0, conditions).state_dict()
    changed = [key for key in alone if float((alone[key] - before[key]).abs().max()) > 1e-3]
    assert any("middle" in key for key in changed)
    if "start" not in network:
        assert "second.weights.0" in changed


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("network", ranks_child.OWN)
def test_own_students_in_mixed_precision_on_two_ranks(
    network: str, strategy: str, students: Path, tmp_path: Path
) -> None:
    """Mean gradients are those of one rank, up to the digits of bfloat16, which are not those of
    single precision."""
    ranks_child.fitted(tmp_path, "half", network=network, steps=2, precision="bf16-mixed")
    ranks_child.fitted(tmp_path, "full", network=network, steps=2)
    found = []
    for folder in (students / f"{strategy}-{network}-half", tmp_path / "half", tmp_path / "full"):
        state = load_state(folder / "state-stage.safetensors", 2)[0]
        moments = [state[key].flatten() for key in sorted(state) if key.endswith("/exp_avg")]
        found.append(torch.cat(moments))
    together, half, full = found
    assert not torch.equal(half, full)
    for other in (half, full):
        assert float((together - other).norm()) < 0.03 * float(full.norm())


def test_a_state_goes_on_with_another_strategy_and_number_of_ranks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks_child.fitted(tmp_path, "alone")
    assert_close(weights(trained, "switched"), weights(tmp_path, "alone"))
    assert load_state(trained / "fewer" / "state-stage.safetensors", 12)[1] == 4
    ranks_child.fitted(trained, "fewer")  # on one rank
    assert "1 ranks go on where 2 stopped, with new draws" in capsys.readouterr().err
    assert_close(weights(trained, "fewer"), weights(tmp_path, "alone"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_keeps_the_state(
    strategy: str, trained: Path
) -> None:
    said = [(trained / f"{strategy}-nan-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert said[0].startswith(
        "loss of net is not finite at step 8: the state of step 4 is kept in "
    )
    assert load_state(trained / f"{strategy}-nan" / "state-stage.safetensors", STEPS)[1] == 4


def test_only_the_first_rank_writes_and_losses_are_those_of_all(
    trained: Path, tmp_path: Path
) -> None:
    ranks_child.fitted(tmp_path, "alone")
    logs = [
        (folder / "log.jsonl").read_text().splitlines()
        for folder in (trained / "ddp", tmp_path / "alone")
    ]
    assert len(logs[0]) == len(logs[1]) == 3
    for together, alone in zip(*logs, strict=True):
        shared, single = (
            float(line.partition('"net": ')[2].partition("}")[0]) for line in (together, alone)
        )
        assert shared == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_ends_all_at_the_same_step_and_nothing_is_lost(
    strategy: str, trained: Path
) -> None:
    said = [(trained / f"{strategy}-ended-{rank}.txt").read_text() for rank in range(2)]
    assert said == [f"{128 + signal.SIGTERM} 10"] * 2  # ranks agree at every tenth step
    whole, parts = weights(trained, f"{strategy}-own"), weights(trained, f"{strategy}-ended")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_ranks_draw_differently_and_as_the_stream_of_training_does() -> None:
    draws = [
        torch.randn(3, generator=rank_generator(5, *place)).tolist()
        for place in ((0, 1), (0, 2), (1, 2), (0, 2, 4), (0, 1, 4))
    ]
    assert len({tuple(draw) for draw in draws}) == 5
    own = generator(5, Stream.TRAIN, 0, 1, 0)
    assert draws[0] == torch.randn(3, generator=own).tolist()


@pytest.mark.slow
def test_the_chain_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CurveWriter, "plan", ranks_child.plan)
    run("chain", tmp_path / "two")
    store = CurveStore.open(tmp_path / "two" / "curves")
    assert len(store) == 700
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = simulate(
        SimulateConfig(
            (tmp_path / "two" / "teacher",),
            tmp_path / "one",
            count=700,
            steps=4,
            batch=100,
            accelerator="cpu",
        )
    )
    torch.set_num_threads(threads)
    for shard in alone.shards:
        assert (alone.folder / shard.file).read_bytes() == (store.folder / shard.file).read_bytes()
    assert alone.manifest.shards == store.manifest.shards
    assert replace(alone.recipe, teachers=()) == replace(store.recipe, teachers=())
    assert len(alone.shards) == 7
    for name in ("student", "epochs"):
        student = load_model(tmp_path / "two" / name)
        assert student.sample(5, 2).shape == (5, 16)
        assert student.card.passes.curves == store.manifest.passes
    own = ranks_child.Own("second-time", lora=2).student()
    for strategy in ("ddp", "fsdp"):
        student = load_model(tmp_path / "two" / f"own-{strategy}", own.teacher)
        assert set(student.knots) == {1, 2}
        changed = student.generate(torch.zeros(1, 2), 1) - own.teacher(torch.zeros(1, 2), 0.0)
        assert float(changed.abs().max()) > 1e-3
    again = torchrun(
        "-m",
        "bezierdistill.cli",
        "train",
        "--data",
        "manifold",
        "--batch",
        33,
        "--steps",
        2,
        "--out",
        tmp_path / "odd",
    )
    assert again.returncode != 0
    assert "a batch of 33 rows on 2 ranks, expected a multiple of 2" in again.stderr
    assert "Traceback" not in again.stderr.split("torch/distributed", maxsplit=1)[0]

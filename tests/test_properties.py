"""Properties over generated input: text of a flag is a setting or one line, and what is packed,
shuffled or drawn keeps its promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from bezierdistill.data import Scaling, load_data
from bezierdistill.errors import UserError
from bezierdistill.knots import inner_knots
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, noise
from bezierdistill.records import CurveRecipe, Manifest, Shard
from bezierdistill.settings import parse_numbers, parse_weights
from bezierdistill.stages.simulate import SimulateConfig
from bezierdistill.store import CurveStore
from bezierdistill.store.codec import decode, pack

each = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
FLAG = some.text(max_size=30) | some.from_regex(r"[-+0-9.,:einaf ]{0,24}", fullmatch=True)


def tried(work: Callable[[], object]) -> None:
    """Work is done, or refused in one line."""
    message = "done"
    try:
        work()
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message


@each
@given(FLAG)
def test_weights_are_finite_columns_or_one_line(text: str) -> None:
    def work() -> None:
        for teacher in parse_weights(text):
            assert all(math.isfinite(number) for number in teacher)

    tried(work)


@each
@given(FLAG, some.integers(1, 10))
def test_knots_rise_from_0_to_1_or_one_line(text: str, passes: int) -> None:
    def work() -> None:
        knots = inner_knots(parse_numbers(text), passes)
        assert len(knots) == passes + 1
        assert (knots[0], knots[-1]) == (0.0, 1.0)
        assert all(a < b for a, b in pairwise(knots))

    tried(work)


@each
@given(FLAG)
def test_a_guidance_scale_is_none_a_strength_a_range_or_one_line(text: str) -> None:
    def work() -> None:
        scale = parse_numbers(text)
        given = SimulateConfig((Path("teacher"),), Path("out"), guidance_scale=scale).guidance_scale
        assert len(given) <= 2
        assert list(given) == sorted(set(given))
        assert all(map(math.isfinite, given))

    tried(work)


@each
@given(some.text(max_size=40) | some.from_regex(r"digits@[a-z0-9=@x]{0,12}", fullmatch=True))
def test_names_of_data_are_data_or_one_line(name: str) -> None:
    def work() -> None:
        assert load_data(name).batch(2, torch.Generator().manual_seed(0))[0].isfinite().all()

    try:
        tried(work)
    except OSError as error:
        pytest.fail(f"{name!r}: {error}")


@each
@given(
    some.sampled_from(["mlp", "unet", "dit", "x"]),
    some.integers(-2, 40),
    some.integers(-1, 2),
    some.integers(-1, 5),
)
def test_networks_map_states_to_states_or_one_line(
    kind: str, width: int, depth: int, patch: int
) -> None:
    def work() -> None:
        net = NetworkConfig(kind, width, depth, patch).build((1, 8, 8), 0)  # pyright: ignore[reportArgumentType]
        assert net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.ones(1), None).shape == (
            1,
            1,
            8,
            8,
        )

    tried(work)


@each
@given(
    some.integers(1, 5),
    some.integers(1, 4),
    some.integers(1, 9),
    some.floats(1e-30, 1e30),
    some.floats(-1e30, 1e30),
    some.integers(0, 9),
)
def test_bytes_are_off_by_half_a_step(
    rows: int, points: int, numbers: int, scale: float, shift: float, seed: int
) -> None:
    x = (
        torch.randn(rows, points, numbers, generator=torch.Generator().manual_seed(seed)) * scale
        + shift
    )
    packed = pack(x, "uint8")
    read = decode(packed.tensors, None)
    step, largest = packed.tensors["step"].double()[..., None], x.double().abs().amax()
    error = (read.double() - x.double()).abs()
    assert (error <= step / 2 * (1 + 1e-4) + 3e-7 * largest).all()
    assert packed.error == pytest.approx(float((read - x).abs().max()))


@each
@given(
    some.integers(1, 90), some.integers(1, 200), some.integers(0, 2**63 - 1), some.integers(0, 50)
)
def test_epochs_hold_every_row_once_and_go_on_anywhere(
    count: int, batch: int, seed: int, start: int
) -> None:
    shard = Shard(
        file="a", first=0, rows=count, seed=0, skipped=(), passes=0, error=0, bytes=0, sha256=""
    )
    manifest = Manifest(recipe=CurveRecipe(degree=1, shape=(1,)), complete=True, shards=(shard,))

    class Rows(CurveStore):
        """A store that gives its rows themselves."""

        def take(self, rows: torch.Tensor) -> Any:
            return rows, None

    store = Rows(Path(), manifest)

    def taken(first: int, batches: int) -> list[int]:
        epochs = store.epochs(batch, seed, first)
        return torch.cat([rows for rows, _ in islice(epochs, batches)]).tolist()  # pyright: ignore

    read = taken(0, -(-2 * count // batch))
    assert sorted(read[:count]) == sorted(read[count : 2 * count]) == list(range(count))
    assert taken(start, 2) == taken(0, start + 2)[start * batch :]


@each
@given(
    some.lists(some.integers(0, 2**62), min_size=1, max_size=5),
    some.integers(0, 2**63 - 1),
    some.integers(1, 9),
    some.sampled_from(Stream),
)
def test_noise_of_rows_does_not_depend_on_the_others(
    rows: list[int], seed: int, numbers: int, stream: Stream
) -> None:
    together = noise(seed, stream, np.array(rows), (numbers,))
    assert together.isfinite().all()
    assert all(
        torch.equal(together[k], noise(seed, stream, np.array([row]), (numbers,))[0])
        for k, row in enumerate(rows)
    )


@each
@given(some.integers(0, 5000), some.integers(1, 50), some.integers(0, 2**31))
def test_noise_of_a_range_does_not_depend_on_where_it_starts(
    start: int, count: int, seed: int
) -> None:
    first = start - start % 7
    whole = noise(seed, Stream.SAMPLE, range(first, start + count), (2,))
    part = noise(seed, Stream.SAMPLE, range(start, start + count), (2,))
    assert torch.equal(part, whole[start % 7 :])


@each
@given(some.floats(-1e3, 1e3), some.floats(1e-3, 1e3))
def test_scaling_goes_there_and_back(shift: float, scale: float) -> None:
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(6, 2) * scale + shift
    scaling = Scaling((shift,), (scale,))
    assert np.allclose(
        scaling.decode(scaling.encode(x)), x, rtol=1e-4, atol=1e-3 * scale + 1e-4 * abs(shift)
    )

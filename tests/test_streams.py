"""Streams of random numbers: what judges never meets what something was trained on."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch

import bezierdistill
from bezierdistill.cli import main
from bezierdistill.noise import Stream, generator, indices, labels, noise, philox, uniform
from bezierdistill.store import CurveStore

tables = sys.modules["bezierdistill.noise"]  # the package's own name is the function
ROOT = Path(bezierdistill.__file__).parent
NET = ["--network.width", "16", "--network.depth", "1"]
T, S, M, J, F = Stream.TRAIN, Stream.SIMULATE, Stream.SAMPLE, Stream.JUDGE, Stream.SEARCH
# Seeds that are fixed on purpose: a definition of features or of a data set, a probe of a shape.
FIXED = {
    *("noise", "metrics.features", "metrics.classifier", "data.toys", "networks.config"),
    *("networks.foreign", "networks.lora", "interop.writing"),
}
Drawn = Callable[[], set[Stream]]


def test_philox_gives_the_published_numbers() -> None:
    """The known answers of Random123 for philox4x32-10."""
    zero = philox((np.uint64(0),) * 4, 0)
    assert [int(word) for word in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    full = philox((np.uint64(0xFFFFFFFF),) * 4, 0xFFFFFFFFFFFFFFFF)
    assert [int(word) for word in full] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_rows_depend_on_seed_stream_and_row_alone() -> None:
    whole = noise(3, S, range(5000), (2, 3))
    assert torch.equal(noise(3, S, range(1700, 1800), (2, 3)), whole[1700:1800])
    some = np.array([4999, 0, 17, 2**40])
    assert torch.equal(noise(3, S, some, (2, 3))[:3], whole[some[:3]])
    assert torch.equal(uniform(3, S, some)[:3], uniform(3, S, range(5000))[some[:3]])
    assert torch.equal(noise(3, S, range(7), (6,)), whole[:7].flatten(1))


def test_rows_are_standard_normal() -> None:
    x = noise(0, M, range(40_000), (5,)).double()
    assert x.mean().abs() < 4 / math.sqrt(x.numel())
    assert (x.var() - 1).abs() < 4 * math.sqrt(2 / x.numel())
    covariance = x.T @ x / len(x) - torch.eye(5)
    assert covariance.abs().max() < 5 / math.sqrt(len(x))
    lag = (x[1:] * x[:-1]).mean(0).abs().max()
    assert lag < 5 / math.sqrt(len(x))


def test_labels_are_as_frequent_as_asked_and_never_of_an_empty_class() -> None:
    shares = [0.0, 0.25, 0.75, 0.0]
    drawn = labels(0, M, range(20_000), shares)
    counts = torch.bincount(drawn, minlength=4) / 20_000
    assert counts[0] == counts[3] == 0
    assert abs(float(counts[1]) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 20_000)


def test_uniform_numbers_and_indices_stay_in_their_range() -> None:
    u = uniform(1, T, range(20_000), -1.0, 3.0)
    assert -1 <= float(u.min()) < -0.99
    assert 2.99 < float(u.max()) < 3
    counts = np.bincount(indices(1, T, range(30_000), 3), minlength=3)
    assert len(counts) == 3
    assert np.abs(counts / 30_000 - 1 / 3).max() < 0.012


def test_no_two_streams_or_seeds_share_a_row() -> None:
    rows = {
        (seed, stream): noise(seed, stream, range(256), (2,)).numpy().view(np.int64).ravel()
        for seed, stream in product((0, 1, 2**62), Stream)
    }
    for (_, a), (_, b) in combinations(rows.items(), 2):
        assert not np.intersect1d(a, b).size


def test_no_two_generators_start_alike() -> None:
    states = {
        generator(seed, stream, *more).initial_seed()
        for seed, stream, more in product(range(20), Stream, [(), (0,), (1,), (0, 1)])
    }
    assert len(states) == 20 * len(Stream) * 4


def test_seeds_of_generators_are_made_in_one_place() -> None:
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        seeded = [call for call in calls if ast.unparse(call.func).endswith("manual_seed")]
        assert not seeded or name in FIXED, f"{name} seeds a generator: noise.generator does"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """``drawn()``: the streams that were drawn from since it was asked last."""
    seen: set[Stream] = set()
    true = tables._place

    def place(stream: Stream, table: int) -> np.uint64:
        seen.add(stream)
        return true(stream, table)

    monkeypatch.setattr(tables, "_place", place)

    def ask() -> set[Stream]:
        found = set(seen)
        seen.clear()
        return found

    return ask


def test_verbs_draw_from_streams_of_their_own(tmp_path: Path, drawn: Drawn) -> None:
    t, c, s, x = (str(tmp_path / name) for name in ("t", "c", "s", "x.npz"))
    few = ["--steps", "3", "--batch", "8"]
    assert not main(["train", "--data", "moons", "--out", t, *few, *NET])
    assert drawn() == {T}
    assert not main(["simulate", "--teachers", t, "--out", c, "--count", "64"])
    assert drawn() == {S}
    align = ["--align", "2", "--data", "moons"]
    assert not main(["distill", "--curves", c, "--out", s, *few, *align])
    assert drawn() == {T, F}  # knots are chosen by validation data
    assert not main(["sample", "--model", s, "--out", x, "--count", "64"])
    assert drawn() == {M}
    assert not main(["evaluate", "--samples", x, "--data", "moons"])
    assert drawn() == {J, F}  # kernels of two scales stand around validation data
    assert not main(["report", "--run", s])
    assert drawn() <= {M, J, F}
    sources = CurveStore.open(c).curves(torch.arange(64)).source
    assert not torch.isin(sources, noise(0, M, range(4096), (2,))).any()


def test_drivers_draw_from_streams_of_their_own(tmp_path: Path, drawn: Drawn) -> None:
    out = [str(tmp_path / name) for name in ("recipe", "reflow", "arena")]
    small = ["--data", "moons", "--batch", "16", *NET]
    search = ["--shares.search", "0.1", "--budget", "30000"]
    assert not main(["recipe", "--out", out[0], *search, *small])
    assert drawn() == {T, S, F}
    few = ["--rounds", "1", "--steps", "3", "--count", "64"]
    assert not main(["reflow", "--out", out[1], *few, *small])
    assert drawn() == {T, S, J, F}
    methods = ["--methods", "bezier,dmd", "--seeds", "1"]
    sizes = ["--budget", "30000", "--samples", "64"]
    assert not main(["arena", "--out", out[2], *methods, *sizes, *small])
    assert drawn() <= {T, S, F, J}


def test_the_page_draws_from_streams_of_their_own(drawn: Drawn) -> None:
    from bezierdistill.app import plane
    from bezierdistill.app.generate import Draw
    from bezierdistill.app.run import open_run

    setting = plane.Setting("moons")
    plane.paths_figure(setting, 0, [(0.0, 0.0)] * 5)
    assert M in drawn()
    plane.distil(setting, steps=2, align=2)
    assert drawn() == {T, S, J}
    run = open_run(None)
    name, model = next(iter(run.generators.items()))
    asked = Draw.of(run, name, 0, 1, 8, [], 1.0, 4)
    asked.sampled(model, 1, "euler")
    assert drawn() == {M}

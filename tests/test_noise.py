"""Random numbers by seed, stream and row: the words of Philox, standard normal rows that depend on
nothing else, and streams that never meet."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from bezierdistill.noise import Stream, generator, noise, philox


def test_philox_gives_the_words_of_its_authors() -> None:
    """Known answers of Random123 for Philox4x32-10."""
    answers = [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, (low, high), words in answers:
        assert [
            int(word) for word in philox([np.uint64(c) for c in counter], low | high << 32)
        ] == words


@pytest.mark.parametrize("size", [(1,), (2, 3), (3, 32, 32)], ids=str)
def test_noise_of_any_row_is_the_same_alone_and_among_others(size: tuple[int, ...]) -> None:
    rows = np.array([5, 10**12, 0, 5, 2**33])
    together = noise(11, Stream.TRAIN, rows, size)
    assert torch.equal(
        together, torch.cat([noise(11, Stream.TRAIN, rows[k : k + 1], size) for k in range(5)])
    )
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, noise(12, Stream.TRAIN, rows, size))


def test_noise_of_rows_is_standard_normal_and_independent() -> None:
    x = noise(11, Stream.TRAIN, range(50_000), (3,)).double()
    n = len(x)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert ((x**power).mean(0) - moment).abs().max() < 4 * math.sqrt(variance / n)
    assert kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    for a, b in (
        (x[:, 0], x[:, 1]),
        (x[:, 0], x[:, 2]),
        (x[:-1, 0], x[1:, 0]),
        (x[:, 0] ** 2 - 1, x[:, 1] ** 2 - 1),
    ):
        assert abs(float((a * b).mean())) < 4 * 2 / math.sqrt(n)


def test_noise_rows_do_not_depend_on_the_chunks_nor_on_torch() -> None:
    whole = noise(3, Stream.TRAIN, range(3000), (2, 2))
    for chunk in (1, 700, 1024, 2999):
        parts = [
            noise(3, Stream.TRAIN, range(start, min(start + chunk, 3000)), (2, 2))
            for start in range(0, 3000, chunk)
        ]
        assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(9)
    assert torch.equal(noise(3, Stream.TRAIN, range(1000, 1100), (2, 2)), whole[1000:1100])


def test_streams_and_seeds_never_meet() -> None:
    tables = [
        noise(seed, stream, range(1000), (2,)).double().flatten()
        for seed in range(4)
        for stream in Stream
    ]
    for a, b in itertools.combinations(tables, 2):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(len(a))
    seeds = [
        generator(seed, stream, block).initial_seed()
        for seed in range(30)
        for stream in Stream
        for block in range(30)
    ]
    assert len(set(seeds)) == 30 * len(Stream) * 30

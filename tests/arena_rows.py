"""Rows of an arena with figures chosen by hand, and the benchmark that judges them."""

import importlib.util
from pathlib import Path
from types import ModuleType

from msgspec.structs import replace

from bezierdistill.arena.methods import OURS
from bezierdistill.records import ArenaRow, Score, Scores


def scored(ratio: float) -> Scores:
    """Scores of which every distance has the same ratio to its floor."""
    distance, precision, recall = (
        Score(value=value, floor=floor) for value, floor in ((2 * ratio, 2), (0.5, 1), (0.25, 1))
    )
    return Scores(
        frechet=distance,
        coarse=distance,
        middle=distance,
        fine=distance,
        fidelity=distance,
        sliced_wasserstein=distance,
        energy=distance,
        mmd=distance,
        precision=precision,
        recall=recall,
    )


def a_row(method: str, seed: int, passes: int, ratio: float, seconds: float = 2.0) -> ArenaRow:
    """A row of a method that has not failed."""
    return ArenaRow(
        method=method,
        ours=method == OURS,
        seed=seed,
        passes=passes,
        spent=10,
        seconds=seconds,
        memory=5.0,
        scores=scored(ratio),
    )


def timeless(rows: list[ArenaRow]) -> list[ArenaRow]:
    """Rows without what differs from run to run."""
    return [replace(row, seconds=0.0, memory=0.0) for row in rows]


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

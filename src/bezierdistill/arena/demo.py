"""The demo: the arena with one seed and the methods that ours replaces, its samples and models kept
for the report: ``bezierdistill demo``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezierdistill.arena.runner import ArenaConfig, arena, compared, cores
from bezierdistill.objects import START
from bezierdistill.settings import Usual, as_paths, check_counts, check_seed, settle
from bezierdistill.stages.sources import as_data
from bezierdistill.training.settings import LoopConfig

if TYPE_CHECKING:
    from bezierdistill.records import ArenaRow

JOBS = 2
METHODS = ("bezier", "bezier-teacher", "teacher-euler", "rf-2", "rfd-1", "rfd-2")


@dataclass(frozen=True)
class DemoConfig:
    """Run ours beside rectified-flow distillation, and write a report.

    Every method has the same total of network passes.

    Example::

        bezierdistill demo --fast --out runs/demo
        bezierdistill demo --data photos --out runs/photos
    """

    out: Path
    """Folder of the run; a run that was stopped there is continued."""
    data: str | object = "digits"
    """Built-in name, path, hf:OWNER/NAME or FILE.py:function; in Python an object as well."""
    seed: int = 0
    """Seed of everything."""
    budget: int = Usual(4_000_000, fast=400_000)
    """Network passes that each method may spend."""
    fast: bool = False
    """A small run of half a minute, to see that everything works; its figures mean little. A budget
    that is given is kept."""

    def __post_init__(self) -> None:
        settle(self, self.fast)
        as_paths(self, "out")
        as_data(self, "data")
        check_seed(self.seed)
        check_counts(budget=self.budget)


def demo(config: DemoConfig) -> list[ArenaRow]:
    """Run the comparison, on the processor, in two processes of one thread each, which such small
    networks like best; see :func:`bezierdistill.arena.runner.arena`. Data that are an object are
    in one process, where they are.

    Raises:
        UserError: on bad data or settings, or a folder that holds another run.
    """
    settings = ArenaConfig(
        config.data,
        config.out,
        METHODS,
        config.budget,
        seeds=1,
        first_seed=config.seed,
        keep_samples=True,
        keep_models=True,
        jobs=1 if str(config.data).startswith(START) else min(JOBS, cores()),
        fast=config.fast,
        loop=LoopConfig(accelerator="cpu"),
    )
    return arena(settings, "demo", config)


def main_demo(config: DemoConfig) -> dict[str, Any]:
    """The verb ``demo``."""
    return compared(config.out, demo(config))

"""What a method may use in one cell of the arena, and the account of the network passes it spends.

A method is a function ``method(bench)`` that trains within ``bench.left`` passes and returns its
samplers: ``{passes: sampler}``, a sampler taking noise ``(N, *shape)`` to states, in a conditional
cell with the keyword ``cond`` ``(N, C)``, all on ``bench.device``.

Teachers and pairs that several methods need are made once for a seed and charged to each; teachers
that are given are charged to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor, nn

from bezierdistill.budget import Budget
from bezierdistill.curves import BezierCurve
from bezierdistill.data import Data
from bezierdistill.models.folder import load_model
from bezierdistill.models.model import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.objectives import CurveRegression, Curves, FlowMatching, Objective
from bezierdistill.run import read_made
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.batches import PairBatches
from bezierdistill.training.loop import Batches, Trainer
from bezierdistill.training.ranks import open_fabric
from bezierdistill.training.settings import LoopConfig

Sampler = Callable[..., Tensor]
Method = Callable[["Bench"], Mapping[int, Sampler]]
PAIR_STEPS, TRAINED = 8, "trained_on"
T = TypeVar("T")


def trains_on(*metrics: str) -> Callable[[Method], Method]:
    """Say of a method of one's own on which metrics of the tables (``energy``), or in the features
    of which judge (``classifier``), it trains: these figures are marked.
    """

    def said(method: Method) -> Method:
        setattr(method, TRAINED, metrics)
        return method

    return said


@dataclass
class Bench:
    """One cell: a method, a data set, a seed, a budget.

    Args:
        data: the data set.
        budget: network passes that the method may spend in all, and those that it has spent.
        seed: seed of everything.
        folder: where this cell keeps its files.
        shared: where what several methods use is kept.
        network: the network of every teacher and student.
        loop: how weights are updated: optimizer, schedule, averaging.
        conditional: whether every network takes the data's conditions.
        strong: folder of the teacher that is given to all methods, if there is one.
        weak: folder of the weak one that is given.
        seconds: working time of what this cell shares with others and did not make itself.
    """

    data: Data
    budget: Budget
    seed: int
    folder: Path
    shared: Path
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    conditional: bool = False
    strong: Path | None = None
    weak: Path | None = None
    seconds: float = 0.0

    @property
    def batch(self) -> int:
        """Rows per step."""
        return self.budget.batch

    @property
    def given(self) -> bool:
        """Whether the teacher is given, and the budget is that of distillation alone."""
        return self.strong is not None

    @cached_property
    def device(self) -> torch.device:
        """Where networks are trained, and where samplers get their noise."""
        return open_fabric(self.loop.accelerator).device

    def placed(self, model: Model) -> Model:
        """A model whose network is on :attr:`device`."""
        model.net.to(self.device)
        return model

    def teacher(self, share: float, weak: bool = False) -> Model:
        """A flow-matching teacher trained with a share of the budget, the weak one with another
        seed; or, whatever the share, the one that is given, at no charge.
        """
        if (folder := self.weak if weak else self.strong) is not None:
            return self.placed(load_model(folder))
        steps = self.budget.steps(FlowMatching.cost, self.budget.share(share), "a teacher")
        config = TrainConfig(
            self.data.name,
            self.shared / f"teacher-{steps}-{self.seed + weak}",
            steps,
            self.batch,
            self.seed + weak,
            conditional=self.conditional,
            network=self.network,
            loop=self.loop,
        )
        model = self._made(config.out, lambda: train(config))
        self.budget.charge(model.spent)
        return self.placed(model)

    def pairs(self, teacher: Model, share: float = 0.1, backwards: bool = False) -> CurveStore:
        """Pairs of a teacher, as straight lines, as many as a share of the budget pays for: from
        noise, or backwards from real data.
        """
        assert teacher.folder is not None
        count = max(1, self.budget.share(share) // (2 * PAIR_STEPS))
        data = self.data.name if backwards else None
        digest = sha256(f"{teacher.card.digest} {count} {data}".encode()).hexdigest()[:12]
        common = teacher.folder in (self.strong, self.weak) or teacher.folder.parent == self.shared
        place = self.shared if common else self.folder
        config = SimulateConfig(
            (teacher.folder,),
            place / f"pairs-{digest}",
            degree=1,
            count=count,
            invert_from=data,
            seed=self.seed,
            steps=PAIR_STEPS,
            accelerator=self.loop.accelerator,
        )
        store = self._made(config.out, lambda: simulate(config))
        self.budget.charge(store.manifest.passes)
        return store

    def _made(self, folder: Path, make: Callable[[], T]) -> T:
        """Make what is shared, or find it finished, or wait for the process that makes it; its time
        counts for every method that uses it.
        """
        started = time.perf_counter()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            made, record = make(), read_made(folder)
        taken = time.perf_counter() - started
        self.seconds += max(0.0, record.seconds - taken) if record else 0.0
        return made

    def distill(
        self, store: CurveStore, name: str, spend: int | None = None, **settings: Any
    ) -> Model:
        """Train a student (or the next flow) on stored pairs with ``spend`` passes, by default all
        that are left.
        """
        steps = self.budget.steps(CurveRegression.cost, spend)
        self.budget.charge(steps * self.batch * CurveRegression.cost)
        config = DistillConfig(
            store.folder,
            self.folder / name,
            steps=steps,
            batch=self.batch,
            seed=self.seed,
            loop=self.loop,
            **settings,
        )
        return self.placed(distill(config))

    def build(self, shape: tuple[int, ...] | None = None) -> nn.Module:
        """A new network, for states of the data's shape unless another is given."""
        return self.network.build(
            shape or self.data.shape, self.seed, self.data.condition_size if self.conditional else 0
        )

    def fit(
        self,
        nets: nn.Module | Mapping[str, nn.Module],
        objective: Objective,
        batches: Batches | None = None,
        name: str = "student",
        spend: int | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> nn.Module:
        """Train networks by an objective.

        Args:
            nets: the network, called ``student``, or several by name.
            objective: what they are trained by.
            batches: what it is trained on; by default :attr:`draws`.
            name: of the training in files and logs.
            spend: network passes, by default all that are left.
            rates: learning rates by network, where they differ from the loop's.

        Returns:
            The first network with averaged weights, on :attr:`device`.
        """
        steps = self.budget.steps(objective.cost, spend)
        self.budget.charge(int(steps * self.batch * objective.cost))
        nets = {"student": nets} if isinstance(nets, nn.Module) else nets
        trainer = Trainer(nets, self.loop, self.folder / name, name, rates)
        return trainer.fit(objective, batches or self.draws, steps, self.seed).to(self.device)

    @property
    def draws(self) -> PairBatches:
        """Batches of noise and data, with the data's conditions if the cell is conditional."""
        drop = 0.0 if self.conditional else None
        return PairBatches(self.data, self.batch, self.device, drop)

    def lines(self, store: CurveStore) -> Callable[[torch.Generator], Curves]:
        """Batches of stored pairs."""

        def batches(draws: torch.Generator) -> Curves:
            curve, cond = store.batch(self.batch, draws)
            points = curve.points.to(self.device)
            return Curves(BezierCurve(points), None if cond is None else cond.to(self.device))

        return batches

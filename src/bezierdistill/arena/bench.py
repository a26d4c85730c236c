"""What a method may use in one cell of the arena, and the account of the network passes it spends.

A method is a function ``method(bench)`` that trains within ``bench.left`` passes and returns its
samplers: ``{passes: sampler}``, a sampler taking noise ``(N, *shape)`` to states, in a conditional
cell with the keyword ``cond`` ``(N, C)``.

Teachers and pairs that several methods need are made once for a seed and charged to each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.data import Data
from bezierdistill.errors import UserError
from bezierdistill.files import read_json, write_json
from bezierdistill.models import CARD, Model, NetworkConfig, load_model
from bezierdistill.objectives import CurveRegression, Curves, FlowMatching, Objective
from bezierdistill.stages.distill import DistillConfig, distill
from bezierdistill.stages.simulate import SimulateConfig, simulate
from bezierdistill.stages.train import TrainConfig, train
from bezierdistill.store import CurveStore
from bezierdistill.training.batches import PairBatches
from bezierdistill.training.loop import Batches, Trainer
from bezierdistill.training.settings import LoopConfig

Sampler = Callable[..., Tensor]
Method = Callable[["Bench"], Mapping[int, Sampler]]
PAIR_STEPS = 8


@dataclass
class Bench:
    """One cell: a method, a data set, a seed, a budget.

    Args:
        data: the data set.
        budget: network passes that the method may spend in all.
        seed: seed of everything.
        folder: where this cell keeps its files.
        shared: where what several methods use is kept.
        batch: rows a step.
        network: the network of every teacher and student.
        loop: how weights are updated: optimizer, schedule, averaging.
        conditional: whether every network takes the data's conditions.
    """

    data: Data
    budget: int
    seed: int
    folder: Path
    shared: Path
    batch: int = 256
    network: NetworkConfig = field(default_factory=NetworkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    conditional: bool = False
    spent: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """Network passes that are left."""
        return self.budget - self.spent

    def charge(self, passes: int) -> None:
        """Count network passes.

        Raises:
            UserError: if the budget does not hold them.
        """
        self.spent += passes
        if self.spent > self.budget:
            raise UserError(
                f"a method spent {self.spent:,} network passes, the budget is {self.budget:,}"
            )

    def steps(self, cost: float, passes: int | None = None) -> int:
        """Optimizer steps of ``cost`` passes a row that ``passes`` (by default all that are left)
        pay for.

        Raises:
            UserError: if that is not a single step.
        """
        passes = self.left if passes is None else passes
        steps = int(passes // (cost * self.batch))
        if steps < 1:
            raise UserError(
                f"{passes:,} network passes are left, a step costs {int(cost * self.batch):,}:"
                " raise --budget"
            )
        return steps

    def teacher(self, share: float, weak: bool = False) -> Model:
        """A flow-matching teacher trained with a share of the budget; the weak one has another
        seed.
        """
        steps, seed = self.steps(FlowMatching.cost, int(share * self.budget)), self.seed + weak
        folder = self.shared / f"teacher-{steps}-{seed}"
        conditional = self.conditional
        config = TrainConfig(
            self.data.name,
            folder,
            steps,
            self.batch,
            seed,
            conditional=conditional,
            network=self.network,
            loop=self.loop,
        )
        model = self._made(folder, CARD, lambda: train(config), lambda: load_model(folder))
        self.charge(model.spent)
        return model

    def pairs(self, teacher: Model, share: float = 0.1, backwards: bool = False) -> CurveStore:
        """Pairs of a teacher, as straight lines, as many as a share of the budget pays for: from
        noise, or backwards from real data.
        """
        assert teacher.folder is not None
        count = max(1, int(share * self.budget) // (2 * PAIR_STEPS))
        data = self.data.name if backwards else None
        digest = sha256(f"{teacher.card['digest']} {count} {data}".encode()).hexdigest()[:12]
        folder = (
            self.shared if teacher.folder.parent == self.shared else self.folder
        ) / f"pairs-{digest}"
        config = SimulateConfig(
            (teacher.folder,),
            folder,
            degree=1,
            count=count,
            data=data,
            seed=self.seed,
            steps=PAIR_STEPS,
            accelerator=self.loop.accelerator,
        )
        store = self._made(
            folder, "seconds.json", lambda: simulate(config), lambda: CurveStore.open(folder)
        )
        self.charge(store.manifest["passes"])
        return store

    def _made(
        self, folder: Path, mark: str, make: Callable[[], Any], load: Callable[[], Any]
    ) -> Any:
        """Make what is shared, or load it; its time counts for every method that uses it."""
        clock = folder / "seconds.json"
        if not (folder / mark).exists() or not clock.exists():
            started = time.perf_counter()
            made = make()
            write_json(clock, {"seconds": time.perf_counter() - started})
            return made
        self.seconds += read_json(clock, "clock")["seconds"]
        return load()

    def distill(
        self, store: CurveStore, name: str, spend: int | None = None, **settings: Any
    ) -> Model:
        """Train a student (or the next flow) on stored pairs with ``spend`` passes, by default all
        that are left.
        """
        steps = self.steps(CurveRegression.cost, spend)
        self.charge(steps * self.batch * CurveRegression.cost)
        out = self.folder / name
        return distill(
            DistillConfig(
                store.folder,
                out,
                steps=steps,
                batch=self.batch,
                seed=self.seed,
                loop=self.loop,
                **settings,
            )
        )

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
            The first network with averaged weights.
        """
        steps = self.steps(objective.cost, spend)
        self.charge(int(steps * self.batch * objective.cost))
        nets = {"student": nets} if isinstance(nets, nn.Module) else nets
        trainer = Trainer(nets, self.loop, self.folder / name, name, rates)
        return trainer.fit(objective, batches or self.draws, steps, self.seed)

    @property
    def draws(self) -> PairBatches:
        """Batches of noise and data, with the data's conditions if the cell is conditional."""
        drop = 0.0 if self.conditional else None
        return PairBatches(self.data, self.batch, torch.device("cpu"), drop)

    def lines(self, store: CurveStore) -> Callable[[torch.Generator], Curves]:
        """Batches of stored pairs."""
        return lambda generator: Curves(*store.batch(self.batch, generator))

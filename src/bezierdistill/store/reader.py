"""Reading a store: mapped into memory, in any order, in constant memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.files import digest, read_tensors
from bezierdistill.noise import block_window, row_noise
from bezierdistill.store.codec import decode, layout
from bezierdistill.store.manifest import MEND, Shard, read_manifest
from bezierdistill.store.order import shuffled

SMALL = 2**27  # bytes in single precision up to which a store is kept in memory as a whole
MOST_MAPPED = 2**13  # shards mapped at once: systems allow some tens of thousands of maps
ORDERED = 2**14  # positions whose rows are found at once
Batch = tuple[BezierCurve, Tensor | None]


class CurveStore:
    """Curves of a complete store; nothing is read before it is used, and of a large one never more
    than is asked for.

    :meth:`open` makes one.

    Args:
        folder: where it lies.
        manifest: its manifest.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.shards = tuple(Shard.of(record) for record in manifest["shards"])
        self.ends = np.cumsum([shard.rows for shard in self.shards])
        self.condition_size: int = self.recipe.get("conditions", 0)
        self._map = lru_cache(maxsize=MOST_MAPPED)(self._tensors)

    @classmethod
    def open(cls, folder: str | Path) -> CurveStore:
        """Open a store.

        Raises:
            UserError: if it is missing or not complete, its manifest is damaged, or a shard is
                missing or cut off.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise UserError(
                f"{folder} is not complete: run the simulate that makes it again, which"
                " continues it"
            )
        if not manifest["shards"]:
            raise UserError(f"{folder} holds no curve")
        store = cls(folder, manifest)
        for shard in store.shards:
            if problem := cut_off(folder, shard):
                raise UserError(f"{problem}: {MEND}")
        return store

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def recipe(self) -> dict[str, Any]:
        """What made the rows."""
        return self.manifest["recipe"]

    @cached_property
    def seeded(self) -> bool:
        """Whether sources are regenerated from their seed instead of stored."""
        return self.recipe.get("noise") == "seed"

    @property
    def error(self) -> float:
        """Greatest error of a stored number, from keeping it in fewer bits, in model units."""
        return max(shard.error for shard in self.shards)

    @property
    def skipped(self) -> int:
        """Rows that were left out because the teachers gave NaN or infinite states."""
        return sum(len(shard.skipped) for shard in self.shards)

    def curves(self, rows: Tensor) -> BezierCurve:
        """The curves of given rows, in their order."""
        return self.take(rows)[0]

    def conditions(self, rows: Tensor) -> Tensor | None:
        """The conditions ``(len(rows), C)`` of given rows; None if the curves have none."""
        return self.take(rows)[1]

    def take(self, rows: Tensor) -> Batch:
        """Curves and conditions (or None) of given rows (int64), in their order.

        Raises:
            UserError: if a row is not in the store, or a shard is not what the manifest says.
        """
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self)):
            raise UserError(
                f"rows run from {int(rows.min())} to {int(rows.max())}, expected 0 to"
                f" {len(self) - 1}"
            )
        if self._small is not None:
            points, cond = self._small
            return BezierCurve(points.index_select(0, rows).transpose(0, 1)), (
                None if cond is None else cond.index_select(0, rows)
            )
        points, cond = self._gathered(rows)
        return BezierCurve(points.transpose(0, 1)), cond

    @cached_property
    def _small(self) -> tuple[Tensor, Tensor | None] | None:
        """All points and conditions, if they are few enough to be read once and kept."""
        size = (
            4
            * len(self)
            * ((self.recipe["degree"] + 1) * prod(self.recipe["shape"]) + self.condition_size)
        )
        return self._gathered(torch.arange(len(self))) if size <= SMALL else None

    def _gathered(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points ``(len(rows), degree + 1, *shape)`` and conditions of rows of any shards."""
        points = torch.empty(len(rows), self.recipe["degree"] + 1, *self.recipe["shape"])
        cond = torch.empty(len(rows), self.condition_size) if self.condition_size else None
        where = np.searchsorted(self.ends, rows.numpy(), side="right")
        order = np.argsort(where, kind="stable")
        used, starts = np.unique(where[order], return_index=True)
        for index, here in zip(used, np.split(order, starts[1:]), strict=True):
            place = torch.from_numpy(here)
            part, given = self._read(
                int(index), rows[place] - int(self.ends[index] - self.shards[index].rows)
            )
            points.index_copy_(0, place, part)
            if cond is not None and given is not None:
                cond.index_copy_(0, place, given)
        return points, cond

    def batch(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` curves drawn independently, and their conditions ``(count, C)`` or None."""
        return self.take(torch.randint(len(self), (count,), generator=generator))

    def epochs(
        self, batch: int, seed: int, start: int = 0, part: slice = slice(None), workers: int = 2
    ) -> Iterator[Batch]:
        """Endless batches in which every row comes once an epoch, in the order of a seeded
        permutation.

        Batch k is a function of the seed and k alone, so to continue is to start at the batch that
        comes next.

        Args:
            batch: rows a batch.
            seed: seed of the permutations.
            start: the first batch.
            part: which rows of every batch to read, if others are read elsewhere.
            workers: threads that read ahead.
        """

        @lru_cache(maxsize=2 * workers + 2)
        def order(block: int) -> np.ndarray:
            epoch, place = np.divmod(np.arange(block * ORDERED, (block + 1) * ORDERED), len(self))
            return shuffled(place, len(self), seed, epoch)

        def read(k: int) -> Batch:
            blocks, window = block_window(k * batch, batch, ORDERED)
            return self.take(
                torch.from_numpy(np.concatenate([order(block) for block in blocks])[window][part])
            )

        with ThreadPoolExecutor(workers) as pool:
            ahead = deque(pool.submit(read, start + k) for k in range(2 * workers))
            for k in itertools.count(start + 2 * workers):
                ready = ahead.popleft().result()
                ahead.append(pool.submit(read, k))
                yield ready

    def verify(
        self, part: slice = slice(None), advance: Callable[[int], None] = lambda shards: None
    ) -> Iterator[str]:
        """Compare shards (all, or a part) with their checksums and yield a line for each that
        differs.
        """
        for index in range(len(self.shards))[part]:
            if problem := self.problem(index):
                yield problem
            advance(1)

    def problem(self, index: int) -> str | None:
        """What is wrong with a shard, which is read as a whole; None if nothing."""
        found = damaged(self.folder, self.shards[index])
        try:
            if not found:
                self._map(index)
        except ValueError as error:
            return str(error)
        return found

    def _read(self, index: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points ``(len(rows), degree + 1, *shape)`` and conditions of rows of one shard."""
        tensors = self._map(index)
        points = decode(tensors, rows)
        if self.seeded:
            points = torch.cat([self._sources(self.shards[index], rows)[:, None], points], 1)
        return points, tensors["cond"].index_select(0, rows) if self.condition_size else None

    def _sources(self, shard: Shard, rows: Tensor) -> Tensor:
        assert shard.seed is not None  # as its layout was checked
        inside = rows.numpy()
        if shard.skipped:
            inside = np.delete(np.arange(shard.span), shard.skipped)[inside]
        return row_noise(shard.seed, shard.first + inside, self.recipe["shape"])

    def _tensors(self, index: int) -> dict[str, Tensor]:
        """The mapped tensors of a shard, if they are what the manifest says."""
        shard, recipe = self.shards[index], self.recipe
        if self.seeded and shard.seed is None:
            raise UserError(
                f"{self.folder / shard.file} has no seed to regenerate its sources from: restore"
                " its manifest"
            )
        tensors = read_tensors(self.folder / shard.file)[0]
        points = recipe["degree"] + 1 - self.seeded
        wanted = layout(
            recipe.get("points", "float32"), points, tuple(recipe["shape"]), self.condition_size
        )
        for name, (dtype, size) in wanted.items():
            got = (
                (tensors[name].dtype, tuple(tensors[name].shape))
                if name in tensors
                else (None, None)
            )
            if got != (dtype, (shard.rows, *size)):
                raise UserError(
                    f"{self.folder / shard.file} holds {name} of type {got[0]} and shape {got[1]},"
                    f" its manifest says {dtype}, {(shard.rows, *size)}"
                )
        return tensors


def cut_off(folder: Path, shard: Shard) -> str | None:
    """What is wrong with the size of a shard's file; None if nothing."""
    path = folder / shard.file
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    return (
        None
        if size == shard.bytes
        else f"{path} has {size:,} bytes, its record says {shard.bytes:,}"
    )


def damaged(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, which is read as a whole; None if nothing."""
    path = folder / shard.file
    return cut_off(folder, shard) or (
        None if digest(path) == shard.sha256 else f"{path} differs from its checksum"
    )

"""Reading a store: mapped into memory, in any order, in constant memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bezierdistill.curves import BezierCurve
from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors
from bezierdistill.noise import Stream, noise
from bezierdistill.records import CurveRecipe, Manifest, Shard, to_json
from bezierdistill.run import MADE, RUN, read_made, read_settings
from bezierdistill.store.codec import cond_dtype, decode, layout
from bezierdistill.store.manifest import COPY, MANIFEST, REPAIR, cut_off, damaged, read_manifest
from bezierdistill.words import counted

SMALL, READERS = 2**27, 2  # bytes; threads that read ahead
MAX_MAPPED = 2**13  # shards mapped at once: systems allow some tens of thousands of maps
Batch = tuple[BezierCurve, Tensor | None]


class CurveStore:
    """Curves of a complete store; nothing is read before it is used, and of a large one never more
    than is asked for.

    :meth:`open` makes one.

    Args:
        folder: where it lies.
        manifest: its manifest.
        small: bytes in single precision up to which it is kept in memory as a whole.
    """

    def __init__(self, folder: Path, manifest: Manifest, small: int = SMALL) -> None:
        self.folder, self.manifest, self.small = folder, manifest, small
        self.shards = manifest.shards
        self.ends = np.cumsum([shard.rows for shard in self.shards])
        self._map = lru_cache(maxsize=MAX_MAPPED)(self._tensors)

    @classmethod
    def open(cls, folder: str | Path, small: int = SMALL) -> CurveStore:
        """Open a store.

        Raises:
            UserError: if it is missing or not complete, its manifest is damaged, or a shard is
                missing or cut off.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest.complete:
            told = f"{folder} is not complete: run the simulate that makes it again"
            raise UserError(f"{told}, which continues it")
        if not manifest.shards:
            raise UserError(f"{folder} holds no curve")
        store = cls(folder, manifest, small)
        for shard in store.shards:
            if problem := cut_off(folder, shard):
                raise UserError(f"{problem}: {REPAIR}")
        return store

    def __repr__(self) -> str:
        recipe = self.recipe
        what = f"{counted(len(self), 'curve')} of degree {recipe.degree}, shape {recipe.shape}"
        made = f"guides {recipe.guides}, {counted(len(recipe.teachers), 'teacher')}"
        return f"CurveStore({what}, {made}, {self.folder})"

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def recipe(self) -> CurveRecipe:
        """What made the rows."""
        return self.manifest.recipe

    @property
    def condition_size(self) -> int:
        """Numbers of a condition; 0 is none."""
        return self.recipe.conditions.size

    @property
    def seeded(self) -> bool:
        """Whether sources are drawn again from their seed instead of stored."""
        return self.recipe.noise == "seed"

    @property
    def digest(self) -> str:
        """What the curves are, wherever the store lies."""
        return hashlib.sha256(json.dumps(to_json(self.shards)).encode()).hexdigest()

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
            told = f"rows run from {int(rows.min())} to {int(rows.max())}"
            raise UserError(f"{told}, expected 0 to {len(self) - 1}")
        if self._small is None:
            points, cond = self._gathered(rows)
            return BezierCurve(points.transpose(0, 1)), cond
        points, cond = self._small
        given = None if cond is None else cond.index_select(0, rows)
        return BezierCurve(points.index_select(0, rows).transpose(0, 1)), given

    def to(self, device: torch.device, count: int) -> Batch:
        """The first curves and their conditions (or None) on a device."""
        curve, cond = self.take(torch.arange(count))
        return BezierCurve(curve.points.to(device)), None if cond is None else cond.to(device)

    @cached_property
    def _small(self) -> tuple[Tensor, Tensor | None] | None:
        """All points and conditions, if they are few enough to be read once and kept."""
        numbers = (self.recipe.degree + 1) * prod(self.recipe.shape) + self.condition_size
        small = 4 * len(self) * numbers <= self.small
        return self._gathered(torch.arange(len(self))) if small else None

    def _gathered(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points ``(len(rows), degree + 1, *shape)`` and conditions of rows of any shards."""
        points = torch.empty(len(rows), self.recipe.degree + 1, *self.recipe.shape)
        cond = None
        if self.condition_size:
            cond = torch.empty(len(rows), self.condition_size, dtype=cond_dtype(self.recipe))
        where = np.searchsorted(self.ends, rows.numpy(), side="right")
        order = np.argsort(where, kind="stable")
        used, starts = np.unique(where[order], return_index=True)
        for index, here in zip(used, np.split(order, starts[1:]), strict=True):
            place = torch.from_numpy(here)
            inside = rows[place] - int(self.ends[index] - self.shards[index].rows)
            part, given = self._read(int(index), inside)
            points.index_copy_(0, place, part)
            if cond is not None and given is not None:
                cond.index_copy_(0, place, given)
        return points, cond

    def batch(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` curves drawn independently, and their conditions ``(count, C)`` or None."""
        return self.take(torch.randint(len(self), (count,), generator=generator))

    def epochs(
        self, batch: int, seed: int, start: int = 0, part: slice = slice(None)
    ) -> Iterator[Batch]:
        """Endless batches in which every row comes once an epoch, in the order of a seeded
        permutation.

        Batch k is a function of the seed and k alone, so to continue is to start at the batch that
        comes next.

        Args:
            batch: rows per batch.
            seed: seed of the permutations.
            start: the first batch.
            part: which rows of every batch to read, if others are read elsewhere.
        """
        count = len(self)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng((seed, Stream.TRAIN, epoch)).permutation(count)

        def read(k: int) -> Batch:
            first, end = k * batch, (k + 1) * batch
            epochs = range(first // count, -(-end // count))
            rows = [order(e)[max(0, first - e * count) : end - e * count] for e in epochs]
            return self.take(torch.from_numpy(np.concatenate(rows)[part]))

        with ThreadPoolExecutor(READERS) as pool:
            ahead = deque(pool.submit(read, start + k) for k in range(2 * READERS))
            for k in itertools.count(start + 2 * READERS):
                ready = ahead.popleft().result()
                ahead.append(pool.submit(read, k))
                yield ready

    def verify(
        self, part: slice = slice(None), advance: Callable[[int], None] = lambda shards: None
    ) -> Iterator[str]:
        """Compare shards (all, or a part) with their checksums; a line for each that differs."""
        for index in range(len(self.shards))[part]:
            if problem := self.problem(index):
                yield problem
            advance(1)

    def verify_records(self) -> Iterator[str]:
        """Compare the other files that are read with what they were; a line for each difference."""
        copy = self.folder / COPY
        if not copy.is_file() or copy.read_bytes() != (self.folder / MANIFEST).read_bytes():
            yield f"{copy} is missing or differs from {MANIFEST}"
        for name, read in ((MADE, read_made), (RUN, read_settings)):
            try:
                if (self.folder / name).exists():
                    read(self.folder)
            except UserError as error:
                yield str(error)

    def problem(self, index: int) -> str | None:
        """What is wrong with a shard, which is read as a whole; None if nothing."""
        found = damaged(self.folder, self.shards[index])
        try:
            if not found:
                self._map(index)
        except UserError as error:
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
        return noise(shard.seed, Stream.SIMULATE, shard.first + inside, self.recipe.shape)

    def _tensors(self, index: int) -> dict[str, Tensor]:
        """The mapped tensors of a shard, if they are what the manifest says."""
        shard = self.shards[index]
        if self.seeded and shard.seed is None:
            told = f"{self.folder / shard.file} has no seed to draw its sources from"
            raise UserError(f"{told}: restore its manifest")
        tensors = read_tensors(self.folder / shard.file)[0]
        for name, (dtype, size) in layout(self.recipe).items():
            kept = tensors.get(name)
            got = (None, None) if kept is None else (kept.dtype, tuple(kept.shape))
            if got != (dtype, (shard.rows, *size)):
                told = f"{self.folder / shard.file} holds {name} of type {got[0]} and shape"
                told = f"{told} {got[1]}, its manifest says {dtype}, {(shard.rows, *size)}"
                raise UserError(told)
        return tensors

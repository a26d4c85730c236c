"""A trained teacher or student: a network ``u(x, s, t, cond)`` and the card that tells its use.

Teachers and students are the same thing here. A teacher's knots are evenly spaced, which makes
sampling with K passes K Euler steps of its velocity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.fields import Field, Guided, NetworkField
from bezierdistill.flow_map import sample
from bezierdistill.knots import Knots
from bezierdistill.memory import batch_size, check_memory
from bezierdistill.models.conditions import Label, draw_condition, draw_labels
from bezierdistill.networks.config import NetworkConfig, read_network
from bezierdistill.networks.given import map_tensors
from bezierdistill.networks.own import OwnConfig
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.noise import Stream
from bezierdistill.noise import noise as draw_noise
from bezierdistill.progress import stage
from bezierdistill.records import Conditions, ModelCard
from bezierdistill.solvers import evaluations, solve, time_grid
from bezierdistill.words import counted

if TYPE_CHECKING:
    from bezierdistill.networks.foreign import ForeignConfig

MAX_PASSES = 1_000_000


@dataclass(frozen=True)
class Model:
    """A trained teacher or student.

    Args:
        net: the network ``u(x, s, t, cond)``, averaged weights, in evaluation mode.
        card: how it is built and used, and where it comes from.
        folder: where it lies; None if not saved.
    """

    net: nn.Module
    card: ModelCard
    folder: Path | None = None

    def __repr__(self) -> str:
        module = getattr(self.net, "module", self.net)
        net = f"{type(module).__name__} of {counted(self.size, 'parameter')}, shape {self.shape}"
        knots = f"knots of {', '.join(map(str, self.knots))} passes, " if self.knots else ""
        spent = counted(self.spent, "pass")
        return f"Model({self.card.kind}, {net}, {knots}{spent} spent, {self.folder or 'not saved'})"

    @property
    def size(self) -> int:
        """Number of its parameters."""
        module = getattr(self.net, "module", self.net)  # a user's own, which is not part of net
        found = module.parameters() if isinstance(module, nn.Module) else ()
        return sum(parameter.numel() for parameter in found)

    @cached_property
    def network(self) -> NetworkConfig | ForeignConfig | OwnConfig | PipelineConfig:
        """How to build the network."""
        return read_network(self.card.network)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.card.shape

    @property
    def scaling(self) -> Scaling:
        """The way to the data's original units."""
        return self.card.scaling

    @property
    def domain(self) -> Scaling | None:
        """The same for the domain that it translates from; None if it starts from noise."""
        return self.card.domain

    @property
    def knots(self) -> Mapping[int, Knots]:
        """The knots of the samplers it was trained for, by their number of passes."""
        return self.card.knots

    @property
    def conditions(self) -> Conditions:
        """What its conditions are."""
        return self.card.conditions

    @property
    def condition_size(self) -> int:
        """Numbers of a condition; 0 is none."""
        return self.card.conditions.size

    @property
    def field(self) -> NetworkField:
        """The velocity field ``v(x, t) = u(x, t, t)``.

        Raises:
            UserError: of a student that has learnt the jumps of one grid of knots, and no velocity.
        """
        if self._jumps_alone:
            known = ", ".join(map(str, self.knots))
            raise UserError(
                f"the student knows the start time only and has learnt the jumps of {known} passes,"
                " not a velocity: expected the solver euler, and another teacher"
            )
        return NetworkField(self.net)

    @property
    def passes(self) -> int:
        """Network passes of one evaluation of its field."""
        return 1

    @property
    def _jumps_alone(self) -> bool:
        """Whether it is a module that is not told where a step ends, and has learnt given steps."""
        network = self.network
        own = isinstance(network, PipelineConfig)
        own = own or (isinstance(network, OwnConfig) and not network.times)
        return own and self.card.kind == "student" and bool(self.knots)

    @property
    def digest(self) -> str:
        """What its weights are known by."""
        return self.card.digest

    @property
    def spent(self) -> int:
        """Network passes spent to make this model, its teachers and curves included."""
        return self.card.passes.total

    def facts(self) -> dict[str, Any]:
        """What a script may want to know of it."""
        passes = {**self.card.passes.parts, "total": self.spent}
        return {
            "out": self.folder,
            "kind": self.card.kind,
            "digest": self.digest,
            "passes": passes,
            "shape": self.shape,
            "conditions": self.condition_size,
            "classes": self.conditions.names,
            "knots": self.knots,
        }

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters(), torch.empty(0)).device

    def knots_of(self, passes: int) -> Knots:
        """Knots of a sampler with a number of passes: those trained for, or evenly spaced.

        Raises:
            UserError: if ``passes < 1``, or more than any sampler makes.
        """
        if not 1 <= passes <= MAX_PASSES:
            raise UserError(f"passes is {passes}, expected 1 to {MAX_PASSES:,}")
        if passes not in self.knots and self._jumps_alone:
            known = ", ".join(map(str, self.knots))
            raise UserError(
                f"passes is {passes}, the student knows the start time only and has learnt {known}"
            )
        return self.knots.get(passes) or time_grid(passes)

    def teacher_scale(self, asked: float | None = None) -> float | None:
        """The guidance scale that its teachers need for the same samples: the one asked for where
        it is an input, else the one it has learnt.
        """
        ends = self.conditions.guidance_range
        if ends is None:
            return self.conditions.guidance_scale
        return (ends[0] + ends[1]) / 2 if asked is None else asked

    def condition(
        self,
        rows: range,
        seed: int = 0,
        stream: Stream = Stream.SAMPLE,
        labels: Sequence[Label] | None = None,
        vectors: Any = None,
        guidance_scale: float | None = None,
    ) -> Any:
        """The conditions ``(len(rows), condition_size)`` of rows; None for a model without any.

        Args:
            rows: which rows.
            seed: seed of drawn labels.
            stream: what they are drawn for.
            labels: class labels, by number or name, repeated over the rows in turn; without them
                they are drawn as often as in the training data, row by row from the seed.
            vectors: condition vectors instead, one per row from row 0; of a model whose conditions
                are rows of a table whole numbers ``(N,)``, its rows, or values such as the table's.
            guidance_scale: for a network that takes it as an input; None: the middle of its range.

        Raises:
            UserError: on labels out of range, labels or vectors that the model does not take, or a
                guidance scale out of its range.
        """
        return draw_condition(self.conditions, rows, seed, stream, labels, vectors, guidance_scale)

    def labels(
        self,
        rows: range,
        seed: int = 0,
        stream: Stream = Stream.SAMPLE,
        labels: Sequence[Label] | None = None,
    ) -> Tensor:
        """The class labels ``(len(rows),)`` of rows, see :meth:`condition`.

        Raises:
            UserError: if the model takes vectors, or there are no such labels.
        """
        return draw_labels(self.conditions, rows, seed, stream, labels)

    @torch.no_grad()
    def generate(
        self,
        x0: Tensor,
        passes: int,
        solver: str = "euler",
        cond: Tensor | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Model states ``(B, *shape)`` from sources ``x0``, by jumps (``euler``) or by an ODE
        solver on the velocity.

        Args:
            x0: sources.
            passes: network passes per row; a multiple of the solver's stages (twice as many with a
                guidance scale).
            solver: ``euler`` jumps from knot to knot; ``midpoint``, ``heun`` and ``rk4`` integrate
                ``v(x, t)``.
            cond: conditions ``(B, condition_size)``.
            guidance_scale: classifier-free guidance of a teacher, g of
                :class:`~bezierdistill.fields.Guided`.

        Raises:
            UserError: on passes that the solver cannot spend evenly, or an adaptive solver.
        """
        if solver == "euler" and guidance_scale is None and self.passes == 1:
            return sample(self.net, x0, self.knots_of(passes), cond)
        field: Field = self.field
        if guidance_scale is not None:
            field = Guided(field, guidance_scale)
        cost = evaluations(solver) * field.passes
        if not 1 <= passes <= MAX_PASSES or passes % cost:
            guided = "" if guidance_scale is None else " with guidance"
            raise UserError(
                f"passes is {passes}, expected a multiple of {cost}, which a step of {solver}"
                f"{guided} takes"
            )
        return solve(field, x0, time_grid(passes // cost), solver, cond).state

    def sample(
        self,
        count: int,
        passes: int = 1,
        seed: int = 0,
        solver: str = "euler",
        batch: int | None = None,
        labels: Sequence[Label] | None = None,
        conditions: Any = None,
        guidance_scale: float | None = None,
        noise: Tensor | np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw samples in original units and layout, ``(count, ...)``.

        The noise and the condition of row i depend on the seed and i alone; so does the sample, up
        to rounding, which varies with the batch and the machine (about 1e-6 of a model unit).

        Args:
            count: number of samples.
            passes: network passes per sample.
            seed: seed of the noise, and of the labels where none are given.
            solver: see :meth:`generate`.
            batch: samples made at once; without it what suits the states and the device.
            labels: class labels, repeated in turn; see :meth:`condition`.
            conditions: condition vectors ``(count, size)`` instead, for a model that takes these.
            guidance_scale: of a student distilled for a range, or of a conditional teacher.
            noise: where samples start, standard normal ``(count, *shape)``, instead of the seed's.

        Raises:
            UserError: if ``count < 1``, the noise has another shape, or the model translates; else
                see :meth:`generate` and :meth:`condition`.
        """
        if count < 1:
            raise UserError(f"count is {count}, expected 1 or more")
        size = 8 * count * (math.prod(self.shape) + self.condition_size)  # parts and whole
        check_memory(size, f"{count:,} samples of shape {self.shape}")
        if self.domain is not None:
            raise UserError(
                "the model translates from another domain and does not start from noise: expected"
                " translate, not sample"
            )
        given = None if noise is None else torch.as_tensor(noise, dtype=torch.float32)
        if given is not None and tuple(given.shape) != (count, *self.shape):
            raise UserError(
                f"noise has shape {tuple(given.shape)}, expected {(count, *self.shape)}"
            )
        own, outer = guidance_scale, None
        if self.condition_size and self.conditions.guidance_range is None:
            own, outer = None, guidance_scale
        if outer is not None and self.card.kind == "student":
            raise UserError(
                f"guidance scale is {outer:g}, the student was distilled without a range of it:"
                " simulate with --guidance-scale 1,3"
            )
        parts, batch = [], batch or self.batch
        with stage("sampling", count) as advance:
            for start in range(0, count, batch):
                rows = range(start, min(start + batch, count))
                cond = self.condition(rows, seed, Stream.SAMPLE, labels, conditions, own)
                if given is None:
                    x0 = draw_noise(seed, Stream.SAMPLE, rows, self.shape).to(self.device)
                else:
                    x0 = given[rows.start : rows.stop].to(self.device)
                cond = map_tensors(cond, lambda part: part.to(self.device))
                x = self.generate(x0, passes, solver, cond, outer)
                parts.append(self.scaling.decode(finite(x)))
                advance(len(rows))
        return np.concatenate(parts)

    @property
    def batch(self) -> int:
        """Rows that go through the network at once."""
        whole = getattr(self.network, "kind", "") == "mlp"
        return batch_size(self.shape, self.device.type, whole)

    def translate(
        self,
        x: np.ndarray,
        passes: int = 1,
        solver: str = "euler",
        batch: int | None = None,
        labels: Sequence[Label] | None = None,
    ) -> np.ndarray:
        """Carry samples ``(N, ...)`` of the other domain, in its original units, to the target
        domain, in the target's original units.

        Args:
            x: the samples.
            passes: network passes per sample.
            solver: see :meth:`generate`.
            batch: samples carried at once; without it what suits the states and the device.
            labels: class labels of the samples, repeated in turn, for a conditional model.

        Raises:
            UserError: if the model starts from noise, the samples have another shape, or labels are
                missing or of no use; else see :meth:`generate` and :meth:`condition`.
        """
        if self.domain is None:
            raise UserError(
                "the model starts from noise, expected one that was trained or simulated with"
                " --domain to translate"
            )
        fits = x.ndim == self.domain.axes
        states = self.domain.encode(x) if fits else None
        if states is None or tuple(states.shape[1:]) != self.shape:
            raise UserError(
                f"input has shape {x.shape[1:]}, the model translates states of shape"
                f" {self.shape}: convert or resize it"
            )
        if self.condition_size and labels is None:
            raise UserError(
                "the model was trained with labels of its inputs: expected --labels, or inputs in"
                " folders of their classes or with an array of labels"
            )
        cond = self.condition(range(len(states)), labels=labels)
        made, batch = [], batch or self.batch
        with stage("translating", len(states)) as advance:
            for start in range(0, len(states), batch):
                own = slice(start, start + batch)
                given = None if cond is None else cond[own].to(self.device)
                x1 = self.generate(states[own].to(self.device), passes, solver, given)
                made.append(self.scaling.decode(finite(x1)))
                advance(len(x1))
        return np.concatenate(made)


def finite(x: Tensor) -> Tensor:
    """The states that a model has made.

    Raises:
        UserError: if some are NaN or infinite.
    """
    if not bool(x.isfinite().all()):
        raise UserError(
            "the model makes NaN or infinite numbers of these inputs: its weights are damaged, or"
            " its training has diverged"
        )
    return x

"""A model folder: weights, and a JSON card that says how to build the network, how to use it, and
where it comes from.

    model.json          kind, network, shape, scaling, knots, passes spent, config, seed, step,
    package version, weights' digest model.safetensors   the averaged weights

Teachers and students are the same thing here: a network ``u(x, s, t)``. A teacher's knots are
evenly spaced, which makes sampling with K passes K Euler steps of its velocity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.data import Scaling, one_hot
from bezierdistill.data.arrays import check_memory
from bezierdistill.errors import UserError
from bezierdistill.fields import Guided, NetworkField
from bezierdistill.files import digest, read_json, read_tensors, write_json, write_tensors
from bezierdistill.flow_map import check_knots, sample
from bezierdistill.models.weights import check_card, check_weights
from bezierdistill.networks.dit import DiT
from bezierdistill.networks.foreign import ForeignConfig
from bezierdistill.networks.mlp import MLP
from bezierdistill.networks.unet import UNet
from bezierdistill.noise import labels as draw_labels
from bezierdistill.noise import noise
from bezierdistill.solvers import solve, time_grid

FORMAT, VERSION = "bezierdistill-model", 1
CARD, WEIGHTS = "model.json", "model.safetensors"
MOST_PASSES = 1_000_000


@dataclass(frozen=True)
class Model:
    """A trained teacher or student.

    Args:
        net: the network ``u(x, s, t, cond)``, averaged weights, in evaluation mode.
        network: how to build it.
        shape: shape of one state.
        scaling: the way to the data's own units.
        knots: the knots of the samplers it was trained for, by their number of passes.
        card: the rest of ``model.json``.
        folder: where it lies; None if not saved.
        conditions: numbers of a condition that the network takes; 0 is none.
        source: the way to the own units of the domain that it translates from; None if it starts
            from noise.
    """

    net: nn.Module
    network: NetworkConfig | ForeignConfig
    shape: tuple[int, ...]
    scaling: Scaling
    knots: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    conditions: int = 0
    source: Scaling | None = None

    @property
    def field(self) -> NetworkField:
        """The velocity field ``v(x, t) = u(x, t, t)``."""
        return NetworkField(self.net)

    @property
    def spent(self) -> int:
        """Network passes spent to make this model, its teachers and curves included."""
        return int(self.card.get("passes", {}).get("total", 0))

    def schedule(self, passes: int) -> tuple[float, ...]:
        """Knots of a sampler with a number of passes: those trained for, or evenly spaced.

        Raises:
            UserError: if ``passes < 1``, or more than any sampler makes.
        """
        if not 1 <= passes <= MOST_PASSES:
            raise UserError(
                f"passes is {passes}, expected 1"
                f" {'or more' if passes < 1 else f'to {MOST_PASSES:,}'}"
            )
        return self.knots.get(passes) or time_grid(passes)

    @property
    def guidance(self) -> tuple[float, float] | None:
        """The range of guidance that is an input of the network (the last number of a condition);
        None if it is none.
        """
        low_high = self.card.get("guidance")
        return None if low_high is None else (float(low_high[0]), float(low_high[1]))

    def strength(self, asked: float | None = None) -> float | None:
        """The guidance that its teachers need for the same samples: the one asked for where it is
        an input, else the one it has learnt.
        """
        ends = self.guidance
        if ends is not None:
            return (ends[0] + ends[1]) / 2 if asked is None else asked
        learnt = self.card.get("guided")
        if (
            not isinstance(learnt, list)
            or len(learnt) != 1
            or type(learnt[0]) not in (int, float)
            or learnt[0] == 1
        ):
            return None
        return float(learnt[0])

    @property
    def frequencies(self) -> list[float] | None:
        """How often each class occurs in the training data; None if conditions are no class
        labels.
        """
        return self.card.get("classes")

    def condition(
        self,
        rows: range,
        seed: int = 0,
        labels: Sequence[int] | Tensor | None = None,
        vectors: np.ndarray | None = None,
        guidance: float | None = None,
    ) -> Tensor | None:
        """The conditions ``(len(rows), conditions)`` of rows; None for a model that takes none.

        Args:
            rows: which rows.
            seed: seed of drawn labels.
            labels: class labels, repeated over the rows in turn; without them they are drawn as
                often as in the training data, row by row from the seed.
            vectors: condition vectors instead, one a row from row 0, for a model that takes these.
            guidance: strength for a network that takes it as an input; None is the middle of its
                range.

        Raises:
            UserError: on labels out of range, labels or vectors that the model does not take, or
                guidance out of its range.
        """
        if labels is not None and vectors is not None:
            raise UserError("labels and conditions are both given, expected one of them")
        if not self.conditions:
            if labels is not None or vectors is not None or guidance is not None:
                raise UserError(
                    "labels, conditions or guidance are given, the model was trained without"
                    " conditions: expected none"
                )
            return None
        size = self.conditions - (self.guidance is not None)
        if vectors is not None:
            if vectors.ndim != 2 or vectors.shape[1] != size or len(vectors) < rows.stop:
                raise UserError(
                    f"conditions have shape {vectors.shape}, expected ({rows.stop}, {size})"
                )
            cond = torch.as_tensor(vectors[rows.start : rows.stop], dtype=torch.float32)
        elif self.frequencies is None:
            raise UserError(
                "labels are given or nothing is, the model takes vectors as conditions: give"
                " --conditions"
            )
        elif labels is None:
            cond = one_hot(draw_labels(seed, rows.start, len(rows), self.frequencies), size)
        else:
            cond = one_hot(
                torch.as_tensor(labels).flatten()[
                    torch.arange(rows.start, rows.stop) % len(labels)
                ],
                size,
            )
        return self._with_guidance(cond, guidance)

    def _with_guidance(self, cond: Tensor, guidance: float | None) -> Tensor:
        if self.guidance is None:
            if guidance is not None:
                raise UserError(
                    f"guidance is {guidance:g}, the model takes none as an input: expected none"
                )
            return cond
        low, high = self.guidance
        strength = (low + high) / 2 if guidance is None else guidance
        if not low <= strength <= high:
            raise UserError(
                f"guidance is {strength:g}, the student was distilled for {low:g} to {high:g}"
            )
        return torch.cat([cond, torch.full((len(cond), 1), strength)], 1)

    @torch.no_grad()
    def generate(
        self,
        x0: Tensor,
        passes: int,
        solver: str = "euler",
        cond: Tensor | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Model states ``(B, *shape)`` from sources ``x0``, by jumps (``euler``) or by an ODE
        solver on the velocity.

        Args:
            x0: sources.
            passes: network passes a row; a multiple of the solver's stages (twice as many with
                ``guidance``).
            solver: ``euler`` jumps from knot to knot; ``midpoint``, ``heun`` and ``rk4`` integrate
                ``v(x, t)``.
            cond: conditions ``(B, conditions)``.
            guidance: classifier-free guidance of a teacher, g of
                :class:`~bezierdistill.fields.Guided`.

        Raises:
            UserError: on passes that the solver cannot spend evenly, or an adaptive solver.
        """
        if solver == "euler" and guidance is None:
            return sample(self.net, x0, self.schedule(passes), cond)
        field = self.field if guidance is None else Guided(self.field, guidance)
        cost = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}.get(solver, 0) * field.passes
        if not cost or not 1 <= passes <= MOST_PASSES or passes % cost:
            twice = " and twice that with guidance" if guidance is not None else ""
            raise UserError(
                f"{passes} passes with solver {solver!r}, expected euler, or midpoint/heun with a"
                f" multiple of 2, rk4 of 4{twice}"
            )
        return solve(field, x0, time_grid(passes // cost), solver, cond).state

    def sample(
        self,
        count: int,
        passes: int = 1,
        seed: int = 0,
        solver: str = "euler",
        batch: int = 4096,
        labels: Sequence[int] | None = None,
        conditions: np.ndarray | None = None,
        guidance: float | None = None,
    ) -> np.ndarray:
        """Draw samples in the data's own units and layout, ``(count, ...)``; row i depends on the
        seed, its condition and i alone.

        Args:
            count: number of samples.
            passes: network passes a sample.
            seed: seed of the noise, and of the labels where none are given.
            solver: see :meth:`generate`.
            batch: samples made at once.
            labels: class labels, repeated in turn; see :meth:`condition`.
            conditions: condition vectors ``(count, conditions)`` instead, for a model that takes
                these.
            guidance: strength of guidance: of a student that was distilled for a range, or of a
                conditional teacher.

        Raises:
            UserError: if ``count < 1``, or the model translates; else see :meth:`generate` and
                :meth:`condition`.
        """
        if count < 1:
            raise UserError(f"count is {count}, expected 1 or more")
        check_memory(
            8 * count * (math.prod(self.shape) + self.conditions),
            f"{count:,} samples of shape {self.shape}",
        )  # parts and whole
        if self.source is not None:
            raise UserError(
                "the model translates from another domain and does not start from noise: expected"
                " translate, not sample"
            )
        device = next(self.net.parameters()).device
        own, teachers = (
            (guidance, None)
            if self.guidance is not None or not self.conditions
            else (None, guidance)
        )
        if teachers is not None and self.card.get("kind") == "student":
            raise UserError(
                f"guidance is {guidance:g}, the student was distilled without a range of it:"
                " simulate with --guidance 1,3"
            )
        parts = []
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            cond = self.condition(rows, seed, labels, conditions, own)
            x0 = noise(seed, start, len(rows), self.shape).to(device)
            x = self.generate(
                x0, passes, solver, None if cond is None else cond.to(device), teachers
            )
            parts.append(self.scaling.decode(finite(x)))
        return np.concatenate(parts)

    def translate(
        self, x: np.ndarray, passes: int = 1, solver: str = "euler", batch: int = 4096
    ) -> np.ndarray:
        """Carry samples ``(N, ...)`` of the source domain, in its own units, to the target domain,
        in the target's own units.

        Raises:
            UserError: if the model starts from noise, or the samples have another shape; else see
                :meth:`generate`.
        """
        if self.source is None:
            raise UserError(
                "the model starts from noise, expected one that was trained or simulated with"
                " --source to translate"
            )
        fits = x.ndim == {"flat": 2, "hw": 3}.get(self.source.layout, 4)
        states = self.source.encode(x) if fits else None
        if states is None or tuple(states.shape[1:]) != self.shape:
            raise UserError(
                f"input has shape {x.shape[1:]}, the model translates states of shape {self.shape}:"
                " convert or resize it"
            )
        device = next(self.net.parameters()).device
        return np.concatenate(
            [
                self.scaling.decode(finite(self.generate(part.to(device), passes, solver)))
                for part in states.split(batch)
            ]
        )


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


def find_teacher(entry: Mapping[str, Any]) -> Model | None:
    """The teacher that a student's card names by path and digest; None if it is not there any more,
    or another.
    """
    with suppress(ValueError, OSError):
        teacher = load_model(str(entry.get("path")))
        return teacher if teacher.card["digest"] == entry["digest"] else None
    return None


def read_network(fields: Mapping[str, Any]) -> NetworkConfig | ForeignConfig:
    """Read back ``dataclasses.asdict`` of a network's settings after JSON."""
    return ForeignConfig(**fields) if fields.get("kind") == "diffusers" else NetworkConfig(**fields)


def save_model(folder: Path, model: Model) -> Model:
    """Write a model folder; returns the model with its folder and digest.

    Raises:
        UserError: if what its card says does not agree with itself; nothing is written then.
    """
    card = {
        "format": FORMAT,
        "version": VERSION,
        "network": asdict(model.network),
        "shape": list(model.shape),
        "scaling": asdict(model.scaling),
        "conditions": model.conditions,
        "source": None if model.source is None else asdict(model.source),
        "knots": {str(passes): list(knots) for passes, knots in model.knots.items()},
        **model.card,
    }
    check_card(json.loads(json.dumps(card)))  # as it is read back: tuples become lists
    write_tensors(folder / WEIGHTS, dict(model.net.state_dict()))
    write_json(folder / CARD, {**card, "digest": digest(folder / WEIGHTS)})
    return load_model(folder)


def load_model(folder: str | Path) -> Model:
    """Read a model folder.

    Raises:
        UserError: if it is missing, of another format, or its weights are cut off, damaged or of
            another network.
    """
    folder = Path(folder)
    card = read_json(folder / CARD, "model")
    if card.get("format") != FORMAT or card.get("version") != VERSION:
        got = f"{card.get('format')!r} version {card.get('version')!r}"
        raise UserError(f"{folder / CARD} is {got[:200]}, expected {FORMAT!r} version {VERSION}")
    weights = read_tensors(folder / WEIGHTS)[0]
    if digest(folder / WEIGHTS) != card.get("digest"):
        raise UserError(
            f"{folder / WEIGHTS} differs from the digest in {CARD}: the file was changed or damaged"
        )
    try:
        return _model(folder, card, weights)
    except (
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        ValueError,
    ) as error:
        raise UserError(
            f"{folder} does not describe the network of its weights:"
            f" {' '.join(str(error).split())[:500]}"
        ) from None


def _model(folder: Path, card: dict[str, Any], weights: dict[str, Tensor]) -> Model:
    """The model of a card: everything in it is checked, and nothing is built that the weights do
    not fill.
    """
    check_card(card)
    network = read_network(card["network"])
    shape, scaling = tuple(card["shape"]), Scaling.from_json(card["scaling"], card["shape"])
    source = None if card.get("source") is None else Scaling.from_json(card["source"], shape)
    knots = {int(passes): check_knots(times) for passes, times in card["knots"].items()}
    conditions = card.get("conditions", 0)
    check_weights(network, shape, conditions, weights, trial=isinstance(network, ForeignConfig))
    net = network.build(shape, 0, conditions)
    net.load_state_dict(weights)
    return Model(
        net.eval().requires_grad_(False),
        network,
        shape,
        scaling,
        knots,
        card,
        folder,
        conditions,
        source,
    )

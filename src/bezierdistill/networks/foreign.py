r"""A pretrained network of diffusers as one of ours, an average velocity ``u(x, s, t, cond)``.

.. math:: u(x, s, t, c) = \mathrm{velocity}\big(\mathrm{net}(y,\ \mathrm{time}(s),\ c,
   \ Z\,(t - s,\ \sin \omega (t - s)))\big), \qquad Z = 0 \text{ at the start,}

with y, time and velocity of :mod:`bezierdistill.schedules`. As Z starts at zero, ``u(x, s, t)``
starts as the teacher's velocity ``v(x, s)``, exactly, for every t. A class label is a one-hot
vector that picks a row of the network's own table; the zero vector is no condition, for which a
diffusion transformer has a row of its own.

Source: ``UNet2DModel`` and ``DiTTransformer2DModel`` of diffusers. Nothing else is built, whatever
a file names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.networks.embeddings import TimeEmbedding
from bezierdistill.schedules import (
    LinearSchedule,
    Schedule,
    SigmaSchedule,
    StepSchedule,
    check_prediction,
    velocity,
)
from bezierdistill.settings import Prediction, ScheduleKind, check_choice

ClassName = Literal["UNet2DModel", "DiTTransformer2DModel"]
# What diffusers may raise when it builds a network of somebody's settings.
UNBUILDABLE = (TypeError, LookupError, AttributeError, NameError, RuntimeError, ArithmeticError)
UNBUILDABLE += (ValueError, AssertionError, ImportError)
NUMBERS = {"linear": {"scale", "low", "high"}, "sigma": {"least", "most"}}


def make_schedule(kind: str, numbers: Mapping[str, Any]) -> Schedule:
    """The schedule that settings name.

    Args:
        kind: ``linear-up``, ``linear-down``, ``sigma`` or ``steps``.
        numbers: its numbers by name; ``alphas_cumprod``, a list, for ``steps``.

    Raises:
        UserError: on another kind, or a number that it does not have.
    """
    check_choice("schedule", kind, ScheduleKind)
    known = NUMBERS.get(kind.partition("-")[0], {"alphas_cumprod"})
    if other := ", ".join(sorted(numbers.keys() - known)):
        names = ", ".join(sorted(known))
        raise UserError(f"schedule {kind} got {other}, expected no more than {names}")
    listed = numbers.get("alphas_cumprod", [0.0])
    values = [number for name, number in numbers.items() if name != "alphas_cumprod"]
    values += listed if isinstance(listed, list) else [None]
    if any(type(number) not in (int, float) or not math.isfinite(number) for number in values):
        raise UserError(f"schedule {kind} has {str(dict(numbers))[:200]}, expected finite numbers")
    if kind == "steps":
        return StepSchedule(torch.tensor(listed, dtype=torch.float64, device="cpu"))
    if kind == "sigma":
        return SigmaSchedule(**numbers)
    return LinearSchedule("up" if kind == "linear-up" else "down", **numbers)


@dataclass(frozen=True)
class ForeignConfig:
    """How to build a pretrained network again; all of it can be written as JSON.

    Raises:
        UserError: on another class or kind; on first use, what the schedule and diffusers reject.
    """

    name: ClassName
    """Its class in diffusers."""
    config: Mapping[str, Any]
    """Its settings there."""
    prediction: Prediction
    """What it predicts; see :class:`~bezierdistill.Teacher`."""
    schedule: ScheduleKind
    """Kind of its noise levels and times."""
    numbers: Mapping[str, Any]
    """Their numbers; see :func:`make_schedule`."""
    kind: Literal["diffusers"] = "diffusers"
    """What tells it from our own networks."""

    def __post_init__(self) -> None:
        if self.name not in get_args(ClassName) or self.kind != "diffusers":
            names = " or ".join(get_args(ClassName))
            raise UserError(
                f"network is {self.kind!r} {self.name!r}, expected {names} of diffusers"
            )

    def build(self, shape: tuple[int, ...], seed: int, condition_size: int = 0) -> Foreign:
        """A new network for states of ``shape`` and conditions of ``condition_size`` numbers, its
        weights a function of the seed.

        Raises:
            UserError: on settings that diffusers or :class:`Foreign` reject, or another shape than
                the settings name.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                inner = network_class(self.name)(**self.config)
            except UNBUILDABLE as error:
                told = " ".join(str(error).split())[:300]
                raise UserError(f"diffusers cannot build a {self.name}: {told}") from None
            if (named := state_shape(inner)) != shape:
                raise UserError(
                    f"states have shape {shape}, the settings of {self.name} name {named}"
                )
            schedule = make_schedule(self.schedule, self.numbers)
            return Foreign(inner, self.prediction, schedule, condition_size)


def network_class(name: ClassName) -> Any:
    """The class of diffusers with this name."""
    # Imported here: it takes seconds that only its users need.
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.models.unets.unet_2d import UNet2DModel

    return {"UNet2DModel": UNet2DModel, "DiTTransformer2DModel": DiTTransformer2DModel}[name]


def state_shape(inner: Any) -> tuple[int, ...]:
    """Shape ``(C, H, W)`` of the images of a network of diffusers.

    Raises:
        UserError: if its settings name no size.
    """
    size, channels = inner.config.sample_size, inner.config.in_channels
    shape = (channels, *(size if isinstance(size, list | tuple) else (size, size)))
    if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise UserError(
            f"sample_size is {str(size)[:80]} with {channels!r} channels, expected the side of its"
            " images: put it into its config.json"
        )
    return shape


def count_classes(inner: Any) -> int:
    """Classes of a network of diffusers; 0 if it takes no labels."""
    labels = getattr(inner.config, "num_class_embeds", None)
    return int(labels or getattr(inner.config, "num_embeds_ada_norm", None) or 0)


class Foreign(nn.Module):
    """``net(x, s, t, cond)`` around a network of diffusers, which is changed: its class embedding
    is replaced and its dropout set to zero. Pass a copy to keep the network as it is.

    Args:
        inner: a ``UNet2DModel`` or ``DiTTransformer2DModel``.
        prediction: what it predicts; see :class:`~bezierdistill.Teacher`.
        schedule: its noise levels and times.
        condition_size: numbers of a condition: one per class, or more, which start at zero.

    Raises:
        UserError: on a network that takes no fractions of its time, embeds classes otherwise than
            by a table, or predicts another shape; or on fewer conditions than it has classes.
    """

    prediction: Prediction

    def __init__(
        self, inner: Any, prediction: Prediction, schedule: Schedule, condition_size: int
    ) -> None:
        super().__init__()
        check_prediction(prediction, schedule)
        self.inner, self.prediction, self.schedule = inner, prediction, schedule
        for module in inner.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # its draws would be no function of a run's seed
        self.classes, self.channels = count_classes(inner), inner.config.in_channels
        if (made := inner.config.out_channels) not in (None, self.channels, 2 * self.channels):
            raise UserError(
                f"the network makes {made} channels of {self.channels}, expected as many, or twice"
                " for variances"
            )
        if condition_size < self.classes:
            given = f"conditions have {condition_size} numbers"
            raise UserError(
                f"{given}, the network has {self.classes} classes: expected one for each"
            )
        self.is_transformer = blocks = hasattr(inner, "transformer_blocks")
        width = inner.inner_dim if blocks else inner.time_embedding.linear_2.out_features
        self.time = TimeEmbedding(width, condition_size, start=False)
        if self.time.condition is not None:
            nn.init.zeros_(self.time.condition.weight)
        if self.is_transformer:
            for block in inner.transformer_blocks:
                block.norm1.emb = _BlockEmbedding(block.norm1.emb)
        else:
            _open_unet(inner, self.time.condition)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Average velocity ``(B, C, H, W)`` of images between times ``s`` and ``t``, ``(B,)``."""
        ours = self.time(s, t, cond)
        labels = x.new_zeros(len(x), self.classes) if cond is None else cond.to(x)
        given = (labels[:, : self.classes], ours) if self.is_transformer else ours

        def predict(y: Tensor, time: Tensor) -> Tensor:
            out = self.inner(y, time, class_labels=given, return_dict=False)[0]
            return out[:, : self.channels]  # variances, if any, come last

        return velocity(predict, self.prediction, self.schedule, x, s)


def _open_unet(unet: Any, condition: nn.Linear | None) -> None:
    """Put ours in the place of the class embedding, whose table becomes our matrix."""
    if (kind := unet.config.class_embed_type) is not None:
        raise UserError(f"class_embed_type is {kind!r}, expected none: labels by num_class_embeds")
    if unet.config.time_embedding_type == "learned":
        given = "time_embedding_type is 'learned', which knows whole steps alone"
        raise UserError(f"{given}: expected 'positional' or 'fourier'")
    if unet.config.time_embedding_type == "fourier":
        # diffusers' frequencies are parameters that must not be trained
        frequencies = unet.time_proj.weight.detach()
        del unet.time_proj.weight
        unet.time_proj.register_buffer("weight", frequencies)
    if condition is not None and unet.class_embedding is not None:
        table = unet.class_embedding.weight.detach()
        condition.weight.detach()[:, : len(table)] = table.T
    unet.class_embedding = nn.Identity()


class _BlockEmbedding(nn.Module):
    """``time + table row + ours``, without the random loss of labels that diffusers trains with."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    def forward(
        self, timestep: Tensor, given: tuple[Tensor, Tensor], hidden_dtype: Any = None
    ) -> Tensor:
        labels, ours = given
        embedded = self.own.timestep_embedder(self.own.time_proj(timestep).to(ours))
        none = (labels == 0).all(1, keepdim=True).to(labels)  # the last row is that of no label
        table = self.own.class_embedder.embedding_table.weight
        return embedded + functional.linear(torch.cat([labels, none], 1), table.T) + ours

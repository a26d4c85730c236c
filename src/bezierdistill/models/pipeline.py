"""A diffusers pipeline as a teacher, and its transformer as a student: with a low-rank adapter, or
with weights of its own.

A :class:`PipelineTeacher` is a model like any other: it is simulated, blended with another pipeline
of the same states or with itself under another guidance, and distilled. Its states are the
pipeline's latents, as they are; its conditions are numbers of prompts.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from bezierdistill.data import Scaling
from bezierdistill.errors import UserError
from bezierdistill.fields import NetworkField
from bezierdistill.models.model import Model
from bezierdistill.networks.pipeline import PipelineConfig
from bezierdistill.noise import Stream, noise
from bezierdistill.objects import fingerprint
from bezierdistill.pipelines.embedding import embed_prompts, save_prompts
from bezierdistill.pipelines.guidance import find_guidance
from bezierdistill.pipelines.loop import Loop
from bezierdistill.pipelines.measure import measure
from bezierdistill.pipelines.network import PipelineNetwork
from bezierdistill.pipelines.opening import TEXT, check_single, find_pipeline, open_pipeline
from bezierdistill.pipelines.prompts import Prompts
from bezierdistill.pipelines.shared import GIVEN, absolute, open_with_text, share
from bezierdistill.progress import progress
from bezierdistill.records import Conditions, ModelCard, Passes, to_json

PROMPTS = "prompts"  # the folder of prompts
PLACES = 65_536  # numbers of states that go through a pipeline at once
MOST = 64  # rows that do
TOLD = ("kind", "network", "shape", "scaling", "conditions", "knots")  # samples depend on them
APART = 1e-2  # of a velocity's size: what a batch of several times may change


@dataclass(frozen=True)
class PipelineModel(Model):
    """A pipeline's transformer, as a teacher or as a student; see :class:`PipelineTeacher`."""

    net: PipelineNetwork

    @property
    def pipeline(self) -> PipelineConfig:
        """Which pipeline, and how it is called."""
        network = self.network
        assert isinstance(network, PipelineConfig)
        return network

    def __repr__(self) -> str:
        lora = f", LoRA of rank {self.net.rank}" if self.net.rank else ""
        told = ", weights of its own" if self.pipeline.full else lora
        name = self.pipeline.name
        return f"{type(self).__name__}({name}{told}, shape {self.shape}, {self.folder})"

    @property
    def field(self) -> NetworkField:
        """The velocity field; a teacher's with its guidance."""
        return super().field if self.net.is_student else NetworkField(self.net, self.passes)

    @property
    def passes(self) -> int:
        """Network passes of one evaluation of the field: a teacher's guidance may take several."""
        return 1 if self.net.is_student else self.pipeline.passes

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.net.loop.device

    @property
    def batch(self) -> int:
        """Rows that go through the transformer at once."""
        return max(1, min(MOST, PLACES // math.prod(self.shape)))

    @property
    def prompts(self) -> Prompts:
        """Its prompts."""
        return self.net.prompts

    def with_prompts(self, texts: Sequence[str]) -> PipelineModel:
        """The same model with other prompts, of which sample i has the one of number i.

        Its text encoders are loaded for this, and freed afterwards.
        """
        if not texts:
            raise UserError("prompts are empty, expected one or more")
        loop, config = self.net.loop, self.pipeline
        guided = not self.net.is_student and config.guidance != config.plain
        given = (config.given, config.guidance, config.plain, config.negative)
        if any(getattr(loop.pipe, name, None) is not None for name in _text_parts(loop.pipe)):
            found = embed_prompts(loop.encoded, texts, guided)
        else:
            folder, device = find_pipeline(config.source), self.device
            kept = {name: getattr(loop.pipe, name) for name in ("transformer", "vae")}
            pipe = open_pipeline(folder, config.dtype, text=True, **kept).to(device)
            found = embed_prompts(Loop(pipe, *given).encoded, texts, guided)
            del pipe
            gc.collect()
        conditions = Conditions(size=1, rows=len(texts), table=found.fingerprint[:16])
        card = msgspec.structs.replace(self.card, conditions=conditions)
        if not self.net.is_student:
            card = msgspec.structs.replace(card, digest=card_digest(card))
        return PipelineModel(self.net.with_prompts(found), card, self.folder)

    @torch.no_grad()
    def images(self, states: Tensor | np.ndarray) -> np.ndarray:
        """Images ``(B, H, W, C)``, or frames ``(B, F, H, W, C)``, as bytes, that the pipeline's own
        decoder makes of states ``(B, *shape)``.
        """
        x, made = torch.as_tensor(states, dtype=torch.float32), []
        for part in x.split(self.batch):
            numbers = torch.zeros(len(part), dtype=torch.long)
            texts = self.prompts.outputs(numbers, False, self.device)
            found = self.net.loop.decoded(part.to(self.device), texts, self.pipeline.call.state)
            made.append((255 * found).round().to(torch.uint8).cpu().numpy())
        return np.concatenate(made)

    def student(
        self, lora: int = 16, targets: Sequence[str] = (), *, full: bool = False
    ) -> PipelineModel:
        """A student that starts as this pipeline without guidance: an adapter beside its weights,
        or a copy of them.

        Args:
            lora: rank of the adapter.
            targets: the layers that get one, by their names or the ends of these; none: all linear
                layers of the transformer's blocks.
            full: a copy of all weights, in single precision, in the place of an adapter.

        Raises:
            UserError: on a rank below 1, or if there are no such layers.
        """
        net = self.net.whole() if full else self.net.add_lora(lora, tuple(targets), seed=0)
        network = replace(self.pipeline, lora=0 if full else lora, full=full)
        card = msgspec.structs.replace(self.card, kind="student", network=to_json(network))
        return PipelineModel(net, card, None)


class PipelineTeacher(PipelineModel):
    """A diffusers pipeline as a teacher: its own field, guidance included.

    Nothing is listed by family: how the transformer is called is measured by a few probes.

    Args:
        pipe: the pipeline, with its text encoders; or a local folder or a name on the hub.
        prompts: the prompts, which are embedded once.
        guidance: scale of its guidance, which becomes part of the teacher; None is the pipeline's
            own, 1 is none.
        negative: the negative prompt; None is the pipeline's own.
        dtype: number type of the networks of a pipeline that is opened here.
        folder: where prompts are kept; without it in memory.
        device: where the pipeline is opened.
        given: further keyword arguments of every call of the pipeline: height, width, num_frames.

    Raises:
        UserError: if it cannot be opened safely, has a loop of its own, or probes disagree.

    Example::

        teacher = bd.PipelineTeacher("Efficient-Large-Model/Sana_600M_1024px_diffusers",
                                     prompts=["a red boot", "a blue bag"], guidance=4.5)
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        guidance: float | None = None,
        negative: str | None = None,
        *,
        dtype: str = "float32",
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        **given: Any,
    ) -> None:
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not texts:
            raise UserError("prompts are empty, expected one or more")
        if isinstance(pipe, str | Path):
            source, own = absolute(pipe), True
            pipe, weights = open_with_text(pipe, dtype)
            pipe.to(device)
        else:
            check_single(f"a {type(pipe).__name__}", pipe.components)
            source, own = GIVEN, False
            weights = fingerprint(dict(pipe.transformer.state_dict()))
            dtype = str(pipe.transformer.dtype).removeprefix("torch.")
            pipe.set_progress_bar_config(disable=True)
        made = refused(type(pipe).__name__, _probed, pipe, texts, guidance, negative, folder, given)
        loop, found, call, shape, passes = made
        if own:
            free_text(pipe)
        network = PipelineConfig(
            source,
            weights,
            type(pipe).__name__,
            dtype,
            given,
            loop.guidance[True],
            loop.guidance[False],
            loop.negative,
            call,
            passes,
        )
        card = ModelCard(
            kind="teacher",
            network=to_json(network),
            shape=shape,
            scaling=Scaling(layout="latent"),
            seed=0,
            steps=0,
            passes=Passes(training=0),
            conditions=Conditions(size=1, rows=len(texts), table=found.fingerprint[:16]),
        )
        card = msgspec.structs.replace(card, digest=card_digest(card))
        shared = share(network, pipe)
        net = PipelineNetwork(loop, call, found, shared.weights)
        object.__setattr__(net, "shared", shared)  # as long as the network lives
        for name, value in {"net": net, "card": card, "folder": None}.items():
            object.__setattr__(self, name, value)
        _check_times(self)


def _probed(
    pipe: Any,
    texts: tuple[str, ...],
    guidance: float | None,
    negative: str | None,
    folder: Path | None,
    given: Mapping[str, Any],
) -> tuple[Loop, Prompts, Any, tuple[int, ...], int]:
    """The loop, the prompts, the call, the shape of a state and the passes of a velocity."""
    made = find_guidance(pipe, given, guidance, negative)
    loop = Loop(pipe, given, made.guided, made.plain, made.negative)
    guided = made.guided != made.plain
    with progress("prompts", len(texts)) as tell:
        if folder is None:
            found = embed_prompts(loop.encoded, texts, guided, tell)
        else:
            found = save_prompts(loop.encoded, texts, guided, folder / PROMPTS, tell)
    two = torch.tensor([0, len(texts) - 1])
    plain = found.outputs(two, False, loop.device)
    x = loop.drawn(plain, 2)
    call = measure(loop, plain, tuple(x.shape[1:]), pipe.transformer.dtype != torch.float32)
    passes = loop.passes(found.outputs(two, True, loop.device), x, True)
    return loop, found, call, tuple(x.shape[1:]), passes


def refused(name: str, run: Any, *given: Any) -> Any:
    """What a function returns; an error of the pipeline's own is told in a line."""
    try:
        return run(*given)
    except UserError:
        raise
    except Exception as error:  # of whatever a pipeline does
        told = " ".join(str(error).split())[:300]
        raise UserError(f"a {name} refuses the call ({type(error).__name__}: {told})") from error


def _check_times(model: PipelineModel) -> None:
    """Whether the pipeline can be asked with a time of its own for every row, as it is asked for
    rows that are on their way.
    """
    rows, times = torch.tensor([[0.0], [0.0]]), torch.tensor([0.5, 0.75])
    x = noise(1, Stream.SEARCH, range(2), model.shape)
    beside = model.net(x, times, times, rows)
    alone = [model.net(x[k : k + 1], times[k : k + 1], times, rows[:1]) for k in (0, 1)]
    apart, size = (beside - torch.cat(alone)).abs().max(), beside.abs().max()
    half = model.pipeline.dtype != "float32"
    if not bool(beside.isfinite().all()):
        raise UserError(f"a {model.pipeline.name} gives NaN or infinite numbers: check its weights")
    if float(apart) > (5 * APART if half else APART) * float(size):
        raise UserError(
            f"a {model.pipeline.name} gives a state another velocity beside states at other times:"
            " its guidance depends on the time, expected one of no truncation"
        )


def card_digest(card: ModelCard, weights: str = "") -> str:
    """What a teacher or a student is known by, wherever its pipeline lies: all of its card that
    samples depend on, and the digest of what was trained.
    """
    told = {name: value for name, value in to_json(card).items() if name in TOLD}
    told["network"] = {name: value for name, value in card.network.items() if name != "source"}
    return hashlib.sha256((json.dumps(told, sort_keys=True) + weights).encode()).hexdigest()


def _text_parts(pipe: Any) -> list[str]:
    return [name for name in pipe.components if name.startswith(TEXT)]


def free_text(pipe: Any) -> None:
    """Free the text encoders of a pipeline, whose prompts are embedded."""
    pipe.register_modules(**dict.fromkeys(_text_parts(pipe)))
    gc.collect()

r"""The transformer of a pipeline as one of our networks, an average velocity ``u(x, s, t, cond)``.

.. math:: u(x, s, t, c) = -v_\mathrm{pipeline}(x,\ \sigma = 1 - s,\ \mathrm{prompt}_c)

A teacher is asked through the pipeline's own loop, so that its guidance is in the velocity. A
student is the same transformer with low-rank adapters, called once a row, without guidance and by
the start time alone: every pass is an Euler step of the pipeline's own scheduler. All of them share
one copy of the weights; an adapter is switched on for its student's calls, and off for all others.
A student whose weights are all trained is called likewise, and has a copy of its own.
"""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.networks.given import map_tensors
from bezierdistill.networks.pipeline import Call
from bezierdistill.pipelines.loop import Loop
from bezierdistill.pipelines.measure import as_argument, as_state
from bezierdistill.pipelines.prompts import Prompts
from bezierdistill.pipelines.weights import Weights
from bezierdistill.pipelines.whole import apart

LEVEL = 0.5  # noise level of a call whose time is put in its place
_numbers = count()


class PipelineNetwork(nn.Module):
    """``net(x, s, t, cond)`` around a pipeline; conditions are numbers of prompts ``(B, 1)``.

    Args:
        loop: the pipeline's loop.
        call: how it calls its transformer.
        prompts: its prompts.
        weights: the transformer's weights.
        guided: whether it is asked with guidance where there is no adapter.
    """

    skips = True  # adapters of parts that the last block does not use

    def __init__(
        self, loop: Loop, call: Call, prompts: Prompts, weights: Weights, guided: bool = True
    ) -> None:
        super().__init__()
        self.loop, self.call, self.prompts, self.weights = loop, call, prompts, weights
        self.guided, self.adapter, self.rank = guided, "", 0
        self.adapters = nn.ParameterDict()
        self.own: Any = None

    @property
    def module(self) -> Any:
        """The transformer, which is a part of this network, saved and trained, only where it is
        :attr:`own`.
        """
        return self.weights.transformer

    @property
    def is_student(self) -> bool:
        """Whether it has weights that were trained."""
        return bool(self.rank) or self.own is not None

    def with_prompts(self, prompts: Prompts) -> PipelineNetwork:
        """The same network, adapter included, with other prompts."""
        made = PipelineNetwork(self.loop, self.call, prompts, self.weights, self.guided)
        made.adapter, made.rank, made.adapters = self.adapter, self.rank, self.adapters
        made.own = self.own
        return made

    def bare(self) -> PipelineNetwork:
        """The pipeline's own transformer, without adapter and without guidance."""
        return PipelineNetwork(self.loop, self.call, self.prompts, self.weights, guided=False)

    def add_lora(self, rank: int, targets: tuple[str, ...], seed: int) -> PipelineNetwork:
        """A student of it, with a new adapter that changes nothing yet.

        Args:
            rank: rank of the adapter.
            targets: the layers that get one, by their names or the ends of these; none: all linear
                layers of the transformer's blocks.
            seed: seed of the first A.

        Raises:
            UserError: on a rank below 1, if there are no such layers, or beside weights of its own.
        """
        if self.own is not None:
            raise UserError(
                f"lora is {rank} and the teacher a student of which all weights were trained:"
                " expected --full"
            )
        made = PipelineNetwork(self.loop, self.call, self.prompts, self.weights, guided=False)
        made.adapter, made.rank = f"student{next(_numbers)}", rank
        names = targets or block_layers(self.module)
        parameters = self.weights.add(made.adapter, rank, names, seed)
        made.adapters = nn.ParameterDict({n.replace(".", "/"): p for n, p in parameters.items()})
        finalize(made.adapters, self.weights.gone.append, made.adapter)
        return made

    def whole(self) -> PipelineNetwork:
        """A student of it with a copy of all its weights, in single precision."""
        if self.rank:
            raise UserError(
                f"full is given and the teacher a student with an adapter of rank {self.rank}:"
                " expected --lora"
            )
        loop = apart(self.loop)
        weights = Weights(loop.transformer)
        made = PipelineNetwork(loop, self.call, self.prompts, weights, guided=False)
        made.own = loop.transformer
        return made

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, the adapter's tensors or all, by the transformer's names."""
        if self.own is not None:
            return dict(self.own.state_dict())
        return {name.replace("/", "."): p.detach() for name, p in self.adapters.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill the adapter, or all weights."""
        if self.own is not None:
            self.own.load_state_dict(tensors)
        with torch.no_grad():
            for name, parameter in self.adapters.items():
                parameter.copy_(tensors[name.replace("/", ".")])

    def train(self, mode: bool = True) -> PipelineNetwork:
        """Weights of its own are trained as they are sampled: without dropout."""
        super().train(mode)
        if self.own is not None:
            self.own.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> PipelineNetwork:
        """Whatever moves a transformer of its own brings the rest of its pipeline along."""
        super()._apply(fn, recurse)
        if self.own is not None:
            self.loop.pipe.to(self.loop.device)
        return self

    def to(self, *args: Any, **kwargs: Any) -> PipelineNetwork:
        """Move the adapter, and the pipeline with it, which stays in its number type."""
        super().to(*args, **kwargs)
        one = torch.empty(1, 1, 1, 1, device=self.loop.device)  # of any format of memory
        device = one.to(*args, **kwargs).device
        if device != self.loop.device:
            self.loop.pipe.to(device)
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Have the transformer keep fewer activations."""
        self.module.enable_gradient_checkpointing(self.weights.keep_fewer)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Velocity ``(B, ...)`` of states at the times ``s`` ``(B,)``, data minus noise."""
        if cond is None:
            raise UserError("a pipeline got no prompt, expected numbers of prompts (B, 1)")
        there, rows = self.loop.device, cond[:, 0].long().cpu()
        state, level = x.to(there), (1 - s.float()).to(there)
        if not self.adapter and self.guided:
            return -self._loop(state, level, rows).to(x)
        return -self._direct(state, level, rows).to(x)

    @torch.no_grad()
    def _loop(self, x: Tensor, level: Tensor, rows: Tensor) -> Tensor:
        """The velocity that the pipeline makes, guidance included."""
        self.weights.switch("")
        texts = self.prompts.outputs(rows, True, x.device)
        if bool((level == level[0]).all()):
            return self.loop.velocity(x, float(level[0]), texts, True)

        def before(module: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
            named = self.loop.named(args, kwargs)
            named[self.call.time] = self._times(level, named[self.call.time])
            return (), named

        with self.loop.hook(before):
            return self.loop.velocity(x, float(level.mean()), texts, True)

    def _direct(self, x: Tensor, level: Tensor, rows: Tensor) -> Tensor:
        """What the transformer predicts of one call a row, as noise minus data."""
        self.weights.switch(self.adapter)
        if self.adapters and next(iter(self.adapters.values())).device != x.device:
            self.to(x.device)
        with torch.no_grad():
            texts = self.prompts.outputs(rows, False, x.device)
            named = self.loop.asked(x.detach(), LEVEL, texts, False)
            if self.own is not None:
                named = map_tensors(named, self._as_own)
        named[self.call.state] = as_argument(x, named[self.call.state])
        named[self.call.time] = self._times(level, named[self.call.time])
        return self.call.sign * as_state(self.module(**named), x)

    def _as_own(self, part: Tensor) -> Tensor:
        """A tensor of a call, floating ones in the number type of weights of its own."""
        return part.to(self.own.dtype) if part.is_floating_point() else part

    def _times(self, level: Tensor, like: Tensor) -> Tensor:
        """The transformer's times for noise levels ``(B,)``, in the form of those that were seen:
        for each row of a batch that guidance may have doubled, and for each token.
        """
        times = (self.call.shift + self.call.scale * level).to(like)
        times = times.repeat(len(like) // len(level))
        return times.reshape(-1, *(1,) * (like.ndim - 1)).expand(like.shape)


def block_layers(transformer: nn.Module) -> tuple[str, ...]:
    """The linear layers of a transformer's blocks, by their paths.

    Raises:
        UserError: if it has no blocks.
    """
    blocks = [name for name, part in transformer.named_modules() if type(part) is nn.ModuleList]
    outer = [n for n in blocks if not any(n.startswith(f"{other}.") for other in blocks)]
    found = tuple(
        name
        for name, part in transformer.named_modules()
        if type(getattr(part, "base_layer", part)) is nn.Linear
        and name.startswith(tuple(f"{n}." for n in outer))
        and not {"base_layer", "lora_A", "lora_B"} & {*name.split(".")}
    )
    if not found:
        raise UserError(
            f"a {type(transformer).__name__} has no blocks with linear layers: name --targets"
        )
    return found

r"""The transformer of a pipeline as one of our networks, an average velocity ``u(x, s, t, cond)``.

.. math:: u(x, s, t, c) = -v_\mathrm{pipeline}(x,\ \sigma = 1 - s,\ \mathrm{prompt}_c)

A teacher is asked through the pipeline's own loop, so that its guidance is in the velocity. A
student is the same transformer with low-rank adapters, called once a row, without guidance and by
the start time alone: every pass is an Euler step of the pipeline's own scheduler. All of them share
one copy of the weights; an adapter is switched on for its student's calls, and off for all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bezierdistill.errors import UserError
from bezierdistill.networks.lora import put_adapter
from bezierdistill.networks.pipeline import Call
from bezierdistill.pipelines.loop import Loop
from bezierdistill.pipelines.measure import as_argument, as_state
from bezierdistill.pipelines.prompts import Prompts

LEVEL = 0.5  # noise level of a call whose time is put in its place
_numbers = count()


class Weights:
    """The one copy of a transformer's weights, and which adapter is switched on."""

    def __init__(self, transformer: Any) -> None:
        self.transformer, self.active = transformer, ""
        self.gone: list[str] = []  # adapters of students that are no more

    def add(
        self, adapter: str, rank: int, targets: Sequence[str], seed: int
    ) -> dict[str, nn.Parameter]:
        """Add an adapter, see :func:`~bezierdistill.networks.lora.put_adapter`; those of students
        that are gone are removed.
        """
        with self._needing():
            if self.gone:
                self.transformer.delete_adapters([self.gone.pop() for _ in [*self.gone]])
            made = put_adapter(self.transformer, adapter, rank, targets, seed)
        self.active = "?"  # whatever has been switched on
        return made

    def switch(self, adapter: str) -> None:
        """Switch one adapter on, or, with no name, all of them off."""
        if adapter == self.active:
            return
        with self._needing():
            if adapter:
                self.transformer.enable_adapters()
                self.transformer.set_adapter(adapter)
            else:
                self.transformer.disable_adapters()
        self.active = adapter

    @contextmanager
    def _needing(self) -> Iterator[None]:
        """Leaves parameters with a gradient or without, which peft changes as it switches."""
        held = [(parameter, parameter.requires_grad) for parameter in self.transformer.parameters()]
        yield
        for parameter, needs in held:
            parameter.requires_grad_(needs)

    def keep_fewer(self, block: Any, *args: Any) -> Any:
        """Run a block whose activations are computed again for the gradient, by the adapter that
        made them, whatever has been asked since.
        """
        adapter = self.active

        def run(*args: Any) -> Any:
            self.switch(adapter)
            return block(*args)

        return checkpoint(run, *args, use_reentrant=False)


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

    @property
    def module(self) -> Any:
        """The transformer, which is no part of this network: it is neither saved nor trained."""
        return self.weights.transformer

    def with_prompts(self, prompts: Prompts) -> PipelineNetwork:
        """The same network, adapter included, with other prompts."""
        made = PipelineNetwork(self.loop, self.call, prompts, self.weights, self.guided)
        made.adapter, made.rank, made.adapters = self.adapter, self.rank, self.adapters
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
            UserError: on a rank below 1, or if there are no such layers.
        """
        made = PipelineNetwork(self.loop, self.call, self.prompts, self.weights, guided=False)
        made.adapter, made.rank = f"student{next(_numbers)}", rank
        names = targets or block_layers(self.module)
        parameters = self.weights.add(made.adapter, rank, names, seed)
        made.adapters = nn.ParameterDict({n.replace(".", "/"): p for n, p in parameters.items()})
        finalize(made.adapters, self.weights.gone.append, made.adapter)
        return made

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's tensors by the transformer's names."""
        return {name.replace("/", "."): p.detach() for name, p in self.adapters.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill the adapter."""
        with torch.no_grad():
            for name, parameter in self.adapters.items():
                parameter.copy_(tensors[name.replace("/", ".")])

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
        named[self.call.state] = as_argument(x, named[self.call.state])
        named[self.call.time] = self._times(level, named[self.call.time])
        return self.call.sign * as_state(self.module(**named), x)

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

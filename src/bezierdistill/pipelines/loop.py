r"""A pipeline's own loop, cut to one step, by which its velocity field is read off.

A pipeline hands its scheduler a state x, and the velocity v that its transformer and its guidance
have made of it, whatever they are. :class:`Loop` runs one such step at a noise level
:math:`\sigma = 1 - t` of our choice. With a hook before the transformer it also sees how that is
called, so that a student can be called the same way (:mod:`bezierdistill.pipelines.measure`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.pipelines.schedulers import Finish, Probe, Stock, Stop

LEVEL = 0.125  # noise level of a call of which nothing is kept but how it is made


class Loop:
    """The loop of a pipeline, cut to one step.

    Args:
        pipe: the pipeline; its scheduler and its ``encode_prompt`` are replaced.
        given: keyword arguments of every call: sizes, number of frames.
        guidance: keyword arguments of its guidance.
        plain: those of a call without.
        negative: the negative prompt; None is the pipeline's own.
    """

    def __init__(
        self,
        pipe: Any,
        given: Mapping[str, Any],
        guidance: Mapping[str, Any],
        plain: Mapping[str, Any],
        negative: str | None = None,
    ) -> None:
        self.pipe, self.given, self.negative = pipe, dict(given), negative
        self.guidance = {True: dict(guidance), False: dict(plain)}
        self.kind: torch.dtype | None = None  # of the states that the pipeline keeps, once known
        self.encode = pipe.encode_prompt
        # Pipelines compute a shift for the config of theirs; the steps are set without.
        self.probe: Any = Probe.from_config(pipe.scheduler.config)
        self.signature = inspect.signature(type(pipe.transformer).forward)

    @property
    def transformer(self) -> Any:
        """The transformer."""
        return self.pipe.transformer

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    def velocity(self, x: Tensor, level: float, texts: Sequence[Any], guided: bool) -> Tensor:
        """What the pipeline makes of states ``(B, ...)`` at a noise level: noise minus data."""
        self._run(x, level, texts, guided)
        return self.probe.velocity.reshape(x.shape)

    def asked(self, x: Tensor, level: float, texts: Sequence[Any], guided: bool) -> dict[str, Any]:
        """The arguments by name with which the transformer would be called; it is not called."""
        seen: list[dict[str, Any]] = []

        def look(module: Any, args: Any, kwargs: Any) -> None:
            seen.append(self.named(args, kwargs))
            raise Stop

        with self.hook(look):
            self._run(x, level, texts, guided)
        return seen[0]

    def drawn(self, texts: Sequence[Any], rows: int) -> Tensor:
        """The states ``(B, ...)`` that the pipeline draws where none are given."""
        self._run(None, 1.0, texts, False, rows)
        self.kind = self.probe.state.dtype
        return self.probe.state

    def passes(self, texts: Sequence[Any], x: Tensor, guided: bool) -> int:
        """Network passes of a row in one step from states ``(B, ...)``."""
        seen: list[int] = []

        def count(module: Any, args: Any, kwargs: Any) -> None:
            values = self.named(args, kwargs).values()
            seen.append(max(_repeats(value, x) for value in values))

        with self.hook(count):
            self._run(x, LEVEL, texts, guided)
        return sum(seen)

    def steps(
        self, settings: Mapping[str, Any], passes: int, texts: Sequence[Any], **more: Any
    ) -> tuple[Tensor, Tensor]:
        """The noise levels ``(K,)`` and the times ``(K,)`` of the steps that the pipeline takes.

        Args:
            settings: of a stock Euler scheduler of flow matching.
            passes: the number of steps that it is asked for.
            texts: what ``encode_prompt`` returned for a prompt.
            more: further keyword arguments of the call.
        """
        stock = Stock(**settings)
        before, self.probe = self.probe, stock
        try:
            self._run(None, 1.0, texts, False, 1, num_inference_steps=passes, **more)
        finally:
            self.probe = before
        return stock.sigmas[:-1].cpu(), stock.timesteps.cpu()

    def decoded(self, x: Tensor, texts: Sequence[Any], state: str) -> Tensor:
        """Images ``(B, H, W, C)`` or frames ``(B, F, H, W, C)``, in [0, 1], that the pipeline makes
        of states ``(B, ...)``, by its own way and without a network pass.
        """
        images = self._finished(x, texts, state)[0]
        images = torch.stack(list(images)) if isinstance(images, list | tuple) else images
        return images.float().movedim(-3, -1).clamp(0, 1)

    def decoder_input(self, x: Tensor, texts: Sequence[Any], state: str) -> Tensor:
        """What the pipeline hands its decoder for states ``(B, ...)``, in single precision."""
        seen: list[Tensor] = []
        vae = self.pipe.vae

        def look(z: Tensor, *args: Any, **kwargs: Any) -> None:
            seen.append(z)
            raise Stop

        held = [(parameter, parameter.data) for parameter in vae.parameters()]
        for parameter, data in held:  # a pipeline hands over what is of their type
            parameter.data = data.float()
        vae.decode = look
        try:
            self._finished(x, texts, state)
        finally:
            for parameter, data in held:
                parameter.data = data
            del vae.decode  # the class's own again
        return seen[0].float()

    def _finished(self, x: Tensor, texts: Sequence[Any], state: str) -> Any:
        """What the pipeline returns of states, taken as those that its loop ends on."""
        last: Any = Finish.from_config(self.pipe.scheduler.config)
        last.state, own = x, self.transformer

        def skip(*args: Any, **kwargs: Any) -> tuple[Any]:
            return (self.named(args, kwargs)[state],)

        before, self.probe, own.forward = self.probe, last, skip
        try:
            return self._run(x, LEVEL, texts, False, kind="pt")
        finally:
            self.probe = before
            del own.forward

    def encoded(self, prompts: Sequence[str], guided: bool) -> list[Any]:
        """What the pipeline's own ``encode_prompt`` returns for prompts, call by call."""
        made: list[Any] = []

        def encode(*args: Any, **kwargs: Any) -> Any:
            made.append(self.encode(*args, **kwargs))
            return made[-1]

        def stop(*args: Any) -> None:
            raise Stop

        with self.hook(stop):
            self._call(None, 1.0, encode, guided, list(prompts))
        return made

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call of the transformer, by name."""
        return dict(list(self.signature.bind(None, *args, **kwargs).arguments.items())[1:])

    @contextmanager
    def hook(self, before: Callable[..., Any]) -> Iterator[None]:
        """With a function that is called before the transformer."""
        handle = self.transformer.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _run(
        self,
        x: Tensor | None,
        level: float,
        texts: Sequence[Any],
        guided: bool,
        rows: int = 0,
        kind: str = "latent",
        **more: Any,
    ) -> Any:
        known = iter(texts)

        def encode(*args: Any, **kwargs: Any) -> Any:
            return next(known)

        prompts = [" "] * (rows if x is None else len(x))
        made = self._call(x, level, encode, guided, prompts, kind, **more)
        if made is None or kind != "latent":
            return made
        raise UserError(
            f"a {type(self.pipe).__name__} has a loop of its own that takes no step of its"
            " scheduler: expected one of the usual loop"
        )

    def _call(
        self,
        x: Tensor | None,
        level: float,
        encode: Callable[..., Any],
        guided: bool,
        prompts: list[str],
        kind: str = "latent",
        **more: Any,
    ) -> Any:
        """What the pipeline returns; None where something has stopped it."""
        more = {"num_inference_steps": 1, **self.guidance[guided], **more}
        if self.negative is not None and guided:
            more["negative_prompt"] = [self.negative] * len(prompts)
        if x is not None:
            more["latents"] = x.to(self.kind) if self.kind else x
        self.probe.at = level
        before = self.pipe.scheduler
        self.pipe.encode_prompt, self.pipe.scheduler = encode, self.probe
        try:
            return self.pipe(
                prompt=prompts,
                output_type=kind,
                return_dict=False,
                **self.given,
                **more,
            )
        except Stop:
            return None
        finally:
            self.pipe.scheduler = before
            del self.pipe.encode_prompt  # the class's own again


def _repeats(value: Any, x: Tensor) -> int:
    """How often an argument holds the states ``x``, one batch after the other."""
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(part, Tensor) for part in value):
            return 0
        value = torch.stack(list(value)) if len({part.shape for part in value}) == 1 else x[:0]
    if not isinstance(value, Tensor) or not value.numel() or value.numel() % x.numel():
        return 0
    parts = value.reshape(-1, *x.shape)
    return len(parts) if all(torch.equal(part, x.to(part)) for part in parts) else 0

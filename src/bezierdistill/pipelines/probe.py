r"""A pipeline's own velocity field, read off by a scheduler that stops after one step.

A pipeline hands its scheduler a state x, and the velocity v that its transformer and its guidance
have made of it, whatever they are. :class:`Loop` runs one such step at a noise level
:math:`\sigma = 1 - t` of our choice. With a hook before the transformer it also sees how that is
called, so that a student can be called the same way; which argument is the state, which the time,
by which map of :math:`\sigma`, and with which sign, is measured (:func:`measure`) and not listed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.networks.pipeline import Call

LEVELS = (0.125, 0.5, 0.25)  # of the probes: a thousand times they are exact in half precision
CLOSE = 1e-3  # of the size of what is compared
HALF = 2e-2  # likewise in half precision


class Stop(Exception):  # noqa: N818
    """Ends a pipeline's call: what was asked for is known."""


class Probe(FlowMatchEulerDiscreteScheduler):
    """A scheduler of one step, at a noise level of ours, that keeps what it is given."""

    at = 1.0
    state: Tensor
    velocity: Tensor

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """The one step, whatever is asked for."""
        self.sigmas = torch.tensor([self.at, 0.0], device=device)
        self.timesteps = self.config["num_train_timesteps"] * self.sigmas[:1]
        self.num_inference_steps, self._step_index, self._begin_index = 1, None, None

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **more: Any
    ) -> Any:
        """One step."""
        self.state, self.velocity = sample, model_output.detach()
        raise Stop


class Finish(Probe):
    """A scheduler whose one step ends on states of ours."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **more: Any
    ) -> Any:
        """One step."""
        return (self.state.to(sample),)


class Stock(Probe):
    """The stock scheduler, which ends a call as soon as its steps are set."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """The steps as they are asked for."""
        stock = FlowMatchEulerDiscreteScheduler.set_timesteps
        stock(self, num_inference_steps, device, sigmas, mu, timesteps)
        raise Stop


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
            self._run(x, LEVELS[0], texts, guided)
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
            return self._run(x, LEVELS[0], texts, False, kind="pt")
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


def measure(loop: Loop, texts: Sequence[Any], shape: tuple[int, ...], half: bool) -> Call:
    """How a pipeline calls its transformer without guidance, by probes.

    Args:
        loop: the pipeline's loop.
        texts: what ``encode_prompt`` returned for two prompts.
        shape: shape of one state.
        half: whether the network is in half precision.

    Raises:
        UserError: if probes disagree, or the call is none that a student can be called by.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 2, *shape, generator=generator).to(loop.device)
    x, other = drawn.to(loop.kind or torch.float32).float()
    low, high, middle = LEVELS
    first, second = loop.asked(x, low, texts, False), loop.asked(x, high, texts, False)
    third = loop.asked(other, middle, texts, False)
    kind = type(loop.transformer).__name__
    states = [n for n, v in first.items() if _is_state(v, x) and _is_state(third[n], other)]
    if len(states) != 1:
        raise UserError(
            f"the states are {_listed(states)} of the arguments of {kind}, expected one argument"
        )
    moved = [n for n in first if n not in states and not _same(first[n], second[n])]
    if len(moved) != 1 or not isinstance(first[moved[0]], Tensor):
        raise UserError(
            f"the time is {_listed(moved)} of the arguments of {kind}, expected one tensor"
        )
    state, time = states[0], moved[0]
    ends = [_number(asked[time], time, kind) for asked in (first, second, third)]
    scale = (ends[1] - ends[0]) / (high - low)
    shift = ends[0] - scale * low
    if abs(shift + scale * middle - ends[2]) > CLOSE * max(map(abs, ends)):
        raise UserError(
            f"{kind} is told the times {ends} at noise levels {LEVELS}, expected an affine map"
        )
    kept = str(loop.kind or torch.float32).removeprefix("torch.")
    told = (scale, shift, isinstance(first[state], list | tuple), kept)
    calls = [Call(state, time, *told, sign) for sign in (1, -1)]
    found = loop.velocity(x, low, texts, False)
    # The first probe's arguments, so that nothing but the sign is left open.
    made = as_state(loop.transformer(**first), x)
    size = float(found.float().abs().max())
    for call in calls:
        error = float((found.float() - call.sign * made.float()).abs().max())
        if error <= (HALF if half else CLOSE) * size:
            return call
    raise UserError(
        f"{type(loop.pipe).__name__} makes of what {kind} predicts another velocity without"
        " guidance, neither it nor its negative: such a student could not be called"
    )


def as_state(out: Any, x: Tensor) -> Tensor:
    """What a transformer returned, as states ``(B, ...)`` like ``x``.

    Raises:
        UserError: if it has another number of values.
    """
    out = out[0] if isinstance(out, list | tuple) else out.sample
    out = torch.stack(list(out)) if isinstance(out, list | tuple) else out
    if out.numel() != x.numel():
        raise UserError(
            f"the transformer returns shape {tuple(out.shape)} for states {tuple(x.shape)},"
            " expected as many values"
        )
    return out.reshape(x.shape)


def as_argument(x: Tensor, like: Any) -> Any:
    """States ``(B, ...)`` in the form of an argument that was seen."""
    if isinstance(like, list | tuple):
        return [row.to(own.dtype).reshape(own.shape) for row, own in zip(x, like, strict=True)]
    return x.to(like.dtype).reshape(like.shape)


def _is_state(value: Any, x: Tensor) -> bool:
    rows = value if isinstance(value, list | tuple) else None
    if rows is not None:
        fits = len(rows) == len(x) and all(isinstance(row, Tensor) for row in rows)
        return fits and all(_is_state(row[None], own[None]) for row, own in zip(rows, x))  # noqa: B905
    if not isinstance(value, Tensor) or value.numel() != x.numel() or len(value) != len(x):
        return False
    return bool(torch.equal(value.reshape(x.shape), x.to(value.dtype)))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _number(value: Tensor, name: str, kind: str) -> float:
    """The one time that a tensor tells of all rows."""
    if value.ndim < 1 or len(value) != 2 or float(value.max()) != float(value.min()):
        raise UserError(
            f"{name} of {kind} has shape {tuple(value.shape)} for 2 rows, expected a time per row"
        )
    return float(value.flatten()[0])


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"

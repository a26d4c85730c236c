r"""A user's own module as one of our networks, an average velocity ``u(x, s, t, cond)``.

.. math:: u(x, s, t, c) = \mathrm{velocity}\big(\mathrm{module}(y,\ \mathrm{time}(s),\ c
   \ [,\ Z\,(t - s,\ \sin \omega (t - s))])\big), \qquad Z = 0 \text{ at the start,}

with y, time and velocity of :mod:`bezierdistill.schedules`. As the *start time only* it is the
module as it is: u does not depend on t, so a student can learn one grid of knots, and every pass is
an Euler step of its owner's sampler. With a *second time* (:mod:`bezierdistill.networks.second`) it
can learn every interval; as Z starts at zero, it starts as the module's own velocity, exactly.

Nothing here is built from a file: the module is always given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.fields import HALVES
from bezierdistill.networks.given import AsIs, Given, map_tensors
from bezierdistill.networks.lora import add_lora, merged
from bezierdistill.networks.second import SecondTime, Widths
from bezierdistill.schedules import Schedule, check_prediction, velocity
from bezierdistill.settings import Prediction

Call = Callable[[Any, Tensor, Tensor, Any], Any]


@dataclass(frozen=True)
class OwnConfig:
    """What a card says of a user's own module; it cannot be built from this alone."""

    name: str
    """Its class."""
    prediction: Prediction
    """What it predicts; see :class:`~bezierdistill.Teacher`."""
    schedule: str
    """Its noise levels and times."""
    times: tuple[str, ...] = ()
    """The submodules to which the second time is added; none: the start time only."""
    lora: int = 0
    """Rank of the low-rank adapters that were trained; 0: all weights were."""
    kind: Literal["own"] = "own"
    """What tells it from our networks."""

    def build(self, shape: tuple[int, ...], seed: int, condition_size: int = 0) -> nn.Module:
        """Refused: a file cannot name the code of a module.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.name} is a module of your own, which no file can build")


@dataclass(frozen=True)
class Convention:
    """How a module is called, and what it makes.

    Args:
        prediction: what it predicts.
        schedule: its noise levels and times.
        call: ``call(module, y, time, cond)``; without it ``module(y, time)`` and, with a condition,
            ``module(y, time, cond)``, or ``module(y, time, **cond)`` of a dictionary.
        given: the form of its conditions.
    """

    prediction: Prediction
    schedule: Schedule
    call: Call | None = None
    given: Given = field(default_factory=AsIs)

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule)

    def ask(self, module: Any, y: Tensor, time: Tensor, cond: Any) -> Tensor:
        """What a module predicts of its own states ``(B, ...)`` and times ``(B,)``.

        Raises:
            UserError: if it returns several tensors, or another shape.
        """
        if self.call is not None:
            out = self.call(module, y, time, cond)
        elif cond is None:
            out = module(y, time)
        else:
            out = module(y, time, **cond) if isinstance(cond, Mapping) else module(y, time, cond)
        return _single(out, y)


class OwnNetwork(nn.Module):
    """``net(x, s, t, cond)`` around a module, or any callable.

    Args:
        module: the module.
        convention: how it is called.
        widths: the submodules to which the second time is added, by path, and their widths.
        owned: whether the module is part of this network, moved and trained with it; else it is
            left as it is, and states go to its device.
    """

    skips = True  # e.g. a label's embedding of a module that is trained without labels

    def __init__(
        self, module: Any, convention: Convention, widths: Widths | None = None, owned: bool = False
    ) -> None:
        super().__init__()
        self.convention = convention
        self.still: frozenset[str] = frozenset()
        module = plain(module)
        self._held = () if owned else (module,)
        if owned:
            self.inner = module
        self.second = SecondTime(module, widths) if widths else None
        self._casts_time = False
        self.rank = 0

    @property
    def module(self) -> Any:
        """The module itself."""
        return self._held[0] if self._held else self.inner

    @property
    def frozen(self) -> list[nn.Parameter]:
        """The parameters that are not trained: those that its owner froze; with adapters, all
        others of the module.
        """
        own = self.inner.named_parameters()
        if self.rank:
            return [parameter for name, parameter in own if ".lora_" not in name]
        return [parameter for name, parameter in own if name in self.still]

    def copy(self, widths: Widths | None = None) -> OwnNetwork:
        """A network of its own, in single precision, on the CPU; its module starts as this one.

        Parameters that do not require gradients stay as they are, unless none does.

        Raises:
            UserError: if it is no torch module that can be trained, copied and saved.
        """
        check_trainable(self.module)
        try:
            inner = copy.deepcopy(self.module).cpu().float()
        except Exception as error:  # of whatever else a module may hold
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"the module cannot be copied ({type(error).__name__}: {told}): expected nothing in"
                " it that copy.deepcopy refuses, such as a lock or a result of an earlier pass"
            ) from error
        named = dict(inner.named_parameters())
        still = {name for name, parameter in named.items() if not parameter.requires_grad}
        net = OwnNetwork(inner.requires_grad_(True), self.convention, widths, owned=True)
        net.still = frozenset(still) if len(still) < len(named) else frozenset()
        return net

    def add_lora(self, rank: int, targets: tuple[str, ...], seed: int) -> OwnNetwork:
        """Train low-rank adapters, and the second time, in the place of the module's weights."""
        if rank:
            add_lora(self.inner, rank, targets, seed)
        self.rank = rank
        return self

    def weights(self) -> dict[str, Tensor]:
        """The module's weights by its own names, adapters added to them."""
        return merged(self.module) if self.rank else dict(self.module.state_dict())

    def train(self, mode: bool = True) -> OwnNetwork:
        """Set the mode of what is ours; the module stays in evaluation mode, so that a student
        starts as its teacher, without draws of dropout that no seed names.
        """
        super().train(mode)
        if isinstance(self.module, nn.Module) and not self._held:
            self.module.eval()
        return self

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Average velocity ``(B, ...)`` of states between times ``s`` and ``t``, ``(B,)``."""
        wide = x.float() if x.dtype in HALVES else x
        given = self.convention.given(cond, len(x))

        def predict(y: Tensor, time: Tensor) -> Tensor:
            return self._asked(y, time, given)

        made = self.convention.prediction, self.convention.schedule
        if self.second is None:
            return velocity(predict, *made, wide, s.to(wide)).to(x)
        with self.second.told(t - s):
            return velocity(predict, *made, wide, s.to(wide)).to(x)

    def _asked(self, y: Tensor, time: Tensor, given: Any) -> Tensor:
        """What the module predicts, asked on its device and in its number type.

        Times stay in single precision where the module takes them so: half precision has too few
        digits for them.
        """
        device, kind = _place(self.module, y)
        state = y.to(device, kind)
        given = map_tensors(given, lambda part: _moved(part, device, kind))
        half = kind in HALVES
        moment = time.to(device, kind if self._casts_time or not half else torch.float32)
        with slow_path() if self.rank else nullcontext():  # which no compiler can look through
            try:
                out = self.convention.ask(self.module, state, moment, given)
            except RuntimeError:
                if moment.dtype == kind:
                    raise
                out = self.convention.ask(self.module, state, moment.to(kind), given)
                self._casts_time = True
        return out.to(y)


def plain(module: Any) -> Any:
    """A module without what compiles it or runs it on several devices, whose names it has not."""
    wrapped = nn.DataParallel | nn.parallel.DistributedDataParallel
    while True:
        if isinstance(module, wrapped):
            module = module.module
        elif isinstance(module, nn.Module) and hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def check_trainable(module: Any) -> None:
    """Whether a module can be trained as a student, and its state be kept as tensors.

    Raises:
        UserError: if it is no torch module, a script, or has parameters that are no real numbers or
            a state that is no tensor.
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"the teacher is a {type(module).__name__}, expected a torch module, which alone can be"
            " trained as a student"
        )
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise UserError(
                f"the module's {name} is {parameter.dtype}, expected real numbers, which alone can"
                " be trained (of complex ones: torch.view_as_real)"
            )
    for name, part in module.state_dict().items():
        if not isinstance(part, Tensor):
            raise UserError(
                f"the module's state has a {type(part).__name__} ({name}), expected tensors, which"
                " alone can be saved"
            )


@contextmanager
def slow_path() -> Iterator[None]:
    """In the block torch's own transformer layers run layer by layer; the fused path that they take
    where no gradient is asked reads weights and knows no adapters.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _place(module: Any, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Device and number type of a module's parameters; those of ``x`` if it has none."""
    found = module.parameters() if isinstance(module, nn.Module) else iter(())
    first = next((part for part in found if part.is_floating_point()), x)
    return first.device, first.dtype


def _moved(part: Tensor, device: torch.device, kind: torch.dtype) -> Tensor:
    return part.to(device, kind) if part.is_floating_point() else part.to(device)


def _single(out: Any, y: Tensor) -> Tensor:
    """The one tensor of what a module returned."""
    if not isinstance(out, Tensor):
        wrapped = getattr(out, "sample", None)
        parts = [wrapped] if isinstance(wrapped, Tensor) else list(out)
        if len(parts) != 1 or not isinstance(parts[0], Tensor):
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise UserError(
                f"the module returns {len(parts)} values ({kinds[:100]}), expected one tensor:"
                " choose it by call=lambda module, x, t, cond: module(x, t)[0]"
            )
        out = parts[0]
    if not out.is_floating_point():
        raise UserError(f"the module returns {out.dtype}, expected real numbers: choose by call=")
    if out.shape != y.shape:
        raise UserError(
            f"the module returns shape {tuple(out.shape)} for states of shape {tuple(y.shape)},"
            " expected the same: choose by call=, or check the order of its arguments"
        )
    return out

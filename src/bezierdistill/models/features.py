"""Features of states: what is compared of samples and real data in the place of the states.

``features(x, cond)`` gives groups ``(B, D_g)`` of states ``(B, ...)``. :class:`HiddenStates` asks a
teacher, :class:`~bezierdistill.models.patches.Patches` fixed filters, :class:`States` nobody,
:class:`Several` puts some of them side by side. Whoever compares them divides every group by the
mean distance of two real states in it, so that all weigh alike.

A teacher takes states as almost clean data, at a time close to 1. Of a map each chosen part gives
two groups, its means over 4×4 places, and mean and deviation over all of them; of tokens likewise;
of a vector itself.

Source: hidden states of the teacher that is distilled: arXiv 2605.07327; places and statistics:
arXiv 2602.04770.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.fields import NetworkField, as_found
from bezierdistill.networks.curve import CurveNetwork
from bezierdistill.networks.mlp import MLP
from bezierdistill.networks.own import OwnNetwork
from bezierdistill.networks.second import run_hooked
from bezierdistill.noise import Stream, noise

if TYPE_CHECKING:
    from bezierdistill.models.model import Model

TIMES = {"images": 0.95, "vectors": 0.99}  # which the teacher is told
GROUPS, PLACES = 4, 4
ROWS = 64  # of states on which the parts of a user's own module are found
LEAST = 1e-6

Groups = tuple[Tensor, ...]


class Features(Protocol):
    """Features of states."""

    @property
    def name(self) -> str:
        """What they are called."""
        ...

    @property
    def calls(self) -> int:
        """Network passes per row."""
        ...

    def __call__(self, x: Tensor, cond: Any = None) -> Groups:
        """Groups ``(B, D_g)`` of states ``(B, ...)``; gradients go through to the states."""
        ...


@dataclass(frozen=True)
class States:
    """The states themselves."""

    name: str = "states"
    calls: int = 0

    def __call__(self, x: Tensor, cond: Any = None) -> Groups:
        """See :class:`Features`."""
        return (x.flatten(1),)


@dataclass(frozen=True)
class Several:
    """Features side by side.

    Args:
        parts: the features.
    """

    parts: Sequence[Features]

    @property
    def name(self) -> str:
        """See :class:`Features`."""
        return ",".join(part.name for part in self.parts)

    @property
    def calls(self) -> int:
        """See :class:`Features`."""
        return sum(part.calls for part in self.parts)

    def __call__(self, x: Tensor, cond: Any = None) -> Groups:
        """See :class:`Features`."""
        return tuple(group for part in self.parts for group in part(x, cond))


class HiddenStates:
    """Hidden states of a teacher.

    It is asked without a condition; one that cannot be is given those of the states, a pipeline its
    first prompt for all. Gradients go to the states alone, and its module is left as it is found.

    Args:
        model: the teacher.
        names: paths of submodules of its network (of a user's own, of the module); without them the
            hidden layers of an MLP, the last two down blocks and the middle of a U-Net, blocks of a
            transformer; of a user's own those of the greatest widths, one of a shape.
        times: at which states are taken to be, in (0, 1), a pass each; without them 0.95 for images
            and 0.99 for vectors.

    Raises:
        UserError: if there is no such submodule, it does not run once a pass, or its output does
            not depend on the state; or if the teacher cannot be asked.
    """

    name = "teacher"

    def __init__(
        self, model: Model, names: Sequence[str] = (), times: Sequence[float] = ()
    ) -> None:
        kind = "images" if len(model.shape) == 3 else "vectors"
        self.model, self.times = model, tuple(times) or (TIMES[kind],)
        if not all(0 < time < 1 for time in self.times):
            raise UserError(f"times are {self.times}, expected some between 0 and 1")
        net: Any = model.net
        self.field = model.field
        self.prompted = hasattr(net, "bare")  # a pipeline: asked without guidance, by one prompt
        if self.prompted:
            net = net.bare()
            self.field = NetworkField(net)
        given = self.prompted or isinstance(net, OwnNetwork)
        self.module: Any = net.module if given else net
        if not isinstance(self.module, nn.Module):
            raise UserError(
                f"the teacher is a {type(self.module).__name__}, which has no parts with hidden"
                " states: expected a torch module"
            )
        self.conditional = _needs_condition(model)
        with as_found(net), torch.no_grad():
            own = names or given
            self.parts = self._checked(tuple(names)) if own else hidden_parts(net)

    @property
    def calls(self) -> int:
        """Network passes per row, counted in passes of the teacher's owner."""
        return len(self.times)

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the submodules whose outputs (of an MLP's layers, inputs) are compared."""
        return tuple(path for path, _ in self.parts)

    def __call__(self, x: Tensor, cond: Any = None) -> Groups:
        """See :class:`Features`."""
        groups: list[Tensor] = []
        for time in self.times:
            found = self._run(x, time, cond, self.parts)
            for path, _ in self.parts:
                if not _is_hidden(found.get(path, []), len(x)):
                    raise UserError(
                        f"features of {path!r}: expected a part that runs once a pass and makes a"
                        " tensor with a row per state"
                    )
                groups += [group.to(x) for group in _groups(found[path][0])]
        return tuple(groups)

    def _run(
        self, x: Tensor, time: float, cond: Any, parts: Sequence[tuple[str, bool]]
    ) -> dict[str, list[Any]]:
        """What submodules make of states, in the order in which they run."""
        trained = [part for part in self.module.parameters() if part.requires_grad]
        asked = cond if self.conditional else None
        if self.prompted:
            asked = torch.zeros(len(x), 1)
        try:
            for parameter in trained:  # gradients are of the states alone, and none are left in it
                parameter.requires_grad_(False)
            return _seen(self.module, parts, lambda: self.field(x, time, asked))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def _checked(self, names: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
        """Named submodules, or else those of the greatest widths, the last of every shape, in the
        order in which they run.
        """
        x, cond = _tried(self.model, self.conditional)
        if names:
            self.parts = tuple((name, False) for name in names)
            for name in names:
                self.parts = ((name, False),)
                if not any(float(group.std(0).max()) > LEAST for group in self(x, cond)):
                    raise UserError(
                        f"features of {name!r} do not depend on the state: expected another part"
                    )
            return tuple((name, False) for name in names)
        parts = [(name, False) for name, _ in self.module.named_modules() if name]
        outputs, last = self._run(x, self.times[0], cond, parts), dict[tuple[int, ...], str]()
        for name, outs in outputs.items():
            hidden = _is_hidden(outs, len(x)) and outs[0].shape != x.shape
            if hidden and float(_groups(outs[0])[0].std(0).max()) > LEAST:
                last[tuple(outs[0].shape[1:])] = name
        widest = sorted(last, key=lambda shape: shape[-1] if len(shape) == 2 else shape[0])
        chosen = {last[shape] for shape in widest[-GROUPS:]}
        if not chosen:
            raise UserError("the module has no parts with hidden states: name some of them")
        return tuple((name, False) for name in outputs if name in chosen)


def hidden_parts(net: Any, path: str = "") -> tuple[tuple[str, bool], ...]:
    """Of a network of ours the submodules whose outputs are hidden states, or whose inputs are
    (true), in the order in which they run.

    Raises:
        UserError: if it is another.
    """
    inner: Any = getattr(net, "inner", None)
    if isinstance(net, CurveNetwork):
        return hidden_parts(inner, f"{path}inner.")
    if isinstance(net, MLP):
        layers = [f"hidden.{k}" for k in range(len(net.hidden))]
        return _spread([(f"{path}{name}", True) for name in (*layers, "leave")])
    if hasattr(inner, "down_blocks"):
        count = len(inner.down_blocks)
        names = [f"down_blocks.{k}" for k in range(max(0, count - 2), count)]
        return tuple((f"{path}inner.{name}", False) for name in (*names, "mid_block"))
    if hasattr(inner, "transformer_blocks"):
        blocks = range(len(inner.transformer_blocks))
        return _spread([(f"{path}inner.transformer_blocks.{k}", False) for k in blocks])
    raise UserError(f"a {type(net).__name__} has no hidden states that are known: name some parts")


def _spread(parts: Sequence[tuple[str, bool]]) -> tuple[tuple[str, bool], ...]:
    """At most four of some parts, evenly, the last among them."""
    count = min(GROUPS, len(parts))
    return tuple(parts[len(parts) * (k + 1) // count - 1] for k in range(count))


def _needs_condition(model: Model) -> bool:
    """Whether a user's own module, which is tried, cannot be asked without its condition."""
    check: Callable[..., None] | None = getattr(model, "check", None)
    if check is None:
        return False
    try:
        check(guided=model.condition_size > 0)
    except UserError:
        if not model.condition_size:
            raise
        check()
        return True
    return False


def _tried(model: Model, conditional: bool) -> tuple[Tensor, Any]:
    """States to try a module on, real ones where it knows its data, and conditions it may need."""
    rows = max(2, min(ROWS, model.batch))
    x, data = noise(0, Stream.SEARCH, range(rows), model.shape), getattr(model, "data", None)
    if data is not None:
        count = data.count("valid")
        x = model.real(ROWS if count is None else min(ROWS, count))  # pyright: ignore[reportAttributeAccessIssue]
    return x, model.condition(range(len(x)), 0, Stream.SEARCH) if conditional else None


def _seen(
    module: nn.Module, parts: Sequence[tuple[str, bool]], run: Callable[[], object]
) -> dict[str, list[Any]]:
    """The outputs of parts of a module in a run, or their inputs."""
    found: dict[str, list[Any]] = {}

    def note(path: str, before: bool) -> Callable[..., None]:
        def hook(part: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            value = inputs[0] if before else out
            first = value[0] if isinstance(value, tuple) and value else value
            found.setdefault(path, []).append(first)

        return hook

    run_hooked(module, [(path, note(path, before)) for path, before in parts], run)
    return found


def _is_hidden(outs: list[Any], rows: int) -> bool:
    if len(outs) != 1 or not isinstance(outs[0], Tensor):
        return False
    out = outs[0]
    return out.is_floating_point() and out.ndim > 1 and len(out) == rows


def _groups(out: Tensor) -> list[Tensor]:
    """The groups of one map ``(B, C, H, W)``, of tokens ``(B, T, C)``, of vectors."""
    if out.ndim == 3:
        out = out.mT
        side = math.isqrt(out.shape[2])
        square = side * side == out.shape[2]
        out = out.unflatten(2, (side, side)) if square else out[..., None]
    if out.ndim != 4:
        return [out.float().flatten(1)]
    out = out.float()
    line = out.shape[3] == 1  # tokens that are no square: as many places along them
    most = (PLACES**2, 1) if line else (PLACES, PLACES)
    places = (min(most[0], out.shape[2]), min(most[1], out.shape[3]))
    pooled = functional.adaptive_avg_pool2d(out, places).flatten(1)
    if out.shape[2] * out.shape[3] == 1:
        return [pooled]
    variance, mean = torch.var_mean(out, (2, 3), correction=0)
    return [pooled, torch.cat([mean, (variance + LEAST).sqrt()], 1)]

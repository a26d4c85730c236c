r"""A second time for a network that knows one: where a step ends, beside where it starts.

To the output of the submodule that embeds the network's time, ``(B, width)``, is added

.. math:: Z\,(t - s,\ \sin \omega (t - s)), \qquad Z = 0 \text{ at first, and no bias,}

so that the network starts as it was for every t, and stays so where ``t = s``. Any submodule whose
output depends on the time will do; :class:`Probe` finds the one that feeds all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.fields import evaluating
from bezierdistill.networks.embeddings import interval_features, log_spaced

FREQUENCIES = 16
Ask = Callable[[Tensor, Tensor], object]  # runs a network on states and times of its own
Widths = Mapping[str, int]  # of the outputs of submodules, by path


class SecondTime(nn.Module):
    """The matrices Z of some submodules, and the hooks that add them.

    Args:
        module: the network.
        widths: the submodules by path, and the widths of their outputs.

    Raises:
        UserError: if there is no such submodule.
    """

    omega: Tensor

    def __init__(self, module: nn.Module, widths: Widths) -> None:
        super().__init__()
        self.register_buffer("omega", log_spaced(FREQUENCIES), persistent=False)
        self.times = tuple(widths)
        self.weights = nn.ParameterList()
        self._gap: Tensor | None = None
        for index, (path, width) in enumerate(widths.items()):
            self.weights.append(nn.Parameter(torch.zeros(width, 1 + FREQUENCIES)))
            submodule(module, path).register_forward_hook(_Add(self, index))

    def tensors(self) -> dict[str, Tensor]:
        """The matrices by the path of their submodules."""
        return dict(zip(self.times, self.weights, strict=True))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the matrices from :meth:`tensors`.

        Raises:
            UserError: if one has another shape.
        """
        for path, weight in self.tensors().items():
            if tensors[path].shape != weight.shape:
                got, wanted = tuple(tensors[path].shape), tuple(weight.shape)
                raise UserError(f"second time of {path} is {got}, expected {wanted}")
            weight.copy_(tensors[path])

    @contextmanager
    def told(self, gap: Tensor) -> Iterator[None]:
        """Add the lengths ``t - s`` ``(B,)`` of intervals in the passes of a block."""
        self._gap = gap
        try:
            yield
        finally:
            self._gap = None

    def add(self, index: int, out: Tensor) -> Tensor:
        """The output of a submodule with its second time."""
        if self._gap is None:
            raise UserError(
                f"{self.times[index]} runs outside of a pass, where no second time is known:"
                " expected --loop.checkpoint false, or another time="
            )
        weight = self.weights[index]
        more = interval_features(self._gap.to(weight), self.omega.to(weight)) @ weight.T
        if more.numel() != out.numel():
            raise UserError(
                f"the second time of {self.times[index]} is {tuple(more.shape)}, the output of that"
                f" part {tuple(out.shape)}: expected as many numbers"
            )
        return out + more.reshape(out.shape).to(out)


class _Add:
    """A hook; an object and not a closure, so that copies of the network have their own."""

    def __init__(self, second: SecondTime, index: int) -> None:
        self.second, self.index = second, index

    def __call__(self, module: nn.Module, inputs: object, out: Tensor) -> Tensor:
        return self.second.add(self.index, out)


def submodule(module: nn.Module, path: str) -> nn.Module:
    """A part of a module by its path, such as ``blocks.0.time``.

    Raises:
        UserError: if there is none.
    """
    try:
        return module.get_submodule(path)
    except AttributeError:
        near = ", ".join(name for name, _ in module.named_children())
        raise UserError(
            f"time is {path[:60]!r}, the module has no such part: expected a path below"
            f" {near[:200]}"
        ) from None


def outputs_of(
    module: nn.Module, paths: Iterable[str], run: Callable[[], object], moved: str = ""
) -> dict[str, list[Any]]:
    """The outputs of parts of a module in a run, in the order in which they came, with that of one
    part ``moved`` away from what it is.
    """
    found: dict[str, list[Any]] = {}

    def note(path: str) -> Callable[..., Any]:
        def hook(part: nn.Module, inputs: object, out: Any) -> Any:
            out = out + 1.0 if path == moved else out
            found.setdefault(path, []).append(out)
            return out

        return hook

    run_hooked(module, [(path, note(path)) for path in paths], run)
    return found


def run_hooked(
    module: nn.Module, notes: Iterable[tuple[str, Callable[..., Any]]], run: Callable[[], object]
) -> None:
    """Run with forward hooks on parts of a module, by path, which are gone at the end."""
    hooks = [submodule(module, path).register_forward_hook(note) for path, note in notes]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Probe:
    """Runs of a network that tell which of its parts depend on what.

    Args:
        module: the network.
        ask: runs it.
        states: two batches of states ``(B, ...)``.
        moments: two times ``(B,)``, its own.
    """

    module: nn.Module
    ask: Ask
    states: tuple[Tensor, Tensor]
    moments: tuple[Tensor, Tensor]

    @torch.no_grad()
    def outputs(
        self, paths: Iterable[str], state: int, moment: int, moved: str = ""
    ) -> dict[str, list[Any]]:
        """See :func:`outputs_of`; one of the states at one of the times."""
        with evaluating():
            x, t = self.states[state], self.moments[moment]
            return outputs_of(self.module, paths, lambda: self.ask(x, t), moved)

    def width(self, outputs: list[Any]) -> int | None:
        """Width of the one output of a part, a vector per row; None if it is anything else."""
        out = outputs[0] if len(outputs) == 1 else None
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.ndim < 2:
            return None
        size = math.prod(out.shape[1:])
        return size if len(out) == len(self.states[0]) and size == max(out.shape[1:]) else None

    def widths(self, paths: tuple[str, ...]) -> Widths:
        """The widths of parts that a user names.

        Raises:
            UserError: if there is no such part, it does not run once a pass and make a vector per
                row, or does not depend on the time.
        """
        first, later = (self.outputs(paths, 0, moment) for moment in (0, 1))
        found = {}
        for path in paths:
            width = self.width(first.get(path, []))
            if width is None:
                raise UserError(
                    f"time is {path!r}, which makes no vector per row once a pass: expected the"
                    " part that embeds the time"
                )
            if torch.equal(first[path][0], later[path][0]):
                raise UserError(
                    f"time is {path!r}, whose output does not depend on the time: expected the part"
                    " that embeds it"
                )
            found[path] = width
        return found

    def find(self) -> Widths:
        """The part that embeds the time: of those whose outputs depend on the time and not on the
        state, the last that feeds all that come after it.

        Raises:
            UserError: if there is none, or there are several that do not feed each other.
        """
        names = [name for name, _ in self.module.named_modules() if name]
        here, there, later = (self.outputs(names, *at) for at in ((0, 0), (1, 0), (0, 1)))
        alone = [
            name
            for name, outs in here.items()
            if self.width(outs)
            and torch.equal(outs[0], there[name][0])
            and not torch.equal(outs[0], later[name][0])
        ]
        chosen, order = None, [name for name in alone if not _inside(name, alone)]
        for k, name in enumerate(order):
            moved = self.outputs(order[k:], 0, 0, name)
            other = [n for n in order[k + 1 :] if torch.equal(moved[n][0], here[n][0])]
            if other and chosen is None:
                raise UserError(
                    f"the time is embedded by {name} and by {other[0]}, which do not feed each"
                    f" other: choose by student(time={name!r}), or name both"
                )
            if other:
                break
            chosen = name
        if chosen is None:
            raise UserError(
                "no part of the module embeds the time alone: name a part whose output depends on"
                " it by student(time=PATH), or expected student('start-time')"
            )
        return {chosen: self.width(here[chosen]) or 0}


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)

r"""Features of states: what a teacher's own module makes of them inside.

States are taken as almost clean data, at a time close to 1. Of every chosen submodule the output is
a group: maps are averaged over 4×4 places, sequences over their tokens. A group is divided by the
mean distance of two states in it, so that all weigh alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.fields import as_found
from bezierdistill.networks.second import outputs_of
from bezierdistill.noise import Stream, noise

if TYPE_CHECKING:
    from bezierdistill.models.teacher import Teacher

TIME, GROUPS, PLACES = 0.95, 4, 4
ROWS = 64  # of states on which groups are scaled
LEAST = 1e-6


class HiddenStates:
    """A teacher's hidden states of states ``(B, ...)`` as features ``(B, D)``.

    Args:
        teacher: the teacher; it is asked without a condition.
        names: paths of submodules; without them those of the greatest widths, one of a shape.
        time: at which states are taken to be, in (0, 1).

    Raises:
        UserError: if there is no such submodule, it does not run once a pass, or its output does
            not depend on the state; or if the teacher cannot be asked without a condition.
    """

    def __init__(self, teacher: Teacher, names: Sequence[str] = (), time: float = TIME) -> None:
        self.teacher, self.time, self.scales = teacher, time, {}
        x = noise(0, Stream.SEARCH, range(ROWS), teacher.shape)
        if teacher.data is not None:
            count = teacher.data.count("valid")
            x = teacher.real(ROWS if count is None else min(ROWS, count))
        teacher.check(guided=teacher.condition_size > 0)
        with as_found(teacher.net), torch.no_grad():
            self.names = tuple(names) or self._found(x)
            for name, value in self._groups(x, self.names).items():
                half = len(value) // 2
                apart = (value[:half] - value[half : 2 * half]).norm(dim=1).mean()
                if not float(apart) > LEAST:
                    raise UserError(
                        f"features of {name!r} do not depend on the state: expected another part"
                    )
                self.scales[name] = 1 / apart

    calls = 1  # of the module, whose passes are counted by its owner

    def __call__(self, x: Tensor) -> Tensor:
        """Features of states; gradients go through to them."""
        groups = self._groups(x, self.names)
        return torch.cat([groups[name] * self.scales[name].to(x) for name in self.names], 1)

    def _outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, list[Any]]:
        """What submodules make of states, in the order in which they run."""
        module = self.teacher.net.module
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:  # gradients are of the states alone, and none are left in it
                parameter.requires_grad_(False)
            return outputs_of(module, names, lambda: self.teacher(x, self.time))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def _groups(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        found = self._outputs(x, names)
        for name in names:
            if not _is_hidden(found.get(name, []), len(x)):
                raise UserError(
                    f"features of {name!r}: expected a part that runs once a pass and makes a"
                    " tensor with a row per state"
                )
        return {name: _pooled(found[name][0]).to(x) for name in names}

    def _found(self, x: Tensor) -> tuple[str, ...]:
        """The parts of the greatest widths whose outputs depend on the state, the last of every
        shape, in the order in which they run.
        """
        parts = [name for name, _ in self.teacher.net.module.named_modules() if name]
        outputs, last = self._outputs(x, parts), dict[tuple[int, ...], str]()
        for name, outs in outputs.items():
            hidden = _is_hidden(outs, len(x)) and outs[0].shape != x.shape
            if hidden and float(_pooled(outs[0]).std(0).max()) > LEAST:
                last[tuple(outs[0].shape[1:])] = name
        widest = sorted(last, key=lambda shape: shape[-1] if len(shape) == 2 else shape[0])
        chosen = {last[shape] for shape in widest[-GROUPS:]}
        if not chosen:
            raise UserError("the module has no parts with hidden states: name some of them")
        return tuple(name for name in outputs if name in chosen)


def _is_hidden(outs: list[Any], rows: int) -> bool:
    if len(outs) != 1 or not isinstance(outs[0], Tensor):
        return False
    out = outs[0]
    return out.is_floating_point() and out.ndim > 1 and len(out) == rows


def _pooled(out: Tensor) -> Tensor:
    if out.ndim == 4:
        places = (min(PLACES, out.shape[2]), min(PLACES, out.shape[3]))
        return functional.adaptive_avg_pool2d(out.float(), places).flatten(1)
    return out.float().mean(1) if out.ndim == 3 else out.float().flatten(1)

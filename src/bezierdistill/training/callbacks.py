"""What a training calls besides: objects of the user's with some of three methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.objects import find_object

if TYPE_CHECKING:
    from bezierdistill.training.loop import Trainer

METHODS = ("after_step", "after_save", "at_end")


class Callback:
    """What a training calls; any object with some of these methods will do.

    Every rank calls its own (``trainer.rank`` says which one it is). A training that is continued
    calls them for the steps that are left; what a callback keeps is not saved.
    """

    def after_step(self, trainer: Trainer, step: int, losses: Mapping[str, Tensor]) -> None:
        """After a step.

        Args:
            trainer: the trainer; ``trainer.plain`` has the networks by name, ``trainer.stage`` the
                name of this training.
            step: how many are done.
            losses: the mean loss of each network in this step, of this rank's rows, detached and on
                the device: reading a number waits for it.
        """

    def after_save(self, trainer: Trainer, path: Path) -> None:
        """After the state of the training was saved to a file."""

    def at_end(self, trainer: Trainer, net: nn.Module) -> None:
        """At the end, with the network of averaged weights on the CPU."""


class Callbacks:
    """The callbacks of a training.

    Args:
        names: settings that name them.

    Raises:
        UserError: if one has none of the methods.
    """

    def __init__(self, names: Sequence[Any]) -> None:
        self.all = [find_object(name, "callback", "returns a callback") for name in names]
        for name, one in zip(names, self.all, strict=True):
            if not any(callable(getattr(one, method, None)) for method in METHODS):
                raise UserError(
                    f"callback {name} is a {type(one).__name__} with none of the methods"
                    f" {', '.join(METHODS)}: expected one of them or more"
                )

    def has(self, method: str) -> bool:
        """Whether any of them has a method."""
        return any(hasattr(one, method) for one in self.all)

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of those that have it, in their order."""
        for one in self.all:
            if hasattr(one, method):
                getattr(one, method)(*arguments)

"""The weights that a pipeline's teachers and students share, beside which there may be adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from bezierdistill.networks.lora import put_adapter


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

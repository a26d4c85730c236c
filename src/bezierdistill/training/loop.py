"""The training loop: networks, one optimizer each, and a step that yields the losses one after the
other.

``step(nets, generator)`` is a Python generator of ``(name, loss)``. The loop updates the network
called ``name`` before it asks for the next loss, so one loop serves a single regression as well as
a student and its critics. With ``accumulate`` a step is run several times and updates come in the
last of them; each name may then be yielded once a step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.progress import progress
from bezierdistill.training.checkpoint import check_alike, load_state, save_state
from bezierdistill.training.ema import EMA
from bezierdistill.training.journal import Write, journal
from bezierdistill.training.ranks import of_all, open_fabric, part_of, rank_generator, whole
from bezierdistill.training.settings import LoopConfig

Step = Callable[[Mapping[str, nn.Module], torch.Generator], Iterator[tuple[str, Tensor]]]

SHOW_EVERY = 10  # steps between two moves of the progress bar
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Trainer:
    """Train networks together, log, save the whole state, and continue it exactly.

    Under torchrun every rank has a trainer, draws its own share of each batch, and gradients are
    averaged; the first rank writes.

    Args:
        nets: networks by name; the averaged weights of the first are the result.
        config: how weights are updated.
        folder: where ``state-STAGE.safetensors``, ``log.jsonl`` and TensorBoard's files go.
        stage: name of this stage in files and logs.
        rates: peak learning rates that differ from ``config.lr``, by name.

    Raises:
        UserError: if options do not go together.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        config: LoopConfig,
        folder: Path,
        stage: str,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self.folder, self.stage = config, folder, stage
        self.fabric = open_fabric(config.accelerator, config.precision, config.strategy)
        self.rank, self.ranks = self.fabric.global_rank, self.fabric.world_size
        self.plain = dict(nets)
        self.rates = {name: (rates or {}).get(name, config.lr) for name in nets}
        self.result = next(iter(nets))
        sharded = self.ranks > 1 and config.strategy == "fsdp"
        if sharded and (config.compile or config.checkpoint or config.channels_last):
            raise UserError(
                "strategy is fsdp with compile, checkpoint or channels_last, expected ddp with"
                " them, or fsdp without"
            )
        self.whole = deepcopy(nets[self.result]) if sharded else nets[self.result]
        self.nets: dict[str, Any] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.steppers: dict[str, Any] = {}
        for name, net in nets.items():
            self._set_up(name, net)
        self.ema = EMA(self.plain[self.result], config.ema)
        self.generator = torch.Generator()
        self.done = self.kept = 0

    def _set_up(self, name: str, net: nn.Module) -> None:
        net.train().requires_grad_(True)
        _prepare(net, self.config)
        used: Any = torch.compile(net) if self.config.compile else net
        wrapped = self.fabric.setup_module(used)
        self.optimizers[name] = torch.optim.AdamW(
            net.parameters(), self.rates[name], (0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.steppers[name] = self.fabric.setup_optimizers(self.optimizers[name])
        # The wrapper converts precision and synchronises ranks; where there is neither it only
        # costs time.
        self.nets[name] = (
            used if self.ranks == 1 and self.config.precision == "32-true" else wrapped
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.fabric.device

    @property
    def state_file(self) -> Path:
        """The saved state of this stage."""
        return self.folder / f"state-{self.stage}.safetensors"

    def share(self, batch: int, least: int = 1) -> int:
        """Rows of a batch that this rank draws.

        Raises:
            UserError: if ranks would draw unevenly, or fewer than ``least``.
        """
        if batch % self.ranks or batch // self.ranks < least:
            raise UserError(
                f"a batch of {batch} rows on {self.ranks} ranks, expected a multiple of"
                f" {self.ranks}, {least} or more on each"
            )
        return batch // self.ranks

    def fit(self, step: Step, steps: int, seed: int) -> nn.Module:
        """Take ``steps`` steps, on from the last saved state if there is one.

        Args:
            step: see the module docstring.
            steps: number of steps; the learning rate's schedule spans them.
            seed: seed of every draw.

        Returns:
            The first network with its averaged weights, on the CPU.

        Raises:
            UserError: if a loss or weight is not finite (the last saved state stays), or a saved
                state is damaged.
        """
        self.done = self.kept = self._restore(steps, seed) if self.state_file.exists() else 0
        if not self.done:
            self.generator = rank_generator(seed, self.rank, self.ranks)
        with progress(self.stage, steps) as advance, self._journal() as write:
            advance(self.done)
            self._run(step, steps, advance, write)
        net = self.whole
        net.load_state_dict(
            {name: whole(tensor) for name, tensor in self.ema.state().items()}, strict=False
        )
        return net.cpu().float().eval().requires_grad_(False)

    @contextmanager
    def _journal(self) -> Iterator[Write]:
        if self.rank:
            yield lambda step, losses, rate: None
        else:
            with journal(self.folder, self.stage, self.done) as write:
                yield write

    def _run(self, step: Step, steps: int, advance: Callable[[int], None], write: Write) -> None:
        mark, sums, parts, counted = time.perf_counter(), {}, self.config.accumulate, 0
        losses: dict[str, float] = {}
        for k in range(self.done, steps):
            for part in range(parts):
                last = part == parts - 1
                with self._synchronised(last):
                    for name, loss in step(self.nets, self.generator):
                        self._backward(name, loss if parts == 1 else loss / parts, fresh=part == 0)
                        if last:
                            self._update(name, k, steps)
                        sums[name] = sums.get(name, 0.0) + loss.detach() / parts
            self.ema.update(k)
            self.done, counted = k + 1, counted + 1
            if self.done % SHOW_EVERY == 0 or self.done == steps:
                advance(self.done - k // SHOW_EVERY * SHOW_EVERY)
            saves = self.done % self.config.save_every == 0 or self.done == steps
            logs = self.done % self.config.log_every == 0 or self.done == steps
            if saves or logs:
                losses = self._finite(sums, counted)
            if logs:
                write(self.done, losses, counted / (time.perf_counter() - mark))
                mark, sums, counted = time.perf_counter(), {}, 0
            if saves:
                self._save()

    @contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Gradients are averaged over ranks in the last of several batches whose gradients are
        added up.
        """
        with ExitStack() as stack:
            if self.ranks > 1 and not last:
                for net in self.nets.values():
                    stack.enter_context(self.fabric.no_backward_sync(net))
            yield

    def _backward(self, name: str, loss: Tensor, fresh: bool) -> None:
        if fresh:
            self.optimizers[name].zero_grad()
        self.fabric.backward(loss)

    def _update(self, name: str, k: int, steps: int) -> None:
        for group in self.optimizers[name].param_groups:
            group["lr"] = self.rates[name] * self._rate(k, steps)
        if self.config.clip:
            self.fabric.clip_gradients(
                self.nets[name], self.steppers[name], max_norm=self.config.clip
            )
        self.steppers[name].step()

    def _rate(self, k: int, steps: int) -> float:
        up = (k + 1) / max(1, self.config.warmup)
        down = (steps - k) / max(1.0, self.config.decay * steps)
        return min(1.0, up, down)

    def _finite(self, sums: Mapping[str, Tensor], count: int) -> dict[str, float]:
        """The mean losses since the last line of the log, over all ranks.

        Raises:
            UserError: if one is not finite, on every rank alike.
        """
        losses = {name: self._mean(total) / count for name, total in sums.items()}
        self._refuse("loss of", [name for name, loss in losses.items() if not math.isfinite(loss)])
        return losses

    def _mean(self, value: Tensor) -> float:
        return float(self.fabric.all_reduce(value, reduce_op="mean") if self.ranks > 1 else value)  # pyright: ignore[reportArgumentType]

    def _refuse(self, what: str, names: Sequence[str]) -> None:
        """Stop if there are names, of what is not finite."""
        if not names:
            return
        kept = (
            f"the state of step {self.kept} is kept in {self.state_file}"
            if self.kept
            else "no state was saved before"
        )
        raise UserError(
            f"{what} {', '.join(names[:3])} is not finite at step {self.done}: {kept}; "
            "start in another --out with a lower --loop.lr, or with --loop.clip 1"
        )

    def _save(self) -> None:
        parts = {f"ema/{name}": tensor for name, tensor in self.ema.state().items()}
        for name, net in self.plain.items():
            parts |= {f"net/{name}/{key}": value for key, value in net.state_dict().items()}
            for index, moments in self.optimizers[name].state_dict()["state"].items():
                parts |= {f"adam/{name}/{index}/{key}": value for key, value in moments.items()}
        tensors: dict[str, Tensor] = {}
        wrong = []
        for (
            name,
            part,
        ) in parts.items():  # one after the other: together they may not fit beside the training
            value = whole(part)
            wrong += [name] if value.is_floating_point() and not value.isfinite().all() else []
            if self.rank == 0:
                tensors[name] = value.cpu()
        self._refuse("tensor", wrong)
        tensors["generator"] = of_all(self.generator.get_state(), self.ranks, self.device)
        if self.rank == 0:
            save_state(self.state_file, tensors, self.done)
        self.fabric.barrier()
        self.kept = self.done

    def _restore(self, steps: int, seed: int) -> int:
        tensors, step = load_state(self.state_file, steps)
        check_alike(self.state_file, tensors, self._shapes(tensors))
        try:
            self._restore_draws(tensors["generator"], seed, step)
            self.ema.load(
                {
                    name: part_of(tensors[f"ema/{name}"], mean)
                    for name, mean in self.ema.state().items()
                }
            )
            for name, net in self.plain.items():
                own = net.state_dict()
                net.load_state_dict(
                    {
                        key: part_of(tensors[f"net/{name}/{key}"], value)
                        for key, value in own.items()
                    }
                )
                moments = {
                    index: {
                        key: _as_laid_out(tensors[f"adam/{name}/{index}/{key}"], parameter)
                        for key in MOMENTS
                    }
                    for index, parameter in enumerate(net.parameters())
                    if f"adam/{name}/{index}/step" in tensors
                }
                self.optimizers[name].load_state_dict(
                    {**self.optimizers[name].state_dict(), "state": moments}
                )
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"{self.state_file} is not a state of this run ({' '.join(str(error).split())}):"
                " remove it to start anew"
            ) from None
        return step

    def _shapes(self, given: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of a saved state; it may be of any number of ranks, and parameters
        that are not used have no moments.
        """
        shapes = {f"ema/{name}": tuple(tensor.shape) for name, tensor in self.ema.state().items()}
        shapes["generator"] = (
            *given.get("generator", torch.empty(1)).shape[:1],
            len(self.generator.get_state()),
        )
        for name, net in self.plain.items():
            shapes |= {
                f"net/{name}/{key}": tuple(value.shape) for key, value in net.state_dict().items()
            }
            for index, parameter in enumerate(net.parameters()):
                if f"adam/{name}/{index}/step" in given:
                    shapes |= {
                        f"adam/{name}/{index}/{key}": (
                            () if key == "step" else tuple(parameter.shape)
                        )
                        for key in MOMENTS
                    }
        return shapes

    def _restore_draws(self, generators: Tensor, seed: int, step: int) -> None:
        if len(generators) == self.ranks:
            self.generator.set_state(generators[self.rank].clone())
            return
        self.generator = rank_generator(seed, self.rank, self.ranks, step)
        if self.rank == 0:
            print(
                f"{self.stage}: {self.ranks} ranks go on where {len(generators)} stopped, with new"
                " draws",
                file=sys.stderr,
            )


def _as_laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a saved moment with its parameter's order in memory, which fused optimizers take
    for granted (channels-last).
    """
    if moment.shape != parameter.shape:
        return moment.clone()
    if hasattr(parameter, "full_tensor"):
        return part_of(moment, parameter)
    return torch.empty_like(
        parameter, dtype=moment.dtype, device="cpu", memory_format=torch.preserve_format
    ).copy_(moment)


def _prepare(net: nn.Module, config: LoopConfig) -> None:
    if config.channels_last:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if config.checkpoint:
        switch = getattr(net, "checkpointing", None)
        if not callable(switch):
            raise UserError(
                f"checkpoint is on and a {type(net).__name__} keeps all activations: expected a"
                " network of diffusers, or off"
            )
        switch()

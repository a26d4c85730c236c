"""The training loop: networks, one optimizer each, and an objective that yields the losses.

A network is updated by its loss before the next one is asked for, so one loop serves a single
regression as well as a student and its critic. With ``accumulate`` a step is run several times and
updates come in the last of them.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.objectives.base import Losses, Nets, Objective
from bezierdistill.progress import progress, stage
from bezierdistill.training import checkpoint, optimizers, ranks
from bezierdistill.training.activations import keep_fewer
from bezierdistill.training.callbacks import Callbacks
from bezierdistill.training.ema import EMA
from bezierdistill.training.journal import Write, check_loggers, journal
from bezierdistill.training.settings import LoopConfig
from bezierdistill.training.stopping import Stop, leave

Batches = Callable[[torch.Generator], Any]

SHOW_EVERY = 10  # steps between two moves of the progress bar


class Trainer:
    """Train networks together, log, save the whole state, and continue it exactly.

    Under torchrun every rank has a trainer, draws its own share of each batch, and gradients are
    averaged; the first rank writes.

    Args:
        nets: networks by name; the averaged weights of the first are the result. The parameters
            that a network names by an attribute ``frozen`` are left as they are, and not saved; one
            whose attribute ``skips`` is true may have others that get no gradient.
        config: how weights are updated.
        folder: where ``state-STAGE.safetensors``, ``log.jsonl`` and TensorBoard's files go.
        stage: name of this stage in files and logs.
        rates: peak learning rates that differ from ``config.lr``, by name; the rates of a given
            optimizer are scaled as they differ.

    Raises:
        UserError: if options do not go together.
    """

    def __init__(
        self,
        nets: Nets,
        config: LoopConfig,
        folder: str | Path,
        stage: str,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self.folder, self.stage = config, Path(folder), stage
        skips = any(getattr(net, "skips", False) for net in nets.values())
        self.fabric = ranks.open_fabric(
            config.accelerator, config.precision, config.strategy, skips
        )
        self.rank, self.ranks = self.fabric.global_rank, self.fabric.world_size
        self.plain = dict(nets)
        self.rates = dict.fromkeys(nets, config.lr) | dict(rates or {})
        if self.rates.keys() != nets.keys():
            raise UserError(f"rates are of {', '.join(self.rates)}, networks {', '.join(nets)}")
        check_loggers(config.loggers)
        self.callbacks = Callbacks(config.callbacks)
        self.result = next(iter(nets))
        sharded = self.ranks > 1 and config.strategy == "fsdp"
        if sharded and (config.compile or config.checkpoint or config.channels_last):
            raise UserError("strategy is fsdp, expected ddp for compile, checkpoint, channels_last")
        self.whole = deepcopy(nets[self.result]) if sharded else nets[self.result]
        self.nets: dict[str, Any] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.steppers: dict[str, Any] = {}
        self.peaks: dict[str, list[float]] = {}
        for name, net in nets.items():
            self._set_up(name, net)
        self.ema = EMA(self.plain[self.result], config.ema)
        self.generator = torch.Generator()
        self.done = self.kept = 0

    def _set_up(self, name: str, net: nn.Module) -> None:
        net.train().requires_grad_(True)
        for parameter in getattr(net, "frozen", ()):
            parameter.requires_grad_(False)
        if self.config.channels_last:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.config.checkpoint:
            keep_fewer(net)
        used: Any = _compiled(net) if self.config.compile else net
        wrapped = self.fabric.setup_module(used)
        parameters, given = checkpoint.trained_parameters(net), self.config.optimizer
        optimizer = optimizers.make_optimizer(given, parameters, self.rates[name])
        scale = 1.0 if given is None else self.rates[name] / self.config.lr
        self.peaks[name] = [scale * float(group["lr"]) for group in optimizer.param_groups]
        self.optimizers[name] = optimizer
        self.steppers[name] = self.fabric.setup_optimizers(optimizer)
        # The wrapper converts precision and synchronises ranks; without either it only costs time.
        plain = self.ranks == 1 and self.config.precision == "32-true"
        self.nets[name] = used if plain else wrapped

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.fabric.device

    @property
    def state_file(self) -> Path:
        """The saved state of this stage."""
        return self.folder / f"state-{self.stage}.safetensors"

    def left(self, steps: int) -> int:
        """How many of ``steps`` steps are left after the last saved state.

        Raises:
            UserError: if it is damaged, or beyond them.
        """
        if not self.state_file.exists():
            return steps
        return steps - checkpoint.load_state(self.state_file, steps)[1]

    def cost(self, objective: Objective, steps: int, batch: int) -> int:
        """Network passes of so many steps with batches of ``batch`` rows on all ranks."""
        return round(steps * batch * objective.cost * self.config.accumulate)

    def share(self, batch: int, least: int = 1) -> int:
        """Rows of a batch that this rank draws.

        Raises:
            UserError: if ranks would draw unevenly, or fewer than ``least``.
        """
        if batch % self.ranks or batch // self.ranks < least:
            given = f"a batch of {batch} rows on {self.ranks} ranks"
            raise UserError(f"{given}, expected a multiple of {self.ranks}, {least} or more each")
        return batch // self.ranks

    def fit(self, objective: Objective, batches: Batches, steps: int, seed: int) -> nn.Module:
        """Take ``steps`` steps, on from the last saved state if there is one.

        Args:
            objective: gives the losses of a step.
            batches: called with a generator, gives this rank's part of a batch, on :attr:`device`.
            steps: number of steps; the learning rate's schedule spans them.
            seed: seed of every draw.

        Returns:
            The first network with its averaged weights, on the CPU.

        Raises:
            UserError: if a loss or weight is not finite (the last saved state stays), or a saved
                state is damaged.
            KeyboardInterrupt: on Ctrl-C, after the state is saved.
            Ended: on another signal that asks to end, likewise.
        """
        self.generator = ranks.rank_generator(seed, self.rank, self.ranks)
        self.done = self.kept = self._restore(steps, seed) if self.state_file.exists() else 0
        show = progress(self.stage, steps, self.done)
        log: Any = nullcontext(lambda *entry: None)
        if self.rank == 0:
            log = journal(self.folder, self.stage, self.done, self.config.loggers)
        with show as advance, log as write, Stop(patient=self.ranks > 1) as stop:
            self._run(objective, batches, steps, advance, write, stop)
        if asked := self._agreed(stop.asked):
            self._tell(f"stopped at step {self.done} of {steps}, its state is in {self.state_file}")
            leave(asked)
        net = self.whole
        mean = {name: ranks.gather_full(tensor) for name, tensor in self.ema.state().items()}
        net.load_state_dict(mean, strict=False)
        net.cpu().float().eval().requires_grad_(False)
        self.callbacks.call("at_end", self, net)
        return net

    def _run(
        self,
        objective: Objective,
        batches: Batches,
        steps: int,
        advance: Callable[..., None],
        write: Write,
        stop: Stop,
    ) -> None:
        mark, since = time.perf_counter(), self.done
        sums: dict[str, Any] = defaultdict(float)
        counts = Counter[str]()
        watched = self.callbacks.has("after_step")
        for k in range(self.done, steps):
            step: dict[str, list[Tensor]] = defaultdict(list)
            for name, loss in self._step(objective, batches, k, steps):
                sums[name] += loss
                counts[name] += 1
                step[name].append(loss)
            self.done = k + 1
            last, shows = self.done == steps, self.done % SHOW_EVERY == 0
            self.ema.update(k, last)
            if shows or last:
                advance(
                    self.done - k // SHOW_EVERY * SHOW_EVERY, lambda losses=step: _shown(losses)
                )
            if watched:
                means = {name: sum(own) / len(own) for name, own in step.items()}
                self.callbacks.call("after_step", self, self.done, means)
            stops = (shows or self.ranks == 1) and bool(self._agreed(stop.asked))
            logs = last or self.done % self.config.log_every == 0
            saves = last or stops or self.done % self.config.save_every == 0
            losses = self._finite(sums, counts) if logs or saves else {}
            if logs:
                write(self.done, losses, (self.done - since) / (time.perf_counter() - mark))
                mark, since = time.perf_counter(), self.done
                sums.clear()
                counts.clear()
            if saves:
                self._save()
            if stops:
                break

    def _step(self, objective: Objective, batches: Batches, k: int, steps: int) -> Losses:
        """Take step k; yields its losses."""
        parts = self.config.accumulate
        for part in range(parts):
            last, seen = part == parts - 1, set[str]()
            with ExitStack() as stack:
                if self.ranks > 1 and not last:  # gradients are averaged in the last part
                    for net in self.nets.values():
                        stack.enter_context(self.fabric.no_backward_sync(net))
                batch = batches(self.generator)
                for name, loss in objective.losses(self.nets, batch, self.generator, k / steps):
                    if parts > 1 and name in seen:
                        given = f"accumulate is {parts} and {name} is updated more than once"
                        raise UserError(f"{given} per step, expected 1")
                    seen.add(name)
                    if part == 0:
                        self.optimizers[name].zero_grad()
                    self.fabric.backward(loss if parts == 1 else loss / parts)
                    if last:
                        self._update(name, k, steps)
                    yield name, loss.detach()

    def _agreed(self, asked: int) -> int:
        """The signal that any rank was sent, on all of them alike."""
        if self.ranks == 1:
            return asked
        sent = torch.tensor(float(asked), device=self.device)
        return int(self.fabric.all_reduce(sent, reduce_op="max"))  # pyright: ignore[reportArgumentType]

    def _tell(self, text: str) -> None:
        if self.rank == 0:
            print(f"{self.stage}: {text}", file=sys.stderr)

    def _update(self, name: str, k: int, steps: int) -> None:
        for group, peak in zip(self.optimizers[name].param_groups, self.peaks[name], strict=True):
            group["lr"] = peak * self._rate(k, steps)
        net, stepper = self.nets[name], self.steppers[name]
        if self.config.clip:
            self.fabric.clip_gradients(net, stepper, max_norm=self.config.clip)
        stepper.step()

    def _rate(self, k: int, steps: int) -> float:
        up = (k + 1) / max(1, min(self.config.warmup, steps // 10))
        down = (steps - k) / max(1.0, self.config.decay * steps)
        return min(1.0, up, down)

    def _finite(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, float]:
        """The mean losses since the last line of the log, over all ranks; refused on all alike."""
        losses: dict[str, float] = {}
        for name, total in sums.items():
            mean: Any = self.fabric.all_reduce(total, reduce_op="mean") if self.ranks > 1 else total
            losses[name] = float(mean) / counts[name]
        self._refuse("loss of", [name for name, loss in losses.items() if not math.isfinite(loss)])
        return losses

    def _refuse(self, what: str, names: Sequence[str]) -> None:
        """Stop if there are names, of what is not finite."""
        kept = f"the state of step {self.kept} is kept in {self.state_file}"
        if names:
            raise UserError(
                f"{what} {', '.join(names[:3])} is not finite at step {self.done}:"
                f" {kept if self.kept else 'no state was saved before'}; start in another --out"
                " with a lower --loop.lr, or with --loop.clip 1"
            )

    @property
    def _adams(self) -> checkpoint.Optimizers:
        """The optimizers of ours, whose state is checked by name and shape."""
        return self.optimizers if self.config.optimizer is None else {}

    @stage("saving")
    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        wrong: list[str] = []
        tables = {  # such as a mask of -inf: they are no result of the training
            f"net/{name}/{key}"
            for name, net in self.plain.items()
            for key, _ in net.named_buffers(remove_duplicate=False)
        }
        for name, part in checkpoint.live_tensors(self.plain, self._adams, self.ema).items():
            value = ranks.gather_full(part)  # one by one: all may not fit beside the training
            checked = value.is_floating_point() and name not in tables
            wrong += [name] if checked and not value.isfinite().all() else []
            if self.rank == 0:
                tensors[name] = value.cpu()
        self._refuse("tensor", wrong)
        for name, optimizer in self.optimizers.items() if not self._adams else ():
            for key, part in optimizers.pack(optimizer).items():
                value = ranks.gather_full(part)
                if self.rank == 0:
                    tensors[f"optimizer/{name}/{key}"] = value.cpu()
        tensors["generator"] = ranks.all_gather(self.generator.get_state(), self.ranks, self.device)
        if self.rank == 0:
            checkpoint.save_state(self.state_file, tensors, self.done)
        self.fabric.barrier()
        self.kept = self.done
        self.callbacks.call("after_save", self, self.state_file)

    @torch.no_grad()
    def _restore(self, steps: int, seed: int) -> int:
        saved, step = checkpoint.load_state(self.state_file, steps)
        given = {name: f"optimizer/{name}/" for name in self.optimizers if not self._adams}
        packed = {
            name: {k.removeprefix(start): saved.pop(k) for k in [*saved] if k.startswith(start)}
            for name, start in given.items()
        }
        checkpoint.add_moments(self.plain, self._adams, saved)
        live = checkpoint.live_tensors(self.plain, self._adams, self.ema)
        own = self.generator.get_state()
        generators = saved.get("generator", own[None])
        drawn = own.new_empty(*generators.shape[:1], len(own))  # of any number of ranks
        checkpoint.check_alike(self.state_file, saved, live | {"generator": drawn})
        try:
            found = {name: optimizers.unpack(self.optimizers[name], packed[name]) for name in given}
            if len(generators) == self.ranks:
                self.generator.set_state(generators[self.rank].clone())
            for name, state in found.items():
                optimizers.restore(self.optimizers[name], state)
        except (RuntimeError, ValueError) as error:
            told = f"{self.state_file} is not a state of this run ({error})"
            raise UserError(f"{told}: remove it to start again") from None
        if len(generators) != self.ranks:
            self.generator = ranks.rank_generator(seed, self.rank, self.ranks, step)
            self._tell(f"{self.ranks} ranks go on where {len(generators)} stopped, with new draws")
        for name, tensor in live.items():
            tensor.copy_(ranks.part_of(saved[name], tensor))
        return step


def _compiled(net: nn.Module) -> Any:
    """A network compiled, its hooks included.

    Torch takes the code that it has of a module's class for every module of the class, whether it
    has hooks or not; a second time is a hook.
    """
    guards: Any = torch._dynamo.config
    if guards.skip_nnmodule_hook_guards:
        guards.skip_nnmodule_hook_guards = False
        torch.compiler.reset()  # what was compiled before looks at no hooks
    return torch.compile(net)


def _shown(losses: Mapping[str, list[Tensor]]) -> str:
    """Losses of a step, by network if there are several."""
    told = {name: f"{float(own[-1]):.4g}" for name, own in losses.items()}
    return f"loss {', '.join([*told.values()] if len(told) == 1 else map(' '.join, told.items()))}"

"""The training loop: networks, one optimizer each, and a step that yields the losses one after the other.

``step(nets, generator)`` is a Python generator of ``(name, loss)``. The loop updates the network called ``name`` before it asks for the
next loss, so one loop serves a single regression as well as a student and its critics. With ``accumulate`` a step is run several times and
updates come in the last of them; each name may then be yielded once a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor, nn

from bezierdistill.files import read_tensors, write_tensors
from bezierdistill.progress import progress
from bezierdistill.training.config import LoopConfig, Precision
from bezierdistill.training.ema import EMA

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Step = Callable[[Mapping[str, nn.Module], torch.Generator], Iterator[tuple[str, Tensor]]]

SHOW_EVERY = 10  # steps between two moves of the progress bar


def open_fabric(accelerator: str, precision: Precision = "32-true") -> Fabric:
    """Lightning Fabric on one device.

    Raises:
        ValueError: if there is no such accelerator on this machine.
    """
    from lightning_fabric import Fabric  # imported here: it loads the compiler, seconds that only training needs

    try:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"accelerator {accelerator!r} with precision {precision!r} cannot be used here: {error}") from None


class Trainer:
    """Train networks together, log, save the whole state, and continue it exactly.

    Args:
        nets: networks by name; the averaged weights of the first are the result.
        config: how weights are updated.
        folder: where ``state-STAGE.safetensors``, ``log.jsonl`` and TensorBoard's files go.
        stage: name of this stage in files and logs.
        rates: peak learning rates that differ from ``config.lr``, by name.
    """

    def __init__(
        self, nets: Mapping[str, nn.Module], config: LoopConfig, folder: Path, stage: str, rates: Mapping[str, float] | None = None
    ) -> None:
        self.config, self.folder, self.stage = config, folder, stage
        self.fabric = open_fabric(config.accelerator, config.precision)
        self.plain = dict(nets)
        self.rates = {name: (rates or {}).get(name, config.lr) for name in nets}
        self.nets: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}
        for name, net in nets.items():
            net.train().requires_grad_(True)
            _prepare(net, config)
            adamw = torch.optim.AdamW(net.parameters(), lr=self.rates[name], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
            used: Any = torch.compile(net) if config.compile else net
            wrapped, self.optimizers[name] = self.fabric.setup(used, adamw)
            # The wrapper converts precision and synchronises ranks; where there is neither it only costs time.
            self.nets[name] = used if self.fabric.world_size == 1 and config.precision == "32-true" else wrapped
        self.result = next(iter(nets))
        self.ema = EMA(self.plain[self.result], config.ema)
        self.generator = torch.Generator()

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.fabric.device

    @property
    def state_file(self) -> Path:
        """The saved state of this stage."""
        return self.folder / f"state-{self.stage}.safetensors"

    def fit(self, step: Step, steps: int, seed: int) -> nn.Module:
        """Take ``steps`` steps, from the last saved state on if there is one, and return the first network with its averaged weights, on the CPU.

        Args:
            step: see the module docstring.
            steps: number of steps; the learning rate's schedule spans them.
            seed: seed of every draw.

        Raises:
            ValueError: if a loss is not finite (the last saved state stays), or a saved state is damaged.
        """
        self.generator.manual_seed(seed)
        first = self._restore() if self.state_file.exists() else 0
        self.folder.mkdir(parents=True, exist_ok=True)
        from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a second

        with (
            progress(self.stage, steps) as advance,
            open(self.folder / "log.jsonl", "a") as log,
            SummaryWriter(str(self.folder / "tensorboard")) as board,
        ):
            advance(first)
            self._run(step, first, steps, advance, log, board)
        net = self.plain[self.result]
        net.load_state_dict(self.ema.state(), strict=False)
        return net.cpu().float().eval().requires_grad_(False)

    def _run(self, step: Step, first: int, steps: int, advance: Callable[[int], None], log: TextIO, board: Any) -> None:
        mark, sums, parts = time.perf_counter(), {}, self.config.accumulate
        for k in range(first, steps):
            for part in range(parts):
                for name, loss in step(self.nets, self.generator):
                    self._backward(name, loss if parts == 1 else loss / parts, fresh=part == 0)
                    if part == parts - 1:
                        self._update(name, k, steps)
                    sums[name] = sums.get(name, 0.0) + loss.detach() / parts
            self.ema.update(k)
            done = k + 1
            if done % SHOW_EVERY == 0 or done == steps:
                advance(done - k // SHOW_EVERY * SHOW_EVERY)
            if done % self.config.log_every == 0 or done == steps:
                self._log(sums, done, first, mark, log, board)
                mark, sums = time.perf_counter(), {}
            if done % self.config.save_every == 0 or done == steps:
                self._save(done)

    def _backward(self, name: str, loss: Tensor, fresh: bool) -> None:
        if fresh:
            self.optimizers[name].zero_grad()
        self.fabric.backward(loss)

    def _update(self, name: str, k: int, steps: int) -> None:
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self.rates[name] * self._rate(k, steps)
        if self.config.clip:
            self.fabric.clip_gradients(self.nets[name], optimizer, max_norm=self.config.clip)
        optimizer.step()

    def _rate(self, k: int, steps: int) -> float:
        up = (k + 1) / max(1, self.config.warmup)
        down = (steps - k) / max(1.0, self.config.decay * steps)
        return min(1.0, up, down)

    def _log(self, sums: dict[str, Tensor], done: int, first: int, mark: float, log: TextIO, board: Any) -> None:
        count = done - max(first, (done - 1) // self.config.log_every * self.config.log_every)
        losses = {name: float(total) / count for name, total in sums.items()}
        bad = [name for name, loss in losses.items() if not abs(loss) < float("inf")]
        if bad:
            raise ValueError(f"loss of {', '.join(bad)} is not finite at step {done}: lower --loop.lr, or set --loop.clip 1")
        rate = count / (time.perf_counter() - mark)
        log.write(json.dumps({"stage": self.stage, "step": done, "loss": losses, "steps_per_second": round(rate, 2)}) + "\n")
        log.flush()
        for name, loss in losses.items():
            board.add_scalar(f"{self.stage}/{name}", loss, done)

    def _save(self, done: int) -> None:
        tensors = {f"ema/{name}": tensor for name, tensor in self.ema.state().items()}
        tensors["generator"] = self.generator.get_state()
        for name, net in self.plain.items():
            tensors |= {f"net/{name}/{key}": value for key, value in net.state_dict().items()}
            for index, moments in self.optimizers[name].state_dict()["state"].items():
                tensors |= {f"adam/{name}/{index}/{key}": value for key, value in moments.items()}
        write_tensors(self.state_file, tensors, {"step": str(done)})

    def _restore(self) -> int:
        tensors, metadata = read_tensors(self.state_file)
        try:
            self.ema.load({key[4:]: value for key, value in tensors.items() if key.startswith("ema/")})
            self.generator.set_state(tensors["generator"].clone())
            for name, net in self.plain.items():
                prefix = f"net/{name}/"
                net.load_state_dict({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})
                state = self.optimizers[name].state_dict()
                parameters = list(net.parameters())
                moments: dict[int, dict[str, Tensor]] = {}
                for key, value in tensors.items():
                    if key.startswith(f"adam/{name}/"):
                        _, _, index, moment = key.split("/")
                        moments.setdefault(int(index), {})[moment] = _as_laid_out(value, parameters[int(index)])
                self.optimizers[name].load_state_dict({**state, "state": moments})
            return int(metadata["step"])
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.state_file} is not a state of this run ({' '.join(str(error).split())}): remove it to start anew"
            ) from None


def _as_laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a saved moment with its parameter's order in memory, which fused optimizers take for granted (channels-last)."""
    if moment.shape != parameter.shape:
        return moment.clone()
    return torch.empty_like(parameter, dtype=moment.dtype, device="cpu", memory_format=torch.preserve_format).copy_(moment)


def _prepare(net: nn.Module, config: LoopConfig) -> None:
    if config.channels_last:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if config.checkpoint:
        switch = getattr(net, "checkpointing", None)
        if not callable(switch):
            raise ValueError(f"checkpoint is on and a {type(net).__name__} keeps all activations: expected a network of diffusers, or off")
        switch()

"""The saved state of a stage of training: its tensors, step and digest in one safetensors file.

Tensors are whole, so a state continues on any number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.files import read_tensors, write_tensors
from bezierdistill.objectives.base import Nets
from bezierdistill.training.ema import EMA

Optimizers = Mapping[str, torch.optim.Optimizer]


def save_state(path: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Write a state atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry of metadata: of several the order on disk would vary.
    write_tensors(path, ready, {"state": f"{step} {_digest(ready)}"})


def load_state(path: Path, steps: int) -> tuple[dict[str, Tensor], int]:
    """The tensors of a state and its step.

    Raises:
        UserError: if it is damaged, or beyond the ``steps`` of the stage.
    """
    tensors, metadata = read_tensors(path)
    step, _, digest = metadata.get("state", "").partition(" ")
    if digest != _digest(tensors):
        raise UserError(f"{path} differs from its digest: remove it to start again")
    if not (step.isascii() and step.isdigit() and int(step) <= steps):
        given = f"{path} is the state of step {step[:20]!r}"
        raise UserError(f"{given}, expected 0 to {steps}: remove it to start again")
    return tensors, int(step)


def check_alike(path: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a state that is not of this run, before anything of it is used.

    Args:
        path: its file, for the message.
        given: its tensors.
        wanted: those that the run needs; their values do not matter.

    Raises:
        UserError: if one is missing, of another shape or type, or one too many.
    """
    for name in sorted(given.keys() | wanted.keys()):
        got, expected = _kind(given.get(name)), _kind(wanted.get(name))
        if got != expected:
            why = f"{name} is {got}, expected {expected}"
            raise UserError(f"{path} is not a state of this run ({why}): remove it to start again")


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def trained_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that are not frozen."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def live_tensors(nets: Nets, adams: Optimizers, ema: EMA) -> dict[str, Tensor]:
    """Every tensor of a training but its generator, and but what is frozen and what given
    optimizers keep; what is copied into them is restored.
    """
    found = {f"ema/{name}": tensor for name, tensor in ema.state().items()}
    for name, net in nets.items():
        pairs = net.named_parameters(remove_duplicate=False)
        frozen = {key for key, parameter in pairs if not parameter.requires_grad}
        state = net.state_dict()
        found |= {f"net/{name}/{key}": state[key] for key in state if key not in frozen}
        for index, parameter in enumerate(trained_parameters(net)) if name in adams else ():
            moments = adams[name].state.get(parameter, {})
            found |= {f"adam/{name}/{index}/{key}": value for key, value in moments.items()}
    return found


def add_moments(nets: Nets, adams: Optimizers, given: Mapping[str, Tensor]) -> None:
    """Have AdamW keep the moments that a state has, in memory as their parameters lie."""
    for name, optimizer in adams.items():
        for index, parameter in enumerate(trained_parameters(nets[name])):
            if f"adam/{name}/{index}/step" in given:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": step, **moments}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    return found.hexdigest()

"""Schedulers that read a pipeline's loop: one that keeps what it is given and stops, one that ends
on states of ours, and the stock one, stopped as soon as its steps are set.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor


class Stop(Exception):  # noqa: N818
    """Ends a pipeline's call: what was asked for is known."""


class Probe(FlowMatchEulerDiscreteScheduler):
    """A scheduler of one step, at a noise level of ours, that keeps what it is given."""

    at = 1.0
    state: Tensor
    velocity: Tensor

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """The one step, whatever is asked for."""
        self.sigmas = torch.tensor([self.at, 0.0], device=device)
        self.timesteps = self.config["num_train_timesteps"] * self.sigmas[:1]
        self.num_inference_steps, self._step_index, self._begin_index = 1, None, None

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **more: Any
    ) -> Any:
        """One step."""
        self.state, self.velocity = sample, model_output.detach()
        raise Stop


class Finish(Probe):
    """A scheduler whose one step ends on states of ours."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **more: Any
    ) -> Any:
        """One step."""
        return (self.state.to(sample),)


class Stock(Probe):
    """The stock scheduler, which ends a call as soon as its steps are set."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """The steps as they are asked for."""
        stock = FlowMatchEulerDiscreteScheduler.set_timesteps
        stock(self, num_inference_steps, device, sigmas, mu, timesteps)
        raise Stop

r"""A student as the two components of a pipeline of diffusers: a network, and a scheduler that
jumps from knot to knot.

.. math:: x_t = x_s + (t - s)\, u(x_s, s, t, c)

diffusers' own pipeline for few-step models, ``ConsistencyModelPipeline``, runs them as they are:
noise of standard deviation one, one pass per time step, labels, kinds of output. Its schedulers
would space few steps badly (two steps of flow matching would start at sigma 1 and 0.001); ours has
the knots that the student was trained for. A time step here is a row ``[s, t]``: a flow map needs
both times.

Importing this module is what lets ``DiffusionPipeline.from_pretrained`` find the components, as
diffusers imports nothing that a folder names; or it runs the same code from the folder's
``pipeline.py``, where it is told to (``custom_pipeline``, ``trust_remote_code``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.networks.config import read_network
from bezierdistill.solvers import time_grid

VERSION = 2  # of the settings of an exported network


# When it loads a component, diffusers looks up ModelMixin and SchedulerMixin in the component's
# module: here.
class FlowMapUNet(ModelMixin, ConfigMixin):
    """A network ``u(x, s, t, cond)`` of ours, called as diffusers calls a U-Net.

    Args:
        network: its settings, as in a model folder's card.
        sample_size: side of its square images.
        in_channels: their channels.
        num_class_embeds: number of classes; None if it takes no labels.
        guidance_scale: that of every image, for a student that takes it as an input.
        version: of these settings.

    Raises:
        UserError: on settings of no network, or of another version.
    """

    @register_to_config
    def __init__(
        self,
        network: Mapping[str, Any],
        sample_size: int,
        in_channels: int,
        num_class_embeds: int | None = None,
        guidance_scale: float | None = None,
        version: int = 1,
    ) -> None:
        super().__init__()
        if version != VERSION:
            got = f"the pipeline has version {version}, expected {VERSION}"
            raise UserError(f"{got}: another version of bezierdistill wrote it, export it again")
        self.classes, self.guidance_scale = num_class_embeds or 0, guidance_scale
        size = self.classes + (guidance_scale is not None)
        shape = (in_channels, sample_size, sample_size)
        self.net = read_network(network).build(shape, 0, size)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Average velocity of images between two times.

        Args:
            sample: images ``(B, C, N, N)``.
            timestep: ``[s, t]``, as :class:`FlowMapScheduler` has them.
            class_labels: ``(B,)`` whole numbers from 0; the number of classes itself, and None,
                stand for no label.
            return_dict: whether to wrap the result.

        Raises:
            UserError: on labels of other classes, or a time step that is no pair.
        """
        if not isinstance(timestep, Tensor) or timestep.shape != (2,):
            expected = "a pair [s, t] of FlowMapScheduler: do not swap the scheduler"
            raise UserError(f"timestep is {timestep}, expected {expected}")
        s, t = (time.to(sample).expand(len(sample)) for time in timestep)
        u = self.net(sample, s, t, self._condition(sample, class_labels))
        return UNet2DOutput(sample=u) if return_dict else (u,)

    def _condition(self, sample: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            labels = sample.new_full((len(sample),), self.classes, dtype=torch.long)
        elif not self.classes:
            raise UserError("class_labels are given, the student has no classes: expected None")
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high <= self.classes:
            expected = f"0 to {self.classes - 1}"
            raise UserError(f"class_labels run from {low} to {high}, expected {expected}")
        rows = functional.one_hot(labels.long(), self.classes + 1)[:, : self.classes].to(sample)
        if self.guidance_scale is not None:
            rows = functional.pad(rows, (0, 1), value=self.guidance_scale)
        return rows if rows.shape[1] else None


class FlowMapScheduler(SchedulerMixin, ConfigMixin):
    """Jumps between the knots that a student was trained for.

    Args:
        knots: rising times from 0 to 1 by the number of passes, as text; other numbers of passes
            are evenly spaced.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, knots: Mapping[str, Sequence[float]] | None = None) -> None:
        self.set_timesteps(1)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the sampler with a number of passes: ``timesteps`` become its rows ``[s, t]``,
        ``sigmas`` the noise levels ``1 - s``.

        Raises:
            UserError: unless the number is 1 or more; or on time steps of the caller's.
        """
        if timesteps is not None or num_inference_steps is None:
            expected = "num_inference_steps, its number of passes"
            raise UserError(f"the student has knots of its own, no timesteps: expected {expected}")
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {num_inference_steps}, expected 1 or more")
        self.num_inference_steps = num_inference_steps
        known = self.config["knots"] or {}
        knots = known.get(str(num_inference_steps)) or time_grid(num_inference_steps)
        self.timesteps = torch.tensor(list(pairwise(knots)), dtype=torch.float32, device=device)
        self.sigmas = torch.tensor([1 - knot for knot in knots], dtype=torch.float32, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """The images as they are."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Jump ``x + (t - s) u`` from images ``sample`` with the network's output u."""
        s, t = timestep.to(sample)
        moved = torch.addcmul(sample, t - s, model_output)
        return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)

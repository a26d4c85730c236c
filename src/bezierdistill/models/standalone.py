r"""How to sample a student that is a user's own module without this library: a few lines of torch.

Every pass of a sampler with fixed knots is linear in the state and in what the module predicts,

.. math:: x' = p\, x + q\, \mathrm{module}(\mathrm{scale} \cdot x,\ \mathrm{time}),

with numbers that depend on the knots alone, so that no schedule and no conversion is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch

from bezierdistill.knots import Knots
from bezierdistill.models.model import Model
from bezierdistill.networks.given import Table
from bezierdistill.networks.own import Convention, OwnConfig, OwnNetwork
from bezierdistill.schedules import velocity
from bezierdistill.solvers import time_grid

EVEN = (1, 2, 4, 8, 16, 32)
SECOND = """
second, gap = load_file("second-time.safetensors"), [0.0]
omega = math.pi / 4 * 64 ** torch.linspace(0, 1, 16)
for path, Z in second.items():  # where a step ends, added to what embeds the time

    def add(part, inputs, out, Z=Z):
        length = torch.cat([torch.tensor(gap), (gap[0] * omega).sin()])
        return out + (Z @ length).reshape(1, *out.shape[1:]).to(out)

    module.get_submodule(path).register_forward_hook(add)
"""


def step_numbers(convention: Convention, s: float, t: float) -> tuple[float, float, float, float]:
    """``scale``, ``time``, ``p`` and ``q`` of the pass from time ``s`` to ``t``."""
    at = torch.tensor([s], dtype=torch.float64)
    alpha, sigma, time = convention.schedule.at(at)

    def slope(state: float, predicted: float) -> float:
        x = torch.full((1, 1), state, dtype=torch.float64)
        out = torch.full((1, 1), predicted, dtype=torch.float64)
        made = velocity(lambda y, _: out, convention.prediction, convention.schedule, x, at)
        return float(made)

    p, q = 1 + (t - s) * slope(1.0, 0.0), (t - s) * slope(0.0, 1.0)
    return float(alpha + sigma), float(time), p, q


def standalone(model: Model) -> str:
    """Python code that samples a student of a user's own module with torch and safetensors alone.

    It needs ``module``, built as its owner does, and ``call`` where the teacher was given one.
    """
    net, config = model.net, model.network
    assert isinstance(net, OwnNetwork)
    assert isinstance(config, OwnConfig)
    made = net.convention
    knots = model.knots or {passes: time_grid(passes) for passes in EVEN}  # of a flow: Euler steps
    lines = [f"    {passes}: {_steps(made, times)}," for passes, times in sorted(knots.items())]
    ask = "call(module, scale * x, time, cond)"
    if made.call is None:
        dictionary = isinstance(made.given, Table) and isinstance(made.given.values, Mapping)
        given = "**cond" if dictionary else "cond"
        ask = f"module(scale * x, time) if cond is None else module(scale * x, time, {given})"
    told = "        gap[0] = length\n" if config.times else ""
    second = SECOND if config.times else ""
    return f"""import math

import torch
from safetensors.torch import load_file

# module = ...  # yours ({config.name}), as you build it{_of_call(made)}
module.load_state_dict(load_file("model.safetensors"))
module.eval()
{second}
STEPS = {{  # by the number of passes: scale of the state, time, p, q, length
{chr(10).join(lines)}
}}


@torch.no_grad()
def sample(x, passes, cond=None):  # x: standard normal noise (B, ...)
    for scale, time, p, q, length in STEPS[passes]:
        time = x.new_full((len(x),), time)
{told}        out = {ask}
        out = out[0] if isinstance(out, tuple) else getattr(out, "sample", out)
        x = p * x + q * out
    return x  # original units: x * scale + shift of "scaling" in model.json
"""


def _of_call(made: Convention) -> str:
    return "" if made.call is None else "\n# call = ...  # as you gave it to bezierdistill.Teacher"


def _steps(made: Convention, times: Knots) -> str:
    steps = [(*step_numbers(made, s, t), t - s) for s, t in pairwise(times)]
    return "[" + ", ".join(f"({', '.join(map(repr, step))})" for step in steps) + "]"

r"""Distances between the distribution of samples x and that of real states y, from a batch of each.

All have gradients of the size of the energy distance's, so that weights between them mean
something; they move each sample by what it sees of y, against what it sees of the other samples:

* ``energy``: :math:`2E|x-y| - E|x-x'| - E|y-y'|`, unbiased, the last over N / 2 pairs. Szekely &
  Rizzo 2013.
* ``drifting``: not a distance but a field: a sample moves towards its real neighbours and away from
  its neighbours among the samples, :math:`|x - \mathrm{sg}(x + V)|^2`. arXiv 2602.04770.
* ``laplace``: a maximum mean discrepancy of kernels :math:`e^{-|x-y|/\tau}`, which sees detail that
  the energy distance (:math:`\tau \to \infty`) hardly does. Gretton et al. 2012; arXiv 2603.09936.
* ``sinkhorn``: :math:`S = OT(x_1, y) + OT(x_2, y) - OT(x_1, x_2)` of two halves of the samples,
  optimal transport with entropy; of infinite entropy it is ``energy``. Genevay et al. 2018 (arXiv
  1706.00292); two batches instead of one against itself as in arXiv 2605.11755.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.settings import parse_distance

Distance = Callable[[Tensor, Tensor], Tensor]

LEAST = 1e-6  # of a squared distance: keeps the gradient of the root finite between equal states
WIDTHS = (0.05, 0.1, 0.2)  # of kernels, of the mean distance of two real states
KERNEL_ROWS = 512  # of real states on which the mean of a kernel is measured
ENTROPY, ROUNDS = 0.1, 20  # of Sinkhorn's algorithm, of the mean distance of two real states


def energy(x: Tensor, real: Tensor) -> Tensor:
    """The energy distance of two or more samples ``(B, ...)`` to real states ``(N, ...)``; near 0
    where the distributions are equal, if the real ones are in random order (the gradient asks for
    none).

    Raises:
        UserError: of a single sample, no real state, or other shapes.
    """
    x, real = _flat(x, real)
    rest = mean_distance(real) if len(real) > 1 else 0.0  # without a gradient
    return 2 * distances(x, real).mean() - _among(distances(x, x)) - rest


def drifting(x: Tensor, real: Tensor) -> Tensor:
    r"""The drifting field of samples ``(B, ...)`` to real states ``(N, ...)``, as a loss.

    With :math:`A` the root of the product of two softmaxes of :math:`-d/\tau`, over all states
    beside a sample and over all samples beside a state, :math:`V_i = \sum_{jk} A^+_{ij} A^-_{ik}
    (y_j - x_k)`. The field of every width is given the size of the energy distance's force on the
    same batch (the paper normalises it to one) and they are averaged.
    """
    x, real = _flat(x, real)
    moved = (x + _drift(x.detach(), real)).detach()
    return (x - moved).square().sum(1).mean()


@torch.no_grad()
def _drift(x: Tensor, real: Tensor) -> Tensor:
    centre = real.mean(0)
    x, real, total = x - centre, real - centre, torch.zeros_like(x)
    near, apart, unit = distances(x, real), distances(x, x), mean_distance(real)
    force = _pull(1 / (near * len(real)), x, real)
    force = force - _pull((1 / (apart * (len(x) - 1))).fill_diagonal_(0), x, x)
    both = torch.cat([near, apart.fill_diagonal_(math.inf)], 1)
    for width in WIDTHS:
        logits = -both / (width * unit)
        weight = (logits.softmax(0) * logits.softmax(1)).sqrt()
        towards, away = weight.split([len(real), len(x)], 1)
        field = _pull(towards * away.sum(1, True), x, real) - _pull(
            away * towards.sum(1, True), x, x
        )
        total = total + field * (force.norm() / field.norm().clamp_min(1e-12))
    return total / len(WIDTHS)


def _pull(weight: Tensor, x: Tensor, towards: Tensor) -> Tensor:
    return weight @ towards - weight.sum(1, True) * x


def laplace(x: Tensor, real: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of samples ``(B, ...)`` to real states ``(N, ...)`` by
    kernels of small widths, unbiased, without the term of the real states alone; each is divided by
    its mean over pairs of real states, times its width.
    """
    x, real = _flat(x, real)
    few, unit = real[:KERNEL_ROWS], mean_distance(real)
    near, apart, real_apart = distances(x, real), distances(x, x), distances(few, few)
    total = torch.zeros((), device=x.device, dtype=x.dtype)
    for width in WIDTHS:
        tau = width * unit
        mean = _among((-real_apart / tau).exp()) if len(few) > 1 else unit.new_tensor(1.0)
        kernels = _among((-apart / tau).exp()) - 2 * (-near / tau).exp().mean()
        total = total + kernels * tau / mean.clamp_min(1e-12)
    return total / len(WIDTHS)


def sinkhorn(x: Tensor, real: Tensor) -> Tensor:
    """The Sinkhorn divergence of samples ``(B, ...)`` to real states ``(N, ...)``, between halves
    of the samples and as many real states at a time: so it is at rest where distributions are
    equal. Of an odd number of samples the last is left out.
    """
    x, real = _flat(x, real)
    half = len(x) // 2
    size, entropy = min(half, len(real)), ENTROPY * mean_distance(real)
    parts = x[: 2 * half].reshape(2, 1, half, -1)
    chunks = real[: len(real) // size * size].reshape(1, -1, size, real.shape[1])
    near, apart = distances(parts, chunks), distances(parts[0, 0], parts[1, 0])
    towards = (_plan(near, entropy) * near).sum((-2, -1)).mean(1).sum()
    return towards - (_plan(apart, entropy) * apart).sum()


@torch.no_grad()
def _plan(cost: Tensor, entropy: Tensor) -> Tensor:
    """Transport between uniform distributions, of costs ``(..., n, m)``."""
    n, m = cost.shape[-2:]
    kernel = -cost / entropy.clamp_min(1e-12) - math.log(n * m)
    rows = torch.zeros_like(cost[..., 0])
    columns = torch.zeros_like(cost[..., 0, :])
    for _ in range(ROUNDS):
        columns = -((kernel + rows[..., None]).logsumexp(-2) + math.log(m))
        rows = -((kernel + columns[..., None, :]).logsumexp(-1) + math.log(n))
    return (kernel + rows[..., None] + columns[..., None, :]).exp()


DISTANCES: dict[str, Distance] = {
    "energy": energy,
    "drifting": drifting,
    "laplace": laplace,
    "sinkhorn": sinkhorn,
}


def find_distance(text: str) -> Distance:
    """The weighted sum of distances that a setting names, such as ``energy+0.3*drifting``.

    Raises:
        UserError: if it names none.
    """
    parts = parse_distance(text)

    def total(x: Tensor, real: Tensor) -> Tensor:
        terms = [weight * DISTANCES[name](x, real) for weight, name in parts]
        return torch.stack(terms).sum()

    return total


def mean_distance(x: Tensor) -> Tensor:
    """The mean distance of two states of ``(N, ...)``, over N / 2 pairs; of one state it is 1."""
    half = len(x) // 2
    if not half:
        return torch.ones((), device=x.device, dtype=x.dtype)
    apart = (x[:half] - x[half : 2 * half]).flatten(1).norm(dim=1).mean().detach()
    return apart.clamp_min(math.sqrt(LEAST))


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances ``(..., N, M)`` of states ``(..., N, D)`` and ``(..., M, D)``."""
    centre = b.detach().flatten(0, -2).mean(0)  # else large means cost digits
    a, b = a - centre, b - centre
    squared = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
    return squared.clamp_min(LEAST).sqrt()


def _among(values: Tensor) -> Tensor:
    """The mean of a square of values between states, without those of a state with itself."""
    return (values.sum() - values.diagonal().sum()) / (len(values) * (len(values) - 1))


def _flat(x: Tensor, real: Tensor) -> Sequence[Tensor]:
    if len(x) < 2:
        raise UserError(f"alignment got {len(x)} sample, expected 2 or more: raise the batch")
    if x.shape[1:] != real.shape[1:] or not len(real):
        got, expected = tuple(real.shape), tuple(x.shape[1:])
        raise UserError(f"real data have shape {got}, expected one or more of shape {expected}")
    return x.flatten(1), real.flatten(1)

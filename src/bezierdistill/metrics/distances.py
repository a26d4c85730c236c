"""Distances between two sets of samples, ``metric(a, b)``. Sets are ``(N, ...)`` and ``(M, ...)``
tensors; zero means the same distribution.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from bezierdistill.errors import UserError
from bezierdistill.metrics.features import RandomFeatures, extract


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015), by POT, in the samples' unit."""
    import ot  # POT takes a second to import

    x, y = a.flatten(1).double().cpu().numpy(), b.flatten(1).double().cpu().numpy()
    distance = ot.sliced_wasserstein_distance(x, y, n_projections=projections, seed=seed)
    return float(np.asarray(distance))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased ``2 E|X-Y| - E|X-X'| - E|Y-Y'|`` (Szekely & Rizzo 2013); can be below zero."""
    x, y = a.flatten(1), b.flatten(1)
    return 2 * _mean_distance(x, y) - _mean_distance_within(x) - _mean_distance_within(y)


def _mean_distance(x: Tensor, y: Tensor) -> float:
    total = sum(float(torch.cdist(part, y).double().sum()) for part in x.split(1024))
    return total / (len(x) * len(y))


def _mean_distance_within(x: Tensor) -> float:
    return _mean_distance(x, x) * len(x) / (len(x) - 1)


def mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) with a sum of Gaussian
    kernels.

    The bandwidths are 1/2, 1 and 2 times the median distance within ``b``. It can be slightly
    negative.
    """
    x, y = a.flatten(1), b.flatten(1)
    median = torch.pdist(y[:1000]).median()
    widths = [float(scale * median) for scale in (0.5, 1.0, 2.0)]
    n, m = len(x), len(y)
    within_x = (_mean_kernel(x, x, widths) - 1 / n) * n / (n - 1)
    within_y = (_mean_kernel(y, y, widths) - 1 / m) * m / (m - 1)
    return within_x + within_y - 2 * _mean_kernel(x, y, widths)


def _mean_kernel(x: Tensor, y: Tensor, widths: list[float]) -> float:
    total = 0.0
    for part in x.split(1024):
        squared = torch.cdist(part, y).square()
        total += sum(float((squared / (-2 * width**2)).exp().double().sum()) for width in widths)
    return total / (len(x) * len(y) * len(widths))


def frechet_distance(a: Tensor, b: Tensor, extractor: nn.Module | None = None) -> float:
    r"""Frechet distance :math:`|m_a - m_b|^2 + \mathrm{tr}(C_a + C_b - 2 (C_a C_b)^{1/2})` between
    Gaussians fitted to features.

    Args:
        a: samples.
        b: real samples.
        extractor: features to use (see :mod:`~bezierdistill.metrics.features`; ``nn.Identity()`` if
            ``a`` and ``b`` are features already); by default the fixed
            :class:`~bezierdistill.metrics.features.RandomFeatures`.

    Reference: Heusel et al. 2017, arXiv 1706.08500, eq. 6. With other features than Inception's the
    number is not FID.
    """
    fa, fb = _features(a, b, extractor)
    ca, cb = torch.cov(fa.T).reshape(fa.shape[1], -1), torch.cov(fb.T).reshape(fb.shape[1], -1)
    values, vectors = torch.linalg.eigh(ca)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp_min(0).sqrt().sum()
    return float((fa.mean(0) - fb.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor, extractor: nn.Module | None = None) -> float:
    r"""Unbiased squared maximum mean discrepancy of features with the kernel :math:`(x \cdot y / d
    + 1)^3`; it can be slightly negative.

    The arguments are those of :func:`frechet_distance`. Reference: Binkowski et al. 2018, arXiv
    1801.01401, section 4. With other features than Inception's the number is not KID.
    """
    fa, fb = _features(a, b, extractor)
    across = _sum_cubic(fa, fb) / (len(fa) * len(fb))
    return _mean_cubic_within(fa) + _mean_cubic_within(fb) - 2 * across


def _mean_cubic_within(f: Tensor) -> float:
    # A row with itself: leaving it out makes the estimate unbiased.
    own = float((f.square().mean(1) + 1).pow(3).sum())
    return (_sum_cubic(f, f) - own) / (len(f) * (len(f) - 1))


def _sum_cubic(f: Tensor, g: Tensor) -> float:
    return sum(float((part @ g.T / g.shape[1] + 1).pow(3).sum()) for part in f.split(1024))


def _features(a: Tensor, b: Tensor, extractor: nn.Module | None) -> tuple[Tensor, Tensor]:
    if extractor is None:
        extractor = RandomFeatures(math.prod(a.shape[1:])).to(a.device)
    return extract(a, extractor).double(), extract(b, extractor).double()


def precision_recall(a: Tensor, b: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of samples ``a`` inside the real manifold of ``b``, and of real samples inside the
    manifold of ``a``.

    Sets are states or features. A set's manifold is the union of balls that reach each point's k-th
    neighbour. Reference: Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-2.

    Raises:
        UserError: if a set has ``k`` samples or fewer.
    """
    x, y = a.flatten(1), b.flatten(1)
    if min(len(x), len(y)) <= k:
        told = f"precision and recall got {len(x)} and {len(y)} samples"
        raise UserError(f"{told}, expected more than k={k}")
    return inside(x, y, k), inside(y, x, k)


def inside(points: Tensor, manifold: Tensor, k: int = 3) -> float:
    """Share of points ``(N, d)`` in a ball around one of ``(M, d)`` up to its k-th neighbour."""
    reach = [torch.cdist(part, manifold).kthvalue(k + 1, 1).values for part in manifold.split(1024)]
    radii, hits = torch.cat(reach), 0
    for part in points.split(1024):
        hits += int((torch.cdist(part, manifold) <= radii).any(1).sum())
    return hits / len(points)


def fidelity(a: Tensor, b: Tensor) -> float:
    """Median distance of a sample of ``a`` to the nearest real one of ``b``; states or features.

    A model that blurs is far from the data; one that repeats its best samples is near, so that this
    says something beside recall alone.
    """
    return float(nearest(a, b).median())


def nearest(a: Tensor, b: Tensor, itself: bool = True) -> Tensor:
    """Distance ``(N,)`` of each sample ``(N, ...)`` to the nearest of ``(M, ...)``.

    Args:
        a: samples.
        b: other samples.
        itself: whether row i of ``b`` counts for row i of ``a``.
    """
    x, y, found = a.flatten(1), b.flatten(1), []
    for start in range(0, len(x), 1024):
        part = x[start : start + 1024]
        distances = torch.cdist(part, y)
        if not itself:
            distances[:, start:].fill_diagonal_(torch.inf)
        # Exact where it counts: a matrix of distances is computed from differences of squares.
        found.append((part - y[distances.argmin(1)]).norm(dim=1))
    return torch.cat(found)

r"""Velocity fields :math:`v(x, t)` of :math:`dx/dt = v`, t=0 at the source and t=1 at the data.

* :class:`NetworkField`: a network, on the diagonal of its average velocity ``u(x, s, t)``.
* :class:`Blend`: several teachers as one field, :math:`v = \sum_i w_i(t)\, v_i` with Bernstein
  weights :math:`w_i(t) = \sum_j W_{ij}\, b_{j,m}(t)` and :math:`\sum_i W_{ij} = 1`, so that they
  sum to one at every time.
* :class:`Guided`: one teacher with and without its condition: classifier-free guidance.
* :class:`Stretched`: a field between two times, another two for every row, as a field over [0, 1].
* :class:`GaussianMixture`: the exact field between a standard normal and a mixture.

Source: Liu et al. 2022 (arXiv 2209.03003); Ho & Salimans 2022 (arXiv 2207.12598) and Karras et al.
2024 (arXiv 2406.02507) are blends with weights (g, 1-g).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from bezierdistill.curves import Time, bernstein, expand_time, match_time
from bezierdistill.errors import UserError

HALVES = (torch.float16, torch.bfloat16)


@runtime_checkable
class Field(Protocol):
    """A velocity field: ``field(x, t, cond)`` gives ``dx/dt``.

    A field without ``passes``, such as a plain function, costs 1 (:func:`passes_of`).
    """

    @property
    def passes(self) -> int:
        """Network passes of one evaluation."""
        ...

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, ...)`` of states ``(B, ...)`` at one time, or one per row ``(B,)``."""
        ...


def passes_of(field: Field) -> int:
    """Network passes that one evaluation of a field costs."""
    return getattr(field, "passes", 1)


@contextmanager
def evaluating() -> Iterator[None]:
    """Evaluation mode, for the time of a block, of every module that runs in it.

    A field may be any function around modules: they are met when they run, and get their mode back
    at the end.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5))
        >>> with evaluating():
        ...     print(net(torch.ones(3)), net.training)
        tensor([1., 1., 1.]) False
        >>> net.training, net[0].training
        (True, True)
    """
    active: list[nn.Module] = []

    def meet(module: nn.Module, _: object) -> None:
        if module.training:
            found = [part for part in module.modules() if part.training]
            active.extend(found)
            for part in found:
                part.training = False

    handle = register_module_forward_pre_hook(meet)
    try:
        yield
    finally:
        handle.remove()
        for part in active:
            part.training = True


@contextmanager
def as_found(net: nn.Module) -> Iterator[None]:
    """Give a module, and what its attribute ``module`` is, the buffers back that it had, with what
    they held, at the end of a block.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with as_found(net):
        ...     _ = net(torch.ones(3, 2))
        >>> net.running_mean
        tensor([0., 0.])
    """
    inner = getattr(net, "module", None)
    parts = [*net.modules(), *(inner.modules() if isinstance(inner, nn.Module) else ())]
    before = [
        (part, name, buffer, buffer.clone())
        for part in parts
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for part, name, buffer, value in before:
            if getattr(part, name) is not buffer:  # another tensor was put in its place
                setattr(part, name, buffer)
            if not torch.equal(buffer, value):
                buffer.copy_(value)


class NetworkField:
    """The field of a network ``net(x, s, t, cond)``: its diagonal ``v(x, t) = u(x, t, t)``.

    States of another number type than the network's are converted, and velocities back; times keep
    single precision beside states in half precision.

    Args:
        net: the network, called with one time per row, in evaluation mode.
        passes: network passes of one evaluation.
    """

    def __init__(self, net: nn.Module, passes: int = 1) -> None:
        self.net, self.passes = net, passes

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, ...)``; see :class:`Field`."""
        floats = (part.dtype for part in self.net.parameters() if part.is_floating_point())
        kind = next(floats, x.dtype)
        y = x if x.dtype == kind else x.to(kind)
        time = match_time(t, y.float() if kind in HALVES else y)
        with evaluating():
            return self.net(y, time, time, cond).to(x)


class Blend:
    """Several fields as one, weighted by Bernstein polynomials of the time that sum to one.

    Args:
        fields: one or more teachers over the same states.
        weights: ``(M, m + 1)``, a row of Bernstein coefficients per teacher, or ``(M,)``.

    Raises:
        UserError: unless there is a row per field, of equal length, and columns sum to one.

    Example:
        >>> zero, one = (lambda x, t, cond=None: 0 * x), (lambda x, t, cond=None: 0 * x + 1)
        >>> blend = Blend([zero, one], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> blend(torch.zeros(1, 1), 0.25).item()
        0.25
    """

    def __init__(
        self, fields: Sequence[Field], weights: Tensor | Sequence[Sequence[float]]
    ) -> None:
        try:
            matrix = torch.as_tensor(weights, dtype=torch.float64)
        except ValueError:
            message = f"weights are {weights}, expected equally many numbers per field"
            raise UserError(message) from None
        self.weights = matrix[:, None] if matrix.ndim == 1 else matrix
        self.fields = tuple(fields)
        if self.weights.ndim != 2 or len(self.weights) != len(self.fields):
            given = f"{tuple(matrix.shape)} for {len(self.fields)} fields"
            raise UserError(f"weights have shape {given}, expected a row per field")
        sums = self.weights.sum(0)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-6):
            given = [round(s, 6) for s in sums.tolist()]
            raise UserError(f"blend weights sum to {given} per column, expected 1 in every column")

    @property
    def passes(self) -> int:
        """Network passes of one evaluation: the teachers' together."""
        return sum(map(passes_of, self.fields))

    def weight_at(self, t: Tensor) -> Tensor:
        """The teachers' weights ``(M, *t.shape)`` at times ``t``."""
        basis = bernstein(self.weights.shape[1] - 1, t)
        return torch.tensordot(self.weights.to(t), basis, dims=1)

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, ...)``; see :class:`Field`."""
        time = match_time(t, x)
        total = torch.zeros_like(x)
        for field, weight in zip(self.fields, self.weight_at(time), strict=True):
            total = total + expand_time(weight, x) * field(x, time, cond)
        return total


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598): ``g v(x, t, c) + (1 - g) v(x, t, none)``.

    Args:
        field: a conditional teacher.
        strength: g; without it the last number of every row's condition is its g, and the teacher
            gets the numbers before it.
    """

    field: Field
    strength: float | None = None

    @property
    def passes(self) -> int:
        """Network passes of one evaluation: twice the field's."""
        return 2 * passes_of(self.field)

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, ...)``; see :class:`Field`.

        Raises:
            UserError: without a condition.
        """
        if cond is None:
            raise UserError("guidance got no condition, expected one per row")
        strength = self.strength
        if strength is None:
            cond, strength = cond[:, :-1], expand_time(cond[:, -1], x)
        return torch.lerp(self.field(x, t, None), self.field(x, t, cond), strength)


@dataclass(frozen=True)
class Stretched:
    r"""A field between two times per row as a field over [0, 1], so that one grid serves all rows:
    :math:`dx/d\tau = (b - a)\, v(x, a + \tau (b - a))`.

    Args:
        field: the field ``v``.
        start, end: ``a`` and ``b``, each ``(B,)``.
    """

    field: Field
    start: Tensor
    end: Tensor

    @property
    def passes(self) -> int:
        """Network passes of one evaluation: the field's."""
        return passes_of(self.field)

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, ...)`` per unit of the stretched time; see :class:`Field`."""
        time = torch.lerp(self.start, self.end, match_time(t, x))
        return expand_time(self.end - self.start, x) * self.field(x, time, cond)


@dataclass(frozen=True)
class GaussianMixture:
    r"""Exact velocity of rectified flow from a standard normal to a mixture of diagonal Gaussians.

    For component k, :math:`x_t = (1-t)x_0 + t x_1` is normal with mean :math:`t\mu_k` and variance
    :math:`q_k = (1-t)^2 + t^2\sigma_k^2`, and :math:`E[x_1 - x_0 \mid x_t] = \mu_k +
    \frac{t\sigma_k^2 - (1-t)}{q_k}(x_t - t\mu_k)`; the field is the average of these under the
    posterior of k.

    Args:
        means: ``(K, D)``.
        stds: ``(K, D)``, positive.
        weights: ``(K,)``, positive, summing to one.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor
    passes: int = 1

    def __call__(self, x: Tensor, t: Time, cond: Tensor | None = None) -> Tensor:
        """Velocity ``(B, D)``; see :class:`Field`. There is no condition."""
        time = expand_time(t, x)[:, None]
        means, var = self.means.to(x), self.stds.to(x) ** 2
        spread = (1 - time) ** 2 + time**2 * var
        centred = x[:, None] - time * means
        log_density = -0.5 * (centred**2 / spread + spread.log()).sum(-1) + self.weights.to(x).log()
        velocity = means + (time * var - (1 - time)) / spread * centred
        return (log_density.softmax(1)[..., None] * velocity).sum(1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh draws ``(count, D)`` from the mixture."""
        device = self.means.device if generator is None else generator.device
        means, stds, weights = (part.to(device) for part in (self.means, self.stds, self.weights))
        component = torch.multinomial(weights, count, replacement=True, generator=generator)
        chosen = means[component]
        noise = torch.randn(chosen.shape, generator=generator, dtype=means.dtype, device=device)
        return (chosen + stds[component] * noise).to(self.means.device)

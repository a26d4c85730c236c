"""Couplings: the assignment against scipy."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from bezierdistill import couplings
from bezierdistill.couplings import Independent, MinibatchOT
from conftest import Draw


def test_independent_is_the_identity(shape: tuple[int, ...], draw: Draw) -> None:
    x0, x1 = draw(*shape), draw(*shape)
    pair = Independent()(x0, x1)
    assert pair.x0 is x0
    assert pair.x1 is x1


@pytest.mark.parametrize("size", [(1, 3), (2, 3), (37, 2), (64, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minibatch_ot_costs_what_scipy_costs_and_keeps_the_data_order(
    size: tuple[int, ...], dtype: torch.dtype, draw: Draw
) -> None:
    x0, x1 = draw(*size).to(dtype), 2 * draw(*size).to(dtype) + 1
    pair = MinibatchOT()(x0, x1)
    cost = cdist(x0.flatten(1).double(), x1.flatten(1).double(), "sqeuclidean")
    best = cost[linear_sum_assignment(cost)].sum()
    assert float((pair.x0 - pair.x1).double().square().sum()) == pytest.approx(best, rel=1e-6)
    assert pair.x1 is x1
    assert sorted(map(tuple, pair.x0.flatten(1).tolist())) == sorted(
        map(tuple, x0.flatten(1).tolist())
    )  # every source once


def test_minibatch_ot_within_labels_is_the_assignment_of_each_label(draw: Draw) -> None:
    x0, x1, labels = draw(60, 3), draw(60, 3) + 1, torch.arange(60) % 4 // 2
    pair = MinibatchOT()(x0, x1, labels)
    assert pair.x1 is x1
    for label in (0, 1):
        own = labels == label
        alone = MinibatchOT()(x0[own], x1[own])
        assert torch.equal(pair.x0[own], alone.x0)
    whole = MinibatchOT()(x0, x1)
    assert float((whole.x0 - x1).square().sum()) < float((pair.x0 - x1).square().sum())


def test_minibatch_ot_in_one_dimension_sorts(draw: Draw) -> None:
    x0, x1 = draw(50, 1), draw(50, 1).exp()
    pair = MinibatchOT()(x0, x1)
    assert torch.equal(pair.x0[pair.x1[:, 0].argsort()], x0.sort(0).values)


def test_minibatch_ot_needs_no_double_precision(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0, x1 = draw(16, 3), draw(16, 3)
    wide = MinibatchOT()(x0, x1)
    monkeypatch.setattr(couplings, "widest", lambda device: torch.float32)
    assert torch.equal(MinibatchOT()(x0, x1).x0, wide.x0)

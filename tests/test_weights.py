"""Weights and networks: what fits, what is refused, and what a student starts from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.models.weights import check_sizes, check_weights, start_from
from bezierdistill.networks.config import NetworkConfig, NetworkKind

CONFIG, SHAPE = NetworkConfig("mlp", 16, 2), (3,)


def weights(condition_size: int = 2) -> dict[str, Tensor]:
    return CONFIG.build(SHAPE, 0, condition_size).state_dict()


def test_a_networks_own_weights_fit() -> None:
    for trial in (False, True):
        check_weights(CONFIG, SHAPE, 2, weights(), trial)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": torch.zeros(1)}, r"1 tensors are unknown \(more\)"),
        ({"skip.bias": None}, r"1 tensors are missing \(skip.bias\)"),
        ({"skip.bias": torch.zeros(2)}, r"skip.bias is torch.float32 \(2,\), expected .* \(1,\)"),
        ({"skip.bias": torch.zeros(1, dtype=torch.int64)}, "skip.bias is torch.int64"),
        ({"skip.bias": torch.zeros(1, dtype=torch.complex64)}, "skip.bias is torch.complex64"),
        ({"skip.bias": torch.tensor([torch.nan])}, "skip.bias holds NaN or infinite numbers"),
    ],
)
def test_other_weights_are_refused(change: dict[str, Any], message: str) -> None:
    given = {name: one for name, one in (weights() | change).items() if one is not None}
    with pytest.raises(UserError, match=message):
        check_weights(CONFIG, SHAPE, 2, given, trial=False)


def test_sizes_that_no_network_of_the_weights_has_are_refused() -> None:
    with pytest.raises(UserError, match="conditions have 1,000,000 numbers"):
        check_weights(CONFIG, SHAPE, 10**6, weights(), trial=False)
    check_sizes({"depth": 10, "blocks": [{"width": 100_000}], "note": "x", "on": True}, 10, 50)
    with pytest.raises(UserError, match="depth is 11, the weights have 10 tensors"):
        check_sizes({"depth": 11}, 10, 10**9)
    with pytest.raises(UserError, match="width is 100001"):
        check_sizes({"blocks": [{"width": 100_001}]}, 10, 50)


@pytest.mark.parametrize("kind", ["mlp", "unet", "dit"])
def test_a_student_starts_as_its_teacher_whatever_only_the_student_is_given(
    kind: NetworkKind,
) -> None:
    config, shape = NetworkConfig(kind, 32, 1), (3, 8, 8)
    teacher, student = config.build(shape, 0, 2), config.build(shape, 1, 3)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    start_from(student, teacher)
    x, (s, t) = torch.randn(4, *shape), torch.rand(2, 4)
    cond, scale = torch.eye(2)[[0, 1, 0, 1]], torch.rand(4, 1)
    with torch.no_grad():
        expected, got = teacher(x, s, t, cond), student(x, s, t, torch.cat([cond, scale], 1))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert float(expected.std()) > 1e-3

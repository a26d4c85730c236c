"""The budget: shares, steps and what is spent, in whole numbers."""

import pytest

from bezierdistill.budget import Budget
from bezierdistill.errors import UserError


@pytest.mark.parametrize("cost", [1, 3, 6.5])
@pytest.mark.parametrize("total", [999, 1000, 12_345])
def test_steps_are_as_many_as_the_passes_pay_for(total: int, cost: float) -> None:
    budget = Budget(total, 10)
    steps = budget.steps(cost)
    assert steps * cost * 10 <= total < (steps + 1) * cost * 10
    assert budget.steps(cost, total // 2) == total // 2 // (cost * 10)
    assert budget.spent == 0  # asking costs nothing


@pytest.mark.parametrize(("share", "passes"), [(0.5, 500), (0.0, 0), (1.0, 1001), (0.0399, 39)])
def test_a_share_is_of_the_whole_whatever_is_spent(share: float, passes: int) -> None:
    budget = Budget(1001, 10)
    assert budget.share(share) == passes
    budget.charge(700)
    assert budget.share(share) == passes


def test_what_is_charged_is_gone_and_never_more_than_there_is() -> None:
    budget = Budget(1000, 10)
    for passes in (0, 300, 400):
        budget.charge(passes)
    assert (budget.spent, budget.left) == (700, 300)
    assert budget.steps(3) == 10
    budget.charge(300)
    assert budget.left == 0
    with pytest.raises(UserError, match="1,001 network passes were spent, the budget is 1,000"):
        budget.charge(1)


def test_a_budget_without_a_step_says_what_one_costs() -> None:
    budget = Budget(1000, 10, spent=971)
    with pytest.raises(UserError) as caught:
        budget.steps(3, what="the student")
    assert str(caught.value) == (
        "budget is 1,000 passes, which leaves 29 for the student, expected 30 or more for one step:"
        " raise --budget"
    )
    assert Budget(1000, 10, spent=970).steps(3) == 1

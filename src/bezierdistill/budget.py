"""A budget of network passes: shares of it, the steps that they pay for, the account of what is
spent.

A forward pass of one row counts 1, forward and backward 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from bezierdistill.errors import UserError


@dataclass
class Budget:
    """Network passes that may be spent, and those that are.

    Args:
        total: passes in all.
        batch: rows per step.
        spent: passes spent so far.
    """

    total: int
    batch: int
    spent: int = 0

    @property
    def left(self) -> int:
        """Passes that are left."""
        return self.total - self.spent

    def share(self, share: float) -> int:
        """Passes of a share of the whole."""
        return int(share * self.total)

    def charge(self, passes: int) -> None:
        """Spend passes.

        Raises:
            UserError: if the budget does not hold them.
        """
        self.spent += passes
        if self.spent > self.total:
            raise UserError(
                f"{self.spent:,} network passes were spent, the budget is {self.total:,}: raise it"
            )

    def steps(self, cost: float, passes: int | None = None, what: str = "training") -> int:
        """Optimizer steps of ``cost`` passes per row that ``passes``, by default all that are left,
        pay for.

        Raises:
            UserError: if that is not a single step of ``what``.
        """
        passes = self.left if passes is None else passes
        steps = int(passes // (cost * self.batch))
        if steps < 1:
            raise UserError(
                f"budget is {self.total:,} passes, which leaves {passes:,} for {what}, expected"
                f" {int(cost * self.batch):,} or more for one step: raise --budget"
            )
        return steps

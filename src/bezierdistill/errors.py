"""The one kind of error that is told to a user in one line: what was got, expected, what to do.

Everything else is ours to put right, and keeps its traceback.
"""

from typing import Any


class UserError(ValueError):
    """A mistake that the user can put right."""


class UnfitError(UserError):
    """A mistake that is a result as well, such as the list of a store's damaged shards.

    Args:
        message: one line.
        result: what ``--json`` prints.
        code: what the command exits with: 1 where the work was done, and a part of it failed.
    """

    def __init__(self, message: str, result: Any, code: int = 2) -> None:
        super().__init__(message)
        self.result, self.code = result, code

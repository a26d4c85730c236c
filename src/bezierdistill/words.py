"""Words for people, which the command line, the report and the page share."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """``1 pass``, ``2 passes``, ``3 curves``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words by commas; of many the first ones and the last."""
    return ", ".join(words if len(words) <= 12 else [*words[:10], "...", words[-1]])

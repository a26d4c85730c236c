"""Rows of results as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = {
    "frechet": "Frechet",
    "sliced_wasserstein": "sliced W2",
    "energy": "energy",
    "mmd": "MMD",
    "precision": "precision",
    "recall": "recall",
}


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of results as text: the method, its costs where given, and every metric (distances with their ratio to the floor)."""
    text = [str(row["method"])]
    text += [f"{row[key]:,}" if key in row else "" for key in ("passes", "spent_passes")]
    for name in METRICS:
        share = name in ("precision", "recall")
        text.append(f"{row[name]:.3f}" if share else f"{row[name]:.4g} ({row[f'{name}_ratio']:.2f}x)")
    return text


def headings() -> list[str]:
    """Headings of the columns of :func:`cells`."""
    return ["method", "passes", "passes spent", *METRICS.values()]


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of results; distances stand with their ratio to the floor (real against real)."""
    table = Table(caption="in brackets: distance over its floor, real against real; 1.00x is as good as real data")
    for k, heading in enumerate(headings()):
        table.add_column(heading, justify="left" if k == 0 else "right")
    for row in rows:
        table.add_row(*cells(row), style="bold" if row.get("ours") else None)
    Console(width=None if Console().is_terminal else 160).print(table)

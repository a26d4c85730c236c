"""Data that settings are given as Python objects."""

from __future__ import annotations

from pathlib import Path


def as_data(config: object, *names: str) -> None:
    """Call data that are objects by their names, which hold them; text stays."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not isinstance(value, str | Path):
            from bezierdistill.data import name_data

            object.__setattr__(config, name, name_data(value))

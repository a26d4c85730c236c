"""The report of a run, one HTML page: ``bezierdistill report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bezierdistill.settings import as_paths


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html of a run, one self-contained page.

    It holds pictures, tables and settings, and asks nothing from elsewhere.

    Example::

        bezierdistill report --run runs/student
    """

    run: Path
    """Folder of a demo, arena, recipe, reflow, model or curve store."""

    def __post_init__(self) -> None:
        as_paths(self, "run")


def main_report(config: ReportConfig) -> dict[str, Path]:
    """The verb ``report``."""
    from bezierdistill.reporting import write_report

    page = write_report(config.run)
    print(page)
    return {"report": page}

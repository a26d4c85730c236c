"""The report of a run, one HTML page: ``bezierdistill report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bezierdistill.objects import as_named
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

    network: str | object | None = None
    """Of students that are your own module: FILE.py:function that returns their teacher."""

    def __post_init__(self) -> None:
        as_paths(self, "run")
        as_named(self, "network")


def main_report(config: ReportConfig) -> dict[str, Path]:
    """The verb ``report``."""
    from bezierdistill.reporting import write_report

    page = write_report(config.run, config.network)
    print(page)
    return {"report": page}

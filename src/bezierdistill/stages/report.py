"""The report of a run, one HTML page, and the files of an arena for papers and programs:
``bezierdistill report``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bezierdistill.errors import UserError
from bezierdistill.objects import as_named
from bezierdistill.reporting.names import EXPORTS
from bezierdistill.settings import WORDS, as_paths, written
from bezierdistill.words import did_you_mean


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html of a run, one self-contained page.

    It holds pictures, tables and settings, and asks nothing from elsewhere.

    Example::

        bezierdistill report --run runs/student
        bezierdistill report --run runs/arena --to latex,pdf
        bezierdistill report --run runs/arena --to markdown --columns frechet,precision,recall
    """

    run: Path
    """Folder of a demo, arena, recipe, reflow, model or curve store."""

    network: str | object | None = None
    """Of students that are your own module: FILE.py:function that returns their teacher."""

    to: tuple[str, ...] = written((), WORDS)
    """Of an arena also its table, with all figures and their standard errors, as arena.csv (csv),
    arena.tex (latex) or arena.md (markdown), and distance against passes as arena.pdf (pdf) or
    arena.svg (svg)."""
    methods: tuple[str, ...] = written((), WORDS)
    """The methods that these tell of, by their names; none are all."""
    columns: tuple[str, ...] = written((), WORDS)
    """The figures that the tables have, by their names in arena.csv; none are all."""

    def __post_init__(self) -> None:
        if wrong := [kind for kind in self.to if kind not in EXPORTS]:
            told = f"to is {', '.join(wrong)}{did_you_mean(wrong[0], EXPORTS)}"
            raise UserError(f"{told}: expected some of {', '.join(EXPORTS)}")
        if (self.methods or self.columns) and not self.to:
            told = "methods and columns are those of the files of --to, which is none"
            raise UserError(f"{told}: expected one or more of {', '.join(EXPORTS)}")
        as_paths(self, "run")
        as_named(self, "network")


def main_report(config: ReportConfig) -> dict[str, Any]:
    """The verb ``report``."""
    from bezierdistill.reporting import write_exports, write_report

    files = (
        write_exports(config.run, config.to, config.methods, config.columns) if config.to else []
    )
    page = write_report(config.run, config.network)
    print(page, *files, sep="\n")
    return {"report": page, "files": files}

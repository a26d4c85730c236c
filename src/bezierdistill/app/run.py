"""What the page shows of a run's folder: its models, and the rows of its arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bezierdistill.errors import UserError
from bezierdistill.models import Model, find_teacher
from bezierdistill.records import ArenaRow
from bezierdistill.reporting.runs import Findings

BUNDLED = Path(__file__).parents[1] / "bundled"


@dataclass(frozen=True)
class Shown:
    """What is shown of a folder, read once.

    Args:
        name: what to call it.
        models: every model in it by its folder's path from the run's, students first.
        rows: the rows of its arena; none if it is not one.
    """

    name: str
    models: Mapping[str, Model]
    rows: Sequence[ArenaRow]

    @property
    def generators(self) -> dict[str, Model]:
        """The models that start from noise, with class labels as conditions or none."""
        vectors = {
            name
            for name, model in self.models.items()
            if model.condition_size and not model.conditions.classes
        }
        return {
            name: model
            for name, model in self.models.items()
            if model.domain is None and name not in vectors
        }

    @property
    def translators(self) -> dict[str, Model]:
        """The models that start from another domain."""
        return {name: model for name, model in self.models.items() if model.domain is not None}

    def teacher(self, student: Model) -> Model | None:
        """The first of a student's teachers, wherever in the run it lies now, or where it was; None
        if it is not there.
        """
        for entry in student.card.teachers[:1]:
            for model in self.models.values():
                if model.card.digest == entry.digest:
                    return model
            with suppress(UserError):
                return find_teacher(entry, student.folder or Path())
        return None


def open_run(folder: Path | None) -> Shown:
    """Read a run's folder, or the one that ships with the package.

    Raises:
        UserError: if it holds no run, or something in it is damaged.
    """
    run = Findings.open(BUNDLED if folder is None else folder)
    students_first = sorted(run.models.items(), key=lambda entry: entry[1].card.kind != "student")
    name = "the run that ships with the package" if folder is None else str(folder)
    return Shown(name, dict(students_first), run.rows)

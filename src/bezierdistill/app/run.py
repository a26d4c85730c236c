"""What the page shows of a run's folder: its models, and the rows of its arena."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bezierdistill.errors import UserError
from bezierdistill.models import Model, find_teacher
from bezierdistill.reporting.runs import Findings

BUNDLED = Path(__file__).parents[1] / "bundled"


@dataclass(frozen=True)
class Shown(Findings):
    """What is in a folder, read once; students are the first of its models."""

    @property
    def name(self) -> str:
        """What to call it."""
        shipped = self.folder == BUNDLED
        return "the run that ships with the package" if shipped else str(self.folder)

    def name_of(self, model: Model) -> str:
        """What a model of the run is called; of another its folder's name."""
        known = (name for name, other in self.models.items() if other is model)
        return next(known, model.folder.name if model.folder else model.card.kind)

    @property
    def sampled(self) -> dict[str, Model]:
        """The models that need no more than noise, and labels or a prompt."""
        return {**self.generators, **self.prompted}

    def teacher(self, student: Model) -> Model | None:
        """The first of a student's teachers, wherever in the run it lies now, or where it was; None
        if it is not there. That of a student without a folder, as of an upload, is in the run.
        """
        for ref in student.card.teachers[:1]:
            for model in self.models.values():
                if model.card.digest == ref.digest:
                    return model
            if student.folder is not None:
                with suppress(UserError):
                    return find_teacher(ref, student.folder)
        return None


def open_run(folder: Path | None, network: object = None) -> Shown:
    """Read a run's folder, or the one that ships with the package.

    Raises:
        UserError: if it holds no run, or something in it is damaged.
    """
    run = Shown.open(BUNDLED if folder is None else folder, network)
    students_first = sorted(run.models.items(), key=lambda entry: entry[1].card.kind != "student")
    return replace(run, models=dict(students_first))

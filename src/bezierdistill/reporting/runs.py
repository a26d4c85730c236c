"""What a folder holds that can be reported: to which run it belongs, models, curve stores, rounds
of reflow, the rows of an arena, logs of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec

from bezierdistill.errors import UserError
from bezierdistill.models.folder import CARD, load_model, read_card
from bezierdistill.models.model import Model
from bezierdistill.models.teacher import Student, Teacher, find_network
from bezierdistill.records import (
    ROUNDS,
    ArenaRow,
    Made,
    Rounds,
    Settings,
    from_json,
    read_record,
    to_json,
)
from bezierdistill.reporting.summary import gather
from bezierdistill.run import RUN, read_made, read_settings
from bezierdistill.store import MANIFEST, CurveStore
from bezierdistill.training.journal import LOG, entries

Lines = dict[str, list[tuple[int, float]]]


class Asked(msgspec.Struct, frozen=True):
    """What a report tells of a run's settings: the data, the network passes in all, and
    whether an arena's teachers are given.
    """

    data: str | None = None
    budget: int | None = None
    track: str = "own-teacher"


@dataclass(frozen=True)
class Findings:
    """A folder and what is in it, by name: its path within the folder, or the folder's own name.

    Args:
        folder: the folder.
        held: to which run the whole belongs, its verb and settings.
        made: what is written down of its making; None if nothing is.
        models: teachers and students.
        stores: curve stores.
        rounds: the figures of reflows.
    """

    folder: Path
    held: Settings
    made: Made | None
    models: Mapping[str, Model]
    stores: Mapping[str, CurveStore]
    rounds: Mapping[str, Rounds]

    @classmethod
    def open(cls, folder: Path, network: object = None) -> Self:
        """Read what is there; ``network`` is the teacher of students that are a user's own module.

        Raises:
            UserError: if there is nothing to report, or a file is damaged.
        """
        several = Settings(verb="", settings={})
        held = read_settings(folder) if (folder / RUN).exists() else several
        given = find_network(network)
        cards = ((name, file.parent) for name, file in _files(folder, CARD))
        models = {
            name: _loaded(part, given) for name, part in cards if not read_card(part).is_of_file
        }
        stores = {name: CurveStore.open(file.parent) for name, file in _files(folder, MANIFEST)}
        figures = _files(folder, ROUNDS)
        rounds = {name: read_record(file, Rounds, "rounds") for name, file in figures}
        found = cls(folder, held, read_made(folder), models, stores, rounds)
        if not models and not stores and not rounds and not found.is_arena:
            raise UserError(
                f"{folder} holds no run: expected that of a demo, arena, recipe, reflow, model or"
                " curve store"
            )
        return found

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def verb(self) -> str:
        """The verb that made the whole; empty for a folder of several runs."""
        return self.held.verb

    @property
    def is_arena(self) -> bool:
        """Whether it is that of an arena, such as a demo."""
        return self.verb in ("arena", "demo")

    @property
    def generators(self) -> dict[str, Model]:
        """The models that need no more than noise, and labels."""
        return {name: model for name, model in self.models.items() if generates(model)}

    @property
    def prompted(self) -> dict[str, Model]:
        """The pipelines with prompts, and their students."""
        return {name: model for name, model in self.models.items() if model.card.is_pipeline}

    @property
    def translators(self) -> dict[str, Model]:
        """The models that start from another domain."""
        return {name: model for name, model in self.models.items() if model.domain is not None}

    @cached_property
    def asked(self) -> Asked:
        """What is told of its settings; raises ``UserError`` if they are damaged."""
        return from_json(self.held.settings, Asked, self.folder / RUN)

    @cached_property
    def rows(self) -> list[ArenaRow]:
        """The rows of its arena, if it is one; raises ``UserError`` if they are damaged."""
        return gather(self.folder) if self.is_arena else []

    @property
    def told(self) -> list[Any]:
        """What the settings and the records of the run say, as they are in files."""
        cards = [model.card for model in self.models.values()]
        recipes = [store.recipe for store in self.stores.values()]
        return [self.held.settings, *map(to_json, [*cards, *recipes])]

    def logs(self) -> dict[str, Lines]:
        """Losses by stage of training, of every folder (and network, if it has several), as lists
        of (step, loss).
        """
        logs: dict[str, Lines] = {}
        for name, file in _files(self.folder, LOG):
            for entry in entries(file):
                lines = logs.setdefault(entry.stage, {})
                for network, loss in entry.loss.items():
                    own = name if len(entry.loss) == 1 else f"{name}, {network}"
                    lines.setdefault(own, []).append((entry.step, loss))
        return {stage: lines for stage, lines in logs.items() if lines}


def _loaded(folder: Path, given: Teacher | Student | None) -> Model:
    return load_model(folder, given if read_card(folder).is_own else None)


def generates(model: Model) -> bool:
    """Whether a model needs no more than noise, and labels."""
    asked = model.conditions
    vectors = asked.size > 0 and not asked.classes and asked.rows is None
    return model.domain is None and not vectors and not model.card.is_pipeline


def _files(folder: Path, name: str) -> list[tuple[str, Path]]:
    """Files of a name in a folder, by the paths of their own folders."""
    found = [(str(file.parent.relative_to(folder)), file) for file in sorted(folder.rglob(name))]
    return [(folder.resolve().name if own == "." else own, file) for own, file in found]

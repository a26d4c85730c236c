"""What a folder holds that can be reported: models, curve stores, reflow rounds, an arena, logs of
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bezierdistill.arena.runner import gather
from bezierdistill.errors import UserError
from bezierdistill.files import check_entries, read_json
from bezierdistill.models import CARD, Model, load_model
from bezierdistill.run import Made, read_made
from bezierdistill.store import MANIFEST, CurveStore
from bezierdistill.training.journal import LOG, entries

ROUNDS, ARENA, RECIPE = "rounds.json", "arena.json", "recipe.json"
SETTINGS, REFLOW = "run.json", "reflow.json"
Lines = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Run:
    """A folder and what is in it, by name: its path within the folder, or the folder's own name.

    Args:
        folder: the folder.
        models: teachers and students.
        stores: curve stores.
    """

    folder: Path
    models: Mapping[str, Model]
    stores: Mapping[str, CurveStore]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read what is there.

        Raises:
            UserError: if there is nothing to report, or a file is damaged.
        """
        models = {
            _name(folder, file): load_model(file.parent) for file in sorted(folder.rglob(CARD))
        }
        stores = {
            _name(folder, file): CurveStore.open(file.parent)
            for file in sorted(folder.rglob(MANIFEST))
        }
        run = cls(folder, models, stores)
        if not models and not stores and not run.is_arena:
            raise UserError(
                f"{folder} holds no run: expected the folder of a demo, arena, recipe, model, curve"
                " store or reflow"
            )
        return run

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def is_arena(self) -> bool:
        """Whether it holds an arena or a demo."""
        return (self.folder / ARENA).exists()

    @property
    def rounds(self) -> list[Path]:
        """The figures of reflows."""
        return sorted(self.folder.rglob(ROUNDS))

    @property
    def is_recipe(self) -> bool:
        """Whether it holds a recipe: teachers, curves and a student."""
        return (self.folder / RECIPE).exists()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of its arena; none of a folder that is no arena.

        Raises:
            UserError: if they are damaged.
        """
        return gather(self.folder) if self.is_arena else []

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the whole arena, recipe or reflow; none of a folder that is none of
        these.

        Raises:
            UserError: if they are damaged.
        """
        for mark, name in {ARENA: SETTINGS, RECIPE: RECIPE, REFLOW: REFLOW}.items():
            if (self.folder / mark).exists():
                wanted = {"data": str} if name == REFLOW else {"data": str, "budget": int}
                return check_entries(
                    read_json(self.folder / name, "settings"), wanted, str(self.folder / name)
                )
        return {}

    @cached_property
    def made(self) -> Made | None:
        """What is written down of the whole run's making; None if nothing is."""
        return read_made(self.folder)

    def logs(self) -> dict[str, Lines]:
        """Losses by stage and network, as lists of (step, loss)."""
        logs: dict[str, Lines] = {}
        for file in sorted(self.folder.rglob(LOG)):
            for entry in entries(file):
                panel = logs.setdefault(f"{_name(self.folder, file)}: {entry['stage']}", {})
                for network, loss in entry["loss"].items():
                    panel.setdefault(network, []).append((entry["step"], loss))
        return {stage: lines for stage, lines in logs.items() if lines}


def _name(folder: Path, file: Path) -> str:
    name = str(file.parent.relative_to(folder))
    return folder.resolve().name if name == "." else name


def number(value: object) -> str:
    """A number with its thousands set off; anything else as it is."""
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def counted(count: int, noun: str) -> str:
    """``1 pass``, ``2 passes``, ``3 curves``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"

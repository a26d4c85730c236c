"""All verbs, by groups and in the order of the work, and the modules that they live in.

The module of a verb ``store info`` has two things: the settings ``StoreInfoConfig``, a dataclass,
and ``main_store_info(config)``, which does the work, prints for people what it has made, and
returns what ``--json`` prints. A module is imported when its verb is asked for, and takes no torch
until the verb runs.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

GROUPS = {
    "everything at once": ("demo", "recipe"),
    "stage by stage": ("train", "simulate", "distill"),
    "use a model": ("sample", "translate", "evaluate"),
    "compare methods": ("arena", "reflow"),
    "look at a run": ("report", "app"),
    "share": ("import", "export", "push"),
    "curve stores": ("store info", "store verify", "store merge", "store export", "store import"),
    "this machine": ("doctor", "completion"),
}
MODULES = {  # of the verbs that are not in ``stages`` under their own name
    **{"demo": ".arena.demo", "arena": ".arena.runner", "app": ".app"},
    **{"import": ".stages.convert", "export": ".stages.convert"},
    **{"doctor": ".cli.doctor", "completion": ".cli.completion"},
}
SILENT = ("app", "completion")  # they have no result
CONTINUED = ("demo", "recipe", "train", "simulate", "distill", "arena", "reflow")


class Help(NamedTuple):
    """What the source of a settings class says: in its docstring, and under each field."""

    summary: str
    details: list[str]  # paragraphs
    examples: list[str]  # commands
    fields: dict[str, str]


class Verb(NamedTuple):
    """A verb.

    Args:
        name: as it is written, such as ``store info``.
        module: where it lives, beginning with a dot inside of ``bezierdistill``.
    """

    name: str
    module: str

    @property
    def config(self) -> type:
        """Its settings class."""
        return getattr(self._imported(), f"{self.name.title().replace(' ', '')}Config")

    @property
    def help(self) -> Help:
        """What its settings class says."""
        return read_help(self.config)

    @property
    def epilog(self) -> str:
        """What its help ends with: ``EPILOG`` of its settings class, if it has one."""
        return getattr(self.config, "EPILOG", "")

    def run(self, config: Any) -> Any:
        """Do the work."""
        return getattr(self._imported(), f"main_{self.name.replace(' ', '_')}")(config)

    def _imported(self) -> Any:
        return import_module(self.module, "bezierdistill")


NAMES = [name for names in GROUPS.values() for name in names]
VERBS = {name: Verb(name, MODULES.get(name, f".stages.{name.split()[0]}")) for name in NAMES}


@cache
def read_help(config: type) -> Help:
    """Read what a settings class says; from its source, because ``python -OO`` keeps no docstring.

    Raises:
        TypeError: if a field has no text.
    """
    bases = [base for base in reversed(config.__mro__) if dataclasses.is_dataclass(base)]
    nodes: list[Any] = [ast.parse(textwrap.dedent(inspect.getsource(b))).body[0] for b in bases]
    texts = {name: text for node in nodes for name, text in _texts(node)}
    if silent := {field.name for field in dataclasses.fields(config)} - texts.keys():
        raise TypeError(f"{config.__name__}: {sorted(silent)} have no text under them")
    about, _, examples = (ast.get_docstring(nodes[-1]) or "").partition("Example::")
    summary, *details = about.replace("``", "").strip().split("\n\n")
    return Help(summary, details, [line.strip() for line in examples.split("\n") if line], texts)


def _texts(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for above, under in pairwise(node.body):
        match above, under:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.replace("``", "").split()).removesuffix(".")

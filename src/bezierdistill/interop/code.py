"""The code of an exported pipeline in one file, ``pipeline.py``, by which diffusers loads and runs
it where this library is not installed.

It is our own code: the network, its schedule and :mod:`~bezierdistill.interop.diffusers`, without
what reads and checks a model folder.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = "pipeline.py"
EVERYTHING = ()
PARTS: dict[str, tuple[str, ...]] = {  # modules in order, and what is taken of them
    "errors": ("UserError",),
    "settings": ("Prediction", "ScheduleKind", "check_choice", "check_counts"),
    "curves": ("Time", "match_time", "expand_time", "widest", "bernstein", "_powers"),
    "solvers": ("time_grid",),
    "schedules": EVERYTHING,
    "networks.embeddings": EVERYTHING,
    "networks.curve": EVERYTHING,
    "networks.mlp": EVERYTHING,
    "networks.unet": EVERYTHING,
    "networks.dit": EVERYTHING,
    "networks.config": ("NetworkKind", "NetworkConfig"),
    "networks.foreign": EVERYTHING,
    "interop.diffusers": EVERYTHING,
}
HEAD = '''"""A few-step pipeline that bezierdistill exported; diffusers alone runs it:

DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

from __future__ import annotations

import sys

from diffusers import ConsistencyModelPipeline
'''
TAIL = '''

def read_network(fields):
    kind = ForeignConfig if fields["kind"] == "diffusers" else NetworkConfig
    return kind(**fields)


class FlowMapPipeline(ConsistencyModelPipeline):
    """Noise of standard deviation one, and a pass for each time step."""


# The module by which model_index.json names the network and the scheduler.
sys.modules.setdefault("bezierdistill.interop.diffusers", sys.modules[__name__])
'''


def pipeline_code() -> str:
    """The code of an exported pipeline."""
    return "\n".join([HEAD, *(_part(name, names) for name, names in PARTS.items()), TAIL])


def _part(name: str, names: tuple[str, ...]) -> str:
    spec = find_spec(f"bezierdistill.{name}")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    own = [node for node in tree.body if not names or not _names(node).isdisjoint(names)]
    more = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    tree.body = [node for node in tree.body if node in own or node in more]
    return ast.unparse(_Alone().visit(tree))


def _names(node: ast.stmt) -> set[str]:
    """What a statement of a module defines."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    return {str(getattr(target, "id", getattr(target, "name", ""))) for target in targets}


class _Alone(ast.NodeTransformer):
    """Without imports of this library, the names of which stand in the same file."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        return None if str(node.module).split(".")[0] in ("bezierdistill", "__future__") else node

    def visit_Expr(self, node: ast.Expr) -> Any:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text and node.col_offset == 0 else node

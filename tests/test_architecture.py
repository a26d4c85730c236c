"""The way data takes, enforced: imports point one way, heavy packages stay lazy, nothing is
pickled."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import bezierdistill
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.stages.distill import DistillConfig
from bezierdistill.stages.recipe import RecipeConfig
from bezierdistill.stages.simulate import SimulateConfig
from bezierdistill.stages.train import TrainConfig
from bezierdistill.training.settings import LoopConfig

ROOT = Path(bezierdistill.__file__).parent
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
# A room may import what stands before it, and nothing after it; every room is named once.
LINE = (
    *(
        "errors",
        "settings",
        "words",
        "memory",
        "progress",
        "files",
        "hub",
        "objects",
        "noise",
        "curves",
        "fields",
    ),
    *("schedules", "solvers", "couplings", "flow_map", "knots", "sdedit", "data", "records"),
    *("run", "networks", "pipelines", "models", "simulation", "store", "objectives", "metrics"),
    *("training", "budget", "interop", "reporting", "stages", "arena", "app", "cli"),
)
SETTINGS = [
    name
    for name in FILES
    if name.startswith("stages.")
    and name
    not in (
        *("stages.starts", "stages.exchange", "stages.students"),
        *("stages.targets", "stages.prompted"),
    )
] + [
    *("arena.demo", "arena.runner", "app.__init__", "networks.config", "training.settings"),
]
LAZY = {
    *("lightning_fabric", "sklearn", "ot", "torchdiffeq", "matplotlib", "tensorboard", "diffusers"),
    *("gradio", "datasets", "scipy", "PIL", "jinja2", "peft", "transformers"),
}


def part(module: str) -> str:
    """``data.scaling`` belongs to ``data``; the package's own ``__init__`` to itself."""
    return module.partition(".")[0]


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute names of what a module imports; ``from a import b`` gives ``a.b``, which may be a
    module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the line"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but the bodies of functions and what only
    type checkers read."""
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield child
            yield from at_import(child)


def own(names: Iterator[str]) -> set[str]:
    """The modules of this package among imported names, without its prefix."""
    found = set()
    for name in names:
        path = name.removeprefix("bezierdistill.")
        if path != name:
            module = (
                path if path in FILES or f"{path}.__init__" in FILES else path.rpartition(".")[0]
            )
            found.add(module or "__init__")
    return found


USES = {name: own(imports(ast.walk(tree))) for name, tree in TREES.items()}


def loaded_with(module: str) -> set[str]:
    """Modules of this package that importing ``module`` runs."""
    seen: set[str] = set()
    open_ends = {module, "__init__"}
    while open_ends:
        name = open_ends.pop()
        name = name if name in TREES else f"{name}.__init__"
        if name not in seen:
            seen.add(name)
            parents = {
                f"{name.rsplit('.', i)[0]}.__init__" for i in range(1, name.count(".") + 1)
            } & TREES.keys()
            open_ends |= own(imports(at_import(TREES[name]))) | parents
    return seen


def test_the_line_names_every_room_once() -> None:
    assert len(set(LINE)) == len(LINE)
    assert set(LINE) == {part(name) for name in FILES} - {"__init__", "__main__"}


@pytest.mark.parametrize("module", [name for name in FILES if part(name) in LINE])
def test_imports_point_one_way(module: str) -> None:
    before = LINE[: LINE.index(part(module)) + 1]
    used = {name for name in USES[module] if name != "__init__"}
    wrong = {name for name in used if part(name) not in before}
    assert not wrong, f"{module} imports {sorted(wrong)}, which come after it"


@pytest.mark.parametrize("module", FILES)
def test_modules_take_nothing_but_the_version_from_the_package_itself(module: str) -> None:
    names = {
        name.removeprefix("bezierdistill.")
        for name in imports(ast.walk(TREES[module]))
        if name.startswith("bezierdistill.")
    }
    assert {name for name in names if "." not in name and part(name) not in map(part, FILES)} <= {
        "__version__"
    }


def test_no_part_imports_itself_through_another() -> None:
    graph: dict[str, set[str]] = {}
    for name, used in USES.items():
        graph.setdefault(part(name), set()).update(
            {part(module) for module in used} - {part(name), "__init__"}
        )
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_nobody_imports_the_command_line() -> None:
    assert not [
        name
        for name, used in USES.items()
        if part(name) not in ("cli", "__main__") and "cli" in {part(m) for m in used}
    ]


@pytest.mark.parametrize("entry", ["__init__", "models.folder", "training.loop", "store.reader"])
def test_heavy_packages_are_imported_where_they_are_used(entry: str) -> None:
    for name in loaded_with(entry):
        heavy = {
            used
            for used in imports(at_import(TREES[name]))
            if set(used.split(".")) & LAZY and not used.startswith("bezierdistill.")
        }
        assert not heavy, f"{name} imports {sorted(heavy)} at module level"


@pytest.mark.parametrize("module", SETTINGS)
def test_settings_take_no_torch(module: str) -> None:
    for name in loaded_with(module):
        used = {one.split(".")[0] for one in imports(at_import(TREES[name]))}
        assert not used & {"torch", "numpy", *LAZY}, f"{name}, which {module} runs"


@pytest.mark.parametrize("module", [name for name in FILES if name != "records"])
def test_no_string_key_of_a_record_is_read_outside_of_records(module: str) -> None:
    names = "card|recipe|manifest|made|shard|scores|row|rounds"
    found = re.findall(rf"\b(?:{names})(?:\[[\"']\w+[\"']\]|\.get\()", FILES[module].read_text())
    assert not found


def test_no_setting_is_declared_twice() -> None:
    """What a recipe, an arena or a reflow hands on has the defaults of the stage that it is of."""
    recipe = RecipeConfig("digits", Path("out"))
    for name, stage in {
        "train": TrainConfig,
        "simulate": SimulateConfig,
        "distill": DistillConfig,
    }.items():
        own = getattr(recipe, name)
        assert issubclass(stage, type(own))
        assert not {one.name for one in dataclasses.fields(own)} & (
            {one.name for one in dataclasses.fields(RecipeConfig)} - {name}
        )
    assert recipe.train == type(recipe.train)()
    assert recipe.distill == type(recipe.distill)()
    assert recipe.simulate == dataclasses.replace(type(recipe.simulate)(), steps=8)
    assert recipe.loop == LoopConfig()
    assert recipe.network == NetworkConfig()


@pytest.mark.parametrize("module", SETTINGS)
def test_every_setting_has_its_help_under_it(module: str) -> None:
    tree = TREES[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and re.search(r"(Config|Settings|Shares)$", node.name):
            for field, after in pairwise([*node.body, ast.Pass()]):
                if isinstance(field, ast.AnnAssign):
                    text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert text, f"{module}.{node.name}: {ast.unparse(field)}"


@pytest.mark.parametrize("module", FILES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert len(ast.get_docstring(TREES[module]) or "") > 20


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_pickled(module: str) -> None:
    names = {used.split(".")[0] for used in imports(ast.walk(TREES[module]))}
    assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for call in (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)):
        assert ast.unparse(call.func) not in ("torch.load", "torch.save", "eval", "exec")
        assert not [
            k for k in call.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"
        ]
        if re.fullmatch(r"(np|numpy)\.load", ast.unparse(call.func)):
            assert "allow_pickle" in {k.arg for k in call.keywords}

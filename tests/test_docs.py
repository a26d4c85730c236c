"""README and documentation: their code and commands run as they stand, only smaller, and what they
train is trained; links, figures, commands, messages and names are true."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bezierdistill import metrics, records
from bezierdistill.cli import VERBS, main, parse
from bezierdistill.data import load_data
from bezierdistill.flow_map import jump
from bezierdistill.metrics import classifier, frechet_distance
from bezierdistill.models.folder import load_model, read_card
from bezierdistill.models.model import Model
from bezierdistill.networks.config import NetworkConfig
from bezierdistill.noise import Stream, noise
from foreign_networks import MINE

ROOT = Path(__file__).parents[1]
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "bezierdistill"
PAGES = {path.stem: path.read_text() for path in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PUBLIC = {*importlib.import_module("bezierdistill").__all__}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SLOW = ("choose", "commands", "own-model", "results", "scale")
PAST = ("log", "changelog")  # these tell of the past
NO_MODELS = (
    "README",
    "choose",
    "concepts",
    "use-in-code",
)  # an arena keeps none, nor does a loop of one's own
# How code and commands are made small: networks and numbers with which models still learn.
MLP = ["--network.kind", "mlp", "--network.width", "32", "--network.depth", "2"]
SHORT = ["--steps", "150", "--batch", "64"]
ARENA = ["--seeds", "1", "--budget", "40000", "--batch", "32", "--samples", "64", *MLP]
SMALLER = {
    "arena": ARENA,
    "demo": ["--fast"],
    "distill": SHORT,
    "recipe": ["--budget", "150000", "--batch", "32", *MLP],
    "reflow": ["--rounds", "1", *SHORT, "--count", "500", *MLP],
    "sample": ["--count", "100"],
    "simulate": ["--count", "500"],
    "train": [*SHORT, *MLP],
}
LESS = [
    (r"TrainConfig\(", "TrainConfig(network=bd.NetworkConfig(width=32, depth=2), batch=64, "),
    (r"DistillConfig\(((?:(?!steps=)[^\n])*)\n", r"DistillConfig(steps=150, \1\n"),
    (r"DistillConfig\(", "DistillConfig(batch=64, "),
    (r"SimulateConfig\(((?:(?!count=)[^\n])*)\n", r"SimulateConfig(count=500, \1\n"),
    (r"steps=(?:3000|500)", "steps=150"),
    (r"align=\d+", "align=20"),
    (r"sample\(1000", "sample(200"),
    (r"count=\d[\d_]{3,}", "count=500"),
]
# A tiny pipeline with prompts learns nothing, and has many passes of text.
PROMPTED = {
    "simulate": ["--count", "32", "--steps", "4"],
    "distill": ["--steps", "4", "--batch", "4", "--align", "2"],
    "sample": ["--count", "2"],
}
RUN = ("bezierdistill", "torchrun", "srun")  # what starts a command of ours
LEFT = ("make", "git", "cd", "source", "pip", "python", "head=$(scontrol", "#SBATCH")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of every block of code, fenced or indented, in order."""
    fenced, indented = r"^```(\S*)[^\n]*\n(.*?)^```$", r"(?<=\n\n)((?: {4}[^\n]*\n)+)"
    for block in re.finditer(f"{fenced}|{indented}", text, re.DOTALL | re.MULTILINE):
        if block[3]:
            yield "indented", re.sub(r"^ {4}", "", block[3], flags=re.MULTILINE)
        else:
            yield block[1], block[2]


def shell(text: str) -> Iterator[str]:
    """The lines of a block of a shell, continued ones as one."""
    yield from (line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip())


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of our commands in a block, whatever starts them."""
    for line in shell(text):
        if line.startswith(RUN):
            own = re.sub(r"^(bezierdistill|.* bezierdistill\.cli) ", "", line)
            yield shlex.split(own, comments=True)


def smaller(command: list[str]) -> list[str]:
    """A command as it is run here."""
    own = [part.replace("/shared/", "shared/") for part in command]
    if "--methods" in own:
        where = own.index("--methods") + 1
        files = [name for name in own[where].split(",") if name.endswith(".py")]
        own[where] = ",".join(["rfd-1", *files])
    if any(part.startswith("runs/prompted") for part in own):
        return own + PROMPTED.get(own[0], [])
    if "--align" in own:
        own += ["--align", "20"]
    return own + SMALLER.get(own[0], [])


def python(text: str) -> str:
    """Python code as it is run here."""
    for large, small in LESS:
        text = re.sub(large, small, text)
    return text


CODE = [
    name
    for name, text in PAGES.items()
    if name not in PAST
    and any(kind == "python" or list(commands(code)) for kind, code in blocks(text))
]


def save_images(folder: Path, x: np.ndarray) -> None:
    """Digits of 8 x 8, as PNGs of 20 x 20."""
    folder.mkdir(parents=True)
    for k, pixels in enumerate(x):
        image = Image.fromarray((pixels * 15).astype(np.uint8)).resize((20, 20))
        image.save(folder / f"{k:02d}.png")


def save_pipeline(folder: str) -> None:
    """A pipeline of diffusers, which takes seconds to import."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    sizes: dict[str, Any] = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    kinds: dict[str, Any] = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    DDPMPipeline(UNet2DModel(8, 3, 3, **sizes, **kinds), DDPMScheduler()).save_pretrained(folder)


@pytest.fixture
def readers_folder(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages take for granted: a folder of diffusers, pairs, images in folders, files."""
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "STEPS", 10)
    torch.manual_seed(0)
    Path("shared").mkdir()
    Path("shared/curves").symlink_to(tmp_path / "runs" / "curves")
    if "DDPM" in PAGES[page]:
        save_pipeline("DDPM")
    x, labels = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8)
    Path("PAIRS").mkdir()
    np.save("PAIRS/z0.npy", torch.randn(256, 1, 8, 8).numpy())
    np.save("PAIRS/z1.npy", (x[:256, None] / 8 - 1).astype(np.float32))
    if "PIPELINE" in PAGES[page]:
        from tiny_pipelines import save  # it takes seconds to import

        save("sd3", Path("PIPELINE"))
        Path("PROMPTS.txt").write_text("a red boot\na small blue bag with a green handle\nboot\n")
    for k, folder in enumerate(("PHOTOS/cats", "PHOTOS/dogs", "SUMMER", "WINTER", "PATH")):
        if folder.partition("/")[0] in PAGES[page]:
            save_images(Path(folder), x[labels == k][:96])
    syllables = ("ba", "co", "du", "la", "mi", "no", "ra", "su")
    found = map("".join, itertools.product(syllables, repeat=3))
    Path("WORDS.txt").write_text("\n".join(found))
    np.save("threes.npy", x[labels == 3][:4])
    Path("mine.py").write_text(MINE)
    if page == "README":  # as the page on one's own model has it
        own = PAGES["own-model"].partition("\n## A torch module\n")[2]
        Path("my_network.py").write_text(python(next(code for _, code in blocks(own))))
    np.savez("mnist.npz", x=(15 * x[:600]).astype(np.uint8), labels=labels[:600])
    Path("recipes").symlink_to(ROOT / "recipes")
    np.savez("usps.npz", x=x[:200].astype(np.uint8), labels=labels[:200])


def untrained(model: Model) -> Model:
    """A model with the network as it was before it learned anything."""
    assert isinstance(model.network, NetworkConfig)
    return Model(model.network.build(model.shape, 0, model.condition_size).eval(), model.card)


@torch.no_grad()
def far_from_data(model: Model) -> float:
    """The Frechet distance of a model's samples, from noise that it has not met, to its data."""
    data, rows = load_data(str(model.card.data)), range(256)
    cond = model.condition(rows, 0, Stream.JUDGE)
    x0 = noise(0, Stream.JUDGE, rows, model.shape)
    if model.card.domain_data is not None:
        x0 = load_data(model.card.domain_data).real(60, 0, "train")
    passes, solver = (1, "euler") if model.card.kind == "student" else (16, "heun")
    x = model.generate(x0, passes, solver, cond)
    return frechet_distance(data.scaling.clamp(x), data.real(60, 0, "train"))


def trained_models(folder: Path) -> Iterator[Model]:
    """The models of our own networks below a folder that name the data they learned from; not the
    weak teachers of recipes, which have a few dozen steps, nor what takes vectors."""
    for card in sorted(folder.rglob("model.json")):
        if read_card(card.parent).network["kind"] == "own":  # its code is not at hand
            continue
        model = load_model(card.parent)
        ours = model.card.data is not None and isinstance(model.network, NetworkConfig)
        ours = ours and not (model.condition_size and not model.conditions.classes)
        if ours and model.card.steps > 100:
            yield model


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in CODE]
)
@pytest.mark.usefixtures("readers_folder")
@pytest.mark.filterwarnings("ignore")
def test_code_runs_in_order_and_trains(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, object] = {}
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    for kind, text in blocks(PAGES[page]):
        if kind == "python":
            code = python(text)
            if file := re.match(r"# (\w+\.py)\n", code):
                Path(file[1]).write_text(code)
            exec(compile(code, f"{page}.md", "exec", dont_inherit=True), names)
            continue
        for command in commands(text):
            if command[0] in ("app", "push"):  # which serves, or needs a login
                parse(command)
            else:
                told = shlex.join(command)
                assert main(smaller(command)) == 0, f"{told}: {capsys.readouterr().err}"
    models = list(trained_models(Path()))
    assert models or page in NO_MODELS
    for model in models:
        assert far_from_data(model) < 0.7 * far_from_data(untrained(model)), model.folder


@pytest.mark.parametrize("page", CODE)
def test_commands_are_known(page: str) -> None:
    for kind, text in blocks(PAGES[page]):
        for line in shell(text) if kind in ("bash", "sh", "shell", "console") else ():
            assert line.startswith((*RUN, *LEFT)), f"{page}.md: who runs {line!r}?"
        for command in commands(text):
            assert command[0] in {*VERBS, "store"}


def test_every_verb_is_on_the_page_of_commands() -> None:
    shown = [" ".join(own) for _, text in blocks(PAGES["commands"]) for own in commands(text)]
    assert [
        verb for verb in VERBS if not any(f"{own} ".startswith(f"{verb} ") for own in shown)
    ] == []


@pytest.mark.parametrize("page", [*(page for page in PAGES if page not in PAST), "CONTRIBUTING"])
def test_what_make_and_python_run_is_there(page: str) -> None:
    text = PAGES.get(page, CONTRIBUTING)
    asked = re.findall(r"(?:`|^|^ {4})make ([a-z][\w-]*)(?=[`\s])", text, re.MULTILINE)
    assert set(asked) <= TARGETS
    for file in re.findall(r"\b(?:benchmarks|recipes)/[\w-]+\.(?:py|yaml|sh)", text):
        assert (ROOT / file).exists(), file


def test_the_map_leads_to_files_for_every_verb_ten_at_most() -> None:
    rows = re.findall(r"^\| (`[\w`, ]+`) \| (`[^|]*`) \|$", CONTRIBUTING, re.MULTILINE)
    verbs = {verb for names, _ in rows for verb in re.findall(r"`(\w+)`", names)}
    assert verbs == {verb.partition(" ")[0] for verb in VERBS}
    for names, files in rows:
        listed = re.findall(r"`([^`]+)`", files)
        assert len(listed) <= 10, names
        assert [file for file in listed if not (SOURCE / file).exists()] == [], names


def test_the_order_of_rooms_is_the_one_that_is_enforced() -> None:
    told = re.search(r"enforces it\):\n\n((?: {4}.*\n)+)", CONTRIBUTING)
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text())
    line = next(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LINE"
    )
    rooms = [node.value for node in ast.walk(line) if isinstance(node, ast.Constant)]
    assert told is not None
    assert told[1].split() == sorted(rooms, key=rooms.index)


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    own = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", own, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path", [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    code = r"^```(?!\{).*?^```$|`[^`\n]*`"
    text = re.sub(code, "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in slugs(target.read_text()), f"{path.name}: {link}"


@pytest.mark.parametrize("page", ["README", "index", "choose"])
def test_figures_of_the_short_tables_are_results(page: str) -> None:
    measured = "".join(PAGES[page] for page in ("results", "log", "scale"))
    rows = [line for line in PAGES[page].splitlines() if line.startswith("|")]
    figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", re.sub(r"`[^`]*`", "", "".join(rows)))
    assert {figure for figure in figures if figure not in measured} == set()


@pytest.mark.parametrize("page", ["README", "index", "choose"])
def test_short_tables_name_the_commit_of_their_results(page: str) -> None:
    named = re.search(r"commit `([0-9a-f]{7})`", PAGES[page])
    assert named
    assert f"commit `{named[1]}`" in PAGES["results"]


@pytest.mark.parametrize("page", ["choose", "results", "scale"])
def test_older_figures_that_depend_on_draws_name_their_commit(page: str) -> None:
    assert re.search(r"`90de2d2`[;:,.]? *\(?[Rr]andom\s+draws\s+have\s+changed", PAGES[page])


def test_the_reference_lists_what_is_public() -> None:
    found = re.findall(r"^\.\. auto(?:class|function):: ([\w.]+)$", PAGES["api"], re.MULTILINE)
    listed = [name.rpartition(".")[2] for name in found]
    assert len(listed) == len(set(listed))
    public = {*PUBLIC - {"metrics"}, *metrics.__all__}
    assert public <= set(listed), public - set(listed)
    for name in found:
        module, _, own = name.rpartition(".")
        assert hasattr(importlib.import_module(module), own), name
    kinds = [kind for kind in vars(records).values() if isinstance(kind, type)]
    kept = {kind.__name__ for kind in kinds if kind.__module__ == records.__name__}
    assert kept - set(listed) <= {"Record", "Imported", "Merged"}


@pytest.mark.parametrize("page", ["extend", "own-model", "use-in-code"])
def test_pages_for_ones_own_code_use_public_names_alone(page: str) -> None:
    code = [ast.parse(text) for kind, text in blocks(PAGES[page]) if kind == "python"]
    nodes = [node for tree in code for node in ast.walk(tree)]
    modules = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    own = {name for name in modules if name.startswith("bezierdistill")}
    assert own - {"bezierdistill.interop.diffusers"} == {"bezierdistill"}
    taken = [n for n in nodes if isinstance(n, ast.ImportFrom) and "bezierdistill" in str(n.module)]
    assert {n.module for n in taken} <= {"bezierdistill"}
    used = {alias.name for n in taken for alias in n.names} | {
        n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "bd"
    }
    assert len(used) > 5
    assert used <= PUBLIC, used - PUBLIC


def test_the_messages_of_the_page_are_those_of_the_library() -> None:
    """By their first words: how a message goes on is not fixed here."""
    marks = r'"\s+f?"|\{[^{}]*\}'  # between the parts of a message, and what varies
    files = [path.read_text() for path in sorted(SOURCE.rglob("*.py"))]
    source = re.sub(marks, "", "".join(files))
    cells = re.findall(r"^\| `([^`\n]*)` \|", PAGES["troubleshooting"], re.MULTILINE)
    assert len(cells) == 20
    parts = [[part.strip() for part in cell.split("…")] for cell in cells]
    firsts = [next(part for part in own if len(part) > 10)[:24] for own in parts]
    assert [first for first in firsts if first not in source] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    for name in ("sphinx", "furo", "myst_nb", "ipykernel"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: make docs, or pip install '.[docs]'")
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"]
    places = ["--doctree-dir", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")]
    command = [sys.executable, "-m", "sphinx", *options, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fetched = r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"https?:"
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(fetched, page.read_text()), page.name


def test_from_a_module_to_a_student_in_eight_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first code of the page on one's own module, as it is written there but for numbers."""
    monkeypatch.chdir(tmp_path)
    page = PAGES["own-model"].partition("\n## A torch module\n")[2]
    code = [text for kind, text in blocks(page) if kind == "python"]
    module, student, plain, _, conditional = code[:5]
    assert len(list(filter(str.strip, student.splitlines()))) <= 8
    assert len(list(filter(str.strip, conditional.splitlines()))) <= 12
    names: dict[str, Any] = {}
    for text in (module, student, plain):
        exec(compile(python(text), "own-model.md", "exec", dont_inherit=True), names)
    assert type(names["fast"]) is type(names["module"])
    x0 = noise(0, Stream.SAMPLE, range(200), (2,))
    net = names["student"].net
    torch.testing.assert_close(net.module.state_dict(), dict(names["fast"].state_dict()))
    with torch.no_grad():
        end = jump(net, x0, (0.0, 1.0))
    torch.testing.assert_close(torch.from_numpy(names["samples"]), end, rtol=1e-5, atol=1e-5)

"""The documentation: its code and commands run as they stand, only with smaller numbers; its links,
figures and messages are true."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bezierdistill
from bezierdistill import metrics, objectives
from bezierdistill.cli import VERBS, main, parse
from bezierdistill.metrics import classifier

ROOT = Path(__file__).parents[1]
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "bezierdistill"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
NET = ["--network.kind", "mlp", "--network.width", "16", "--network.depth", "2"]
# The flags that a command of the documentation gets as well, and the numbers of Python code that
# are replaced.
SMALLER = {
    "arena": ["--seeds", "1", "--budget", "12000", "--batch", "32", "--samples", "64", *NET],
    "demo": ["--fast"],
    "distill": ["--steps", "3"],
    "recipe": ["--budget", "100000", "--batch", "32", *NET],
    "reflow": ["--rounds", "1", "--steps", "60", "--count", "90", "--batch", "16", *NET],
    "sample": ["--count", "90"],
    "simulate": ["--count", "90"],
    "train": ["--steps", "3"],
}
LESS = [
    (r"steps=\d{3,}", "steps=3"),
    (r"(?m)^(?!.*steps=)(.*)align=\d+", r"\1align=2, steps=3"),
    (r"align=\d+", "align=2"),
    (r"count=\d[\d_]{3,}", "count=90"),
    (r"\d{2,3}_000", "300"),
    (r"SimulateConfig\((?!.*count=)(.*)\)\)", r"SimulateConfig(\1, count=90))"),
]
RUN = ("bezierdistill", "torchrun", "srun")  # what starts a command of ours
LEFT = (
    "make",
    "git",
    "cd",
    "source",
    "pip",
    "python",
    "head=$(scontrol",
    "#SBATCH",
)  # what the tests leave to the reader


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of every block of code, fenced or indented, in order."""
    for block in re.finditer(
        r"^```(\S*)[^\n]*\n(.*?)^```$|(?<=\n\n)((?: {4}[^\n]*\n)+)", text, re.DOTALL | re.MULTILINE
    ):
        yield (
            ("indented", re.sub(r"^ {4}", "", block[3], flags=re.MULTILINE))
            if block[3]
            else (block[1], block[2])
        )


def shell(text: str) -> Iterator[str]:
    """The lines of a block of a shell, continued ones as one."""
    yield from (line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip())


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of our commands in a block, whatever starts them."""
    for line in shell(text):
        if line.startswith(RUN):
            yield shlex.split(
                re.sub(r"^(bezierdistill|.* bezierdistill\.cli) ", "", line), comments=True
            )


def smaller(command: list[str]) -> list[str]:
    """A command as it is run here."""
    own = [part.replace("/shared/", "shared/") for part in command]
    if "--methods" in own:
        where = own.index("--methods") + 1
        own[where] = ",".join(
            ["rfd-1", *(name for name in own[where].split(",") if name.endswith(".py"))]
        )
    if "--align" in own:
        own += ["--align", "2"]
    return own + SMALLER.get(own[0], [])


def python(text: str) -> str:
    """Python code as it is run here."""
    for large, small in LESS:
        text = re.sub(large, small, text)
    return text


CODE = [
    name
    for name, text in PAGES.items()
    if any(kind == "python" or list(commands(code)) for kind, code in blocks(text))
]


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages take for granted: a folder of diffusers, pairs, images in folders, a file of
    images."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "STEPS", 10)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "curves").symlink_to(tmp_path / "runs" / "curves")
    blocks = {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 4,
    }
    DDPMPipeline(UNet2DModel(8, 3, 3, **blocks), DDPMScheduler()).save_pretrained("DDPM")
    rng = np.random.default_rng(0)
    (tmp_path / "PAIRS").mkdir()
    for name in ("z0", "z1"):
        np.save(f"PAIRS/{name}.npy", rng.standard_normal((64, 1, 8, 8)).astype(np.float32))
    for folder in ("PHOTOS/cats", "PHOTOS/dogs", "SUMMER", "WINTER", "PATH"):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(96):
            Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(
                f"{folder}/{k:02d}.png"
            )
    np.savez(
        "usps.npz", x=rng.integers(0, 256, (96, 8, 8), dtype=np.uint8), labels=np.arange(96) % 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", CODE)
@pytest.mark.usefixtures("readers_folder")
@pytest.mark.filterwarnings("ignore")
def test_code_runs_in_order(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for kind, text in blocks(PAGES[page]):
        if kind == "python":
            code = python(text)
            if file := re.match(r"# (\w+\.py)\n", code):
                Path(file[1]).write_text(code)
            exec(compile(code, f"{page}.md", "exec", dont_inherit=True), names)
            continue
        for command in commands(text):
            if command[0] == "app":  # it would serve until it is interrupted
                parse(command)
            else:
                assert main(smaller(command)) == 0, (
                    f"{shlex.join(command)}: {capsys.readouterr().err}"
                )


@pytest.mark.parametrize("page", CODE)
def test_commands_are_known(page: str) -> None:
    for kind, text in blocks(PAGES[page]):
        for line in shell(text) if kind in ("bash", "sh", "shell", "console") else ():
            assert line.startswith((*RUN, *LEFT)), (
                f"{page}.md: the tests do not know what to do with {line!r}"
            )
        for command in commands(text):
            assert command[0] in {*VERBS, "store"}


@pytest.mark.parametrize(
    "page", [*(page for page in PAGES if page not in ("log", "changelog")), "README"]
)  # these tell of the past
def test_what_make_and_python_run_is_there(page: str) -> None:
    text = PAGES.get(page) or (ROOT / f"{page}.md").read_text()
    assert (
        set(re.findall(r"(?:`|^|^ {4})make ([a-z][\w-]*)(?=[`\s])", text, re.MULTILINE)) <= TARGETS
    )
    for file in re.findall(r"\b(?:benchmarks|recipes)/[\w-]+\.(?:py|yaml|sh)", text):
        assert (ROOT / file).exists(), file


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(
        r"^#+ (.+)$",
        re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path", [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(
        r"^```(?!\{).*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in slugs(target.read_text()), f"{path.name}: {link}"


def test_figures_of_the_decision_tables_are_results() -> None:
    measured = "".join(
        [(ROOT / "README.md").read_text(), *(PAGES[page] for page in ("results", "log", "scale"))]
    )
    for page in ("index", "choose"):
        rows = [line for line in PAGES[page].splitlines() if line.startswith("|")]
        figures = {
            figure
            for row in rows
            for figure in re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", re.sub(r"`[^`]*`", "", row))
        }
        assert {figure for figure in figures if figure not in measured} == set(), page


def test_the_reference_lists_what_is_public() -> None:
    listed = set(
        re.findall(r"^\.\. auto(?:class|function):: ([\w.]+)$", PAGES["api"], re.MULTILINE)
    )
    public = {
        f"{module.__name__}.{name}"
        for module in (bezierdistill, objectives, metrics)
        for name in module.__all__
    }
    assert listed == public - {"bezierdistill.metrics.Evaluator"} | {
        "bezierdistill.arena.bench.Bench"
    }  # one Evaluator, not two


# Raised by what a user never meets on the way from data to samples: settings of rivals that the
# arena alone builds, and functions that only other modules call with what they have checked.
INTERNAL = {
    *(
        f"objectives/{name}.py"
        for name in (
            "conic",
            "consistency",
            "constant_acceleration",
            "distribution_matching",
            "flow_map_matching",
        )
    ),
    *(
        f"objectives/{name}.py"
        for name in ("mean_flow", "piecewise", "progressive", "rectified_flow_pp", "shortcut")
    ),
    "metrics/translation.py",
}


def template(node: ast.expr) -> str:
    """The constant parts of a text, with … for what varies."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return "…"


def raised() -> Iterator[tuple[str, str]]:
    """File and template of every message that the library raises."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                yield path.relative_to(SOURCE).as_posix(), template(node.exc.args[0])


def messages() -> set[str]:
    """The messages of the page, which stand in the first cells of its tables."""
    cells = re.findall(r"^\| (`[^\n]*?`) \|", PAGES["troubleshooting"], re.MULTILINE)
    return {message.strip() for cell in cells for message in re.findall(r"`([^`]+)`", cell)}


def stands_for(message: str, text: str) -> bool:
    """Whether a message of the page is one of the library, or, if it is long enough to tell it from
    others, a part of one."""
    return message == text or (len(re.sub("[… ]", "", message)) >= 15 and message in text)


def test_every_message_of_the_page_is_one_of_the_library() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    texts = {
        template(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr)
    }
    assert {
        message for message in messages() if not any(stands_for(message, text) for text in texts)
    } == set()


def test_every_message_of_the_library_is_on_the_page() -> None:
    known = messages()
    missing = {
        f"{file}: {text}"
        for file, text in raised()
        if file not in INTERNAL
        and text.strip("…: ")
        and not any(stands_for(message, text) for message in known)
    }
    assert missing == set(), "\n".join(sorted(missing))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    lacking = [
        name
        for name in ("sphinx", "furo", "myst_nb", "ipykernel")
        if importlib.util.find_spec(name) is None
    ]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed: make docs, or pip install '.[docs]'")
    options = [
        "--quiet",
        "--fail-on-warning",
        "--keep-going",
        "--fresh-env",
        "--doctree-dir",
        str(tmp_path / "doctrees"),
    ]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(
            r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"https?:", page.read_text()
        ), page.name

"""What the command says of itself: help that agrees with the parser, examples that parse,
completion in a real shell, the doctor."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bezierdistill.cli import STORE, VERBS, doctor, main, parse
from bezierdistill.cli.doctor import RECIPES, Need, passes_a_second
from bezierdistill.cli.verbs import GROUPS
from bezierdistill.data.loading import load_data
from bezierdistill.models import NetworkConfig
from bezierdistill.stages.recipe import RecipeConfig

WORDS = [[name] for name in VERBS] + [["store", name] for name in STORE]
RECIPE_FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints that ends the program well."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    return capsys.readouterr().out


def leaves(tree: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Values by the names that flags have."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= (
            leaves(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
        )
    return found


def shown(value: Any, nested: bool) -> str:
    """A default as it is shown."""
    if isinstance(value, bool) and not nested:
        return "on" if value else "off"
    return (
        {None: "none", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_help_shows_every_option_with_the_default_that_the_parser_has(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, *words, "--help").partition("\noptions:")[2]
    blocks = {
        block.split()[0].removeprefix("--"): " ".join(block.split())
        for block in re.split(r"\n  (?=\S)", text)
        if block.strip()
    }
    for name, default in leaves(yaml.safe_load(printed(capsys, *words, "--print_config"))).items():
        if name in needed(words):
            assert any(
                "(required)" in blocks.get(spelt, "")
                for spelt in (name, name.upper(), "{bash,zsh,fish}")
            ), name
        else:
            assert f"(default: {shown(default, '.' in name)})" in blocks[name], name


def needed(words: list[str]) -> set[str]:
    """Options that have no default."""
    config: Any = VERBS[words[0]][0] if len(words) == 1 else STORE[words[1]][0]
    fields = dataclasses.fields(config)
    return {
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    }


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_examples_parse_and_lines_fit(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = printed(capsys, *words, "--help")
        examples = re.findall(r"^  (bezierdistill .*)$", text, re.MULTILINE)
        assert "example:\n" in text
        assert examples
        assert all(
            len(line) <= columns for line in text.splitlines() if line.strip() not in examples
        )
        assert words[0] in ("completion", "import") or max(map(len, examples)) <= 78
    for example in examples:
        line = shlex.split(example.partition(" > ")[0])
        assert line[1 : len(words) + 1] == words
        assert isinstance(
            parse(line[1:]).config, (VERBS[words[0]] if len(words) == 1 else STORE[words[1]])[0]
        )


def test_the_command_alone_lists_every_verb_once_with_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = printed(capsys)
    assert text == printed(capsys, "--help")
    listed = re.findall(r"^  (\w+)  +(\S.*)$", text, re.MULTILINE)
    assert (
        sorted(name for name, _ in listed)
        == sorted([*VERBS, "store"])
        == sorted(name for names in GROUPS.values() for name in names)
    )
    assert all(len(line) <= 80 for line in text.splitlines() if "Open a web page" not in line)
    actions = re.findall(r"^  (\w+)  +\S", printed(capsys, "store", "--help"), re.MULTILINE)
    assert actions == list(STORE)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    script = tmp_path_factory.mktemp("shell") / "bezierdistill"
    with pytest.MonkeyPatch.context() as patch, script.open("w") as out:
        patch.setattr("sys.stdout", out)
        assert main(["completion", "bash"]) == 0
    return script


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    line = " ".join(map(shlex.quote, words))
    ask = (
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}';"
        " COMP_POINT=${#COMP_LINE}"
    )
    function = "$(complete -p bezierdistill | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    code = (
        f"source {script}; {ask}; {function} bezierdistill '{words[-1]}' '{words[-2]}'; printf"
        " '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return {reply.strip() for reply in done.stdout.splitlines()} - {""}


def test_bash_completes_verbs_options_and_choices(bash: Path) -> None:
    subprocess.run(["bash", "-n", bash], check=True, timeout=60)
    assert completed(bash, "bezierdistill", "tr") == {"train", "translate"}
    assert completed(bash, "bezierdistill", "store", "ver") == {"verify"}
    assert completed(bash, "bezierdistill", "train", "--network.w") == {"--network.width"}
    assert completed(bash, "bezierdistill", "train", "--coupling", "o") == {"ot"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_that_names_every_verb(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = printed(capsys, "completion", shell)
    assert all(re.search(rf"\b{verb}\b", script) for verb in [*VERBS, "store"])
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=60)


def test_the_doctor_knows_every_recipe_and_what_it_asks_for() -> None:
    assert sorted(RECIPES) == sorted(file.stem for file in RECIPE_FILES)
    for file in RECIPE_FILES:
        more = ["--source", "x"] if file.stem == "translation" else []
        config, need = (
            parse(["recipe", "--config", str(file), "--data", "x", "--out", "y", *more]).config,
            RECIPES[file.stem],
        )
        assert isinstance(config, RecipeConfig)
        assert (need.network, need.budget, need.batch) == (
            config.network,
            config.budget,
            config.batch,
        )
        assert (need.gpu > 0) == (config.loop.accelerator == "cuda")
        assert (need.conditions > 0) == config.conditional
        networks = 1 + (config.weak_share > 0)
        count = config.part(config.curves_share) / (2 * config.solver_steps * networks)
        assert count * (config.degree + 1) * 4 * torch.Size(need.shape).numel() / 1e9 < need.disk
    assert RECIPES["bezier"].shape == load_data("digits").shape


def test_the_doctor_tells_what_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "not" / "yet"))
    found = json.loads(printed(capsys, "doctor", "--json", "--seconds", "0.01"))
    assert found["usable"]
    assert found["cache_writable"]
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["gpus"]) == torch.cuda.device_count()
    for recipe in found["recipes"]:
        assert bool(recipe["lacks"]) == (
            RECIPES[recipe["recipe"]].gpu
            > max([card["memory_gb"] for card in found["gpus"]], default=0)
        )
        if not recipe["lacks"]:
            assert recipe["minutes"] == pytest.approx(
                recipe["passes"] / recipe["passes_a_second"] / 60, abs=0.1
            )
    text = printed(capsys, "doctor", "--seconds", "0")
    assert all(name in text for name in RECIPES)
    assert "minutes" not in text


def test_the_doctor_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10**8))
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "file"))
    assert main(["doctor", "--seconds", "0", "--json"]) == 2
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert (
        error == "bezierdistill doctor: no recipe can run here: bezier lacks 1 GB of disk (0.1 are"
        " free)\n"
    )
    assert [warning.partition(" ")[0] for warning in found["warnings"]] == [
        "the",
        str(tmp_path / "file"),
    ]


def test_a_larger_network_is_slower() -> None:
    small, large = (
        Need(NetworkConfig(width=width, depth=3), (64,), 1, 256) for width in (32, 1024)
    )
    assert passes_a_second(small, "cpu", 0.2) > 3 * passes_a_second(large, "cpu", 0.2)

"""What the command says of itself: help that agrees with the parser, examples that parse,
completion in a real shell, the doctor; all of it without torch, in a pipe, for any user."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from bezierdistill.cli import VERBS, doctor, main, parse
from bezierdistill.cli.doctor import read_recipes
from bezierdistill.cli.verbs import Verb
from bezierdistill.settings import as_yaml

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "bezierdistill.cli"]
CHOSEN = {"prediction": "velocity", "schedule": "steps", "shell": "bash"}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command prints that ends the program well."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    return capsys.readouterr().out


def needed(name: str) -> list[str]:
    """A verb with the settings that have no default."""
    words = name.split()
    for field in fields(VERBS[name].config):
        if field.default is MISSING and field.default_factory is MISSING:
            flag = [] if "positional" in field.metadata else [f"--{field.name}"]
            words += [*flag, CHOSEN.get(field.name, "x")]
    return words


def leaves(tree: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Values by the names that flags have."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = leaves(value, f"{start}{name}.") if isinstance(value, dict) else {}
        found |= inner or {f"{start}{name}".replace("_", "-"): value}
    return found


@pytest.mark.parametrize("name", VERBS)
def test_help_shows_every_option_with_its_default(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, *name.split(), "--help")
    settings = leaves(yaml.safe_load(printed(capsys, *needed(name), "--print-config")) or {})
    for flag, value in settings.items():
        block = re.search(
            rf"^  --{re.escape(flag)}(?= )(.*?)(?=^  \S|^\S|^$|\Z)", text, re.M | re.S
        )
        assert block, flag
        words = " ".join(block[1].split())
        one_of_two = (name, flag) == ("import", "folder")
        told = "none" if value in (None, "", []) or one_of_two else str(value)
        told = told.lower() if isinstance(value, bool) else told
        assert words.endswith((f"(default: {told})", "(required)")), flag
    for field in fields(VERBS[name].config):
        assert field.name.upper() in text or f"--{field.name}".replace("_", "-") in text


@pytest.mark.parametrize("name", VERBS)
def test_examples_parse_and_lines_fit(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = VERBS[name]
    assert verb.help.examples
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = printed(capsys, *name.split(), "--help").splitlines()
        assert all(f"  {example}" in lines for example in verb.help.examples)
        assert all(len(line) <= columns for line in lines if line[2:] not in verb.help.examples)
    for example in verb.help.examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        assert words[: len(name.split())] == name.split()
        assert isinstance(parse(words).config, verb.config)


def test_the_command_alone_lists_every_verb_once_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(capsys)
    assert text == printed(capsys, "--help")
    lines = dict(re.findall(r"^  (\w+(?: \w+)?)  +(\S.*)$", text, re.MULTILINE))
    assert lines == {name: verb.help.summary for name, verb in VERBS.items()}
    assert all(len(line) <= 80 for line in text.splitlines())
    actions = re.findall(r"^  (store \w+)  +\S", printed(capsys, "store", "--help"), re.MULTILINE)
    assert actions == [name for name in VERBS if name.startswith("store ")]


@pytest.mark.parametrize("name", VERBS)
def test_every_seed_is_checked_before_work_begins(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for field in fields(VERBS[name].config):
        if field.name.endswith("seed"):
            for value in ("-1", str(2**63)):
                words = [*needed(name), f"--{field.name}".replace("_", "-"), value]
                assert main(words) == 2
                assert f"seed is {value}, expected" in capsys.readouterr().err


@pytest.mark.parametrize("name", VERBS)
def test_texts_and_numbers_may_begin_with_a_minus(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Verb, "run", lambda *_: None)
    for field in fields(VERBS[name].config):
        if "FLOAT" in getattr(field.metadata.get("text"), "word", ""):
            code = main([*needed(name), f"--{field.name}".replace("_", "-"), "-0.5,1.5"])
            assert code == 0 or "(-0.5, 1.5)" in capsys.readouterr().err  # knots are in [0, 1]


TORCHLESS = """
import sys
from bezierdistill.cli import VERBS, main
calls = [["--help"], [], ["--version"], ["store"], ["nothing"], ["completion", "bash"]]
calls += [[*name.split(), option] for name in VERBS for option in ("--help", "--bogus")]
for words in calls:
    try:
        main(words)
    except SystemExit:
        pass
heavy = {"torch", "numpy", "diffusers", "matplotlib", "sklearn", "PIL", "rich", "scipy"}
print(*sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


def test_help_completion_and_mistakes_take_no_torch() -> None:
    line = [sys.executable, "-c", TORCHLESS]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    *mistakes, heavy = done.stderr.splitlines()
    assert len(mistakes) == 1 + len(VERBS)
    assert heavy == ""


def test_help_is_there_without_docstrings() -> None:
    for words in (["--help"], ["train", "--help"], ["doctor", "--help"]):
        plain, bare = (
            subprocess.check_output([sys.executable, *options, *COMMAND[1:], *words])
            for options in ([], ["-OO"])
        )
        assert plain == bare != b""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["completion", "bash"], ["doctor", "--json", "--quiet"]],
)
def test_a_reader_that_leaves_ends_a_command_in_silence(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as head does when it has seen enough
    with open(writer, "wb") as out:
        done = subprocess.run([*COMMAND, *words], stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b""
    assert done.returncode in (0, 141)


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
    assert completed(bash, "bezierdistill", "arena", "--keep-s") == {"--keep-samples"}
    assert completed(bash, "bezierdistill", "train", "--coupling", "o") == {"ot"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_that_names_every_verb(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = printed(capsys, "completion", shell)
    assert all(re.search(rf"\b{name.split()[-1]}\b", script) for name in VERBS)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True, timeout=60)


def test_what_recipes_say_they_need_suffices() -> None:
    recipes = {recipe.name: recipe for recipe in read_recipes()}
    assert recipes.keys() == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    for recipe in recipes.values():
        config, needs = recipe.config, recipe.needs
        assert (needs.gpu > 0) == (config.loop.accelerator == "cuda")
        assert (needs.conditions > 0) == config.train.conditional
        numbers = 4 * (config.simulate.degree + 1)  # bytes per number of a state
        for size in needs.shape:
            numbers *= size
        assert config.simulate.steps is not None
        cost = 2 * config.simulate.steps * (1 + (config.shares.weak > 0))  # Heun
        assert config.shares.curves * config.budget / cost * numbers < needs.disk * doctor.GB


def test_recipes_hold_only_what_differs_from_the_defaults() -> None:
    def settings(words: str) -> dict[str, Any]:
        given = parse(["recipe", *words.split(), "--data", "digits", "--out", "x"]).config
        return leaves(yaml.safe_load(as_yaml(given)))

    usual = settings("")
    for file in (ROOT / "recipes").glob("*.yaml"):
        held = leaves(yaml.safe_load(file.read_text()))
        assert held.items() <= settings(f"--config {file}").items()
        same = {name for name in held if held[name] == usual[name]} - {"data"}
        assert same == ({"budget"} if file.stem == "bezier" else set())


def test_the_doctor_says_what_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "not" / "yet"))
    found = json.loads(printed(capsys, "doctor", "--json"))
    assert found["cache_writable"]
    assert found["machine"]["versions"]["torch"] == torch.__version__
    assert len(found["gpus"]) == torch.cuda.device_count()
    largest = max([card["memory_gb"] for card in found["gpus"]], default=0)
    gpus = {recipe.name: recipe.needs.gpu for recipe in read_recipes()}
    for row in found["recipes"]:
        assert bool(row["lacks"]) == (gpus[row["recipe"]] > largest)
        assert "minutes" not in row
    text = printed(capsys, "doctor")
    assert all(name in text for name in gpus)


def test_the_doctor_measures_where_it_is_asked_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [recipe for recipe in read_recipes() if recipe.name == "bezier"]
    monkeypatch.setattr(doctor, "read_recipes", lambda: recipes)
    (row,) = json.loads(printed(capsys, "doctor", "--json", "--measure", "0.01"))["recipes"]
    assert row["minutes"] == pytest.approx(row["passes"] / row["passes_per_second"] / 60)
    monkeypatch.setattr(doctor, "passes_per_second", lambda *_: 1000.0)
    assert "about 66.7 minutes: 4,000,000 passes at 1,000 per second" in printed(
        capsys, "doctor", "--measure", "1"
    )


def test_the_doctor_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10**8))
    monkeypatch.setattr(doctor.psutil, "getloadavg", lambda: (99.0, 99.0, 99.0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("BEZIERDISTILL_CACHE", str(tmp_path / "file"))
    assert main(["doctor", "--json"]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("bezierdistill doctor: no recipe can run here: ")
    assert error.endswith("lacks 1 GB of disk (0.1 are free)\n")
    load, cache = json.loads(out)["warnings"]
    assert load.startswith("the load is 99.0 of ")
    assert cache.startswith(f"{tmp_path / 'file'} cannot be written")


def test_a_user_whom_nobody_knows_has_an_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "BEZIERDISTILL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert "BEZIERDISTILL_CACHE" in printed(capsys, "doctor") or "cache  /" in printed(
        capsys, "doctor"
    )

"""Hostile settings: whatever flags and YAML files hold, every verb has settings or says one line,
and nothing else happens."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bezierdistill.cli import VERBS, main
from bezierdistill.cli.verbs import Verb

CODE = [
    "!!python/object/apply:os.mknod [MARK]",
    "!!python/object/new:os.mknod {args: [MARK]}",
    "!!python/name:os.system",
    '{"class_path": "os.mknod", "init_args": {"path": "MARK"}}',
    "{class_path: os.mknod, init_args: {path: MARK}}",
]
VALUES = [
    *CODE,
    *("", "-1", "0", "1", "10" * 20, "1" + "0" * 5000, "1e400", "nan", "-inf", "true", "null"),
    *("~", "none", "x", "é\u202e", "\ud800", "../../etc/passwd", "a" * 10**5, "\x00", "a\nb"),
    *("%s%n{0}", "{}", "[]", "[1, 2", "{a: 1}", "'", '"', "-", "--", "@x", "1,2", ":", "&a [*a]"),
    *("*a", "!!binary AAAA", "!!set {a}", "!!int x", "!!float x", "!!timestamp x", "0x1f", "0b2"),
    *("[" * 10**4, "{a: " * 500, "- " * 5000, "1:1", "2026-13-45", "=", "<<: x", "0o9", "1_0"),
    *("? [a]", "{[1]: 2}", "{? {a: 1}: 2}", "---\n---", "a: b: c", "\t", "%YAML 9.9", "|", ">-"),
]
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DOCUMENTS = [
    BOMB,
    *(f"data: {code}\n" for code in CODE),
    *(f"network: {code}\n" for code in CODE),
    *("a: &a [*a]\n", "__path__: /etc/passwd\n", "config: cwd.yaml\n", "config: MARK\n"),
    *("data: " + "[" * 10**4, "{" * 10**4, "x: " * 10**4, "a" * 10**6, "", "-", "- a\n- b\n"),
    *("7", "null", "\x00", "\ufeffdata: x", "data: x\ndata: y\n", "%TAG ! x\n", "<<: {data: x}\n"),
    *("<<: [1]\n", "? {a: b}\n: c\n", "1: 2\n", "null: 3\n", "true: 4\n", "[a]: 5\n", "'': 6\n"),
    *(".: 7\n", "a.b.c: 8\n", "loop.lr: x\n", "loop: 3\n", "loop: [1]\n", "network:\n"),
    *("steps: 1e999\n", "steps: 1" + "0" * 5000, "data: \ud800\n", "--- 1\n--- 2\n", "!x y"),
    *("data: ${oc.env:HOME}\nout: ${a}\n", "help: true\n", "print_config: true\n"),
    *("subcommand: train\n", "verb: train\n", "train: {data: x}\n"),
]
NAMES = ["bogus", "", "config", "loop.", "network.kind.x", "help", "a" * 10**4]


def flags(config: Any, start: str = "") -> Iterator[str]:
    """Every flag of a settings class, those of settings within it too."""
    for name, kind in get_type_hints(config).items():
        yield start + name
        if is_dataclass(kind):
            yield from flags(kind, f"{start}{name}.")


def needed(config: Any) -> dict[str, list[str]]:
    """Values of the settings that have no default."""
    values = {"prediction": ["velocity"], "schedule": ["steps"], "shell": ["bash"]}
    return {
        field.name: values.get(field.name, ["a", "b"] if "tuple" in str(field.type) else ["x"])
        for field in fields(config)
        if field.default is MISSING and field.default_factory is MISSING
    }


values = st.sampled_from(VALUES) | st.text() | st.integers().map(str) | st.floats().map(str)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A verb with flags of which some have hostile values, are missing, or do not exist."""
    verb = draw(st.sampled_from(list(VERBS.values())))
    given = needed(verb.config)
    places = [field.name for field in fields(verb.config) if "positional" in field.metadata]
    names = st.sampled_from([*flags(verb.config), *NAMES])
    given |= draw(st.dictionaries(names, st.lists(values, min_size=1, max_size=2), max_size=3))
    for name in draw(st.sets(st.sampled_from(sorted(given)), max_size=1)) if given else ():
        del given[name]
    words = verb.name.split()
    for name, parts in given.items():
        flag = f"--{name.replace('_', draw(st.sampled_from('_-')))}"
        whole = len(parts) == 1 and draw(st.booleans())
        words += parts if name in places else [f"{flag}={parts[0]}"] if whole else [flag, *parts]
    return words


@st.composite
def documents(draw: st.DrawFn) -> tuple[Verb, bytes]:
    """A verb and a file of settings."""
    verb = draw(st.sampled_from(list(VERBS.values())))
    if draw(st.booleans()):
        text = draw(st.sampled_from(DOCUMENTS))
    else:
        given = needed(verb.config) | {draw(st.sampled_from([*flags(verb.config)])): [draw(values)]}
        text = "".join(f"{name}: {parts[0]}\n" for name, parts in given.items())
    return verb, draw(st.just(text.encode("utf8", "surrogatepass")) | st.binary(max_size=200))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and verbs that do nothing."""
    monkeypatch.setattr(Verb, "run", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(folder: Path, words: list[str]) -> None:
    """A command ends well, or with one line; it leaves the folder as it was."""
    started = time.process_time()
    before, (out, error) = set(folder.iterdir()), (io.StringIO(), io.StringIO())
    words = [word.replace("MARK", str(folder / "marker")) for word in words]
    with redirect_stdout(out), redirect_stderr(error):
        try:
            code = main(words)
        except SystemExit as stop:  # --help, --print-config
            code = stop.code
    assert time.process_time() - started < 20  # of the processor: no input takes it for itself
    assert code in (0, 2)
    assert error.getvalue().count("\n") == (code == 2), error.getvalue()
    assert code == 0 or error.getvalue().startswith("bezierdistill")
    assert set(folder.iterdir()) == before


often = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@often
@given(words=lines())
def test_command_lines(folder: Path, words: list[str]) -> None:
    check(folder, words)


@often
@given(document=documents())
def test_settings_files(folder: Path, document: tuple[Verb, bytes]) -> None:
    verb, content = document
    file = folder / "settings.yaml"
    file.write_bytes(content.replace(b"MARK", bytes(folder / "marker")))
    check(folder, [*verb.name.split(), "--config", str(file)])
    check(folder, [*verb.name.split(), f"--config={file}", "--data", "x", "--out", "y"])


@pytest.mark.parametrize("text", VALUES)
@pytest.mark.parametrize("flag", ["--data", "--loop.lr", "--config", "--network", "--steps"])
def test_every_hostile_value(flag: str, text: str, folder: Path) -> None:
    check(folder, ["train", "--data", "x", "--out", "y", flag, text])


@pytest.mark.parametrize("text", DOCUMENTS)
def test_every_hostile_document(text: str, folder: Path) -> None:
    file = folder / "settings.yaml"
    marked = text.replace("MARK", str(folder / "marker"))
    file.write_bytes(marked.encode("utf8", "surrogatepass"))
    check(folder, ["train", "--config", str(file), "--data", "x", "--out", "y"])

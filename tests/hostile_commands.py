"""Hostile settings: YAML files and flags of every verb, whose work is not begun."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random
from typing import Any, get_type_hints

from bezierdistill import cli
from hostile import Kit
from hostile_mutators import as_text, spoil_bytes, spoil_tree

VALUES = [
    "",
    "-1",
    "0",
    "1",
    "10" * 20,
    "1" + "0" * 5000,
    "1e400",
    "nan",
    "-inf",
    "true",
    "null",
    "~",
    "none",
    "x",
    "é\u202e",
    "\ud800",
]
VALUES += [
    "../../etc/passwd",
    "a" * 10**5,
    "\x00",
    "a\nb",
    "%s%n{0}",
    "{}",
    "[]",
    "[1, 2",
    "{a: 1}",
    "'",
    '"',
    "-",
    "--",
    "@x",
    "1,2",
    ":",
]
VALUES += [
    "&a [*a]",
    "*a",
    "!!python/object/apply:os.mknod [MARK]",
    "!!python/name:os.system",
    "!!binary AAAA",
    "!!set {a}",
    "!!int x",
    "0x1f",
]
VALUES += [
    '{"class_path": "os.mknod", "init_args": {"path": "MARK"}}',
    "[" * 10**4,
    "{a: " * 500,
    "- " * 5000,
    "1:1",
    "2026-13-45",
    "=",
    "<<: x",
]
VALUES += [
    "0b2",
    "0o9",
    "1_0",
    "!!timestamp x",
    "!!float x",
    "? [a]",
    "{[1]: 2}",
    "{? {a: 1}: 2}",
    "---\n---",
    "a: b: c",
    "\t",
    "%YAML 9.9",
    "|",
    ">-",
]

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DOCUMENTS = [
    BOMB,
    "a: &a [*a]\n",
    "data: !!python/object/apply:os.mknod [MARK]\n",
    "data: !!python/object/new:os.mknod {args: [MARK]}\n",
]
DOCUMENTS += [
    "network: {class_path: os.mknod, init_args: {path: MARK}}\n",
    "__path__: /etc/passwd\n",
    "config: cwd.yaml\n",
    "config: MARK\n",
]
DOCUMENTS += [
    "data: " + "[" * 10**4,
    "{" * 10**4,
    "x: " * 10**4,
    "a" * 10**6,
    "",
    "-",
    "- a\n- b\n",
    "7",
    "null",
    "\x00",
    "\ufeffdata: x",
    "data: x\ndata: y\n",
]
DOCUMENTS += [
    "%TAG ! x\n",
    "<<: {data: x}\n",
    "<<: [1]\n",
    "? {a: b}\n: c\n",
    "1: 2\n",
    "null: 3\n",
    "true: 4\n",
    "[a]: 5\n",
    "'': 6\n",
    ".: 7\n",
    "a.b.c: 8\n",
]
DOCUMENTS += [
    "loop.lr: x\n",
    "loop: 3\n",
    "loop: [1]\n",
    "network:\n",
    "steps: 1e999\n",
    "steps: 1" + "0" * 5000,
    "data: \ud800\n",
    "--- 1\n--- 2\n",
    "!x y",
]
DOCUMENTS += [
    "data: ${oc.env:HOME}\nout: ${a}\n",
    "help: true\n",
    "print_config: true\n",
    "subcommand: train\n",
    "verb: train\n",
    "train: {data: x}\n",
]


def verbs() -> list[tuple[list[str], type]]:
    """Every verb as it is spelt, and its settings."""
    plain = [([name], config) for name, (config, _) in cli.VERBS.items()]
    return plain + [(["store", name], config) for name, (config, _) in cli.STORE.items()]


def flags(config: type, start: str = "") -> dict[str, Any]:
    """Every flag of a settings class with its type, those of settings within it too."""
    found: dict[str, Any] = {}
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        found[start + field.name] = kind
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found |= flags(kind, f"{start}{field.name}.")
    return found


def valid(rng: Random, config: type) -> dict[str, Any]:
    """Values for the settings that have no default, and for some more."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        kind = get_type_hints(config)[field.name]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            paths = ["a", "b"]
            values[field.name] = {"prediction": "velocity", "schedule": "steps"}.get(
                field.name, paths if "tuple" in str(kind) else "x"
            )
        elif kind is int and rng.random() < 0.3:
            values[field.name] = rng.randint(1, 9)
    return values


def marked(text: str, kit: Kit) -> str:
    """Text with the path of the file that nothing may make."""
    return text.replace("MARK", str(kit.marker))


def build_settings(_: Path, folder: Path) -> None:
    """Nothing is needed but a folder."""
    (folder / "other.yaml").write_text("steps: 3\n")


def spoil_settings(rng: Random, kit: Kit) -> str:
    """A settings file: a hostile document, or one of plain values that is spoilt."""
    file = kit.folder / "settings.yaml"
    if rng.random() < 0.5:
        text = marked(rng.choice(DOCUMENTS), kit)
        file.write_bytes(text.encode("utf8", "surrogatepass"))
        return text[:80]
    words, config = rng.choice(verbs())
    tree = valid(rng, config) | {rng.choice(list(flags(config))): rng.choice(VALUES)}
    if rng.random() < 0.5:
        file.write_text(as_text(spoil_tree(rng, tree)[0]))
    else:
        lines = [
            f"{name}: {marked(value, kit) if isinstance(value, str) else value}\n"
            for name, value in tree.items()
        ]
        text = "".join(lines).encode("utf8", "surrogatepass")
        file.write_bytes(text if rng.random() < 0.5 else spoil_bytes(rng, text)[0])
    (kit.folder / "verb").write_text(" ".join(words))
    return " ".join(words)


def settings_used(rng: Random, kit: Kit) -> list[object]:
    """A verb that reads them."""
    file = kit.folder / "verb"
    words = file.read_text().split() if file.exists() else ["train"]
    words = words if rng.random() < 0.8 else rng.choice(verbs())[0]
    settings = kit.folder / "settings.yaml"
    if not settings.exists():
        return ["train", "--config", kit.folder / "other.yaml", "--data", "x", "--out", "y"]
    more = rng.choice([[], [], ["--out", "y"], ["--data", "x", "--out", "y"]])
    return [*words, *rng.choice([["--config", settings], [f"--config={settings}"]]), *more]


def spoil_nothing(_: Random, kit: Kit) -> str:
    """The command line itself is hostile."""
    (kit.folder / "spoilt").touch()
    return "flags"


def command(rng: Random, kit: Kit) -> list[object]:
    """A verb with flags of which some have hostile values, are missing, come twice, or do not
    exist."""
    words, config = rng.choice(verbs())
    places = [field.name for field in dataclasses.fields(config) if "positional" in field.metadata]
    given: list[tuple[str, Any]] = list(valid(rng, config).items())
    for _ in range(rng.choice([1, 1, 2, 3]) if (kit.folder / "spoilt").exists() else 0):
        how = rng.random()
        if how < 0.1 and given:
            given.pop(rng.randrange(len(given)))
            continue
        name = (
            rng.choice(list(flags(config)))
            if how < 0.9
            else rng.choice(["bogus", "", "config", "loop.", "network.kind.x", "help", "a" * 10**4])
        )
        value = marked(rng.choice(VALUES), kit)
        given = [(key, held) for key, held in given if key != name or how > 0.8] + [(name, value)]
    line: list[object] = []
    for name, value in given:
        values = value if isinstance(value, list) else [value]
        if name in places:
            line += values
            continue
        spelt = f"--{name.replace('_', rng.choice('_-'))}"
        line += (
            [f"{spelt}={values[0]}"]
            if rng.random() < 0.3 and len(values) == 1
            else [spelt, *values]
        )
    return [*words, *line]

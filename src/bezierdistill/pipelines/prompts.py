"""Prompts of a pipeline: embedded once by its own ``encode_prompt``, kept, and looked up by number.

What ``encode_prompt`` returns has another form in every pipeline. It is kept as it is: a *form*, in
which every tensor is the name of a *part*, and the parts, of which some have a row per prompt and
others are the same for all (the negative prompt's, the places of tokens). A pipeline is given the
same values again without knowing that nobody has encoded anything.

    prompts/texts.json              the prompts
    prompts/shared.safetensors      parts that are the same for all
    prompts/rows-000000.safetensors the other parts of 256 prompts
    prompts/index.json              the forms, and the digests of these files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.files import digest, read_tensors, read_text
from bezierdistill.pipelines.parts import LENGTHS, VECTOR, Parts, join
from bezierdistill.records import Record, from_json, parse_json, read_sealed

INDEX, TEXTS, SHARED = "index.json", "texts.json", "shared.safetensors"
SHARD_ROWS = 256  # prompts of a file
KEPT = 2**31  # bytes of shards that stay in memory
MAX_LENGTH = 20_000  # characters of a prompt


class PromptIndex(Record, frozen=True):
    """``index.json``: how prompts were embedded.

    ``guided`` and ``plain`` are what ``encode_prompt`` returns with guidance and without, call by
    call, with names of parts for tensors; ``rows`` are the parts with a row per prompt; ``files``
    the digests of the shards and of the other files.
    """

    count: int
    guided: list[Any]
    plain: list[Any]
    rows: tuple[str, ...]
    files: dict[str, str]


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts of a file, one a line, or JSON lines with ``prompt`` or ``text``.

    Raises:
        UserError: if there are none, they are no UTF-8, or a line is no prompt.
    """
    lines = [line.strip() for line in read_text(path, "prompts").splitlines()]
    found = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        text = _json_prompt(path, number, line) if path.suffix in (".jsonl", ".json") else line
        if len(text) > MAX_LENGTH:
            raise UserError(f"line {number} of {path} has {len(text):,} characters: shorten it")
        found.append(text)
    if not found:
        raise UserError(f"{path} is empty, expected a prompt a line")
    return tuple(found)


def _json_prompt(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number} of {path} is no JSON ({error})") from None
    value = value.get("prompt", value.get("text")) if isinstance(value, Mapping) else value
    if not isinstance(value, str) or not value:
        raise UserError(f'line {number} of {path} has no "prompt", expected {{"prompt": "..."}}')
    return value


@dataclass
class Prompts:
    """Prompts and what a pipeline's text encoders made of them.

    Args:
        texts: the prompts.
        guided: the form of what ``encode_prompt`` returns with guidance, a value per call.
        plain: the same without.
        shared: parts that are the same for all prompts.
        load: gives the other parts of the shard of a number.
        shard_rows: prompts of a shard.
    """

    texts: tuple[str, ...]
    guided: list[Any]
    plain: list[Any]
    shared: Parts
    load: Callable[[int], Parts]
    shard_rows: int = SHARD_ROWS
    _held: dict[int, Parts] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """What the texts, in their order, are known by."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    def vectors(self, rows: Tensor) -> Tensor:
        """Vectors ``(B, 32)`` of the prompts of numbers ``(B,)``, by which these are compared: a
        fixed projection of the mean of their embeddings.
        """
        places = [divmod(row, self.shard_rows) for row in rows.tolist()]
        return torch.stack([self._shard(shard)[VECTOR][place] for shard, place in places])

    def outputs(self, rows: Tensor, guided: bool, device: torch.device) -> list[Any]:
        """What ``encode_prompt`` returned for the prompts of numbers ``(B,)``, a value per call."""
        parts = self._joined(rows.tolist())
        count = len(rows)

        def fill(form: Any) -> Any:
            if isinstance(form, str):
                return _filled(form, parts, self.shared, count, device)
            return tuple(map(fill, form)) if isinstance(form, list) else form

        return [fill(form) for form in (self.guided if guided else self.plain)]

    def _joined(self, numbers: Sequence[int]) -> Parts:
        found = []
        for number in numbers:
            shard, place = divmod(number, self.shard_rows)
            held = self._shard(shard)
            names = (name for name in held if name != VECTOR)
            found.append({name: held[name][place : place + 1] for name in names})
        return join(found)

    def _shard(self, number: int) -> Parts:
        if number not in self._held:
            size = sum(p.nbytes for parts in self._held.values() for p in parts.values())
            if size > KEPT:
                self._held.clear()
            self._held[number] = self.load(number)
        return self._held[number]


def _filled(name: str, parts: Parts, shared: Parts, count: int, device: torch.device) -> Any:
    """The value of a part for ``count`` rows: a tensor, or a list of tensors of their lengths."""
    own = name.startswith("list")
    if name in shared:
        value = shared[name].to(device)
        if own:
            return [value[0]] * count
        return value if name.startswith("same") else value.expand(count, *value.shape[1:])
    value = parts[name].to(device)
    if own:
        lengths = parts[name + LENGTHS].tolist()
        return [row[:length] for row, length in zip(value, lengths, strict=True)]
    return value


def load_prompts(folder: Path) -> Prompts:
    """The prompts in a folder; shards are read, and checked, when they are needed.

    Raises:
        UserError: if a file is missing, damaged or another.
    """
    index = read_sealed(folder / INDEX, PromptIndex, "the prompts", "import the pipeline again")
    texts = parse_json(folder / TEXTS, read_text(_checked(folder, index, TEXTS), "prompts"))
    texts = from_json(texts, tuple[str, ...], folder / TEXTS)
    shared = read_tensors(_checked(folder, index, SHARED))[0]

    def load(number: int) -> Parts:
        return read_tensors(_checked(folder, index, shard_name(number)))[0]

    return Prompts(texts, index.guided, index.plain, shared, load)


def _checked(folder: Path, index: PromptIndex, name: str) -> Path:
    path = folder / name
    if not path.exists() or digest(path) != index.files.get(name):
        raise UserError(f"{path} is missing or was changed: import the pipeline again")
    return path


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"rows-{number:06d}.safetensors"

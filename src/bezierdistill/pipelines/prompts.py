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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bezierdistill.errors import UserError
from bezierdistill.files import digest, read_tensors, read_text, write_json, write_tensors
from bezierdistill.records import Record, from_json, parse_json, read_sealed, write_sealed

INDEX, TEXTS, SHARED = "index.json", "texts.json", "shared.safetensors"
SHARD_ROWS, CHUNK = 256, 8  # prompts of a file; encoded at once
TRIED = 8  # prompts by which the form is found
SAME = 1e-2  # of a part's size: what kernels of other batches may change
KEPT = 2**31  # bytes of shards that stay in memory
MAX_PROMPTS, MAX_LENGTH = 10_000_000, 20_000
LENGTHS = ".lengths"
VECTOR, NUMBERS = "vector", 32  # what stands for a prompt where prompts are compared; its length
Parts = dict[str, Tensor]
# What a pipeline's encode_prompt returned, call by call, for a list of prompts.
Encode = Callable[[Sequence[str], bool], list[Any]]


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


def join(found: Sequence[Parts]) -> Parts:
    """Parts of several rows as one, filled up with zeros to the longest, which masks leave out."""
    joined: Parts = {}
    for name in found[0] if found else ():
        parts = [own[name] for own in found]
        longest = max(part.shape[1] if part.ndim > 1 else 0 for part in parts)
        joined[name] = torch.cat([_padded(part, longest) for part in parts])
    return joined


def _padded(part: Tensor, length: int) -> Tensor:
    lacking = length - part.shape[1] if part.ndim > 1 else 0
    return functional.pad(part, (*(0, 0) * (part.ndim - 2), 0, lacking)) if lacking else part


class Embedder:
    """Embeds prompts, a chunk after the other.

    Args:
        encode: what the pipeline's ``encode_prompt`` returns for prompts, with guidance or without.
        texts: all prompts.
        guided: whether there is guidance.

    Raises:
        UserError: if prompts are embedded otherwise without guidance than with it.
    """

    def __init__(self, encode: Encode, texts: Sequence[str], guided: bool) -> None:
        self.encode, self.texts, self.with_guidance = encode, tuple(texts), guided
        ranked = sorted(dict.fromkeys(texts), key=len)
        few = [ranked[k * (len(ranked) - 1) // (TRIED - 1)] for k in range(TRIED)]
        self.tried = list(dict.fromkeys(few))  # from the shortest to the longest
        several, one = encode(self.tried, guided), encode(self.tried[:1], guided)
        self.example: Parts = {}
        self.kinds: dict[str, bool] = {}  # whether a part has a row per prompt
        self.guided = [self._form(*values) for values in zip(several, one, strict=True)]
        bare = encode(self.tried, False) if guided else several
        self.plain = [self._known(value) for value in bare]

    @property
    def rows(self) -> tuple[str, ...]:
        """The parts with a row per prompt."""
        return tuple(name for name, own in self.kinds.items() if own)

    @property
    def shared(self) -> Parts:
        """The parts that are the same for all."""
        names = (name for name, own in self.kinds.items() if not own)
        return {n: self.example[n] if n.startswith("same") else self.example[n][:1] for n in names}

    def _form(self, value: Any, one: Any) -> Any:
        """The form of a value for the prompts that are tried; ``one`` is that for the first."""
        if isinstance(value, tuple):
            ones = one if isinstance(one, tuple) else (None,) * len(value)
            return [self._form(*parts) for parts in zip(value, ones, strict=True)]
        if isinstance(value, list) and value and all(isinstance(p, Tensor) for p in value):
            name, found = f"list{len(self.kinds)}", _ragged("", value)
            self.example |= {name + key: part for key, part in found.items()}
        elif isinstance(value, Tensor):
            rows = len(value) == len(self.tried) and (one is None or len(one) == 1)
            name = f"{'part' if rows else 'same'}{len(self.kinds)}"
            self.example[name] = value
        else:
            return value if isinstance(value, bool | int | float) else None
        held = self.example[name]
        self.kinds[name] = not name.startswith("same") and bool((held != held[:1]).any())
        return name

    def _known(self, value: Any) -> Any:
        """The form of a value without guidance, of the parts that are known."""
        if isinstance(value, tuple):
            return [self._known(part) for part in value]
        listed = isinstance(value, list) and bool(value)
        own: Any = _ragged("", value)[""] if listed else value
        if not isinstance(own, Tensor):
            return value if isinstance(value, bool | int | float) else None
        apart = {
            name: _apart(self.example[name], own)
            for name in self.kinds
            if name.startswith("list") == listed
        }
        best = min(apart, key=lambda name: apart[name], default="")
        if not best or apart[best] > SAME:
            raise UserError(
                "the pipeline embeds prompts otherwise without guidance than with it, and a student"
                " has none: expected --guidance 1"
            )
        return best

    def chunk(self, texts: Sequence[str]) -> Parts:
        """The parts of some prompts that have a row each.

        Raises:
            Again: if one that was taken to be the same for all prompts is not.
            UserError: if they have a form of their own.
        """
        found: Parts = {}
        values = self.encode(list(texts), self.with_guidance)
        for form, value in zip(self.guided, values, strict=True):
            self._gather(form, value, len(texts), found)
        shared = {name: part for name, part in self.shared.items() if not name.startswith("same")}
        wrong = [
            name
            for name, part in shared.items()
            if max(_apart(part, row[None]) for row in found[name]) > SAME
        ]
        if wrong:
            self.kinds |= dict.fromkeys(wrong, True)
            raise Again
        own = {name: part for name, part in found.items() if name.split(".")[0] in self.rows}
        return own | {VECTOR: _vector(own, len(texts))}

    def _gather(self, form: Any, value: Any, count: int, found: Parts) -> None:
        if isinstance(form, list):
            for own, part in zip(form, value or (None,) * len(form), strict=True):
                self._gather(own, part, count, found)
        elif isinstance(form, str) and form.startswith("list"):
            found |= {form + key: part for key, part in _ragged("", value).items()}
        elif isinstance(form, str) and not form.startswith("same"):
            if value is None:  # a mask without a gap, which some pipelines leave out
                length = max(part.shape[1] for part in found.values() if part.ndim > 1)
                value = self.example[form].new_ones(count, length)
            found[form] = value
        elif form is None and isinstance(value, Tensor):
            raise UserError(
                "the pipeline masks some prompts, and none of those that were tried: add a prompt"
                " of one word to the file"
            )

    def shards(self, tell: Callable[[int], object]) -> Iterator[Parts]:
        """The parts of every :data:`SHARD_ROWS` prompts; ``tell`` is told how many are done.

        Raises:
            UserError: if embeddings have different lengths and no mask.
        """
        lengths: dict[str, int] = {}
        for start in range(0, len(self.texts), SHARD_ROWS):
            texts = self.texts[start : start + SHARD_ROWS]
            parts = []
            for place in range(0, len(texts), CHUNK):
                own = texts[place : place + CHUNK]
                part = self.chunk(own)
                self._check(part, lengths)
                parts.append(part)
                tell(len(own))
            yield join(parts)

    def _check(self, part: Parts, lengths: dict[str, int]) -> None:
        masked = any(not p.is_floating_point() and p.ndim == 2 for p in part.values())
        for name, own in part.items():
            if own.ndim < 2 or name.startswith("list"):
                continue
            if lengths.setdefault(name, own.shape[1]) != own.shape[1] and not masked:
                raise UserError(
                    "the pipeline embeds prompts to different lengths without a mask, so that"
                    " they cannot be in one batch: expected one of a fixed length"
                )


class Again(Exception):  # noqa: N818
    """Embedding has to start again, as something differs that was taken to be the same."""


def _ragged(name: str, value: Sequence[Tensor]) -> Parts:
    """Tensors of different lengths as one, with their lengths beside."""
    longest = max(len(part) for part in value)
    rows = [_padded(part[None], longest) for part in value]
    lengths = torch.tensor([len(part) for part in value])
    return {name: torch.cat(rows), name + LENGTHS: lengths}


def _vector(parts: Parts, count: int) -> Tensor:
    """What stands for prompts: of the largest part the mean over tokens, projected."""
    floats = [part for part in parts.values() if part.is_floating_point()]
    if not floats:
        return torch.zeros(count, NUMBERS)
    part = max(floats, key=lambda one: one.numel())
    mean = part.float().mean(1) if part.ndim > 2 else part.float()
    mean = mean.cpu() / mean.shape[1] ** 0.5
    generator = torch.Generator().manual_seed(0)
    return mean @ torch.randn(mean.shape[1], NUMBERS, generator=generator)


def _apart(a: Tensor, b: Tensor) -> float:
    """How far apart two values are, in shares of their size."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-6))


def embed_prompts(
    encode: Encode, texts: Sequence[str], guided: bool, tell: Callable[[int], object] = lambda n: n
) -> Prompts:
    """Embed prompts in memory."""
    made = Embedder(encode, texts, guided)
    while True:
        try:
            shards = [_on_cpu(shard) for shard in made.shards(tell)]
        except Again:
            continue
        break
    return Prompts(tuple(texts), made.guided, made.plain, _on_cpu(made.shared), shards.__getitem__)


def save_prompts(
    encode: Encode,
    texts: Sequence[str],
    guided: bool,
    folder: Path,
    tell: Callable[[int], object] = lambda n: n,
) -> Prompts:
    """Embed prompts into a folder, a shard after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Embedder(encode, texts, guided)
    while True:
        try:
            for number, shard in enumerate(made.shards(tell)):
                write_tensors(folder / _name(number), _on_cpu(shard))
        except Again:
            continue
        break
    write_json(folder / TEXTS, list(texts))
    write_tensors(folder / SHARED, _on_cpu(made.shared))
    count = -(-len(texts) // SHARD_ROWS)
    names = [TEXTS, SHARED, *map(_name, range(count))]
    files = {name: digest(folder / name) for name in names}
    index = PromptIndex(len(texts), made.guided, made.plain, made.rows, files)
    write_sealed(folder / INDEX, index)
    return load_prompts(folder)


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
        return read_tensors(_checked(folder, index, _name(number)))[0]

    return Prompts(texts, index.guided, index.plain, shared, load)


def _checked(folder: Path, index: PromptIndex, name: str) -> Path:
    path = folder / name
    if not path.exists() or digest(path) != index.files.get(name):
        raise UserError(f"{path} is missing or was changed: import the pipeline again")
    return path


def _name(number: int) -> str:
    return f"rows-{number:06d}.safetensors"


def _on_cpu(parts: Parts) -> Parts:
    return {name: part.detach().cpu().contiguous() for name, part in parts.items()}

"""Embedding prompts by a pipeline's own text encoders, in memory or into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bezierdistill.errors import UserError
from bezierdistill.files import digest, write_json, write_tensors
from bezierdistill.pipelines.parts import VECTOR, Parts, difference, join, on_cpu, ragged, vector
from bezierdistill.pipelines.prompts import (
    INDEX,
    SHARD_ROWS,
    SHARED,
    TEXTS,
    PromptIndex,
    Prompts,
    load_prompts,
    shard_name,
)
from bezierdistill.records import write_sealed

CHUNK = 8  # prompts that are encoded at once
TRIED = 8  # prompts by which the form is found
SAME = 1e-2  # of a part's size: what kernels of other batches may change
# What a pipeline's encode_prompt returned, call by call, for a list of prompts.
Encode = Callable[[Sequence[str], bool], list[Any]]


class Again(Exception):  # noqa: N818
    """Embedding has to start again, as something differs that was taken to be the same."""


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
            name, found = f"list{len(self.kinds)}", ragged("", value)
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
        own: Any = ragged("", value)[""] if listed else value
        if not isinstance(own, Tensor):
            return value if isinstance(value, bool | int | float) else None
        apart = {
            name: difference(self.example[name], own)
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
            if max(difference(part, row[None]) for row in found[name]) > SAME
        ]
        if wrong:
            self.kinds |= dict.fromkeys(wrong, True)
            raise Again
        own = {name: part for name, part in found.items() if name.split(".")[0] in self.rows}
        return own | {VECTOR: vector(own, len(texts))}

    def _gather(self, form: Any, value: Any, count: int, found: Parts) -> None:
        if isinstance(form, list):
            for own, part in zip(form, value or (None,) * len(form), strict=True):
                self._gather(own, part, count, found)
        elif isinstance(form, str) and form.startswith("list"):
            found |= {form + key: part for key, part in ragged("", value).items()}
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


def embed_prompts(
    encode: Encode, texts: Sequence[str], guided: bool, tell: Callable[[int], object] = lambda n: n
) -> Prompts:
    """Embed prompts in memory."""
    made = Embedder(encode, texts, guided)
    while True:
        try:
            shards = [on_cpu(shard) for shard in made.shards(tell)]
        except Again:
            continue
        break
    return Prompts(tuple(texts), made.guided, made.plain, on_cpu(made.shared), shards.__getitem__)


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
                write_tensors(folder / shard_name(number), on_cpu(shard))
        except Again:
            continue
        break
    write_json(folder / TEXTS, list(texts))
    write_tensors(folder / SHARED, on_cpu(made.shared))
    count = -(-len(texts) // SHARD_ROWS)
    names = [TEXTS, SHARED, *map(shard_name, range(count))]
    files = {name: digest(folder / name) for name in names}
    index = PromptIndex(len(texts), made.guided, made.plain, made.rows, files)
    write_sealed(folder / INDEX, index)
    return load_prompts(folder)

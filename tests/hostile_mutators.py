"""Ways to spoil files, each a function of a seeded draw: bytes, trees of JSON, headers of
safetensors. Each says what it has done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from bezierdistill.records import seal

DEEP, AGAIN = (
    "@@DEEP@@",
    "@@AGAIN@@",
)  # stand for what json.dumps cannot write: a deep nest, and a key that comes twice
LEAVES: list[Any] = [
    -1,
    0,
    1,
    3,
    10**15,
    10**400,
    -(2**63),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "0",
    "x",
]
LEAVES += [
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "a" * 10**5,
    [],
    {},
    [[]],
    {"": {}},
    [0] * 1000,
    DEEP,
]
TYPES = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "Q4", "", 7]


def spoil_bytes(rng: Random, data: bytes) -> tuple[bytes, str]:
    """One to three changes of bytes."""
    done = []
    for _ in range(rng.randint(1, 3)):
        change = rng.choice(CHANGES)
        data = change(rng, data)
        done.append(change.__name__.strip("_"))
    return data, ", ".join(done)


def _place(rng: Random, data: bytes) -> tuple[int, int]:
    """A random stretch; near the start as often as anywhere, as headers are there."""
    end = min(len(data), 64) if rng.random() < 0.5 else len(data)
    start = rng.randrange(end + 1)
    return start, min(len(data), start + rng.choice([1, 2, 4, 8, 100]))


def _flip(rng: Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 1, 8, 100])):
        if spoilt:
            spoilt[_place(rng, data)[0] % len(spoilt)] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[
        : rng.choice(
            [0, 1, 7, 8, len(data) // 2, max(0, len(data) - 1), rng.randrange(len(data) + 1)]
        )
    ]


def _insert(rng: Random, data: bytes) -> bytes:
    start, _ = _place(rng, data)
    return data[:start] + rng.randbytes(rng.choice([1, 8, 1000])) + data[start:]


def _duplicate(rng: Random, data: bytes) -> bytes:
    start, end = _place(rng, data)
    return data[:end] + data[start:end] * rng.choice([1, 1, 50]) + data[end:]


def _fill(rng: Random, data: bytes) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + rng.choice([b"\x00", b"\xff"]) * (end - start) + data[end:]


def _splice(rng: Random, data: bytes) -> bytes:
    (start, end), (where, _) = _place(rng, data), _place(rng, data)
    return data[:where] + data[start:end] + data[where + end - start :]


def _cut_out(rng: Random, data: bytes) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + data[end:]


CHANGES = (_flip, _truncate, _insert, _duplicate, _fill, _splice, _cut_out)


def _places(tree: Any, names: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every container of a tree with a key in it, and the way there."""
    for key in (
        list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    ):
        yield tree, key, f"{names}.{key}"
        yield from _places(tree[key], f"{names}.{key}")


def spoil_tree(rng: Random, tree: Any) -> tuple[Any, str]:
    """A copy of a tree of JSON with one to three changes."""
    tree, done = json.loads(json.dumps(tree)), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(tree))
        if not places:
            break
        where, key, name = rng.choice(places)
        how = rng.choice(["replace"] * 6 + ["delete", "rename", "again", "wrap", "swap"])
        done.append(f"{how} {name}" + _change_tree(rng, where, key, how, places))
    return tree, "; ".join(done)


def _change_tree(
    rng: Random, where: Any, key: Any, how: str, places: list[tuple[Any, Any, str]]
) -> str:
    if how == "delete":
        del where[key]
    elif how == "wrap":
        where[key] = [where[key]]
    elif how == "swap":
        other, its, _ = rng.choice(places)
        where[key] = (
            json.loads(json.dumps(other[its], default=str))
            if its in other or isinstance(other, list)
            else None
        )
    elif how in ("rename", "again") and isinstance(where, dict):
        name = (
            AGAIN + key
            if how == "again"
            else rng.choice(["", "x", key + "x", "../" + key, "__class__", "self"])
        )
        where[name] = where[key]
        if how == "rename" and name != key:
            del where[key]
    else:
        value = rng.choice(LEAVES)
        where[key] = json.loads(json.dumps(value))
        return f" by {str(value)[:20]}"
    return ""


def as_text(tree: Any, indent: int | None = 2) -> str:
    """JSON of a spoilt tree."""
    text = json.dumps(tree, indent=indent).replace(f'"{AGAIN}', '"')
    return text.replace(f'"{DEEP}"', "[" * 2000 + "]" * 2000)


def spoil_json(rng: Random, path: Path, seal: bool = False) -> str:
    """Spoil a file of JSON: its bytes, or its tree; with ``seal`` the checksum that it carries is
    made to fit again."""
    if rng.random() < 0.25:
        data, done = spoil_bytes(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name}: {done}"
    tree = json.loads(path.read_text())
    if seal:
        tree.pop("seal", None)
    tree, done = spoil_tree(rng, tree)
    path.write_text(sealed(tree) if seal and isinstance(tree, dict) else as_text(tree))
    return f"{path.name}: {done}"


def sealed(tree: dict[str, Any]) -> str:
    """JSON with the checksum that the manifest of a store and other records carry."""
    body = as_text(tree).removesuffix("\n}")
    return body + seal(body)


def spoil_safetensors(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Spoil a file of tensors: its bytes, its header, or the length that the header claims."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    how = rng.random()
    if how < 0.2:
        return spoil_bytes(rng, data)
    if how < 0.3:
        claim = rng.choice(
            [0, 1, size - 1, size + 1, len(data), 10**8 + 1, 10**15, 2**63, 2**64 - 1]
        )
        return claim.to_bytes(8, "little") + data[8:], f"header of {claim} bytes"
    if how < 0.45:
        spoilt = bytearray(body)
        start = rng.randrange(max(1, len(body) // 4)) * 4
        spoilt[start : start + 4] = rng.choice(
            [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00"]
        )
        return data[: 8 + size] + bytes(spoilt[: len(body)]), f"a number at {start}"
    if how < 0.6:
        header, done = spoil_tree(rng, header)
    else:
        done = _spoil_entry(rng, header, len(body))
    text = as_text(header, None).encode()
    return len(text).to_bytes(8, "little") + text + body, done


def _spoil_entry(rng: Random, header: dict[str, Any], size: int) -> str:
    """Spoil the claim of one tensor, in ways of which some still fit the file."""
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    claims: dict[str, Callable[[], Any]] = {
        "rows 10^15": lambda: entry.update(shape=[10**15, *entry["shape"][1:]]),
        "an overflow": lambda: entry.update(shape=[2**32, 2**32, 2**32]),
        "a negative shape": lambda: entry.update(shape=[-1, *entry["shape"]]),
        "no rows": lambda: entry.update(shape=[0, *entry["shape"][1:]]),
        "one axis more": lambda: entry.update(shape=[1, *entry["shape"]]),
        "a reversed shape": lambda: entry.update(shape=entry["shape"][::-1]),
        "a flat shape": lambda: entry.update(
            shape=[(entry["data_offsets"][1] - entry["data_offsets"][0]) // 4]
        ),
        "another type": lambda: entry.update(dtype=rng.choice(TYPES)),
        "I32 for F32": lambda: entry.update(dtype="I32"),
        "offsets beyond the file": lambda: entry.update(data_offsets=[size, size + 10**15]),
        "offsets from behind": lambda: entry.update(data_offsets=entry["data_offsets"][::-1]),
        "offsets of another": lambda: entry.update(
            data_offsets=header[rng.choice(names)]["data_offsets"]
        ),
        "metadata": lambda: header.update(
            __metadata__=rng.choice([{"state": "x"}, {"state": 7}, [], None, {"": "a" * 10**5}])
        ),
        "another name": lambda: header.update(
            {rng.choice(["", "../x", name + "x", "cond"]): header.pop(name)}
        ),
        "one tensor less": lambda: header.pop(name),
    }
    how = rng.choice(list(claims))
    claims[how]()
    return f"{name} with {how}"

"""Python objects where settings have text.

A setting such as ``data`` is text: a name, a path, or ``FILE.py:function``, a function of the
user's own file that makes the object. In Python the object itself may be given. It is then called
by a :class:`Named`, text that holds it, so that settings stay what JSON and YAML can say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType
from typing import Any
from weakref import WeakValueDictionary

from bezierdistill.errors import UserError

START = "python:"
IN_FILE = re.compile(r"(?P<file>.+\.py)(:(?P<function>\w+))?")
_alive: WeakValueDictionary[str, Named] = WeakValueDictionary()


class Named(str):
    """The name of an object given in Python, which it holds: ``python:Tensor-3f2a9c1b0d12``.

    Objects of equal content have equal names; of functions the code, its constants and the numbers
    and text that it refers to are compared.

    Args:
        value: the object.
    """

    value: Any

    def __new__(cls, value: object) -> Named:
        """The name of an object."""
        kind = getattr(value, "__name__", type(value).__name__)
        name = super().__new__(cls, f"{START}{kind.strip('<>')}-{fingerprint(value)[:12]}")
        name.value = value
        _alive[name] = name  # the last one: what cannot be told apart has equal names
        return name

    def __deepcopy__(self, memo: object) -> Named:
        return self

    def __copy__(self) -> Named:
        return self


def fingerprint(value: object) -> str:
    """A digest of an object's content, as far as it tells: its own ``fingerprint``, the numbers of
    an array or tensor, the fields of settings, the code of a function; of anything else its type
    and length.
    """
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    own = getattr(value, "fingerprint", None)
    if isinstance(own, str):
        found.update(own.encode())
    elif isinstance(value, Mapping):
        for key in value:
            found.update(str(key).encode())
            _add(found, value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            _add(found, part)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        array = value.detach().cpu() if hasattr(value, "detach") else value
        if str(array.dtype) == "torch.bfloat16":
            array = array.float()  # numpy has none
        numbers = array.numpy() if hasattr(array, "numpy") else array
        found.update(memoryview(numbers.reshape(-1).copy()).cast("B") if numbers.size else b"")
    elif is_dataclass(value) or isinstance(value, str | int | float | bool | Path | None):
        found.update(repr(value).encode())
    else:
        module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
        size = len(value) if hasattr(type(value), "__len__") else ""
        found.update(f"{module} {name or type(value).__qualname__} {size}".encode())
        if (code := getattr(value, "__code__", None)) is not None:
            _add_code(found, code)
            plain = str | int | float | bool | None
            found.update(repr([part for part in held(value) if isinstance(part, plain)]).encode())


def _add_code(found: Any, code: CodeType) -> None:
    found.update(code.co_code + repr(code.co_names).encode())
    for part in code.co_consts:
        if isinstance(part, CodeType):
            _add_code(found, part)
        else:  # of a set the order varies from process to process
            ordered = sorted(map(repr, part)) if isinstance(part, frozenset) else part
            found.update(repr(ordered).encode())


def held(value: Any) -> list[Any]:
    """What a callable refers to, one step deep: closed over, by default, by name in its file, the
    object of a method, the parts of a ``functools.partial``, the attributes of an object.
    """
    found = [getattr(value, name, None) for name in ("__self__", "func")]
    found += [*getattr(value, "args", ()), *(getattr(value, "keywords", None) or {}).values()]
    if (code := getattr(value, "__code__", None)) is None:
        return [*found, *getattr(value, "__dict__", {}).values()]
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):  # a cell that is empty yet
            found.append(cell.cell_contents)
    found += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    known = getattr(value, "__globals__", {})
    return [*found, *(known[name] for name in code.co_names if name in known)]


def as_named(config: object, *names: str) -> None:
    """Call the objects in fields of settings, or in their tuples, by their names; text stays."""
    for name in names:
        value: Any = getattr(config, name)
        if _is_list(config, name):
            value = tuple(map(_name, value if isinstance(value, tuple | list) else (value,)))
        else:
            value = _name(value)
        object.__setattr__(config, name, value)


def _is_list(config: Any, name: str) -> bool:
    return str(type(config).__dataclass_fields__[name].type).startswith("tuple")


def _name(value: Any) -> Any:
    return value if value is None or isinstance(value, str | Path) else Named(value)


def is_object(name: object) -> bool:
    """Whether text stands for a Python object: one that was given, or ``FILE.py:function``."""
    text = str(name)
    return text.startswith(START) or IN_FILE.fullmatch(text) is not None


def label(name: str | Path, role: str) -> str:
    """What people call an object: its function, or the file's name where that has its role alone.

    Example:
        >>> label("mine.py:drift", "metric"), label("mine.py:metric", "metric")
        ('drift', 'mine')
    """
    match = IN_FILE.fullmatch(str(name))
    if match is None:
        return str(name).removeprefix(START).rpartition("-")[0]
    return Path(match["file"]).stem if match["function"] in (None, role) else match["function"]


def find_function(name: str | Path, role: str, does: str) -> Callable[..., Any]:
    """The function that a setting names, or the callable that was given in its place.

    Args:
        name: ``FILE.py``, ``FILE.py:function``, or a :class:`Named`.
        role: the function where a file alone is named.
        does: what it does, for messages: "makes the data".

    Raises:
        UserError: if there is no such file, function or object.
    """
    from bezierdistill.files import load_function  # imported here: it takes torch

    if str(name).startswith(START):
        return _given(name, role)
    match = IN_FILE.fullmatch(str(name))
    if match is None:
        raise UserError(f"{name} is no {role}, expected FILE.py:function, which {does}")
    return load_function(Path(match["file"]), match["function"] or role, does)


def find_object(name: str | Path, role: str, does: str) -> Any:
    """The object that a setting names: what the function of a file returns, or what was given.

    See :func:`find_function`.
    """
    if str(name).startswith(START):
        return _given(name, role)
    return find_function(name, role, does)()


def _given(name: str | Path, role: str) -> Any:
    known = name if isinstance(name, Named) else _alive.get(str(name))
    if known is None:
        raise UserError(
            f"{name} was an object of a Python program that is not there any more: give it again,"
            f" or name it by FILE.py:{role}"
        )
    return known.value

"""From what TOML, a variable or a flag holds to what a field wants, and words for misfits."""

from __future__ import annotations

import builtins
import math
import sys
from datetime import date
from typing import Any, get_args, get_origin

import msgspec
from msgspec import inspect

from llmd.config.faults import Faults, show
from llmd.config.locate import KeyPath

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FAULTY = msgspec.UNSET
"""What `convert` returns for a value that it has added a fault about."""

_MAX_DEPTH = 32
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def convert(value: Any, wanted: Any, path: KeyPath, faults: Faults) -> Any:
    """Return `value` as the annotation `wanted`, or `FAULTY` after adding the fault."""
    if path[-1] == "expires" and isinstance(value, date):
        value = value.isoformat()  # TOML's own dates; one without clock or offset fails later
    problem = _unusable(value)
    if problem:
        faults.add(path, problem)
        return FAULTY
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError:
        info = inspect.type_info(wanted)
        item = _bad_item(value, wanted)
        shown = show(path, value) if item is FAULTY else f"one with {show(path, item)} in it"
        faults.add(path, f"must be {expected(info)}, not {shown}")
        return FAULTY


def from_text(text: str, wanted: Any) -> Any:
    """Read an environment variable's `text` as far as `wanted` goes.

    What cannot be read is returned as it is, for `convert` to complain about.
    """
    return _read(text, inspect.type_info(wanted))


def free_value(text: str) -> Any:
    """Read a variable for a place without a type: a TOML value if it is one, else a string."""
    value = _toml(text)
    return text if value is FAULTY else value


def expected(info: inspect.Type) -> str:
    """Return what a type admits, in words that follow "must be"."""
    match info:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _bounds(info)
        case inspect.FloatType():
            return "a number" + _bounds(info)
        case inspect.StrType():
            return "a string that is not empty" if info.min_length else "a string"
        case inspect.LiteralType():
            return "one of " + ", ".join(f'"{value}"' for value in info.values)
        case inspect.VarTupleType():
            return f"a list, each item {expected(info.item_type)}"
        case inspect.DictType():
            free = isinstance(info.value_type, inspect.AnyType)
            return "a table" if free else f"a table, each value {expected(info.value_type)}"
        case inspect.UnionType():
            return ", or ".join(expected(part) for part in info.types)
        case _:
            return "something else"


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    if info.ge is not None:
        return f" of at least {info.ge}"
    if info.gt is not None:
        return f" above {info.gt}"
    return ""


def _bad_item(value: Any, wanted: Any) -> Any:
    """Return the item that spoils a list or table, where that is the trouble, else `FAULTY`."""
    match get_origin(wanted), value:
        case (builtins.tuple, list()):
            items, kind = value, get_args(wanted)[0]
        case (builtins.dict, dict()):
            items, kind = list(value.values()), get_args(wanted)[1]
        case _:
            return FAULTY
    return next((item for item in items if not _fits(item, kind)), FAULTY)


def _fits(value: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def _unusable(value: Any, depth: int = 0) -> str:
    """Say what nothing in llmd can take, at any depth; "" if there is nothing such."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, str) and "\0" in value:
        return "must not contain a NUL character"
    if isinstance(value, dict | list):
        if depth == _MAX_DEPTH:
            return "is nested too deeply"
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return next(filter(None, (_unusable(item, depth + 1) for item in items)), "")
    return ""


def _read(text: str, info: inspect.Type) -> Any:
    match info:
        case inspect.BoolType():
            word = text.strip().lower()
            return True if word in _TRUE else False if word in _FALSE else text
        case inspect.IntType() | inspect.FloatType():
            try:
                return int(text) if isinstance(info, inspect.IntType) else float(text)
            except ValueError:
                return text
        case inspect.VarTupleType():
            if text.lstrip().startswith("["):
                value = _toml(text)
                return text if value is FAULTY else value
            items = (item.strip() for item in text.split(","))
            return [_read(item, info.item_type) for item in items if item]
        case _:
            return text


def _toml(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return FAULTY
    # a line break in the variable could have brought further keys
    return document["value"] if len(document) == 1 else FAULTY

"""One load: file, then variables, then flags, into a `Config`, or every fault at once."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from llmd.config.checks import check
from llmd.config.faults import Faults, nearest
from llmd.config.locate import KeyPath, Lines, locate
from llmd.config.places import find_config, home_dir
from llmd.config.schema import ARRAYS, Config, Group, defaults, tables
from llmd.config.values import FAULTY, convert, free_value, from_text
from llmd.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FREE = "generation"  # the one table whose keys are not fixed
_OTHER_VARIABLES = ("LLMD_CONFIG", "LLMD_SOCKET")
_PATHS = frozenset(
    {
        "server.tls_cert",
        "server.tls_key",
        "llama.binary",
        "llama.models_dir",
        "models.path",
        "models.mmproj",
        "models.draft",
        "models.lora",
    }
)
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_FAULTY_KEY = re.compile(r"([a-z_]+)\.([a-z_]+)(?=[:,.\[])")
_NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})
_GroupT = TypeVar("_GroupT", bound=Group)


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of settings, sound or not.

    Attributes:
        loaded: What could be read, faulty values left at their defaults; None when the file could
            not be read at all.
        faults: Every fault, each with TOML path and line; none for sound settings.
    """

    loaded: Loaded | None
    faults: tuple[str, ...]


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a load gave.

    Attributes:
        config: The settings, sound.
        path: The file they came from, or None.
        warnings: What works but should be seen to, a line each, for the log.
        where: Tells what set a key, such as ("models", 0, "path"): `FILE:LINE`, a variable, the
            command line; "" for a default.
    """

    config: Config
    path: Path | None
    warnings: tuple[str, ...] = ()
    where: Callable[[KeyPath], str] = lambda _path: ""

    def placed(self, fault: str) -> str:
        """Return a fault that begins with a key's name, such as `server.port: ...`, with its place.

        Other faults, and those of defaults, stay as they are.
        """
        key = _FAULTY_KEY.match(fault)
        place = self.where((key[1], key[2])) if key else ""
        return f"{place}: {fault}" if place else fault


def load(
    path: Path | None = None,
    *,
    env: Mapping[str, str],
    overrides: Mapping[str, Any] = _NO_OVERRIDES,
) -> Loaded:
    """Read the settings and check them, as far as that goes without looking at models or engines.

    Args:
        path: The file; None searches for one, and none at all is fine.
        env: The environment: `LLMD_<GROUP>_<KEY>`, `LLMD_CONFIG`, `HOME`.
        overrides: What flags say, which wins over all: dotted keys such as "server.port" with
            values as TOML would hold them; None for a flag that was not given. "models" is a
            list of tables, which come besides the file's.

    Raises:
        ConfigError: With every fault there is, each with TOML path and line.
    """
    found = survey(path, env=env, overrides=overrides)
    if found.faults or found.loaded is None:
        raise ConfigError(list(found.faults))
    return found.loaded


def load_variables(
    *, env: Mapping[str, str], overrides: Mapping[str, Any] = _NO_OVERRIDES
) -> Loaded:
    """Do as `load` without any file, for who has settings of his own: variables and flags count.

    Raises:
        ConfigError: With every fault there is.
    """
    found = _survey(_Source(file=None), env, overrides)
    if found.faults or found.loaded is None:
        raise ConfigError(list(found.faults))
    return found.loaded


def survey(
    path: Path | None = None,
    *,
    env: Mapping[str, str],
    overrides: Mapping[str, Any] = _NO_OVERRIDES,
) -> Survey:
    """Read the settings as `load` does, for who wants to look further although there are faults."""
    return _survey(_read(find_config(path, env)), env, overrides)


def _survey(source: _Source, env: Mapping[str, str], overrides: Mapping[str, Any]) -> Survey:
    faults = Faults(source.file, source.lines)
    if source.problem:
        faults.add_file(source.problem_line, source.problem)
    document = source.document
    _add_variables(document, env, faults)
    _add_overrides(document, overrides, faults)
    if source.problem:  # rules about what could not be read would only mislead
        return Survey(loaded=None, faults=tuple(faults.texts()))
    config = _Builder(source.file, env, faults).config(document)
    check(config, faults)
    loaded = Loaded(
        config=_without_plain_keys(config),
        path=source.file,
        warnings=_warnings(config, source),
        where=faults.where,
    )
    return Survey(loaded=loaded, faults=tuple(faults.texts()))


# --- the file ------------------------------------------------------------------------------


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """The file as read; `mode` is its permission bits, `problem` why nothing could be read."""

    file: Path | None
    document: dict[str, Any] = {}
    lines: Lines = msgspec.field(default_factory=lambda: Lines({}))
    mode: int = 0
    problem: str = ""
    problem_line: int = 0


def _read(file: Path | None) -> _Source:
    if file is None:
        return _Source(file=None)
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read().decode("utf-8-sig").replace("\r\n", "\n")
        return _Source(file=file, document=tomllib.loads(text), lines=locate(text), mode=mode)
    except OSError as error:
        return _Source(file=file, problem=f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return _Source(file=file, problem="is not UTF-8", problem_line=line)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        line = int(place[1] or text.count("\n") + 1) if place else 0
        reason = _TOML_PLACE.sub("", str(error))
        return _Source(file=file, problem=f"is not TOML: {reason}", problem_line=line)
    except (RecursionError, ValueError):  # tomllib lets int()'s refusal of huge numbers through
        return _Source(file=file, problem="is nested too deeply, or has a number too large")


# --- variables and flags -------------------------------------------------------------------


def _add_variables(document: dict[str, Any], env: Mapping[str, str], faults: Faults) -> None:
    """Write the variables over `document`."""
    known = {
        f"LLMD_{group}_{field.name}".upper(): (group, field.name, field.type)
        for group, struct in tables().items()
        for field in msgspec.structs.fields(struct)
    }
    free = f"LLMD_{_FREE}_".upper()
    for name, text in sorted(env.items()):
        if not name.startswith("LLMD_") or name in _OTHER_VARIABLES:
            continue
        if name in known:
            group, key, wanted = known[name]
            _put(document, group, key, from_text(text, wanted), name, faults)
        elif name.startswith(free) and name != free:
            key = name[len(free) :].lower()
            _put(document, _FREE, key, free_value(text), name, faults)
        elif any(name.startswith(f"LLMD_{group}_".upper()) for group in ARRAYS):
            faults.add_bare(f"{name}: keys and models are set in the config file only")
        else:
            guess = nearest(name, [*known, *_OTHER_VARIABLES])
            faults.add_bare(f"{name}: unknown variable; did you mean {guess}?")


def _add_overrides(document: dict[str, Any], overrides: Mapping[str, Any], faults: Faults) -> None:
    """Write the flags over `document`, and add their models to the file's."""
    for name, value in overrides.items():
        group, _, key = name.partition(".")
        if value is None:
            continue
        if key:
            _put(document, group, key, value, "command line", faults)
            continue
        held = document.setdefault(group, [])
        if isinstance(held, list):
            for entry in value:
                faults.came_from((group, len(held)), "command line")
                held.append(entry)


def _put(
    document: dict[str, Any], group: str, key: str, value: Any, origin: str, faults: Faults
) -> None:
    table = document.setdefault(group, {})
    if isinstance(table, dict):  # else the fault is found when the table is read
        table[key] = value
        faults.came_from((group, key), origin)


# --- the structs ---------------------------------------------------------------------------


class _Builder:
    """Turns a document into structs. What is faulty keeps its default, and the fault is told."""

    def __init__(self, file: Path | None, env: Mapping[str, str], faults: Faults) -> None:
        self._beside_file = file.absolute().parent if file is not None else Path.cwd()
        self._env = env
        self._faults = faults

    def config(self, document: dict[str, Any]) -> Config:
        fixed = tables()
        parts: dict[str, Any] = {}
        for name, held in document.items():
            if name in ARRAYS:
                parts[name] = self._array(name, held)
            elif name not in fixed and name != _FREE:
                groups = [*fixed, *ARRAYS, _FREE]
                guess = nearest(name, groups) if isinstance(held, dict) else _nearest_key(name)
                self._faults.add((name,), f"unknown; did you mean {guess}?")
            elif not isinstance(held, dict):
                self._faults.add((name,), f"must be a table; write [{name}]")
            elif name == _FREE:
                values = {key: convert(held[key], Any, (name, key), self._faults) for key in held}
                parts[name] = {key: val for key, val in values.items() if val is not FAULTY}
            else:
                parts[name] = self._table(fixed[name], held, (name,))
        return Config(**parts)

    def _array(self, name: str, held: Any) -> tuple[Group, ...]:
        if not isinstance(held, list):
            self._faults.add((name,), f"must be an array of tables; write [[{name}]]")
            return ()
        entries: list[Group] = []
        for index, entry in enumerate(held):
            path: KeyPath = (name, index)
            if isinstance(entry, dict):
                entries.append(self._table(ARRAYS[name], entry, path))
            else:
                self._faults.add(path, f"must be a table; write [[{name}]]")
        return tuple(entries)

    def _table(self, struct: type[_GroupT], held: dict[str, Any], path: KeyPath) -> _GroupT:
        fields = {field.name: field for field in msgspec.structs.fields(struct)}
        values: dict[str, Any] = {}
        for key, value in held.items():
            at = (*path, key)
            if key not in fields:
                guess = _nearest_key(key, struct)
                self._faults.add(at, f"unknown key; did you mean {guess}?")
                continue
            converted = convert(value, fields[key].type, at, self._faults)
            if converted is not FAULTY:
                values[key] = self._resolved(converted, at)
        for key, field in fields.items():
            if field.required and key not in values:
                values[key] = ""
                if key not in held:
                    self._faults.add((*path, key), "is required")
        return struct(**values)

    def _resolved(self, value: Any, path: KeyPath) -> Any:
        """Return the path or paths in `value` absolute: as seen from the file, or from here."""
        if f"{path[0]}.{path[-1]}" not in _PATHS:
            return value
        if isinstance(value, tuple):
            return tuple(self._resolved(item, path) for item in value)
        if not value or (path[-1] == "binary" and "/" not in value):
            return value  # a program to be looked up on PATH
        if value == "~" or value.startswith("~/"):
            return str(home_dir(self._env) / value[2:])
        from_file = self._faults.origin(path) is None
        return str((self._beside_file if from_file else Path.cwd()) / value)


def _nearest_key(key: str, group: type[Group] | None = None) -> str:
    """Return the known key most like `key`: of `group`, or with its group's name before it."""
    own = defaults(group) if group is not None else {}
    if group in ARRAYS.values():
        return nearest(key, own)
    others = {
        other_key: f"{name}.{other_key}"
        for name, struct in tables().items()
        for other_key in defaults(struct)
        if other_key not in own
    }
    found = nearest(key, [*own, *others])
    return others.get(found, found)


def _without_plain_keys(config: Config) -> Config:
    keys = tuple(
        msgspec.structs.replace(key, key="", key_sha256=key.digest.hex()) if key.key else key
        for key in config.api_keys
    )
    return msgspec.structs.replace(config, api_keys=keys)


def _warnings(config: Config, source: _Source) -> tuple[str, ...]:
    plain = any(key.key for key in config.api_keys)
    if plain and source.mode & (stat.S_IRGRP | stat.S_IROTH):
        return (
            f"{source.file} holds plain API keys and others may read it: "
            f"run chmod 600 {source.file}, or write key_sha256 instead of key",
        )
    return ()

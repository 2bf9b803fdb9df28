"""Keys of one's own: `tui.toml`, which gives other keys to what the screen can do.

    [keys]
    cancel = "X"
    down = ["n", "down"]

Each name is the id of a binding; `llmtui --keys` prints all. What is wrong in the file is told all
at once, and nothing starts.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from textual.binding import Binding
from textual.keys import KEY_ALIASES, KEY_NAME_REPLACEMENTS, Keys, key_to_character

from llmtui.bindings import spelt

_MODIFIERS = ("ctrl+", "shift+", "alt+", "super+")
_NAMED = {key.value for key in Keys if "<" not in key.value}
_NAMED |= set(KEY_NAME_REPLACEMENTS.values())
_NAMED |= {name for names in KEY_ALIASES.values() for name in names}
_MOST_BYTES = 64 << 10


class KeymapError(Exception):
    """What is wrong with the file.

    Attributes:
        faults: One line each, for a person.
    """

    def __init__(self, path: Path, faults: list[str]) -> None:
        super().__init__(f"{path}: " + "; ".join(faults))
        self.faults = [f"{path}: {fault}" for fault in faults]


def keymap_path(environ: Mapping[str, str]) -> Path:
    """Return where the file is looked for: `$XDG_CONFIG_HOME/llmd/tui.toml`, or `~/.config`."""
    base = environ.get("XDG_CONFIG_HOME", "")
    # the specification of these directories has relative paths ignored
    home = Path(base) if base.startswith("/") else Path.home() / ".config"
    return home / "llmd" / "tui.toml"


def read_keymap(path: Path, scopes: Callable[[], Iterable[Iterable[Any]]]) -> dict[str, str]:
    """Return the file's keys by binding id, as Textual wants them; {} without a file.

    Args:
        path: Of the file.
        scopes: Returns the `BINDINGS` of each screen; keys must differ within one. Called only if
            there is a file.

    Raises:
        KeymapError: It cannot be read, is no TOML, or names what there is not.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KeymapError(path, [f"cannot be read: {error.strerror}"]) from error
    if len(data) > _MOST_BYTES:
        raise KeymapError(path, [f"is larger than {_MOST_BYTES} bytes"])
    keymap, faults = check_keymap(_parsed(path, data), scopes())
    if faults:
        raise KeymapError(path, faults)
    return keymap


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    # most have no such file, and do not wait for its parser
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise KeymapError(path, ["is not UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        raise KeymapError(path, [f"is no TOML: {error}"]) from error


def check_keymap(
    content: Mapping[str, Any], scopes: Iterable[Iterable[Any]]
) -> tuple[dict[str, str], list[str]]:
    """Return the keys by binding id, and what is wrong with them."""
    named = [[b for b in scope if isinstance(b, Binding) and b.id] for scope in scopes]
    known = {str(binding.id) for bindings in named for binding in bindings}
    faults = [
        f"unknown table or key {name!r}; there is only [keys]" for name in content if name != "keys"
    ]
    table = content.get("keys", {})
    if not isinstance(table, dict):
        return {}, [*faults, "[keys] must be a table"]
    keymap: dict[str, str] = {}
    for name, value in _flat(table).items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            faults.append(f"keys.{name}: no such id" + (f"; {near[0]}?" if near else ""))
            continue
        keys, wrong = _keys(value)
        faults += [f"keys.{name}: {fault}" for fault in wrong]
        if not wrong:
            keymap[name] = ",".join(keys)
    for bindings in named:
        faults += _clashes(bindings, keymap)
    return keymap, faults


def _flat(table: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    """Return a table with `logs.follow`, which TOML takes for a table `logs`, as one name."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{lead}{name}."))
        else:
            flat[lead + name] = value
    return flat


def _keys(value: object) -> tuple[list[str], list[str]]:
    """Return the keys that a value names as Textual calls them, and what is wrong with it."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return [], ["must be a key, or a list of keys"]
    keys = [key_of(name) for name in names]
    wrong = [f"no such key: {n!r}" for n, key in zip(names, keys, strict=True) if not key]
    return [key for key in keys if key], wrong


def key_of(name: str) -> str:
    """Return a key as Textual calls it; "" when there is none of that name."""
    rest, prefix = name.strip() if name != " " else name, ""
    while rest.startswith(_MODIFIERS) and len(rest.split("+", 1)[1]) > 0:
        modifier, rest = rest.split("+", 1)
        prefix += f"{modifier}+"
    if len(rest) == 1 and rest.isprintable():
        return prefix + (rest if rest.isalnum() else _punctuation(rest))
    rest = rest.lower()
    known = rest in _NAMED or f"{prefix}{rest}" in _NAMED or key_to_character(rest) is not None
    return prefix + rest if known else ""


def _punctuation(character: str) -> str:
    name = unicodedata.name(character, "").lower().replace("-", "_").replace(" ", "_")
    return KEY_NAME_REPLACEMENTS.get(name, name)


def _clashes(bindings: list[Binding], keymap: Mapping[str, str]) -> list[str]:
    """Return what is wrong with keys that do two things, and did not without the file."""
    before = {(key, *names) for key, *names in _shared(bindings, {})}
    return [
        f"the key {spelt(key)!r} is both {first} and {second}"
        for key, first, second in _shared(bindings, keymap)
        if (key, first, second) not in before
    ]


def _shared(bindings: list[Binding], keymap: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield each key that two bindings have: a window may take one from what it is built on."""
    owners = {"ctrl+c": "leaving, always"}
    for binding in bindings:
        name = str(binding.id)
        for key in keymap.get(name, binding.key).split(","):
            other = owners.setdefault(key.strip(), name)
            if other != name:
                yield key.strip(), other, name


def template(scopes: Iterable[Iterable[Any]], about: Mapping[str, str]) -> list[str]:
    """Return the file as it would have to be for the keys to stay as they are.

    Args:
        scopes: As of `read_keymap`.
        about: What a binding does, by id.
    """
    lines = ["[keys]"]
    known: set[str] = set()
    for scope in scopes:
        for binding in scope:
            if not isinstance(binding, Binding) or not binding.id or binding.id in known:
                continue
            known.add(binding.id)
            keys = ", ".join(f'"{_written(key)}"' for key in binding.key.split(","))
            name = f'"{binding.id}"' if "." in binding.id else binding.id
            note = about.get(binding.id, "")
            lines.append(f"{name} = [{keys}]" + (f"  # {note}" if note else ""))
    return lines


def _written(key: str) -> str:
    """Return a key as it is written in the file."""
    text = key_to_character(key)
    return text if text is not None and text.isprintable() and text not in '"\\ ' else key

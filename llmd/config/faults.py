"""The faults of one load, each with its TOML path and where the value came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmd.config.locate import KeyPath, Lines

_SHOWN_CHARS = 60
_SECRETS = frozenset({"key", "key_sha256"})


class Faults:
    """Collects faults, so that all of them are told at once.

    Args:
        file: The config file, or None; named in faults as it was given.
        lines: Where its keys stand.
    """

    def __init__(self, file: Path | None, lines: Lines) -> None:
        self._file = file
        self._lines = lines
        self._origins: dict[KeyPath, str] = {}
        self._faults: list[tuple[int, int, str]] = []
        self._bad: set[KeyPath] = set()

    def came_from(self, path: KeyPath, origin: str) -> None:
        """Note that `path` was set by a variable or flag instead of the file."""
        self._origins[path] = origin

    def origin(self, path: KeyPath) -> str | None:
        """Return the variable or flag that set `path`, or None for the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._origins:
                return self._origins[path[:end]]
        return None

    def where(self, path: KeyPath) -> str:
        """Return the place that set `path`: `FILE:LINE`, a variable, or the command line; or ""."""
        origin = self.origin(path)
        if origin is not None:
            return origin
        line = self._lines.line(path)
        return f"{self._file}:{line}" if line else ""

    def add(self, path: KeyPath, message: str) -> None:
        """Add a fault of the value at `path`."""
        self._bad.add(path)
        text = ": ".join(filter(None, (self.where(path), dotted(path), message)))
        from_file = self.origin(path) is None
        self._faults.append((0, self._lines.line(path), text) if from_file else (1, 0, text))

    def add_bare(self, message: str) -> None:
        """Add a fault that belongs to no key, such as an unknown variable."""
        self._faults.append((2, 0, message))

    def add_file(self, line: int, message: str) -> None:
        """Add the fault that the file as a whole cannot be read; `line` is 0 if unknown."""
        place = f"{self._file}:{line}" if line else str(self._file)
        self._faults.append((0, line, f"{place}: {message}"))

    def sound(self, *paths: KeyPath) -> bool:
        """Return whether none of `paths` has a fault, so that rules about them make sense."""
        return self._bad.isdisjoint(paths)

    def texts(self) -> list[str]:
        """Return what was collected, the file's faults first and from top to bottom."""
        return [text for _, _, text in sorted(self._faults, key=lambda fault: fault[:2])]


def dotted(path: KeyPath) -> str:
    """Return `path` as people write it: `models[0].generation.temperature`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def show(path: KeyPath, value: Any) -> str:
    """Return `value` for a message: short, as TOML writes it, and never a key."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    secret = path[-1] in _SECRETS
    if isinstance(value, str):
        cut = value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "..."
        return "this string" if secret else f'"{cut.encode("unicode_escape").decode("ascii")}"'
    if isinstance(value, int):  # Python refuses to print huge ones
        return "this number" if secret or value.bit_length() > 64 else str(value)
    if isinstance(value, float):
        return "this number" if secret else str(value)
    return f"a {type(value).__name__}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return which of `known` looks most like `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]

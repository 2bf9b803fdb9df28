"""Which line of a TOML text a key stands on: tomllib tells values, but not where they are.

The text is expected to have passed tomllib, so nothing is validated again; a scanner that is lost
all the same stops, and what it has not seen gets the line of the nearest table around it.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeAlias

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KeyPath: TypeAlias = tuple[str | int, ...]
"""A way into a TOML document: names of keys, and indices into arrays."""


class Lines:
    """The lines of a document's keys, from 1."""

    def __init__(self, lines: Mapping[KeyPath, int]) -> None:
        self._lines = lines

    def line(self, path: KeyPath) -> int:
        """Return the line of `path`, or of the nearest thing around it; 0 if there is none."""
        for end in range(len(path), 0, -1):
            found = self._lines.get(path[:end])
            if found is not None:
                return found
        return 0

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._lines


def locate(text: str) -> Lines:
    """Find every key, table, array element and inline table of `text`; never raises."""
    scanner = _Scanner(text)
    with suppress(_LostError, RecursionError):  # what was found until then still helps
        scanner.document()
    return Lines(scanner.lines)


class _LostError(Exception):
    """What comes next is not the TOML that this scanner knows."""


_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_SCALARS = (
    # up to two quotes may stand right before the three that close a multiline string
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
    re.compile(r"""[^,\]}#\r\n"'\[{]+"""),
)


class _Scanner:
    """One pass over a text, leaving the lines in `lines`."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._sizes: dict[KeyPath, int] = {}  # of the arrays that [[headers]] make

    def document(self) -> None:
        table: KeyPath = ()
        while self._next(_BLANK):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _next(self, skipped: re.Pattern[str]) -> str:
        """Skip, and return the character that follows; "" at the end."""
        match = skipped.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return self._text[self._at : self._at + 1]

    def _expect(self, token: str) -> None:
        if not self._text.startswith(token, self._at):
            raise _LostError
        self._at += len(token)

    def _note(self, path: KeyPath, at: int) -> None:
        self.lines.setdefault(path, bisect_right(self._starts, at))

    def _key(self) -> tuple[str, ...]:
        """Read a key, dotted and quoted as it may be."""
        parts: list[str] = []
        while match := _KEY.match(self._text, self._at):
            self._at = match.end()
            parts.append(_unquoted(match[1]))
            if not self._text.startswith(".", self._at):
                return tuple(parts)
            self._at += 1
        raise _LostError

    def _header(self) -> KeyPath:
        """Read `[a.b]` or `[[a.b]]` and return the table that follows it."""
        start, brackets = self._at, 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        *parents, last = self._key()
        self._expect("]" * brackets)
        path: KeyPath = ()
        for part in parents:
            path = (*path, part)
            self._note(path, start)
            if path in self._sizes:  # a header below [[a]] means the latest element of it
                path = (*path, self._sizes[path] - 1)
        path = (*path, last)
        self._note(path, start)
        if brackets == 2:
            index = self._sizes.get(path, 0)
            self._sizes[path] = index + 1
            path = (*path, index)
            self._note(path, start)
        return path

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = table
        for part in self._key():
            path = (*path, part)
            self._note(path, start)
        self._expect("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._next(_SPACE)
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            for scalar in _SCALARS:
                if match := scalar.match(self._text, self._at):
                    self._at = match.end()
                    return
            raise _LostError

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._next(_BLANK) != "]":
            self._note((*path, index), self._at)
            self._value((*path, index))
            index += 1
            if self._next(_BLANK) == ",":
                self._at += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._next(_BLANK) != "}":
            self._pair(path)
            if self._next(_BLANK) == ",":
                self._at += 1
        self._at += 1


def _unquoted(part: str) -> str:
    if part[0] == "'":
        return part[1:-1]
    if part[0] == '"':
        try:
            return str(tomllib.loads(f"k = {part}")["k"])
        except tomllib.TOMLDecodeError as error:
            raise _LostError from error
    return part

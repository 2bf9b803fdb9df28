"""A worker's log as rows of a screen: levels, wrapping, searching, within a bounded ring.

Nothing here draws. A log is hostile text: it is cleaned once, when it is added.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from rich.cells import cell_len, chop_cells

from llmd.admin import protocol as p
from llmd.admin.framing import clean

RING = 20_000
_MAX_CHARS = 4000
_COMPACT = 4096  # forgotten entries that are kept in the lists until they are worth a copy


class Level(IntEnum):
    """How much a line matters; numbered as llama-server's own verbosity."""

    NONE = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    TRACE = 4
    DEBUG = 5


ALL = Level.DEBUG
_LETTERS = {
    "E": Level.ERROR, "W": Level.WARN, "I": Level.INFO, "T": Level.TRACE, "D": Level.DEBUG,
}  # fmt: skip
_WORDS = {
    "fatal": Level.ERROR, "critical": Level.ERROR, "error": Level.ERROR, "err": Level.ERROR,
    "warning": Level.WARN, "warn": Level.WARN, "info": Level.INFO, "trace": Level.TRACE,
    "verb": Level.DEBUG, "verbose": Level.DEBUG, "debug": Level.DEBUG,
}  # fmt: skip
# "0.00.052.301 I srv ..." and "I srv ...": the prefixes that --log-prefix and --log-timestamps add
_PREFIX = re.compile(r"(?:\d+\.\d\d\.\d{3}\.\d{3} )?([EWITD]) (?=\S| {0,3}\S)")
_TIMESTAMP = re.compile(r"\d+\.\d\d\.\d{3}\.\d{3} ")
_JSON = re.compile(r'^\{.{0,200}?"(?:level|severity)"\s*:\s*"([A-Za-z]{1,8})"')
_NAMED = re.compile(r"^\W{0,2}(fatal|critical|error|warning|warn|info|trace|debug)\b\W?", re.I)
_INSIDE = re.compile(
    r"(?:^|[\s:])(?:(error|fatal)(?:: | loading )|(warning|warn): |failed to )", re.I
)


def level_of(text: str) -> tuple[Level, str]:
    """Return how much a line matters, and the line without the prefix that says so.

    What cannot be told is `INFO`.
    """
    found = _PREFIX.match(text)
    if found:
        return _LETTERS[found[1]], text[found.end() :]
    stamp = _TIMESTAMP.match(text)
    rest = text[stamp.end() :] if stamp else text
    if rest.startswith("{") and (named := _JSON.match(rest)):
        return _WORDS.get(named[1].lower(), Level.INFO), rest
    if named := _NAMED.match(rest):
        return _WORDS[named[1].lower()], rest
    if inside := _INSIDE.search(rest[:200]):
        return (Level.WARN if inside[2] else Level.ERROR), rest
    return Level.INFO, rest


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        number: From 0, growing; stays the line's own while others are forgotten.
        at: Unix seconds.
        stream: `stdout`, `stderr`, `llmd`, or `mark` for what this screen put between them.
        level: How much it matters; `NONE` for marks.
        text: Harmless, in one line.
    """

    number: int
    at: float
    stream: str
    level: Level
    text: str


class LogPage:
    """Lines in a bounded ring, as rows of a screen.

    Rows are counted from the first line that is kept and shown.

    Args:
        ring: How many lines are kept.
    """

    def __init__(self, ring: int = RING) -> None:
        self.ring = ring
        self.level = ALL
        self.width = 0
        self.word = ""
        self.current: int | None = None
        self._next = 0
        self._kept: deque[Entry] = deque()
        self._shown: list[Entry] = []
        self._ends: list[int] = []  # rows up to the end of each shown line, over all time
        self._start = 0  # of `_shown`: what stands before has been forgotten
        self._hits: list[int] = []
        self._first_hit = 0

    # --- lines in ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many lines are kept, also those that the level hides."""
        return len(self._kept)

    def __iter__(self) -> Iterator[Entry]:
        """Every line that is kept, the oldest first."""
        return iter(self._kept)

    def add(self, lines: Iterable[p.LogLine]) -> int:
        """Add lines, and return how many rows were forgotten at the top."""
        gone = 0
        for line in lines:
            level, text = level_of(clean(line.text)[:_MAX_CHARS])
            gone += self._add(line.at, line.stream, level, text)
        return gone

    def mark(self, at: float, text: str) -> int:
        """Put a mark behind the last line; returns how many rows were forgotten at the top."""
        return self._add(at, "mark", Level.NONE, clean(text)[:_MAX_CHARS])

    def _add(self, at: float, stream: str, level: Level, text: str) -> int:
        entry = Entry(self._next, at, stream, level, text)
        self._next += 1
        self._kept.append(entry)
        self._show(entry)
        return self._forget(self._kept.popleft()) if len(self._kept) > self.ring else 0

    def _show(self, entry: Entry) -> None:
        if entry.level > self.level:
            return
        self._ends.append((self._ends[-1] if self._ends else 0) + self._rows(entry))
        self._shown.append(entry)
        if self._is_hit(entry):
            self._hits.append(entry.number)

    def _forget(self, entry: Entry) -> int:
        start = self._start
        if start >= len(self._shown) or self._shown[start].number != entry.number:
            return 0
        rows = self._ends[start] - self._base
        self._start += 1
        while self._first_hit < len(self._hits) and self._hits[self._first_hit] <= entry.number:
            self._first_hit += 1
        if self.current == entry.number:
            self.current = None
        if self._start > _COMPACT:
            base = self._ends[self._start - 1]
            del self._shown[: self._start]
            self._ends = [end - base for end in self._ends[self._start :]]
            del self._hits[: self._first_hit]
            self._start = self._first_hit = 0
        return rows

    @property
    def _base(self) -> int:
        return self._ends[self._start - 1] if self._start else 0

    # --- how it is looked at ----------------------------------------------------------------

    def look(self, *, level: Level | None = None, width: int | None = None) -> None:
        """Show other levels, or wrap at another width (0 = do not wrap)."""
        if (level is None or level == self.level) and (width is None or width == self.width):
            return
        self.level = self.level if level is None else level
        self.width = self.width if width is None else width
        self._shown, self._ends, self._hits = [], [], []
        self._start = self._first_hit = 0
        for entry in self._kept:
            self._show(entry)
        if self.current is not None and self.current not in self._hits:
            self.current = None

    def _rows(self, entry: Entry) -> int:
        if not self.width or entry.stream == "mark":
            return 1
        if entry.text.isascii():
            return max(1, -(-len(entry.text) // self.width))
        if cell_len(entry.text) <= self.width:
            return 1
        return len(chop_cells(entry.text, self.width))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._ends[-1] - self._base if len(self._ends) > self._start else 0

    @property
    def lines(self) -> int:
        """How many lines are shown."""
        return len(self._shown) - self._start

    def row(self, number: int) -> tuple[Entry, int, str] | None:
        """Return what stands in a row: the line, which of its rows it is, and that row's text."""
        at = self._base + number
        index = bisect_right(self._ends, at, self._start)
        if number < 0 or index >= len(self._shown):
            return None
        entry = self._shown[index]
        part = at - (self._ends[index - 1] if index else 0)
        if not self.width or entry.stream == "mark":
            return entry, 0, entry.text
        if entry.text.isascii():
            return entry, part, entry.text[part * self.width : (part + 1) * self.width]
        pieces = chop_cells(entry.text, self.width) or [""]
        return entry, part, pieces[part] if part < len(pieces) else ""

    def row_of(self, number: int) -> int:
        """Return the first row of a line, or of the next one that is shown."""
        index = bisect_left(self._shown, number, self._start, key=lambda entry: entry.number)
        return (self._ends[index - 1] if index else 0) - self._base

    # --- searching --------------------------------------------------------------------------

    def _is_hit(self, entry: Entry) -> bool:
        return bool(self.word) and self.word in entry.text.lower()

    def search(self, word: str) -> None:
        """Look for a word; case does not matter, "" ends the search."""
        self.word = word.lower()
        self.current = None
        self._first_hit = 0
        shown = self._shown[self._start :]
        self._hits = [entry.number for entry in shown if self._is_hit(entry)]

    @property
    def hits(self) -> int:
        """How many lines hold the word."""
        return len(self._hits) - self._first_hit

    @property
    def place(self) -> int:
        """Which of the hits the current one is, from 1; 0 when there is none."""
        if self.current is None:
            return 0
        return bisect_left(self._hits, self.current, self._first_hit) - self._first_hit + 1

    def step(self, by: int, row: int) -> int | None:
        """Go to the next hit (`by` = 1) or the one before (-1), round the ends.

        Args:
            by: Which way.
            row: Where to begin when no hit is current.

        Returns:
            Its row; None when there are no hits.
        """
        if not self.hits:
            return None
        first, last = self._first_hit, len(self._hits)
        if self.current is not None:
            index = bisect_left(self._hits, self.current, first) + by
        else:
            here = self.row(max(0, row))
            number = here[0].number if here else self._next
            found = bisect_left(self._hits, number, first)
            index = found if by > 0 else found - 1
        index = first + (index - first) % (last - first)
        self.current = self._hits[index]
        return self.row_of(self.current)


def saved_text(page: LogPage, title: str) -> str:
    """Return every line that is kept as a text file, hidden levels included."""
    letters = {level: letter for letter, level in _LETTERS.items()}
    made = [f"# {clean(title)}"]
    for entry in page:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.at))
        head = f"{at}.{int(entry.at * 1000) % 1000:03d}"
        if entry.stream == "mark":
            made.append(f"{head} -- {entry.text} --")
        else:
            made.append(f"{head} {letters[entry.level]} {entry.stream:6} {entry.text}")
    return "\n".join(made) + "\n"

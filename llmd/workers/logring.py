"""What a worker said, bounded: the last lines of its stdout and stderr, made safe to show.

A worker's log is hostile text (it quotes prompts and model metadata), so control characters,
escape sequences and direction overrides are removed here, once, and lines have a bounded length.

A worker writes some thirty lines a request, and hardly any is ever looked at. So what it wrote is
kept as it came, as much as the ring can hold lines of, and made lines of once somebody looks.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

import trio

MAX_LINES = 1000
MAX_LINE_CHARS = 2000
MAX_RING_CHARS = 1 << 20

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS and the like, with their text
    r"|[ -/]*[0-~])"
)
# C0 and C1 controls, line separators, direction marks and overrides, zero-width no-break space
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text: str) -> str:
    """Return `text` without anything that a terminal or a layout would obey; tabs become spaces."""
    return _UNSAFE.sub("", _ESCAPES.sub("", text).replace("\t", " "))


class LogStream(str, Enum):
    """Where a line came from; `llmd` marks our own remarks between the worker's lines."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LLMD = "llmd"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line.

    Attributes:
        sequence: From 1, without gaps; a gap that a reader sees was forgotten by the ring.
        at: Wall time in seconds since the epoch.
        stream: Where it came from.
        text: Safe to show; without its line end.
    """

    sequence: int
    at: float
    stream: LogStream
    text: str


class LineSplitter:
    """Bytes in, safe lines out; a line longer than `max_chars` is cut and its rest dropped.

    A carriage return ends a line too, as progress bars use it; empty lines are dropped.
    """

    def __init__(self, max_chars: int = MAX_LINE_CHARS) -> None:
        self._max_chars = max_chars
        self._partial = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes."""
        pieces = data.replace(b"\r", b"\n").split(b"\n")
        lines: list[str] = []
        for piece in pieces[:-1]:
            self._grow(piece)
            self._end(lines)
        self._grow(pieces[-1])
        return lines

    def flush(self) -> list[str]:
        """Return what is left without a line end."""
        lines: list[str] = []
        self._end(lines)
        return lines

    def skip(self, data: bytes) -> None:
        """Do as `feed` does, for nobody: only the line that `data` begins is kept."""
        rest = data[max(data.rfind(b"\n"), data.rfind(b"\r")) + 1 :]
        if len(rest) < len(data):
            self._partial = b""
            self._skipping = False
        self._grow(rest)

    def _grow(self, piece: bytes) -> None:
        if self._skipping:
            return
        room = 4 * self._max_chars - len(self._partial)  # UTF-8 takes at most 4 bytes a character
        self._partial += piece[:room]
        self._skipping = len(piece) > room

    def _end(self, lines: list[str]) -> None:
        text = clean(self._partial.decode("utf-8", "replace"))
        if len(text) > self._max_chars or self._skipping:
            text = text[: self._max_chars - 1] + "…"
        if text.strip():
            lines.append(text.rstrip())
        self._partial = b""
        self._skipping = False


@dataclass(frozen=True, slots=True)
class _Raw:
    """Output that no line has been made of; `ends` counts the lines that end in it, at most."""

    at: float
    stream: LogStream
    data: bytes
    ends: int


class LogRing:
    """The last lines of one worker, over all of its lives.

    A follower keeps the sequence number that it has seen and alternates `newer` and `since`: it
    costs the ring nothing, and one that is slow misses lines and can tell by their numbers.

    Args:
        max_lines: Lines kept.
        max_chars: Characters kept over all lines, and bytes of what no line is made of yet.
        clock: Wall clock.
    """

    def __init__(
        self,
        *,
        max_lines: int = MAX_LINES,
        max_chars: int = MAX_RING_CHARS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lines: deque[LogLine] = deque()
        self._max_lines = max_lines
        self._max_chars = max_chars
        self._chars = 0
        self._clock = clock
        self._grown: trio.Event | None = None
        self._sequence = 0
        self._raw: deque[_Raw] = deque()
        self._raw_bytes = self._raw_ends = 0
        self._splitters: dict[LogStream, LineSplitter] = {}

    @property
    def sequence(self) -> int:
        """The number of the newest line; 0 before the first."""
        self._settle()
        return self._sequence

    def append(self, stream: LogStream, text: str) -> None:
        """Add one line, already clean; forgets the oldest ones beyond the bounds."""
        self._settle()
        self._append(self._clock(), stream, text)
        self._tell()

    def feed(self, stream: LogStream, data: bytes) -> None:
        """Add output as it came, wherever it is cut."""
        ends = data.count(b"\n")
        self._raw.append(_Raw(self._clock(), stream, data, ends))
        self._raw_bytes += len(data)
        self._raw_ends += ends
        if b"\n\n" in data or b"\r" in data:  # then there may be fewer lines, or more
            self._settle()
        while self._raw and self._raw_ends - self._raw[0].ends >= self._max_lines:
            self._forget(self._raw.popleft())
        if self._raw_bytes >= self._max_chars:  # long lines, of which little is kept
            self._settle()
        if self._grown is not None:
            self._tell()

    def since(self, sequence: int) -> tuple[LogLine, ...]:
        """Return the kept lines newer than number `sequence`; 0 returns all."""
        self._settle()
        newer = takewhile(lambda line: line.sequence > sequence, reversed(self._lines))
        return tuple(newer)[::-1]

    def tail(self, count: int, *streams: LogStream, after: int = 0) -> tuple[LogLine, ...]:
        """Return the last `count` lines newer than `after`, of these streams (none = of all)."""
        lines = [line for line in self.since(after) if not streams or line.stream in streams]
        return tuple(lines[-count:] if count else ())

    async def newer(self, sequence: int) -> None:
        """Wait until there is a line newer than number `sequence`. Cancelling it costs nothing."""
        while self.sequence <= sequence:
            if self._grown is None:
                self._grown = trio.Event()
            await self._grown.wait()

    def _splitter(self, stream: LogStream) -> LineSplitter:
        return self._splitters.setdefault(stream, LineSplitter())

    def _settle(self) -> None:
        """Make lines of all that came."""
        while self._raw:
            raw = self._raw.popleft()
            for text in self._splitter(raw.stream).feed(raw.data):
                self._append(raw.at, raw.stream, text)
        self._raw_bytes = self._raw_ends = 0

    def _forget(self, raw: _Raw) -> None:
        """Let go of output that newer one fills the ring without; its lines keep their numbers.

        Lines that were made before stay: if the newer ones turn out to be blank, they are the last.
        """
        self._raw_bytes -= len(raw.data)
        self._raw_ends -= raw.ends
        self._splitter(raw.stream).skip(raw.data)
        self._sequence += raw.ends

    def _append(self, at: float, stream: LogStream, text: str) -> None:
        self._sequence += 1
        self._lines.append(LogLine(self._sequence, at, stream, text))
        self._chars += len(text)
        while len(self._lines) > self._max_lines or self._chars > self._max_chars:
            self._chars -= len(self._lines.popleft().text)

    def _tell(self) -> None:
        if self._grown is not None:
            self._grown.set()
            self._grown = None

"""Lines on the admin socket: split, bounded, and free of what a terminal would obey.

A line is one JSON object. Whatever text it carries (names, reasons, logs) may be hostile, so
control characters leave a line on its way out of the daemon and once more on its way into a
client; nobody behind this edge has to think of them.
"""

from __future__ import annotations

import re

MAX_LINE_BYTES = 4 << 20

# An escape in a JSON string, DEL, a C1 control, a direction mark or override, a line separator.
_SUSPECT = re.compile(
    rb"\\(?:u[0-9a-fA-F]{4}|.)"
    rb"|\x7f|\xc2[\x80-\x9f]"
    rb"|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]|\xef\xbb\xbf",
    re.DOTALL,
)
_SEQUENCE = re.compile(rb"\\u001[bB](?:\[[0-?]*[ -!#-/]*[@-~]|[@-Z^_])")
_KEPT = (b'\\"', b"\\\\", b"\\/")
_SPACES = (b"\\n", b"\\r", b"\\t")
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text: str) -> str:
    """Return text without control characters and direction overrides; breaks become spaces."""
    if text.isprintable():
        return text
    for space in "\n\r\t":
        text = text.replace(space, " ")
    return _UNSAFE.sub("", text)


def clean_line(line: bytes) -> bytes:
    """Return a line of JSON whose strings hold nothing that a terminal would obey.

    Works on the encoded form, so that the cost of a harmless line is one search. Line breaks and
    tabs within strings become spaces, escape sequences and other controls vanish.
    """
    if _SUSPECT.search(line) is None:
        return line
    if b"\\u001b" in line or b"\\u001B" in line:
        line = _SEQUENCE.sub(b"", line)
    return _SUSPECT.sub(_harmless, line)


def _harmless(match: re.Match[bytes]) -> bytes:
    found = match.group()
    if found[:1] != b"\\":
        return b""
    if found in _KEPT:
        return found
    if found in _SPACES:
        return b" "
    if found[1:2] != b"u":
        return b""  # \b and \f; or no JSON, which the decoder will say
    char = chr(int(found[2:], 16))
    if char in "\n\r\t":
        return b" "
    return b"" if _UNSAFE.match(char) else found


class LineTooLong(Exception):
    """A line has more than `MAX_LINE_BYTES`; it is skipped up to its end."""


class LineSplitter:
    """Bytes in, whole lines out, with bounded memory.

    Args:
        max_bytes: Of a line, its end not counted.
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | LineTooLong]:
        """Return the lines that `data` completes, and a `LineTooLong` for each that is none."""
        pieces = data.split(b"\n")
        lines: list[bytes | LineTooLong] = []
        for piece in pieces[:-1]:
            self._take(piece, lines)
            if not self._skipping:
                lines.append(b"".join(self._parts) if len(self._parts) > 1 else self._parts[0])
            self._parts, self._held, self._skipping = [], 0, False
        if pieces[-1]:
            self._take(pieces[-1], lines)
        return lines

    @property
    def partial(self) -> bool:
        """True when a line has begun and not ended."""
        return bool(self._held) or self._skipping

    def _take(self, piece: bytes, lines: list[bytes | LineTooLong]) -> None:
        if self._skipping:
            return
        self._held += len(piece)
        if self._held > self._max_bytes:
            self._parts, self._held, self._skipping = [], 0, True
            lines.append(LineTooLong(f"a line has more than {self._max_bytes} bytes"))
            return
        self._parts.append(piece)

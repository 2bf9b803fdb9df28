"""Structured logs on stderr: an event, and fields that say more.

A line is written at once and never waits: what the reader of stderr does not take is kept, up to
a bound, until the next line, and what is dropped is counted. Lines stay within what a pipe takes
in one piece. Control characters never get through, so neither a prompt nor a worker can forge a
line or move a terminal's cursor.
"""

from __future__ import annotations

import logging
import os
import re
import select
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, TypeAlias

import msgspec

MAX_LINE_BYTES = 4096  # PIPE_BUF: poll promises room for that much
MAX_KEPT_LINES = 1000

_FIELDS = "llmd_fields"
_LIMITS = (2000, 300, 60)  # characters of a value; the next one when the line is too long
_TRACEBACK = "exc"  # the one field that keeps its line breaks
_MAX_INT = 2**63
_BARE = re.compile(r'[^\s"=\\]+')  # what needs no quotes
_QUIET = ("httpcore", "httpx")  # they tell every request
_HIDDEN = frozenset(
    {"authorization", "api_key", "x_api_key", "prompt", "messages", "input", "content", "body"}
)
_LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "error",
}

Line: TypeAlias = Callable[[float, str, str, str, Mapping[str, Any], int], str]


def log(logger: logging.Logger, event: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log that something happened. Never raises, never blocks.

    Args:
        logger: Of the room that speaks.
        event: What happened, in fixed words: "worker ready". What varies belongs in fields.
        level: One of logging's.
        fields: Plain values. Never a key or a prompt; fields with such names are hidden.
    """
    if logger.isEnabledFor(level):
        # made here and not by Logger.log, which walks the stack for a line number nobody prints
        record = logging.LogRecord(logger.name, level, "", 0, event, None, None)
        record.__dict__[_FIELDS] = fields
        logger.handle(record)


def setup(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "text", "keyvalue", "json"] = "auto",  # noqa: A002
    *,
    fd: int = 2,
) -> StderrHandler:
    """Send all logs of this process to `fd`, which stays the caller's.

    Args:
        level: The least that is written.
        format: "auto" is text on a terminal and key=value elsewhere.
        fd: An open file descriptor.

    Returns:
        The handler; `remove` undoes this.
    """
    if format == "auto":
        format = "text" if os.isatty(fd) else "keyvalue"  # noqa: A001
    handler = StderrHandler(fd, _FORMATS[format])
    root = logging.getLogger()
    root.addHandler(handler)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    root.setLevel(level.upper())
    return handler


class StderrHandler(logging.Handler):
    """Writes lines to a file descriptor that may be slow, full or closed.

    Attributes:
        dropped: Lines lost so far.
    """

    def __init__(self, fd: int, line: Line) -> None:
        super().__init__()
        self._fd = fd
        self._line = line
        self._kept: deque[bytes] = deque()
        self._untold = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, after what was kept back."""
        try:
            data = render(self._line, record)
        except Exception:  # a field's own __str__ may raise anything
            self._lose()
            return
        if self._kept:
            self._flush_kept()
        self._kept.append(data)
        if len(self._kept) > MAX_KEPT_LINES:
            self._kept.popleft()
            self._lose()
        self._flush_kept()

    def remove(self, wait_s: float = 0.5) -> None:
        """Stop handling logs; give the reader `wait_s` for what was kept back."""
        logging.getLogger().removeHandler(self)
        give_up_at = time.monotonic() + wait_s
        while self._kept and self._poll.poll(max(0.0, give_up_at - time.monotonic()) * 1000):
            before = len(self._kept)
            self._flush_kept()
            if len(self._kept) == before:
                break
        self.close()

    def _flush_kept(self) -> None:
        while self._kept and self._writable():
            if self._untold:
                self._kept.appendleft(self._confession())
                self._untold = 0
            line = self._kept[0]
            try:
                written = os.write(self._fd, line)
            except BlockingIOError:
                return
            except OSError:  # nobody reads stderr any more, and there is nobody to tell
                self.dropped += len(self._kept)
                self._kept.clear()
                return
            if written < len(line):  # somebody who shares it made it non-blocking
                self._kept[0] = line[written:]
            else:
                self._kept.popleft()

    def _writable(self) -> bool:
        try:
            return any(what & select.POLLOUT for _, what in self._poll.poll(0))
        except OSError:
            return False

    def _lose(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _confession(self) -> bytes:
        record = logging.LogRecord(
            "llmd.log", logging.WARNING, "", 0, "log lines dropped", None, None
        )
        record.__dict__[_FIELDS] = {"count": self._untold}
        return render(self._line, record)


def render(line: Line, record: logging.LogRecord) -> bytes:
    """Return a record as one line of at most `MAX_LINE_BYTES`, the line break included."""
    fields: Mapping[str, Any] = record.__dict__.get(_FIELDS) or {}
    if record.exc_info and record.exc_info[0] is not None:
        fields = {**fields, _TRACEBACK: "".join(traceback.format_exception(*record.exc_info))}
    level = _LEVELS.get(record.levelno, "info")
    event = record.getMessage()
    for limit in _LIMITS:
        text = line(record.created, level, record.name, event, fields, limit)
        data = text.encode(errors="backslashreplace") + b"\n"
        if len(data) <= MAX_LINE_BYTES:
            return data
    text = line(record.created, level, record.name, event, {"cut": True}, _LIMITS[-1])
    return text.encode(errors="backslashreplace") + b"\n"


def sentence(record: logging.LogRecord) -> str:
    """Return what a record says, event and fields, in one clean line without its time."""
    fields: Mapping[str, Any] = record.__dict__.get(_FIELDS) or {}
    limit = _LIMITS[1]
    return clean(record.getMessage(), limit) + _pairs(fields, limit)


def _text(
    at: float, level: str, name: str, event: str, fields: Mapping[str, Any], limit: int
) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    head = f"{clock} {level:<7} {clean(event, limit)}"
    if _TRACEBACK not in fields:
        return head + _pairs(fields, limit)
    others = {key: value for key, value in fields.items() if key != _TRACEBACK}
    trace = str(_plain(_TRACEBACK, fields[_TRACEBACK], limit)).replace("\n", "\n  ")
    return f"{head}{_pairs(others, limit)}\n  {trace}"


def _keyvalue(
    at: float, level: str, name: str, event: str, fields: Mapping[str, Any], limit: int
) -> str:
    head = f"time={_stamp(at)} level={level} logger={_quoted(clean(name, limit))}"
    return f"{head} event={_quoted(clean(event, limit))}{_pairs(fields, limit)}"


def _json(
    at: float, level: str, name: str, event: str, fields: Mapping[str, Any], limit: int
) -> str:
    line = {
        "time": _stamp(at),
        "level": level,
        "logger": clean(name, limit),
        "event": clean(event, limit),
    }
    for key, value in fields.items():
        # a field must not replace what the line says of itself
        line[f"{key}_" if key in line else key] = _plain(key, value, limit)
    return msgspec.json.encode(line).decode()


_FORMATS: Mapping[str, Line] = {"text": _text, "keyvalue": _keyvalue, "json": _json}


def _pairs(fields: Mapping[str, Any], limit: int) -> str:
    text = ""
    for key, value in fields.items():
        plain = _plain(key, value, limit)
        if isinstance(plain, str):
            text += f" {key}={_quoted(plain)}"
        elif plain is None or isinstance(plain, bool):
            text += f" {key}={_WORDS[plain]}"
        else:
            text += f" {key}={plain:.6g}" if isinstance(plain, float) else f" {key}={plain}"
    return text


_WORDS = {None: "-", True: "true", False: "false"}


def _plain(key: str, value: Any, limit: int) -> Any:
    """Return a field's value as None, a bool, a number or clean text."""
    if key in _HIDDEN:
        return "[hidden]"
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -_MAX_INT <= value < _MAX_INT:
        return value
    if key == _TRACEBACK:  # its end says what it was
        lines = str(value)[-limit:].rstrip().split("\n")
        return "\n".join(["".join(filter(str.isprintable, line)) for line in lines])
    return clean(value if isinstance(value, str) else str(value), limit)


def clean(text: str, limit: int = 2000) -> str:
    """Return text without control characters, line breaks as spaces, cut to `limit`."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char in "\n\t\r" else "" for char in text
    ).strip()


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _stamp(at: float) -> str:
    whole = int(at)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{clock}.{int((at - whole) * 1000):03d}Z"

"""A minimal HTTP/1.1 client side for load: one request's bytes in, one answer counted.

The load generator shares a small machine with what it measures, so this does only what counting
needs: where an answer ends, how many stream events it held, whether it was an error. No socket
here; the generator feeds bytes.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any

HEAD_LIMIT_BYTES = 65536
TAIL_BYTES = 4096
"""How much of the end of a body is kept: enough for the last event with usage and timings."""

EVENT = b"\ndata: {"
CONTENT = b'"content":"'

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked[ \t]*\r\n")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*close")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d)[ \r]")
_TOKENS = re.compile(rb'"(?:completion_tokens|predicted_n|tokens_predicted)":[ ]?(\d+)')


class BadAnswer(Exception):
    """What came is no HTTP/1.1 answer that this client understands."""


class _Body(Enum):
    NONE = "no head yet"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    TO_CLOSE = "until the connection ends"


def request_bytes(
    path: str,
    body: dict[str, Any] | None = None,
    *,
    host: str = "localhost",
    key: str = "",
    method: str = "",
) -> bytes:
    """Return one complete HTTP/1.1 request that keeps the connection alive."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", f"Host: {host}"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Answer:
    """One answer as it arrives; feed it until `complete`.

    Attributes:
        status: The HTTP status, 0 before the head is there.
        head: Status line and headers in lower case.
        closes: True when the server will not take another request on this connection.
        events: SSE events with a JSON object in them so far (comments and `[DONE]` not counted).
        has_content: True once an event with text in it (`"content":"`) has come.
        body_bytes: Decoded bytes so far.
        tail: The last `TAIL_BYTES` or so of the body.
    """

    __slots__ = (
        "_pending",
        "_remaining",
        "_shape",
        "body_bytes",
        "closes",
        "complete",
        "events",
        "has_content",
        "head",
        "status",
        "tail",
    )

    def __init__(self) -> None:
        self.status = 0
        self.head = b""
        self.closes = False
        self.complete = False
        self.events = 0
        self.has_content = False
        self.body_bytes = 0
        # A body begins as if after a newline, so that its first event counts like all others.
        self.tail = b"\n"
        self._pending = b""
        self._remaining = 0
        self._shape = _Body.NONE

    def feed(self, data: bytes) -> bool:
        """Take what was received; return `complete`.

        Raises:
            BadAnswer: It is no answer, or more came than belongs to it.
        """
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if self._shape is _Body.NONE:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_LIMIT_BYTES:
                    raise BadAnswer("the head never ends")
                self._pending = data
                return False
            self._head(data[: end + 2])
            data = data[end + 4 :]
        if self._shape is _Body.CHUNKED:
            self._chunks(data)
        else:
            self._plain(data)
        return self.complete

    def feed_eof(self) -> bool:
        """Take the end of the connection; return `complete`."""
        if self._shape is _Body.TO_CLOSE:
            self.complete = True
        self.closes = True
        return self.complete

    def tokens(self) -> int:
        """Return the completion tokens that the end of the body tells of; 0 when it does not."""
        found = _TOKENS.findall(self.tail)
        return int(found[-1]) if found else 0

    def _head(self, head: bytes) -> None:
        status = _STATUS.match(head)
        if status is None:
            raise BadAnswer(f"no HTTP/1.1 status line: {head[:80]!r}")
        self.status = int(status[1])
        self.head = lowered = head.lower()
        self.closes = _CLOSE.search(lowered) is not None
        if _CHUNKED.search(lowered):
            self._shape = _Body.CHUNKED
        elif length := _LENGTH.search(lowered):
            self._shape = _Body.LENGTH
            self._remaining = int(length[1])
        elif self.status in (204, 304):
            self._shape = _Body.LENGTH
        else:
            self._shape = _Body.TO_CLOSE
            self.closes = True

    def _plain(self, data: bytes) -> None:
        if self._shape is _Body.LENGTH:
            self._remaining -= len(data)
            if self._remaining < 0:
                raise BadAnswer(f"{-self._remaining} bytes after the end of the body")
            self.complete = self._remaining == 0
        if data:
            self._body(data)

    def _chunks(self, data: bytes) -> None:
        parts = []
        at = 0
        while True:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            try:
                size = int(data[at:line_end].partition(b";")[0], 16)
            except ValueError:
                raise BadAnswer(f"no chunk size: {data[at : at + 20]!r}") from None
            start = line_end + 2
            if size == 0:
                # Trailers are not understood; nothing that is measured here sends any.
                if data[start : start + 2] == b"\r\n":
                    self.complete = True
                    at = start + 2
                break
            if len(data) < start + size + 2:
                break
            parts.append(data[start : start + size])
            at = start + size + 2
        if self.complete and at != len(data):
            raise BadAnswer(f"{len(data) - at} bytes after the last chunk")
        self._pending = data[at:]
        if parts:
            self._body(parts[0] if len(parts) == 1 else b"".join(parts))

    def _body(self, data: bytes) -> None:
        self.body_bytes += len(data)
        # The overlap is what a marker can have begun with; it is too short to hold a whole one.
        seam = self.tail[1 - len(EVENT) :] + data
        self.events += seam.count(EVENT)
        if not self.has_content:
            self.has_content = CONTENT in (self.tail[1 - len(CONTENT) :] + data)
        self.tail = (self.tail + data)[-TAIL_BYTES:] if len(data) < TAIL_BYTES else data

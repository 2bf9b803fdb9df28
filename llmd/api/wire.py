"""HTTP/1.1 of one connection, without I/O: requests are parsed by llhttp, answers framed here.

It has the interface that Hypercorn's protocol expects of h11, and h11's names for the states. h11
itself, all of it Python, was an eighth of what llmd does for a short request.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeAlias

import h11
import httptools

MAX_HEAD_BYTES = 65536

Header: TypeAlias = tuple[bytes, bytes]
State: TypeAlias = Any  # one of h11's, which are compared by identity

_METHOD = re.compile(rb"[!#-'*+.^_`|~0-9A-Za-z-]{1,64} ")
_TOO_LARGE = "the request head is larger than 64 KiB"
_CHUNKED = b"chunked"


class BadRequest(Exception):
    """What came is no request that can be served; nothing after it can be told apart.

    Attributes:
        status: What to answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Head:
    """The head of a request: what Hypercorn reads of an `h11.Request`; header names lower-case."""

    __slots__ = ("headers", "http_version", "method", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: list[Header], http_version: bytes
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.http_version = http_version


NEED_DATA = object()
END = object()
Event: TypeAlias = Any  # Head | bytes | BadRequest | one of the two above


class Wire:
    """Both directions of one connection, request after request.

    What a client sends early, after the request that is being served, is parsed and kept until
    `start_next_cycle`; whoever feeds it bounds how much that is.

    Attributes:
        their_state: IDLE, SEND_BODY, DONE, MUST_CLOSE (all has come, and the connection ends with
            the answer) or ERROR.
        our_state: IDLE, SEND_RESPONSE, SEND_BODY, DONE or MUST_CLOSE.
        they_are_waiting_for_100_continue: The client wants to be told to send its body.
        chunked: The answer's body goes out in chunks.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._events: deque[Event] = deque()
        self._in_head = self._in_message = self._broken = False
        self._told = False  # the head that is parsed has been told of
        self._last = False  # the connection ends with the request that is parsed
        self._target = b""
        self._headers: list[Header] = []
        self._barren_bytes = 0  # since the last event: of a head, of what frames a chunk, trailers
        self.start_next_cycle()

    def start_next_cycle(self) -> None:
        """Turn to the next request; the last one and its answer must be complete."""
        self.their_state: State = h11.IDLE
        self.our_state: State = h11.IDLE
        self.they_are_waiting_for_100_continue = False
        self.chunked = False
        self._head: Head | None = None
        self._left: int | None = None  # bytes of the answer's body, None = not counted
        self._closes = False

    # --- what comes -------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take in what came; `next_event` tells what it means."""
        before = len(self._events)
        begins = not self._in_message  # and not in the middle of one
        while data and not self._broken:
            self._barren_bytes += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_offer() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                refused = error.__context__
                if not isinstance(refused, BadRequest):
                    alone = begins and len(self._events) == before
                    refused = _refused(error, data if alone else b"")
                self._break(refused)
                return
            data = b""
        if self._barren_bytes > MAX_HEAD_BYTES and self._in_message:
            if self._in_head:
                self._break(BadRequest(431, _TOO_LARGE))
            else:
                self._break(BadRequest(400, "the body's chunks say too much about themselves"))

    def _without_offer(self) -> bytes:
        """Return a head once more, without its offer of another protocol.

        A server may always ignore it, but llhttp takes what follows for that protocol. So another
        parser is told a head that differs in nothing else that matters to it.
        """
        self._parser = httptools.HttpRequestParser(self)
        self._told = True
        lines = [b"%b: %b\r\n" % header for header in self._headers if header[0] != b"upgrade"]
        return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines)

    def _break(self, refused: BadRequest) -> None:
        self._broken = True
        self._events.append(refused)

    # callbacks of httptools
    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = self._in_message = True
        self._target = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        """Take more of its target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one more header, or one behind the body."""
        if self._in_head:  # else it is a trailer
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Tell of a head that is complete."""
        self._in_head = False
        if self._told:
            return
        parser = self._parser
        version = parser.get_http_version()
        head = Head(parser.get_method(), self._target, self._headers, version.encode("ascii"))
        _check(head)
        self._last = version == "1.0"  # as it ends for whoever does not know that it need not
        self._barren_bytes = 0
        self._events.append(head)

    def on_body(self, body: bytes) -> None:
        """Tell of more of the body."""
        self._barren_bytes = 0
        self._events.append(body)

    def on_message_complete(self) -> None:
        """Tell that a request is complete."""
        if self._parser.should_upgrade():
            return
        self._barren_bytes = 0
        self._in_message = self._told = False
        stays = not self._last and self._parser.should_keep_alive()
        self._events.append(END if stays else _LAST)

    @property
    def holds_more(self) -> bool:
        """Whether bytes have come that belong to a later request."""
        if self.their_state is h11.SEND_BODY:
            return False
        return self._in_message or bool(self._events)

    def next_event(self) -> Event:
        """Return a `Head`, part of its body, END, or NEED_DATA when more must come.

        What belongs to a later request waits for `start_next_cycle`.

        Raises:
            BadRequest: What came is no request.
        """
        if not self._events or self.their_state in (h11.DONE, h11.MUST_CLOSE, h11.ERROR):
            return NEED_DATA
        event = self._events.popleft()
        if type(event) is bytes:
            self.they_are_waiting_for_100_continue = False
            return event
        if event is END or event is _LAST:
            self.they_are_waiting_for_100_continue = False
            self.their_state = h11.DONE if event is END else h11.MUST_CLOSE
            return END
        if type(event) is BadRequest:
            self.their_state = h11.ERROR
            raise event
        self._head = event
        self.their_state, self.our_state = h11.SEND_BODY, h11.SEND_RESPONSE
        self.they_are_waiting_for_100_continue = event.http_version == b"1.1" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in event.headers
        )
        return event

    # --- what goes --------------------------------------------------------------------------

    def go_on(self) -> bytes:
        """Return what tells a client to send its body."""
        self.they_are_waiting_for_100_continue = False
        return b"HTTP/1.1 100 Continue\r\n\r\n"

    def response(self, status: int, headers: Iterable[Header], *, last: bool) -> bytes:
        """Return the head of an answer.

        Args:
            status: Its status, 200 at least.
            headers: Names and values; a Content-Length among them counts the body.
            last: The connection ends with this answer. It does anyway where not all of the
                request has come, as what follows would be the rest of that.

        Raises:
            ValueError: A header would be two.
        """
        assert self._head is not None
        self.they_are_waiting_for_100_continue = False
        lines = [b"HTTP/1.1 %d \r\n" % status]
        left: int | None = None
        closes = last or self.their_state is not h11.DONE
        told = chunked = False
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                left = int(value)
            elif name == b"connection":
                told = value.lower() == b"close"
        bodiless = status in (204, 304) or self._head.method == b"HEAD"
        if left is None and not bodiless:
            if self._head.http_version == b"1.1":
                chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                closes = True  # its end is the connection's
        closes = closes or told
        if closes and not told:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if not head.count(b"\n") == head.count(b"\r") == len(lines):
            raise ValueError("a header of an answer has a line end in it")
        # only now: after a header that is refused another answer may be given
        self.chunked, self._closes = chunked, closes
        self._left = 0 if bodiless else left
        self.our_state = h11.SEND_BODY
        return head

    def body(self, data: bytes) -> bytes:
        """Return a part of an answer's body as it goes out.

        Raises:
            ValueError: It is longer than its Content-Length.
        """
        if self.chunked:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ValueError("an answer is longer than its Content-Length")
        return data

    def end(self) -> bytes:
        """Return what ends an answer.

        Raises:
            ValueError: It is shorter than its Content-Length.
        """
        if self._left:
            raise ValueError("an answer is shorter than its Content-Length")
        self.our_state = h11.MUST_CLOSE if self._closes else h11.DONE
        return b"0\r\n\r\n" if self.chunked else b""


_LAST = object()  # END of a request with which the connection ends


def _check(head: Head) -> None:
    """Refuse what llhttp lets pass, and nobody may act on.

    Raises:
        BadRequest: With the status to answer.
    """
    size, hosts, encodings = len(head.target), 0, 0
    for name, value in head.headers:
        size += len(name) + len(value)
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            encodings += 1
            if value.lower() != _CHUNKED:
                raise BadRequest(501, "the only Transfer-Encoding that can be read is chunked")
    if size > MAX_HEAD_BYTES:
        raise BadRequest(431, _TOO_LARGE)
    if hosts > 1 or (not hosts and head.http_version == b"1.1"):
        raise BadRequest(400, "an HTTP/1.1 request has exactly one Host header")
    if encodings > 1 or (encodings and head.http_version == b"1.0"):
        raise BadRequest(400, "Transfer-Encoding is given twice, or with HTTP/1.0")
    if head.http_version not in (b"1.1", b"1.0"):
        raise BadRequest(505, "this server speaks HTTP/1.1")


def _refused(error: httptools.HttpParserError, data: bytes) -> BadRequest:
    reason = str(error)  # llhttp's own words, which quote nothing
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(data):
        return BadRequest(501, "no endpoint knows this method")
    if reason in ("Invalid HTTP version", "Pause on PRI/Upgrade"):
        return BadRequest(505, "this server speaks HTTP/1.1")
    if "Content-Length" in reason and "Transfer-Encoding" in reason:
        return BadRequest(400, "Content-Length and Transfer-Encoding exclude each other")
    return BadRequest(400, f"what came is no HTTP/1.1 request: {reason}")

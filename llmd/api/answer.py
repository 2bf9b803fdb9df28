"""What goes to the client of one request: a head once, then bytes, or an error in the right form.

Knows the three ways to say an error: as a JSON answer before the head has gone, as an SSE event
after it, and not at all when the client has left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmd.api.asgi import Send
from llmd.api.connection import Connection
from llmd.core.record import RequestRecord
from llmd.errors import LlmdError, MethodNotAllowed

Header = tuple[bytes, bytes]

JSON = (b"content-type", b"application/json; charset=utf-8")
EVENT_STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
MAX_RETRY_AFTER_S = 60


class Answer:
    """The answer to one request.

    Attributes:
        started: The head has gone: from now on only bytes of the body can follow.
        ended: Nothing can follow any more.
        headers: Sent with the head besides its own, such as the rate limit's.
        status: What was sent; 0 before.
    """

    __slots__ = (
        "_connection",
        "_record",
        "_send",
        "ended",
        "headers",
        "started",
        "status",
        "streaming",
    )

    def __init__(self, send: Send, record: RequestRecord, connection: Connection) -> None:
        self._send = send
        self._connection = connection
        self._record = record
        self.headers: list[Header] = [(b"x-request-id", record.id.encode())]
        self.started = False
        self.streaming = False
        self.ended = False
        self.status = 0

    async def whole(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a complete answer."""
        self._record.response_bytes += len(body)
        self.started = self.ended = True
        await self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Iterable[Header]) -> None:
        """Send the head of a streamed answer; it leaves with the first bytes of the body."""
        self.started = True
        await self._start(status, headers)

    async def begin_events(self) -> None:
        """Send the head of an SSE stream."""
        self.streaming = True
        await self.begin(200, EVENT_STREAM)

    async def _start(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *self.headers],
            }
        )

    async def more(self, data: bytes) -> None:
        """Send bytes of the body."""
        self._record.response_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def more_now(self, data: bytes) -> bytes | None:
        """Send bytes of the body without waiting, as far as that goes.

        Returns:
            What is left for `rest`, b"" when all has gone; None when `more` must send it.
        """
        if not self.started:
            return None
        left = self._connection.send_chunk_now(data)
        if left is not None:
            self._record.response_bytes += len(data)
        return left

    @property
    def in_chunks(self) -> bool:
        """Whether `more_now` can do it now."""
        return self.started and self._connection.in_chunks

    @property
    def chunk_sender(self) -> Callable[[bytes], int] | None:
        """What sends a chunk that is framed already, with nothing in between.

        It returns how many bytes have gone and raises OSError when none can: then `more_now`
        finds out why. It counts nothing, and is good while a body is being sent by one task. None
        where `more_now` cannot do it.
        """
        return self._connection.chunk_sender if self.in_chunks else None

    async def rest(self, left: bytes) -> None:
        """Send what `more_now` left."""
        await self._connection.send_rest(left)

    def all_said(self) -> None:
        """Nothing is left but the form: a client that leaves now has not abandoned its request."""
        self._connection.unwatch()

    async def end(self) -> None:
        """End a streamed answer."""
        if not self.ended:
            self.ended = True
            await self._send({"type": "http.response.body", "body": b""})

    async def comment(self, text: str) -> None:
        """Send an SSE comment, the head first if it has not gone."""
        if not self.started:
            await self.begin_events()
        await self.more(b": %b\n\n" % text.encode("ascii", "replace").replace(b"\n", b" "))

    async def error(self, error: LlmdError) -> None:
        """Send the error in the form that is still possible."""
        if self.ended:
            return
        if self.started:
            if self.streaming:
                await self.more(b"data: %b\n\n" % msgspec.json.encode(error.body()))
            await self.end()
            return
        body = msgspec.json.encode(error.body())
        await self.whole(error.status, [JSON, *error_headers(error)], body)


def error_headers(error: LlmdError) -> list[Header]:
    """Return the headers that go with an error: when, and whether, to try again."""
    headers: list[Header] = []
    if error.status in (429, 503):
        headers += retry_headers(error.retry_after_s)
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))
    if isinstance(error, MethodNotAllowed) and error.param:
        headers.append((b"allow", error.param.encode("ascii", "ignore")))
    return headers


def retry_headers(retry_after_s: float | None) -> list[Header]:
    """Return `Retry-After` in whole seconds, 1 to 60, and `retry-after-ms`, the exact time."""
    wait_s = 1.0 if retry_after_s is None else min(max(retry_after_s, 0.001), MAX_RETRY_AFTER_S)
    return [
        (b"retry-after", b"%d" % min(max(math.ceil(wait_s), 1), MAX_RETRY_AFTER_S)),
        (b"retry-after-ms", b"%d" % math.ceil(wait_s * 1000)),
    ]


def passed_on(status: int, headers: Sequence[Header]) -> list[Header]:
    """Return the headers that go on with a worker's own answer.

    Those of its connection and its framing do not. What clients are promised of a status holds
    whoever gives it: a worker says neither when to try again nor that it is of no use.
    """
    kept = [header for header in headers if header[0] not in _HOP_BY_HOP]
    if status == 501:
        kept = [header for header in kept if header[0] != b"x-should-retry"]
        kept.append((b"x-should-retry", b"false"))
    elif status in (429, 503):
        asked = next((value for name, value in kept if name == b"retry-after"), b"")
        kept = [header for header in kept if not header[0].startswith(b"retry-after")]
        kept += retry_headers(float(asked) if asked.isdigit() else None)
    return kept


_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"server",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"x-request-id",
    }
)

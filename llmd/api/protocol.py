"""Hypercorn's HTTP/1.1 protocol, as far as it is run differently here.

Hypercorn makes an ASGI application of a request; `wire` parses and frames in h11's place. Around it
are what its own transport would give it: a task for the application, and messages for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import h11
import msgspec
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from llmd.api.asgi import App, Json
from llmd.api.wire import END, NEED_DATA, BadRequest, Head, Wire

if TYPE_CHECKING:
    from llmd.api.connection import Connection

MAX_BODY_AHEAD = 1 << 18  # body bytes read before the application has asked for them
MESSAGE_BYTES = 256  # what a message takes besides: a body may come in chunks of one byte


class ProtocolConfig(HypercornConfig):
    """Hypercorn's settings, as far as its protocol classes read them."""

    def __init__(self) -> None:
        super().__init__()
        self.accesslog = None
        self.errorlog = None
        self.include_server_header = False
        self._date = (0, b"")

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the Date header, formatted once a second."""
        second = int(trio.current_time())
        if second != self._date[0]:
            self._date = (second, formatdate(usegmt=True).encode())
        return [(b"date", self._date[1])]


class _Inbox:
    """The ASGI messages for one request, bounded by body bytes."""

    __slots__ = ("_bytes", "_closed", "_messages", "_readable", "_writable")

    def __init__(self) -> None:
        self._messages: deque[Json] = deque()
        self._bytes = 0
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._closed = False

    async def put(self, message: Json) -> None:
        if self._closed:
            return
        self._messages.append(message)
        self._bytes += len(message.get("body", b"")) + MESSAGE_BYTES
        if self._readable is not None:
            self._readable.set()
        if self._bytes > MAX_BODY_AHEAD:
            self._writable = trio.Event()
            await self._writable.wait()

    async def get(self) -> Json:
        while not self._messages:
            self._readable = trio.Event()
            await self._readable.wait()
        self._readable = None
        message = self._messages.popleft()
        self._bytes -= len(message.get("body", b"")) + MESSAGE_BYTES
        if self._writable is not None and self._bytes <= MAX_BODY_AHEAD:
            self._writable.set()
            self._writable = None
        return message

    def close(self) -> None:
        self._closed = True
        if self._writable is not None:
            self._writable.set()


class Applications:
    """Hypercorn's task group: runs the application once a request's head is there."""

    def __init__(self, nursery: trio.Nursery, on_crash: Callable[[BaseException], None]) -> None:
        self._nursery = nursery
        self._on_crash = on_crash

    async def spawn_app(
        self, app: App, config: HypercornConfig, scope: Json, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Json], Awaitable[None]]:
        """Start the application for one request; returns what takes its messages."""
        inbox = _Inbox()
        self._nursery.start_soon(self._run, app, scope, inbox, send)
        return inbox.put

    async def _run(
        self, app: App, scope: Json, inbox: _Inbox, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        try:
            await app(scope, inbox.get, send)
        except trio.Cancelled:
            raise
        except Exception as error:  # whatever an application lets out must not end the daemon
            self._on_crash(error)
        finally:
            inbox.close()
        await send(None)


class Protocol(H11Protocol):
    """Hypercorn's protocol on a `Wire`; it sends a head with its first bytes of body."""

    def __init__(self, connection: Connection, *args: Any) -> None:
        super().__init__(*args)
        self._owner = connection
        self.wire = Wire()
        self.connection = cast("Any", self.wire)  # where Hypercorn keeps its h11.Connection
        self._head = b""
        self.chunked = False

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer; the last answer of a connection says so.

        One that comes before its request's body has is the last: what follows on the connection
        would be that body. A client that is not told sends its next request in vain.
        """
        kind = type(event)
        if kind is Response:
            event = cast("Response", event)
            headers = [*event.headers, *self.config.response_headers("h11")]
            self._head += self.wire.response(
                event.status_code, headers, last=self._owner.last_answer
            )
        elif kind is Body:
            await self._write(self.wire.body(cast("Body", event).data))
            self.chunked = self.wire.chunked
        elif kind is EndBody:
            self.chunked = False
            await self._write(self.wire.end())
        elif kind is StreamClosed:
            await self._maybe_recycle()

    async def _write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            await self.send(RawData(data))

    @property
    def request_complete(self) -> bool:
        """Whether all of the request that is being served has come."""
        return self.wire.their_state in (h11.DONE, h11.MUST_CLOSE)

    @property
    def holds_more(self) -> bool:
        """Whether bytes have come that belong to a later request."""
        return self.wire.holds_more

    async def next_request(self) -> None:
        """Take up what came with the request before it."""
        await self._handle_events()

    async def invite(self) -> None:
        """Give leave to send the body, to a client that waits for it (`Expect: 100-continue`)."""
        if self.wire.they_are_waiting_for_100_continue:
            await self.send(RawData(self.wire.go_on()))

    async def _handle_events(self) -> None:
        """Take in what has come.

        Unlike Hypercorn's own this never waits for an answer to end: its reader is who notices that
        the client leaves. And it gives nobody leave to send a body, see `invite`.
        """
        wire = self.wire
        while True:
            try:
                event = wire.next_event()
            except BadRequest as refused:
                if wire.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    if self.stream is None:
                        raise
                    raise MalformedBody from refused
                await self.send(Closed())
                return
            if event is NEED_DATA:
                return
            if type(event) is Head:
                await self.send(Updated(idle=False))
                await self._begin(event)
            elif self.stream is not None:
                await self.stream.handle(
                    EndBody(STREAM_ID) if event is END else Body(STREAM_ID, event)
                )

    async def _begin(self, head: Head) -> None:
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        request = Request(
            stream_id=STREAM_ID,
            headers=head.headers,
            http_version=head.http_version.decode("ascii"),
            method=head.method.decode("ascii"),
            raw_path=head.target,
            state=self.connection_state,
        )
        await self.stream.handle(request)


REFUSAL_CODES = {408: "request_timeout", 431: "header_too_large"}


class MalformedBody(Exception):
    """Garbage within the body of a request that has no answer yet: its application answers."""


def bare_answer(status: int, error: Json, headers: bytes = b"") -> bytes:
    """Render an error answer that ends its connection, outside any application."""
    body = msgspec.json.encode({"error": error})
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n%b"
        b"content-length: %d\r\n\r\n%b"
    ) % (status, HTTPStatus(status).phrase.encode(), headers, len(body), body)

"""Hypercorn's HTTP/1.1 protocol, as far as it is run differently here.

Hypercorn parses and frames. Around it are what its own transport would give it: a task for the
application, messages for that, and refusals of heads that no request is made of.
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
from hypercorn.protocol.events import Body, EndBody, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol

from llmd.api.asgi import App, Json

if TYPE_CHECKING:
    from llmd.api.connection import Connection

MAX_HEAD_BYTES = 65536
MAX_BODY_AHEAD = 1 << 18  # body bytes read before the application has asked for them


class ProtocolConfig(HypercornConfig):
    """Hypercorn's settings, as far as its protocol classes read them."""

    def __init__(self) -> None:
        super().__init__()
        self.accesslog = None
        self.errorlog = None
        self.include_server_header = False
        self.h11_max_incomplete_size = MAX_HEAD_BYTES
        self.keep_alive_max_requests = 1 << 62
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
        self._bytes += len(message.get("body", b""))
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
        self._bytes -= len(message.get("body", b""))
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
    """Hypercorn's protocol, which sends a response's head with its first bytes of body."""

    connection: h11.Connection

    def __init__(self, connection: Connection, *args: Any) -> None:
        super().__init__(*args)
        self._owner = connection
        self._head = b""
        self.chunked = False

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer; the last answer of a connection says so.

        One that comes before its request's body has is the last: what follows on the connection
        would be that body. A client that is not told sends its next request in vain.
        """
        if isinstance(event, Response) and (self._owner.last_answer or self._body_is_coming()):
            self.keep_alive_requests = self.config.keep_alive_max_requests
        await super().stream_send(event)

    def _body_is_coming(self) -> bool:
        return self.connection.their_state is h11.SEND_BODY

    @property
    def request_complete(self) -> bool:
        """Whether all of the request that is being served has come.

        What h11 calls done has other names where the connection ends with this answer, or where
        the client offered another protocol.
        """
        return self.connection.their_state not in (h11.IDLE, h11.SEND_BODY, h11.ERROR)

    @property
    def holds_more(self) -> bool:
        """Whether bytes have come that belong to a later request."""
        return bool(self.connection.trailing_data[0])

    async def next_request(self) -> None:
        """Take up what came with the request before it."""
        await self._handle_events()

    async def invite(self) -> None:
        """Give leave to send the body, to a client that waits for it (`Expect: 100-continue`)."""
        if self.connection.they_are_waiting_for_100_continue:
            leave = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            await self._send_h11_event(leave)

    async def _handle_events(self) -> None:
        """Take in what has come.

        Unlike Hypercorn's own this never waits for an answer to end, neither when another request
        has come already, nor when the client offered to speak another protocol: its reader is who
        notices that the client leaves. And it gives nobody leave to send a body, see `invite`.
        """
        while True:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send_error_response(error.error_status_hint)
                await self.send(Closed())
                return
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._check_protocol(event)
                await self._create_stream(without_upgrade(event))
            elif isinstance(event, h11.Data) and self.stream is not None:
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            elif isinstance(event, h11.EndOfMessage) and self.stream is not None:
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:  # more is needed, or what has come waits for its turn
                return

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if type(event) is h11.Response:
            self._head += data or b""
            return
        self.chunked = type(event) is h11.Data and (self.chunked or _CHUNKED in self._head)
        if data or self._head:
            head, self._head = self._head, b""
            await self.send(RawData(head + (data or b"") if head else cast("bytes", data)))

    async def _send_error_response(self, status_code: int) -> None:
        if self.stream is not None:
            raise MalformedBody
        raise RefusedHead(
            status_code, _TOO_LARGE if status_code == 431 else "what came is no HTTP/1.1 request"
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        # h11 bounds only what is incomplete: a head that came in few pieces may be any size
        if sum(len(name) + len(value) for name, value in event.headers) > MAX_HEAD_BYTES:
            raise RefusedHead(431, _TOO_LARGE)
        names = [name for name, _ in event.headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise RefusedHead(400, "Content-Length and Transfer-Encoding exclude each other")
        if event.http_version not in (b"1.1", b"1.0"):
            raise RefusedHead(505, "this server speaks HTTP/1.1")


_CHUNKED = b"\r\nTransfer-Encoding: chunked\r\n"  # as h11 writes it; nobody else's does
_TOO_LARGE = "the request head is larger than 64 KiB"
REFUSAL_CODES = {408: "request_timeout", 431: "header_too_large"}


class MalformedBody(Exception):
    """Garbage within the body of a request that has no answer yet: its application answers."""


class RefusedHead(Exception):
    """A request head that is answered here and ends the connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def without_upgrade(request: h11.Request) -> h11.Request:
    """Return a head without the offer of another protocol, which a server may always ignore."""
    headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
    if len(headers) == len(request.headers):
        return request
    return h11.Request(
        method=request.method,
        target=request.target,
        headers=headers,
        http_version=request.http_version,
    )


def bare_answer(status: int, error: Json, headers: bytes = b"") -> bytes:
    """Render an error answer that ends its connection, outside any application."""
    body = msgspec.json.encode({"error": error})
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n%b"
        b"content-length: %d\r\n\r\n%b"
    ) % (status, HTTPStatus(status).phrase.encode(), headers, len(body), body)

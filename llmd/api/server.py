"""TCP connections: Hypercorn's HTTP/1.1 protocol on a transport of our own.

Hypercorn parses and frames; this accepts, bounds (connections, heads, slow readers), notices at
once that a client has gone, closes so that the last answer arrives, and drains. What Hypercorn's
own transport costs per request (a task for each idle timer, a send for each piece of a head)
is saved here, which is half of what llmd adds to a short request.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

import h11
import msgspec
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

from llmd.netio import SocketStream

Json = dict[str, Any]
Receive = Callable[[], Awaitable[Json]]
Send = Callable[[Json], Awaitable[None]]
App = Callable[[Json, Receive, Send], Awaitable[None]]

KEEP_ALIVE_S = 75.0
LINGER_S = 2.0
LINGER_BYTES = 1 << 26
MAX_EARLY_BYTES = 1 << 16  # of a pipelined request, while the one before it is served
MAX_HEAD_BYTES = 65536
MAX_BODY_AHEAD = 1 << 18  # body bytes read before the application has asked for them
CONNECTION = "llmd.connection"  # the key of the Connection in an ASGI scope's state


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


class _Applications:
    """Hypercorn's task group: runs the application once a request's head is there."""

    def __init__(self, nursery: trio.Nursery, on_crash: Callable[[BaseException], None]) -> None:
        self._nursery = nursery
        self._on_crash = on_crash

    async def spawn_app(
        self, app: App, config: HypercornConfig, scope: Json, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Json], Awaitable[None]]:
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


class _Protocol(H11Protocol):
    """Hypercorn's protocol, which sends a response's head with its first bytes of body."""

    def __init__(self, connection: Connection, *args: Any) -> None:
        super().__init__(*args)
        self._owner = connection
        self._head = b""
        self.chunked = False

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response) and self._owner.last_answer:
            self.keep_alive_requests = self.config.keep_alive_max_requests
        await super().stream_send(event)

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

    async def _check_protocol(self, event: h11.Request) -> None:
        # h11 bounds only what is incomplete: a head that came in few pieces may be any size
        if sum(len(name) + len(value) for name, value in event.headers) > MAX_HEAD_BYTES:
            raise RefusedHead(431, "the request head is larger than 64 KiB")
        names = [name for name, _ in event.headers]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise RefusedHead(400, "Content-Length and Transfer-Encoding exclude each other")
        if event.http_version not in (b"1.1", b"1.0"):
            raise RefusedHead(505, "this server speaks HTTP/1.1")


_CHUNKED = b"\r\nTransfer-Encoding: chunked\r\n"  # as h11 writes it; nobody else's does
_REFUSAL_CODES = {408: "request_timeout", 431: "header_too_large"}


class RefusedHead(Exception):
    """A request head that is answered here and ends the connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """One client's connection; a request finds it in its scope's state under CONNECTION.

    Attributes:
        gone: The client has left, or has ended at least its sending side.
        last_answer: True makes the next answer carry `Connection: close`.
    """

    def __init__(
        self, server: HttpServer, stream: SocketStream, tls: trio.SSLStream[Any] | None
    ) -> None:
        self._server = server
        self._socket_stream = stream
        self._stream: SocketStream | trio.SSLStream[Any] = tls or stream
        self._tls = tls
        self._on_disconnect: Callable[[], None] | None = None
        self.last_answer = False
        self.gone = False
        self._early = bytearray()
        self._busy = False
        self._closing = False
        self._deadline = math.inf
        self._read_scope: trio.CancelScope | None = None
        stream.on_eof = self._ended

    @property
    def idle(self) -> bool:
        """True while no request is being read or served."""
        return not self._busy and not self._early

    def watch(self, on_disconnect: Callable[[], None]) -> None:
        """Have the request that is being served told when its client goes.

        Called once, synchronously; at once if the client has gone already, which it may have
        before the application's task got its first turn.
        """
        self._on_disconnect = on_disconnect
        if self.gone:
            self._ended()

    def unwatch(self) -> None:
        """Tell the request that is being served no more."""
        self._on_disconnect = None

    def send_chunk_now(self, data: bytes) -> bytes | None:
        """Send more of a body that is being sent in chunks, as far as the kernel takes it.

        What Hypercorn and h11 do for a chunk is this frame; done here it takes a third of the
        time, and the tokens of a stream are one chunk each.

        Returns:
            What is left for `send_rest`, b"" when all has gone; None when this connection cannot
            do it: encrypted, another framing, no body begun.
        """
        return self.send_framed_now(b"%x\r\n%b\r\n" % (len(data), data))

    def send_framed_now(self, chunk: bytes) -> bytes | None:
        """Do as `send_chunk_now` with what is framed as a chunk already."""
        if self._tls is not None or not self._protocol.chunked or self._closing:
            return None
        try:
            sent = self._socket_stream.send_now(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended()
            return b""
        return b"" if sent == len(chunk) else chunk[sent:]

    async def send_rest(self, rest: bytes) -> None:
        """Send what `send_chunk_now` left."""
        await self._protocol_send(RawData(rest))

    async def run(self) -> None:
        """Serve requests until the client, a deadline or the drain ends the connection."""
        server = self._server
        try:
            if self._tls is not None:
                with trio.fail_after(server.header_timeout_s):
                    await self._tls.do_handshake()
            peer = self._socket_stream.socket.getpeername()[:2]
            own = self._socket_stream.socket.getsockname()[:2]
            async with trio.open_nursery() as nursery:
                self._protocol = _Protocol(
                    self,
                    cast("AppWrapper", server.app),
                    server.protocol_config,
                    server.context,
                    _Applications(nursery, server.on_crash),
                    ConnectionState({CONNECTION: self}),
                    self._tls is not None,
                    peer,
                    own,
                    self._protocol_send,
                )
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._read()
                if self._busy:
                    self._ended()
                    await self._protocol.handle(Closed())
                else:
                    nursery.cancel_scope.cancel()
        except (trio.BrokenResourceError, trio.TooSlowError, OSError):
            pass  # the handshake failed, or the client left before it
        finally:
            self._socket_stream.close()

    async def _read(self) -> None:
        first, in_head, discarded = True, False, 0
        while True:
            if self._busy or self._closing:
                in_head = False
            elif not in_head:
                in_head = first or self._partial_head()
                self._deadline = trio.current_time() + (
                    self._server.header_timeout_s if in_head else KEEP_ALIVE_S
                )
            deadline = math.inf if self._busy else self._deadline
            with trio.CancelScope(deadline=deadline) as self._read_scope:
                data = bytes(await self._stream.receive_some())
            if self._read_scope.cancelled_caught:
                if not in_head or self._closing or not self._partial_head():
                    return
                await self._refuse(408, "the request head was not completed in time")
                continue
            if not data:
                return
            first = False
            if not self._closing:
                await self._take(data)
            discarded += len(data) if self._closing else 0
            if discarded > LINGER_BYTES or (self._closing and self._body_complete()):
                return

    async def _take(self, data: bytes) -> None:
        if not (self._busy and self._body_complete()):
            await self._feed(data)
        elif len(self._early) + len(data) <= MAX_EARLY_BYTES:
            self._early += data
        else:
            raise trio.BrokenResourceError("too many requests in advance")

    def _partial_head(self) -> bool:
        connection = self._protocol.connection
        return bool(connection.trailing_data[0])

    def _body_complete(self) -> bool:
        return self._protocol.connection.their_state is h11.DONE

    async def _feed(self, data: bytes) -> None:
        try:
            await self._protocol.handle(RawData(data))
        except RefusedHead as refused:
            await self._refuse(refused.status, str(refused))

    async def _refuse(self, status: int, message: str) -> None:
        """Answer in place of Hypercorn, which has not made a request of these bytes."""
        self._busy = False
        code = _REFUSAL_CODES.get(status, "invalid_request")
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_all(bare_answer(status, error))
        await self._close_gently()

    async def _protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self._closing:
                return
            try:
                await self._stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._ended()
        elif isinstance(event, Updated):
            self._on_disconnect = None
            self._busy = not event.idle
            if event.idle:
                await self._next_request()
        elif isinstance(event, Closed):
            self._busy = False
            await self._close_gently()

    async def _next_request(self) -> None:
        if self._server.draining:
            await self._close_gently()
        elif self._early:
            data, self._early = bytes(self._early), bytearray()
            await self._feed(data)
        elif self._read_scope is not None:
            self._read_scope.deadline = trio.current_time() + KEEP_ALIVE_S

    async def _close_gently(self) -> None:
        """End our side; the reader lets a client that is still sending read the last answer."""
        if self._closing:
            return
        self._closing = True
        try:
            if self._tls is None:
                await self._socket_stream.send_eof()
            else:
                await self._tls.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self.gone = True
        done = self._body_complete() or self.gone or self._tls is not None
        self._deadline = -math.inf if done else trio.current_time() + LINGER_S
        if self._read_scope is not None:
            self._read_scope.deadline = self._deadline

    def _ended(self) -> None:
        """Tell the request that is being served: the client has gone."""
        self.gone = True
        if self._on_disconnect is not None:
            told, self._on_disconnect = self._on_disconnect, None
            told()

    def close_idle(self) -> None:
        """Close if nothing is being read or served."""
        if self.idle:
            self._closing = True
            self._socket_stream.close()


class HttpServer:
    """Accepts clients and serves an ASGI application to them.

    Args:
        app: The application; gets `http` and `websocket` scopes, no lifespan.
        tls: None for plain HTTP.
        max_connections: Beyond it the longest idle connection gives way, else 503; 0 = no limit.
        header_timeout_s: For a whole request head, and for a TLS handshake; 0 = for ever.
        send_timeout_s: A client that takes no byte for this long is dropped; 0 = never.
        on_crash: Told of an exception that the application let out.
    """

    def __init__(
        self,
        app: App,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = 0,
        header_timeout_s: float = 10.0,
        send_timeout_s: float = 60.0,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.app = app
        self.on_crash = on_crash
        self.header_timeout_s = header_timeout_s or math.inf
        self.protocol_config = ProtocolConfig()
        self.context = WorkerContext(None)
        self.draining = False
        self._send_timeout_s = send_timeout_s
        self._tls = tls
        self._max_connections = max_connections or math.inf
        self._listeners: list[socket.socket] = []
        self._connections: dict[Connection, None] = {}
        self._left = trio.Event()
        self._accepting = trio.CancelScope()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def bind(self, host: str, port: int) -> list[tuple[str, int]]:
        """Listen on every address of `host`; port 0 takes a free one.

        Returns:
            The addresses with their real port.

        Raises:
            OSError: The address is unknown, taken or not allowed.
        """
        infos = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            self._listeners.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = self._listeners[0].getsockname()[1] if len(self._listeners) > 1 else port
            sock.bind((address[0], taken, *address[2:]))
            if self._send_timeout_s:
                timeout_ms = int(self._send_timeout_s * 1000)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.listen(1024)
        return [sock.getsockname()[:2] for sock in self._listeners]

    def close(self) -> None:
        """Close the listeners."""
        for sock in self._listeners:
            sock.close()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `drain` has begun and every client has left; cancelled, all are cut."""
        try:
            async with trio.open_nursery() as clients:
                with self._accepting:
                    async with trio.open_nursery() as acceptors:
                        for sock in self._listeners:
                            acceptors.start_soon(self._accept, sock, clients)
                        task_status.started()
                self.close()  # at once: who connects now is told so, and does not wait in vain
        finally:
            self.close()

    async def drain(self) -> None:
        """Let running answers end; cancelled, what is left goes on.

        Meanwhile clients that come anew get one answer each, so that they learn why; once what
        was there at the start has ended, nobody is accepted any more.
        """
        self.draining = True
        await self.context.terminated.set()
        for connection in list(self._connections):
            connection.last_answer = True
            connection.close_idle()
        before = set(self._connections)
        try:
            while not before.isdisjoint(self._connections):
                await self._one_leaves()
        finally:
            self._accepting.cancel()
        for connection in list(self._connections):
            connection.close_idle()
        while self._connections:
            await self._one_leaves()

    async def _one_leaves(self) -> None:
        self._left = trio.Event()
        await self._left.wait()

    async def _accept(self, listener: socket.socket, clients: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._make_room()
                await trio.sleep(0.1)  # nothing tells when a descriptor is free again
                continue
            if len(self._connections) >= self._max_connections and not self._make_room():
                _turn_away(sock)
                continue
            clients.start_soon(self._client, sock)

    def _make_room(self) -> bool:
        for connection in self._connections:
            if connection.idle:
                connection.close_idle()
                return True
        return False

    async def _client(self, sock: socket.socket) -> None:
        stream = SocketStream(sock, send_timeout_s=self._send_timeout_s)
        tls = None
        if self._tls is not None:
            tls = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        connection = Connection(self, stream, tls)
        connection.last_answer = self.draining
        self._connections[connection] = None
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            self._left.set()


def bare_answer(status: int, error: Json, headers: bytes = b"") -> bytes:
    """Render an error answer that ends its connection, outside any application."""
    body = msgspec.json.encode({"error": error})
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nconnection: close\r\n%b"
        b"content-length: %d\r\n\r\n%b"
    ) % (status, HTTPStatus(status).phrase.encode(), headers, len(body), body)


def _turn_away(sock: socket.socket) -> None:
    error = {
        "message": "Too many connections: close idle ones, or raise server.max_connections.",
        "type": "server_error",
        "param": None,
        "code": "too_many_connections",
    }
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(bare_answer(503, error, b"retry-after: 1\r\nretry-after-ms: 1000\r\n"))
        sock.shutdown(socket.SHUT_WR)

"""Calls to one worker over its Unix socket.

Control calls come this way too, but it is made for the hot path: kept-alive connections, llhttp for
parsing (PyPI's httptools), and bytes handed on as they come. Closing an answer before its end
closes the connection, which is how a llama-server is told to stop generating.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import httptools
import trio

from llmd.errors import BadWorkerResponse, WorkerDied
from llmd.netio import MAX_RECEIVE_BYTES, SocketStream
from llmd.pump import DONE, Pump

MAX_HEAD_BYTES = 65536
MAX_IDLE_CONNECTIONS = 64

Take = Callable[[bytes, bool, float], float | None]
"""Takes bytes of a body, whether they are one whole chunk with its framing, and trio's time; no
bytes say that a pause gathered nothing. Answers as `llmd.pump.Readable` does, or with None: then
a framed chunk is wanted without its framing, and other bytes are left to `receive`."""


class _Connection:
    """One connection and the answer that is read from it; `on_*` are httptools' callbacks."""

    __slots__ = (
        "between_chunks",
        "body",
        "done",
        "failure",
        "head_bytes",
        "headers",
        "keep_alive",
        "parser",
        "started",
        "status",
        "stream",
    )

    def __init__(self, sock: socket.socket) -> None:
        self.stream = SocketStream(sock)
        self.reset()

    def reset(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_bytes = 0
        self.status = 0
        self.started = False  # the head is complete
        self.done = False
        self.keep_alive = False
        self.between_chunks = False
        self.failure: Exception | None = None

    def parse(self, data: bytes) -> None:
        """Take what came; what is wrong with it is left in `failure`."""
        self.between_chunks = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.done:  # bytes after the end: the answer is whole, the connection is not
                self.keep_alive = False
            elif isinstance(error.__context__, BadWorkerResponse):
                self.failure = error.__context__
            else:
                self.failure = BadWorkerResponse("the worker's answer is no HTTP")
        if not data.endswith(b"\r\n"):  # the head of the next chunk has begun
            self.between_chunks = False

    # callbacks of httptools
    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value)
        if self.head_bytes > MAX_HEAD_BYTES:
            raise BadWorkerResponse("the worker's response head is too large")
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.started = self.status >= 200
        if not self.started:
            self.headers.clear()

    def on_chunk_header(self) -> None:
        self.between_chunks = False

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_chunk_complete(self) -> None:
        self.between_chunks = True

    def on_message_complete(self) -> None:
        if self.started:
            self.done = True
            self.keep_alive = self.parser.should_keep_alive()


class UpstreamResponse:
    """A worker's answer: `await head()`, then status and headers, then its body.

    Whoever gets it owns it: read to the end it goes back to the pool by itself; anything else
    must end in `close()`, which is synchronous and idempotent. `head` and `receive` lose nothing
    when they are cancelled: they can be called again.
    """

    __slots__ = ("_connection", "_owner", "_request", "_reused", "headers", "status")

    def __init__(
        self, owner: Upstream, connection: _Connection, request: bytes, *, reused: bool
    ) -> None:
        self._owner = owner
        self._connection: _Connection | None = connection
        self._request = request
        self._reused = reused
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    async def head(self) -> int:
        """Wait for the head and return the status.

        A kept-alive connection that turns out to be dead before any byte of an answer is
        replaced by a fresh one: that is no worker failure.

        Raises:
            WorkerDied: The worker went before it answered.
            BadWorkerResponse: What came is no HTTP.
        """
        connection = self._connection
        assert connection is not None
        while not connection.started:
            try:
                await self._owner._feed(connection, answered=False)
            except WorkerDied:
                self._connection = None
                if not self._reused or connection.status or connection.head_bytes:
                    raise
                self._reused = False
                connection = await self._owner._send_fresh(self._request)
                self._connection = connection
        self.status = connection.status
        self.headers = connection.headers
        return self.status

    def header(self, name: bytes) -> bytes:
        """Return the first header of that (lower-case) name, or b""."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    async def receive(self) -> bytes:
        """Return the next bytes of the body, as they come; b"" at its end.

        Raises:
            WorkerDied: The connection broke before the end.
            BadWorkerResponse: What came is no HTTP.
        """
        connection = self._connection
        if connection is None:
            return b""
        body = connection.body
        while not body:
            if connection.done:
                self._connection = None
                self._owner._finished(connection)
                return b""
            await self._owner._feed(connection, answered=True)
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return data

    async def pumped(self, pump: Pump, take: Take, pause_s: float = 0.0) -> None:
        """Hand the body to `take` as it comes, without taking the caller's task up for it.

        A stream of tokens has each in a chunk of its own, which a relay needs no parser for: a
        chunk that came whole and alone is handed over as it stands. It ends, with nothing lost,
        with the body, when its connection breaks, or when `take` says so: `receive` goes on from
        there.

        Args:
            pump: What calls `take`.
            take: Called under the rules of `llmd.pump.Readable` and answers as that does.
            pause_s: How long not to read at first.

        Raises:
            WorkerDied: The connection was closed meanwhile.
            Exception: Whatever `take` raised.
        """
        connection = self._connection
        if connection is None or connection.done or connection.body:
            return
        recv, parse, body = connection.stream.socket.recv, connection.parse, connection.body
        heads = _Heads()

        def readable(now: float) -> float:
            try:
                data = recv(MAX_RECEIVE_BYTES)
            except BlockingIOError:
                return take(b"", False, now) or 0.0
            except OSError:
                return DONE  # `receive` finds the connection at its end
            if not data:
                return DONE
            if (
                connection.between_chunks
                and data.endswith(b"\r\n")
                and data.startswith(heads[len(data)])
            ):
                pause_s = take(data, True, now)
                if pause_s is not None:
                    return pause_s
            parse(data)
            if connection.done or connection.failure is not None:
                return DONE
            if not body:
                return 0.0
            data = body[0] if len(body) == 1 else b"".join(body)
            body.clear()
            pause_s = take(data, False, now)
            if pause_s is None:
                body.append(data)
                return DONE
            return pause_s

        try:
            await connection.stream.pumped(pump, readable, pause_s)
        except trio.ClosedResourceError as error:
            raise WorkerDied(f"the worker's connection broke: {error}", answered=True) from error

    @property
    def complete(self) -> bool:
        """True when everything has been received, whether read or not."""
        return self._connection is None or self._connection.done

    @property
    def ready(self) -> bool:
        """True when `receive` has no need to wait."""
        return self.complete or bool(self._connection and self._connection.body)

    async def read(self, limit_bytes: int) -> bytes:
        """Read the rest of the body.

        Raises:
            BadWorkerResponse: It is longer than `limit_bytes`.
        """
        parts: list[bytes] = []
        size = 0
        while data := await self.receive():
            size += len(data)
            if size > limit_bytes:
                self.close()
                raise BadWorkerResponse(f"the worker's answer is longer than {limit_bytes} bytes")
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        """Give the answer up; an unfinished one is cancelled in the worker."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.done:
                self._owner._finished(connection)
            else:
                self._owner._discard(connection)


class Upstream:
    """The way to one worker.

    Args:
        socket_path: Where it listens.
        pid: The process that must own the listening socket; 0 skips the check. A connection
            answered by any other process is refused before a byte is sent. Kept as `pid`.
    """

    def __init__(self, socket_path: Path, pid: int) -> None:
        self._path = str(socket_path)
        self.pid = pid
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._closed = False

    async def request(
        self,
        method: bytes,
        target: bytes,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> UpstreamResponse:
        """Send a request; the answer is waited for with `head`.

        Cancelled, the connection is closed and with it the work.

        Raises:
            WorkerDied: The worker is not there.
        """
        extra = b"".join(b"%b: %b\r\n" % header for header in headers)
        request = b"%b %b HTTP/1.1\r\nHost: llmd\r\n%bContent-Length: %d\r\n\r\n%b" % (
            method,
            target,
            extra,
            len(body),
            body,
        )
        if not self._idle:
            return UpstreamResponse(self, await self._send_fresh(request), request, reused=False)
        connection = self._idle.pop()
        try:
            await connection.stream.send_all(request)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._discard(connection)
            return UpstreamResponse(self, await self._send_fresh(request), request, reused=False)
        except BaseException:
            self._discard(connection)
            raise
        return UpstreamResponse(self, connection, request, reused=True)

    async def _send_fresh(self, request: bytes) -> _Connection:
        connection = await self._connect()
        try:
            await connection.stream.send_all(request)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._discard(connection)
            raise WorkerDied(f"the worker went away: {error}", answered=False) from error
        except BaseException:
            self._discard(connection)
            raise
        return connection

    async def _connect(self) -> _Connection:
        if self._closed:
            raise WorkerDied("the worker is stopping", answered=False)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            while True:
                try:
                    sock.connect(self._path)
                    break
                except BlockingIOError:  # its backlog is full
                    await trio.sleep(0.005)
            if self.pid and peer_pid(sock) != self.pid:
                raise WorkerDied("another process answers on the worker's socket", answered=False)
        except OSError as error:
            sock.close()
            raise WorkerDied(f"the worker cannot be reached: {error}", answered=False) from error
        except BaseException:
            sock.close()
            raise
        connection = _Connection(sock)
        self._open.add(connection)
        return connection

    async def _feed(self, connection: _Connection, *, answered: bool) -> None:
        """Wait for bytes and parse them."""
        if connection.failure is None:
            try:
                data = await connection.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._discard(connection)
                raise WorkerDied(
                    f"the worker's connection broke: {error}", answered=answered
                ) from error
            if not data:
                self._discard(connection)
                raise WorkerDied("the worker ended the connection mid-answer", answered=answered)
            connection.parse(data)
        if connection.failure is not None:
            self._discard(connection)
            raise connection.failure

    def _finished(self, connection: _Connection) -> None:
        keep = connection.keep_alive and not self._closed and len(self._idle) < MAX_IDLE_CONNECTIONS
        if keep:
            connection.reset()
            self._idle.append(connection)
        else:
            self._discard(connection)

    def _discard(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.stream.close()

    def close(self) -> None:
        """Close every connection; running requests see WorkerDied. Idempotent."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._open):
            self._discard(connection)


def chunk_head(size: int) -> bytes:
    """Return how one whole chunk of `size` bytes, framing included, begins.

    As llama-server says it, and for sizes up to `MAX_RECEIVE_BYTES`.
    """
    for digits in range(1, 6):
        head = b"%x\r\n" % max(size - digits - 4, 0)
        if len(head) == digits + 2 and head != b"0\r\n":  # which is the end of a body
            return head
    return b"\n"  # no chunk begins so


class _Heads(dict[int, bytes]):
    """`chunk_head` by size; a stream repeats few sizes."""

    def __missing__(self, size: int) -> bytes:
        head = self[size] = chunk_head(size)
        return head


def peer_pid(sock: socket.socket) -> int:
    """Return the process that made the listening end of a connected Unix socket (SO_PEERCRED)."""
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid

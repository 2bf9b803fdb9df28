"""TCP connections: Hypercorn's HTTP/1.1 protocol on a transport of our own.

This accepts, bounds how many there are, and drains; `connection` serves one client and
`protocol` is Hypercorn's part. What Hypercorn's own transport costs per request (a task for each
idle timer, a send for each piece of a head) is saved here, which is half of what llmd adds to a
short request.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import ssl
from collections.abc import Callable

import trio
from hypercorn.trio.worker_context import WorkerContext

from llmd.api.asgi import App
from llmd.api.connection import Connection
from llmd.api.protocol import ProtocolConfig, bare_answer
from llmd.netio import SocketStream


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
        self.send_timeout_s = send_timeout_s
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
            if self.send_timeout_s:
                timeout_ms = int(self.send_timeout_s * 1000)
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
            connection.last_call()
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
                _turn_away(sock, secret=self._tls is not None)
                continue
            clients.start_soon(self._client, sock)

    def _make_room(self) -> bool:
        for connection in self._connections:
            if connection.idle:
                connection.close_idle()
                return True
        return False

    async def _client(self, sock: socket.socket) -> None:
        stream = SocketStream(sock, send_timeout_s=self.send_timeout_s)
        tls = None
        if self._tls is not None:
            tls = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        connection = Connection(self, stream, tls)
        if self.draining:
            connection.last_call()
        self._connections[connection] = None
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            self._left.set()


def _turn_away(sock: socket.socket, *, secret: bool) -> None:
    if secret:  # a handshake is what this spares us, and plain text would only confuse
        sock.close()
        return
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

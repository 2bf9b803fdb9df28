"""One client's connection: read, fed to Hypercorn's protocol, written, watched and ended.

It notices at once that the client has gone, bounds how slowly heads may come and how much may
come early, and closes so that the last answer arrives.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ConnectionState

from llmd.api.asgi import CONNECTION, MALFORMED
from llmd.api.protocol import (
    REFUSAL_CODES,
    Applications,
    MalformedBody,
    Protocol,
    bare_answer,
)
from llmd.api.wire import BadRequest
from llmd.netio import SocketStream
from llmd.observe.log import log

if TYPE_CHECKING:
    from llmd.api.server import HttpServer

_log = logging.getLogger("llmd")
DROPPED = "client dropped"
"""What the log says when we end a connection for a client that takes nothing."""

KEEP_ALIVE_S = 75.0
LINGER_S = 2.0
LINGER_BYTES = 1 << 26
MAX_EARLY_BYTES = 1 << 16  # of a pipelined request, while the one before it is served


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
        self._on_disconnect: Callable[[str], None] | None = None
        self.last_answer = False
        self.gone = False
        self._early = bytearray()
        self._malformed = False  # nothing that follows can be told from the body
        self._busy = False
        self._closing = False
        self._in_head = False  # the time for a head runs
        self._deadline = math.inf
        self._body_deadline = math.inf
        self._read_scope: trio.CancelScope | None = None
        stream.on_eof = self._ended

    @property
    def idle(self) -> bool:
        """True while no request is being read or served."""
        return not self._busy and not self._early

    @property
    def request_complete(self) -> bool:
        """True when all of the request that is being served has come."""
        return self._protocol.request_complete

    def last_call(self) -> None:
        """Make the next answer the last, and give no body more time than a head has.

        The server is ending: what has not sent its whole request would be turned away anyway.
        """
        self.last_answer = True
        self._body_deadline = trio.current_time() + self._server.header_timeout_s
        if self._read_scope is not None and self._busy and not self.request_complete:
            self._read_scope.deadline = self._body_deadline

    def watch(self, on_disconnect: Callable[[str], None]) -> None:
        """Have the request that is being served told when its client goes, and why if it was us.

        Called once, synchronously; at once if the client has gone already, which it may have
        before the application's task got its first turn.
        """
        self._on_disconnect = on_disconnect
        if self.gone:
            self._ended()

    def unwatch(self) -> None:
        """Tell the request that is being served no more."""
        self._on_disconnect = None

    async def invite(self) -> None:
        """Have a client send its body that waits to be told so; called before it is read."""
        await self._protocol.invite()

    @property
    def in_chunks(self) -> bool:
        """Whether `send_chunk_now` can do it."""
        return self._tls is None and self._protocol.chunked and not self._closing

    def send_chunk_now(self, data: bytes) -> bytes | None:
        """Send more of a body that is being sent in chunks, as far as the kernel takes it.

        What Hypercorn and h11 do for a chunk is this frame; done here it takes a third of the
        time, and the tokens of a stream are one chunk each.

        Returns:
            What is left for `send_rest`, b"" when all has gone; None when this connection cannot
            do it: encrypted, another framing, no body begun.
        """
        if not self.in_chunks:
            return None
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        try:
            sent = self._socket_stream.send_now(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended()
            return b""
        return b"" if sent == len(chunk) else chunk[sent:]

    @property
    def chunk_sender(self) -> Callable[[bytes], int]:
        """See `Answer.chunk_sender`."""
        return self._socket_stream.socket.send

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
                self._protocol = Protocol(
                    self,
                    cast("AppWrapper", server.app),
                    server.protocol_config,
                    server.context,
                    Applications(nursery, server.on_crash),
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
        first, discarded = True, 0
        while True:
            if self._busy or self._closing:
                self._in_head = False
            elif not self._in_head:
                self._await_head(first=first)
            deadline = self._deadline
            if self._busy:
                deadline = math.inf if self.request_complete else self._body_deadline
            with trio.CancelScope(deadline=deadline) as self._read_scope:
                data = bytes(await self._stream.receive_some())
            if self._read_scope.cancelled_caught:
                if not self._in_head or self._closing or not self._protocol.holds_more:
                    return
                await self._refuse(408, "the request head was not completed in time")
                continue
            if not data:
                return
            first = False
            if not self._closing:
                await self._take(data)
            discarded += len(data) if self._closing else 0
            if discarded > LINGER_BYTES or (self._closing and self.request_complete):
                return

    async def _take(self, data: bytes) -> None:
        if self._malformed:
            return
        if not (self._busy and self.request_complete):
            await self._feed(data)
        elif len(self._early) + len(data) <= MAX_EARLY_BYTES:
            self._early += data
        else:
            raise trio.BrokenResourceError("too many requests in advance")

    async def _feed(self, data: bytes) -> None:
        """Have the protocol take in what came; b"" for what it has already."""
        try:
            if data:
                await self._protocol.handle(RawData(data))
            else:
                await self._protocol.next_request()
        except BadRequest as refused:
            await self._refuse(refused.status, str(refused))
        except MalformedBody:
            self._malformed = True
            stream = self._protocol.stream
            if isinstance(stream, HTTPStream):
                end: Any = {"type": "http.request", MALFORMED: True}
                await stream.app_put(end)

    async def _refuse(self, status: int, message: str) -> None:
        """Answer in place of Hypercorn, which has not made a request of these bytes."""
        self._busy = False
        code = REFUSAL_CODES.get(status, "invalid_request")
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
            return
        if self._protocol.holds_more:
            await self._feed(b"")
        if self._early and not self._closing and not (self._busy and self.request_complete):
            # only now: while the parser holds whole requests, what comes early must stay bounded
            data, self._early = bytes(self._early), bytearray()
            await self._feed(data)
        if not self._busy and not self._closing:
            self._await_head()
            if self._read_scope is not None:
                self._read_scope.deadline = self._deadline

    def _await_head(self, *, first: bool = False) -> None:
        """Begin the time that a head has, or that the client may be idle before the next one."""
        self._in_head = first or self._protocol.holds_more
        limit_s = self._server.header_timeout_s if self._in_head else KEEP_ALIVE_S
        self._deadline = trio.current_time() + limit_s

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
        done = self.request_complete or self.gone or self._tls is not None
        self._deadline = -math.inf if done else trio.current_time() + LINGER_S
        if self._read_scope is not None:
            self._read_scope.deadline = self._deadline

    def _ended(self) -> None:
        """Tell the request that is being served: the client has gone."""
        first, self.gone = not self.gone, True
        why = ""
        if self._socket_stream.timed_out:
            limit_s = self._server.send_timeout_s
            why = f"the client took no byte for {limit_s:g} s (server.send_timeout_sec)"
        if self._on_disconnect is not None:
            told, self._on_disconnect = self._on_disconnect, None
            told(why)
        elif why and first:
            log(_log, DROPPED, logging.WARNING, reason=why)

    def close_idle(self) -> None:
        """Close if nothing is being read or served."""
        if self.idle:
            self._closing = True
            self._socket_stream.close()

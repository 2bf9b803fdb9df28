"""A socket stream that goes round the event loop only when it has to wait.

trio's own SocketStream yields on every call, also when the kernel takes or has the bytes at once.
On a relayed token that is two extra trips round the loop, each with its own epoll call, and they
cost more than the relaying. This one yields only when the kernel would block. It is safe here
because every loop that uses it waits for its peer's next bytes with `wait_readable`, a true
checkpoint.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable

import trio

from llmd.pump import Pump, Readable

MAX_RECEIVE_BYTES = 65536


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected stream socket.

    Args:
        sock: Connected; the stream owns it from now on and makes it non-blocking.
        send_timeout_s: A peer that takes no byte for this long breaks the stream; 0 = for ever.
        on_eof: Called once, synchronously, when the peer has ended or reset its side.

    A send that is cancelled half-way tears the stream: nothing can be sent any more.

    Attributes:
        timed_out: The peer took no byte for too long, as seen here or by the kernel
            (TCP_USER_TIMEOUT); told before anybody hears that the stream is broken.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        send_timeout_s: float = 0.0,
        on_eof: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.on_eof = on_eof
        self.timed_out = False
        self._send_timeout_s = send_timeout_s or math.inf
        self._closed = False
        self._torn = False
        self._receiving = False
        self._pump: Pump | None = None

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much as the kernel takes at once, and return how many bytes that was.

        Raises:
            trio.BrokenResourceError: The peer has gone, or an earlier send was torn.
            trio.ClosedResourceError: This side was closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._torn:
            raise trio.BrokenResourceError("an earlier send was cancelled half-way")
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything.

        Raises:
            trio.BrokenResourceError: The peer has gone, or took nothing for `send_timeout_s`.
            trio.ClosedResourceError: This side was closed.
        """
        sent = self.send_now(data)
        if sent != len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, rest: memoryview) -> None:
        self._torn = True  # until all of it has gone: whoever cancels this leaves a torn stream
        while rest:
            with trio.move_on_after(self._send_timeout_s) as scope:
                await trio.lowlevel.wait_writable(self.socket)
            if scope.cancelled_caught:
                self.timed_out = True
                raise trio.BrokenResourceError("the peer takes no bytes")
            if self._closed:
                raise trio.ClosedResourceError
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._broken(error) from error
        self._torn = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel would take bytes."""
        if self._closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return them; b"" when the peer has ended its side.

        Always a checkpoint.

        Raises:
            trio.BrokenResourceError: The peer has reset the connection.
            trio.ClosedResourceError: This side was closed, before or meanwhile.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            while True:
                await trio.lowlevel.wait_readable(self.socket)
                if self._closed:
                    raise trio.ClosedResourceError
                try:
                    data = self.socket.recv(max_bytes or MAX_RECEIVE_BYTES)
                except BlockingIOError:
                    continue
                except OSError as error:
                    broken = self._broken(error)
                    self._ended()
                    raise broken from error
                if not data:
                    self._ended()
                return data
        finally:
            self._receiving = False

    async def pumped(self, pump: Pump, readable: Readable, pause_s: float = 0.0) -> None:
        """Have `pump` call `readable` whenever there are bytes, until it says DONE.

        Raises:
            trio.ClosedResourceError: This side was closed, before or meanwhile.
        """
        if self._closed:
            raise trio.ClosedResourceError
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        self._pump = pump
        try:
            await pump.run(self.socket, readable, pause_s)
        finally:
            self._pump = None
            self._receiving = False

    def _broken(self, error: OSError) -> trio.BrokenResourceError:
        self.timed_out = self.timed_out or error.errno == errno.ETIMEDOUT
        return trio.BrokenResourceError(str(error))

    def _ended(self) -> None:
        if self.on_eof is not None:
            told, self.on_eof = self.on_eof, None
            told()

    async def send_eof(self) -> None:
        """End this side; the peer may go on sending."""
        if self._closed:
            raise trio.ClosedResourceError
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    def close(self) -> None:
        """Close now, without yielding; waiters get ClosedResourceError. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._pump is not None:
                self._pump.notify_closing(self.socket)
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def aclose(self) -> None:
        """Close; the same as `close`, as a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

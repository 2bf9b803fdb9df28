"""Readable sockets served from within trio's own wait, without waking a task for each read.

A token that is relayed alone finds the daemon asleep. To trio that is one turn of its loop: a
task is taken up, runs through its frames, and waits again; to the relay it is a read and a send.
The pump does the read and the send at the place where the loop sleeps, and wakes the task when
there is more to it. What is pumped runs in trio's thread, between two turns, so that nothing needs
a lock.

trio calls an instrument before it sleeps. The pump sleeps there in its place, on an epoll set of
its own that holds the pumped sockets and trio's set, and comes back as soon as trio has anything
to do. The number of trio's set is the one thing that trio keeps to itself; without it, or when the
pump was never attached, tasks are woken for each read as usual.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator

import trio

Readable = Callable[[float], bool]
"""Called with trio's time when bytes can be read. Must not block, and of trio it may do no more
than cancel the task that waits for it. Returns True when that task should go on."""


class _Pumped:
    """One socket and the task that waits until its pumping ends."""

    __slots__ = ("ended", "error", "readable", "task")

    def __init__(self, readable: Readable, task: trio.lowlevel.Task) -> None:
        self.readable = readable
        self.task = task
        self.ended = False
        self.error: BaseException | None = None


class Pump(trio.abc.Instrument):
    """Serves sockets while trio would sleep. One for each `trio.run`; see the module.

    Attributes:
        attached: It stands in trio's place when that sleeps. False: tasks are woken as usual.
        served: Reads that woke no task, for those who want to know whether it works.
    """

    def __init__(self) -> None:
        self.attached = False
        self.served = 0
        self._sockets: dict[int, _Pumped] = {}
        self._epoll: select.epoll | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    @contextlib.contextmanager
    def attach(self) -> Iterator[None]:
        """Take over the sleeping of the running loop, if this trio allows it, for a while.

        To be left only when nothing is pumped any more.
        """
        loop = _epoll_of_trio()
        if loop is None:
            yield
            return
        with contextlib.closing(select.epoll()) as self._epoll:
            self._epoll.register(loop, select.EPOLLIN)
            self._token = trio.lowlevel.current_trio_token()
            trio.lowlevel.add_instrument(self)
            self.attached = True
            try:
                yield
            finally:
                self.attached = False
                trio.lowlevel.remove_instrument(self)

    async def run(self, sock: socket.socket, readable: Readable) -> None:
        """Have `readable` called whenever `sock` has bytes, until it returns True.

        A checkpoint. Cancelled, it stops at once; nothing that `readable` has read is lost, as
        nobody but itself has it.

        Raises:
            trio.ClosedResourceError: `notify_closing` was called.
            Exception: Whatever `readable` raised.
        """
        if not self.attached:
            while True:
                await trio.lowlevel.wait_readable(sock)
                if readable(trio.current_time()):
                    return
        assert self._epoll is not None
        fd = sock.fileno()
        pumped = _Pumped(readable, trio.lowlevel.current_task())
        if fd in self._sockets:
            raise trio.BusyResourceError("another task is pumping this socket")
        self._epoll.register(fd, select.EPOLLIN)
        self._sockets[fd] = pumped

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(fd, pumped)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if pumped.error is not None:
            raise pumped.error

    def notify_closing(self, sock: socket.socket) -> None:
        """End the pumping of a socket that is about to be closed, if it is pumped."""
        if sock.fileno() in self._sockets:
            self._end(sock.fileno(), trio.ClosedResourceError("the socket was closed meanwhile"))

    def before_io_wait(self, timeout: float) -> None:
        """Sleep in trio's place; called by trio, in its thread."""
        if not self._sockets or self._epoll is None or self._token is None:
            return
        now = trio.current_time()
        until = now + timeout
        while True:
            found = self._epoll.poll(timeout)
            if not found:
                if timeout > 0:  # trio would sleep for as long once more
                    self._token.run_sync_soon(_nothing, idempotent=True)
                return
            now = trio.current_time()
            back = False
            for fd, _ in found:
                pumped = self._sockets.get(fd)
                if pumped is None:
                    back = True  # trio has something to do
                    continue
                try:
                    ended, error = pumped.readable(now), None
                except BaseException as raised:  # it belongs to the task
                    ended, error = True, raised
                if self._sockets.get(fd) is not pumped:
                    back = True  # it has cancelled its own task
                    self._token.run_sync_soon(_nothing, idempotent=True)
                elif ended:
                    back = True
                    self._end(fd, error)
                else:
                    self.served += 1
            if back or not timeout:
                return
            timeout = max(until - now, 0.0)

    def _end(self, fd: int, error: BaseException | None) -> None:
        pumped = self._sockets[fd]
        pumped.error = error
        self._forget(fd, pumped)
        assert self._token is not None
        # trio has settled how long it will sleep: only this wakes it
        self._token.run_sync_soon(_wake, pumped)

    def _forget(self, fd: int, pumped: _Pumped) -> None:
        """Take a socket out, whoever asks first: its end, or the task's cancellation."""
        if self._sockets.get(fd) is pumped:
            del self._sockets[fd]
            assert self._epoll is not None
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        else:
            pumped.ended = True  # the task has been woken by its cancellation


def _wake(pumped: _Pumped) -> None:
    if not pumped.ended:
        pumped.ended = True
        trio.lowlevel.reschedule(pumped.task)


def _nothing() -> None:
    pass


def _epoll_of_trio() -> int | None:
    """Return the number of the epoll set that the running loop sleeps on, None if unknown."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        epoll = GLOBAL_RUN_CONTEXT.runner.io_manager._epoll
    except (ImportError, AttributeError):
        return None
    return epoll.fileno() if isinstance(epoll, select.epoll) else None

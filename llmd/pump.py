"""Readable sockets served from within trio's own wait, without waking a task for each read.

A token that is relayed alone finds the daemon asleep. To trio that is one turn of its loop: a
task is taken up, runs through its frames, and waits again; to the relay it is a read and a send.
The pump does the read and the send at the place where the loop sleeps, and wakes the task when
there is more to it. What is pumped runs in trio's thread, between two turns, so that nothing needs
a lock.

trio calls an instrument before it sleeps. The pump sleeps there in its place, on an epoll set of
its own that holds the pumped sockets and trio's set, and comes back as soon as trio has anything
to do. The number of trio's set is the one thing that trio keeps to itself; without it, or when the
pump was never attached, tasks are woken for each read as usual. To trio a pumping loop
is never idle: `wait_all_tasks_blocked` with a cushion, and the autojump clock, wait until nothing
is pumped.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
from collections.abc import Callable, Iterator
from time import perf_counter

import trio

DONE = -1.0
GATHER_S = 0.0025
"""Sockets whose pauses end within this time of each other are served together, at the first."""

Readable = Callable[[float], float]
"""Called with trio's time when bytes can be read, or a pause has ended. Must not block, and of trio
it may do no more than cancel the task that waits for it. Returns DONE when that task should go on,
else how many seconds to leave the socket alone at most, 0 to be called for its next bytes."""


class _Pumped:
    """One socket and the task that waits until its pumping ends."""

    __slots__ = ("due", "error", "readable", "task", "woken")

    def __init__(self, readable: Readable, task: trio.lowlevel.Task) -> None:
        self.readable = readable
        self.task = task
        self.due = 0.0  # when its pause ends
        self.woken = False
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
        self._paused: dict[int, _Pumped] = {}
        self._due = math.inf  # when the first pause ends
        self._offset_s = 0.0
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
            self._offset_s = trio.current_time() - perf_counter()  # of trio's own clock
            trio.lowlevel.add_instrument(self)
            self.attached = True
            try:
                yield
            finally:
                self.attached = False
                trio.lowlevel.remove_instrument(self)

    async def run(self, sock: socket.socket, readable: Readable, pause_s: float = 0.0) -> None:
        """Have `readable` called whenever `sock` has bytes, until it says DONE.

        A checkpoint. Cancelled, it stops at once; nothing that `readable` has read is lost, as
        nobody but itself has it.

        Args:
            sock: Stays the caller's.
            readable: See there.
            pause_s: How long to leave the socket alone at first.

        Raises:
            trio.ClosedResourceError: `notify_closing` was called.
            Exception: Whatever `readable` raised.
        """
        if not self.attached:
            await self._run_woken(sock, readable, pause_s)
            return
        fd = sock.fileno()
        if fd in self._sockets:
            raise trio.BusyResourceError("another task is pumping this socket")
        pumped = _Pumped(readable, trio.lowlevel.current_task())
        self._wait(fd, pumped, trio.current_time(), pause_s)
        self._sockets[fd] = pumped

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(fd, pumped)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if pumped.error is not None:
            raise pumped.error

    async def _run_woken(self, sock: socket.socket, readable: Readable, pause_s: float) -> None:
        while pause_s >= 0:
            if pause_s:
                await trio.sleep(pause_s)
            await trio.lowlevel.wait_readable(sock)
            pause_s = readable(trio.current_time())

    def notify_closing(self, sock: socket.socket) -> None:
        """End the pumping of a socket that is about to be closed, if it is pumped."""
        pumped = self._sockets.get(sock.fileno())
        if pumped is not None:
            pumped.error = trio.ClosedResourceError("the socket was closed meanwhile")
            self._end(sock.fileno(), pumped)

    def before_io_wait(self, timeout: float) -> None:
        """Sleep in trio's place; called by trio, in its thread."""
        if not self._sockets or self._epoll is None:
            return
        sleeps = timeout > 0
        poll, sockets = self._epoll.poll, self._sockets
        now = perf_counter() + self._offset_s
        until = now + timeout
        while True:
            due = self._due
            found = poll(timeout if due > until else max(due - now, 0.0))
            now = perf_counter() + self._offset_s
            back = False
            for fd, _ in found:
                pumped = sockets.get(fd)
                if pumped is None:  # it is trio that has something to do
                    back = True
                    continue
                # what `_end_pauses` does for those that paused; here it is the way of a lone token,
                # which pays for each further function
                try:
                    pause_s = pumped.readable(now)
                except BaseException as error:  # it belongs to the task
                    pumped.error, pause_s = error, DONE
                if pause_s or sockets.get(fd) is not pumped:
                    back |= self._served(fd, pumped, now, pause_s)
                else:
                    self.served += 1
            if now >= self._due:
                back |= self._end_pauses(now)
            if back:
                return
            timeout = until - now
            if timeout <= 0:
                if sleeps:  # trio would sleep for as long once more
                    self._wake_trio()
                return

    def _end_pauses(self, now: float) -> bool:
        """Serve the sockets whose pause ends about now; tells whether a task goes on."""
        back = False
        for fd, pumped in list(self._paused.items()):
            if pumped.due <= now + GATHER_S:
                try:
                    pause_s = pumped.readable(now)
                except BaseException as error:  # it belongs to the task
                    pumped.error, pause_s = error, DONE
                back |= self._served(fd, pumped, now, pause_s)
        self._due = min((pumped.due for pumped in self._paused.values()), default=math.inf)
        return back

    def _served(self, fd: int, pumped: _Pumped, now: float, pause_s: float) -> bool:
        """Do what a read of one socket asks for, and tell whether its task goes on."""
        ours = self._sockets.get(fd) is pumped  # else it has cancelled itself just now
        if pause_s >= 0 and ours:
            self.served += 1
            if pause_s or fd in self._paused:
                self._wait(fd, pumped, now, pause_s)
            return False
        if ours:
            self._end(fd, pumped)
        else:
            self._wake_trio()
        return True

    def _wait(self, fd: int, pumped: _Pumped, now: float, pause_s: float) -> None:
        """Wait for bytes, or for the end of a pause, whatever was waited for before."""
        assert self._epoll is not None
        paused = fd in self._paused
        if pause_s:
            pumped.due = now + pause_s
            self._due = min(self._due, pumped.due)
            self._paused[fd] = pumped
            if not paused:
                self._unregister(fd)
        else:
            self._paused.pop(fd, None)
            self._epoll.register(fd, select.EPOLLIN)

    def _end(self, fd: int, pumped: _Pumped) -> None:
        self._forget(fd, pumped)
        assert self._token is not None
        # trio has settled how long it will sleep: only this wakes it
        self._token.run_sync_soon(_wake, pumped)

    def _forget(self, fd: int, pumped: _Pumped) -> None:
        """Take a socket out, whoever asks first: its end, or the task's cancellation."""
        if self._sockets.get(fd) is not pumped:
            pumped.woken = True  # by its cancellation, before its end could
            return
        del self._sockets[fd]
        if self._paused.pop(fd, None) is None:
            self._unregister(fd)

    def _unregister(self, fd: int) -> None:
        assert self._epoll is not None
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)

    def _wake_trio(self) -> None:
        assert self._token is not None
        self._token.run_sync_soon(_nothing, idempotent=True)


def _wake(pumped: _Pumped) -> None:
    if not pumped.woken:
        pumped.woken = True
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

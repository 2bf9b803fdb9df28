"""The admin socket: who may connect, and what serves them.

The daemon opens it first and closes it last, so that operators can watch it start and end. One
connection, whatever its peer does, costs the others nothing: what it may leave unread and what it
may have under way is bounded, and its end is nobody else's. Nor can all connections of those who
may only look keep out one who may act, or all of one such user's another user's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from llmd.admin import protocol as p
from llmd.admin.commands import Actor, Commands
from llmd.admin.connection import Connection
from llmd.admin.hub import TICK_S, Hub, encode
from llmd.admin.notices import Notices
from llmd.admin.peercred import Peer, Rights, peer_of
from llmd.admin.rooms import Rooms
from llmd.admin.socketfile import SocketFile, is_busy
from llmd.admin.socketfile import socket_path as socket_path
from llmd.admin.views import Views
from llmd.core.record import RequestRecord
from llmd.errors import ConfigError
from llmd.netio import SocketStream
from llmd.observe.log import log
from llmd.workers.logring import LogRing

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
WRITERS_PLACES = 32  # of these, which nobody takes who may only look
READERS_SHARE = 16  # for one user who may only look
_MOST_TURNED_AWAY = 32  # at a time; more are hung up on without a word
_FAREWELL_S = 2.0
_SEND_TIMEOUT_S = 60.0
_FILE_CHECK_S = 2.0
_SAMPLE_S = 1.0


class AdminServer:
    """Serves operators.

    Args:
        rooms: The daemon.
        path: Of the socket.
        rights: Who may do what.
        tick_s: Seconds between two events of a subscription, at least.
        send_timeout_s: A peer that takes no byte for this long is dropped.
        file_check_s: How often the socket's file is looked for.
        own_directory: The socket's directory is llmd's alone.
    """

    def __init__(
        self,
        rooms: Rooms,
        path: Path,
        rights: Rights,
        *,
        tick_s: float = TICK_S,
        send_timeout_s: float = _SEND_TIMEOUT_S,
        file_check_s: float = _FILE_CHECK_S,
        own_directory: bool = False,
    ) -> None:
        self.path = path
        self._rooms = rooms
        self._rights = rights
        self._send_timeout_s = send_timeout_s
        self._file_check_s = file_check_s
        self._file = SocketFile(path, rights, own_directory=own_directory)
        self._notices = Notices(logging.getLogger("llmd"))
        views = Views(rooms)
        self._hub = Hub(views, self._notices, tick_s=tick_s)
        self._commands = Commands(rooms.operations, views, self._spawn)
        self._streams: set[SocketStream] = set()
        self._readers: Counter[int] = Counter()  # connections that may only look, by uid
        self._turning_away = 0
        self._nursery: trio.Nursery | None = None

    def open(self) -> None:
        """Take the path; clients may connect from now on and are served once `run` runs.

        Raises:
            ConfigError: Another daemon has it, or it cannot be made.
        """
        self._file.open()
        for warning in self._file.warnings:
            log(_log, warning, logging.WARNING)

    def ended(self, record: RequestRecord) -> None:
        """Take in that a request has ended."""
        self._rooms.recent.ended(record, trio.current_time())
        self._hub.ended(record)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then the socket and its file are gone."""
        self._notices.attach()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._hub.run)
                self._nursery.start_soon(self._sample)
                self._nursery.start_soon(self._watch_file)
                self._nursery.start_soon(self._accept)
                task_status.started()
        finally:
            self._notices.detach()
            self.close()

    def close(self) -> None:
        """Hang up on everybody and remove the file. Idempotent."""
        for stream in list(self._streams):
            stream.close()
        if self._file.listener is not None:
            trio.lowlevel.notify_closing(self._file.listener)
        self._file.close()

    def _spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._apart, run)

    async def _apart(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run what a command has left behind, which may cost itself and not the daemon."""
        try:
            await run()
        except Exception:
            _log.exception("what an operator began crashed; this is a fault in llmd")

    # --- connections ------------------------------------------------------------------------

    async def _accept(self) -> None:
        while (listener := self._file.listener) is not None:
            try:
                await trio.lowlevel.wait_readable(listener)
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError, trio.ClosedResourceError):
                continue  # gone already, or another listener has taken this one's place
            except OSError as error:
                if error.errno == errno.EBADF:
                    continue
                if not is_busy(error):
                    raise
                log(_log, "admin socket cannot accept", logging.WARNING, reason=str(error))
                await trio.sleep(0.1)  # nothing tells when a descriptor is free again
                continue
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        """Serve a new peer, or tell it why not."""
        try:
            peer = peer_of(sock)
        except OSError as error:
            log(_log, "admin peer unknown", logging.WARNING, reason=str(error))
            sock.close()
            return
        access = self._rights.access(peer)
        if not access:
            log(_log, "admin peer refused", logging.WARNING, **_who(peer))
            self._turn_away(sock, "permission_denied", "this user may not use the admin socket")
        elif full := self._full(peer, access):
            self._turn_away(sock, "too_many", full)
        else:
            assert self._nursery is not None
            # counted at once: many may come before the first one's task has its turn
            stream = SocketStream(sock, send_timeout_s=self._send_timeout_s)
            self._streams.add(stream)
            if access != "write":
                self._readers[peer.uid] += 1
            self._nursery.start_soon(self._serve, stream, Actor(peer, access))

    def _full(self, peer: Peer, access: str) -> str:
        """Return why there is no place for one more connection; "" when there is one."""
        if len(self._streams) >= MAX_CONNECTIONS:
            return f"{MAX_CONNECTIONS} clients are connected already"
        if access == "write":
            return ""
        if self._readers[peer.uid] >= READERS_SHARE:
            return (
                f"{peer.user} has {READERS_SHARE} connections already, the share of one user who "
                "may only look"
            )
        most = MAX_CONNECTIONS - WRITERS_PLACES
        if self._readers.total() >= most:
            return (
                f"{most} clients that may only look are connected already; the other places are "
                "kept for those who may act"
            )
        return ""

    def _turn_away(self, sock: socket.socket, code: str, message: str) -> None:
        if self._turning_away >= _MOST_TURNED_AWAY:
            sock.close()
            return
        assert self._nursery is not None
        self._turning_away += 1
        line = encode(p.Failure(code=code, message=message)) + b"\n"
        self._nursery.start_soon(self._say_why, SocketStream(sock), line)

    async def _say_why(self, stream: SocketStream, line: bytes) -> None:
        """Say why not, and hang up once the peer has read it, or had the time to.

        Hanging up at once would break the peer's first write, and then many never read.
        """
        try:
            with trio.move_on_after(_FAREWELL_S), contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(line)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        finally:
            self._turning_away -= 1
            stream.close()

    async def _serve(self, stream: SocketStream, actor: Actor) -> None:
        connection = Connection(
            stream,
            actor,
            commands=self._commands,
            hub=self._hub,
            log_of=self._log_of,
            moved=self._rooms.operations.scheduler.moved,
        )
        try:
            await connection.serve()
        except Exception:  # it must cost one connection and not the daemon, and say so
            _log.exception("the connection of %s crashed; this is a fault in llmd", actor.peer)
        finally:
            self._streams.discard(stream)
            if actor.access != "write":
                self._readers[actor.peer.uid] -= 1
                self._readers += Counter()  # forgets those who have none left
            stream.close()

    def _log_of(self, model: str) -> LogRing | None:
        worker = self._rooms.operations.supervisor.worker(model)
        return None if worker is None else worker.log

    # --- by the clock -----------------------------------------------------------------------

    async def _sample(self) -> None:
        registry = self._rooms.operations.registry
        while True:
            await trio.sleep(_SAMPLE_S)
            records = [handle.record for handle in registry.handles()]
            self._rooms.recent.sample(records, trio.current_time())

    async def _watch_file(self) -> None:
        told = ""
        while True:
            await trio.sleep(self._file_check_s)
            try:
                made = self._file.restore()
            except (OSError, ConfigError) as error:
                if told != str(error):
                    told = str(error)
                    log(_log, "admin socket cannot be made anew", logging.WARNING, reason=told)
                continue
            told = ""
            if made is None:
                continue
            old, note = made
            if old is not None:
                trio.lowlevel.notify_closing(old)
                old.close()
            log(_log, "admin socket made anew", logging.WARNING, path=str(self.path), reason=note)


def _who(peer: Peer) -> dict[str, object]:
    return {"user": peer.user, "uid": peer.uid, "pid": peer.pid}

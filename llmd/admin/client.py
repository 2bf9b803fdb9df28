"""The admin socket for programs that block: scripts, and `llmctl`."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from llmd.admin import protocol as p
from llmd.admin.asking import Asking
from llmd.admin.calls import BadReply, Codec, Unreachable, nobody, unreachable
from llmd.admin.framing import LineSplitter, LineTooLong
from llmd.places import find_sockets

if TYPE_CHECKING:
    from pathlib import Path

R = TypeVar("R")
_RECEIVE_BYTES = 65536


class Client(Asking):
    """A connection to the daemon; every method asks one thing and returns the answer.

    Use it as a context manager, or `close` it. Not for several threads at once.

    Args:
        path: Of the socket; None looks in `$LLMD_SOCKET`, the runtime directory and /run/llmd.
        timeout_s: For an answer, except to what is asked to `wait`; None = no limit.

    Raises:
        Unreachable: There is no daemon, or this user may not use the socket.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, timeout_s: float | None = 10.0
    ) -> None:
        self._timeout_s = timeout_s
        self._codec = Codec()
        self._link = _Link.open(*find_sockets(path, os.environ))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The socket of the daemon that answers."""
        from pathlib import Path  # slow to import, and llmctl has no use for it

        return Path(self._link.path)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._link.close()

    def call(self, command: p.Command[R]) -> R:
        """Send a command and return its result.

        Raises:
            Refused: The daemon said no.
            Unreachable: The connection broke, or no answer came in time.
            BadReply: The answer is none.
        """
        command = self._codec.numbered(command)
        patient = getattr(command, "wait", False) or self._timeout_s is None
        self._link.send(self._codec.line(command))
        while True:
            line = self._link.receive(None if patient else self._timeout_s)
            message = self._codec.answer(line)
            if message.id == command.id or message.id is None:
                return self._codec.result(command, message)

    # --- what goes on -----------------------------------------------------------------------

    def subscribe(self, *topics: str) -> Generator[p.Snapshot | p.Event | p.Lagged, None, None]:
        """Yield a snapshot, then each change as it comes; no topics = all of `p.TOPICS`.

        Has a connection of its own, which ends with the generator (`close` it, or iterate within
        `contextlib.closing`), so other calls go on meanwhile.
        After `Lagged` comes another snapshot. Ends when the daemon does.

        Raises:
            Refused: There is no such topic.
            Unreachable: The connection broke.
        """
        for message in self._stream(p.Subscribe(topics=topics)):
            if isinstance(message, p.Snapshot | p.Event | p.Lagged):
                yield message

    def follow(self, model: str, *, lines: int = 0) -> Generator[p.LogLine, None, None]:
        """Yield the last `lines` lines of a model's worker, then each that comes.

        Has a connection of its own, as `subscribe` has.
        """
        command = p.Logs(model=model, lines=lines, follow=True)
        for message in self._stream(command):
            if isinstance(message, p.Ok):
                yield from self._codec.result(command, message).lines
            elif isinstance(message, p.Lines):
                yield from message.lines

    def _stream(self, command: p.Command[R]) -> Generator[p.AnyMessage, None, None]:
        codec = Codec()
        link = _Link.open(self._link.path)
        try:
            command = codec.numbered(command)
            link.send(codec.line(command))
            while True:
                try:
                    line = link.receive(None)
                except ConnectionEnded:
                    return
                message = codec.streamed(command, line)
                if message is None:
                    return
                yield message
        finally:
            link.close()


class ConnectionEnded(Unreachable):
    """The daemon hung up."""


class _Link:
    """Lines over a blocking socket."""

    def __init__(self, path: str, connected: socket.socket) -> None:
        self.path = path
        self._splitter = LineSplitter()
        self._lines: deque[bytes] = deque()
        self._socket = connected

    @classmethod
    def open(cls, *places: str) -> _Link:
        """Return a link to the first of the places where somebody listens."""
        tried: dict[str, OSError] = {}
        for path in places:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connect(path)
            except OSError as error:
                made.close()
                tried[path] = error
            else:
                return cls(path, made)
        raise nobody(tried)

    def send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(None)
            self._socket.sendall(data)
        except BrokenPipeError:
            return  # the daemon has hung up and may have said why: `receive` will tell
        except OSError as error:
            raise unreachable(self.path, error) from error

    def receive(self, timeout_s: float | None) -> bytes:
        while not self._lines:
            try:
                self._socket.settimeout(timeout_s)
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError:
                raise Unreachable(
                    f"llmd at {self.path} did not answer within {timeout_s:g} s"
                ) from None
            except OSError as error:
                raise unreachable(self.path, error) from error
            if not data:
                raise ConnectionEnded(f"llmd at {self.path} hung up")
            for line in self._splitter.feed(data):
                if isinstance(line, LineTooLong):
                    raise BadReply(str(line))
                self._lines.append(line)
        return self._lines.popleft()

    def close(self) -> None:
        self._socket.close()

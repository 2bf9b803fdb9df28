"""The admin socket for asyncio programs, such as `llmtui`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from llmd.admin import protocol as p
from llmd.admin.asking import Asking
from llmd.admin.calls import AdminError, BadReply, Codec, Unreachable, nobody, unreachable
from llmd.admin.framing import MAX_LINE_BYTES
from llmd.places import find_sockets

R = TypeVar("R")


class AsyncClient(Asking):
    """A connection to the daemon; calls may be made side by side.

    Use it as an async context manager, or `connect` and `close` it.

    Args:
        path: Of the socket; None looks in `$LLMD_SOCKET`, the runtime directory and /run/llmd.
        timeout_s: For an answer, except to what is asked to `wait`; None = no limit.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, timeout_s: float | None = 10.0
    ) -> None:
        self._places = find_sockets(path, os.environ)
        self.path = Path(self._places[0])
        self._timeout_s = timeout_s
        self._codec = Codec()
        self._link: _Link | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int | str, asyncio.Future[p.AnyMessage]] = {}

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect.

        Raises:
            Unreachable: There is no daemon, or this user may not use the socket.
        """
        self._link = await _Link.open(*self._places)
        self.path = Path(self._link.path)
        self._reading = asyncio.create_task(self._read(self._link))

    async def close(self) -> None:
        """Hang up; calls under way raise `Unreachable`. Idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()

    async def call(self, command: p.Command[R]) -> R:
        """Send a command and return its result. Cancelled, the daemon carries it out all the same.

        Raises:
            Refused: The daemon said no.
            Unreachable: The connection broke, or no answer came in time.
            BadReply: The answer is none.
        """
        link, reading = self._link, self._reading
        if link is None or reading is None or reading.done():
            raise Unreachable(f"not connected to llmd at {self.path}")
        command = self._codec.numbered(command)
        answer = self._answers[command.id] = asyncio.get_running_loop().create_future()
        try:
            await link.send(self._codec.line(command))
            timeout_s = None if getattr(command, "wait", False) else self._timeout_s
            message = await asyncio.wait_for(answer, timeout_s)
        except asyncio.TimeoutError:
            raise Unreachable(
                f"llmd at {self.path} did not answer within {self._timeout_s:g} s"
            ) from None
        finally:
            del self._answers[command.id]
        return self._codec.result(command, message)

    async def _read(self, link: _Link) -> None:
        """Hand each answer to who asked, until the connection ends."""
        broken: AdminError = Unreachable(f"hung up on llmd at {self.path}")
        try:
            while True:
                line = await link.receive()
                if line is None:
                    broken = Unreachable(f"llmd at {self.path} hung up")
                    return
                self._hand_out(self._codec.message(line))
        except AdminError as error:
            broken = error
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(broken)

    def _hand_out(self, message: p.AnyMessage) -> None:
        if message.id is None:  # about no command that the daemon could read
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_result(message)
            return
        waiting = self._answers.get(message.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    # --- what goes on -----------------------------------------------------------------------

    async def subscribe(
        self, *topics: str
    ) -> AsyncGenerator[p.Snapshot | p.Event | p.Lagged, None]:
        """Yield a snapshot, then each change as it comes; no topics = all of `p.TOPICS`.

        Has a connection of its own, which ends with the generator (`aclose` it, or iterate within
        `contextlib.aclosing`), so other calls go on meanwhile. After `Lagged` comes another
        snapshot. Ends when the daemon does.

        Raises:
            Refused: There is no such topic.
            Unreachable: The connection broke.
        """
        async for message in self._stream(p.Subscribe(topics=topics)):
            if isinstance(message, p.Snapshot | p.Event | p.Lagged):
                yield message

    async def follow(self, model: str, *, lines: int = 0) -> AsyncGenerator[p.LogLine, None]:
        """Yield the last `lines` lines of a model's worker, then each that comes.

        Has a connection of its own, as `subscribe` has.
        """
        command = p.Logs(model=model, lines=lines, follow=True)
        async for message in self._stream(command):
            if isinstance(message, p.Ok):
                for line in self._codec.result(command, message).lines:
                    yield line
            elif isinstance(message, p.Lines):
                for line in message.lines:
                    yield line

    async def _stream(self, command: p.Command[R]) -> AsyncGenerator[p.AnyMessage, None]:
        codec = Codec()
        link = await _Link.open(str(self.path))
        try:
            command = codec.numbered(command)
            await link.send(codec.line(command))
            while (line := await link.receive()) is not None:
                message = codec.streamed(command, line)
                if message is None:
                    return
                yield message
        finally:
            await link.close()


class _Link:
    """Lines over an asyncio stream."""

    def __init__(
        self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.path = path
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, *places: str) -> _Link:
        """Return a link to the first of the places where somebody listens."""
        tried: dict[str, OSError] = {}
        for path in places:
            try:
                streams = await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES + 1)
            except OSError as error:
                tried[path] = error
            else:
                return cls(path, *streams)
        raise nobody(tried)

    async def send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise unreachable(self.path, error) from error

    async def receive(self) -> bytes | None:
        """Return the next line; None when the daemon has hung up."""
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError as error:
            raise BadReply("the daemon sent a line that is too long") from error
        except OSError as error:
            raise unreachable(self.path, error) from error
        return line[:-1]

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # it was broken already

"""The admin socket for programs that block: scripts, and `llmctl`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from llmd.admin import protocol as p
from llmd.admin.calls import BadReply, Codec, Unreachable, unreachable
from llmd.admin.framing import LineSplitter, LineTooLong
from llmd.places import find_socket

R = TypeVar("R")
_RECEIVE_BYTES = 65536


class Client:
    """A connection to the daemon; every method asks one thing and returns the answer.

    Use it as a context manager, or `close` it. Not for several threads at once.

    Args:
        path: Of the socket; None looks in `$LLMD_SOCKET`, the runtime directory and /run/llmd.
        timeout_s: For an answer, except to what is asked to `wait`; None = no limit.

    Raises:
        Unreachable: There is no daemon, or this user may not use the socket.
    """

    def __init__(self, path: str | Path | None = None, *, timeout_s: float | None = 10.0) -> None:
        self.path = find_socket(path, os.environ)
        self._timeout_s = timeout_s
        self._codec = Codec()
        self._link = _Link(self.path)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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
            message = self._codec.message(line)
            if message.id == command.id or message.id is None:
                return self._codec.result(command, message)

    # --- commands ---------------------------------------------------------------------------

    def hello(self) -> p.Welcome:
        """Return who the daemon is and what this connection may do."""
        return self.call(p.Hello())

    def status(self) -> p.Status:
        """Return the daemon in one page."""
        return self.call(p.GetStatus())

    def models(self) -> p.Models:
        """Return the catalog."""
        return self.call(p.GetModels())

    def requests(
        self,
        *,
        state: str = "",
        model: str = "",
        key: str = "",
        ended: bool = False,
        limit: int = 1000,
    ) -> p.Requests:
        """Return requests, live ones first; with `ended` also those that are remembered."""
        return self.call(p.GetRequests(state=state, model=model, key=key, ended=ended, limit=limit))

    def queue(self) -> p.Queue:
        """Return the queue."""
        return self.call(p.GetQueue())

    def why(self, request: str) -> p.Story:
        """Return a request's whole story.

        Raises:
            Refused: It is not remembered.
        """
        return self.call(p.GetWhy(request=request))

    def version(self) -> p.Version:
        """Return the daemon's versions."""
        return self.call(p.GetVersion())

    def switch(
        self,
        model: str,
        *,
        evict: Sequence[str] = (),
        add: bool = False,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        dry_run: bool = False,
        wait: bool = False,
    ) -> p.Plan:
        """Load a model in the place of others, or with `dry_run` only say how.

        Args:
            model: To be loaded.
            evict: What goes for it; () lets the daemon choose.
            add: Load it beside the others, or not at all.
            drain_s: Requests that run this long on an evicted model are cancelled then; 0 = they
                may finish, None = as configured.
            force: Cancel them at once.
            if_gen: Refuse when the generation is another one by now.
            dry_run: Change nothing.
            wait: Return when it is loaded. There is no time limit.

        Raises:
            Refused: It does not fit, failed to load, is not known, or the generation has moved on.
        """
        return self.call(
            p.Switch(
                model=model,
                evict=tuple(evict),
                add=add,
                drain_s=drain_s,
                force=force,
                if_gen=if_gen,
                dry_run=dry_run,
                wait=wait,
            )
        )

    def load(self, model: str, *, if_gen: int | None = None, wait: bool = False) -> p.Plan:
        """Load a model beside the others; nothing is evicted for it."""
        return self.call(p.Load(model=model, if_gen=if_gen, wait=wait))

    def unload(
        self,
        model: str,
        *,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        wait: bool = False,
    ) -> p.Acted:
        """Take a model out of memory; arguments as for `switch`."""
        return self.call(
            p.Unload(model=model, drain_s=drain_s, force=force, if_gen=if_gen, wait=wait)
        )

    def restart(
        self,
        model: str,
        *,
        drain_s: float | None = None,
        force: bool = False,
        if_gen: int | None = None,
        wait: bool = False,
    ) -> p.Acted:
        """Unload a loaded model and load it again; arguments as for `switch`."""
        return self.call(
            p.Restart(model=model, drain_s=drain_s, force=force, if_gen=if_gen, wait=wait)
        )

    def reset(self, model: str) -> p.Acted:
        """Forget a model's crashes, so that a failed one may be tried again."""
        return self.call(p.Reset(model=model))

    def cancel(
        self,
        *requests: str,
        everything: bool = False,
        model: str = "",
        key: str = "",
    ) -> p.Cancelled:
        """Cancel the requests named, all that match, or everything; returns once they ended.

        Raises:
            Refused: None of those named is known.
        """
        return self.call(p.Cancel(requests=requests, all=everything, model=model, key=key))

    def stop(self, *, if_gen: int | None = None, wait: bool = False) -> p.Stopped:
        """Turn away what is queued and unload everything; the next request loads again."""
        return self.call(p.Stop(if_gen=if_gen, wait=wait))

    def drain(self, *, reject_queued: bool = False) -> p.Admission:
        """Admit nothing new; with `reject_queued` turn away what waits, too."""
        return self.call(p.Drain(reject_queued=reject_queued))

    def resume(self) -> p.Admission:
        """Admit again."""
        return self.call(p.Resume())

    def logs(self, model: str, *, lines: int = 200, after: int = 0) -> p.Log:
        """Return the last lines of a model's worker, those with a number above `after`."""
        return self.call(p.Logs(model=model, lines=lines, after=after))

    # --- what goes on -----------------------------------------------------------------------

    def subscribe(self, *topics: str) -> Iterator[p.Snapshot | p.Event | p.Lagged]:
        """Yield a snapshot, then each change as it comes; no topics = all of `p.TOPICS`.

        Has a connection of its own, which ends with the iterator, so other calls go on meanwhile.
        After `Lagged` comes another snapshot. Ends when the daemon does.

        Raises:
            Refused: There is no such topic.
            Unreachable: The connection broke.
        """
        for message in self._stream(p.Subscribe(topics=topics)):
            if isinstance(message, p.Snapshot | p.Event | p.Lagged):
                yield message

    def follow(self, model: str, *, lines: int = 0) -> Iterator[p.LogLine]:
        """Yield the last `lines` lines of a model's worker, then each that comes.

        Has a connection of its own, as `subscribe` has.
        """
        command = p.Logs(model=model, lines=lines, follow=True)
        for message in self._stream(command):
            if isinstance(message, p.Ok):
                yield from self._codec.result(command, message).lines
            elif isinstance(message, p.Lines):
                yield from message.lines

    def _stream(self, command: p.Command[R]) -> Iterator[p.AnyMessage]:
        codec = Codec()
        link = _Link(self.path)
        try:
            command = codec.numbered(command)
            link.send(codec.line(command))
            while True:
                try:
                    line = link.receive(None)
                except ConnectionEnded:
                    return
                message = codec.message(line)
                if isinstance(message, p.Failure):
                    codec.result(command, message)
                if isinstance(message, p.Ended):
                    return
                yield message
        finally:
            link.close()


class ConnectionEnded(Unreachable):
    """The daemon hung up."""


class _Link:
    """Lines over a blocking socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._splitter = LineSplitter()
        self._lines: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise unreachable(path, error) from error

    def send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(None)
            self._socket.sendall(data)
        except BrokenPipeError:
            return  # the daemon has hung up and may have said why: `receive` will tell
        except OSError as error:
            raise unreachable(self._path, error) from error

    def receive(self, timeout_s: float | None) -> bytes:
        while not self._lines:
            try:
                self._socket.settimeout(timeout_s)
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError:
                raise Unreachable(
                    f"llmd at {self._path} did not answer within {timeout_s:g} s"
                ) from None
            except OSError as error:
                raise unreachable(self._path, error) from error
            if not data:
                raise ConnectionEnded(f"llmd at {self._path} hung up")
            for line in self._splitter.feed(data):
                if isinstance(line, LineTooLong):
                    raise BadReply(str(line))
                self._lines.append(line)
        return self._lines.pop(0)

    def close(self) -> None:
        self._socket.close()

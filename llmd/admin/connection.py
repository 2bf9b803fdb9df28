"""One operator's connection: lines in, answers out, subscriptions beside them."""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable
from typing import get_args

import msgspec
import trio

from llmd import errors
from llmd.admin import protocol as p
from llmd.admin.commands import Actor, Commands
from llmd.admin.framing import LineSplitter, LineTooLong, clean_line
from llmd.admin.grammar import did_you_mean
from llmd.admin.hub import Hub, encode
from llmd.netio import SocketStream
from llmd.workers.logring import LogLine, LogRing

_MOST_TASKS = 64  # waits and subscriptions of one connection
_FOLLOW_PAUSE_S = 0.1
_FOLLOW_LINES = 500
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Head(msgspec.Struct):
    """What can be told of a line that is no command."""

    type: str = ""
    id: int | str | None = None


_decode: Callable[[bytes], p.AnyCommand] = msgspec.json.Decoder(p.AnyCommand).decode
_TAGS = sorted(str(kind.__struct_config__.tag) for kind in get_args(p.AnyCommand))
_decode_head = msgspec.json.Decoder(_Head).decode


class Refused(Exception):
    """A line that is not carried out; says so in a `Failure`."""

    def __init__(self, failure: p.Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def parse(line: bytes) -> p.AnyCommand:
    """Return the command in a line.

    Raises:
        Refused: There is none.
    """
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(_why_not(line, error)) from error
    except RecursionError as error:
        raise Refused(_invalid(None, "the JSON is nested too deep")) from error


def _why_not(line: bytes, error: msgspec.MsgspecError | UnicodeDecodeError) -> p.Failure:
    reason = "the line is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    try:
        head = _decode_head(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _invalid(None, f"this is no command: {reason}")
    if head.type in p.NOT_BUILT:
        message = f"{head.type} is not supported yet by this version of llmd"
        return p.Failure(id=head.id, code="not_supported", message=message)
    if head.type and head.type not in _TAGS:
        guess = did_you_mean(head.type[:100], _TAGS)
        message = f"there is no command {head.type[:100]!r}{guess}"
        return p.Failure(id=head.id, code="unknown_command", message=message)
    return _invalid(head.id, reason)


def _invalid(id_: int | str | None, message: str) -> p.Failure:
    return p.Failure(id=id_, code="invalid_request", message=message)


class Connection:
    """Serves one peer.

    Args:
        stream: To the peer; the caller closes it.
        actor: Who it is, and what he may do.
        commands: What answers.
        hub: For subscriptions.
        log_of: Returns a model's log, None when its worker was never started.
        moved: Waits until some worker moves.
    """

    def __init__(
        self,
        stream: SocketStream,
        actor: Actor,
        *,
        commands: Commands,
        hub: Hub,
        log_of: Callable[[str], LogRing | None],
        moved: Callable[[], Awaitable[None]],
    ) -> None:
        self._stream = stream
        self._actor = actor
        self._commands = commands
        self._hub = hub
        self._log_of = log_of
        self._moved = moved
        self._sending = trio.Lock()
        self._scopes: dict[int | str, trio.CancelScope] = {}
        self._tasks = 0
        self._scope = trio.CancelScope()

    async def serve(self) -> None:
        """Answer until the peer has gone, or has ended its side and everything is answered."""
        async with trio.open_nursery() as tasks:
            self._scope = tasks.cancel_scope
            try:
                await self._read(tasks)
            except _GONE:
                tasks.cancel_scope.cancel()
            if hung_up(self._stream):
                tasks.cancel_scope.cancel()

    async def _read(self, tasks: trio.Nursery) -> None:
        splitter = LineSplitter()
        while data := await self._stream.receive_some():
            for number, line in enumerate(splitter.feed(data)):
                if number:
                    # thousands of commands may come in one piece: others have their turn between;
                    # shielded, since what came before a hang-up is still carried out
                    await trio.lowlevel.cancel_shielded_checkpoint()
                await self._line(line, tasks)
        if splitter.partial:
            message = "the last line has no end; a command ends with a line break"
            await self._send(p.Failure(code="incomplete_line", message=message))

    async def _line(self, line: bytes | LineTooLong, tasks: trio.Nursery) -> None:
        if isinstance(line, LineTooLong):
            await self._send(p.Failure(code="line_too_long", message=str(line)))
            return
        if not line.strip():
            return
        try:
            command = parse(line)
        except Refused as refused:
            await self._send(refused.failure)
            return
        try:
            await self._carry_out(command, tasks)
        except errors.LlmdError as error:
            await self._send(failure(command.id, error))

    async def _carry_out(self, command: p.AnyCommand, tasks: trio.Nursery) -> None:
        match command:
            case p.Subscribe():
                topics = self._topics(command)
                self._begin(command.id, tasks, self._subscription, command.id, topics)
            case p.Logs():
                await self._logs(command, tasks)
            case p.Unsubscribe():
                await self._unsubscribe(command)
            case _:
                self._room()
                answer = self._commands.answer(command, self._actor)
                if isinstance(answer, p.View):
                    await self._send_ok(command.id, answer)
                else:
                    self._tasks += 1
                    tasks.start_soon(self._later, command.id, answer)

    async def _later(self, id_: int | str, answer: Awaitable[p.View]) -> None:
        try:
            view = await answer
        except errors.LlmdError as error:
            await self._send(failure(id_, error))
        else:
            await self._send_ok(id_, view)
        finally:
            self._tasks -= 1

    # --- what goes on by itself -------------------------------------------------------------

    def _room(self) -> None:
        """Refuse more than one connection may have under way.

        Raises:
            RateLimitExceeded: It has as much as it may.
        """
        if self._tasks >= _MOST_TASKS:
            raise errors.RateLimitExceeded(
                f"this connection has {_MOST_TASKS} commands and subscriptions under way"
            )

    def _begin(
        self,
        id_: int | str,
        tasks: trio.Nursery,
        run: Callable[..., Awaitable[str]],
        *arguments: object,
    ) -> None:
        """Start what goes on until `Unsubscribe`.

        Raises:
            InvalidRequest: There is something of that id already.
        """
        self._room()
        if id_ in self._scopes:
            raise errors.InvalidRequest(f"the id {id_!r} belongs to a subscription already")
        self._tasks += 1
        self._scopes[id_] = scope = trio.CancelScope()
        tasks.start_soon(self._go_on, id_, scope, run, *arguments)

    async def _go_on(
        self,
        id_: int | str,
        scope: trio.CancelScope,
        run: Callable[..., Awaitable[str]],
        *arguments: object,
    ) -> None:
        try:
            reason = await run(*arguments, scope)
            await self._send(p.Ended(id=id_, reason=reason))
        finally:
            self._tasks -= 1
            del self._scopes[id_]

    async def _unsubscribe(self, command: p.Unsubscribe) -> None:
        scope = self._scopes.get(command.subscription)
        if scope is None:
            raise errors.NotFound(f"there is no subscription {command.subscription!r}")
        scope.cancel()
        await self._send_ok(command.id, p.Done())

    @staticmethod
    def _topics(command: p.Subscribe) -> frozenset[str]:
        unknown = sorted(set(command.topics) - set(p.TOPICS))
        if unknown:
            raise errors.InvalidRequest(
                f"there is no topic {unknown[0][:100]!r}; there are {', '.join(p.TOPICS)}",
                param="topics",
            )
        return frozenset(command.topics or p.TOPICS)

    async def _subscription(
        self, id_: int | str, topics: frozenset[str], scope: trio.CancelScope
    ) -> str:
        """Send what the hub has; only the waiting is cancelled, so that no line is cut."""
        subscription = self._hub.subscribe(id_, topics)
        try:
            while True:
                with scope:
                    data = await subscription.next()
                if scope.cancelled_caught or scope.cancel_called:
                    return "unsubscribed"
                scope = self._renewed(id_)
                await self._send_bytes(data)
        finally:
            self._hub.unsubscribe(subscription)

    def _renewed(self, id_: int | str) -> trio.CancelScope:
        """Return a fresh scope for the next wait: each may be entered once."""
        self._scopes[id_] = scope = trio.CancelScope()
        return scope

    async def _logs(self, command: p.Logs, tasks: trio.Nursery) -> None:
        model = self._commands.model(command.model).name
        ring = self._log_of(model)
        lines = ring.tail(command.lines, after=command.after) if ring else ()
        seen = ring.sequence if ring else 0
        if command.follow:
            # begun before the answer goes out, so that a refusal is the only answer
            self._begin(command.id, tasks, self._follow, command.id, model, seen)
        await self._send_ok(command.id, p.Log(model=model, lines=tuple(map(_line, lines))))

    async def _follow(self, id_: int | str, model: str, seen: int, scope: trio.CancelScope) -> str:
        known = seen
        while True:
            with scope:
                seen_ring = await self._newer(model, known)
            if scope.cancelled_caught or scope.cancel_called:
                return "unsubscribed"
            scope = self._renewed(id_)
            lines = seen_ring.since(seen)[:_FOLLOW_LINES]
            if not lines:  # what came was forgotten, and what came after it was blank
                known = seen_ring.sequence
                continue
            missed = lines[-1].sequence - seen - len(lines)
            known = seen = lines[-1].sequence
            await self._send(
                p.Lines(id=id_, model=model, lines=tuple(map(_line, lines)), missed=missed)
            )

    async def _newer(self, model: str, seen: int) -> LogRing:
        """Wait until a model's log has lines after `seen`, a few together when they are many."""
        while (ring := self._log_of(model)) is None:
            await self._moved()
        await ring.newer(seen)
        await trio.sleep(_FOLLOW_PAUSE_S)
        return ring

    # --- sending ----------------------------------------------------------------------------

    async def _send_ok(self, id_: int | str, view: p.View) -> None:
        await self._send(p.Ok(id=id_, result=msgspec.Raw(encode(view))))

    async def _send(self, message: p.Message) -> None:
        await self._send_bytes(clean_line(encode(message)) + b"\n")

    async def _send_bytes(self, data: bytes) -> None:
        """Send whole lines; a peer that has gone ends the connection."""
        try:
            if self._sending.locked():
                await self._sending.acquire()
            else:
                self._sending.acquire_nowait()  # the common case does without a trip of the loop
            try:
                await self._stream.send_all(data)
            finally:
                self._sending.release()
        except _GONE:
            self._scope.cancel()
            await trio.lowlevel.checkpoint()


def failure(id_: int | str | None, error: errors.LlmdError) -> p.Failure:
    """Return an error as the protocol has it."""
    return p.Failure(
        id=id_, code=error.code, message=error.message, retry_after_s=error.retry_after_s
    )


def _line(line: LogLine) -> p.LogLine:
    return p.LogLine(
        seq=line.sequence, at=round(line.at, 3), stream=line.stream.value, text=line.text
    )


def hung_up(stream: SocketStream) -> bool:
    """Tell whether the peer has gone for good, and not only ended its side."""
    if stream.socket.fileno() < 0:
        return True  # we hung up ourselves
    poll = select.poll()
    poll.register(stream.socket, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

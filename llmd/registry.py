"""Every request that is on its way, and the last ones that ended.

The registry gives out ids, is the one place from which a request is cancelled, and keeps each
record until `request_history` newer ones have ended.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator

import trio

from llmd import errors
from llmd.core.events import Rule
from llmd.core.lifecycle import RequestState
from llmd.core.record import CancelCause, RequestRecord

_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


GONE = 499
"""The status of a request whose client left before it got one."""

WORKER_ERROR = "worker_error"
"""The code, in records and metrics only, of what the worker itself refused or failed at."""


class Handle:
    """A request on its way: its record, and the scope that ends it.

    Attributes:
        record: The one record, written by the request's own task.
        scope: Set by the request's task around all its work.
        cause: The first reason for which it was ended from outside, or None.
        by: Who ended it, where that was a person.
        why: For what its client was dropped; "" for all other ends.
        rule: By which rule its model had to go, where that is what ended it; else None.
        settle: Set once the key's limits were charged: called once at the end with the tokens
            really used, or None when the request cost nothing.
        worker_status: The status of an error that the worker itself answered, 0 without one.
    """

    __slots__ = (
        "_closed",
        "by",
        "cause",
        "record",
        "rule",
        "scope",
        "settle",
        "why",
        "worker_status",
    )

    def __init__(self, record: RequestRecord, scope: trio.CancelScope) -> None:
        self.record = record
        self.scope = scope
        self.cause: CancelCause | None = None
        self.by = ""
        self.why = ""
        self.rule: Rule | None = None
        self.settle: Callable[[int | None], None] | None = None
        self.worker_status = 0
        self._closed: trio.Event | None = None  # made by the first who waits: few are waited for

    async def closed(self) -> None:
        """Wait until the request has ended and the registry only remembers it."""
        if not self.record.ended:
            if self._closed is None:
                self._closed = trio.Event()
            await self._closed.wait()

    def _close(self) -> None:
        if self._closed is not None:
            self._closed.set()

    def cancel(self, cause: CancelCause, by: str = "") -> None:
        """End the request; returns at once, the request's own task cleans up.

        Args:
            cause: Why; the first one counts.
            by: Who, for operators to read; no client is told.
        """
        if self.cause is None:
            self.cause, self.by = cause, by
        self.scope.cancel()

    def abandon(self, why: str = "") -> None:
        """End the request because its client has gone.

        Args:
            why: For what we dropped it; "" when it left by itself.
        """
        if self.cause is None:
            self.why = why
        self.cancel(CancelCause.CLIENT_GONE)

    def evict(self, rule: Rule) -> None:
        """End the request because its model has to go, by `rule`, and it had its time to finish."""
        if self.cause is None:
            self.rule = rule
        self.cancel(CancelCause.EVICTED)

    def verdict(self, timeout_s: float) -> errors.LlmdError | None:
        """Say why the scope was cancelled, as the client is told; None when it has left."""
        match self.cause:
            case None:
                self.cause = CancelCause.TIMEOUT
                return errors.RequestTimedOut(
                    f"the request was not done within {timeout_s:g} s, queueing included "
                    "(limits.request_timeout_sec)"
                )
            case CancelCause.CLIENT_GONE:
                return None
            case CancelCause.OWNER:
                return errors.RequestCancelled("the request was cancelled by its owner")
            case CancelCause.SHUTDOWN:
                return errors.ShuttingDown("llmd is shutting down; try again in a moment")
            case CancelCause.EVICTED if self.rule is Rule.OPERATOR:
                return errors.RequestCancelled(
                    "the request was cancelled: an operator had its model unloaded and gave it no "
                    "more time to finish"
                )
            case CancelCause.EVICTED:
                return errors.RequestCancelled(
                    "the request was cancelled: its model had to make room and the time to "
                    "finish was over (scheduler.max_drain_sec)"
                )
            case _:
                return errors.RequestCancelled("the request was cancelled by an operator")

    def end(self, error: errors.LlmdError | None, status: int, now: float) -> None:
        """Write the record's end: the one that the cause says, else the error, else done.

        Args:
            error: What the request ended with, None when it did not fail.
            status: The HTTP status that was sent when there is no error; 0 when nothing was.
            now: Monotonic seconds.
        """
        failed = error.status if error else self.worker_status
        code, reason = (error.code, error.message) if error else ("", "")
        if error is None and failed:
            code, reason = WORKER_ERROR, f"the model's worker itself answered {failed}"
        if self.cause is not None:
            state = _CAUSED.get(self.cause, RequestState.CANCELLED)
        elif not failed:
            state = RequestState.DONE
        elif self.record.granted_at is None or failed < 500:
            state = RequestState.REFUSED
        else:
            state = RequestState.FAILED
        self.record.end(
            state,
            now,
            status=error.status if error else status or GONE,
            code=code,
            reason=self.why or reason,
            cause=self.cause,
            by=self.by,
        )


_CAUSED = {
    CancelCause.CLIENT_GONE: RequestState.ABANDONED,
    CancelCause.TIMEOUT: RequestState.TIMED_OUT,
}


class Registry:
    """All requests, live and remembered.

    Args:
        history: How many ended requests are remembered.
        wall_clock: For `created`.
        on_close: Told of each request that has ended; must neither block nor raise.
    """

    def __init__(
        self,
        history: int,
        wall_clock: Callable[[], float] = time.time,
        on_close: Callable[[RequestRecord], None] = lambda _record: None,
    ) -> None:
        self._history = history
        self._on_close = on_close
        self._wall_clock = wall_clock
        self._live: dict[str, Handle] = {}
        self._ended: dict[str, RequestRecord] = {}

    def fresh_id(self, wanted_id: bytes) -> str:
        """Return the client's own `X-Request-Id` if it is well formed and free, else a new id."""
        request_id = wanted_id.decode("latin-1")
        taken = request_id in self._live or request_id in self._ended
        if taken or not _CLIENT_ID.fullmatch(wanted_id):
            return f"r-{secrets.token_hex(8)}"
        return request_id

    def open(self, *, wanted_id: bytes, path: str, client: str) -> Handle:
        """Begin a request of a caller who is known; see `begin`."""
        handle = self.begin(wanted_id=wanted_id, path=path, client=client)
        self.enter(handle)
        return handle

    def begin(self, *, wanted_id: bytes, path: str, client: str) -> Handle:
        """Begin a request that nobody is told of before it has entered.

        Whoever has no key would else fill the history, and take ids from those who have one.

        Args:
            wanted_id: The client's `X-Request-Id`; taken if it is well formed and free.
            path: The request's path.
            client: The client's address.
        """
        request_id = self.fresh_id(wanted_id)
        now = trio.current_time()
        record = RequestRecord(
            id=request_id, path=path, client=client, created=self._wall_clock(), received=now
        )
        return Handle(record, trio.CancelScope())

    def enter(self, handle: Handle) -> None:
        """List a request, now that its caller is known; with no checkpoint since it began."""
        assert handle.record.id not in self._live
        self._live[handle.record.id] = handle

    def entered(self, handle: Handle) -> bool:
        """Tell whether a request is listed, and is to be closed."""
        return self._live.get(handle.record.id) is handle

    def close(self, handle: Handle) -> None:
        """End a request that had entered: now it is only remembered. Its record has its end."""
        record = handle.record
        assert record.ended
        del self._live[record.id]
        if self._history:
            if len(self._ended) >= self._history:
                del self._ended[next(iter(self._ended))]
            self._ended[record.id] = record
        handle._close()
        self._on_close(record)

    def live(self, request_id: str) -> Handle | None:
        """Return a request that is on its way."""
        return self._live.get(request_id)

    def record(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request, live or remembered."""
        handle = self._live.get(request_id)
        return handle.record if handle else self._ended.get(request_id)

    def completion(self, completion_id: str) -> RequestRecord | None:
        """Return the record of the completion that a worker's answer calls so."""
        for record in self.records():
            if record.completion_id == completion_id:
                return record
        return None

    def handles(self) -> list[Handle]:
        """Return the requests that are on their way, the oldest first."""
        return list(self._live.values())

    def records(self) -> Iterator[RequestRecord]:
        """Yield every record, live ones first, then the ended ones, the newest first."""
        for handle in list(self._live.values()):
            yield handle.record
        yield from reversed(list(self._ended.values()))

    def __len__(self) -> int:
        return len(self._live)

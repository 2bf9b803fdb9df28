"""The one record of a request: everything that is ever said about it is rendered from here.

Metrics, the log line, the row of the request log, `/requests` and the operators' screen read it;
one writer, the request's own task, moves it along. It holds no prompt text and no key.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from llmd.core.events import Why
from llmd.core.lifecycle import REQUEST_ENDS, REQUEST_MOVES, Priority, RequestState, move

_MAX_TEXT = 500
_CUT_OFF = REQUEST_ENDS - {RequestState.DONE, RequestState.REFUSED}


class CancelCause(str, Enum):
    """Who or what ended a request early."""

    OWNER = "owner"  # the key that sent it asked for it
    OPERATOR = "operator"  # an admin asked for it: this one or all of them
    CLIENT_GONE = "client_gone"  # the connection ended, or took no bytes for too long
    TIMEOUT = "timeout"  # `limits.request_timeout_sec`
    EVICTED = "evicted"  # its model had to go and the drain was over, or forced
    SHUTDOWN = "shutdown"  # the daemon's own drain was over


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """What others see of a request, at one moment.

    Times are milliseconds, None where the request never got so far. `created` is Unix seconds.
    Tokens are the worker's counts, 0 until it gave them; `events` counts what has been decoded so
    far, `prefill_tokens` of `prefill_total_tokens` what has been read of a long prompt.
    `duration_ms` runs on until the end.
    """

    id: str
    state: RequestState
    key: str
    user: str
    role: str
    client: str
    path: str
    model: str
    priority: Priority
    stream: bool
    sequences: int
    created: float
    queue_ms: float | None
    first_token_ms: float | None
    duration_ms: float
    estimate_tokens: int
    max_tokens: int | None
    temperature: float | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill_tokens: int
    prefill_total_tokens: int
    events: int
    request_bytes: int
    response_bytes: int
    status: int
    code: str
    reason: str
    cancel_cause: CancelCause | None
    retries: int
    worker_pid: int
    completion_id: str


class RequestRecord(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One request from its head to its end. Compared by identity; holds only plain values.

    Attributes:
        id: What `X-Request-Id` says.
        received: When its head was complete, in monotonic seconds, as are all `*_at`.
        created: The same moment in Unix seconds.
        path: The route or path, cut to 500 characters.
        client: The client's address, as far as proxies are believed.
        key: Name of the API key, "anonymous" in open mode, "" before authentication.
        fingerprint: Of that key; told to operators only.
        user: Whose key it is.
        role: "user" or "admin", "" before authentication.
        model: The name it resolved to; "" before that. Never what a client wrote.
        priority: Its class, capped by the key.
        stream: The client asked for events.
        sequences: Sequences that decode side by side.
        state: Where it is; only the methods below move it.
        queued_at: When it began to wait, last; None before.
        granted_at: When it got its lease, last; None before.
        first_byte_at: When the first byte of the answer came from the worker.
        ended_at: When it reached its end.
        waited_s: Seconds in the queue, over all its stays there.
        estimate_tokens: Prompt and completion of all sequences, as limits counted them.
        prompt_estimate_tokens: The prompt's part of it, over all sequences.
        max_tokens: As asked for, or filled in from the config; None when nobody named any.
        temperature: As asked for, or filled in from the config; None when nobody named any.
        prompt_tokens: The worker's count, cached ones included; 0 until known.
        completion_tokens: The worker's count; 0 until known.
        cached_tokens: Prompt tokens that the worker did not have to compute.
        prefill_tokens: Prompt tokens that the worker has read so far, cached ones included; 0
            where it does not report.
        prefill_total_tokens: All of that prompt; 0 where it does not report.
        events: Decoded pieces that have come so far.
        request_bytes: Length of the request's body.
        response_bytes: Bytes of body sent to the client so far.
        status: HTTP status that was or would have been sent; 0 before.
        code: Code of the error that ended it; "" without one.
        reason: Why it ended so, for a person; cut to 500 characters.
        cancel_cause: Set when somebody or something ended it early.
        cancelled_by: Who that was, where it was a person; told to operators only.
        retries: Leases that were lost to a worker's death and asked for again.
        worker_pid: The worker that has or had it last; 0 before.
        completion_id: The worker's own id of the completion, which its answer carries; "" until
            that has begun.
        story: What it waited for, step by step, in stays in the queue that are over.
    """

    id: str
    received: float
    created: float
    path: str = ""
    client: str = ""
    key: str = ""
    fingerprint: str = ""
    user: str = ""
    role: str = ""
    model: str = ""
    priority: Priority = Priority.NORMAL
    stream: bool = False
    sequences: int = 1
    state: RequestState = RequestState.RECEIVED
    queued_at: float | None = None
    granted_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    waited_s: float = 0.0
    estimate_tokens: int = 0
    prompt_estimate_tokens: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    prefill_total_tokens: int = 0
    events: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    code: str = ""
    reason: str = ""
    cancel_cause: CancelCause | None = None
    cancelled_by: str = ""
    retries: int = 0
    worker_pid: int = 0
    completion_id: str = ""
    story: tuple[Why, ...] = ()

    def __post_init__(self) -> None:
        if len(self.path) > _MAX_TEXT:  # finished records are remembered by the thousand
            self.path = self.path[:_MAX_TEXT]

    # --- its way; each raises lifecycle.IllegalMove when it is not the next step ------------

    def enqueue(self, now: float) -> None:
        """Let it wait for a lease: the first time, or again after its worker died."""
        retry = self.state in (RequestState.PREFILL, RequestState.DECODE)
        self.state = move(REQUEST_MOVES, self.state, RequestState.QUEUED)
        self.queued_at = now
        self.retries += retry

    def grant(self, now: float, *, worker_pid: int = 0) -> None:
        """Give it its lease; the worker begins with the prompt."""
        if self.state is RequestState.QUEUED and self.queued_at is not None:
            self.waited_s += max(0.0, now - self.queued_at)
        self.state = move(REQUEST_MOVES, self.state, RequestState.PREFILL)
        self.granted_at = now
        self.worker_pid = worker_pid
        self.prefill_tokens = self.prefill_total_tokens = 0  # of a worker that has died since
        self.completion_id = ""
        self.first_byte_at = None
        self.events = 0

    def prefill(self, done_tokens: int, total_tokens: int, cached_tokens: int) -> None:
        """Note how much of its prompt the worker has read.

        Of several prompts, the one that the worker reported on last.

        Args:
            done_tokens: Read so far, cached ones included.
            total_tokens: The whole prompt.
            cached_tokens: Those of `done_tokens` that did not have to be computed.
        """
        self.prefill_tokens = done_tokens
        self.prefill_total_tokens = total_tokens
        self.cached_tokens = cached_tokens

    def first_byte(self, now: float) -> None:
        """Note that the first byte of the answer has come from the worker."""
        self.state = move(REQUEST_MOVES, self.state, RequestState.DECODE)
        self.first_byte_at = now

    def end(
        self,
        state: RequestState,
        now: float,
        *,
        status: int,
        code: str = "",
        reason: str = "",
        cause: CancelCause | None = None,
        by: str = "",
    ) -> None:
        """Close it.

        Args:
            state: One of the ends.
            now: Monotonic seconds.
            status: HTTP status that the client got, or would have got.
            code: The error's code, "" without one.
            reason: Why, for a person.
            cause: What ended it early, if something did.
            by: Who did that.

        Raises:
            IllegalMove: It has ended before, or `state` is no end that can follow.
        """
        if state not in REQUEST_ENDS:
            raise ValueError(f"{state.value} is no end")
        if self.state is RequestState.QUEUED and self.queued_at is not None:
            self.waited_s += max(0.0, now - self.queued_at)
        self.state = move(REQUEST_MOVES, self.state, state)
        self.ended_at = now
        self.status = status
        self.code = code
        self.reason = reason[:_MAX_TEXT]
        self.cancel_cause = cause
        self.cancelled_by = by[:_MAX_TEXT]

    # --- what follows from it --------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """True once it has reached an end."""
        return self.ended_at is not None

    @property
    def outcome(self) -> str:
        """The word for its end; "" while it has none."""
        return self.state.value if self.ended_at is not None else ""

    @property
    def time_to_first_token_s(self) -> float | None:
        """From its head to the first byte of the answer; None without one."""
        if self.first_byte_at is None:
            return None
        return max(0.0, self.first_byte_at - self.received)

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean distance of output tokens within a sequence; None with fewer than two."""
        if self.first_byte_at is None or self.ended_at is None:
            return None
        steps = self.completion_tokens / max(1, self.sequences) - 1
        return (self.ended_at - self.first_byte_at) / steps if steps >= 1 else None

    @property
    def used_tokens(self) -> int:
        """What it cost, to settle limits and shares with: prompt and completion.

        A worker that was cancelled never says; then the estimate of the prompt and the events that
        came stand in. 0 for a request that never had a lease.
        """
        if self.granted_at is None:
            return 0
        prompt = self.prompt_tokens or self.prompt_estimate_tokens
        return prompt + (self.completion_tokens or self.events)

    @property
    def served_tokens(self) -> tuple[int, int, int]:
        """Prompt, completion and cached tokens that the worker computed for it, for statistics.

        The worker's counts where it gave them. One that was cut off never does: then what it had
        read of the prompt and the pieces that came stand in.
        """
        if self.prompt_tokens or self.completion_tokens or self.state not in _CUT_OFF:
            return self.prompt_tokens, self.completion_tokens, self.cached_tokens
        read = self.prefill_total_tokens or self.prompt_estimate_tokens
        prompt = self.prefill_tokens if self.first_byte_at is None else read
        return prompt, self.events, self.cached_tokens

    def queue_s(self, now: float) -> float | None:
        """Seconds in the queue so far; None when it was never there."""
        if self.queued_at is None:
            return None
        waiting = self.state is RequestState.QUEUED
        return self.waited_s + (max(0.0, now - self.queued_at) if waiting else 0.0)

    def duration_s(self, now: float) -> float:
        """Seconds from its head to its end, or to `now`."""
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.received)

    def view(self, now: float) -> RequestView:
        """Return what others may see of it at `now`."""
        return RequestView(
            id=self.id,
            state=self.state,
            key=self.key,
            user=self.user,
            role=self.role,
            client=self.client,
            path=self.path,
            model=self.model,
            priority=self.priority,
            stream=self.stream,
            sequences=self.sequences,
            created=self.created,
            queue_ms=_ms(self.queue_s(now)),
            first_token_ms=_ms(self.time_to_first_token_s),
            duration_ms=round(self.duration_s(now) * 1000, 3),
            estimate_tokens=self.estimate_tokens,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            prefill_tokens=self.prefill_tokens,
            prefill_total_tokens=self.prefill_total_tokens,
            events=self.events,
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
            status=self.status,
            code=self.code,
            reason=self.reason,
            cancel_cause=self.cancel_cause,
            retries=self.retries,
            worker_pid=self.worker_pid,
            completion_id=self.completion_id,
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)

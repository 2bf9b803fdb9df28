"""Requests and the queue as they are told."""

from __future__ import annotations

from collections.abc import Mapping

from llmd.admin.protocol.base import View


class Why(View, frozen=True, kw_only=True):
    """What a request waits for, or waited for, in the scheduler's own words.

    Attributes:
        at: When the rule began to hold, in Unix seconds.
        rule: By which rule: `slots_busy`, `behind`, `model_loading`, `granted`, ...
        blockers: Requests or models in the way, the nearest first, at most 8.
        position: Place in line for its model, from 1; 0 when it does not wait.
        detail: The same for a person.
    """

    at: float
    rule: str
    blockers: tuple[str, ...] = ()
    position: int = 0
    detail: str = ""


class Request(View, frozen=True, kw_only=True):
    """One request.

    Attributes:
        id: What `X-Request-Id` says.
        state: `received`, `queued`, `prefill`, `decode`, or an end: `done`, `refused`,
            `cancelled`, `abandoned`, `failed`, `timed_out`.
        model: Once it is resolved.
        key, user, role: Who sent it, once that is known.
        fingerprint: The ends of its key's digest, as `3a..f1`; "" where there is no key.
        client: From which address.
        path: Of the HTTP request.
        priority: `high`, `normal` or `low`.
        stream: The client asked for events.
        sequences: Sequences that decode side by side.
        received_at, queued_at, granted_at, first_token_at, ended_at: Its way.
        wait_s: In the queue, over all stays that are over.
        estimate_tokens: Prompt and completion, as limits count them.
        prompt_tokens: The worker's count, else the estimate (`prompt_exact` says which).
        cached_tokens: Of the prompt, need not be computed; known at the end.
        completion_tokens: So far.
        max_tokens: As asked for; None when it asked for no limit.
        temperature: As asked for or filled in; None when nobody named any.
        tokens_per_s: Of the last seconds, while it decodes.
        progress: 0 to 1 of `max_tokens` while it decodes; of the prompt while it prefills, when
            that is known.
        eta_at: When it is expected to be granted (queued), or to end at the latest (decode).
        silent_since_at: When its last token came, if that is long ago.
        position: Place in line for its model; 0 when it does not wait.
        why: What it waits for.
        retries: How often its worker died under it before a byte had come.
        worker_pid: Where it runs; 0 when that is not known.
        request_bytes, response_bytes: Of the bodies.
        status, code, reason, cancel_cause: How it ended.
        cancelled_by: Who ended it early, where that was a person.
    """

    id: str
    state: str
    model: str = ""
    key: str = ""
    fingerprint: str = ""
    user: str = ""
    role: str = ""
    client: str = ""
    path: str = ""
    priority: str = "normal"
    stream: bool = False
    sequences: int = 1
    received_at: float
    queued_at: float | None = None
    granted_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    wait_s: float = 0.0
    estimate_tokens: int = 0
    prompt_tokens: int = 0
    prompt_exact: bool = False
    cached_tokens: int = 0
    completion_tokens: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    tokens_per_s: float | None = None
    progress: float | None = None
    eta_at: float | None = None
    silent_since_at: float | None = None
    position: int = 0
    why: Why | None = None
    retries: int = 0
    worker_pid: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    code: str = ""
    reason: str = ""
    cancel_cause: str = ""
    cancelled_by: str = ""

    @property
    def ended(self) -> bool:
        """True once it has reached an end."""
        return self.ended_at is not None


class Requests(View, frozen=True, kw_only=True):
    """Requests, live ones first, then the newest; `total` is how many matched."""

    requests: tuple[Request, ...]
    total: int


class Story(View, frozen=True, kw_only=True):
    """A request's whole story: the request, and each step of its waiting.

    Attributes:
        limited: Answers of 429 that its key has had in the last five minutes.
    """

    request: Request
    steps: tuple[Why, ...]
    limited: int = 0


class QueueModel(View, frozen=True, kw_only=True):
    """What waits for one model, and how fast it moves.

    Attributes:
        queued: By class.
        service_s: Moving average of how long a lease lasts.
        load_s: Moving average of a load, or what one is expected to take; 0 = not known.
    """

    model: str
    running: int = 0
    queued: Mapping[str, int] = {}
    queued_tokens: int = 0
    oldest_at: float | None = None
    service_s: float | None = None
    load_s: float = 0.0


class QueueKey(View, frozen=True, kw_only=True):
    """A key that has something queued or running; who has the least `counter` goes first."""

    key: str
    queued: int = 0
    running: int = 0
    counter: float = 0.0


class Queue(View, frozen=True, kw_only=True):
    """The queue at one moment; limits of 0 are none."""

    admission_open: bool
    queued: int
    queued_tokens: int
    max_queued: int
    max_queued_tokens: int
    by_class: Mapping[str, int]
    models: tuple[QueueModel, ...] = ()
    keys: tuple[QueueKey, ...] = ()

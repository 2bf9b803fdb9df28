"""The admin protocol: what can be asked and what is answered, as typed data.

Newline-delimited JSON. A client sends a `Command` and gets an `Ok` or a `Failure` with the same
`id`; `Subscribe`, and `Logs` with `follow`, send more messages with that `id` until it ends. The
daemon refuses fields and types it does not know; clients ignore fields they do not know.

Durations end in `_s` and are seconds. Moments end in `_at` and are Unix seconds, so that a row
changes only when something happened and not because time passes. States and classes are the words
of the rest of llmd. None means "not known", or "not so".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

PROTOCOL = 1

R = TypeVar("R")

Id: TypeAlias = int | Annotated[str, Meta(max_length=128)]
Name: TypeAlias = Annotated[str, Meta(max_length=1024)]
Names: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=10_000)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=86400)]


# --- what is told: views -------------------------------------------------------------------


class View(Struct, frozen=True, kw_only=True):
    """What all answers share: immutable, and open to fields of newer daemons."""


class Welcome(View, frozen=True, kw_only=True):
    """The answer to `Hello`.

    Attributes:
        protocol: Version of this protocol.
        version: Of the daemon.
        access: "write" or "read": what this connection may do.
        generation: Grows whenever what is loaded changes.
        pid: The daemon's process.
    """

    protocol: int
    version: str
    access: str
    generation: int
    pid: int = 0


class Daemon(View, frozen=True, kw_only=True):
    """The daemon at one moment.

    Attributes:
        version: Of llmd.
        pid: Its process.
        host: The box's name.
        started_at: When it started.
        state: `ok`, `loading` (preloading), `draining` (on its way out) or `failed` (no model can
            be served).
        admission_open: False while an operator keeps requests out.
        generation: Grows whenever what is loaded, or is decided to be loaded, changes.
        url: Where its HTTP API listens.
    """

    version: str
    pid: int
    host: str
    started_at: float
    state: str
    admission_open: bool
    generation: int
    url: str = ""


class Gpu(View, frozen=True, kw_only=True):
    """One GPU.

    Attributes:
        name: As its driver calls it.
        utilization: 0 to 1.
        memory_used_bytes, memory_total_bytes: Of it.
        temperature_c: Degrees Celsius.
        power_w: Watts.
    """

    name: str
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Totals(View, frozen=True, kw_only=True):
    """The box in a line. Rates are of the last seconds, percentiles and counts as named.

    Attributes:
        running: Requests that hold a slot.
        slots, slots_busy: Of all loaded models.
        queued: Requests that wait; of at most `max_queued` (0 = no limit).
        queued_tokens: Sum of their estimates.
        oldest_at: When the one that has waited longest came; None when nobody waits.
        tokens_per_s: Generated.
        prefill_tokens_per_s: Prompt tokens computed; known once a request ends.
        first_token_p50_s, first_token_p95_s, wait_p95_s: Over the last 5 minutes.
        limited_per_min: Requests refused for their key's limits (429) in the last minute.
        errors_5m: Requests that failed or timed out in the last 5 minutes.
        ended_5m: Requests that reached any end in the last 5 minutes.
        memory_held_bytes: What all workers hold in main memory.
        memory_limit_bytes: What models may hold; 0 = not known.
        memory_total_bytes: Of the box.
        gpus: None when they are not measured.
    """

    running: int = 0
    slots: int = 0
    slots_busy: int = 0
    queued: int = 0
    max_queued: int = 0
    queued_tokens: int = 0
    oldest_at: float | None = None
    tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    first_token_p50_s: float | None = None
    first_token_p95_s: float | None = None
    wait_p95_s: float | None = None
    limited_per_min: int = 0
    errors_5m: int = 0
    ended_5m: int = 0
    memory_held_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_total_bytes: int = 0
    gpus: tuple[Gpu, ...] | None = None


class Worker(View, frozen=True, kw_only=True):
    """One model's worker, also one that was never started.

    Attributes:
        model: Its model.
        state: `off`, `starting`, `loading`, `ready`, `draining`, `stopping`, `backoff`, `failed`.
        since_at: When it moved there; None when it never moved.
        reason: Why it is in `backoff`, `failed` or `off`.
        retry_at: When `backoff` or `failed` ends by itself.
        pid: Its process; 0 without one.
        slots, slots_busy: 0 until it is ready.
        running: Requests that hold slots.
        queued: How many wait for it, by class.
        queued_tokens: Sum of their estimates.
        oldest_at: When the one that has waited longest came.
        context_tokens: Context of one slot.
        memory_bytes: What its process holds; 0 without one.
        estimate_bytes: What it holds, or would hold once loaded.
        fits: It could be loaded now and nothing need go for it; None when it is loaded.
        tokens_per_s: Generated, of the last seconds.
        first_token_p95_s: Over the last 5 minutes.
        kv_used: Share of the context memory in use, 0 to 1; None when it is not measured.
        load_s: Seconds of its last load, or what one is expected to take.
        load_progress: 0 to 1 while it loads, as the clock has it; never quite 1.
        load_left_s: Expected rest of a load.
        starts: How often it was started.
        crashes: How often it ended without being told to.
        last_failure: Why it last failed.
        leaving: By which rule it must go; "" when it need not.
        leaving_for: Which model comes in its place.
        wanted: It will be started as soon as there is room.
        pinned: Evicted only by an operator.
        note: The above for a person, in a few words.
    """

    model: str
    state: str
    since_at: float | None = None
    reason: str = ""
    retry_at: float | None = None
    pid: int = 0
    slots: int = 0
    slots_busy: int = 0
    running: int = 0
    queued: Mapping[str, int] = {}
    queued_tokens: int = 0
    oldest_at: float | None = None
    context_tokens: int = 0
    memory_bytes: int = 0
    estimate_bytes: int = 0
    fits: bool | None = None
    tokens_per_s: float = 0.0
    first_token_p95_s: float | None = None
    kv_used: float | None = None
    load_s: float = 0.0
    load_progress: float | None = None
    load_left_s: float | None = None
    starts: int = 0
    crashes: int = 0
    last_failure: str = ""
    leaving: str = ""
    leaving_for: str = ""
    wanted: bool = False
    pinned: bool = False
    note: str = ""

    @property
    def waiting(self) -> int:
        """How many requests wait for it."""
        return sum(self.queued.values())


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
        tokens_per_s: Of the last seconds, while it decodes.
        progress: 0 to 1 of `max_tokens` while it decodes; of the prompt while it prefills, when
            that is known.
        eta_at: When it is expected to be granted (queued), or to end at the latest (decode).
        silent_since_at: When its last token came, if that is long ago.
        position: Place in line for its model; 0 when it does not wait.
        why: What it waits for.
        retries: How often its worker died under it before a byte had come.
        worker_pid, slot: Where it runs; 0 and -1 when that is not known.
        request_bytes, response_bytes: Of the bodies.
        status, code, reason, cancel_cause: How it ended.
    """

    id: str
    state: str
    model: str = ""
    key: str = ""
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
    tokens_per_s: float | None = None
    progress: float | None = None
    eta_at: float | None = None
    silent_since_at: float | None = None
    position: int = 0
    why: Why | None = None
    retries: int = 0
    worker_pid: int = 0
    slot: int = -1
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    code: str = ""
    reason: str = ""
    cancel_cause: str = ""

    @property
    def ended(self) -> bool:
        """True once it has reached an end."""
        return self.ended_at is not None


class QueueModel(View, frozen=True, kw_only=True):
    """What waits for one model, and how fast it moves.

    Attributes:
        queued: By class.
        service_s: Moving average of how long a lease lasts.
        load_s: Moving average of a load, or what one is expected to take.
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


class Status(View, frozen=True, kw_only=True):
    """The daemon in one page: `workers` holds those that do, did or should do something."""

    daemon: Daemon
    totals: Totals
    workers: tuple[Worker, ...]


class Model(View, frozen=True, kw_only=True):
    """A model that the daemon knows, loaded or not.

    Attributes:
        context: Tokens that one request may have now; 0 = not known.
        context_trained: What the model was trained for.
        estimate_bytes: What it would hold in memory.
        source: Its file, or its repository.
        fault: Why it can never be loaded; "" when nothing is against it.
    """

    name: str
    state: str
    aliases: tuple[str, ...] = ()
    context: int = 0
    context_trained: int | None = None
    parameters: int | None = None
    quantisation: str = ""
    architecture: str = ""
    capabilities: tuple[str, ...] = ()
    size_bytes: int = 0
    estimate_bytes: int = 0
    pinned: bool = False
    source: str = ""
    fault: str = ""


class Models(View, frozen=True, kw_only=True):
    """Every model of the catalog."""

    models: tuple[Model, ...]


class Requests(View, frozen=True, kw_only=True):
    """Requests, live ones first, then the newest; `total` is how many matched."""

    requests: tuple[Request, ...]
    total: int


class Story(View, frozen=True, kw_only=True):
    """A request's whole story: the request, and each step of its waiting."""

    request: Request
    steps: tuple[Why, ...]


class Eviction(View, frozen=True, kw_only=True):
    """A model that goes for another.

    Attributes:
        running: Requests that run there now.
        queued: Requests that wait for it.
        memory_bytes: What its going frees.
        service_s: How long a request there lasts on average.
    """

    model: str
    running: int = 0
    queued: int = 0
    memory_bytes: int = 0
    service_s: float | None = None


class Plan(View, frozen=True, kw_only=True):
    """What a switch would do, or did.

    Attributes:
        model: To be loaded.
        loaded: It is, or is on its way, already.
        fits: It can be loaded; if not, nothing is done.
        reason: Why it does not fit.
        add: It was asked to come beside what is loaded.
        fits_beside: It would fit without evicting anything.
        evict: What goes for it.
        queued: Requests that wait for the model already.
        load_s: Expected seconds of its load; 0 when it is loaded.
        memory_bytes: What the model holds, or will.
        held_bytes: What all loaded models hold now.
        limit_bytes: What models may hold; 0 = not known.
        generation: What the plan was made for; `if_gen` carries it back.
        state: Of its worker, now.
        dry_run: Nothing was done.
        command: The `llmctl` line that does it.
    """

    model: str
    loaded: bool
    fits: bool
    reason: str = ""
    add: bool = False
    fits_beside: bool = False
    evict: tuple[Eviction, ...] = ()
    queued: int = 0
    load_s: float = 0.0
    memory_bytes: int = 0
    held_bytes: int = 0
    limit_bytes: int = 0
    generation: int = 0
    state: str = ""
    dry_run: bool = False
    command: str = ""


class Acted(View, frozen=True, kw_only=True):
    """What an action on one model hit.

    Attributes:
        running: Requests that ran there.
        queued: Requests that waited for it.
        state: Of its worker, now.
    """

    model: str
    state: str
    running: int = 0
    queued: int = 0


class Cancelled(View, frozen=True, kw_only=True):
    """What a cancel hit.

    Attributes:
        cancelled: Ended by it.
        pending: Told to end, and not ended within 5 s.
        ended: Had ended before.
        unknown: Not remembered, or never there.
    """

    cancelled: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Stopped(View, frozen=True, kw_only=True):
    """What a stop hit: models told to go, requests turned away, requests that may finish."""

    unload: tuple[str, ...] = ()
    refused: int = 0
    running: int = 0


class Admission(View, frozen=True, kw_only=True):
    """Whether new requests are admitted, and what waits or runs."""

    admission_open: bool
    queued: int = 0
    running: int = 0


class Version(View, frozen=True, kw_only=True):
    """Versions of the daemon and of the protocol, and the engine that it runs."""

    version: str
    protocol: int
    python: str = ""
    engine: str = ""


class LogLine(View, frozen=True, kw_only=True):
    """A line of a worker's output, or (`llmd`) of the daemon about it; numbers have no gaps."""

    seq: int
    at: float
    stream: str
    text: str


class Log(View, frozen=True, kw_only=True):
    """The last lines of a worker's output."""

    model: str
    lines: tuple[LogLine, ...] = ()


class Notice(View, frozen=True, kw_only=True):
    """A line of the daemon's own log: what happened, and to what."""

    seq: int
    at: float
    level: str
    text: str


class Done(View, frozen=True, kw_only=True):
    """Nothing more to say."""


# --- what can be asked: commands -----------------------------------------------------------


class Command(
    Struct,
    Generic[R],
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="type",
):
    """What all commands share.

    Attributes:
        id: Echoed by every message that belongs to it.
        writes: It changes something, so it needs the right to.
        returns: What `Ok.result` holds.
    """

    writes: ClassVar[bool] = False
    returns: ClassVar[Any] = Done

    id: Id = 0


class Hello(Command[Welcome], frozen=True, kw_only=True, tag="hello"):
    """Ask who the daemon is and what this connection may do."""

    returns = Welcome


class GetStatus(Command[Status], frozen=True, kw_only=True, tag="status"):
    """Ask for the daemon in one page."""

    returns = Status


class GetModels(Command[Models], frozen=True, kw_only=True, tag="models"):
    """Ask for the catalog."""

    returns = Models


class GetRequests(Command[Requests], frozen=True, kw_only=True, tag="requests"):
    """Ask for requests.

    Attributes:
        state: Only those in this state; "" = any.
        model, key: Only of these.
        ended: Remembered ones, too.
        limit: How many at most.
    """

    returns = Requests

    state: Name = ""
    model: Name = ""
    key: Name = ""
    ended: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class GetQueue(Command[Queue], frozen=True, kw_only=True, tag="queue"):
    """Ask for the queue."""

    returns = Queue


class GetWhy(Command[Story], frozen=True, kw_only=True, tag="why"):
    """Ask for a request's whole story."""

    returns = Story

    request: Name


class GetVersion(Command[Version], frozen=True, kw_only=True, tag="version"):
    """Ask for versions."""

    returns = Version


class Switch(Command[Plan], frozen=True, kw_only=True, tag="switch"):
    """Load a model in the place of others.

    Attributes:
        model: To be loaded.
        evict: (`from`) What goes for it; () lets the daemon choose.
        add: Load it beside the others, or not at all.
        drain_s: Requests that run this long on an evicted model are cancelled then; 0 = they may
            finish, None = as configured.
        force: Cancel them at once.
        if_gen: Refuse when the generation is another one by now.
        dry_run: Only say what would be done.
        wait: Answer when it is loaded, or known to fail.
    """

    writes = True
    returns = Plan

    model: Name
    evict: Names = msgspec.field(name="from", default=())
    add: bool = False
    drain_s: Seconds | None = None
    force: bool = False
    if_gen: int | None = None
    dry_run: bool = False
    wait: bool = False


class Load(Command[Plan], frozen=True, kw_only=True, tag="load"):
    """Load a model beside the others; nothing is evicted for it."""

    writes = True
    returns = Plan

    model: Name
    if_gen: int | None = None
    wait: bool = False


class Unload(Command[Acted], frozen=True, kw_only=True, tag="unload"):
    """Take a model out of memory; see `Switch` for the rest."""

    writes = True
    returns = Acted

    model: Name
    drain_s: Seconds | None = None
    force: bool = False
    if_gen: int | None = None
    wait: bool = False


class Restart(Command[Acted], frozen=True, kw_only=True, tag="restart"):
    """Unload a loaded model and load it again; see `Switch` for the rest."""

    writes = True
    returns = Acted

    model: Name
    drain_s: Seconds | None = None
    force: bool = False
    if_gen: int | None = None
    wait: bool = False


class Reset(Command[Acted], frozen=True, kw_only=True, tag="reset"):
    """Forget a model's crashes, so that a failed one may be tried again."""

    writes = True
    returns = Acted

    model: Name


class Cancel(Command[Cancelled], frozen=True, kw_only=True, tag="cancel"):
    """Cancel requests: those named, or all that match.

    Attributes:
        request: One id.
        requests: Several ids.
        all: Every request.
        model, key: All requests of that model, of that key, or of both.
    """

    writes = True
    returns = Cancelled

    request: Name = ""
    requests: Names = ()
    all: bool = False
    model: Name = ""
    key: Name = ""


class Stop(Command[Stopped], frozen=True, kw_only=True, tag="stop"):
    """Turn away what is queued and unload everything; the next request loads again.

    Attributes:
        if_gen: Refuse when the generation is another one by now.
        wait: Answer when all have gone.
    """

    writes = True
    returns = Stopped

    if_gen: int | None = None
    wait: bool = False


class Drain(Command[Admission], frozen=True, kw_only=True, tag="drain"):
    """Admit nothing new: what comes is answered 503, what waits is held, what runs goes on.

    Attributes:
        reject_queued: Turn away what waits, too.
    """

    writes = True
    returns = Admission

    reject_queued: bool = False


class Resume(Command[Admission], frozen=True, kw_only=True, tag="resume"):
    """Admit again."""

    writes = True
    returns = Admission


class Logs(Command[Log], frozen=True, kw_only=True, tag="logs"):
    """Ask for the last lines of a model's worker.

    Attributes:
        lines: How many at most.
        after: Only those with a higher number.
        follow: Go on with `Lines` messages until `Unsubscribe`.
    """

    returns = Log

    model: Name
    lines: Annotated[int, Meta(ge=0, le=100_000)] = 200
    after: Annotated[int, Meta(ge=0)] = 0
    follow: bool = False


TOPICS = ("requests", "workers", "queue", "log")


class Subscribe(Command[Done], frozen=True, kw_only=True, tag="subscribe"):
    """Ask for a `Snapshot` and, from then on, an `Event` for each change.

    There is no `Ok`: the snapshot is the answer. Daemon and totals come with every topic.

    Attributes:
        topics: Of `TOPICS`; () = all of them.
    """

    topics: Names = ()


class Unsubscribe(Command[Done], frozen=True, kw_only=True, tag="unsubscribe"):
    """End a subscription, or the following of a log.

    Attributes:
        subscription: The `id` that it was asked for with.
    """

    subscription: Id


AnyCommand: TypeAlias = (
    Hello
    | GetStatus
    | GetModels
    | GetRequests
    | GetQueue
    | GetWhy
    | GetVersion
    | Switch
    | Load
    | Unload
    | Restart
    | Reset
    | Cancel
    | Stop
    | Drain
    | Resume
    | Logs
    | Subscribe
    | Unsubscribe
)

NOT_BUILT = frozenset({"users", "keys", "usage", "reload"})
"""Commands of the protocol that this daemon does not have yet: refused as `not_supported`."""


# --- messages to the client ----------------------------------------------------------------


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What all messages to a client share: the `id` of the command that they belong to."""

    id: int | str | None = None


class Ok(Message, frozen=True, kw_only=True, tag="ok"):
    """Done; `result` is what the command returns."""

    result: msgspec.Raw = msgspec.Raw(b"{}")


class Failure(Message, frozen=True, kw_only=True, tag="failure"):
    """Refused, or failed.

    Attributes:
        code: For programs: the same words as in the HTTP API's errors, and `not_supported`,
            `unknown_command`, `line_too_long`, `incomplete_line`, `too_many`.
        message: For a person.
        retry_after_s: When another try is likely to succeed.
    """

    code: str
    message: str
    retry_after_s: float | None = None


class Snapshot(Message, frozen=True, kw_only=True, tag="snapshot"):
    """All that a subscription is about, at one moment.

    Attributes:
        seq: The next event has a higher number.
        at: Unix seconds, of the daemon's clock.
        workers: One for each model of the catalog.
        requests: Those that are on their way.
        log: The last lines of the daemon's log.
        history: Tokens a second of the last minute, one value for each second, the oldest
            first; by model, and "" for all together.
    """

    seq: int
    at: float
    daemon: Daemon
    totals: Totals
    workers: tuple[Worker, ...] | None = None
    requests: tuple[Request, ...] | None = None
    queue: Queue | None = None
    log: tuple[Notice, ...] | None = None
    history: Mapping[str, tuple[float, ...]] = {}


class Event(Message, frozen=True, kw_only=True, tag="event"):
    """What has changed since the message before: whole rows, to be put in the place of old ones.

    Without any change one comes every few seconds all the same, as a sign of life.

    Attributes:
        seq: Grows with each event; a gap means that topics not subscribed to have changed.
        requests: Changed, new, and (with an end as `state`) gone ones.
    """

    seq: int
    at: float
    daemon: Daemon | None = None
    totals: Totals | None = None
    workers: tuple[Worker, ...] = ()
    requests: tuple[Request, ...] = ()
    queue: Queue | None = None
    log: tuple[Notice, ...] = ()


class Lagged(Message, frozen=True, kw_only=True, tag="lagged"):
    """The client read too slowly: `missed` events were dropped, and a `Snapshot` follows."""

    seq: int
    missed: int


class Lines(Message, frozen=True, kw_only=True, tag="lines"):
    """More lines of a log; `missed` were forgotten before they could be sent."""

    model: str
    lines: tuple[LogLine, ...] = ()
    missed: int = 0


class Ended(Message, frozen=True, kw_only=True, tag="ended"):
    """A subscription is over; `reason` says why."""

    reason: str = ""


AnyMessage: TypeAlias = Ok | Failure | Snapshot | Event | Lagged | Lines | Ended

"""The box as it is told: daemon, workers, models, logs."""

from __future__ import annotations

from collections.abc import Mapping

from llmd.admin.protocol.base import View


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


class Version(View, frozen=True, kw_only=True):
    """Versions of the daemon and of the protocol, and the engine that it runs."""

    version: str
    protocol: int
    python: str = ""
    engine: str = ""


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
        memory_used_bytes: Of the box, in use by anybody; 0 = not known.
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
    memory_used_bytes: int = 0
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
        kv_used: Share of the slots' context that running requests fill with prompt and answer,
            0 to 1; None when the context is not known.
        load_s: Seconds of its last load, or what one is expected to take; 0 = not known.
        load_progress: 0 to 1 while it loads, as it says, else as the clock has it; never quite 1.
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

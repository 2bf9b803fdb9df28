"""What the policy is told and what it answers: plain data, shared by core and shell.

Times are seconds on one monotonic clock, handed in by the caller. Models and keys are names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from llmd.core.lifecycle import Priority, WorkerState

# --- a request as the policy sees it -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queued:
    """One admitted request that wants a model.

    Attributes:
        id: The request's id.
        key: Whose it is; fair shares and concurrency are counted by it.
        model: The model it resolved to.
        priority: Its class, already capped by the key.
        weight: The key's share within a class, > 0.
        tokens: Estimate of prompt plus completion over all sequences; charged to the key's
            virtual counter on grant, settled on release.
        slots: Sequences that decode side by side; a lease takes this many slots (at most as
            many as the worker has).
        context_tokens: Context that one sequence needs; a worker loaded with less, of a model
            that can have more, is reloaded with more before it serves this.
        concurrency: How many requests of this key may run at once; 0 = no limit.
        admin: True for an admin key, which may use the queue's admin quota.
        arrived: When it was submitted; kept when it is queued again after a worker's death.
        completion_tokens: The most that all its sequences together may generate; 0 = not known.
    """

    id: str
    key: str
    model: str
    priority: Priority
    weight: float
    tokens: int
    slots: int
    context_tokens: int
    concurrency: int
    admin: bool
    arrived: float
    completion_tokens: int = 0


# --- events --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request asks for its lease. `again` marks a retry, which no queue bound refuses."""

    item: Queued
    again: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request that waits has gone, for whatever reason. Unknown ids are ignored."""

    id: str


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """A lease came back; `used_tokens` is the real usage (prompt + completion)."""

    id: str
    used_tokens: int


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """A worker moved.

    Attributes:
        slots: Its slots once ready; 0 before.
        context_tokens: Context of one slot once ready; 0 before.
        reason: Why it is `failed` or in `backoff`.
        retry_at: When a `backoff` ends or a `failed` expires by itself; 0 = unknown.
        load_s: Measured seconds of the load that just made it ready; 0 otherwise.
        memory_bytes: What it holds now, measured; believed once it is ready.
        permanent: It is `failed` for a reason that will not change by itself.
    """

    model: str
    state: WorkerState
    slots: int = 0
    context_tokens: int = 0
    reason: str = ""
    retry_at: float = 0.0
    load_s: float = 0.0
    memory_bytes: int = 0
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class LoadAdvanced:
    """A worker said how far its load is: `fraction`, 0 to 1."""

    model: str
    fraction: float


@dataclass(frozen=True, slots=True)
class SwitchRequested:
    """An operator wants `model` loaded, now.

    Attributes:
        evict: Models to unload for it; () lets the policy choose; pinned ones may be named.
        add: True loads it beside what is loaded if it fits, and never evicts.
        drain_s: After this many seconds what still runs on an evicted model is cancelled;
            0 = let it finish.
        force: Cancel at once instead of draining.
    """

    model: str
    evict: tuple[str, ...] = ()
    add: bool = False
    drain_s: float = 0.0
    force: bool = False


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """An operator wants `model` out of memory (same `drain_s` and `force`)."""

    model: str
    drain_s: float = 0.0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """Admission opens or closes. Closing rejects what is queued when `reject_queued`.

    Attributes:
        why: What those who are turned away from the queue are told; "" = the usual refusal.
    """

    open: bool
    reject_queued: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: see `next_deadline`."""


Event: TypeAlias = (
    Submitted
    | Cancelled
    | LeaseReleased
    | WorkerChanged
    | LoadAdvanced
    | SwitchRequested
    | UnloadRequested
    | Admission
    | Tick
)


# --- why -----------------------------------------------------------------------------------


class Rule(str, Enum):
    """The rule that a waiting request waits by, or that a decision was made by."""

    SLOTS_BUSY = "slots_busy"  # its model is loaded, every slot is taken
    BEHIND = "behind"  # others of its model go first by class, share or arrival
    KEY_CONCURRENCY = "key_concurrency"  # its key runs as many as it may
    MODEL_LOADING = "model_loading"  # its worker is starting or loading
    MODEL_BACKOFF = "model_backoff"  # its worker died and waits for the next try
    MODEL_NOT_LOADED = "model_not_loaded"  # held back by affinity, at most max_delay_sec
    DRAINING_OTHER = "draining_other"  # room is being made for its model
    MIN_RESIDENCY = "min_residency"  # what must go was loaded a moment ago
    CONTEXT_RELOAD = "context_reload"  # its worker must reload with a larger context
    ADMISSION_CLOSED = "admission_closed"  # an operator has paused admission
    YIELDING = "yielding"  # its model is loaded but must go: someone held back comes first
    GRANTED = "granted"
    WORKER_DIED = "worker_died"  # its worker died before the first byte, and it asked again
    DEMAND = "demand"  # a start or a drain because a request needs it
    MAX_DELAY = "max_delay"  # a drain because someone was held back long enough
    HIGHER_CLASS = "higher_class"  # a drain for a class above all that is queued there
    OPERATOR = "operator"
    IDLE_TIMEOUT = "idle_timeout"


@dataclass(frozen=True, slots=True)
class Why:
    """One step of a request's story in the scheduler's own words.

    Attributes:
        at: When the rule began to hold.
        rule: By which rule.
        blockers: Ids of requests or names of models in the way, the nearest first, at most 8.
        position: Place among those waiting for the same model, from 1; 0 when it does not wait.
        detail: The same for a person, such as "4/4 slots busy".
    """

    at: float
    rule: Rule
    blockers: tuple[str, ...] = ()
    position: int = 0
    detail: str = ""


# --- actions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may use `slots` slots of its model's worker now."""

    id: str
    model: str
    slots: int
    why: Why


class Refusal(str, Enum):
    """Why the policy turns a request away; the shell maps it to an error class."""

    QUEUE_FULL = "queue_full"
    TOO_LARGE = "too_large"  # could never be queued: larger than the whole queue allows
    MODEL_FAILED = "model_failed"
    MODEL_NOT_LOADED = "model_not_loaded"  # auto_switch is off
    INSUFFICIENT_MEMORY = "insufficient_memory"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class Reject:
    """The request is turned away. `retry_after_s` is computed from measured times.

    `story` is what it waited for before, if it did. `final`: another try would fare no better.
    """

    id: str
    refusal: Refusal
    message: str
    retry_after_s: float
    story: tuple[Why, ...] = ()
    final: bool = False


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Load `model`. `context_tokens` > 0 asks for at least that context per sequence."""

    model: str
    rule: Rule
    for_request: str = ""
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """`model` takes nothing new from now on; a `StopWorker` follows when nothing runs there."""

    model: str
    rule: Rule
    for_model: str = ""


@dataclass(frozen=True, slots=True)
class ResumeWorker:
    """`model` need not go after all: its worker, draining, serves again (`ready` is announced).

    Whoever ignores it costs a reload and nothing else: the drain then runs to its end.
    """

    model: str


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Nothing runs on `model` any more: end its worker."""

    model: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class CancelLease:
    """The lease outlived the drain: cancel the request."""

    id: str
    rule: Rule


Action: TypeAlias = (
    Grant | Reject | StartWorker | DrainWorker | ResumeWorker | StopWorker | CancelLease
)

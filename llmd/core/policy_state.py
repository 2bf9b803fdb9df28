"""All mutable state of the policy, and the small steps that change it.

A `Model` mirrors what its worker last announced, plus what has been decided and not been announced
yet (a start, a departure): the same decision is never taken twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from llmd.core.events import Queued, Rule, Why
from llmd.core.fairness import FairShares, Share
from llmd.core.lifecycle import WorkerState
from llmd.core.placement import Room
from llmd.core.queue import NO_RANK, Line, RequestQueue, Waiting
from llmd.core.settings import ModelInfo, PolicySettings

_ABSENT = (WorkerState.OFF, WorkerState.FAILED)
_LOADING = (WorkerState.STARTING, WorkerState.LOADING)
_START_S = 1.0  # of a load that nobody has measured: the process itself,
_READ_BYTES_PER_S = 1 << 30  # and reading the file


class Lease:
    """A grant not yet released.

    Attributes:
        item: The request.
        share: Its key's account.
        slots: Taken at its model's worker.
        granted_at: When.
        why: By which rule it was granted.
        story: What it waited for before; None when it did not wait.
        cancelled: A `CancelLease` has been sent.
    """

    __slots__ = ("cancelled", "granted_at", "item", "share", "slots", "story", "why")

    def __init__(
        self,
        item: Queued,
        share: Share,
        slots: int,
        granted_at: float,
        why: Why,
        story: deque[Why] | None,
    ) -> None:
        self.item = item
        self.share = share
        self.slots = slots
        self.granted_at = granted_at
        self.why = why
        self.story = story
        self.cancelled = False

    def __repr__(self) -> str:
        return f"<Lease {self.item.id} on {self.item.model} slots={self.slots}>"


@dataclass(slots=True)
class Leaving:
    """A model must go out of memory.

    Attributes:
        rule: Why.
        since: When that was decided.
        for_model: Who comes in its place; itself for a reload; "" for nobody.
        cancel_at: When what still runs there is cancelled; inf = never.
        drain_sent: A `DrainWorker` has been sent.
        stop_sent: A `StopWorker` has been sent: there is no way back.
    """

    rule: Rule
    since: float
    for_model: str = ""
    cancel_at: float = math.inf
    drain_sent: bool = False
    stop_sent: bool = False


@dataclass(slots=True)
class Want:
    """A model will be started as soon as there is room, which is being made or is there.

    Attributes:
        rule: `OPERATOR` or the rule by which room is made.
        since: When that was decided.
        for_request: Whose need it was, if a request's.
        displaced: Who goes for it.
        context_tokens: That it will be loaded with at least: room was decided on for no more.
        final: Whom to displace has been thought over once, and is not again.
    """

    rule: Rule
    since: float
    for_request: str = ""
    displaced: tuple[str, ...] = ()
    context_tokens: int = 0
    final: bool = False


class Model:
    """One model: its worker as last announced, its leases, its line.

    Attributes:
        state, slots, context_tokens, reason, retry_at: As announced.
        memory_bytes: What it holds, or would.
        base_bytes, base_context: What it holds with so much context: as announced, with what it
            may grow by, else the catalog's estimate; all else is reckoned from it.
        load_s: What a load costs: a moving average once measured, before that a guess that is
            good for comparing models and never told to anybody as a time.
        service_s, service_tokens: Moving averages of how long leases last, and of what they were
            estimated at; None and 0 before the first.
        progress: How far its load is, 0 to 1, as its worker says; None = it does not say. It
            speaks of its files: at 1 they are read, and the worker warms up.
        read_at: When it was at 1; None before.
        warm_up_s: Moving average of what it took from there; None before the first.
        permanent: It failed for a reason that will not change by itself.
        starting: A `StartWorker` has been sent and nothing announced since.
        started_at, ready_at, last_used: When.
        started_by: By which rule it is being started; None once it is ready, or off.
        asked_context: Context that the last start asked for.
        context_got: The most it came up with when asked for more; 0 = never fell short.
        held_from: The clock of what is held back for want of this model starts no earlier.
        displaced: Who went for it, until it is ready.
        hold: Why a needed start is not decided yet, and who is in its way.
        rethought: Its start was given up for a better way: the next decision on it is final.
        barrier: Only classes above this rank are admitted now.
    """

    __slots__ = (
        "asked_context",
        "barrier",
        "base_bytes",
        "base_context",
        "context_got",
        "context_tokens",
        "displaced",
        "held_from",
        "hold",
        "info",
        "last_used",
        "leases",
        "leaving",
        "line",
        "load_s",
        "measured_load",
        "memory_bytes",
        "name",
        "permanent",
        "progress",
        "read_at",
        "ready_at",
        "reason",
        "rethought",
        "retry_at",
        "service_s",
        "service_tokens",
        "slots",
        "started_at",
        "started_by",
        "starting",
        "state",
        "used",
        "warm_up_s",
    )

    def __init__(self, info: ModelInfo, line: Line, default_load_s: float) -> None:
        self.name = info.name
        self.info = info
        self.line = line
        self.state = WorkerState.OFF
        self.slots = 0
        self.used = 0
        self.context_tokens = 0
        self.asked_context = 0
        self.context_got = 0
        self.memory_bytes = info.memory_bytes
        self.base_bytes = info.memory_bytes
        self.base_context = info.context_tokens
        self.reason = ""
        self.retry_at = 0.0
        self.permanent = False
        self.load_s = _load_cost_s(info, default_load_s)
        self.measured_load = False
        self.progress: float | None = None
        self.read_at: float | None = None
        self.warm_up_s: float | None = None
        self.service_s: float | None = None
        self.service_tokens = 0.0
        self.starting = False
        self.started_at = 0.0
        self.started_by: Rule | None = None
        self.ready_at = 0.0
        self.last_used = 0.0
        self.held_from = -math.inf
        self.displaced: tuple[str, ...] = ()
        self.hold: tuple[Rule, tuple[str, ...]] | None = None
        self.rethought = False
        self.barrier = NO_RANK
        self.leases: dict[str, Lease] = {}
        self.leaving: Leaving | None = None

    def __repr__(self) -> str:
        leaving = " leaving" if self.leaving else ""
        return (
            f"<Model {self.name} {self.state.value}{leaving} {self.used}/{self.slots} slots, "
            f"{self.line.count} waiting>"
        )

    @property
    def absent(self) -> bool:
        """Neither in memory nor about to be: its worker is off or failed, no start is sent."""
        return self.state in _ABSENT and not self.starting

    @property
    def failed_for_good(self) -> bool:
        """Failed, and waiting alone will not change that."""
        return self.permanent or self.retry_at <= 0

    @property
    def loading(self) -> bool:
        """On its way into memory."""
        return self.starting or self.state in _LOADING

    @property
    def serving(self) -> bool:
        """Takes requests now."""
        return self.state is WorkerState.READY and self.leaving is None

    def slots_for(self, item: Queued) -> int:
        """Return the slots that a lease for `item` takes here."""
        return max(1, min(item.slots, self.slots))

    def needs_reload(self, item: Queued) -> bool:
        """Return whether a reload would give `item` context that it needs and now cannot have.

        What no reload can give is granted as it is: the API refuses it with numbers.
        """
        need = item.context_tokens
        if need <= self.context_tokens or need > self.info.context_max:
            return False
        return self.context_got == 0 or need <= self.context_got

    def forget_progress(self) -> None:
        """Know nothing of how far its load is."""
        self.progress = self.read_at = None

    def next_context(self) -> int:
        """Return the largest context that a waiting request needs and a load can give; 0 = any."""
        limit = self.info.context_max
        if self.context_got:
            limit = min(limit, self.context_got)
        needs = (waiting.item.context_tokens for waiting in self.line)
        return max((need for need in needs if need <= limit), default=0)

    def bytes_with(self, context_tokens: int) -> int:
        """Return what it would hold if it were loaded with at least so much context."""
        if not self.base_bytes:
            return 0
        tokens = max(context_tokens, self.info.context_tokens)
        grows = (tokens - self.base_context) * self.info.bytes_per_token
        return max(0, self.base_bytes + int(grows))

    def resident_until(self, min_residency_sec: float) -> float:
        """Return until when it is safe from eviction by demand."""
        if self.state is WorkerState.READY:
            return self.ready_at + min_residency_sec
        return -math.inf


def _load_cost_s(info: ModelInfo, default_s: float) -> float:
    if info.load_s:
        return info.load_s
    return _START_S + info.size_bytes / _READ_BYTES_PER_S if info.size_bytes else default_s


class SchedulerState:
    """Everything the policy knows; `decide` is its only writer, besides the methods below.

    Args:
        settings: What decisions follow.
        models: What the catalog knows; others are learnt when first named.
        decoded: Tells how many tokens a running request has got so far; 0 = not known.

    Attributes:
        generation: Grows whenever what is loaded, or is decided to be loaded, changes.
        admission_open: False while an operator, or the shutdown, keeps requests out.
        models: By name.
        present: Those in memory, or on their way in or out.
        leases: By request id.
        wants: Models to be started when there is room, the first decided first.
        queue: What waits.
        settled_at: When all that is due was last carried out.
    """

    def __init__(
        self,
        settings: PolicySettings,
        models: Iterable[ModelInfo],
        *,
        decoded: Callable[[str], int] = lambda _request_id: 0,
    ) -> None:
        self.settings = settings
        self.decoded = decoded
        self.generation = 0
        self.admission_open = True
        self.rejecting = False  # closed for good: a retry is turned away too
        self.shares = FairShares()
        self.queue = RequestQueue(settings, self.shares)
        self.models: dict[str, Model] = {}
        self.present: dict[str, Model] = {}
        self.leases: dict[str, Lease] = {}
        self.wants: dict[str, Want] = {}
        self.settled_at = -math.inf
        self.touched: dict[str, Model] = {}  # whose waiters' stories may have moved on
        for info in models:
            self.put_model(info)

    def __repr__(self) -> str:
        return (
            f"<SchedulerState {len(self.leases)} leases, {len(self.queue)} waiting, "
            f"{list(self.present.values())}>"
        )

    def put_model(self, info: ModelInfo) -> None:
        """Learn of a model, or what has changed about one, as after a reload of the catalog."""
        model = self.models.get(info.name)
        if model is None:
            line = self.queue.line(info.name)
            self.models[info.name] = Model(info, line, self.settings.load_s)
            return
        model.info = info
        if model.absent:
            model.memory_bytes = model.base_bytes = info.memory_bytes
            model.base_context = info.context_tokens
        if not model.measured_load:
            model.load_s = _load_cost_s(info, self.settings.load_s)

    def configure(self, settings: PolicySettings) -> None:
        """Follow other settings from now on; what waits already stays. Send a `Tick` after it."""
        self.settings = settings
        self.queue.settings = settings

    def model(self, name: str) -> Model:
        """Return the model of that name, learnt of now if need be."""
        model = self.models.get(name)
        if model is None:
            self.put_model(ModelInfo(name))
            model = self.models[name]
        return model

    @property
    def room(self) -> Room:
        """What may be in memory."""
        return Room(self.settings.max_loaded, self.settings.memory_bytes)

    def staying(self) -> Iterator[Model]:
        """Yield what will be in memory once all that was decided has happened."""
        for model in self.present.values():
            if model.leaving is None and model.state is not WorkerState.STOPPING:
                yield model
        for name in self.wants:
            yield self.models[name]

    def hold_start(self, model: Model, waiting: Waiting) -> float:
        """Return since when `waiting` is held back for want of its model."""
        return max(waiting.since, model.held_from)

    def touch(self, model: Model) -> None:
        """Have the stories of the model's waiters brought up to date at the end of the decision."""
        if model.line.count:
            self.touched[model.name] = model

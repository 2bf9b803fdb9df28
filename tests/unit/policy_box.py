"""A simulated box for the policy's tests: workers that load, serve, drain, crash; a clock.

It does what the scheduler's shell and the supervisor do, and checks at each action what must hold
whatever happens: no slot leased twice, nothing granted to a worker that does not serve, never more
models in memory than allowed, the queue within its bounds, no tick without progress.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from llmd.core import policy
from llmd.core.events import (
    CancelLease,
    Cancelled,
    DrainWorker,
    Event,
    Grant,
    LeaseReleased,
    Queued,
    Reject,
    ResumeWorker,
    Rule,
    StartWorker,
    StopWorker,
    Submitted,
    Tick,
    WorkerChanged,
)
from llmd.core.lifecycle import WORKER_MOVES, Priority, WorkerState, move
from llmd.core.policy import ModelInfo, PolicySettings, SchedulerState
from llmd.core.policy_state import Model
from llmd.core.queue import effective_rank

ON = (
    WorkerState.STARTING,
    WorkerState.LOADING,
    WorkerState.READY,
    WorkerState.DRAINING,
    WorkerState.STOPPING,
    WorkerState.BACKOFF,
)


def ask(
    request_id: str,
    model: str = "a",
    *,
    key: str = "k",
    priority: Priority = Priority.NORMAL,
    weight: float = 1.0,
    tokens: int = 100,
    slots: int = 1,
    context: int = 0,
    concurrency: int = 0,
    admin: bool = False,
    at: float = 0.0,
) -> Queued:
    """A request, all of it defaulted."""
    return Queued(
        id=request_id,
        key=key,
        model=model,
        priority=priority,
        weight=weight,
        tokens=tokens,
        slots=slots,
        context_tokens=context,
        concurrency=concurrency,
        admin=admin,
        arrived=at,
    )


@dataclass
class FakeWorker:
    """How one model's worker behaves, and what it does."""

    load_s: float = 2.0
    slots: int = 1
    context: int = 4096
    context_limit: int = 1 << 30  # what a load can really come up with
    stop_s: float = 0.0
    fails: bool = False
    state: WorkerState = WorkerState.OFF
    starts: int = 0
    epoch: int = 0  # a timer of an older life is ignored


@dataclass
class Ended:
    """What became of a request."""

    asked_at: float
    granted_at: float = math.nan
    released_at: float = math.nan
    rejected: Reject | None = None
    cancelled: bool = False


@dataclass
class Box:
    """The simulation; `settings` and `models` as for the policy."""

    settings: PolicySettings = field(default_factory=PolicySettings)
    models: list[ModelInfo] = field(default_factory=lambda: [ModelInfo(n) for n in "abc"])
    workers: dict[str, FakeWorker] = field(default_factory=dict)
    resumes: bool = True  # False: a shell that does not know ResumeWorker
    lag_s: float = 0.0  # a worker takes commands from its mailbox this much later
    check: bool = True

    def __post_init__(self) -> None:
        self.now = 0.0
        self.state = SchedulerState(self.settings, self.models)
        for model in self.models:
            self.workers.setdefault(model.name, FakeWorker())
        self.timers: list[tuple[float, int, object]] = []
        self.count = 0
        self.events: deque[Event] = deque()
        self.deciding = False
        self.leases: dict[str, Grant] = {}
        self.items: dict[str, Queued] = {}
        self.service: dict[str, float] = {}
        self.waiting: set[str] = set()
        self.ended: dict[str, Ended] = {}
        self.log: list[tuple[float, object]] = []
        self.ticks_now = 0
        self.held: dict[str, int] = {}

    # --- time ---

    def later(self, after_s: float, call: object) -> None:
        self.count += 1
        heapq.heappush(self.timers, (self.now + after_s, self.count, call))

    def run(self, until: float = math.inf) -> None:
        """Let time pass until nothing is due before `until`."""
        while True:
            due = policy.next_deadline(self.state, self.now)
            assert due >= self.now
            timer = self.timers[0][0] if self.timers else math.inf
            at = min(due, timer)
            if at > until or at == math.inf:
                break
            self.ticks_now = self.ticks_now + 1 if at == self.now else 0
            assert self.ticks_now < 200, "time stands still"
            self.now = at
            if timer <= due:
                call = heapq.heappop(self.timers)[2]
                call()  # type: ignore[operator]
            else:
                self.post(Tick())
                after = policy.next_deadline(self.state, self.now)
                assert after > self.now, "a tick that leaves another one due at once"
        if until < math.inf:
            self.now = until

    # --- events and actions, as the shell ---

    def post(self, event: Event) -> list[object]:
        self.events.append(event)
        if self.deciding:
            return []
        self.deciding = True
        done: list[object] = []
        rounds = 0
        while self.events:
            rounds += 1
            assert rounds < 500, "decisions undo each other without end"
            actions = policy.decide(self.state, self.events.popleft(), self.now)
            for action in actions:
                self.log.append((self.now, action))
                self.carry_out(action)
            done += actions
        self.deciding = False
        if self.check:
            self.check_all()
        return done

    def submit(self, item: Queued, service_s: float = 1.0, *, again: bool = False) -> list[object]:
        if item.id not in self.ended:
            self.ended[item.id] = Ended(self.now)
        self.items[item.id] = item
        self.service[item.id] = service_s
        self.waiting.add(item.id)
        return self.post(Submitted(item, again))

    def ask(self, request_id: str, model: str = "a", *, service_s: float = 1.0, **kw):
        return self.submit(ask(request_id, model, at=self.now, **kw), service_s)

    def cancel(self, request_id: str) -> None:
        if request_id in self.waiting:
            self.waiting.discard(request_id)
            self.ended[request_id].cancelled = True
            self.post(Cancelled(request_id))
        elif request_id in self.leases:
            self.ended[request_id].cancelled = True
            self.release(request_id)

    def release(self, request_id: str, used: int | None = None) -> list[object]:
        grant = self.leases.pop(request_id, None)
        if grant is None:
            return []
        self.ended[request_id].released_at = self.now
        item = self.items[request_id]
        return self.post(LeaseReleased(request_id, item.tokens if used is None else used))

    def carry_out(self, action: object) -> None:
        match action:
            case Grant():
                worker = self.workers[action.model]
                assert action.id in self.waiting
                self.check_class(self.items[action.id])
                serves = [WorkerState.READY]
                if self.lag_s:
                    serves.append(WorkerState.DRAINING)  # its resumption is in the mailbox
                assert worker.state in serves, f"granted to a {worker.state} worker"
                self.waiting.discard(action.id)
                self.leases[action.id] = action
                self.ended[action.id].granted_at = self.now
                assert self.busy(action.model) <= worker.slots, "slots leased twice"
                assert action.why.rule is Rule.GRANTED
                grant = action
                service_s = self.service[action.id]
                if service_s < math.inf:
                    self.later(service_s, lambda: self.expire(grant))
            case Reject():
                assert action.id in self.waiting
                assert action.retry_after_s > 0
                assert action.message
                self.waiting.discard(action.id)
                self.ended[action.id].rejected = action
            case StartWorker() | DrainWorker() | ResumeWorker() | StopWorker():
                if isinstance(action, DrainWorker):
                    assert self.busy(action.model)
                if self.lag_s:
                    self.later(self.lag_s, lambda: self.command(action))
                else:
                    self.command(action)
            case CancelLease():
                assert action.id in self.leases
                self.later(0.1, lambda: self.cancel(action.id))

    def expire(self, grant: Grant) -> None:
        if self.leases.get(grant.id) is grant:
            self.release(grant.id)

    def busy(self, model: str) -> int:
        return sum(g.slots for g in self.leases.values() if g.model == model)

    # --- workers, as the supervisor ---

    def move(self, name: str, state: WorkerState, **kw) -> None:
        worker = self.workers[name]
        move(WORKER_MOVES, worker.state, state)
        worker.state = state
        if state in (WorkerState.READY, WorkerState.DRAINING):
            kw = {"slots": worker.slots, "context_tokens": self.context[name], **kw}
        self.post(WorkerChanged(name, state, **kw))

    @property
    def context(self) -> dict[str, int]:
        return {name: worker.context for name, worker in self.workers.items()}

    def command(self, action: object) -> None:
        """What the supervisor is told to do with a worker."""
        match action:
            case StartWorker():
                self.start(action)
            case DrainWorker(model=name):
                if self.workers[name].state is WorkerState.READY:
                    self.move(name, WorkerState.DRAINING)
            case ResumeWorker(model=name):
                if self.resumes and self.workers[name].state is WorkerState.DRAINING:
                    self.move(name, WorkerState.READY)
            case StopWorker(model=name):
                gone = (WorkerState.OFF, WorkerState.FAILED)
                if not self.lag_s or self.workers[name].state not in gone:
                    self.stop(name)

    def start(self, action: StartWorker) -> None:
        name = action.model
        worker = self.workers[name]
        assert worker.state in (WorkerState.OFF, WorkerState.FAILED), worker.state
        worker.starts += 1
        self.move(name, WorkerState.STARTING)
        limit = self.settings.max_loaded
        present = [n for n, w in self.workers.items() if w.state in ON]
        assert limit == 0 or len(present) <= limit, f"{present} in memory"
        if self.settings.memory_bytes:
            self.held[name] = self.needs(name, action.context_tokens)
            assert sum(self.held[n] for n in present) <= self.settings.memory_bytes
        self.load(name, action.context_tokens)

    def needs(self, name: str, context: int) -> int:
        """What the model holds with this context at least, by its own reckoning."""
        info = next(m for m in self.models if m.name == name)
        more = max(0, context - info.context_tokens) * info.bytes_per_token
        return info.memory_bytes + int(more)

    def load(self, name: str, context: int) -> None:
        worker = self.workers[name]
        worker.epoch += 1
        epoch = worker.epoch

        def loading() -> None:
            if worker.epoch == epoch:
                self.move(name, WorkerState.LOADING)

        def ready() -> None:
            if worker.epoch != epoch:
                return
            if worker.fails:
                worker.epoch += 1
                self.move(name, WorkerState.FAILED, reason="bad file")
                return
            worker.context = min(max(worker.context, context), worker.context_limit)
            self.move(name, WorkerState.READY, load_s=worker.load_s)

        self.later(worker.load_s / 2, loading)
        self.later(worker.load_s, ready)

    def stop(self, name: str) -> None:
        worker = self.workers[name]
        assert worker.state not in (WorkerState.OFF, WorkerState.STOPPING, WorkerState.FAILED)
        if worker.state in (WorkerState.READY, WorkerState.DRAINING):
            assert not self.busy(name), "stopped under a running request"
        worker.epoch += 1
        epoch = worker.epoch
        if worker.state is WorkerState.BACKOFF:
            self.move(name, WorkerState.OFF)
            return
        self.move(name, WorkerState.STOPPING)

        def off() -> None:
            if worker.epoch == epoch:
                self.move(name, WorkerState.OFF)

        self.later(worker.stop_s, off)

    def crash(self, name: str, *, backoff_s: float = 1.0, fail: bool = False) -> None:
        """The worker dies; what ran there is released and asks again."""
        worker = self.workers[name]
        if worker.state not in (
            WorkerState.STARTING,
            WorkerState.LOADING,
            WorkerState.READY,
            WorkerState.DRAINING,
        ):
            return
        worker.epoch += 1
        epoch = worker.epoch
        if fail:
            self.move(name, WorkerState.FAILED, reason="killed by signal 11")
        else:
            retry_at = self.now + backoff_s
            self.move(name, WorkerState.BACKOFF, reason="killed", retry_at=retry_at)

        def restart() -> None:
            if worker.epoch == epoch and worker.state is WorkerState.BACKOFF:
                self.move(name, WorkerState.STARTING)
                self.load(name, 0)

        self.later(backoff_s, restart)
        for grant in [g for g in self.leases.values() if g.model == name]:
            self.release(grant.id, used=0)
            self.submit(self.items[grant.id], self.service[grant.id], again=True)

    def preload(self, name: str) -> None:
        """The worker is ready, whoever started it."""
        self.workers[name].state = WorkerState.READY
        self.held[name] = self.needs(name, 0)
        worker = self.workers[name]
        self.post(
            WorkerChanged(
                name, WorkerState.READY, slots=worker.slots, context_tokens=worker.context
            )
        )

    # --- what must hold ---

    def check_all(self) -> None:
        state, s = self.state, self.settings
        assert set(state.leases) == set(self.leases)
        assert set(state.queue.waiting) == self.waiting
        stats = policy.statistics(state, self.now)
        assert stats.queued == len(self.waiting)
        assert stats.queued_tokens == sum(self.items[i].tokens for i in self.waiting)
        assert stats.running == len(self.leases)
        keys: dict[str, list[int]] = {}
        for request_id in self.waiting:
            keys.setdefault(self.items[request_id].key, [0, 0])[0] += 1
        for request_id in self.leases:
            keys.setdefault(self.items[request_id].key, [0, 0])[1] += 1
        assert {k.key: [k.queued, k.running] for k in stats.keys} == keys
        for model in stats.models:
            assert model.slots_busy == self.busy(model.model)
            assert sum(model.queued.values()) == state.queue.line(model.model).count
        assert len(state.wants) <= (s.max_loaded or math.inf)
        assert not state.touched
        for model in state.models.values():
            self.check_model(model)

    def check_class(self, granted: Queued) -> None:
        """Nobody of a higher class who could run there too is passed over."""
        aging_sec = self.settings.aging_sec
        if granted.context_tokens or not self.check:
            return
        rank = effective_rank(granted.priority.rank, granted.arrived, self.now, aging_sec)
        others = [self.items[i] for i in self.waiting - {granted.id}]
        # whoever cannot run holds back those of its key that are behind it
        held = {item.key for item in others if item.concurrency or item.context_tokens}
        for item in others:
            if item.model != granted.model or item.key in held:
                continue
            its = effective_rank(item.priority.rank, item.arrived, self.now, aging_sec)
            assert its >= rank, f"{granted.id} was granted before {item.id}"

    def check_model(self, model: Model) -> None:
        """No slot stays free that somebody could have, and nobody waits whom nothing holds."""
        state = self.state
        if not state.admission_open or not model.line.count:
            return
        head = model.line.head(self.now, self.settings.aging_sec, oversized=False)
        if model.serving and head is not None and model.barrier > 2:
            assert model.used + model.slots_for(head.item) > model.slots
        if model.absent and model.name not in state.wants:
            head = model.line.head(self.now, self.settings.aging_sec)
            assert head is None or model.hold is not None

    def whys(self) -> None:
        """Everything that waits says why, and where it stands."""
        places: dict[str, list[int]] = {}
        for request_id in self.waiting:
            why = policy.explain(self.state, request_id, self.now)
            assert why is not None
            assert why.at <= self.now
            assert len(why.blockers) <= 8
            story = policy.story(self.state, request_id)
            assert story[-1].rule is why.rule
            assert len(story) <= 32
            places.setdefault(self.items[request_id].model, []).append(why.position)
            eta = policy.eta_s(self.state, request_id, self.now)
            assert eta is None or eta >= 0
        for found in places.values():
            assert sorted(found) == list(range(1, len(found) + 1))

    def starts(self) -> list[str]:
        return [a.model for _, a in self.log if isinstance(a, StartWorker)]

    def of(self, kind: type) -> list:
        return [a for _, a in self.log if isinstance(a, kind)]

    def wait_s(self, request_id: str) -> float:
        ended = self.ended[request_id]
        return ended.granted_at - ended.asked_at

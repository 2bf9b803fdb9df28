"""The shell around the policy: events in, leases out.

Every event is decided and carried out synchronously in the task that brought it, so a decision
and its effects are one step for everybody else. The scheduler's own task only lets time pass.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import trio

from llmd import errors
from llmd.core import policy
from llmd.core.events import (
    Action,
    Admission,
    CancelLease,
    Cancelled,
    DrainWorker,
    Event,
    Grant,
    LeaseReleased,
    LoadAdvanced,
    Queued,
    Refusal,
    Reject,
    ResumeWorker,
    Rule,
    StartWorker,
    StopWorker,
    Submitted,
    SwitchRequested,
    Tick,
    UnloadRequested,
    Why,
    WorkerChanged,
)
from llmd.core.lifecycle import WorkerState
from llmd.core.settings import ModelInfo

_REFUSALS: dict[Refusal, type[errors.LlmdError]] = {
    Refusal.QUEUE_FULL: errors.QueueFull,
    Refusal.TOO_LARGE: errors.QueueFull,
    Refusal.MODEL_FAILED: errors.ModelFailed,
    Refusal.MODEL_NOT_LOADED: errors.ModelNotLoaded,
    Refusal.INSUFFICIENT_MEMORY: errors.InsufficientMemory,
    Refusal.SHUTTING_DOWN: errors.ShuttingDown,
}


class Workers(Protocol):
    """What the scheduler asks of the supervisor; no call blocks."""

    def start(self, model: str, *, context_tokens: int, reason: str) -> None:
        """Load `model`; `context_tokens` > 0 asks for at least that context per request."""

    def drain(self, model: str) -> None:
        """Mark the worker as draining."""

    def stop(self, model: str, *, reason: str) -> None:
        """End the worker."""


class Lease:
    """One request's place: waiting, then holding slots, then given back.

    A context manager: leaving it, in whatever way, leaves the queue or frees the slots, at once
    and without yielding. `used_tokens` is what the holder really used, for the fair shares;
    left at None, the estimate stands if the lease was granted. `story` is what it waited for, once
    it is over.
    """

    __slots__ = ("_scheduler", "_woken", "error", "grant", "item", "story", "used_tokens")

    def __init__(self, scheduler: Scheduler, item: Queued) -> None:
        self._scheduler = scheduler
        self._woken: trio.Event | None = None
        self.item = item
        self.grant: Grant | None = None
        self.error: errors.LlmdError | None = None
        self.used_tokens: int | None = None
        self.story: tuple[Why, ...] = ()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scheduler._give_back(self)

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    async def wait(self, timeout_s: float = math.inf) -> bool:
        """Wait for the grant, at most `timeout_s` seconds; True once it is granted.

        Raises:
            LlmdError: The policy turned the request away: queue full, model failed, ...
        """
        if self.grant is None and self.error is None:
            self._woken = trio.Event()
            with trio.move_on_after(timeout_s):
                await self._woken.wait()
        if self.error is not None:
            raise self.error
        return self.grant is not None

    def why(self) -> Why | None:
        """Return what this request waits for now, None when it does not wait."""
        return self._scheduler.explain(self.item.id)

    def eta_s(self) -> float | None:
        """Return when the grant is expected, in seconds from now, if that can be told."""
        return self._scheduler.eta_s(self.item.id)

    def load_progress(self) -> policy.Progress | None:
        """Return how far the load of its model is, if that can be told."""
        return self._scheduler.load_progress(self.item.model)


class Scheduler:
    """Leases for requests, and the workers that they need.

    Args:
        state: The policy's state, owned by the scheduler from now on.
        workers: The supervisor.
        cancel: Called with a request's id when its lease outlived a drain, and the drain's rule.
        clock: The monotonic clock of all times in the policy.
        on_action: Told of each action carried out, for metrics and the log; must not raise.
    """

    def __init__(
        self,
        state: policy.SchedulerState,
        *,
        workers: Workers,
        cancel: Callable[[str, Rule], None],
        clock: Callable[[], float] = trio.current_time,
        on_action: Callable[[Action], None] = lambda _action: None,
    ) -> None:
        self.state = state
        self._workers = workers
        self._cancel = cancel
        self._clock = clock
        self._on_action = on_action
        self._leases: dict[str, Lease] = {}
        self._granted: dict[str, int] = {}  # slots in use per model
        self._deadline = math.inf
        self._rearmed = trio.Event()
        self._quiet = trio.Event()
        self._quiet.set()
        self._events: deque[Event] = deque()
        self._context_tokens: dict[str, int] = {}
        self.active_model = ""  # last switched to, else last loaded
        self._deciding = False
        self._moved = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let time pass for the policy, until cancelled."""
        task_status.started()
        while True:
            self._rearmed = trio.Event()
            self._deadline = policy.next_deadline(self.state, self._clock())
            with trio.CancelScope(deadline=self._deadline) as scope:
                await self._rearmed.wait()
            if scope.cancelled_caught:
                self.post(Tick())

    # --- requests ---------------------------------------------------------------------------

    def lease(self, item: Queued, *, again: bool = False) -> Lease:
        """Ask for a lease; see `Lease` for how it is waited for and given back.

        Args:
            item: The request.
            again: True for a retry, which no bound of the queue refuses.

        Raises:
            LlmdError: It was turned away at once.
            ValueError: The id is one that waits or runs; its lease stays as it is.
        """
        if item.id in self._leases:
            raise ValueError(f"request {item.id!r} is here already")
        lease = Lease(self, item)
        self._leases[item.id] = lease
        self.post(Submitted(item, again))
        if lease.error is not None:
            raise lease.error
        return lease

    def _give_back(self, lease: Lease) -> None:
        item = lease.item
        if self._leases.get(item.id) is not lease:
            return
        del self._leases[item.id]
        lease.story = self.story(item.id)
        if lease.grant is None:
            self.post(Cancelled(item.id))
            return
        model = lease.grant.model
        self._granted[model] -= lease.grant.slots
        used = item.tokens if lease.used_tokens is None else lease.used_tokens
        self.post(LeaseReleased(item.id, used))
        if not any(self._granted.values()):
            self._quiet.set()

    def busy_slots(self, model: str) -> int:
        """Return how many slots of `model` are leased."""
        return self._granted.get(model, 0)

    def context_tokens(self, model: str) -> int:
        """Return the context of one slot that `model` was last loaded with; 0 = never loaded."""
        return self._context_tokens.get(model, 0)

    async def quiet(self) -> None:
        """Wait until no lease is held."""
        await self._quiet.wait()

    # --- everything that happens ------------------------------------------------------------

    def post(self, event: Event) -> list[Action]:
        """Decide on `event` and carry the decision out; never blocks.

        What carrying it out brings about (a worker's move, a cancel) is decided after it, never
        in the middle; such a nested call returns [].
        """
        self._events.append(event)
        if self._deciding:
            return []
        self._deciding = True
        now = self._clock()
        done: list[Action] = []
        try:
            while self._events:
                actions = policy.decide(self.state, self._events.popleft(), now)
                for action in actions:
                    self._carry_out(action)
                    self._on_action(action)
                done += actions
        finally:
            self._deciding = False
        if policy.next_deadline(self.state, now) < self._deadline:
            self._deadline = -math.inf  # until the task has looked again
            self._rearmed.set()
        return done

    def _carry_out(self, action: Action) -> None:
        match action:
            case Grant():
                lease = self._leases[action.id]
                lease.grant = action
                self._granted[action.model] = self._granted.get(action.model, 0) + action.slots
                if self._quiet.is_set():
                    self._quiet = trio.Event()
                lease._wake()
            case Reject():
                lease = self._leases.pop(action.id)
                lease.error = refusal(action)
                lease.story = action.story
                lease._wake()
            case StartWorker():
                self._workers.start(
                    action.model,
                    context_tokens=action.context_tokens,
                    reason=action.rule.value,
                )
            case DrainWorker():
                self._workers.drain(action.model)
            case ResumeWorker():
                self._workers.start(action.model, context_tokens=0, reason=Rule.DEMAND.value)
            case StopWorker():
                self._workers.stop(action.model, reason=action.rule.value)
            case CancelLease():
                self._cancel(action.id, action.rule)

    def worker_changed(self, change: WorkerChanged) -> None:
        """Tell the policy of a worker's move; what the supervisor calls."""
        if change.state is WorkerState.READY:
            self.active_model = change.model
            self._context_tokens[change.model] = change.context_tokens
        self.post(change)
        self._moved.set()
        self._moved = trio.Event()

    async def moved(self) -> None:
        """Wait until some worker moves; what it changed has been decided on by then."""
        await self._moved.wait()

    def load_advanced(self, model: str, fraction: float) -> None:
        """Tell the policy how far a load is, 0 to 1; what the supervisor calls."""
        self.post(LoadAdvanced(model, fraction))

    def load_progress(self, model: str) -> policy.Progress | None:
        """Return how far the load of `model` is; None when it does not load, or nobody knows."""
        return policy.load_progress(self.state, self.state.model(model), self._clock())

    def starting(self, model: str) -> bool:
        """Return whether `model` is to start and has not begun to.

        It has been told to, or room is being made for it because an operator wants it.
        """
        known, want = self.state.models.get(model), self.state.wants.get(model)
        return (known is not None and known.starting) or (
            want is not None and want.rule is Rule.OPERATOR
        )

    def learn(self, info: ModelInfo) -> None:
        """Take in a model that has come to the catalog, or what has changed about one."""
        self.state.put_model(info)

    # --- operators --------------------------------------------------------------------------

    def plan(self, request: SwitchRequested) -> policy.Plan:
        """Return what `switch` would do now; changes nothing."""
        return policy.plan_switch(self.state, request, self._clock())

    def switch(self, request: SwitchRequested) -> list[Action]:
        """Load a model for an operator."""
        self.active_model = request.model
        return self.post(request)

    def unload(self, request: UnloadRequested) -> list[Action]:
        """Take a model out of memory for an operator."""
        return self.post(request)

    def admit(self, *, is_open: bool, reject_queued: bool = False, why: str = "") -> None:
        """Open or close admission; closing can turn away what is queued, which is told `why`."""
        self.post(Admission(is_open, reject_queued, why))

    def stop_all(self) -> None:
        """Turn away what is queued and unload everything once nothing runs there."""
        was_open = self.state.admission_open
        self.post(
            Admission(
                open=False,
                reject_queued=True,
                why="an operator stopped all models while this request was still queued; try again",
            )
        )
        for model in policy.statistics(self.state, self._clock()).loaded:
            self.post(UnloadRequested(model))
        if was_open:
            self.post(Admission(open=True))

    # --- looking ----------------------------------------------------------------------------

    def explain(self, request_id: str) -> Why | None:
        """Return what a waiting request waits for now."""
        return policy.explain(self.state, request_id, self._clock())

    def story(self, request_id: str) -> tuple[Why, ...]:
        """Return what a request has waited for so far, step by step."""
        return policy.story(self.state, request_id)

    def eta_s(self, request_id: str) -> float | None:
        """Return the expected seconds until a waiting request's grant."""
        return policy.eta_s(self.state, request_id, self._clock())

    def statistics(self) -> policy.PolicyStatistics:
        """Return depths, tokens and leases, frozen."""
        return policy.statistics(self.state, self._clock())


def refusal(action: Reject) -> errors.LlmdError:
    """Turn the policy's refusal into the error that the edges render.

    Trying again in a moment is no use with a model that failed, even if it will be forgiven, and
    with what is larger than the whole queue or all memory.
    """
    error = _REFUSALS[action.refusal](action.message, retry_after_s=action.retry_after_s)
    never = action.final or action.refusal in (Refusal.MODEL_FAILED, Refusal.TOO_LARGE)
    error.should_retry = False if never else None
    return error

"""Who runs next, and which models are in memory: `decide(state, event, now) -> actions`.

Synchronous and without I/O or a clock. The shell tells it of each event, carries out the actions
in their order, and calls again with `Tick` when `next_deadline` has come. What it promises:

- Requests that can run now go by class (lifted by aging), then fair share, then arrival. Who need
  not wait is not held to the queue's bounds.
- Requests for loaded models go first; one held back for `max_delay_sec` stops admission of its
  class and lower ones to a model that must go for it. See `residency.py`.
- What waits says why (`explain`, `story`), and when (`eta_s`).
"""

from __future__ import annotations

from llmd.core.admission import (
    failed,
    grant_waiting,
    may_load,
    not_loaded,
    oversized,
    reject_line,
    release,
    shut,
    submit,
)
from llmd.core.estimates import Progress, load_progress, smoothed
from llmd.core.events import (
    Action,
    Admission,
    Cancelled,
    Event,
    LeaseReleased,
    LoadAdvanced,
    Refusal,
    Submitted,
    SwitchRequested,
    Tick,
    UnloadRequested,
    WorkerChanged,
)
from llmd.core.explain import (
    KeyStatistics,
    ModelStatistics,
    PolicyStatistics,
    explain,
    statistics,
    story,
    update_stories,
)
from llmd.core.forecast import eta_s
from llmd.core.lifecycle import WorkerState
from llmd.core.policy_state import Model, SchedulerState
from llmd.core.queue import NO_RANK
from llmd.core.residency import advance, next_due, place, review
from llmd.core.settings import ModelInfo, PolicySettings
from llmd.core.switching import Plan, plan_switch, switch, unload

__all__ = [
    "KeyStatistics",
    "ModelInfo",
    "ModelStatistics",
    "Plan",
    "PolicySettings",
    "PolicyStatistics",
    "Progress",
    "SchedulerState",
    "decide",
    "eta_s",
    "explain",
    "load_progress",
    "next_deadline",
    "plan_switch",
    "statistics",
    "story",
]

_HERE = (WorkerState.STARTING, WorkerState.LOADING, WorkerState.READY, WorkerState.BACKOFF)


def decide(state: SchedulerState, event: Event, now: float) -> list[Action]:
    """Return what follows from `event`, each action with its rule; the state already has it.

    Args:
        state: Changed in place.
        event: What happened.
        now: Seconds on the one clock of all events; never goes back.

    Raises:
        ValueError: A `Submitted` repeats the id of a request that waits or runs.
    """
    actions: list[Action] = []
    kind = type(event)
    if kind is Submitted:
        assert isinstance(event, Submitted)
        if submit(state, event, now, actions):
            _settle(state, now, actions)
        if state.queue.waiting and event.item.id in state.queue.waiting:
            explain(state, event.item.id, now)  # its story begins
    elif kind is LeaseReleased:
        assert isinstance(event, LeaseReleased)
        if release(state, event, now):
            _settle(state, now, actions)
    else:
        _rest(state, event, now, actions)
    if state.touched:
        update_stories(state, now)
    return actions


def next_deadline(state: SchedulerState, now: float) -> float:
    """Return when `Tick` is due: `now` or later, inf when nothing is."""
    return max(now, next_due(state))


def _rest(state: SchedulerState, event: Event, now: float, actions: list[Action]) -> None:
    match event:
        case Cancelled(id=request_id):
            waiting = state.queue.waiting.get(request_id)
            if waiting is None:
                return
            state.queue.remove(waiting)
        case WorkerChanged():
            _worker_changed(state, event, now, actions)
        case LoadAdvanced():
            model = state.model(event.model)
            if model.loading:
                model.progress = max(model.progress or 0.0, event.fraction)
                if model.progress >= 1 and model.read_at is None:
                    model.read_at = now
            return
        case SwitchRequested():
            switch(state, event, now, actions)
        case UnloadRequested():
            unload(state, event, now, actions)
        case Admission():
            _admission(state, event, actions)
        case Tick():
            pass
        case _:
            raise TypeError(f"no event: {event!r}")
    _settle(state, now, actions)


def _settle(state: SchedulerState, now: float, actions: list[Action]) -> None:
    """Carry out all that is due now."""
    state.settled_at = now
    if not state.settings.auto_switch:
        for model in [state.models[name] for name in state.queue.lines]:
            if not may_load(state, model):
                reject_line(state, model, Refusal.MODEL_NOT_LOADED, *not_loaded(model), actions)
    review(state, now, actions)
    if state.admission_open:
        place(state, now, actions)
        # a grant may change who goes first elsewhere, and which models may be made to go
        while _grant_all(state, now, actions):
            place(state, now, actions)
    advance(state, now, actions)


def _grant_all(state: SchedulerState, now: float, actions: list[Action]) -> bool:
    """Grant what can run, each model looked at once; return whether anything could."""
    granted = False
    for name in list(state.queue.lines):
        model = state.models[name]
        if model.serving and grant_waiting(state, model, now, actions):
            granted = True
    return granted and bool(state.queue.lines)


# --- workers and operators -----------------------------------------------------------------


def _worker_changed(
    state: SchedulerState, event: WorkerChanged, now: float, actions: list[Action]
) -> None:
    model = state.model(event.model)
    before = model.state
    model.state = event.state
    model.reason = event.reason
    model.retry_at = event.retry_at
    model.permanent = event.permanent
    if model.starting and event.state is WorkerState.OFF:
        return  # a failure was forgotten; the start that was sent comes after it
    model.starting = False
    model.hold = None
    state.touch(model)
    if event.state in (WorkerState.OFF, WorkerState.FAILED):
        _gone(state, model, before, now, actions)
        return
    state.present[model.name] = model
    if event.state in _HERE and model.leaving is None:
        state.wants.pop(model.name, None)  # it came by itself
    if event.state is WorkerState.READY:
        _ready(state, model, before, event, now)
        # before anybody can make it go again, it serves those that it was loaded for
        if state.admission_open:
            grant_waiting(state, model, now, actions)
    elif event.state is WorkerState.BACKOFF:
        state.generation += 1
        model.started_at = max(now, event.retry_at)
    elif event.state is WorkerState.STARTING and before is not WorkerState.STARTING:
        model.started_at = now
        model.forget_progress()


def _ready(
    state: SchedulerState, model: Model, before: WorkerState, event: WorkerChanged, now: float
) -> None:
    model.slots = max(1, event.slots)
    model.context_tokens = event.context_tokens
    model.started_by = None
    if before is not WorkerState.READY:
        state.generation += 1
    # before it is ready it still grows; later, a part of what it may grow by is in it
    if event.memory_bytes > 0 and before is not WorkerState.DRAINING:
        model.memory_bytes = model.base_bytes = event.memory_bytes + model.info.reserve_bytes
        model.base_context = event.context_tokens
    if before not in (WorkerState.READY, WorkerState.DRAINING):
        model.ready_at = model.last_used = now
        model.barrier = NO_RANK
        if model.read_at is not None:
            model.warm_up_s = smoothed(model.warm_up_s, now - model.read_at)
        model.forget_progress()
        if event.load_s > 0:
            model.load_s = smoothed(model.load_s if model.measured_load else None, event.load_s)
            model.measured_load = True
        if 0 < event.context_tokens < model.asked_context:
            model.context_got = event.context_tokens
        elif event.context_tokens > model.context_got:
            model.context_got = 0
        for name in model.displaced:
            displaced = state.models[name]
            if not displaced.serving:
                displaced.held_from = now
                state.touch(displaced)
        model.displaced = ()
    for waiting in model.line:
        model.line.set_oversized(waiting, oversized(state, model, waiting.item))


def _gone(
    state: SchedulerState, model: Model, before: WorkerState, now: float, actions: list[Action]
) -> None:
    """Take in that a worker is off or failed."""
    state.present.pop(model.name, None)
    model.slots = 0
    model.memory_bytes = model.bytes_with(0)
    model.forget_progress()
    model.barrier = NO_RANK
    if before is not model.state:
        state.generation += 1
    if model.leaving is None:
        model.held_from = now
    model.leaving = None
    model.started_by = None
    model.displaced = ()
    if model.state is WorkerState.FAILED:
        state.wants.pop(model.name, None)
        reject_line(
            state,
            model,
            Refusal.MODEL_FAILED,
            *failed(model, now),
            actions,
        )


def _admission(state: SchedulerState, event: Admission, actions: list[Action]) -> None:
    state.admission_open = event.open
    state.rejecting = not event.open and event.reject_queued
    lines = [state.models[name] for name in state.queue.lines]
    usual, retry_after_s = shut(state)
    for model in lines:
        if state.rejecting:
            told = event.why or usual
            reject_line(state, model, Refusal.SHUTTING_DOWN, told, retry_after_s, actions)
        else:
            state.touch(model)

"""Why a request waits, what it waited for before, and the policy's state as frozen numbers.

What a request waits for follows from the state, so it is worked out when somebody looks, and at
each decision that changes it for a whole line; either way a change is kept in the request's story.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmd.core.estimates import Progress, expected_load_s, load_left_s, load_progress
from llmd.core.events import Rule, Why
from llmd.core.forecast import position
from llmd.core.lifecycle import Priority, WorkerState
from llmd.core.policy_state import Model, SchedulerState
from llmd.core.queue import Waiting, effective_rank

_BLOCKERS = 8

_Reason = tuple[Rule, tuple[str, ...], str]


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model at one moment.

    Attributes:
        model: Its name.
        state: Of its worker, as last announced.
        slots: Of its worker; 0 when it has none.
        slots_busy: Slots leased.
        running: Leases.
        queued: How many wait, by class as asked for (aging aside).
        queued_tokens: Sum of their estimates.
        oldest_wait_s: How long the one that came first has waited; 0 when nobody waits.
        service_s: Moving average of how long a lease lasts; None before the first ended.
        load_s: Moving average of a load, or what it is expected to take by what others took; 0
            when nothing tells.
        load_progress: How far its load is; None when it does not load, or nobody knows.
        load_left_s: Expected rest of its load; None when it does not load, or nobody knows.
        memory_bytes: What it holds, or would; 0 = unknown.
        context_tokens: Of one slot, when last loaded.
        pinned: Evicted only by an operator.
        leaving: By which rule it must go; None if it need not.
        leaving_for: Who comes in its place; "" for nobody.
        wanted: It is about to be started, as soon as there is room.
        ready_at, last_used: On the caller's clock; 0 = never.
    """

    model: str
    state: WorkerState
    slots: int
    slots_busy: int
    running: int
    queued: Mapping[Priority, int]
    queued_tokens: int
    oldest_wait_s: float
    service_s: float | None
    load_s: float
    load_progress: Progress | None
    load_left_s: float | None
    memory_bytes: int
    context_tokens: int
    pinned: bool
    leaving: Rule | None
    leaving_for: str
    wanted: bool
    ready_at: float
    last_used: float


@dataclass(frozen=True, slots=True)
class KeyStatistics:
    """One key that has something queued or running.

    Attributes:
        key: Its name.
        queued: Its requests that wait.
        running: Its leases.
        counter: Its virtual token counter: who has least goes first.
    """

    key: str
    queued: int
    running: int
    counter: float


@dataclass(frozen=True, slots=True)
class PolicyStatistics:
    """The policy at one moment.

    Attributes:
        generation: Grows whenever what is loaded changes.
        admission_open: False while requests are kept out.
        queued: Requests that wait.
        queued_tokens: Sum of their estimates.
        running: Leases.
        loaded: Models in memory or on their way in or out.
        models: All that are known.
        keys: All that are active.
    """

    generation: int
    admission_open: bool
    queued: int
    queued_tokens: int
    running: int
    loaded: tuple[str, ...]
    models: tuple[ModelStatistics, ...]
    keys: tuple[KeyStatistics, ...]


# --- why -----------------------------------------------------------------------------------


def explain(state: SchedulerState, request_id: str, now: float) -> Why | None:
    """Return what a waiting request waits for now; None for one that does not wait."""
    waiting = state.queue.waiting.get(request_id)
    if waiting is None:
        return None
    place, ahead = position(state, waiting, now)
    return tell(state, waiting, place, ahead, now)


def story(state: SchedulerState, request_id: str) -> tuple[Why, ...]:
    """Return the steps of a request so far, the last for a granted one being its grant.

    Kept while it waits and until its lease is released; the newest 32 steps.
    """
    waiting = state.queue.waiting.get(request_id)
    if waiting is not None:
        return tuple(waiting.story)
    lease = state.leases.get(request_id)
    if lease is None:
        return ()
    return (*(lease.story or ()), lease.why)


def update_stories(state: SchedulerState, now: float) -> None:
    """Bring the stories of all lines that a decision touched up to date."""
    while state.touched:
        _, model = state.touched.popitem()
        ahead: list[Waiting] = []
        for waiting in model.line.order(now, state.settings.aging_sec):
            tell(state, waiting, len(ahead) + 1, ahead, now)
            ahead.append(waiting)


def tell(
    state: SchedulerState, waiting: Waiting, place: int, ahead: list[Waiting], now: float
) -> Why:
    """Return what `waiting` waits for, and keep it in its story when that is another step.

    Args:
        state: The policy's.
        waiting: Who.
        place: Its place in line, from 1.
        ahead: Who is ahead of it in line, the first first.
        now: Seconds.
    """
    rule, blockers, detail = _reason(state, waiting, place, ahead, now)
    told = waiting.story
    # who exactly is ahead changes all the time, and is no step of the story
    passing = rule is Rule.BEHIND or rule is Rule.SLOTS_BUSY
    if told and told[-1].rule is rule and (passing or told[-1].blockers == blockers):
        return Why(told[-1].at, rule, blockers, place, detail)
    why = Why(now, rule, blockers, place, detail)
    told.append(why)
    return why


def _reason(
    state: SchedulerState, waiting: Waiting, place: int, ahead: list[Waiting], now: float
) -> _Reason:
    """Work out by which rule `waiting` waits, who is in its way, and that in words."""
    model = state.models[waiting.item.model]
    if not state.admission_open:
        return Rule.ADMISSION_CLOSED, (), "an operator has paused admission"
    if model.serving:
        return _reason_serving(state, model, waiting, place, ahead)
    if model.leaving is not None or model.state in (WorkerState.DRAINING, WorkerState.STOPPING):
        return _reason_leaving(model)
    if model.loading:
        return Rule.MODEL_LOADING, (model.name,), _loading_words(state, model, now)
    if model.state is WorkerState.BACKOFF:
        wait_s = max(0.0, model.retry_at - now)
        detail = f"its worker died ({model.reason}); next try in {wait_s:.0f} s"
        return Rule.MODEL_BACKOFF, (model.name,), detail
    return _reason_absent(state, model, waiting, now)


def _loading_words(state: SchedulerState, model: Model, now: float) -> str:
    progress, left_s = load_progress(state, model, now), load_left_s(state, model, now)
    words = "loading" if progress is None else f"loading, {progress}"
    return f"{words}, about {left_s:.0f} s left" if left_s is not None else words


def _reason_serving(
    state: SchedulerState, model: Model, waiting: Waiting, place: int, ahead: list[Waiting]
) -> _Reason:
    item = waiting.item
    if waiting.oversized:
        detail = f"needs {item.context_tokens} tokens of context, loaded are {model.context_tokens}"
        return Rule.CONTEXT_RELOAD, (model.name,), detail
    if waiting.blocked_by_key():
        own = _runs_of_key(state, waiting)
        detail = f"its key runs {len(own)} of {item.concurrency} requests at once"
        return Rule.KEY_CONCURRENCY, tuple(own[:_BLOCKERS]), detail
    busy = f"{model.used}/{model.slots} slots busy"
    if _barred(state, model, waiting):
        return Rule.YIELDING, (), "its model serves only a higher class before it must go"
    if ahead:
        nearest = tuple(other.item.id for other in ahead[: -_BLOCKERS - 1 : -1])
        more = "more than " if place > len(ahead) + 1 else ""  # looked no further
        return Rule.BEHIND, nearest, f"{more}{len(ahead)} ahead, {busy}"
    if model.slots - model.used > 0:
        busy += f", it takes {model.slots_for(item)}"
    return Rule.SLOTS_BUSY, tuple(model.leases)[:_BLOCKERS], busy


def _runs_of_key(state: SchedulerState, waiting: Waiting) -> list[str]:
    return [lease.item.id for lease in state.leases.values() if lease.share is waiting.share]


def _barred(state: SchedulerState, model: Model, waiting: Waiting) -> bool:
    """Return whether only classes above the one of `waiting` are admitted to its model now."""
    rank = effective_rank(
        waiting.rank, waiting.item.arrived, state.settled_at, state.settings.aging_sec
    )
    return rank >= model.barrier


def _reason_leaving(model: Model) -> _Reason:
    leaving = model.leaving
    runs = f"{len(model.leases)} still run there"
    if leaving is None or not leaving.for_model:
        return Rule.YIELDING, (), f"its model is being unloaded, {runs}"
    if leaving.for_model == model.name:
        return Rule.CONTEXT_RELOAD, (model.name,), f"reloads with a larger context, {runs}"
    return Rule.YIELDING, (leaving.for_model,), f"gives way to {leaving.for_model}, {runs}"


def _reason_absent(state: SchedulerState, model: Model, waiting: Waiting, now: float) -> _Reason:
    if model.name in state.wants:
        going = [m for m in state.present.values() if m.leaving is not None]
        going.sort(key=lambda m: m.leaving is None or m.leaving.for_model != model.name)
        drains = ", ".join(f"{m.name} ({len(m.leases)} running)" for m in going)
        names = tuple(m.name for m in going[:_BLOCKERS])
        return Rule.DRAINING_OTHER, names, f"room is being made: {drains}"
    rule, names = model.hold or (Rule.MODEL_NOT_LOADED, ())
    if rule is Rule.MIN_RESIDENCY:
        return rule, names, f"{', '.join(names)} was loaded a moment ago"
    if waiting.blocked_by_key():
        own = _runs_of_key(state, waiting)
        detail = "its key runs as many requests as it may; its model is not loaded for it yet"
        return Rule.KEY_CONCURRENCY, tuple(own[:_BLOCKERS]), detail
    limit = state.settings.max_delay_sec
    detail = f"held back for {', '.join(names)}" if names else "its model is not loaded"
    if limit > 0:
        left = limit - (now - state.hold_start(model, waiting))
        detail += f", at most {max(0.0, left):.0f} s more before room is made"
    return Rule.MODEL_NOT_LOADED, names[:_BLOCKERS], detail


# --- numbers -------------------------------------------------------------------------------


def statistics(state: SchedulerState, now: float) -> PolicyStatistics:
    """Return what the policy holds now, as frozen data."""
    shares = sorted(state.shares.active.values(), key=lambda share: share.key)
    return PolicyStatistics(
        generation=state.generation,
        admission_open=state.admission_open,
        queued=len(state.queue),
        queued_tokens=state.queue.tokens,
        running=len(state.leases),
        loaded=tuple(state.present),
        models=tuple(_model_statistics(state, model, now) for model in state.models.values()),
        keys=tuple(KeyStatistics(s.key, s.queued, s.running, s.counter) for s in shares),
    )


def _model_statistics(state: SchedulerState, model: Model, now: float) -> ModelStatistics:
    queued = dict.fromkeys(Priority, 0)
    oldest = now
    for (_, rank), lane in model.line.lanes.items():
        queued[_CLASSES[rank]] += len(lane.items)
        oldest = min(oldest, lane.items[0].item.arrived)
    leaving = model.leaving
    return ModelStatistics(
        model=model.name,
        state=model.state,
        slots=model.slots,
        slots_busy=model.used,
        running=len(model.leases),
        queued=queued,
        queued_tokens=model.line.tokens,
        oldest_wait_s=now - oldest,
        service_s=model.service_s,
        load_s=expected_load_s(state, model) or 0.0,
        load_progress=load_progress(state, model, now),
        load_left_s=load_left_s(state, model, now) if model.loading else None,
        memory_bytes=model.memory_bytes,
        context_tokens=model.context_tokens,
        pinned=model.info.pinned,
        leaving=leaving.rule if leaving else None,
        leaving_for=leaving.for_model if leaving else "",
        wanted=model.name in state.wants,
        ready_at=model.ready_at,
        last_used=model.last_used,
    )


_CLASSES = {priority.rank: priority for priority in Priority}
